"""Numbers that change over a run: learning rate, momentum of a teacher, loss weights.

Sources: arXiv 2210.12843 (linear warm-up, then half a cosine, updated every step); Grill et al. 2020 (BYOL) section 3.3 for a
cosine momentum.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from hilum.core.errors import HilumError, nearest
from hilum.core.types import Progress


@dataclass(frozen=True, slots=True)
class Schedule:
    """A function of time. ``unit`` says what :meth:`at` feeds it: the run's fraction in [0, 1], or optimiser steps."""

    function: Callable[[float], float]
    unit: Literal["fraction", "step"] = "fraction"

    def __call__(self, t: float) -> float:
        return self.function(t)

    def at(self, progress: Progress) -> float:
        return self.function(progress.fraction if self.unit == "fraction" else progress.step)


def constant(value: float) -> Schedule:
    """The same at all times."""
    return Schedule(partial(_constant, value))


def cosine(start: float, end: float) -> Schedule:
    """Half a cosine from ``start`` at fraction 0 to ``end`` at fraction 1, then ``end``."""
    return Schedule(partial(_cosine, start, end))


def step(milestones: Sequence[float], *, gamma: float = 0.1, base: float = 1.0) -> Schedule:
    """``base * gamma**k`` once k of the milestones (optimiser steps) are reached."""
    return Schedule(partial(_step, sorted(milestones), gamma, base), "step")


def warmup_cosine(total: float, warmup: float, base: float = 1.0, floor: float = 0.0) -> Schedule:
    """arXiv 2210.12843: base t / warmup, then floor + (base - floor) (1 + cos(pi (t - warmup) / (total - warmup))) / 2.

    ``total`` and ``warmup`` share the unit of t (optimiser steps for :meth:`Schedule.at`). Beyond ``total`` it stays at
    ``floor``.
    """
    if not 0 <= warmup <= total:
        raise HilumError(
            f"a warm-up of {warmup:g} does not fit a run of {total:g}",
            where="schedule",
            fix="lower schedule.warmup_epochs or raise schedule.epochs",
        )
    return Schedule(partial(_warmup_cosine, total, warmup, base, floor), "step")


def build_schedule(
    config: Mapping[str, Any], *, steps_per_epoch: int, total_steps: int, base_lr: float | None = None
) -> Callable[[int], float]:
    """A recipe's ``schedule`` section as a multiplier of the base learning rate at each optimiser step.

    Reads ``name`` (cosine | constant | step), ``warmup_epochs``, ``min_lr`` (absolute, so it needs ``base_lr``),
    ``milestones`` (epochs) and ``factor``. ``epochs`` is the caller's: it made ``total_steps`` of it. Warm-up is linear
    from 0 for every name.
    """
    name, warmup = config.get("name", "cosine"), float(config.get("warmup_epochs", 0)) * steps_per_epoch
    min_lr = float(config.get("min_lr", 0.0))
    if name not in ("cosine", "constant", "step"):
        known = ("cosine", "constant", "step")
        raise HilumError(
            f"unknown schedule {name!r}", where="schedule.name", fix=nearest(name, known) or f"one of {known}"
        )
    if min_lr and not base_lr:
        raise HilumError("min_lr is absolute and needs the base learning rate", where="schedule.min_lr")
    rise = warmup_cosine(total_steps, warmup, floor=min_lr / base_lr if base_lr else 0.0)  # checks the warm-up
    if name == "cosine":
        return rise
    after = constant(1.0)
    if name == "step":
        after = step(
            [m * steps_per_epoch for m in config.get("milestones", ())], gamma=float(config.get("factor", 0.1))
        )
    return Schedule(partial(_warmup_then, warmup, after), "step")


def _constant(value: float, t: float) -> float:
    return value


def _cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(max(t, 0.0), 1.0)))


def _step(milestones: Sequence[float], gamma: float, base: float, t: float) -> float:
    return base * gamma ** bisect.bisect_right(milestones, t)


def _warmup_cosine(total: float, warmup: float, base: float, floor: float, t: float) -> float:
    if t < warmup:
        return base * t / warmup
    if t >= total:
        return floor if total > warmup else base
    return floor + (base - floor) * 0.5 * (1.0 + math.cos(math.pi * (t - warmup) / (total - warmup)))


def _warmup_then(warmup: float, after: Schedule, t: float) -> float:
    return after(t) * (t / warmup if t < warmup else 1.0)
