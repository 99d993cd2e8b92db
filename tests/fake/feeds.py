"""Sources that misbehave on chosen rows, at module level so that worker processes can import them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hilum.core.errors import HilumError
from hilum.core.types import Batch, LabelSpace, Meta, Request, Sample, Window


def name_of(row: int) -> str:
    return f"{(row * 2654435761) % 2**32:08x}{row:024x}"


class EndsItsProcess:
    """Ends the process that sends it."""

    def __reduce__(self) -> Any:
        os._exit(7)


class Toy:
    """Row i is a 1 x 2 x 2 image of i. ``faults`` says what happens instead."""

    index = None
    labels: LabelSpace | None = None

    def __init__(self, n: int, faults: Mapping[int, str] | None = None, *, folder: Path | None = None) -> None:
        self.n, self.faults, self.folder = n, dict(faults or {}), folder

    def __len__(self) -> int:
        return self.n

    def sample_id(self, row: int) -> str:
        return name_of(row)

    def __getitem__(self, request: Request) -> Sample:
        row, extra = request.row, {}
        match self.faults.get(row):
            case "stop":
                raise StopIteration
            case "memory":
                raise MemoryError
            case "deep":
                return self[request]
            case "value":
                raise ValueError("DOE^JANE is not a number")
            case "hilum":
                raise HilumError("this one is not readable", fix="none")
            case "none":
                return None  # type: ignore[return-value]
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "kill once":
                flag = Path(str(self.folder)) / f"{row}"
                if not flag.exists():
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(600)
            case "unsendable":
                extra = {"function": lambda: None}
            case "ends on sending":
                extra = {"bomb": EndsItsProcess()}
        meta = Meta(name_of(row), f"group {row // 2}", key=request.key, extra=extra)
        return Sample(
            {"image": torch.full((1, 2, 2), row, dtype=torch.int16)}, {"labels": torch.tensor([float(row % 2)])}, meta
        )


class Pictures(Toy):
    """16-bit pictures of several sizes, as the shard cache gives them."""

    def __getitem__(self, request: Request) -> Sample:
        row, generator = request.row, torch.Generator().manual_seed(request.row)
        pixels = torch.randint(500, 3300, (1, 40 + row % 5, 44 + row % 7), generator=generator).to(torch.uint16)
        about = {"slope": 1.0, "intercept": 0.0, "window": Window(500.0, 3300.0), "stats": {"mean": 1400.0}}
        meta = Meta(name_of(row), f"group {row // 2}", key=request.key, extra={"image": about})
        return Sample({"image": pixels}, {"labels": torch.tensor([float(row % 2)])}, meta)


class Draws:
    """An augmenter: one number a sample from its key, failing on chosen samples."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        self.failing = failing

    def draw(self, sample: Sample, *, train: bool) -> None:
        if sample.meta.sample_id in self.failing:
            raise StopIteration
        key = sample.meta.key
        assert key is not None
        sample.meta.extra["draws"] = (key.run_seed * 31 + key.epoch * 7 + key.sample) % 1009 if train else -1

    def apply(self, batch: Batch, *, train: bool) -> Batch:
        return batch.with_(extra={"applied": train})
