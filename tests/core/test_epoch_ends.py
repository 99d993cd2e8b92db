"""What happens between the last step of an epoch and the next one: it survives failures, signals and kills."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Regression, ToyFeed, make_loop, rows

from hilum.core.errors import HilumError
from hilum.core.fit import fit
from hilum.core.loop import Hook, Loop
from hilum.core.types import BadSample, Batch, StepOutput


def weights(loop: Loop) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in loop.objective.parameters()])


class Judge(Hook):
    """A validation whose value is told in advance; it may fail, or be told to stop, once."""

    def __init__(self, *, fail_at: int = 0, kill_at: int = 0) -> None:
        self.fail_at, self.kill_at, self.epochs = fail_at, kill_at, list[int]()

    def on_epoch_end(self, loop: Loop) -> dict[str, float]:
        self.epochs.append(loop.position.epoch + 1)
        if self.epochs[-1] == self.fail_at:
            raise MemoryError("validation needs too much")
        if self.epochs[-1] == self.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"val/x": {1: 0.9, 2: 0.5, 3: 0.7}[self.epochs[-1]]}


def build(folder: Path, *hooks: Hook, **changes: Any) -> Loop:
    return make_loop(
        Regression(dropout=0.3),
        ToyFeed(rows(32)),
        folder=folder,
        hooks=list(hooks),
        monitor=("val/x", "max"),
        **changes,
    )


def resumed(folder: Path, *hooks: Hook, **changes: Any) -> Loop:
    loop = build(folder, *hooks, **changes)
    loop.restore(folder / "checkpoints" / "last.ckpt")
    fit(loop)
    return loop


@pytest.fixture
def whole(tmp_path: Path) -> Loop:
    loop = build(tmp_path / "whole", Judge())
    fit(loop)
    return loop


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_validation_that_failed_is_made_up_for(epoch: int, whole: Loop, tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        fit(build(tmp_path / "parts", Judge(fail_at=epoch)))
    judge = Judge()
    loop = resumed(tmp_path / "parts", judge)
    assert judge.epochs == list(range(epoch, 4))  # the epoch is judged, and not trained again
    assert loop.stop_reason == "finished" and loop.position == whole.position
    assert torch.equal(weights(loop), weights(whole))


def test_a_kill_during_validation_loses_nothing(whole: Loop, tmp_path: Path) -> None:
    class Copy(Judge):
        def on_epoch_end(self, loop: Loop) -> dict[str, float]:
            if loop.position.epoch == 1:  # what is on disk at this moment is what a kill would leave
                shutil.copytree(tmp_path / "parts", tmp_path / "left")
            return super().on_epoch_end(loop)

    fit(build(tmp_path / "parts", Copy()))
    loop = resumed(tmp_path / "left", Judge())
    assert torch.equal(weights(loop), weights(whole)) and loop.position.best == 0.9


def test_a_signal_at_the_end_of_an_epoch_stops_before_validation(whole: Loop, tmp_path: Path) -> None:
    class Stop(Hook):
        def on_step(self, loop: Loop, logs: Any) -> None:
            if loop.position.step == 8:
                os.kill(os.getpid(), signal.SIGTERM)

    class StopFeed(ToyFeed):
        def account(self, *args: Any, **kwargs: Any) -> None:
            super().account(*args, **kwargs)
            if self.delivered == 64:
                os.kill(os.getpid(), signal.SIGTERM)

    judge = Judge()
    loop = make_loop(
        Regression(dropout=0.3), StopFeed(rows(32)), folder=tmp_path / "parts", hooks=[judge], monitor=("val/x", "max")
    )
    fit(loop)
    assert loop.stop_reason == "signal" and judge.epochs == [1] and loop.position.step == 8
    judge = Judge()
    assert torch.equal(weights(resumed(tmp_path / "parts", judge)), weights(whole))
    assert judge.epochs == [2, 3]


def test_a_signal_during_validation_ends_it_and_it_is_done_again(whole: Loop, tmp_path: Path) -> None:
    judge = Judge(kill_at=2)
    loop = build(tmp_path / "parts", judge)
    fit(loop)
    assert loop.stop_reason == "signal" and judge.epochs == [1, 2] and loop.position.step == 8
    judge = Judge()
    again = resumed(tmp_path / "parts", judge)
    assert judge.epochs == [2, 3] and torch.equal(weights(again), weights(whole))
    assert again.position == whole.position


def test_a_finished_run_is_not_judged_again(whole: Loop) -> None:
    judge = Judge()
    loop = build(Path(str(whole.folder)), judge)
    loop.restore(Path(str(whole.folder)) / "checkpoints" / "last.ckpt")
    fit(loop)
    assert judge.epochs == [] and loop.stop_reason == "finished"


def test_epochs_without_validation_do_not_count_as_without_gain(tmp_path: Path) -> None:
    class Rare(Hook):
        def on_epoch_end(self, loop: Loop) -> dict[str, float] | None:
            return {"val/x": 0.5} if loop.position.epoch == 3 else None

    loop = make_loop(
        folder=tmp_path, hooks=[Rare()], total_steps=20, total_epochs=5, monitor=("val/x", "max"), stop_after=2
    )
    fit(loop)
    assert loop.stop_reason == "finished" and loop.position.best == 0.5


def test_a_first_step_without_any_usable_sample_is_no_crash(tmp_path: Path) -> None:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    feed = ToyFeed(rows(32), bad={r: BadSample(f"{r:08x}", "gone") for r in order[:8].tolist()})
    loop = make_loop(feed=feed, total_steps=4, total_epochs=1)
    fit(loop)
    assert loop.position.step == 4 and loop.objective.moves == 3
    assert loop.history[0]["train/gradient_norm"] != loop.history[0]["train/gradient_norm"]  # not a number


def test_counts_that_name_other_terms_are_a_clear_error() -> None:
    class Other(Regression):
        def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"mse": batch.valid["y"].sum()}

    with pytest.raises(HilumError, match=r"counts\(\) told of \['mse'\], forward returned also \['loss'\]"):
        fit(make_loop(Other(), accumulate=2))


def test_the_samples_of_a_skipped_step_are_written(tmp_path: Path) -> None:
    class Poisoned(Regression):
        def forward(self, batch: Batch) -> StepOutput:
            output = super().forward(batch)
            if self.moves == 2:
                self.moves += 1  # once
                output.terms["loss"].sum = output.terms["loss"].sum * float("nan")
            return output

    loop = make_loop(Poisoned(), folder=tmp_path, total_steps=4, total_epochs=1)
    fit(loop)
    lines = (tmp_path / "logs" / "skipped_steps.csv").read_text().splitlines()
    assert lines[0] == "step,rank,sample_ids" and len(lines) == 2
    step, rank, samples = lines[1].split(",")
    assert (step, rank) == ("2", "0") and len(samples.split()) == 8
