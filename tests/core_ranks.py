"""What the two-rank tests of the loop run (imported by the launched processes)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from toys import Regression, ToyFeed, make_loop, rows

from hilum.core.fit import fit


def shard(objective: torch.nn.Module, mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    for layer in (objective.net[0], objective.net[3]):
        fully_shard(layer, mesh=mesh["data_parallel"])
    fully_shard(objective, mesh=mesh["data_parallel"])


def train(*, folder: Path, strategy: str, accumulate: int, steps: int = 6, resume_at: int = 0) -> dict[str, Any]:
    """Train the masked regression; returns final weights, logged losses and the number of delivered samples."""
    changes: dict[str, Any] = {"accumulate": accumulate, "folder": folder / "run", "clip": 0.5}
    if strategy == "fsdp2":
        changes["shard"] = shard
    loop = make_loop(Regression(), ToyFeed(rows(32)), total_steps=resume_at or steps, total_epochs=2, **changes)
    devices = 2 if strategy != "auto" else 1
    fit(loop, devices=devices, strategy=strategy, accelerator="cpu", precision="32-true")
    if resume_at:
        loop = make_loop(Regression(), ToyFeed(rows(32)), total_steps=steps, total_epochs=2, **changes)
        loop.restore(folder / "run" / "checkpoints" / "last.ckpt")
        fit(loop, devices=devices, strategy=strategy, accelerator="cpu", precision="32-true")
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in loop.objective.parameters()]
    return {
        "weights": torch.cat([p.detach().reshape(-1) for p in full]),
        "losses": [h["train/loss"] for h in loop.history],
        "samples": loop.position.samples,
    }
