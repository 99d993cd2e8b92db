"""Published layouts: fake copies index as the real ones would; a changed header names what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake.archive import by_path, index
from fake.chexpert import FINDINGS, write_chexpert
from fake.nih_cxr14 import write_nih_cxr14

from hilum.core.errors import HilumError
from hilum.core.registry import registry
from hilum.data.study import Study
from hilum.medical.datasets.chexpert import CheXpert
from hilum.medical.datasets.nih_cxr14 import NIHChestXray14


def test_nih_chest_xray_14(tmp_path: Path) -> None:
    root = tmp_path / "nih"
    root.mkdir()
    written = write_nih_cxr14(root)
    result = index(root, tmp_path / "s", dataset=NIHChestXray14())
    assert result.exit_code == 0 and result.counts["indexed"] == len(written) == 16
    assert result.counts["labels"] == {"rows": 16, "rows_unmatched": 0, "files": 16, "files_unmatched": 0}
    study = Study(result.study)
    files = {p.rsplit("/", 1)[-1]: r for p, r in by_path(study.path).items()}
    place = {s: n for n, s in enumerate(study.column("sample_id"))}
    assert study.label_names == NIHChestXray14.findings
    for name, _, labels in written:
        row = study.label_matrix(None, [place[files[name]["sample_id"]]])[0]
        assert {f for f, v in zip(study.label_names, row, strict=True) if v == 1} == set(labels.split("|")) - {
            "No Finding"
        }
        assert set(row) <= {0.0, 1.0}
    groups = {patient: {files[n]["group_id"] for n, p, _ in written if p == patient} for _, patient, _ in written}
    assert all(len(g) == 1 for g in groups.values()) and len(set.union(*groups.values())) == 8
    split = dict(
        zip(
            *(pq.read_table(study.path / "labels.parquet").column(c).to_pylist() for c in ("sample_id", "split")),
            strict=True,
        )
    )
    assert {p: split[files[n]["sample_id"]] for n, p, _ in written} == {
        str(p): "test" if p % 4 == 0 else "train" for p in range(1, 9)
    }
    assert {files[n]["view"] for n, _, _ in written} == {"PA", "AP"}


def test_nih_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(HilumError, match=r"no Data_Entry_2017\*\.csv"):
        NIHChestXray14().table(tmp_path)
    write_nih_cxr14(tmp_path, lists=False)
    table = NIHChestXray14().table(tmp_path)
    assert table.column("split").null_count == len(table)
    file = tmp_path / "Data_Entry_2017.csv"
    good = file.read_text()
    file.write_text(good.replace("Patient ID", "PatientID"))
    with pytest.raises(HilumError, match="no column 'Patient ID'") as caught:
        NIHChestXray14().table(tmp_path)
    assert "'PatientID'" in caught.value.fix
    file.write_text(good.replace("Infiltration", "Infiltrate"))
    with pytest.raises(HilumError, match="unknown finding") as caught:
        NIHChestXray14().table(tmp_path)
    assert "row" in caught.value.where and "Infiltration" in caught.value.fix
    file.write_text(good.replace("Infiltration", "Doe^Jane"))  # a column further: cells are not quoted
    with pytest.raises(HilumError, match="unknown finding") as caught:
        NIHChestXray14().table(tmp_path)
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0-small/", "", "CheXpert-v1.0/"])
def test_chexpert(tmp_path: Path, prefix: str) -> None:
    root = tmp_path / "chexpert"
    root.mkdir()
    written = write_chexpert(root, prefix=prefix)
    result = index(root, tmp_path / "s", dataset=CheXpert())
    assert result.exit_code == 0 and result.counts["indexed"] == len(written) == 16
    study = Study(result.study)
    assert study.label_names == FINDINGS == CheXpert.findings
    files, place = by_path(study.path), {s: n for n, s in enumerate(study.column("sample_id"))}
    labels = {r["sample_id"]: r for r in pq.read_table(study.path / "labels.parquet").to_pylist()}
    for line in written:
        path = line["Path"].removeprefix(prefix)
        row = files[path]
        expected = [float(line[f]) if line[f] else np.nan for f in FINDINGS]
        np.testing.assert_array_equal(study.label_matrix(None, [place[row["sample_id"]]])[0], np.float32(expected))
        assert row["view"] == ("LATERAL" if line["Frontal/Lateral"] == "Lateral" else line["AP/PA"])
        assert labels[row["sample_id"]]["split"] == ("train" if path.startswith("train") else "val")
    groups = {p.split("/")[1]: r["group_id"] for p, r in files.items() if p.endswith(".jpg")}
    assert len(set(groups.values())) == 8 and len({r["study_id"] for p, r in files.items() if p.endswith(".jpg")}) == 8
    assert -1.0 in study.label_matrix(None, study.rows())


def test_chexpert_below_a_folder_and_faults(tmp_path: Path) -> None:
    (tmp_path / "CheXpert-v1.0-small").mkdir()
    write_chexpert(tmp_path / "CheXpert-v1.0-small")
    assert index(tmp_path, tmp_path / "s", dataset=CheXpert()).counts["labels"]["files_unmatched"] == 0
    file = tmp_path / "CheXpert-v1.0-small/train.csv"
    good = file.read_text()
    file.write_text(good.replace("Support Devices", "Devices"))
    with pytest.raises(HilumError, match=r"train\.csv has no column 'Support Devices'"):
        CheXpert().table(tmp_path)
    file.write_text(good.replace("patient00003/", "person3/"))
    with pytest.raises(HilumError, match="'Path' is not"):
        CheXpert().table(tmp_path)
    (file.parent / "valid.csv").unlink()
    file.write_text(good)
    with pytest.raises(HilumError, match=r"valid\.csv is not there"):
        CheXpert().table(tmp_path)


def test_datasets_are_registered_and_say_what_they_are(tmp_path: Path) -> None:
    for name, kind in (("medical/nih-cxr14", NIHChestXray14), ("medical/chexpert", CheXpert)):
        made = registry.build("dataset", name)
        assert isinstance(made, kind) and made.name == name and made.licence and made.group
    with pytest.raises(HilumError, match="not from both"):
        index(tmp_path, tmp_path / "s", dataset="medical/chexpert", labels=tmp_path / "x.csv")
