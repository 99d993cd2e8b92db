"""The one loop: exact means, resume, guards, signals."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toys import Regression, ToyFeed, make_loop, rows

from hilum.core.errors import HilumError, TooManyBadSamples
from hilum.core.fit import fit
from hilum.core.loop import Hook, Loop
from hilum.core.objective import Objective
from hilum.core.types import BadSample, Batch, StepOutput, Term


def weights(objective: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in objective.parameters()])


def by_hand(steps: int, feed: ToyFeed, *, lr: float = 0.1, clip: float | None = None) -> torch.Tensor:
    """The same run written out: full-batch masked mean, SGD with momentum."""
    model = Regression()
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    done = 0
    for epoch in range(99):
        for parts in feed.train_loader(epoch, start_step=0, rank=0, world=1, accumulate=1):
            batch = parts[0]
            error = (model.net(batch.views["x"]).squeeze(-1) - batch.targets["y"]) ** 2
            loss = error[batch.valid["y"].bool()].mean()
            optimiser.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
            done += 1
            if done == steps:
                return weights(model)
    raise AssertionError


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_micro_batches_of_unequal_counts_equal_the_full_batch(accumulate: int) -> None:
    loop = make_loop(accumulate=accumulate)
    fit(loop)
    torch.testing.assert_close(weights(loop.objective), by_hand(12, ToyFeed(rows(32))), rtol=0, atol=1e-12)
    assert loop.stop_reason == "finished"
    assert loop.position.epoch == 3


def test_clipping_equals_torch() -> None:
    loop = make_loop(clip=0.05, total_steps=4, total_epochs=1)
    fit(loop)
    torch.testing.assert_close(weights(loop.objective), by_hand(4, ToyFeed(rows(32)), clip=0.05), rtol=0, atol=1e-6)


def test_logged_loss_is_the_exact_masked_mean() -> None:
    feed = ToyFeed(rows(32))
    loop = make_loop(feed=feed, accumulate=2, total_steps=1, total_epochs=1)
    fresh = Regression()
    batch = next(iter(ToyFeed(rows(32)).train_loader(0, start_step=0, rank=0, world=1, accumulate=1)))[0]
    expected = fresh(batch).terms["loss"].mean.item()
    fit(loop)
    assert loop.history[0]["train/loss"] == pytest.approx(expected, abs=1e-6)


def test_accumulating_without_counts_is_refused() -> None:
    class Silent(Regression):
        def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {}

    with pytest.raises(HilumError, match="counts"):
        fit(make_loop(Silent(), accumulate=2))


class SlowFeed(ToyFeed):
    """Its loader needs 50 ms a step, its augmentation 10."""

    def train_loader(self, *args: Any, **kwargs: Any) -> Any:
        steps = super().train_loader(*args, **kwargs)

        class Slow(type(steps)):  # type: ignore[misc]
            def __iter__(self) -> Iterator[Any]:
                for step in super().__iter__():
                    time.sleep(0.05)
                    yield step

        return Slow(steps.steps)

    def augment(self, batch: Batch, *, train: bool) -> Batch:
        time.sleep(0.01)
        return batch


def test_waiting_for_data_and_augmenting_are_told_apart() -> None:
    loop = make_loop(feed=SlowFeed(rows(32)), total_steps=4, total_epochs=1, log_every=4)
    fit(loop)
    numbers = loop.history[-1]
    assert numbers["speed/data_wait_ms"] >= 50
    assert numbers["speed/data_wait_share"] > numbers["speed/augment_share"] > 0
    assert numbers["speed/data_wait_share"] + numbers["speed/augment_share"] < 1


class StopAt(Hook):
    """Asks for a stop as a signal would, after a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, loop: Loop, logs: object) -> None:
        if loop.position.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop", [2, 4, 7])
def test_resume_inside_an_epoch_is_bit_exact_with_dropout_and_average(tmp_path: Path, stop: int) -> None:
    def build(folder: Path, *hooks: Hook) -> Loop:
        return make_loop(Regression(dropout=0.3), ToyFeed(rows(32)), folder=folder, hooks=list(hooks), ema=0.9)

    whole = build(tmp_path / "whole")
    fit(whole)

    first = build(tmp_path / "parts", StopAt(stop))
    fit(first)
    assert first.stop_reason == "signal"
    assert first.stop_signal == signal.SIGTERM

    second = build(tmp_path / "parts")
    second.restore(tmp_path / "parts" / "checkpoints" / "last.ckpt")
    assert stop <= second.position.step <= stop + 1
    fit(second)
    assert torch.equal(weights(second.objective), weights(whole.objective))
    with whole.averaged():
        kept = weights(whole.objective).clone()
    with second.averaged():
        assert torch.equal(weights(second.objective), kept)
    assert second.position.samples == whole.position.samples == 96
    losses = [h["train/loss"] for h in first.history] + [h["train/loss"] for h in second.history]
    assert losses == [h["train/loss"] for h in whole.history]


def test_a_step_that_is_not_finite_is_skipped_and_the_run_stops_after_n() -> None:
    class Poisoned(Regression):
        def __init__(self, at: set[int]) -> None:
            super().__init__()
            self.at, self.seen = at, -1

        def forward(self, batch: Batch) -> StepOutput:
            self.seen += 1
            output = super().forward(batch)
            if self.seen in self.at:
                output.terms["loss"].sum = output.terms["loss"].sum * float("nan")
            return output

    loop = make_loop(Poisoned({1, 5}))
    fit(loop)
    assert loop.position.skipped == 2
    assert loop.position.step == 12
    assert loop.objective.moves == 10  # after_step runs only when the optimiser moved
    assert torch.isfinite(weights(loop.objective)).all()

    doomed = make_loop(Poisoned(set(range(1, 99))), nan_guard=3)
    with pytest.raises(HilumError, match="not finite 4 steps in a row") as caught:
        fit(doomed)
    assert "sample" in str(caught.value)
    assert doomed.position.step == 5


