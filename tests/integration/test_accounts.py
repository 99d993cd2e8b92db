"""Every image of every split is delivered or named, in training, validation and evaluation; the report's flow adds up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hilum.core.cli import main
from hilum.core.errors import TooManyBadSamples
from hilum.data.split import Split
from hilum.data.study import Study
from hilum.evaluation import page
from hilum.evaluation.content import ReportContent, flow_gaps
from hilum.verbs.evaluating import embed, evaluate
from hilum.verbs.folder import RunFolder
from hilum.verbs.intake import index
from hilum.verbs.splitting import split
from hilum.verbs.training import finetune, resume

pytestmark = pytest.mark.integration
SHORT = ["schedule.epochs=2", "schedule.warmup_epochs=0"]


@pytest.fixture
def made(draw: Callable[..., None], tmp_path: Path) -> Path:
    """A study of 48 patients, whose archive lies beside it and may be changed."""
    draw(tmp_path / "archive", range(48), seed=0)
    for name in ("p03-0.png", "p03-1.png", "p07-0.png"):
        shutil.copyfile(tmp_path / "archive" / name, tmp_path / "archive" / f"gone-{name}")
    lines = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text(lines + "".join(f"gone-p0{p}.png,P90,1,0\n" for p in ("3-0", "3-1", "7-0")))
    out = tmp_path / "study"
    for _ in range(2):  # the second time three files have vanished
        index(tmp_path / "archive", out=out, labels=tmp_path / "labels.csv", max_unmatched=0.1, workers=1)
        for path in (tmp_path / "archive").glob("gone-*"):
            path.unlink()
    split(out, val=0.25, test=0.25)
    return out


def train(study: Path, recipes: Path, *sets: str, **options: Any) -> Path:
    out = study / "runs" / "run"
    finetune(str(recipes / "findings.yaml"), data=study, out=out, set=[*SHORT, *sets], track=False, **options)
    return out


def damage(study: Path, part: str) -> tuple[Path, bytes, str]:
    """Break one file of a part after it was indexed, and forget its pixels: (file, its bytes, sample)."""
    opened = Study(study)
    row = int(Split.load(opened).rows(part)[0])
    path, _ = opened.file(row)
    content = path.read_bytes()
    path.write_bytes(b"no longer an image")
    shutil.rmtree(study / "cache", ignore_errors=True)
    return path, content, str(opened.column("sample_id")[row])


def listed(run: Path) -> list[tuple[int, str, str]]:
    return [(r["epoch"], r["split"], r["sample_id"]) for r in pq.read_table(run / "bad_samples.parquet").to_pylist()]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[ReportContent]:
    """The contents of the pages written."""
    contents: list[ReportContent] = []
    write = page.write_report
    monkeypatch.setattr(page, "write_report", lambda path, c: contents.append(c) or write(path, c))
    return contents


def test_validation_on_fewer_images_stops_the_run_until_they_are_mended(made: Path, recipes: Path) -> None:
    path, content, sample = damage(made, "val")
    told = ["finetune", str(recipes / "findings.yaml"), "--data", str(made), "--out", str(made / "runs" / "run")]
    assert main([*told, "--no-track", *(w for s in SHORT for w in ("--set", s))]) == 4
    run = RunFolder(made / "runs" / "run")
    assert run.checkpoint("last").is_file() and listed(run.path) == [(0, "val", sample)]
    path.write_bytes(content)
    assert resume(run.path, track=False).reason == "finished"
    assert listed(run.path) == [(0, "val", sample)]


def test_training_tells_what_validation_lacked(
    made: Path, recipes: Path, caplog: pytest.LogCaptureFixture, shown: list[ReportContent]
) -> None:
    _, _, sample = damage(made, "val")
    run = train(made, recipes, "engine.max_bad=0.2")
    assert listed(run) == [(0, "val", sample), (1, "val", sample)]
    told = [r.getMessage() for r in caplog.records if "samples delivered, missing" in r.getMessage()]
    assert len(told) == 1 and "epoch 0, val: " in told[0]
    report = evaluate(run, resamples=20, track=False)
    assert any("of val could not be read" in w and "thresholds were chosen without" in w for w in report.warnings)


def test_evaluation_names_what_it_could_not_judge(
    made: Path, recipes: Path, shown: list[ReportContent], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(made, recipes, "engine.max_bad=0.2")
    whole = evaluate(run, resamples=20, track=False)
    assert not (run / "bad_samples.parquet").exists()
    path, content, sample = damage(made, "test")
    report = evaluate(run, resamples=20, track=False)
    n = len(whole.predictions)
    delivery = json.loads((run / "eval" / "test" / "metrics.json").read_text())["delivery"]
    assert (delivery["test"]["expected"], delivery["test"]["delivered"]) == (n, n - 1)
    assert sum(delivery["test"]["missing"].values()) == 1 and delivery["val"]["missing"] == {}
    assert listed(run) == [(-1, "test", sample)]
    assert f"test: {n - 1} of {n} samples delivered, missing: 1 " in capsys.readouterr().out
    assert any(f"1 of {n} rows of test could not be read" in w for w in report.warnings)
    content_ = shown[-1]
    assert flow_gaps(content_.flow, content_.splits) == []
    judged = next(s for s in content_.splits if s.name == "test")
    assert (judged.images, judged.judged, sum(judged.left.values())) == (n, n - 1, 1)
    assert f"{n - 1} judged, not: 1 " in (run / "eval" / "test" / "report.html").read_text()
    # of a strict run everything is written, and then it ends with exit code 4
    folder = RunFolder(run)
    folder.write_config(folder.recipe.with_({"engine": {"max_bad": 0.01}}))
    shutil.rmtree(run / "eval")
    with pytest.raises(TooManyBadSamples, match=f"1 of {n} samples of test cannot be read") as caught:
        evaluate(run, resamples=20, track=False)
    assert caught.value.exit_code == 4 and "evaluate again" in str(caught.value)
    assert {p.name for p in (run / "eval" / "test").iterdir()} == {"metrics.json", "predictions.parquet", "report.html"}
    with pytest.raises(TooManyBadSamples):
        embed(run, data=made, out=run / "f.parquet")
    assert pq.read_table(run / "f.bad_samples.parquet").num_rows == 1
    assert pq.read_table(run / "f.parquet").num_rows == 71
    path.write_bytes(content)  # mended: the list of the last evaluation is the one that counts
    evaluate(run, resamples=20, track=False)
    assert listed(run) == []


def test_the_flow_counts_what_the_recipe_selects_and_the_run_learned_from(
    made: Path, recipes: Path, shown: list[ReportContent]
) -> None:
    served = Study(made)
    middle = float(np.median(np.asarray(served.column("mean"), float)[served.rows(None)]))
    where = f"where=status = 'indexed' and mean > {middle:.3f}"
    run = train(made, recipes, where, fraction=0.5)
    report = evaluate(run, resamples=20, track=False)
    content = shown[-1]
    steps, columns = {s.label: s for s in content.flow}, {s.name: s for s in content.splits}
    assert flow_gaps(content.flow, content.splits) == []
    assert steps["Found"].count == 72 and not any("vanished" in reason for reason in steps["Found"].left)
    assert steps["Selected"].count == 36 and steps["Selected"].left["train, beyond the label fraction"] > 0
    facts = RunFolder(run).facts["rows"]
    assert (columns["train"].images, columns["val"].images) == (facts["train"], facts["val"])
    assert columns["test"].images == columns["test"].judged == len(report.predictions) < 20
