"""The road through the verbs: index, split, pretrain, resume, fine-tune, evaluate, embed, predict."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from hilum.core.checkpoint import load_checkpoint
from hilum.core.cli import main
from hilum.core.errors import HilumError
from hilum.verbs.evaluating import embed, evaluate
from hilum.verbs.predicting import predict
from hilum.verbs.training import finetune, pretrain, resume

pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def mae(study: Path, recipes: Path) -> Path:
    out = study / "runs" / "mae"
    result = pretrain(str(recipes / "mae.yaml"), data=study, out=out, track=False)
    assert result.reason == "finished"
    losses = [h["train/reconstruction"] for h in result.history]
    assert len(losses) == result.steps and losses[-1] < losses[0]
    return out


@pytest.fixture(scope="session")
def findings(study: Path, recipes: Path, mae: Path) -> Path:
    out = study / "runs" / "findings"
    sets = ["schedule.epochs=80", "optim.lr=3.0e-3", "augment={}"]
    finetune(str(recipes / "findings.yaml"), data=study, out=out, init=str(mae), set=sets, track=False)
    return out


def test_a_run_folder_reproduces_itself(mae: Path) -> None:
    config = yaml.safe_load((mae / "config.yaml").read_text())
    assert "auto" not in json.dumps({k: v for k, v in config.items() if k != "views"})
    mean, std = config["views"]["image"]["normalise"]
    assert 0 < mean[0] < 1 and 0 < std[0] < 1
    facts = json.loads((mae / "run.json").read_text())
    assert facts["finished"] and facts["samples"] == 3 * facts["rows"]["train"]  # every image, the short last step too
    exported = json.loads((mae / "exported" / "encoder.json").read_text())
    assert exported["sha256"]
    assert not (mae / "lock.json").exists()


def test_nothing_that_is_written_holds_a_path_or_a_patient(study: Path, mae: Path, archive: Path) -> None:
    for path in study.rglob("*"):
        if path.is_file() and "private" not in path.parts and path.suffix != ".bin":
            text = path.read_bytes()
            assert b"P07" not in text or path.suffix in (".ckpt", ".safetensors", ".shard"), path
            assert str(archive).encode() not in text, path


def test_evaluate_beats_chance_and_writes_one_page(findings: Path) -> None:
    report = evaluate(findings, split="test", resamples=200, track=False)
    assert report.macro["auroc"].value > 0.85
    page = (findings / "eval" / "test" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    assert len(page) < 6 << 20
    stored = pq.read_table(findings / "eval" / "test" / "predictions.parquet")
    assert {"sample_id", "group_id", "split", "target.left", "score.right", "fold", "seed"} <= set(stored.column_names)
    metrics = json.loads((findings / "eval" / "test" / "metrics.json").read_text())
    points = [f["point"] for f in metrics["findings"] if f["point"]]
    assert points and all(p["split"] == "val" for p in points)


def test_embed_and_predict_agree_with_the_model(findings: Path, study: Path, archive: Path, tmp_path: Path) -> None:
    table = pq.read_table(embed(findings, data=study, out=tmp_path / "features.parquet"))
    assert table.num_rows == 72
    assert np.isfinite(np.array(table["feature"].to_pylist())).all()
    predict(findings, archive, out=tmp_path / "scores.csv", workers=1)
    rows = {r["file"]: r for r in csv.DictReader((tmp_path / "scores.csv").open())}
    assert len(rows) == 73
    assert rows["broken.png"]["status"] == "quarantined" and rows["broken.png"]["reason"]
    truth = {r["path"]: r for r in csv.DictReader((archive.parent / "labels.csv").open())}
    hits = [(float(rows[p]["score.left"]) > 0.5) == (t["left"] == "1") for p, t in truth.items()]
    assert np.mean(hits) > 0.85
    one = tmp_path / "one.csv"
    predict(findings, archive / "p05-0.png", out=one, workers=1)
    alone = list(csv.DictReader(one.open()))
    assert len(alone) == 1 and alone[0]["score.left"] == rows["p05-0.png"]["score.left"]


@pytest.mark.parametrize(
    ("after", "kill", "code_told", "sets"),
    [
        (1, "os.kill(os.getpid(), signal.SIGTERM)", 143, []),
        (5, "os.kill(os.getpid(), signal.SIGTERM)", 143, []),
        # schedulers and terminals signal every process of the group: the data workers and their server, too
        (5, "os.killpg(0, signal.SIGTERM)", 143, ["engine.workers=1", "engine.augment=workers"]),
        (5, "os.killpg(0, signal.SIGINT)", 130, ["engine.workers=1"]),
    ],
    ids=["first step", "inside an epoch", "the whole group", "Ctrl-C"],
)
def test_a_signal_saves_and_resume_is_bit_exact(
    study: Path, recipes: Path, mae: Path, tmp_path: Path, after: int, kill: str, code_told: int, sets: list[str]
) -> None:
    out = tmp_path / "run"
    code = (
        "import os, signal, sys\n"
        "from hilum.core.loop import Hook\n"
        "import hilum.verbs.hooks as hooks\n"
        "class Kill(hooks.Tracking):\n"
        "    def on_step(self, loop, logs):\n"
        f"        if loop.position.step == {after}: {kill}\n"
        "hooks.Tracking = Kill\n"
        "from hilum.core.cli import main\n"
        "if __name__ == '__main__':\n"
        f"    sys.exit(main(['pretrain', {str(recipes / 'mae.yaml')!r}, '--data', {str(study)!r}, '--out', {str(out)!r}, "
        f"'--no-track', *{[word for told in sets for word in ('--set', told)]!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, start_new_session=True
    )
    assert done.returncode == code_told, done.stderr[-2000:]
    assert "a data worker ended" not in done.stderr
    assert "hilum resume" in done.stdout
    result = resume(out, track=False)
    assert result.reason == "finished"
    whole = torch.load(mae / "checkpoints" / "last.ckpt", weights_only=True)
    parts = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert whole["position"] == parts["position"]
    for name, value in whole["objective"].items():
        assert torch.equal(value, parts["objective"][name]), name


def test_a_killed_run_resumes_from_the_last_checkpoint(study: Path, recipes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "hilum.core.cli",
        "pretrain",
        str(recipes / "mae.yaml"),
        "--data",
        str(study),
        "--out",
        str(out),
    ]
    command += ["--no-track", "--set", "schedule.epochs=400"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 100
    while not (out / "checkpoints" / "last.ckpt").exists() and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = load_checkpoint(out / "checkpoints" / "last.ckpt")["position"]["step"]  # the kill may fall between renames
    assert before > 0 and (out / "lock.json").exists()
    result = resume(out, epochs=before // 4 + 2, track=False)  # the dead process's lock is taken over
    assert result.reason == "finished" and result.steps >= before


@pytest.mark.parametrize("form", ["relative", "link"])
def test_predict_takes_a_folder_however_it_is_written(
    form: str, findings: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archive.parent)
    told = Path(archive.name)
    if form == "link":
        told = tmp_path / "link"
        told.symlink_to(archive, target_is_directory=True)
    predict(findings, told, out=tmp_path / "scores.csv", workers=1)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert len(rows) == 73 and sum(r["status"] == "scored" for r in rows) == 72


def test_a_second_signal_ends_at_once_with_the_signal_s_code(study: Path, recipes: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "import hilum.verbs.hooks as hooks\n"
        "class Kill(hooks.Tracking):\n"
        "    def on_step(self, loop, logs):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(30)\n"
        "hooks.Tracking = Kill\n"
        "from hilum.core.cli import main\n"
        f"sys.exit(main(['pretrain', {str(recipes / 'mae.yaml')!r}, '--data', {str(study)!r}, "
        f"'--out', {str(tmp_path / 'run')!r}, '--no-track']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 143 and "ended at once" in done.stderr
    assert resume(tmp_path / "run", track=False).reason == "finished"  # the lock it left is stale


BAD_INPUT = [
    (["pretrain", "nothing/here", "--data", "STUDY"], 1, "there is no recipe"),
    (["pretrain", "MAE", "--data", "STUDY", "--set", "optim.lrr=1"], 1, "did you mean 'lr'"),
    (["pretrain", "MAE", "--data", "/nonexistent"], 1, "hilum index"),
    (["finetune", "FINDINGS", "--data", "STUDY", "--fraction", "0.01"], 1, "loses"),
    (["finetune", "FINDINGS", "--data", "STUDY", "--set", "labels.names=[lefft]"], 1, "no label 'lefft'"),
    (["finetune", "FINDINGS", "--data", "STUDY", "--init", "/nonexistent.pt"], 1, "nonexistent.pt"),
    (["finetune", "FINDINGS", "--data", "STUDY", "--set", "where=modality = 'MR'"], 1, "none of the"),
    (["evaluate", "STUDY"], 1, "not a run folder"),
    (["split", "STUDY", "--seed", "5"], 1, "already has a different split"),
    (["train", "X"], 2, "there is no command"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"), BAD_INPUT, ids=[" ".join(a[:1] + a[-1:]) for a, _, _ in BAD_INPUT]
)
def test_bad_input_gives_one_message(
    arguments: list[str],
    code: int,
    message: str,
    study: Path,
    recipes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"STUDY": str(study), "MAE": str(recipes / "mae.yaml"), "FINDINGS": str(recipes / "findings.yaml")}
    told = [names.get(a, a) for a in arguments]
    if told[0] in ("pretrain", "finetune"):
        told += ["--out", str(tmp_path / "out"), "--no-track"]
    assert main(told) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and "fix:" in error
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_a_wrong_shape_checkpoint_is_refused(study: Path, recipes: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "odd.pt")
    with pytest.raises(HilumError, match="match"):
        finetune(
            str(recipes / "findings.yaml"), data=study, init=str(tmp_path / "odd.pt"), out=tmp_path / "x", track=False
        )


def test_a_taken_folder_and_a_changed_split_are_refused(study: Path, recipes: Path, mae: Path) -> None:
    with pytest.raises(HilumError, match="taken"):
        pretrain(str(recipes / "mae.yaml"), data=study, out=mae, track=False)


def test_dry_run_writes_nothing(study: Path, recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = finetune(str(recipes / "findings.yaml"), data=study, out=tmp_path / "dry", dry_run=True)
    told = capsys.readouterr().out
    assert "peak memory" in told and "projected time" in told and result.reason == "dry run"
    assert not (tmp_path / "dry").exists()


STAGES = """
stages:
- {name: warm, init: start, schedule: {epochs: 1, warmup_epochs: 0}}
- {name: head, init: previous, train: ["head.*"], eval_mode: ["encoder*"], schedule: {epochs: 2, warmup_epochs: 0}}
- {name: probe, init: stage:warm/encoder, train: ["head.*"], schedule: {epochs: 1, warmup_epochs: 0}}
"""
TASKS = """
tasks:
- {name: left, labels: {names: [left]}, schedule: {epochs: 1, warmup_epochs: 0}}
- {name: right, labels: {names: [right]}, schedule: {epochs: 1, warmup_epochs: 0}}
"""


def test_stages_start_from_each_other_and_frozen_parts_are_audited(study: Path, recipes: Path, tmp_path: Path) -> None:
    path = tmp_path / "staged.yaml"
    path.write_text((recipes / "findings.yaml").read_text() + STAGES)
    out = tmp_path / "run"
    finetune(str(path), data=study, out=out, track=False)
    facts = json.loads((out / "run.json").read_text())
    assert facts["stages"] == ["warm", "head", "probe"]

    def state(stage: str) -> dict[str, torch.Tensor]:
        return torch.load(out / "stages" / stage / "checkpoints" / "last.ckpt", weights_only=True)["objective"]

    warm, head, probe = state("0-warm"), state("1-head"), state("2-probe")
    encoder = [n for n in warm if n.startswith("encoder")]
    assert all(torch.equal(warm[n], head[n]) and torch.equal(warm[n], probe[n]) for n in encoder)
    assert not torch.equal(warm["head.linear.weight"], head["head.linear.weight"])
    frozen = json.loads((out / "stages" / "1-head" / "run.json").read_text())["frozen"]
    assert set(frozen) and all(n.startswith("encoder") for n in frozen)
    assert finetune_is_finished(out)
    assert evaluate(out, split="val", resamples=50, track=False).split == "val"


def finetune_is_finished(out: Path) -> bool:
    """Resuming a finished staged run trains nothing and changes nothing."""
    before = {p: p.stat().st_mtime_ns for p in out.rglob("last.ckpt") if "stages" in p.parts}
    resume(out, track=False)
    return before == {p: p.stat().st_mtime_ns for p in before}


def test_a_sequence_of_tasks_carries_the_encoder_on(study: Path, recipes: Path, tmp_path: Path) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text((recipes / "findings.yaml").read_text() + TASKS)
    out = tmp_path / "run"
    finetune(str(path), data=study, out=out, track=False)
    first, second = (
        torch.load(out / "stages" / s / "checkpoints" / "last.ckpt", weights_only=True) for s in ("0-left", "1-right")
    )
    assert (first["position"]["task"], second["position"]["task"]) == (0, 1)
    names = [
        json.loads((out / "stages" / s / "run.json").read_text())["labels"]["names"] for s in ("0-left", "1-right")
    ]
    assert names == [["left"], ["right"]]


def test_too_many_unreadable_files_end_with_exit_4(archive: Path, study: Path, recipes: Path, tmp_path: Path) -> None:
    """Files that were fine at index time and are damaged when the cache is built are named, and the run stops."""
    import shutil

    from hilum.verbs.intake import index
    from hilum.verbs.splitting import split

    copy = tmp_path / "archive"
    shutil.copytree(archive, copy)
    (copy / "broken.png").unlink()
    index(copy, out=tmp_path / "study", labels=archive.parent / "labels.csv", workers=1)
    split(tmp_path / "study", val=0.25, test=0.25)
    for name in sorted(p.name for p in copy.iterdir())[::3]:
        (copy / name).write_bytes(b"no longer an image")
    out = tmp_path / "run"
    assert (
        main(
            ["pretrain", str(recipes / "mae.yaml"), "--data", str(tmp_path / "study"), "--out", str(out), "--no-track"]
        )
        == 4
    )
    bad = pq.read_table(out / "bad_samples.parquet")
    assert bad.num_rows > 0 and all(bad["reason"].to_pylist())
    assert (out / "checkpoints" / "last.ckpt").is_file()
