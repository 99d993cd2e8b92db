"""Two ranks that see different things (imported by the launched processes)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import matrix
import torch
from toys import Regression, ToyFeed, make_loop, rows

from hilum.core.errors import HilumError
from hilum.core.fit import fit
from hilum.core.loop import Hook, Loop
from hilum.core.types import Batch, StepOutput
from hilum.encoders.build import timm_encoder
from hilum.objectives.supervised import Supervised
from hilum.parts.gather import rank


class Differs(Hook):
    """Ranks judge differently: only rank 1 sees a gain in the second epoch."""

    def on_epoch_end(self, loop: Loop) -> dict[str, float]:
        return {"val/x": 0.5 + (0.1 * rank() if loop.position.epoch == 1 else 0.0)}


def judge(*, folder: Path) -> dict[str, Any]:
    loop = make_loop(
        Regression(),
        ToyFeed(rows(32)),
        folder=folder / "run",
        hooks=[Differs()],
        monitor=("val/x", "max"),
        stop_after=2,
        total_steps=20,
        total_epochs=5,
    )
    fit(loop, devices=2, strategy="ddp", accelerator="cpu")
    return {"reason": loop.stop_reason, "best": loop.position.best, "epoch": loop.position.best_epoch}


class Buffers(Hook):
    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_epoch_end(self, loop: Loop) -> None:
        import torch.distributed as dist

        own = torch.cat([b.detach().double().reshape(-1) for b in loop.objective.buffers()])
        both = [torch.empty_like(own) for _ in range(2)]
        dist.all_gather(both, own)
        self.seen += both


def batch_norm(*, folder: Path) -> dict[str, Any]:
    """A network with batch statistics: what every rank judges is the same network."""
    encoder = timm_encoder("resnet10t", view=matrix.VIEWS["image"])
    buffers = Buffers()
    loop = matrix.loop(Supervised(matrix.parts(encoder, head=True)), steps=3, folder=folder / "run")
    loop.hooks.append(buffers)
    fit(loop, devices=2, strategy="ddp", accelerator="cpu")
    return {"equal": torch.equal(buffers.seen[0], buffers.seen[1]), "moved": float(buffers.seen[0].abs().sum())}


class StopRankOne(Hook):
    def on_step(self, loop: Loop, logs: Any) -> None:
        if rank() == 1 and loop.position.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_one(*, folder: Path) -> dict[str, Any]:
    loop = make_loop(Regression(), ToyFeed(rows(32)), folder=folder / "run", hooks=[StopRankOne()])
    fit(loop, devices=2, strategy="ddp", accelerator="cpu")
    return {"reason": loop.stop_reason, "signal": int(loop.stop_signal or 0), "step": loop.position.step}


class Surprise(Regression):
    """A term that only rank 1 has, and only later; and a log that is the rank."""

    def __init__(self, *, later: bool) -> None:
        super().__init__()
        self.later, self.calls = later, 0

    def forward(self, batch: Batch) -> StepOutput:
        self.calls += 1
        output = super().forward(batch)
        output.logs["rank"] = torch.tensor(float(rank()))
        if self.later and rank() == 1 and self.calls == 3:
            output.terms["late"] = output.terms["loss"]
        return output


def surprise(*, folder: Path, later: bool) -> dict[str, Any]:
    loop = make_loop(Surprise(later=later), ToyFeed(rows(32)))
    told = ""
    try:
        fit(loop, devices=2, strategy="ddp", accelerator="cpu")
    except HilumError as error:
        told = str(error)
    return {"told": told, "ranks": [h["train/rank"] for h in loop.history]}
