"""Toy objectives of the seam tests that also run on two ranks (imported by the launched processes)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import ToyFeed, make_loop

from hilum.core.fit import fit
from hilum.core.objective import Objective, Take
from hilum.core.types import Batch, Meta, StepOutput, Term
from hilum.parts.predictors import TransformerBlock

VOCABULARY, LENGTH, ROWS = 11, 6, 14


class NextToken(Objective):
    """Causal cross-entropy, every token with a weight of its own (fractions allowed)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.block = nn.Embedding(VOCABULARY, 8), TransformerBlock(8, 2)
        self.out = nn.Linear(8, VOCABULARY)
        self.double()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"next_token": batch.valid["weight"][:, 1:].sum()}

    def logits(self, ids_BS: Tensor) -> Tensor:
        causal = torch.ones(ids_BS.shape[1], ids_BS.shape[1], dtype=torch.bool).tril()
        return self.out(self.block(self.embed(ids_BS), mask=causal))

    def forward(self, batch: Batch) -> StepOutput:
        ids, weight = batch.views["text"], batch.valid["weight"][:, 1:]
        nll = F.cross_entropy(self.logits(ids[:, :-1]).transpose(1, 2), ids[:, 1:], reduction="none")
        return StepOutput({"next_token": Term((nll * weight).sum(), weight.sum())})


def corpus() -> tuple[Tensor, Tensor]:
    """Token ids and weights; some rows together weigh less than one token, one row nothing at all."""
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=g)
    weight = torch.rand(ROWS, LENGTH, generator=g, dtype=torch.float64) ** 3
    weight[::3] *= 0.01
    weight[4] = 0
    return ids, weight


@dataclass
class TextFeed(ToyFeed):
    """All rows of the corpus in one global step."""

    batch: int = ROWS

    def collate(self, rows: Tensor) -> Batch:
        ids, weight = corpus()
        meta = [Meta(f"{r:08x}", f"group{r}") for r in rows.tolist()]
        return Batch({"text": ids[rows]}, valid={"weight": weight[rows]}, meta=meta)


def gradient(*, folder: Path, strategy: str, accumulate: int) -> Tensor:
    """The gradient that the loop's first step used, through the weights it made (plain SGD, rate 1)."""
    objective = NextToken()
    before = torch.cat([p.detach().reshape(-1).clone() for p in objective.parameters()])
    plain = lambda m: {"main": torch.optim.SGD(m.parameters(), lr=1.0)}
    feed = TextFeed(corpus())  # type: ignore[arg-type]
    loop = make_loop(objective, feed, optimisers=plain, accumulate=accumulate, total_steps=1, total_epochs=1)
    fit(loop, devices=2 if strategy == "ddp" else 1, strategy=strategy, accelerator="cpu")
    return before - torch.cat([p.detach().reshape(-1) for p in objective.parameters()])


RATE = 0.25


class Reweighting(Objective):
    """Bilevel: how much the noisy rows count is learned from the side stream through one look-ahead step.

    Inner loss s(a) (w - noisy)^2, outer loss (w' - clean)^2 with w' = w - rate d inner / d w.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.outer = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def loss(self, at: Tensor, y: Tensor, weight: Tensor) -> Term:
        return Term((weight * (at - y) ** 2).sum(), torch.tensor(float(len(y))))

    def forward(self, batch: Batch) -> StepOutput:
        return StepOutput({"inner": self.loss(self.inner, batch.targets["y"], self.outer.sigmoid())})

    def step(self, batch: Batch, take: Take) -> None:
        inner = self.forward(batch).terms["inner"].mean
        (slope,) = torch.autograd.grad(inner, self.inner, create_graph=True)
        ahead = self.inner - RATE * slope
        clean = batch.streams["clean"].targets["y"]
        take(StepOutput({"outer": self.loss(ahead, clean, torch.ones(()))}), "outer")
        take(self.forward(batch), "inner")


@dataclass
class TwoStreams(ToyFeed):
    """Noisy targets with a side stream of clean ones."""

    def collate(self, rows: Tensor) -> Batch:
        batch = ToyFeed.collate(self, rows)
        return batch.with_(streams={"clean": batch.with_(targets={"y": batch.targets["y"] ** 2 + 1})})


def bilevel(*, folder: Path, strategy: str, steps: int = 3) -> dict[str, Any]:
    objective, g = Reweighting(), torch.Generator().manual_seed(5)
    y = torch.randn(24, generator=g, dtype=torch.float64)
    feed = TwoStreams((y[:, None].repeat(1, 4), y, torch.ones_like(y)))
    optimisers = lambda m: {n: torch.optim.SGD([getattr(m, n)], lr=RATE) for n in ("inner", "outer")}
    loop = make_loop(objective, feed, optimisers=optimisers, total_steps=steps, total_epochs=1)
    fit(loop, devices=2 if strategy == "ddp" else 1, strategy=strategy, accelerator="cpu")
    batches = [parts[0] for parts in feed.train_loader(0, start_step=0, rank=0, world=1, accumulate=1)]
    means = [[b.targets["y"].mean(), b.streams["clean"].targets["y"].mean()] for b in batches[:steps]]
    return {
        "inner": objective.inner.detach(),
        "outer": objective.outer.detach(),
        "means": torch.tensor(means, dtype=torch.float64),
        "logged": sorted(k for k in loop.history[0] if k in ("train/inner", "train/outer")),
    }


class Alternating(Objective):
    """Two players: the follower moves towards the data first, then the leader away from where the follower now is."""

    def __init__(self) -> None:
        super().__init__()
        self.follower = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.leader = nn.Parameter(torch.tensor(-0.3, dtype=torch.float64))

    def forward(self, batch: Batch) -> StepOutput:
        gap = (self.follower - batch.targets["y"]) ** 2 * batch.valid["y"]
        return StepOutput({"follower": Term(gap.sum(), batch.valid["y"].sum())})

    def step(self, batch: Batch, take: Take) -> None:
        take(self.forward(batch), "follower")
        gap = self.leader * (self.follower - batch.targets["y"]) * batch.valid["y"]
        take(StepOutput({"leader": Term(gap.sum(), batch.valid["y"].sum())}), "leader")


def players(*, folder: Path, strategy: str) -> Tensor:
    """(follower, leader) after three steps over rows of which rank 1 has fewer observed ones."""
    objective, y = Alternating(), torch.arange(24, dtype=torch.float64) / 7
    feed = ToyFeed((y[:, None].repeat(1, 4), y.sin(), (y % 0.5 > 0.2).double()))
    optimisers = lambda m: {n: torch.optim.SGD([getattr(m, n)], lr=RATE) for n in ("follower", "leader")}
    loop = make_loop(objective, feed, optimisers=optimisers, total_steps=3, total_epochs=1)
    fit(loop, devices=2 if strategy == "ddp" else 1, strategy=strategy, accelerator="cpu")
    return torch.stack([objective.follower.detach(), objective.leader.detach()])
