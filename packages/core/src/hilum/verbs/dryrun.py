"""``--dry-run``: the largest images through one training and one validation step, before a night is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from hilum.core.fit import fit
from hilum.core.loop import Hook, Loop, peak_memory_mib
from hilum.core.recipe import Recipe
from hilum.core.types import BadSample, Batch, Request, SampleKey
from hilum.data.collate import collate
from hilum.verbs.hooks import Validation, duration
from hilum.verbs.run_data import REHEARSED, Data, largest_rows


def largest(data: Data, split: str, n: int) -> Batch:
    """A batch of the ``n`` images of a split with most pixels, as they lie in the cache."""
    source = data.sources[split]
    samples: list[Any] = []
    for row in largest_rows(data.study, source.rows, n).tolist():
        sample_id = source.sample_id(row)
        try:
            samples.append(source[Request(row, SampleKey.of(0, 0, sample_id))])
        except Exception as error:
            samples.append(BadSample(sample_id, type(error).__name__))
    return collate(samples)


class Repeated:
    """The same step ``times`` times (an iterable of its own: a bare list would be read as several loaders)."""

    def __init__(self, step: list[Batch], times: int) -> None:
        self.step, self.times = step, times

    def __iter__(self) -> Iterator[list[Batch]]:
        return iter([self.step] * self.times)

    def __len__(self) -> int:
        return self.times


class Largest:
    """A feed whose only batch holds the largest training images."""

    steps_per_epoch = 3

    def __init__(self, feed: Any, batch: Batch) -> None:
        self.feed, self.batch = feed, batch

    def train_loader(self, epoch: int, *, start_step: int, rank: int, world: int, accumulate: int) -> Repeated:
        return Repeated([self.batch] * accumulate, self.steps_per_epoch)

    def augment(self, batch: Any, *, train: bool) -> Any:
        return self.feed.augment(batch, train=train)

    def account(self, delivered: int, bad: Any, *, epoch: int) -> None: ...

    def check_account(self, *, epoch: int, final: bool) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class Times(Hook):
    """When each step ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step(self, loop: Loop, logs: Any) -> None:
        self.at.append(time.perf_counter())


class TimedValidation(Validation):
    """Validation that knows how long it took."""

    seconds = 0.0

    def on_epoch_end(self, loop: Loop) -> Mapping[str, float] | None:
        began = time.perf_counter()
        numbers = super().on_epoch_end(loop)
        self.seconds = time.perf_counter() - began
        return numbers


def rehearse(loop: Loop, data: Data, recipe: Recipe) -> None:
    """Print peak memory and the projected time of the run; the study is not written to."""
    steps, times = loop.settings.total_steps, Times()
    n = min(int(recipe["batch"]["per_device"]), REHEARSED)
    batch, judged = largest(data, "train", n), largest(data, "val", n)
    loop.feed = Largest(loop.feed, batch)
    loop.settings.total_steps, loop.settings.log_every = Largest.steps_per_epoch, 1
    validation = TimedValidation(lambda: [judged])
    loop.hooks = [times, validation]
    fit(loop, precision=recipe["precision"])
    per_step = times.at[-1] - times.at[-2]
    losses = {
        k: v
        for k, v in loop.history[-1].items()
        if k.startswith("train/") and k not in ("train/lr", "train/gradient_norm")
    }
    epochs = recipe["schedule"]["epochs"]
    passes = math.ceil(epochs / recipe["engine"]["validate_epochs"])
    parts = {
        f"{steps} steps ({epochs} epochs)": per_step * steps,
        f"{passes} validations": validation.seconds / max(judged.size, 1) * len(data.rows["val"]) * passes,
    }
    if data.rehearsal is not None:
        parts[f"reading {data.rehearsal.missing} images once"] = (
            data.rehearsal.seconds_per_image * data.rehearsal.missing
        )
        data.rehearsal.folder.cleanup()
    print(f"largest batch:   {batch.size} images, {loop.settings.accumulate} micro-batches a step")
    print(f"training step:   {1000 * per_step:.0f} ms, " + ", ".join(f"{k} {v:.4f}" for k, v in losses.items()))
    print(f"validation step: loss {validation.last.get('val/loss', float('nan')):.4f}")
    print(f"peak memory:     {peak_memory_mib():.0f} MiB")
    print(
        f"projected time:  {duration(sum(parts.values()))}: "
        + ", ".join(f"{k} {duration(v)}" for k, v in parts.items())
    )
    print("left out:        waiting for data, probes, checkpoints, exports")
