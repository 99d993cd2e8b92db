"""The loop on a card: the CPU's numbers in fp32, bf16, and fp16 with its loss scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matrix
import pytest
import torch
from matrix import OBJECTIVES, augmenter, sample
from toys import Regression, ToyFeed, make_loop, rows

from hilum.core.fit import fit
from hilum.core.loop import Hook, Loop
from hilum.core.types import Batch, StepOutput, Term
from hilum.data.collate import collate

pytestmark = pytest.mark.gpu


def weights(loop: Loop) -> torch.Tensor:
    return torch.cat([p.detach().cpu().reshape(-1) for p in loop.objective.parameters()])


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_three_steps_equal_the_cpu(name: str) -> None:
    loops = []
    for accelerator in ("cpu", "gpu"):
        loop = matrix.loop(OBJECTIVES[name](), steps=3)
        fit(loop, accelerator=accelerator)
        loops.append(loop)
    for here, there in zip(loops[0].history, loops[1].history, strict=True):
        for key in (k for k in here if k.startswith("train/")):
            assert there[key] == pytest.approx(here[key], rel=2e-4, abs=1e-5), key
    torch.testing.assert_close(weights(loops[1]), weights(loops[0]), rtol=0, atol=1e-4)
    assert loops[1].history[-1]["memory/peak_mib"] < 2000  # of the card, not of the process


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_mixed_precision_learns_with_full_precision_weights(name: str, precision: str) -> None:
    exact, mixed = matrix.loop(OBJECTIVES[name](), steps=12), matrix.loop(OBJECTIVES[name](), steps=12)
    fit(exact, accelerator="gpu")
    fit(mixed, accelerator="gpu", precision=precision)
    assert {p.dtype for p in mixed.objective.parameters()} == {torch.float32}
    term = next(k for k in exact.history[0] if k in ("train/reconstruction", "train/classification", "train/loss"))
    # fp16 may skip steps, and their batches, until it has found its scale; before the first step nothing differs
    assert mixed.history[0][term] == pytest.approx(exact.history[0][term], rel=0.02)
    assert mixed.history[-1][term] < mixed.history[0][term] and mixed.position.skipped <= 3
    if not mixed.position.skipped:  # the same road at the precision's grain; the scale is taken out of the norm
        assert mixed.history[-1][term] == pytest.approx(exact.history[-1][term], rel=0.1)
        norms = [h[0]["train/gradient_norm"] for h in (mixed.history, exact.history)]
        assert norms[0] == pytest.approx(norms[1], rel=0.1)


class Overflowing(Regression):
    """Its loss is too large for fp16 in the steps named."""

    def __init__(self, at: tuple[int, ...]) -> None:
        super().__init__(dtype=torch.float32)
        self.at, self.step_number = at, 0

    def prepare(self, batch: Batch, progress: Any) -> Batch:
        self.step_number = progress.step
        return batch.with_(
            views={k: v.float() for k, v in batch.views.items()},
            targets={k: v.float() for k, v in batch.targets.items()},
        )

    def forward(self, batch: Batch) -> StepOutput:
        term = super().forward(batch).terms["loss"]
        huge = float("inf") if self.step_number in self.at else 1.0
        return StepOutput({"loss": Term(term.sum * huge, term.count)})


class Watch(Hook):
    def __init__(self) -> None:
        self.scales: list[float] = []
        self.weights: list[torch.Tensor] = []

    def on_step(self, loop: Loop, logs: Any) -> None:
        self.scales.append(loop._loss_scale())
        self.weights.append(weights(loop))


def fp16(folder: Path | None = None, **changes: Any) -> tuple[Loop, Watch]:
    watch = Watch()
    return make_loop(Overflowing((2, 3)), ToyFeed(rows(32)), folder=folder, hooks=[watch], **changes), watch


def test_an_overflow_halves_the_scale_and_moves_nothing() -> None:
    loop, watch = fp16()
    fit(loop, accelerator="gpu", precision="16-mixed")
    assert watch.scales[:4] == [65536.0, 65536.0, 32768.0, 16384.0]
    assert torch.equal(watch.weights[1], watch.weights[2]) and torch.equal(watch.weights[1], watch.weights[3])
    assert not torch.equal(watch.weights[3], watch.weights[4])
    assert loop.position.skipped == 2 and loop.objective.moves == 10
    assert loop.stop_reason == "finished" and loop.failure is None


def test_clipping_works_on_unscaled_gradients() -> None:
    clipped = []
    for precision in ("32-true", "16-mixed"):
        loop = make_loop(Overflowing(()), ToyFeed(rows(32)), clip=0.05, total_steps=4, total_epochs=1)
        fit(loop, accelerator="gpu", precision=precision)
        clipped.append(weights(loop))
    torch.testing.assert_close(*clipped, rtol=0, atol=1e-3)


def test_a_resumed_fp16_run_goes_on_with_its_scale(tmp_path: Path) -> None:
    whole, _ = fp16(tmp_path / "whole")
    fit(whole, accelerator="gpu", precision="16-mixed")
    first, _ = fp16(tmp_path / "parts", total_steps=5)
    fit(first, accelerator="gpu", precision="16-mixed")
    second, watch = fp16(tmp_path / "parts")
    second.restore(tmp_path / "parts" / "checkpoints" / "last.ckpt")
    fit(second, accelerator="gpu", precision="16-mixed")
    assert watch.scales[0] == 16384.0
    torch.testing.assert_close(weights(second), weights(whole), rtol=0, atol=1e-6)


def test_augmentation_equals_the_cpu() -> None:
    policy = augmenter(
        {"resized_crop": [0.4, 1.0], "rotate": 10, "hflip": 0.5, "gamma": [0.8, 1.2], "blur": [0.1, 2.0]}
    )
    drawn = collate([sample(number) for number in range(8)])
    here = policy.apply(drawn, train=True).views["image"]
    there = policy.apply(drawn.to("cuda"), train=True).views["image"]
    assert there.is_cuda and float((there.cpu() - here).abs().max()) < 1e-3


def test_compiled_equals_eager() -> None:
    losses = []
    for compile in (False, True):
        loop = matrix.loop(OBJECTIVES["masked"](), steps=3, compile=compile)
        fit(loop, accelerator="gpu")
        losses.append([h["train/reconstruction"] for h in loop.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
