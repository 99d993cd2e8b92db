"""The verbs on real input: licensed JPEG radiographs where they are, and the DICOM files of the public pydicom-data package."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
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
