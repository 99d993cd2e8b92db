"""What the tracker writes, read back from a real SQLite store."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow_store import artifact, fetch, flaky, history, lines

from hilum.core.errors import HilumError
from hilum.tracking.provenance import environment, sha
from hilum.tracking.tracker import NullTracker, Tracker


def test_parameters_are_whole_and_batched(begin: Any) -> None:
    config: dict[str, Any] = {"long": "x" * 6000, "longer": "y" * 6001, "many": {f"k{i}": i for i in range(250)}}
    config |= {"betas": [0.9, 0.95], "flag": True, "none": None, "empty": "", "umlaut": "ü" * 6000, "name (a)": 1}
    tracker = begin()
    tracker.log_params({**config, "other": {f"z{i}": "é" * 5000 for i in range(40)}})
    params = fetch(tracker).data.params
    assert params["long"] == "x" * 6000 and params["umlaut"] == "ü" * 6000
    assert params["longer"].startswith("sha256:" + sha("y" * 6001, 16))
    assert artifact(tracker, f"params/{sha('y' * 6001, 16)}.txt") == b"y" * 6001
    assert {params[f"many.k{i}"] for i in range(250)} == {str(i) for i in range(250)}
    assert (params["betas"], params["flag"], params["none"], params["empty"]) == ("[0.9, 0.95]", "true", "null", "")
    assert params["name _a_"] == "1" and fetch(tracker).data.tags["hilum.param.name _a_"] == "name (a)"
    assert len(params) == 250 + 40 + 8


def test_no_path_and_no_name_reaches_the_store(begin: Any, tracked_study: Path, tmp_path: Path) -> None:
    canary = "Mueller^Eva"
    scan = tmp_path / f"{canary}.dcm"
    scan.write_bytes(b"pixels")
    with contextlib.suppress(RuntimeError):  # noqa: SIM117
        with begin("named", run_name=f"/data/{canary}/x", tags={"note": f"see /data/{canary}/x"}) as tracker:
            tracker.log_params({"root": str(scan), "roots": [f"/a/{canary}"], f"/p/{canary}": Path("/b") / canary})
            tracker.log_text(f"failed at /data/{canary}/ct.dcm", "log.txt")
            tracker.log_artifact(scan, "scans")
            tracker.log_dataset(f"/data/{canary}", "d" * 64, "train", {"rows": 1})
            raise RuntimeError(canary)
    run = fetch(tracker)
    assert run.info.status == "FAILED" and run.data.tags["hilum.error"] == "RuntimeError"
    assert artifact(tracker, f"scans/{sha(scan.name, 8)}.dcm") == b"pixels"
    needle = canary.encode()
    assert needle not in (tracked_study / "mlflow.db").read_bytes()
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 3 and not any(needle in path.read_bytes() or canary in str(path) for path in files)


def test_the_hook_sees_what_leaves(begin: Any) -> None:
    tracker = begin(hook=lambda text: text.replace("Ward 7", "WARD"), tags={"place": "Ward 7"})
    tracker.log_params({"site": "Ward 7", "sites": ["Ward 7"]})
    run = fetch(tracker)
    assert run.data.params == {"site": "WARD", "sites": '["WARD"]'} and run.data.tags["hilum.place"] == "WARD"


def test_nothing_private_is_taken(begin: Any, tracked_study: Path, tmp_path: Path) -> None:
    private = tracked_study / "private"
    private.mkdir(exist_ok=True)
    (private / "paths.parquet").write_bytes(b"secret")
    tracker = begin()
    tracker.run_dir.mkdir(parents=True, exist_ok=True)
    (tracker.run_dir / "link.parquet").symlink_to(private / "paths.parquet")
    (tracker.run_dir / "exported").mkdir()
    (tracker.run_dir / "exported" / "folder").symlink_to(private, target_is_directory=True)
    other = tmp_path / "other"
    (other / "private").mkdir(parents=True)
    (other / "study.json").write_text("{}")
    (other / "private" / "x").write_bytes(b"secret")
    for path in (
        private / "paths.parquet",
        private,
        tracked_study,
        tracker.run_dir / "link.parquet",
        other / "private" / "x",
    ):
        with pytest.raises(HilumError, match="private"):
            tracker.log_artifact(path)
    with pytest.raises(HilumError, match="private"):
        tracker.log_model(tracker.run_dir / "exported")
    with pytest.raises(HilumError, match="no such file"):
        tracker.log_artifact(tracked_study / "absent")
    (other / "plain").write_bytes(b"fine")
    tracker.log_artifact(other / "plain")
    assert artifact(tracker, sha("plain", 8)) == b"fine"


# --- metrics


def test_metrics_names_values_and_lines(begin: Any) -> None:
    with begin() as tracker:
        tracker.log_metrics({"AUROC (val)@0.5": 0.5, "AUROC [val]@0.5": 0.25, "loss": math.nan, "norm": math.inf}, 1)
        tracker.log_metrics({"norm": -math.inf, "loss": 2.0}, step=2)
    second = f"AUROC _val_ at 0.5 {sha('AUROC [val]@0.5', 8)}"
    run = fetch(tracker)
    assert run.data.metrics["AUROC _val_ at 0.5"] == 0.5 and run.data.metrics[second] == 0.25
    assert run.data.tags[f"hilum.metric.{second}"] == "AUROC [val]@0.5"
    assert [step for step, value in history(tracker, "norm") if math.isnan(value)] == [1, 2]
    assert math.isnan(history(tracker, "loss")[0][1]) and history(tracker, "loss")[1] == (2, 2.0)
    assert run.data.tags["hilum.nonfinite.norm"] == "inf from step 1, -inf from step 2"
    assert run.data.tags["hilum.nonfinite.loss"] == "nan from step 1"
    written = [(line["step"], line["metrics"]) for line in lines(tracker)]
    assert written[0][1] == {"AUROC (val)@0.5": 0.5, "AUROC [val]@0.5": 0.25, "loss": "nan", "norm": "inf"}
    assert written[1] == (2, {"norm": "-inf", "loss": 2.0})
    with pytest.raises(HilumError, match="not a number"):
        tracker.log_metrics({"loss": "high"}, 3)


def test_many_steps_make_few_requests(begin: Any) -> None:
    tracker = begin(flush_s=1000.0)
    client = flaky(tracker, "log_batch")
    for step in range(2500):
        tracker.log_metrics({"loss": step / 7, "lr": 0.1}, step)
    tracker.flush()
    assert client.calls <= 6
    assert history(tracker, "loss") == [(step, step / 7) for step in range(2500)]
    assert len(lines(tracker)) == 2500


def test_half_a_line_of_a_killed_run_spoils_no_other(begin: Any, tracked_study: Path) -> None:
    tracker = begin()
    tracker.log_metrics({"a": 1.0}, 1)
    tracker.close()
    path = tracker.run_dir / "logs" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again = begin()
    again.log_metrics({"a": 2.0}, 2)
    assert json.loads(path.read_text().splitlines()[-1])["metrics"] == {"a": 2.0}


# --- one run, resumed


def test_a_resumed_run_is_the_same_run(begin: Any) -> None:
    config = {"lr": 0.1, "seed": 1}
    first = begin()
    (first.run_dir / "run.json").write_text(
        json.dumps(json.loads((first.run_dir / "run.json").read_text()) | {"mine": 1})
    )
    first.log_params(config)
    for step in (1, 2, 3):
        first.log_metrics({"loss (a)": 1 / step}, step)
    first.close("KILLED")
    assert fetch(first).info.status == "KILLED"

    with begin(resumed_from=2) as second:
        assert second.run_id == first.run_id and fetch(second).info.status == "RUNNING"
        second.log_params({**config, "seed": 2})
        for step in (3, 4):
            second.log_metrics({"loss (a)": 1 / step, "loss [a]": 5.0}, step)
        second.log_metrics({"loss (a)": 9.0}, 2)
    run = fetch(second)
    assert run.info.status == "FINISHED" and run.data.tags["hilum.resumed_from"] == "2"
    assert run.data.params == {"lr": "0.1", "seed": "1"} and run.data.tags["hilum.changed.seed"] == "2"
    assert history(second, "loss _a_") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    assert run.data.metrics[f"loss _a_ {sha('loss [a]', 8)}"] == 5.0
    assert run.data.tags["hilum.repeated"] == "2"
    assert len(lines(second)) == 6
    stored = json.loads((first.run_dir / "run.json").read_text())
    assert (stored["run_id"], stored["experiment_id"], stored["mine"]) == (run.info.run_id, run.info.experiment_id, 1)

    with begin() as third:  # an evaluation of a finished run is no resumption
        third.log_metrics({"test/auroc": 0.9}, 2)
    assert fetch(third).data.tags["hilum.resumed_from"] == "2" and third.run_id == first.run_id


def test_a_run_that_is_gone_from_the_store_gets_a_successor(begin: Any, caplog: pytest.LogCaptureFixture) -> None:
    with begin(run_id="0" * 32) as tracker:
        assert tracker.run_id != "0" * 32
    assert fetch(tracker).data.tags["hilum.previous_run"] == "0" * 32
    assert "not in the tracking store" in caplog.text


def test_surroundings_and_environment(begin: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    repository = tmp_path / "code"
    repository.mkdir()
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", str(repository)]
    (repository / "a").write_text("1")
    for command in (["init", "-q"], ["add", "a"], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.chdir(repository)
    clean = fetch(begin("clean", tags={"seed": 3, "stage": "pretrain", "split_digest": "ab", "absent": None})).data.tags
    assert (clean["hilum.git_commit"], clean["hilum.git_dirty"]) == (commit, "false")
    assert (clean["hilum.seed"], clean["hilum.stage"], clean["hilum.split_digest"]) == ("3", "pretrain", "ab")
    assert clean["hilum.torch"] == torch.__version__ and "hilum.absent" not in clean
    (repository / "a").write_text("2")
    assert fetch(begin("dirty")).data.tags["hilum.git_dirty"] == "true"
    monkeypatch.chdir(tmp_path)
    tracker = begin("none")
    tags = fetch(tracker).data.tags
    assert "hilum.git_commit" not in tags and "hilum.git_dirty" not in tags
    listed = artifact(tracker, f"environment/packages-{tags['hilum.packages']}.txt").decode()
    assert f"torch=={torch.__version__}" in listed.splitlines() and len(environment().splitlines()) > 50


# --- datasets, artifacts, models


def test_datasets_and_files(begin: Any) -> None:
    with begin() as tracker:
        for _ in range(2):  # twice, as a resumed run does
            tracker.log_dataset("nih (train)", "ab" * 32, "train", {"rows": 10, "groups": 3})
            tracker.log_dataset("nih", "cd" * 32, "test", {"rows": 2})
        report = tracker.run_dir / "eval" / "test" / "report.html"
        report.parent.mkdir(parents=True)
        report.write_text("<p>")
        tracker.log_artifact(report, "eval/test")
        tracker.log_artifact(report.parent, "copy")
        tracker.log_figure_bytes(b"\x89PNG", "eval/test/roc auroc=1.png")
        exported = tracker.run_dir / "exported"
        exported.mkdir()
        (exported / "encoder.json").write_text("{}")
        tracker.log_model(exported)
        outside = tracker.study.parent / "outside"
        outside.mkdir()
        with pytest.raises(HilumError, match="outside"):
            tracker.log_artifact(outside)
    inputs = {item.tags[0].value: item.dataset for item in fetch(tracker).inputs.dataset_inputs}
    assert len(fetch(tracker).inputs.dataset_inputs) == 2
    assert inputs["train"].digest == "ab" * 18 and json.loads(inputs["train"].source) == {"digest": "ab" * 32}
    assert json.loads(inputs["train"].profile) == {"rows": 10, "groups": 3} and inputs["train"].name == "nih (train)"
    assert artifact(tracker, "eval/test/report.html") == artifact(tracker, "copy/test/report.html") == b"<p>"
    assert artifact(tracker, "eval/test/roc auroc eq 1.png") == b"\x89PNG"
    assert artifact(tracker, "exported/encoder.json") == b"{}"


# --- without a store


def test_other_ranks_and_disabled_runs(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disabled = begin("disabled", enabled=False)
    monkeypatch.setenv("RANK", "1")
    other = begin("other")
    for tracker in (disabled, other):
        assert isinstance(tracker, NullTracker) and tracker.run_id is None
        with tracker:
            tracker.log_params({"a": "x" * 7000})
            tracker.log_metrics({"loss": 1.0}, 1)
            tracker.log_text("a", "a.txt")
            tracker.log_figure_bytes(b"", "a.png")
            tracker.log_dataset("d", "0", "train", {})
            tracker.set_tags({"a": 1})
        assert tracker.closed and tracker.flush()
    assert [line["step"] for line in lines(disabled)] == [1] and not other.run_dir.exists()
    for name, member in inspect.getmembers(Tracker, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(member) == inspect.signature(getattr(NullTracker, name)), name
