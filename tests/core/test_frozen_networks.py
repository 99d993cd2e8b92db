"""What a checkpoint leaves out because it never moves must be the same when a run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys import Regression, ToyFeed, make_loop, rows

from hilum.core.checkpoint import load_checkpoint
from hilum.core.errors import HilumError
from hilum.core.fit import fit
from hilum.core.types import Batch, StepOutput, Term
from hilum.parts.teacher import Teacher


class Distilled(Regression):
    """The student follows a frozen copy of how it started."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        with torch.no_grad():
            self.net[0].weight += shift
        self.teacher = Teacher({"net": self.net}, momentum=None)

    def forward(self, batch: Batch) -> StepOutput:
        output = super().forward(batch)
        with torch.no_grad():
            told = self.teacher["net"](batch.views["x"])
        error = (self.net(batch.views["x"]) - told).square().sum()
        output.terms["distance"] = Term(error, torch.tensor(float(batch.size)))
        return output

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {**super().counts(batch), "distance": torch.tensor(float(batch.size))}


def test_a_run_goes_on_with_the_teacher_it_had_and_refuses_another(tmp_path: Path) -> None:
    whole = make_loop(Distilled(), ToyFeed(rows(32)), folder=tmp_path / "whole")
    fit(whole)
    fit(make_loop(Distilled(), ToyFeed(rows(32)), folder=tmp_path / "parts", total_steps=5))
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    assert set(load_checkpoint(last)["frozen"]) == {"teacher"}
    assert not any("teacher" in name for name in load_checkpoint(last)["objective"])

    second = make_loop(Distilled(), ToyFeed(rows(32)), folder=tmp_path / "parts")
    second.restore(last)
    fit(second)
    losses = [h["train/distance"] for h in second.history]
    assert losses == [h["train/distance"] for h in whole.history][5:]

    other = make_loop(Distilled(shift=0.1), ToyFeed(rows(32)), folder=tmp_path / "parts")
    other.restore(tmp_path / "parts" / "checkpoints" / "previous-last.ckpt")
    with pytest.raises(HilumError, match="frozen teacher has other weights"):
        fit(other)
