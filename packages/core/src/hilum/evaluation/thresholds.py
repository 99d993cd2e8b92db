"""Operating points: a threshold is chosen on validation predictions and remembers that it was."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hilum.core.errors import HilumError
from hilum.core.types import Metric
from hilum.evaluation.intervals import Weighted, bootstrap_groups, proportion
from hilum.evaluation.metrics import Array, Confusion, NotComputable, confusion, known

_TARGET = re.compile(r"(sensitivity|specificity)\s*>=\s*(0?\.\d+|0|1(?:\.0*)?)")


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold (score >= it is called positive) with where and how it was chosen.

    ``sensitivity`` and ``specificity`` are those on the validation rows it was chosen on: descriptive, not a result.
    """

    finding: str
    threshold: float
    rule: str
    split: str
    n: int
    n_groups: int
    sensitivity: float
    specificity: float

    @property
    def source(self) -> str:
        return f"{self.rule} on {self.split} ({self.n:,} rows, {self.n_groups:,} groups)"

    def check(self, *, evaluated: str) -> None:
        """Raises where the threshold was not chosen on validation data, or is asked for on another finding's terms."""
        if not is_validation(self.split):
            raise HilumError(
                f"the threshold of {self.finding!r} was chosen on {self.split!r}: {evaluated!r} is not judged by it",
                fix="choose it on validation predictions: hilum evaluate RUN --split val, then --split test",
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> OperatingPoint:
        return OperatingPoint(**values)


def is_validation(split: str) -> bool:
    """True for ``val`` and its folds (``val/0``), nothing else."""
    return split == "val" or split.startswith("val/")


def choose_threshold(
    targets: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    *,
    split: str,
    rule: str = "youden",
    finding: str = "",
) -> OperatingPoint:
    """The operating point of one finding, from VALIDATION predictions.

    ``rule``: ``youden`` (largest sensitivity + specificity - 1), ``sensitivity>=x`` (highest threshold that reaches
    it), ``specificity>=x`` (lowest that does). The threshold lies halfway to the next distinct score below, so that
    rounding moves no row across it. Raises :class:`HilumError` for a split other than validation or an
    unknown rule, :class:`NotComputable` for < 5 positive or negative groups.
    """
    if not is_validation(split):
        raise HilumError(
            f"a threshold may be chosen on validation predictions only, not on {split!r}",
            where=finding,
            fix="a threshold fitted to the rows it is judged on flatters sensitivity and specificity: pass split='val'",
        )
    y, s, rows = known(targets, scores, where=finding)
    draws = bootstrap_groups(np.asarray(groups))
    counts = Weighted(targets, scores, draws.codes, draws.size)
    if counts.refusal:
        raise NotComputable(f"no threshold: {counts.refusal} on {split}", where=finding)
    distinct, block = np.unique(s, return_inverse=True)
    tp = np.cumsum(np.bincount(block, y)[::-1])[::-1]
    fp = np.cumsum(np.bincount(block, ~y)[::-1])[::-1]
    # the last candidate calls nothing positive
    sensitivity, specificity = np.r_[tp / y.sum(), 0.0], np.r_[1 - fp / (~y).sum(), 1.0]
    at = _pick(rule, sensitivity, specificity)
    levels = np.r_[distinct, np.nextafter(distinct[-1], np.inf)]
    threshold = float(levels[at] if at in (0, len(distinct)) else (levels[at - 1] + levels[at]) / 2)
    if threshold <= levels[max(at - 1, 0)] and at:  # two neighbouring floats have no middle
        threshold = float(levels[at])
    return OperatingPoint(
        finding, threshold, rule, split, len(rows), counts.n_groups, float(sensitivity[at]), float(specificity[at])
    )


def _pick(rule: str, sensitivity: Array, specificity: Array) -> int:
    if rule == "youden":
        index = sensitivity + specificity
        return int(np.flatnonzero(index >= index.max() - 1e-12)[-1])
    match = _TARGET.fullmatch(rule)
    if match is None:
        raise HilumError(f"unknown threshold rule {rule!r}", fix="youden, sensitivity>=0.9 or specificity>=0.95")
    wanted = float(match[2]) - 1e-12
    if match[1] == "sensitivity":
        return int(np.flatnonzero(sensitivity >= wanted)[-1])
    return int(np.flatnonzero(specificity >= wanted)[0])


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """What one operating point gives on the evaluated rows: rates with group-aware Wilson intervals, and the counts."""

    counts: Confusion
    sensitivity: Metric
    specificity: Metric
    ppv: Metric
    npv: Metric


def at_threshold(
    point: OperatingPoint, targets: ArrayLike, scores: ArrayLike, groups: Sequence[Any] | NDArray[Any], *, split: str
) -> AtThreshold:
    """Sensitivity, specificity and predictive values of ``point`` on ``split``; refuses a point not from validation."""
    point.check(evaluated=split)
    y, s, rows = known(targets, scores, where=point.finding)
    g, called = np.asarray(groups)[rows], s >= point.threshold
    return AtThreshold(
        confusion(targets, scores, point.threshold),
        sensitivity=proportion(called[y], g[y]),
        specificity=proportion(~called[~y], g[~y]),
        ppv=proportion(y[called], g[called]),
        npv=proportion(~y[~called], g[~called]),
    )
