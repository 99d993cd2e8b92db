"""What the sharded run's test launches on two ranks: a recipe through the verb, as a user would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hilum.verbs.training import pretrain


def sharded(*, folder: Path, recipe: str, study: str) -> dict[str, Any]:
    """Losses of an FSDP2 run of ``recipe`` in ``FOLDER/run``, and of every shard unit how many numbers rank 0 holds, of how many."""
    from torch.distributed.fsdp import FSDPModule

    from hilum.core.loop import Loop

    seen: dict[str, list[int]] = {}
    whole = Loop.configure_model

    def watched(self: Loop) -> None:
        whole(self)
        for name, module in self.objective.named_modules():
            if isinstance(module, FSDPModule):
                parameters = [p for p in module.parameters() if hasattr(p, "to_local")]
                seen[name] = [sum(p.to_local().numel() for p in parameters), sum(p.numel() for p in parameters)]

    Loop.configure_model = watched  # type: ignore[method-assign]
    sets = ["engine.strategy=fsdp2", "engine.devices=2", "batch.per_device=4"]
    result = pretrain(recipe, data=Path(study), out=folder / "run", set=sets, track=False)
    return {
        "losses": [h["train/reconstruction"] for h in result.history],
        "sharded": seen,
        "ranks": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 0,
    }
