"""``--dry-run``: the largest images through one training and one validation step, before a night is spent."""

from __future__ import annotations

import time
from typing import Any

from hilum.core.fit import fit
from hilum.core.loop import Hook, Loop, peak_memory_mib
from hilum.core.recipe import Recipe
from hilum.verbs.hooks import duration


class Largest:
    """A feed whose only step holds the largest training images."""

    steps_per_epoch = 3

    def __init__(self, feed: Any, module: Any, per_device: int) -> None:
        self.feed, self.module = feed, module
        self.batch = module.largest("train", per_device)

    def train_loader(self, epoch: int, *, start_step: int, rank: int, world: int, accumulate: int) -> list[list[Any]]:
        return [[self.batch] * accumulate for _ in range(self.steps_per_epoch)]

    def augment(self, batch: Any, *, train: bool) -> Any:
        return self.feed.augment(batch, train=train)

    def account(self, delivered: int, bad: Any, *, epoch: int) -> None: ...

    def check_account(self, *, epoch: int, final: bool) -> None: ...


class Times(Hook):
    """When each step ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step(self, loop: Loop, logs: Any) -> None:
        self.at.append(time.perf_counter())


def rehearse(loop: Loop, module: Any, recipe: Recipe) -> None:
    """Print peak memory and the projected time of the run; nothing is written."""
    from hilum.verbs.hooks import Validation

    steps, feed, times = loop.settings.total_steps, loop.feed, Times()
    loop.feed = Largest(feed, module, int(recipe["batch"]["per_device"]))
    loop.settings.total_steps, loop.settings.log_every = loop.feed.steps_per_epoch, 1
    validation = Validation(lambda: [module.largest("val", int(recipe["batch"]["per_device"]))])
    loop.hooks = [times, validation]
    fit(loop, precision=recipe["precision"])
    per_step = times.at[-1] - times.at[-2] if len(times.at) > 1 else float("nan")
    print(f"largest batch:   {tuple(loop.feed.batch.views['image'].grid.max(0).values.tolist())} pixels, {loop.feed.batch.size} images, {loop.settings.accumulate} micro-batches a step")
    print(f"training step:   {1000 * per_step:.0f} ms, loss {loop.history[-1].get('train/loss', float('nan')):.4f}")
    print(f"validation step: loss {validation.last.get('val/loss', float('nan')):.4f}")
    print(f"peak memory:     {peak_memory_mib():.0f} MiB")
    print(f"projected time:  {duration(per_step * steps)} for {steps} steps ({recipe['schedule']['epochs']} epochs)")
