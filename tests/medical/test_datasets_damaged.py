"""Published tables that were damaged on their way: an error that names the row and quotes no cell, or the same patient."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake.msd import write_msd
from fake.nih_cxr14 import write_nih_cxr14
from fake.rsna_pneumonia import write_rsna_pneumonia
from fake.slake import write_slake
from fake.vindr_cxr import write_vindr_cxr

from hilum.core.errors import HilumError
from hilum.core.registry import registry

SECRET = "Smith"


@pytest.mark.parametrize(
    ("name", "write", "file", "old", "method"),
    [
        ("rsna-pneumonia", write_rsna_pneumonia, "stage_2_train_labels.csv", "264.0", "boxes"),
        ("vindr-cxr", lambda root: write_vindr_cxr(root, kaggle=True), "train.csv", ",14,", "table"),
    ],
)
def test_a_cell_that_is_no_number_is_named_by_its_row(
    tmp_path: Path, name: str, write: object, file: str, old: str, method: str
) -> None:
    write(tmp_path)  # type: ignore[operator]
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, old.replace(old.strip(","), SECRET)))
    with pytest.raises(HilumError, match="no number") as caught:
        getattr(registry.build("dataset", f"medical/{name}"), method)(tmp_path)
    assert "row" in str(caught.value) and SECRET not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("modality", ["CT"]), ("numTraining", SECRET), ("training", {"a": 1})])
def test_msd_records_of_another_kind_are_refused(tmp_path: Path, key: str, value: object) -> None:
    write_msd(tmp_path)
    path = next(tmp_path.glob("*/dataset.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(HilumError, match="not as published") as caught:
        registry.build("dataset", "medical/msd").table(tmp_path)
    assert SECRET not in str(caught.value)


def test_slake_names_nothing_outside_its_folder(tmp_path: Path) -> None:
    write_slake(tmp_path)
    path = next(tmp_path.rglob("test.json"))
    records = json.loads(path.read_text())
    records[0]["img_name"] = "../../../etc/source.jpg"
    path.write_text(json.dumps(records))
    with pytest.raises(HilumError, match="outside its folder"):
        registry.build("dataset", "medical/slake").table(tmp_path)


def test_a_nih_patient_is_one_however_many_zeros_lead_the_number(tmp_path: Path) -> None:
    """The mapping of sets drawn from it reads patients from file names, whose numbers are padded."""
    write_nih_cxr14(tmp_path)
    path = next(tmp_path.glob("Data_Entry_2017*.csv"))
    before = registry.build("dataset", "medical/nih-cxr14").table(tmp_path).column("patient_id").to_pylist()
    head, *lines = path.read_text().splitlines()
    at = head.split(",").index("Patient ID")
    padded = [line.split(",") for line in lines]
    for cells in padded:
        cells[at] = cells[at].zfill(8)
    path.write_text("\n".join([head, *(",".join(cells) for cells in padded)]) + "\n")
    after = registry.build("dataset", "medical/nih-cxr14").table(tmp_path).column("patient_id").to_pylist()
    assert after == before and not any(p.startswith("0") for p in after)
