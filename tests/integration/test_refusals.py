"""What must never pass silently between training and judging: changed labels, folds or grouping, shared patients."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hilum.core.cli import main
from hilum.core.errors import HilumError
from hilum.verbs.evaluating import evaluate
from hilum.verbs.intake import index
from hilum.verbs.splitting import split
from hilum.verbs.training import finetune, resume

pytestmark = pytest.mark.integration
SHORT = ["schedule.epochs=1", "schedule.warmup_epochs=0"]


@pytest.fixture
def own(study: Path, tmp_path: Path) -> Path:
    """A copy of the study that a test may change."""
    shutil.copytree(study, tmp_path / "study", ignore=shutil.ignore_patterns("runs", "cache"))
    return tmp_path / "study"


def train(own: Path, recipes: Path, **options: object) -> Path:
    out = own / "runs" / "run"
    finetune(str(recipes / "findings.yaml"), data=own, out=out, set=SHORT, track=False, **options)  # type: ignore[arg-type]
    return out


def test_changed_labels_are_refused_on_resume(own: Path, recipes: Path) -> None:
    run = train(own, recipes)
    table = pq.read_table(own / "labels.parquet")
    flipped = [None if v is None else 1.0 - v for v in table["left"].to_pylist()]
    at = table.column_names.index("left")
    pq.write_table(
        table.set_column(at, "left", pa.array(flipped, table.schema.field("left").type)), own / "labels.parquet"
    )
    with pytest.raises(HilumError, match="label"):
        resume(run, epochs=2, track=False)


def test_other_folds_under_the_same_name_are_refused(own: Path, recipes: Path) -> None:
    split(own, test=0.0, folds=4, name="cv")
    run = train(own, recipes, split="cv", fold=0)
    assert evaluate(run, split="test", resamples=20, track=False).split == "test"
    split(own, test=0.0, folds=3, name="cv", replace=True)
    with pytest.raises(HilumError, match="split"):
        evaluate(run, split="test", resamples=20, track=False)


def test_an_external_study_with_training_patients_is_refused(
    own: Path, recipes: Path, archive: Path, tmp_path: Path
) -> None:
    run = train(own, recipes)
    index(archive, out=tmp_path / "again", labels=archive.parent / "labels.csv", workers=1)
    with pytest.raises(HilumError):
        evaluate(run, data=tmp_path / "again", split="test", resamples=20, track=False)


def test_uncertain_labels_train_by_the_policy_and_are_never_judged(
    archive: Path, recipes: Path, tmp_path: Path
) -> None:
    rows = list(csv.DictReader((archive.parent / "labels.csv").open()))
    for number, row in enumerate(rows):
        if number % 3 == 0:
            row["left"] = "-1"
    with (tmp_path / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    own = tmp_path / "study"
    index(archive, out=own, labels=tmp_path / "labels.csv", workers=1)
    split(own, val=0.25, test=0.25)
    out = own / "runs" / "run"
    finetune(str(recipes / "findings.yaml"), data=own, out=out, set=[*SHORT, "labels.uncertain=zeros"], track=False)
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert counts["train"]["left"][2] == 0 and counts["train"]["right"][2] == 0
    assert counts["val"]["left"][2] > 0
    report = evaluate(out, split="test", resamples=20, track=False)
    left, right = report.finding("left"), report.finding("right")
    assert left.n_unknown > 0 and left.n + left.n_unknown == right.n == len(report.predictions)


def test_an_official_split_that_leaks_is_refused(own: Path, archive: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader((archive.parent / "labels.csv").open()))
    for number, row in enumerate(rows):
        row["part"] = ("train", "val", "test")[number % 3]  # images of one patient on several sides
    with (tmp_path / "official.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(HilumError, match="more than one|several|split") as caught:
        split(own, from_=f"{tmp_path / 'official.csv'}:part", name="official")
    assert "P0" not in str(caught.value)
    assert not (own / "splits" / "official.json").exists()


@pytest.mark.parametrize(
    "told", [["--val-from", "train", "0.2"], ["--val-from", "train:0.2"], ["--val-from=train:0.2"]]
)
@pytest.mark.parametrize("study_last", [False, True])
def test_validation_patients_are_taken_of_an_official_split(
    own: Path, archive: Path, tmp_path: Path, told: list[str], study_last: bool
) -> None:
    rows = list(csv.DictReader((archive.parent / "labels.csv").open()))
    lines = ["path,part", *(f"{r['path']},{'test' if int(r['patient_id'][1:]) % 4 == 0 else 'train'}" for r in rows)]
    (tmp_path / "official.csv").write_text("\n".join(lines) + "\n")
    options = ["--from", f"{tmp_path / 'official.csv'}:part", "--no-near", "--name", "official", *told]
    assert main(["split", *options, str(own)] if study_last else ["split", str(own), *options]) == 0
    sizes = json.loads((own / "splits" / "official.json").read_text())["groups"]
    assert sizes == {"train": 29, "val": 7, "test": 12, "none": 0}


def test_words_that_name_no_share_are_one_message(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", str(own), "--val-from", "train", "much"]) == 1
    assert "--val-from train:0.1" in capsys.readouterr().err
