"""Rows of headers that say the same: worked out once, and what every file says by itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake.dicom import dataset, own, phantom

import hilum.medical.dicom
from hilum.core.types import IndexRow, Limits
from hilum.data.isolation import read_file
from hilum.medical.dicom import alike
from hilum.medical.dicom.intake import DicomIntake

LIMITS = Limits()


def asked(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> tuple[list[IndexRow], int]:
    """Rows of files read one after another, and how many of them had to be worked out."""
    intake, worked = DicomIntake(), []
    original = DicomIntake._image
    with monkeypatch.context() as patch:
        patch.setattr(DicomIntake, "_image", lambda *a, **k: worked.append(1) or original(*a, **k))
        return [row for file in files for row in read_file(file, [intake], LIMITS, headers_only=True)], len(worked)


def alone(file: Path) -> IndexRow:
    return read_file(file, [DicomIntake()], LIMITS, headers_only=True)[0]


def same(one: IndexRow, other: IndexRow) -> bool:
    told = [dataclasses.asdict(row) | {"problems": sorted(set(row.problems))} for row in (one, other)]
    return repr(told[0]) == repr(told[1])


def slices(folder: Path, change: Callable[[int, Any], None]) -> list[Path]:
    files = []
    for n in range(4):
        data = dataset(phantom(), Modality="CT", PixelSpacing=[1, 1], InstanceNumber=n, RescaleIntercept=-1024)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{n}"
        data.SeriesInstanceUID, data.StudyInstanceUID, data.PatientID = "1.2.4", "1.2.5", "somebody"
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.5 * n]
        data.ContentTime = f"10000{n}"
        change(n, data)
        files.append(folder / f"{n}.dcm")
        data.save_as(files[-1], enforce_file_format=True)
    return files


def test_a_series_is_worked_out_once_and_keeps_its_own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = slices(tmp_path, lambda n, data: None)
    rows, worked = asked(files, monkeypatch)
    assert worked == 1
    assert [row.columns["positions"][2] for row in rows] == [0, 2.5, 5, 7.5]
    assert [row.identity["sop_instance_uid"] for row in rows] == [f"1.2.3.{n}" for n in range(4)]
    assert all(same(row, alone(file)) for row, file in zip(rows, files, strict=True))


def _set(keyword: str, *values: Any) -> Callable[[int, Any], None]:
    return lambda n, data: setattr(data, keyword, values[n % len(values)])


def _absent(keyword: str) -> Callable[[int, Any], None]:
    return lambda n, data: delattr(data, keyword) if n % 2 else None


CHANGES = {
    "slope": _set("RescaleSlope", 1, 2),
    "window": lambda n, data: (_set("WindowCenter", 40, 50)(n, data), _set("WindowWidth", 400)(n, data)),
    "patient": _set("PatientID", "somebody", "else"),
    "series": _set("SeriesInstanceUID", "1.2.4", "1.2.44"),
    "photometric": _set("PhotometricInterpretation", "MONOCHROME2", "MONOCHROME1"),
    "bits": _set("BitsStored", 16, 12),
    "absent position": _absent("ImagePositionPatient"),
    "absent number": _absent("InstanceNumber"),
    "absent identifier": _absent("SOPInstanceUID"),
    "far position": lambda n, data: setattr(data, "ImagePositionPatient", [0, 0, 1e9 if n % 2 == 0 else 1]),
    "slanted": lambda n, data: setattr(data, "ImageOrientationPatient", [1, 0, 0, 0, 1 if n % 2 else 2, 0]),
    "missing rows": lambda n, data: setattr(data, "PixelData", data.PixelData[: None if n % 2 else -64]),
    "unlisted": _set("BodyPartExamined", "CHEST", "SOMEBODY"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_is_never_taken_from_another_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = slices(tmp_path, CHANGES[name])
    expected = [alone(file) for file in files]
    assert not same(expected[0], expected[1])
    rows, _ = asked(files, monkeypatch)
    for row, by_itself in zip(rows, expected, strict=True):
        assert same(row, by_itself)


def test_files_cut_off_are_not_taken_for_whole_ones(tmp_path: Path) -> None:
    files = slices(tmp_path, lambda n, data: None)
    files[2].write_bytes(files[2].read_bytes()[:-10])
    intake = DicomIntake()
    assert [intake.read_header(f, LIMITS)[0].reason for f in files] == ["", "", "truncated_pixels", ""]


def test_public_files_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of pydicom twice, between others: as it reads alone."""
    files = sorted(f for f in own("MR_small.dcm").parent.glob("*") if f.is_file())
    order = [f for pair in zip(files, files, files[1:] + files[:1], strict=True) for f in pair]
    rows, worked = asked(order, monkeypatch)
    assert worked < len(rows)
    by_itself = {file: alone(file) for file in files}
    assert all(same(row, by_itself[file]) for row, file in zip(rows, order, strict=True))


def test_nothing_else_reads_what_varies() -> None:
    folder = Path(hilum.medical.dicom.__path__[0])
    allowed = {"alike.py", "geometry.py", "tags.py"}
    for file in folder.glob("*.py"):
        found = set(re.findall(r'"(\w+)"', file.read_text())) & set(alike.VARYING)
        if file.name == "intake.py":  # as an identifier
            assert found == {"SOPInstanceUID"}
        elif file.name == "axes.py":  # of functional groups
            assert found == {"ImagePositionPatient"}
        elif file.name not in allowed:
            assert not found, file.name
