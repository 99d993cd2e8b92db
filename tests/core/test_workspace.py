"""What holds the workspace together: the namespace, the import order, sizes and names."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(p for p in (ROOT / "packages").iterdir() if (p / "pyproject.toml").is_file())
SOURCES = sorted((ROOT / "packages").glob("*/src/hilum/**/*.py"))


def test_five_distributions() -> None:
    assert [p.name for p in PACKAGES] == ["core", "industrial", "infrared", "medical", "surgical"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_the_namespace_belongs_to_nobody(package: Path) -> None:
    assert not list(package.glob("src/hilum/__init__.py*"))
    assert not (package / "src" / "__init__.py").exists()
    declared = tomllib.loads((package / "pyproject.toml").read_text())
    points = declared["project"]["entry-points"]["hilum.plugins"]
    assert all(value.endswith("._manifest") for value in points.values())
    assert declared["project"]["name"] == ("hilum" if package.name == "core" else f"hilum-{package.name}")


def test_every_distribution_s_manifest_is_found() -> None:
    found = {p.value for p in importlib.metadata.entry_points(group="hilum.plugins")}
    assert found == {f"hilum.{p.name}._manifest" for p in PACKAGES}


@pytest.mark.parametrize(
    "module", ["hilum.core", "hilum.core.loop", "hilum.core.fit", "hilum.core.cli", "hilum.core.types"]
)
def test_the_core_pulls_no_domain_library(module: str) -> None:
    heavy = "{'timm', 'monai', 'pydicom', 'transformers', 'albumentations', 'mlflow', 'nibabel', 'sklearn', 'pandas'}"
    code = f"import sys, {module}\nsys.exit(' '.join(sorted({heavy} & set(sys.modules))) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_parts_and_types_need_torch_and_numpy_only() -> None:
    names = [f"hilum.parts.{p.stem}" for p in (ROOT / "packages/core/src/hilum/parts").glob("[!_]*.py")]
    heavy = "{'lightning', 'timm', 'monai', 'yaml', 'pyarrow', 'scipy', 'torchvision', 'hilum.core.registry'}"
    code = f"import sys, {', '.join(names)}\nsys.exit(' '.join(sorted({heavy} & set(sys.modules))) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert len(names) > 15
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_import_order() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--config", "pyproject.toml", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "0 broken" in done.stdout


def lines(folder: str) -> int:
    return sum(len(p.read_text().splitlines()) for p in (ROOT / "packages/core/src/hilum" / folder).rglob("*.py"))


def test_the_core_stays_thin() -> None:
    assert lines("core") <= 3500


def test_files_stay_short() -> None:
    sizes = sorted(len(p.read_text().splitlines()) for p in SOURCES if p.stem not in ("__init__", "_manifest"))
    assert len(sizes) > 60
    assert sizes[len(sizes) // 2] <= 150
    assert sizes[int(0.95 * len(sizes))] <= 400


def test_names_say_what_is_inside() -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "shared"}
    assert not [p for p in SOURCES if vague & {p.stem, p.parent.name}]


def test_packages_hold_a_docstring_only() -> None:
    for path in SOURCES:
        direct = path.name == "__init__.py" and path.parents[1].name == "hilum"  # every manifest's import passes it
        if direct and path.parent.name != "core":
            code = [line for line in path.read_text().splitlines() if line.strip()]
            assert len(code) <= 3, path
            assert code[0].startswith('"""'), path
    for package in PACKAGES:
        assert list((package / "src/hilum").glob("*/py.typed")), f"{package.name} ships its types"


def test_nothing_is_left_open() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "raise NotImplemented", "place" + "holder")
    found = [(p.name, m) for p in SOURCES for m in marks if m in p.read_text()]
    assert not found


def test_only_checkpoints_and_weights_are_loaded_and_without_pickle() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert "pickle.load" not in text, path
        assert "weights_only=False" not in text, path
        assert text.count("torch.load(") <= text.count("weights_only=True"), path
