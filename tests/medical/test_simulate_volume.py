"""The tool that makes the shipped volume, run on the public scan."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from hilum.medical.simulate.anatomy import FILE, load_chest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_simulator_volume.py"


@pytest.mark.slow
@pytest.mark.integration
def test_the_tool_makes_the_shipped_volume_again(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "medical" / "lidc0001"
    if not source.is_dir():
        pytest.skip("the scan is not among the real images")
    spec = importlib.util.spec_from_file_location("make_simulator_volume", TOOL)
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    made = tool.build(*tool.folder_files(source))
    tool.write(made, tmp_path / "chest.npz")
    again = (tmp_path / "chest.npz").read_bytes()
    tool.write(made, tmp_path / "chest.npz")
    assert (tmp_path / "chest.npz").read_bytes() == again  # no timestamps
    with np.load(FILE) as shipped:
        # The folder holds the scan already averaged two by two, in whole HU: equal but for rounding.
        assert np.abs(shipped["code"].astype(int) - made["code"]).mean() < 0.05
        assert (shipped["group"] != made["group"]).mean() < 0.02
        assert np.allclose(shipped["spacing_mm"], made["spacing_mm"])
    chest = load_chest(tmp_path / "chest.npz")
    assert chest.density.shape == made["code"].shape and chest.both_lungs.sum() > 100_000
