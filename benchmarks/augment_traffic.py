"""Memory traffic of the fused Triton kernel, counted in Triton's interpreter: bytes over the least that must be moved.

Counted is every byte of the stored image that some lane reads, once however often it is read (a tap that is read again comes
from a cache), every byte of a level written and read, and every byte of output. The least is the bytes of the source pixels
whose centre lies under the output, and of the output. Masked lanes count nothing; tables of parameters, under 1 kB a sample,
are left out. Chains: a crop, a crop turned and coloured with noise, the same with blur, and large reductions, which read a
level that a second kernel makes.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from claims import arguments, claim, tell, versions
from triton.runtime import interpreter

from hilum.augment.policy import Policy
from hilum.augment.triton import backend
from hilum.core.types import Meta, SampleKey, Window

CHAINS: dict[str, dict[str, Any]] = {
    "crop": {"resized_crop": [0.4, 1.0], "hflip": 0.5},
    "turned": {
        "resized_crop": [0.4, 1.0],
        "rotate": 15,
        "brightness": 0.2,
        "contrast": 0.2,
        "gamma": 0.2,
        "noise": 0.05,
    },
    "blurred": {"resized_crop": [0.4, 1.0], "rotate": 15, "blur": [1.0, 1.0]},
    "reduced": {"resized_crop": [0.9, 1.0], "rotate": 5},
}


@dataclass
class Traffic:
    """Bytes."""

    source: int
    level: int
    output: int
    least: int

    @property
    def ratio(self) -> float:
        return (self.source + self.level + self.output) / self.least


def chain(name: str, source: int, size: int, *, channels: int = 1, n: int = 2) -> tuple[Any, ...]:
    """``n`` uint8 images of side ``source`` on their way to ``size``."""
    policy = Policy(CHAINS[name], size=size, channels=channels, mean=0.5, std=0.25, train=True)
    rng, stats = np.random.default_rng(0), {"mean": 100.0}
    images = [torch.from_numpy(rng.integers(0, 256, (channels, source, source), np.uint8)) for _ in range(n)]
    metas = [
        Meta(f"{k}", "g", key=SampleKey(0, 0, k), extra={"image": {"window": Window(0, 255), "stats": stats}})
        for k in range(n)
    ]
    draws = [policy.draw(m.key, source_size=(source, source), stats=stats) for m in metas]
    return images, draws, metas, policy


def measure(images: list[torch.Tensor], draws: list[Any], metas: list[Meta], policy: Policy) -> Traffic:
    """One batch, counted load by load and store by store."""
    read, written = [], []
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        got = load(self, ptrs, mask, *rest)
        read.append((np.unique(ptrs.data[mask.data]), got.data.itemsize))
        return got

    def counted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        written.append((np.unique(ptrs.data[mask.data]), value.data.itemsize))
        return store(self, ptrs, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    try:
        out = backend.apply(images, draws, metas, policy, dtype=torch.bfloat16)
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store

    def within(moved: list[tuple[Any, int]], start: int, size: int) -> int:
        parts = [(at[(at >= start) & (at < start + size)], width) for at, width in moved]
        return sum(len(np.unique(np.concatenate([at for at, w in parts if w == n]))) * n for n in {w for _, w in parts})

    def outside(moved: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
        """What lies in the levels: numbers of two or four bytes (a table's have eight) of neither image nor output."""
        spans = [(t.data_ptr(), t.nbytes) for t in (*images, out)]
        for start, size in spans:
            moved = [(at[(at < start) | (at >= start + size)], width) for at, width in moved]
        return [(at, width) for at, width in moved if width < 8]

    everything = (0, 1 << 62)
    source = sum(within(read, x.data_ptr(), x.nbytes) for x in images)
    level = within(outside(written), *everything) + within(outside(read), *everything)
    output = within(written, out.data_ptr(), out.nbytes)
    least = out.nbytes
    for x, draw in zip(images, draws, strict=True):
        u = np.stack(np.meshgrid(*map(np.arange, x.shape[1:]), [1.0], indexing="ij"))[..., 0].reshape(3, -1)
        q = np.linalg.inv(draw.matrix) @ u
        under = ((q[:2] > -0.5) & (q[:2] < np.array(draw.size)[:, None] - 0.5)).all(0)
        least += int(under.sum()) * len(x) * x.element_size()
    return Traffic(source, level, output, least)


def main() -> None:
    options = arguments(__doc__)
    tell(
        versions("triton", "torch"),
        "uint8 in, bfloat16 out, two samples a chain; ratios to the least that must be moved",
    )
    size = 64 if options.quick else 112
    goals = {"crop": (2, 1.5), "turned": (2, 1.5), "reduced": (5, 1.5), "blurred": (2, float("inf"))}
    for channels in (1, 3):
        for name, (times, goal) in goals.items():
            t = measure(*chain(name, times * size, size, channels=channels))
            tell(
                f"{name}, {channels} channels, {times * size} -> {size}: source {t.source}, level {t.level}, output {t.output}, "
                f"least {t.least} bytes: {t.ratio:.3f}"
            )
            if goal < 10:
                claim(f"augment_traffic_{name}_{channels}", t.ratio, "x the least bytes", goal, below=True)


if __name__ == "__main__":
    main()