def test_bad_samples_shrink_the_normaliser_and_are_accounted(tmp_path: Path) -> None:
    bad = {3: BadSample("00000003", "codec_error"), 17: BadSample("00000011", "truncated_pixels")}
    feed = ToyFeed(rows(32), bad=bad)
    loop = make_loop(feed=feed, accumulate=2, total_steps=4, total_epochs=1)
    fit(loop)
    assert feed.delivered + len(feed.failures) == 32
    assert {b.sample_id for b in feed.failures} == {"00000003", "00000011"}
    assert loop.position.step == 4  # the epoch is not shorter
    torch.testing.assert_close(weights(loop.objective), by_hand(4, ToyFeed(rows(32), bad=bad)), rtol=0, atol=1e-12)


def test_too_many_bad_samples_end_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    bad = {r: BadSample(f"{r:08x}", "codec_error") for r in range(0, 32, 2)}
    loop = make_loop(feed=ToyFeed(rows(32), bad=bad, max_bad=0.1), folder=tmp_path)
    with pytest.raises(TooManyBadSamples):
        fit(loop)
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_the_feed_s_account_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    class Counting(ToyFeed):
        known: object = None

        def state_dict(self) -> dict[str, object]:
            return {"epoch": 0, "delivered": self.delivered, "bad": [["a", "codec_error", ""]]}

        def load_state_dict(self, state: object) -> None:
            self.known = state

    fit(make_loop(feed=Counting(rows(32)), folder=tmp_path, total_steps=2))
    feed = Counting(rows(32))
    make_loop(feed=feed, folder=tmp_path).restore(tmp_path / "checkpoints" / "last.ckpt")
    assert feed.known == {"epoch": 0, "delivered": 16, "bad": [["a", "codec_error", ""]]}


def test_nothing_is_chosen_by_a_validation_that_failed(tmp_path: Path) -> None:
    class Val(Hook):
        def on_epoch_end(self, loop: Loop) -> dict[str, float]:
            loop.feed.max_bad = 0.0  # too much of what was validated on could not be read
            return {"val/x": 9.0}

    feed = ToyFeed(rows(32), bad={0: BadSample("00000000", "gone")})
    loop = make_loop(feed=feed, folder=tmp_path, hooks=[Val()], monitor=("val/x", "max"), total_steps=8)
    with pytest.raises(TooManyBadSamples):
        fit(loop)
    assert loop.position.best is None and loop.position.epoch == 1
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_a_wholly_bad_micro_batch_still_makes_the_step() -> None:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    lost = order[:4].tolist()  # the first micro-batch of the first step
    feed = ToyFeed(rows(32), bad={r: BadSample(f"{r:08x}", "gone") for r in lost})
    loop = make_loop(feed=feed, accumulate=2, total_steps=1, total_epochs=1)
    fit(loop)
    assert loop.position.step == 1
    assert loop.position.samples == 4
    assert torch.isfinite(weights(loop.objective)).all()


def test_learning_rate_follows_the_schedule_each_step() -> None:
    loop = make_loop(schedule=lambda step: 1.0 / (step + 1), total_steps=4, total_epochs=1)
    fit(loop)
    assert [h["train/lr"] for h in loop.history] == pytest.approx([0.1, 0.05, 0.1 / 3, 0.025])


class Bilevel(Objective):
    """One-step bilevel optimisation: the inner parameter moves first, the outer one on the moved inner (<= 40 lines)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.outer = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, batch: Batch) -> StepOutput:
        return StepOutput({"loss": Term((self.inner * self.outer - 1) ** 2, torch.ones(()))})

    def step(self, batch: Batch, take: object) -> None:
        take(self(batch), "inner")  # type: ignore[operator]
        take(self(batch), "outer")  # type: ignore[operator]


def test_an_objective_may_order_its_updates() -> None:
    objective = Bilevel()
    optimisers = lambda m: {  # noqa: E731
        "inner": torch.optim.SGD([m.inner], lr=0.1),
        "outer": torch.optim.SGD([m.outer], lr=0.1),
    }
    fit(make_loop(objective, optimisers=optimisers, total_steps=1, total_epochs=1))
    inner = 1.0 - 0.1 * 2 * (1.0 * 2.0 - 1) * 2.0
    outer = 2.0 - 0.1 * 2 * (inner * 2.0 - 1) * inner
    assert objective.inner.item() == pytest.approx(inner, abs=1e-12)
    assert objective.outer.item() == pytest.approx(outer, abs=1e-12)


def test_best_is_kept_by_the_monitor_and_no_gain_stops(tmp_path: Path) -> None:
    class Told(Hook):
        values = iter([0.5, 0.8, 0.7, 0.6, 0.9])

        def on_epoch_end(self, loop: Loop) -> dict[str, float]:
            return {"val/auroc": next(self.values)}

    loop = make_loop(
        folder=tmp_path, hooks=[Told()], total_steps=20, total_epochs=5, monitor=("val/auroc", "max"), stop_after=2
    )
    fit(loop)
    assert loop.stop_reason == "no gain"
    assert (loop.position.best, loop.position.best_epoch) == (0.8, 2)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["position"]["step"] == 8
