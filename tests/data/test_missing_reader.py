"""A DICOM archive where no installed reader can read DICOM: one error with the way out, not a harmless reason a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fake.archive import index
from fake.dicom import phantom, write
from PIL import Image

from hilum.core.errors import HilumError
from hilum.core.registry import registry
from hilum.verbs.doctor import doctor

INTAKE = ("intake", "dicom")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three DICOM files, one without a suffix, and a picture."""
    root = tmp_path / "archive"
    for n, name in enumerate(("a.dcm", "b.dcm", "IM0001")):
        write(root / name, phantom(n), patient=f"P{n}", study=n)
    Image.fromarray(phantom(9).astype(np.uint8)).save(root / "grey.png")
    return root


def test_a_reader_without_its_package_is_named_with_the_extra(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = dataclasses.replace(registry.entries("intake")["dicom"], requires=("absent_package",))
    monkeypatch.setitem(registry.installed, INTAKE, entry)
    for call in (lambda: index(archive, tmp_path / "s", intakes=None), lambda: doctor(archive)):
        with pytest.raises(HilumError, match="3 of 4 files are DICOM") as caught:
            call()
        assert "'dicom' needs absent_package" in caught.value.what
        assert 'pip install "hilum[medical]"' in caught.value.fix
    assert not (tmp_path / "s").exists()
    counts = index(archive, tmp_path / "s", intakes=None, exclude=["*.dcm", "IM*"]).counts
    assert (counts["indexed"], counts["skipped"]) == (1, 3)


def test_no_reader_at_all_gives_the_extra(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry.installed, INTAKE)
    with pytest.raises(HilumError, match="no reader for them is installed") as caught:
        index(archive, tmp_path / "s", intakes=None)
    assert 'pip install "hilum[medical]"' in caught.value.fix


def test_archives_without_such_files_need_no_such_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry.installed, INTAKE)
    (tmp_path / "archive").mkdir()
    Image.fromarray(phantom(9).astype(np.uint8)).save(tmp_path / "archive/grey.png")
    (tmp_path / "archive/notes.dcm").write_text("these are notes, not an image\n" * 20)
    counts = index(tmp_path / "archive", tmp_path / "s", intakes=None).counts
    assert counts["indexed"] == 1 and counts["reasons"] == {"not_dicom": 1}
