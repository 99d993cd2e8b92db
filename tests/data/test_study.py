"""What a study tells of itself, and the doctor's inventory of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake.archive import INTAKES, by_path, index
from fake.dicom import phantom, table, write

from hilum.core.errors import HilumError
from hilum.data.cache import ShardCache
from hilum.data.image import installed_intakes, open_image
from hilum.data.inventory import inventory
from hilum.data.study import SEVERAL_FRAMES, Study
from hilum.verbs.doctor import doctor


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    for n in range(5):
        options = {"photometric": "MONOCHROME1"} if n == 4 else {}
        write(folder / f"a/{n}.dcm", phantom(n), patient=f"P{n // 2}", study=n, Modality=("DX", "CR")[n % 2], **options)
    (folder / "a/text.txt").write_text("x")
    return Study(index(folder / "a", folder / "s").study)


def test_rows_are_the_images_that_meet_the_predicate(study: Study) -> None:
    assert [study.file(int(r))[0].name for r in study.rows()] == [f"{n}.dcm" for n in range(5)]
    assert [study.file(int(r))[0].name for r in study.rows("modality = 'CR'")] == ["1.dcm", "3.dcm"]
    with pytest.raises(HilumError, match="no column 'modalty'"):
        study.rows("modalty = 'CR'")


def test_digest_is_of_the_sorted_lines(study: Study) -> None:
    rows = zip(study.index.to_pylist(), study.appearance, strict=True)
    lines = sorted(f"{r['sample_id']},{r['status']},{shown}\n" for r, shown in rows)
    assert study.digest == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    "header",
    [
        {"photometric": "MONOCHROME1"},
        {"RescaleSlope": 2, "RescaleIntercept": 0},
        {"WindowCenter": 900, "WindowWidth": 300},
        {"WindowCenter": 900, "WindowWidth": 200, "VOILUTFunction": "SIGMOID"},
        {"PixelPaddingValue": 0},
        {"PixelSpacing": [1, 1]},
        {"VOILUTSequence": [table(0, np.arange(4096)[::-1], 12)]},
    ],
)
def test_a_corrected_header_is_another_study_and_only_its_image_is_read_again(
    tmp_path: Path, header: dict[str, Any]
) -> None:
    """The stored pixels stay the same; what is shown of them does not."""
    pixels = phantom(0)
    pixels[:3] = 0
    plain: dict[str, Any] = {"WindowCenter": 900, "WindowWidth": 200}
    if "VOILUTSequence" in header:
        plain = {"VOILUTSequence": [table(0, np.arange(4096), 12)]}
    for n in range(2):
        write(tmp_path / f"a/{n}.dcm", pixels + n, patient=f"P{n}", study=n, **plain)
    before = Study(index(tmp_path / "a", tmp_path / "s").study)
    cache = ShardCache(before, side="full", workers=0, intakes=INTAKES)
    assert cache.build().read == 2
    write(tmp_path / "a/0.dcm", pixels, patient="P0", study=0, **{**plain, **header})
    after = Study(index(tmp_path / "a", tmp_path / "s").study)
    assert after.column("stored_sha256").tolist() == before.column("stored_sha256").tolist()
    assert after.digest != before.digest and after.appearance[1] == before.appearance[1]
    fresh = ShardCache(after, side="full", workers=0, intakes=INTAKES)
    assert fresh.missing().tolist() == [0] and fresh.build().read == 1
    served, cold = fresh.get(0), open_image(after, 0, side=None, intakes=installed_intakes(INTAKES))
    names = ("slope", "intercept", "window", "inverted", "spacing_mm", "stats")
    assert {n: getattr(served, n) for n in names} == {n: getattr(cold, n) for n in names}
    old = cache.get(0)
    assert any(getattr(served, n) != getattr(old, n) for n in names)


def test_images_of_several_frames_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "a/one.dcm", phantom(0), study=1)
    write(tmp_path / "a/again.dcm", phantom(0), study=1)
    write(tmp_path / "a/cine.dcm", np.stack([phantom(1), phantom(2)]), study=2, frames=2)
    study = Study(index(tmp_path / "a", tmp_path / "s").study)
    assert len(study.rows()) == 1 and study.left_out() == {"exact copies": 1, SEVERAL_FRAMES: 1}


def test_columns_and_files(study: Study, tmp_path: Path) -> None:
    assert study.column("modality").tolist()[:2] == ["DX", "CR"]
    assert np.isnan(study.column("mean")[-1]) and study.column("problems")[0] == []
    with pytest.raises(HilumError, match="no column 'moda'"):
        study.column("moda")
    assert study.labels is None and study.label_names == () and study.label_matrix(None, [0, 1]).shape == (2, 0)
    moved = Study(study.path, root=tmp_path)
    assert moved.file(0)[0] == tmp_path / "0.dcm"
    with pytest.raises(HilumError, match="no study"):
        Study(tmp_path)
    assert study.write_json("note.json", {"b": 1, "a": [2]}).read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}\n'


def test_statistics_are_modality_values_before_polarity(study: Study) -> None:
    row = by_path(study.path)["4.dcm"]
    assert row["inverted"] is True and (row["min"], row["max"]) == (phantom(4).min(), phantom(4).max())
    ring = np.ones(phantom(4).shape, bool)
    ring[1:-1, 1:-1] = False
    assert row["background"] == np.median(phantom(4)[ring])


def test_inventory_counts_what_is_there(study: Study) -> None:
    seen = inventory(study, intakes=INTAKES)
    assert seen["counts"]["found"] == 6 and seen["modality"] == {"DX": 3, "CR": 2}
    assert seen["sizes"] == {"24 x 32": 5} and seen["spacing_mm"] == {"0.5 x 0.25": 5}
    assert seen["groups"] == 3 and seen["unknown_groups"] == 0
    assert seen["photometric"] == {"MONOCHROME2": 4, "MONOCHROME1": 1}
    assert seen["codecs"]["dicom"]["RLE Lossless"].startswith("rle ")


def test_the_doctor_does_not_count_vanished_files_as_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(3):
        write(tmp_path / f"a/{n}.dcm", phantom(n), study=n)
    write(tmp_path / "a/cine.dcm", np.stack([phantom(7), phantom(8)]), study=9, frames=2)
    index(tmp_path / "a", tmp_path / "s")
    (tmp_path / "a/2.dcm").unlink()
    doctor(index(tmp_path / "a", tmp_path / "s").study)
    told = capsys.readouterr().out
    assert "found 3 = indexed 3 + skipped 0 + quarantined 0" in told and "vanished         1 file" in told
    assert "usable images: 2 of 1 patients" in told and f"left out         1 {SEVERAL_FRAMES}" in told
