"""Small objectives and feeds that tests train in milliseconds. Written with the public contracts only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hilum.core.errors import TooManyBadSamples
from hilum.core.loop import Loop, LoopSettings
from hilum.core.objective import Objective
from hilum.core.types import BadSample, Batch, Meta, StepOutput, Term


class Regression(Objective):
    """Masked least squares: sum over observed entries, so that counts differ between micro-batches and ranks."""

    def __init__(self, width: int = 4, *, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)).to(dtype)
        self.moves = 0

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": batch.valid["y"].sum()}

    def forward(self, batch: Batch) -> StepOutput:
        error = (self.net(batch.views["x"]).squeeze(-1) - batch.targets["y"]) ** 2
        valid = batch.valid["y"]
        return StepOutput({"loss": Term((error * valid).sum(), valid.sum())})

    def after_step(self, progress: object, outputs: object) -> None:
        self.moves += 1


def rows(n: int, width: int = 4, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and an uneven mask of observed targets."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=g, dtype=torch.float64)
    return x, x.sum(1).sin(), (torch.rand(n, generator=g) > 0.4).double()


@dataclass
class ToyFeed:
    """Global steps of ``batch`` rows; step s of epoch e takes a fixed permutation's rows."""

    data: tuple[Tensor, Tensor, Tensor]
    batch: int = 8
    seed: int = 0
    bad: dict[int, BadSample] = field(default_factory=dict)  # row -> failure
    max_bad: float = 0.5
    delivered: int = 0
    failures: list[BadSample] = field(default_factory=list)
    served: list[tuple[int, list[int]]] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.data[0]) // self.batch

    def train_loader(
        self, epoch: int, *, start_step: int, rank: int, world: int, accumulate: int
    ) -> Iterable[list[Batch]]:
        order = torch.randperm(len(self.data[0]), generator=torch.Generator().manual_seed(self.seed + epoch))
        steps = []
        for step in range(start_step, self.steps_per_epoch):
            mine = order[step * self.batch : (step + 1) * self.batch][rank::world]
            steps.append([self.collate(part) for part in mine.tensor_split(accumulate)])
            self.served.append((epoch, mine.tolist()))
        return _Steps(steps)

    def collate(self, rows: Tensor) -> Batch:
        good = torch.tensor([r for r in rows.tolist() if r not in self.bad], dtype=torch.long)
        x, y, valid = (t[good] for t in self.data)
        meta = [Meta(f"{r:08x}", f"group{r}") for r in good.tolist()]
        lost = [self.bad[r] for r in rows.tolist() if r in self.bad]
        return Batch({"x": x}, {"y": y}, {"y": valid}, meta=meta, bad=lost)

    def augment(self, batch: Batch, *, train: bool) -> Batch:
        return batch

    def account(self, delivered: int, bad: Sequence[BadSample], *, epoch: int) -> None:
        self.delivered += delivered
        self.failures += bad

    def check_account(self, *, epoch: int, final: bool) -> None:
        if len(self.failures) > self.max_bad * len(self.data[0]):
            raise TooManyBadSamples(f"{len(self.failures)} samples failed")

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: object) -> None: ...


class _Steps(torch.utils.data.IterableDataset):  # type: ignore[misc]
    """An iterable with a length, as Lightning wants it."""

    def __init__(self, steps: list[list[Batch]]) -> None:
        self.steps = steps

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def sgd(lr: float = 0.1, momentum: float = 0.9):  # type: ignore[no-untyped-def]
    return lambda m: {"main": torch.optim.SGD(m.parameters(), lr=lr, momentum=momentum)}


def settings(**changes: object) -> LoopSettings:
    base = {"optimisers": sgd(), "schedule": lambda step: 1.0, "total_steps": 12, "total_epochs": 3, "log_every": 1}
    return LoopSettings(**{**base, **changes})  # type: ignore[arg-type]


def make_loop(objective: Objective | None = None, feed: ToyFeed | None = None, **changes: object) -> Loop:
    folder, hooks = changes.pop("folder", None), changes.pop("hooks", ())
    return Loop(
        objective or Regression(),
        feed or ToyFeed(rows(32)),
        settings(**changes),
        folder=folder,
        hooks=hooks,  # type: ignore[arg-type]
    )
