"""What a study tells of itself, and the doctor's inventory of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from fake.archive import INTAKES, by_path, index
from fake.dicom import phantom, write

from hilum.core.errors import HilumError
from hilum.data.inventory import inventory
from hilum.data.study import Study


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
    rows = study.index.to_pylist()
    lines = sorted(f"{r['sample_id']},{r['status']},{r['stored_sha256'] or ''}\n" for r in rows)
    assert study.digest == hashlib.sha256("".join(lines).encode()).hexdigest()


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
