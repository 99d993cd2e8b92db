"""A run that ended before, or while, it wrote a checkpoint goes on from where it really was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hilum.verbs.training import RunResult, finetune, pretrain, resume

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def start(study: Path, recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start") / "mae"
    pretrain(
        str(recipes / "mae.yaml"),
        data=study,
        out=out,
        set=["schedule.epochs=1", "schedule.warmup_epochs=0"],
        track=False,
    )
    return out


def tune(study: Path, recipes: Path, start: Path, out: Path) -> RunResult:
    return finetune(str(recipes / "findings.yaml"), data=study, out=out, init=str(start), track=False)


def losses(result: RunResult) -> list[float]:
    return [h["train/classification"] for h in result.history]


def test_without_a_checkpoint_the_start_is_loaded_again(
    study: Path, recipes: Path, start: Path, tmp_path: Path
) -> None:
    whole = tune(study, recipes, start, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # as if it had been killed before the first one
    again = resume(tmp_path / "run", track=False)
    assert losses(again) == losses(whole)


def test_a_kill_between_two_renames_is_no_fresh_start(study: Path, recipes: Path, start: Path, tmp_path: Path) -> None:
    whole = tune(study, recipes, start, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert last.with_name("previous-last.ckpt").is_file()
    last.unlink()  # the new one has not taken its place yet
    again = resume(tmp_path / "run", track=False)
    assert again.steps == whole.steps and len(again.history) < len(whole.history)
