"""What the two-rank test of the epoch account runs (imported by the launched processes)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from fake.feeds import Toy, name_of

from hilum.core.errors import TooManyBadSamples
from hilum.data.module import DataModule
from hilum.data.plan import Sequential, Shuffle

ROWS, FAULTS = 12, {0: "value", 5: "value", 9: "value"}


def module_of(path: Path | None, share: float) -> DataModule:
    ids = [name_of(i) for i in range(ROWS)]
    plans = {
        "train": Shuffle(np.arange(ROWS), ids, batch_size=4),
        "val": Sequential(np.arange(ROWS), ids, batch_size=4),
    }
    source = Toy(ROWS, FAULTS)
    return DataModule({"train": source, "val": source}, plans, workers=0, max_bad=share, bad_path=path)


def count(module: DataModule, *, steps: int, start: int = 0) -> None:
    loader = module.train_loader(0, start_step=start, rank=dist.get_rank(), world=dist.get_world_size())
    for micro, _ in zip(loader, range(steps), strict=False):
        module.account(sum(b.size for b in micro), [x for b in micro for x in b.bad], epoch=0)


def failure(module: DataModule) -> str:
    try:
        module.check_account(epoch=0, final=True)
    except TooManyBadSamples as error:
        return error.what
    return ""


def train(*, folder: Path) -> dict[str, Any]:
    """An epoch in two parts with a stop between them; then what too strict limits say, equally on both ranks."""
    dist.init_process_group("gloo")
    first, second = (module_of(folder / "bad_samples.parquet", 0.5) for _ in range(2))
    count(first, steps=2)
    second.load_state_dict(first.state_dict())
    count(second, steps=1, start=2)
    list(second.loader("val"))  # every rank reads all of it
    assert failure(second) == ""
    state = second.state_dict()
    strict = module_of(None, 0.2)
    strict.load_state_dict(state)
    count(strict, steps=3)
    told = failure(strict)
    wide = module_of(None, 0.2)
    wide.train_loader(0, start_step=3, rank=dist.get_rank(), world=dist.get_world_size())
    list(wide.loader("val"))
    val = failure(wide)
    assert told and val
    dist.destroy_process_group()
    kept = state["account"]
    return {"bad": sorted(b[0] for b in kept["bad"]), "delivered": kept["delivered"], "strict": told, "val": val}
