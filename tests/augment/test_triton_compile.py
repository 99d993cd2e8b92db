"""Every kernel compiles for sm_80 and sm_90 without a GPU; in a process of its own, which must not interpret."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed (it comes with the dev extra on Linux)", allow_module_level=True)

# stored type, border (constant, edge, reflect), nearest, levels, tables of windows, channels in and out, type out, noise by fours
VARIANTS = [
    ("uint8", 0, False, "uint16", True, 3, 3, "bf16", True),
    ("uint16", 2, False, None, False, 1, 3, "fp32", False),
    ("float16", 1, True, None, False, 3, 1, "fp16", True),
    ("float32", 0, False, "float32", False, 1, 1, "fp32", True),
    ("int16", 2, True, None, True, 5, 5, "bf16", False),
]


def refused() -> str:
    """What is said where there is no GPU and nothing is interpreted."""
    import torch

    from hilum.augment.policy import Policy
    from hilum.augment.triton import apply
    from hilum.core.errors import HilumError
    from hilum.core.types import Meta

    policy = Policy({}, size=4, channels=1, mean=0.0, std=1.0, train=False)
    try:
        image = torch.zeros(1, 5, 5, dtype=torch.uint8)
        apply([image], [policy.draw(None, source_size=(5, 5))], [Meta("a", "g")], policy)
    except HilumError as error:
        return str(error)
    return ""


def built(architecture: int, variants: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """What each kernel became: its name, whether machine code came out, local (spilled or indexed) loads."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hilum.augment.triton import backend, kernels, table

    def build(kernel: Any, signature: dict[str, str], constants: dict[str, Any], **options: Any) -> dict[str, Any]:
        names = kernel.arg_names
        source = ASTSource(
            fn=kernel,
            signature={name: signature.get(name, "constexpr") for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items()},
        )
        done = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        ptx = done.asm["ptx"]
        return {
            "kernel": kernel.__name__,
            "target": f".target sm_{architecture}" in ptx,
            "cubin": len(done.asm["cubin"]),
            "local": ptx.count("ld.local"),
        }

    th, tw = backend.TILE
    told = []
    for stored, border, nearest, levels, curves, channels, out_channels, out, fours in variants:
        up, source = triton.next_power_of_2, getattr(tl, stored)
        level = levels and getattr(tl, levels)
        common = {"SOURCE": source, "BORDER": border, "LEVELS": level, "CHANNELS": channels, "CP": up(channels)}
        common |= {"TH": th, "TW": tw}
        own = {"NEAREST": nearest, "CURVES": curves, "OUT_CHANNELS": out_channels, "OUT_CP": up(out_channels)}
        order = {"FIRST": table.AT["gamma"], "SECOND": table.AT["contrast"], "THIRD": table.AT["brightness"]}
        signature = {"table": "*i64", "norm": "i32", "out": f"*{out}", "height": "i32", "width": "i32"}
        told.append(
            build(kernels.fuse, signature, common | own | order | {"FOURS": fours}, enable_fp_fusion=not nearest)
        )
        if level:
            told.append(build(kernels.shrink, {"table": "*i64", "tiles": "i32"}, common))
    return told


def run(tmp_path: Path, which: str, kernels: int) -> dict[str, Any]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, __file__, which]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    for architecture in ("80", "90"):
        assert len(told[architecture]) == kernels
        for kernel in told[architecture]:
            assert kernel["target"] and kernel["cubin"] > 1000, kernel
            assert kernel["local"] == 0, kernel  # nothing lies in local memory: no array, no reduction of an angle
    return told


def test_both_kernels_compile_and_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    assert "does not run on cpu here" in run(tmp_path, "one", 2)["refused"]


@pytest.mark.slow
def test_every_variant_compiles(tmp_path: Path) -> None:
    told = run(tmp_path, "all", len(VARIANTS) + 2)
    for architecture in ("80", "90"):
        made = [kernel["kernel"] for kernel in told[architecture]]
        assert (made.count("fuse"), made.count("shrink")) == (len(VARIANTS), 2)


if __name__ == "__main__":
    chosen = VARIANTS if sys.argv[1] == "all" else VARIANTS[3:4]
    print(json.dumps({"refused": refused(), **{sm: built(sm, chosen) for sm in (80, 90)}}))
