"""Tables joined to files: every key, both ways of missing, values, classes, groups, splits, reports."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake.archive import by_path, index
from fake.dicom import phantom, uid, write
from PIL import Image

from hilum.core.errors import HilumError
from hilum.data.identity import IdentityKey
from hilum.data.labels import join
from hilum.data.study import Study
from hilum.data.tables import Table

KEY = IdentityKey(b"k" * 32)
N = 6


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Six DICOM files of six studies and three patients."""
    root = tmp_path / "archive"
    for n in range(N):
        write(root / f"d{n % 2}/im{n}.dcm", phantom(n), patient=f"P{n // 2}", study=n + 1)
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six PNG files of three patients, who are known from the table only."""
    root = tmp_path / "images"
    (root / "a/b").mkdir(parents=True)
    for n in range(N):
        Image.fromarray(phantom(n).astype(np.uint8)).save(root / f"a/b/{n}.png")
    return root


def csv_of(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


KEYS: dict[str, Any] = {
    "path": lambda n: f"d{n % 2}/im{n}.dcm",
    "sop_instance_uid": lambda n: uid(n + 1, 1, 1),
    "study_instance_uid": lambda n: uid(n + 1),
    "accession": lambda n: f"ACC{n + 1}",
    "patient_id": lambda n: f" p{n // 2}",  # normalised as in the header
}


@pytest.mark.parametrize("by", sorted(KEYS))
def test_every_join_key_finds_its_files_and_is_dropped(archive: Path, tmp_path: Path, by: str) -> None:
    numbers = range(0, N, 2) if by == "patient_id" else range(N)
    table = csv_of(
        tmp_path / "t.csv",
        f"{by},Edema,Mass",
        [f"{KEYS[by](n)},{n // 2 % 2},{(1, '', -1)[n // 2]}" for n in reversed(numbers)],
    )
    study = Study(index(archive, tmp_path / "s", labels=table, join=by).study)
    assert study.label_names == ("Edema", "Mass")
    rows = {
        path: at
        for at, path in enumerate(p["path"] for p in pq.read_table(study.path / "private/paths.parquet").to_pylist())
    }
    matrix = study.label_matrix(None, [rows[f"d{n % 2}/im{n}.dcm"] for n in range(N)])
    np.testing.assert_array_equal(matrix, np.float32([[n // 2 % 2, (1, np.nan, -1)[n // 2]] for n in range(N)]))
    labels = pq.read_table(study.path / "labels.parquet")
    assert labels.schema.names == ["sample_id", "Edema", "Mass"] and labels.schema.field("Edema").type == pa.float32()
    assert KEYS[by](0).strip() not in str(labels.to_pylist())


def test_other_tables_and_separators(archive: Path, tmp_path: Path) -> None:
    rows = [f"{KEYS['path'](n)};{n % 2}" for n in range(N)]
    text = "\ufeffpath;Edema\r\n" + "\r\n".join(rows) + "\r\n\r\n"  # BOM, Windows line ends, a blank line
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(
        pa.table({"path": [KEYS["path"](n) for n in range(N)], "Edema": [float(n % 2) for n in range(N)]}),
        tmp_path / "a.parquet",
    )
    read = [Table.read(tmp_path / f"a.{kind}").columns for kind in ("csv", "csv.gz", "parquet")]
    assert (
        read[0]
        == read[1]
        == read[2]
        == {"path": [KEYS["path"](n) for n in range(N)], "Edema": [str(n % 2) for n in range(N)]}
    )
    (tmp_path / "b.csv").write_text("path,Edema\na,1,2\n")
    with pytest.raises(HilumError, match="row 2 has more fields"):
        Table.read(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("path,Edema\n")
    with pytest.raises(HilumError, match="no rows"):
        Table.read(tmp_path / "c.csv")
    with pytest.raises(HilumError, match="cannot be read"):
        Table.read(tmp_path / "absent.csv")


def test_image_files_take_group_view_and_split_from_the_table(images: Path, tmp_path: Path) -> None:
    splits, labels = ("train", "test"), ("normal", "viral", "")
    rows = [f"{n}.png,P{n // 2},{('pa', 'lat')[n % 2]},L,DX,{splits[n // 4]},{labels[n % 3]}" for n in range(N)]
    table = csv_of(tmp_path / "t.csv", "path,patient_id,view,laterality,modality,split,label", rows)
    study = Study(index(images, tmp_path / "s", labels=table).study)
    files = by_path(study.path)
    assert [files[f"a/b/{n}.png"]["view"] for n in range(N)] == ["PA", "LAT"] * 3
    assert {f["laterality"] for f in files.values()} == {"L"} and {f["modality"] for f in files.values()} == {"DX"}
    groups = [files[f"a/b/{n}.png"]["group_id"] for n in range(N)]
    assert groups[0] == groups[1] != groups[2] == groups[3] and all(f["group_known"] for f in files.values())
    assert study.label_names == ("normal", "viral")
    kept = pq.read_table(study.path / "labels.parquet")
    assert sorted(kept.column("split").to_pylist()) == ["test"] * 2 + ["train"] * 4
    order = [study.index.column("sample_id").to_pylist().index(files[f"a/b/{n}.png"]["sample_id"]) for n in range(3)]
    np.testing.assert_array_equal(study.label_matrix(None, order), np.float32([[1, 0], [0, 1], [np.nan, np.nan]]))
    np.testing.assert_array_equal(study.label_matrix(["viral"], order), np.float32([[0], [1], [np.nan]]))
    with pytest.raises(HilumError, match="no label"):
        study.label_matrix(["virl"], order)


def test_another_group_column_and_none(images: Path, tmp_path: Path) -> None:
    table = csv_of(tmp_path / "t.csv", "path,person,Edema", [f"{n}.png,{n % 2},1" for n in range(N)])
    files = by_path(index(images, tmp_path / "s", labels=table, group="person").study)
    assert len({f["group_id"] for f in files.values()}) == 1 + N // 2  # "0" names nobody
    assert Study(tmp_path / "s").label_names == ("Edema",)
    files = by_path(index(images, tmp_path / "t", labels=table).study)
    assert len({f["group_id"] for f in files.values()}) == N and not any(f["group_known"] for f in files.values())
    with pytest.raises(HilumError, match="no column 'persn'"):
        index(images, tmp_path / "u", labels=table, group="persn")


def test_rows_and_files_without_partner_are_an_error_with_row_numbers(archive: Path, tmp_path: Path) -> None:
    paths = [KEYS["path"](n) for n in range(N)]
    extra = csv_of(tmp_path / "a.csv", "path,Edema", [f"{p},1" for p in ["gone/1.dcm", *paths, "gone/2.dcm"]])
    with pytest.raises(HilumError) as caught:
        index(archive, tmp_path / "s", labels=extra)
    assert "2 of 8 rows" in caught.value.what and caught.value.where == "rows 2, 9"
    assert "gone" not in str(caught.value)
    assert (tmp_path / "s/index.parquet").is_file() and not (
        tmp_path / "s/labels.parquet"
    ).is_file()  # hours are not lost
    result = index(archive, tmp_path / "s", labels=extra, max_unmatched=0.5)
    assert result.counts["read"] == 0
    assert result.counts["labels"] == {"rows": 8, "rows_unmatched": 2, "files": 6, "files_unmatched": 0}
    fewer = csv_of(tmp_path / "b.csv", "path,Edema", [f"{p},1" for p in paths[:4]])
    with pytest.raises(HilumError, match="2 of 6 indexed images have no row"):
        index(archive, tmp_path / "t", labels=fewer)


def test_a_row_of_a_file_that_cannot_be_used_has_found_it(archive: Path, tmp_path: Path) -> None:
    file = archive / KEYS["path"](0)
    file.write_bytes(file.read_bytes()[:-20])
    for by in ("path", "sop_instance_uid", "accession"):
        table = csv_of(tmp_path / "t.csv", f"{by},Edema", [f"{KEYS[by](n)},1" for n in range(N)])
        counts = index(archive, tmp_path / by, labels=table, join=by).counts
        assert counts["labels"] == {"rows": 6, "rows_unmatched": 0, "files": 5, "files_unmatched": 0}
        assert len(pq.read_table(tmp_path / by / "labels.parquet")) == 5


def test_ambiguous_tables_are_refused(archive: Path, tmp_path: Path) -> None:
    state = pa.table({"path": ["a/1.png", "b/1.png", "c/2.png"]})
    with pytest.raises(HilumError, match="fits several files"):
        join(Table("t", {"path": ["1.png", "2.png"]}), state, KEY)
    assert join(Table("t", {"path": ["b/1.png", "x/a/1.png", "./c\\2.png"]}), state, KEY).rows == [1, 0, 2]
    exact = join(Table("t", {"path": ["1.png", "b/1.png"]}), pa.table({"path": ["1.png", "b/1.png"]}), KEY)
    assert exact.rows == [0, 1] and exact.unused == []
    table = csv_of(tmp_path / "t.csv", "study_instance_uid,Edema", [f"{uid(n % 5 + 1)},{n % 2}" for n in range(N)])
    with pytest.raises(HilumError) as caught:
        index(archive, tmp_path / "s", labels=table, join="study_instance_uid")
    assert "differ in 'Edema'" in caught.value.what and caught.value.where == "rows 2 and 7"
    with pytest.raises(HilumError, match="no column 'accession'"):
        index(archive, tmp_path / "t", labels=table, join="accession")
    with pytest.raises(HilumError, match="cannot be joined by 'name'"):
        index(archive, tmp_path / "u", labels=table, join="name")


def test_rows_that_repeat_another_one_are_used(archive: Path, tmp_path: Path) -> None:
    """One row an image, joined by patient: all rows of a patient say the same, and none is lost."""
    counts = {"rows": N, "rows_unmatched": 0, "files": N, "files_unmatched": 0}
    for by, rows in (
        ("patient_id", [f"P{n // 2},{n // 2 % 2}" for n in range(N)]),
        ("path", [f"{KEYS['path'](n)},1" for n in range(N)] * 2),
    ):
        table = csv_of(tmp_path / "t.csv", f"{by},Edema", rows)
        result = index(archive, tmp_path / by, labels=table, join=by)
        assert result.counts["labels"] == counts | {"rows": len(rows)}
    lost = csv_of(tmp_path / "u.csv", "patient_id,Edema", [f"P{n},1" for n in (0, 1, 2, 9, 9)])
    with pytest.raises(HilumError, match="2 of 5 rows") as caught:
        index(archive, tmp_path / "s", labels=lost, join="patient_id")
    assert caught.value.where == "rows 5, 6"


def test_a_missing_join_key_names_those_that_are_there(archive: Path, tmp_path: Path) -> None:
    table = csv_of(tmp_path / "t.csv", "effusion,accession,Patient_ID", ["1,ACC1,P0"])
    with pytest.raises(HilumError, match="no column 'path'") as caught:
        index(archive, tmp_path / "s", labels=table)
    assert caught.value.fix == "join by accession or patient_id"


def test_a_failing_table_leaves_a_finished_study_alone(archive: Path, tmp_path: Path) -> None:
    table = csv_of(tmp_path / "t.csv", "path,Edema", [f"{KEYS['path'](n)},1" for n in range(N)])
    study = index(archive, tmp_path / "s", labels=table).study
    kept = ("index.parquet", "series.parquet", "labels.parquet", "study.json", "private/paths.parquet")
    before = {name: (study / name).read_bytes() for name in kept}
    write(archive / "new.dcm", phantom(9), patient="P9", study=9)
    broken = csv_of(tmp_path / "u.csv", "path,Edema", [f"{KEYS['path'](n)},{n}" for n in range(N)])
    with pytest.raises(HilumError, match="other than 1, 0, -1"):
        index(archive, study, labels=broken, max_unmatched=0.5)
    assert {name: (study / name).read_bytes() for name in kept} == before
    mended = index(archive, study, labels=table, max_unmatched=0.5)
    assert mended.counts["read"] == 0 and mended.counts["indexed"] == N + 1  # the new file was read and kept


def test_two_issuers_with_one_patient_id_need_the_issuer(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    for n, issuer in enumerate(("H1", "H2")):
        write(root / f"{n}.dcm", phantom(n), patient="7", issuer=issuer, study=n)
    with pytest.raises(HilumError, match="two issuers share"):
        index(root, tmp_path / "s", labels=csv_of(tmp_path / "a.csv", "patient_id,Edema", ["7,1"]), join="patient_id")
    table = csv_of(tmp_path / "b.csv", "issuer,patient_id,Edema", ["H2,7,0", "h1 ,7,1"])
    study = Study(index(root, tmp_path / "t", labels=table, join="patient_id").study)
    np.testing.assert_array_equal(study.label_matrix(None, [0, 1]), [[1], [0]])


def test_an_issuer_that_only_the_table_or_only_the_file_has(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    for n, issuer in enumerate(("H1", None)):
        write(root / f"{n}.dcm", phantom(n), patient="7", issuer=issuer, study=n)
    for header, row in (("patient_id,Edema", "7,1"), ("issuer,patient_id,Edema", "H1,7,1")):
        table = csv_of(tmp_path / "t.csv", header, [row])
        study = Study(index(root, tmp_path / header[:6], labels=table, join="patient_id").study)
        np.testing.assert_array_equal(study.label_matrix(None, [0, 1]), [[1], [1]])


def test_a_study_with_labels_does_not_lose_them_silently(archive: Path, tmp_path: Path) -> None:
    table = csv_of(tmp_path / "t.csv", "path,Edema", [f"{KEYS['path'](n)},1" for n in range(N)])
    index(archive, tmp_path / "s", labels=table)
    with pytest.raises(HilumError, match="indexed with a table"):
        index(archive, tmp_path / "s")


def test_reports_stay_private_and_mark_their_studies(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r/1.txt").write_text("No effusion.")
    table = csv_of(tmp_path / "t.csv", "accession,file", ["ACC1,r/1.txt", "ACC3,r/1.txt", "ACC99,r/1.txt"])
    study = index(archive, tmp_path / "s", reports=table).study
    reports = pq.read_table(study / "private/reports.parquet").to_pylist()
    assert [list(r) for r in reports] == [["report_id", "study_id", "section", "sentence", "text"]] * 2
    assert {(r["section"], r["text"]) for r in reports} == {("full", "No effusion.")}
    marked = {p for p, r in by_path(study).items() if r["has_report"]}
    assert marked == {KEYS["path"](0), KEYS["path"](2)}
    with pytest.raises(HilumError, match="no column 'text'"):
        index(archive, tmp_path / "t", reports=csv_of(tmp_path / "u.csv", "accession,body", ["ACC1,x"]))
    with pytest.raises(HilumError, match="whose report"):
        index(archive, tmp_path / "t", reports=csv_of(tmp_path / "u.csv", "name,text", ["ACC1,x"]))


def test_real_table_of_radiographs(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "medical/cxr_ieee8023_by"
    study = Study(
        index(root, tmp_path / "s", labels=root / "labels.csv", exclude=["masks", "*.csv"], findings=["covid"]).study
    )
    assert len(study.rows("status = 'indexed'")) == 7 and study.label_names == ("covid",)
    assert len(set(study.column("group_id"))) > 3 and set(study.column("view")[study.rows()]) <= {
        "PA",
        "AP",
        "AP SUPINE",
        "L",
    }
