"""Columns of a labels table: what is a finding, a class or neither, and what must never become a label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake.dicom import phantom
from PIL import Image

from hilum.core.cli import main
from hilum.core.errors import HilumError
from hilum.data.findings import labels_of
from hilum.data.tables import Table


def table(**columns: str) -> Table:
    """Columns of values parted by blanks; ``_`` is an empty cell."""
    return Table("t.csv", {n: ["" if v == "_" else v for v in text.split()] for n, text in columns.items()})


def test_findings_classes_and_what_is_neither() -> None:
    columns = table(
        path="a b c d e f g",
        patient_id="1 0 1 1 1 1 1",
        Edema="1 0.0 -1 1 1 1 1",
        Mass="_ 1 _ _ _ _ _",
        age="54 1 0 33 47 61 80",
        note="long text _ _ _ _ _",
        split="train train test train Validation _ none",
        empty="_ _ _ _ _ _ _",
    )
    found = labels_of(columns)
    assert list(found.columns) == ["Edema", "Mass", "split"] and found.findings == ["Edema", "Mass"]
    assert found.ignored == ["age", "note", "empty"] and found.classes is None
    np.testing.assert_array_equal(found.columns["Mass"].to_numpy(zero_copy_only=False), [np.nan, 1, *[np.nan] * 5])
    assert labels_of(columns, names=["Mass"]).findings == ["Mass"]
    with pytest.raises(HilumError) as caught:
        labels_of(columns, names=["age"])
    assert "rows 2" in caught.value.where and "54" not in str(caught.value)
    with pytest.raises(HilumError, match="no column 'Massa'"):
        labels_of(columns, names=["Massa"])
    words = table(path="a b", Edema="1 0", split="P-0001 P-0002")
    assert list(labels_of(words).columns) == ["Edema"] and labels_of(words).ignored == ["split"]


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ("1 0 1 1 0 2 1 0", "row 7"),
        ("1 0 yes 1", "row 4"),
        ("1 2 2 1 2 2", "rows 3, 4, 6, 7"),
        ("0 1 2 3 4", "rows 4, 5, 6"),
    ],
)
def test_label_values_among_others_are_an_error_with_rows(values: str, rows: str) -> None:
    mixed = table(
        path=" ".join("abcdefgh"[: len(values.split())]), Edema=values, Mass=" ".join("1" * len(values.split()))
    )
    with pytest.raises(HilumError, match="'Edema' holds values other") as caught:
        labels_of(mixed)
    assert caught.value.where == f"t.csv, {rows}" and "--finding" in caught.value.fix
    assert labels_of(mixed, names=["Mass"]).ignored == ["Edema"]
    assert labels_of(mixed, leave=["edema"]).findings == ["Mass"]


def test_how_programs_write_that_there_is_no_value() -> None:
    found = labels_of(table(path="a b c d e f", Edema="NA 1 nan NULL None n/a"))
    np.testing.assert_array_equal(found.columns["Edema"].to_numpy(zero_copy_only=False), [np.nan, 1, *[np.nan] * 4])
    found = labels_of(table(path="a b c d", label="None NA viral nan"))
    assert found.columns["class"].to_pylist() == ["None", None, "viral", None]


def test_a_class_is_called_so_or_asked_for() -> None:
    for name in ("class", "Label", "DIAGNOSIS"):
        found = labels_of(Table("t", {"path": ["a", "b"], name: ["x", ""], "scanner": ["s", "t"]}))
        assert found.columns["class"].to_pylist() == ["x", None] and found.classes == name
        assert found.ignored == ["scanner"]
    two = table(path="a b", condition="x y", scanner="s t")
    assert labels_of(two).columns == {} and labels_of(two).ignored == ["condition", "scanner"]
    asked = labels_of(two, names=["condition"])
    assert asked.columns["class"].to_pylist() == ["x", "y"] and asked.ignored == ["scanner"]
    with pytest.raises(HilumError, match="'scanner' holds classes"):
        labels_of(two, names=["condition", "scanner"])
    assert labels_of(table(path="a b c", **{"class": "0 1 2"})).columns["class"].to_pylist() == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["PatientID", "Patient Name", "accession-number", "MRN", "StudyInstanceUID", "name"])
def test_identifiers_are_never_labels(name: str) -> None:
    only = Table("t", {"path": ["a", "b"], name: ["Doe", "Roe"]})
    assert labels_of(only).columns == {} and labels_of(only).ignored == [name]
    with pytest.raises(HilumError, match="cannot be a label") as caught:
        labels_of(only, names=[name])
    assert "Doe" not in str(caught.value)


def test_a_class_of_almost_every_row_is_refused_without_its_values() -> None:
    many = Table("t", {"path": [str(n) for n in range(80)], "label": [f"P-{n % 60}" for n in range(80)]})
    with pytest.raises(HilumError, match="60 different values in 80 rows") as caught:
        labels_of(many)
    assert "P-" not in str(caught.value)
    rare = Table("t", {"path": [str(n) for n in range(150)], "label": [f"kind {n % 60}" for n in range(150)]})
    assert labels_of(rare).classes == "label"


def test_index_says_which_columns_are_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for n in range(4):
        Image.fromarray(phantom(n).astype(np.uint8)).save(root / f"{n}.png")
    common = ["index", str(root), "--out", str(tmp_path / "s"), "--workers", "0", "--labels", str(tmp_path / "t.csv")]
    lines = [
        "path,PatientID,Edema,scanner,diagnosis",
        *(f"{n}.png,Doe{n},{n % 2},s{n},{'xy'[n % 2]}" for n in range(4)),
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert main(common) == 0
    told = capsys.readouterr().out
    assert "findings: Edema\n" in told and "ignored columns: PatientID, scanner, diagnosis (--finding" in told
    assert main([*common, "--finding", "diagnosis"]) == 0
    told = capsys.readouterr().out
    assert "classes: column 'diagnosis', 2 of them" in told and "PatientID, Edema, scanner" in told
    public = list((tmp_path / "s").glob("*.parquet"))
    assert len(public) == 3 and not any("Doe" in str(pq.read_table(p).to_pylist()) for p in public)
