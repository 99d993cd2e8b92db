"""Decoded values of public files against digests that another path made (tests/golden/make_dicom_pixels.py)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydicom.data import get_testdata_file

from hilum.core.types import Limits
from hilum.medical.dicom.intake import DicomIntake

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[1] / "golden" / "dicom_pixels.json").read_text(encoding="utf-8")
)["files"]
pytestmark = pytest.mark.filterwarnings("ignore")


SMALL = 200_000  # values


def compare(names: list[str]) -> int:
    """How many of the files are here; each must give its digests."""
    compared, wrong = 0, {}
    for name in names:
        golden = GOLDEN[name]
        try:
            found = get_testdata_file(name, download=False)
        except Exception:
            found = None
        if not found:
            continue
        row = DicomIntake().read(Path(str(found)), Limits())[0]
        columns = row.columns
        if row.status != "indexed":
            wrong[name] = row.reason
            continue
        shape = [columns["frames"], columns["rows"], columns["columns"]]
        same = columns["stored_sha256"] == golden["stored_sha256"] and shape == golden["shape"][:3]
        if "modality_sha256" in golden:
            same = same and columns["modality_sha256"] == golden["modality_sha256"]
        if same == ("differs" in golden):
            wrong[name] = "differs" if not same else "no longer differs"
        compared += 1
    assert not wrong, wrong
    return compared


def test_golden_digests_of_small_public_files() -> None:
    assert compare([n for n, g in GOLDEN.items() if math.prod(g["shape"]) <= SMALL]) >= 50


@pytest.mark.slow
def test_golden_digests_of_large_public_files() -> None:
    """At least pydicom's own; those of pydicom-data where it is installed."""
    assert compare([n for n, g in GOLDEN.items() if math.prod(g["shape"]) > SMALL]) >= 5
