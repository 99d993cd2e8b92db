"""Let a torchvision that was linked against CUDA load beside a CPU-only torch.

The registry's Linux wheels of torchvision link CUDA libraries. Where torch is a CPU build they are absent, the
operators are not registered, and ``import torchvision`` fails and takes timm and lightning down. This script builds
three tiny shared libraries that define exactly the symbols torchvision leaves open (CUDA runtime calls answer "no
device", everything else aborts) and a ``.pth`` file that loads them at interpreter start. It does nothing where torch
has an accelerator or torchvision already works. It needs gcc, nm and readelf only when there is something to do.

usage: python tools/repair_torchvision.py     (with the environment's own python)
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

CUDA_ERROR_NO_DEVICE = 100
WORKS = "import torch, torchvision.ops as o; o.nms(torch.rand(1, 4), torch.rand(1), 0.5)"
FOLDER = "_torchvision_cpu"


def works() -> bool:
    """Whether torchvision and one of its native operators run in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", WORKS], capture_output=True).returncode == 0


def output(*command: str) -> list[list[str]]:
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split() for line in text.splitlines()]


def definition(symbol: str) -> str:
    """C source that defines one open symbol harmlessly."""
    if symbol.endswith("9allocatorE"):  # a data symbol
        return f"void *{symbol}[16];"
    if symbol == "__cudaRegisterFatBinary":
        return f"static void *handle[4]; void **{symbol}(void *p) {{ (void)p; return handle; }}"
    if symbol.endswith("12device_countEv"):
        return f"signed char {symbol}(void) {{ return 0; }}"
    if symbol.startswith("__cuda"):
        return f"int {symbol}(void) {{ return 0; }}"
    if symbol.startswith("cuda"):
        return f"int {symbol}(void) {{ return {CUDA_ERROR_NO_DEVICE}; }}"
    return f"void {symbol}(void) {{ abort(); }}"


def open_symbols(vision: Path, torch_lib: Path) -> dict[str, list[str]]:
    """Library name -> symbols that torchvision's extensions expect of it and nobody defines."""
    defined = {
        row[-1].split("@")[0]
        for lib in torch_lib.glob("*.so*")
        for row in output("nm", "-D", "--defined-only", str(lib))
    }
    wanted = {
        row[-1]
        for name in ("_C.so", "image.so")
        for row in output("nm", "-D", "--undefined-only", str(vision / name))
        if row[-2] == "U"
    }
    needed = [row[-1].strip("[]") for row in output("readelf", "-d", str(vision / "_C.so")) if "(NEEDED)" in row]
    runtime = next(name for name in needed if name.startswith("libcudart"))

    def of(*prefixes: str) -> list[str]:
        return sorted(s for s in wanted if s.startswith(prefixes) and s not in defined)

    return {
        runtime: sorted({s.split("@")[0] for s in wanted if s.endswith("@" + runtime)}),
        "libc10_cuda.so": of("_ZN3c104cuda", "_ZNK3c104cuda"),
        "libtorch_cuda.so": of("_ZN2at4cuda", "_ZNK2at4cuda"),
    }


def build(folder: Path, name: str, symbols: list[str]) -> None:
    source = folder / f"{name}.c"
    source.write_text("#include <stdlib.h>\n" + "\n".join(map(definition, symbols)) + "\n")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
    if name.startswith("libcudart"):  # its symbols are versioned by the library's name
        version = folder / f"{name}.map"
        version.write_text(f"{name} {{ global: *; }};\n")
        command.append(f"-Wl,--version-script={version}")
    subprocess.run(command, check=True)


def main() -> int:
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or torch.version.cuda or torch.version.hip or sys.platform != "linux":
        return 0
    if works():
        return 0
    site = Path(sysconfig.get_paths()["platlib"])
    folder = site / FOLDER
    folder.mkdir(exist_ok=True)
    libraries = open_symbols(Path(spec.origin).parent, Path(torch.__file__).parent / "lib")
    for name, symbols in libraries.items():
        build(folder, name, symbols)
    (folder / "__init__.py").write_text(
        "import ctypes\nimport pathlib\n"
        f"for _name in {tuple(libraries)!r}:\n"
        "    ctypes.CDLL(str(pathlib.Path(__file__).parent / _name), mode=ctypes.RTLD_GLOBAL)\n"
    )
    (site / f"{FOLDER}.pth").write_text(f"import {FOLDER}\n")
    if not works():
        print("torchvision still does not load beside this torch; install a torchvision built for it", file=sys.stderr)
        return 1
    print("torchvision: CUDA symbols stubbed, loads beside the CPU torch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
