"""The verbs on real input: licensed JPEG radiographs where they are, and the DICOM files of the public pydicom-data package."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pydicom
import pytest

from hilum.core.cli import main

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def radiographs(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 of the real radiographs as an archive of links, patients whole, with their table."""
    source = real_data / "medical" / "cxr_kermany"
    if not (source / "labels.csv").is_file():
        pytest.skip("HILUM_TEST_DATA holds no medical/cxr_kermany")
    out = tmp_path_factory.mktemp("radiographs")
    rows = list(csv.DictReader((source / "labels.csv").open()))
    patients = sorted({r["patient_id"] for r in rows})
    kept = [r for r in rows if r["patient_id"] in set(patients[::3])]
    with (out / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["path", "patient_id", "class", "split"])
        writer.writeheader()
        for r in kept:
            target = out / "archive" / r["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((source / r["path"]).read_bytes())
            label = next(r[c] for c in ("class", "label", "diagnosis") if r.get(c))
            writer.writerow({"path": r["path"], "patient_id": r["patient_id"], "class": label, "split": r["split"]})
    return out


def test_five_verbs_on_real_radiographs(radiographs: Path, recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, table = radiographs / "study", radiographs / "labels.csv"
    assert (
        main(["index", str(radiographs / "archive"), "--out", str(study), "--labels", str(table), "--workers", "1"])
        == 0
    )
    assert main(["split", str(study), "--from", f"{table}:split"]) == 0
    tiny = ["--data", str(study), "--no-track", "--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0"]
    assert main(["pretrain", str(recipes / "mae.yaml"), *tiny, "--out", str(study / "runs" / "mae")]) == 0
    told = ["--set", "task=multiclass", "--init", str(study / "runs" / "mae"), "--out", str(study / "runs" / "classes")]
    assert main(["finetune", str(recipes / "findings.yaml"), *tiny, *told]) == 0
    assert (
        main(["evaluate", str(study / "runs" / "classes"), "--split", "test", "--resamples", "100", "--no-track"]) == 0
    )
    official = {r["path"]: r["split"] for r in csv.DictReader(table.open())}
    split = pq.read_table(study / "splits" / "default.parquet").to_pylist()
    sizes = {part: sum(r["split"] == part for r in split) for part in ("train", "val", "test")}
    patients = {part: set() for part in sizes}
    for r in csv.DictReader(table.open()):
        patients[r["split"]].add(r["patient_id"])
    assert sizes == {part: len(known) for part, known in patients.items()} and official
    metrics = json.loads((study / "runs" / "classes" / "eval" / "test" / "metrics.json").read_text())
    assert metrics["n"] == sum(s == "test" for s in official.values())
    page = (study / "runs" / "classes" / "eval" / "test" / "report.html").read_text()
    assert all(f["name"] in page for f in metrics["findings"])
    text = "".join(p.read_text(errors="ignore") for p in study.rglob("*.json") if "private" not in p.parts)
    assert not any(r["patient_id"] in text for r in csv.DictReader(table.open()) if len(r["patient_id"]) > 4)


@pytest.fixture(scope="module")
def dicom_folder() -> Path:
    data = pytest.importorskip("data_store", reason="the package pydicom-data is not installed")
    return Path(data.__file__).parent / "data"


def test_real_dicoms_index_doctor_embed_predict(
    dicom_folder: Path, findings_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    assert main(["index", str(dicom_folder), "--out", str(study), "--workers", "1"]) in (0, 3)
    table = pq.read_table(study / "index.parquet").to_pylist()
    files = [p for p in dicom_folder.rglob("*") if p.is_file()]
    assert len(table) == len(files)
    assert sum(r["status"] == "indexed" for r in table) >= 40
    assert all(r["reason"] for r in table if r["status"] != "indexed")
    assert main(["doctor", str(study)]) == 0
    told = capsys.readouterr().out
    assert "transfer syntax" in told and "found" in told
    assert main(["embed", str(findings_run), "--data", str(study), "--out", str(tmp_path / "f.parquet")]) == 0
    assert pq.read_table(tmp_path / "f.parquet").num_rows > 20
    assert (
        main(["predict", str(findings_run), str(dicom_folder), "--out", str(tmp_path / "s.csv"), "--workers", "1"]) == 0
    )
    scored = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert len(scored) == len(files)
    assert all(r["reason"] for r in scored if r["status"] != "scored")


def indexed(root: Path, study: Path) -> dict[str, tuple[str, str]]:
    """path -> (status, reason) of an archive's files, which are all there once and counted as such."""
    assert main(["index", str(root), "--out", str(study), "--workers", "2"]) in (0, 3)
    names = {r["sample_id"]: r["path"] for r in pq.read_table(study / "private" / "paths.parquet").to_pylist()}
    table = pq.read_table(study / "index.parquet").to_pylist()
    found = {names[r["sample_id"]]: (r["status"], r["reason"]) for r in table}
    assert set(found) == {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    counts = json.loads((study / "study.json").read_text())["counts"]
    assert counts["found"] == counts["indexed"] + counts["skipped"] + counts["quarantined"] == len(table) == len(found)
    return found


def quarantined(found: dict[str, tuple[str, str]]) -> dict[str, str]:
    return {path: reason for path, (status, reason) in found.items() if status == "quarantined"}


def test_what_pydicom_data_holds(dicom_folder: Path, tmp_path: Path) -> None:
    """Release 1.0.0: 68 files, none of them refused."""
    found = indexed(dicom_folder, tmp_path / "study")
    assert len(found) == 68
    assert quarantined(found) == {}


@pytest.mark.skipif(pydicom.__version__ != "3.0.2", reason="the list is of pydicom 3.0.2")
def test_what_pydicom_carries(tmp_path: Path) -> None:
    """The files that pydicom tests itself with, damaged ones among them."""
    root = Path(pydicom.__file__).parent / "data" / "test_files"
    refused = quarantined(indexed(root, tmp_path / "study"))
    tiny = {p: refused.pop(p) for p in sorted(refused) if p.startswith("dicomdirtests/TINY_ALPHA/PT")}
    assert len(tiny) == 50 and set(tiny.values()) == {"missing_attribute"}  # their pixels were taken out
    assert refused == {
        "JPEG2000-embedded-sequence-delimiter.dcm": "inconsistent_attributes",
        "MR_truncated.dcm": "truncated_pixels",
        "README.txt": "not_dicom",
        "UN_sequence.dcm": "missing_attribute",
        "badVR.dcm": "inconsistent_attributes",
        "crayons.icc": "not_dicom",
        "dicomdirtests/README.txt": "not_dicom",
        "dicomdirtests/TINY_ALPHA/README": "not_dicom",
        "empty_charset_LEI.dcm": "missing_attribute",
        "meta_missing_tsyntax.dcm": "missing_attribute",
        "nested_priv_SQ.dcm": "missing_attribute",
        "no_meta.dcm": "not_dicom",
        "no_meta_group_length.dcm": "missing_attribute",
        "priv_SQ.dcm": "missing_attribute",
        "rtplan.dump": "not_dicom",
        "rtstruct.dump": "not_dicom",
        "test1.json": "not_dicom",
        "test_PN.json": "not_dicom",
        "zipMR.gz": "unsupported_container",
    }


def test_licensed_medical_images_are_all_accounted_for(real_data: Path, tmp_path: Path) -> None:
    if not (real_data / "medical").is_dir():
        pytest.skip("HILUM_TEST_DATA holds no medical")
    found = indexed(real_data / "medical", tmp_path / "study")
    assert sum(status == "indexed" for status, _ in found.values()) > 1000
    page = (Path(__file__).resolve().parents[2] / "docs" / "doctor.md").read_text()
    for reason in quarantined(found).values():
        assert f"| `{reason.partition(':')[0]}` |" in page


@pytest.fixture(scope="module")
def findings_run(study: Path, recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "findings"
    assert (
        main(
            [
                "finetune",
                str(recipes / "findings.yaml"),
                "--data",
                str(study),
                "--out",
                str(out),
                "--no-track",
                "--set",
                "schedule.epochs=1",
                "--set",
                "schedule.warmup_epochs=0",
            ]
        )
        == 0
    )
    return out
