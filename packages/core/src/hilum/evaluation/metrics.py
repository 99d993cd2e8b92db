"""Binary metrics on one finding: closed formulas on numpy arrays, ties handled, refusals instead of wrong numbers.

Everywhere ``targets`` (N,) holds 1, 0, and -1 or NaN for *unknown* (masked); ``scores`` (N,) may be any finite
ranking for AUROC and AUPRC and must be probabilities for Brier, ECE and reliability. A NaN score is an error, a set
with one class only is :class:`NotComputable`: neither ever becomes a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hilum.core.errors import HilumError

Array = NDArray[np.float64]
Scheme = Literal["mass", "width"]


class NotComputable(HilumError):
    """A metric is not defined on these rows; ``what`` is the reason to print in its place."""


def known(
    targets: ArrayLike, scores: ArrayLike, *, where: str = ""
) -> tuple[NDArray[np.bool_], Array, NDArray[np.intp]]:
    """Rows with a known target: (is positive (n,), score (n,), their positions (n,) in the input).

    Raises :class:`HilumError` for shapes that differ, targets other than 1, 0, -1, NaN, or NaN scores on any row
    (known or not: a model that gives NaN is broken).
    """
    y, s = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise HilumError(f"targets {y.shape} and scores {s.shape} must be two vectors of equal length", where=where)
    bad = np.flatnonzero(np.isnan(s))
    if len(bad):
        raise HilumError(
            f"{len(bad)} of {len(s)} scores are NaN (first at row {bad[0]})",
            where=where,
            fix="a model that returns NaN has diverged or was fed NaN pixels; nothing is computed from such scores",
        )
    rows = np.flatnonzero((y == 0) | (y == 1))
    odd = y[~(np.isnan(y) | (y == -1) | (y == 0) | (y == 1))]
    if len(odd):
        raise HilumError(
            f"targets must be 1, 0, or -1 or NaN for unknown, not {odd[0]:g}",
            where=where,
            fix="convert grades to 0/1 first",
        )
    return y[rows] == 1, s[rows], rows


def both_classes(y: NDArray[np.bool_]) -> None:
    """Raises :class:`NotComputable` where positives or negatives are absent."""
    if not len(y):
        raise NotComputable("no row has a known label")
    if y.all() or not y.any():
        raise NotComputable(f"only {'positive' if y.all() else 'negative'} rows ({len(y)}): both classes are needed")


def probabilities(s: Array) -> Array:
    """``s`` unchanged; raises where a value lies outside [0, 1] (never guesses that logits were meant)."""
    outside = int(((s < 0) | (s > 1)).sum())
    if outside:
        raise HilumError(
            f"{outside} of {len(s)} scores lie outside [0, 1] (from {s.min():g} to {s.max():g})",
            fix="Brier and calibration need probabilities: apply the sigmoid or softmax first",
        )
    return s


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve from the highest threshold down. ROC: x = 1 - specificity, y = sensitivity; precision-recall:
    x = recall, y = precision. ``thresholds[i]``: rows with score >= it are called positive."""

    x: Array
    y: Array
    thresholds: Array


def _cumulated(y: NDArray[np.bool_], s: Array, weights: ArrayLike | None) -> tuple[Array, Array, Array]:
    """Distinct scores in falling order with cumulated true and false positive weight at each."""
    w = np.ones(len(s)) if weights is None else np.asarray(weights, dtype=np.float64)
    distinct, block = np.unique(-s, return_inverse=True)
    tp: Array = np.cumsum(np.bincount(block, w * y, minlength=len(distinct)))
    fp: Array = np.cumsum(np.bincount(block, w * ~y, minlength=len(distinct)))
    if not len(distinct) or tp[-1] <= 0 or fp[-1] <= 0:
        both_classes(y)
        raise NotComputable("one class has no weight")
    return -distinct, tp, fp


def _known_weights(weights: ArrayLike | None, rows: NDArray[np.intp]) -> Array | None:
    return None if weights is None else np.asarray(weights, dtype=np.float64)[rows]


def auroc(targets: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """P(score of a positive > score of a negative) + half of P(equal): the Mann-Whitney statistic with midranks."""
    y, s, rows = known(targets, scores)
    _, tp, fp = _cumulated(y, s, _known_weights(weights, rows))
    positives = np.diff(tp, prepend=0.0)
    return float(positives @ (fp[-1] - fp + np.diff(fp, prepend=0.0) / 2) / (tp[-1] * fp[-1]))


def auprc(targets: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Average precision: sum over distinct thresholds of (recall step) x precision, without interpolation."""
    y, s, rows = known(targets, scores)
    _, tp, fp = _cumulated(y, s, _known_weights(weights, rows))
    return float(np.diff(tp, prepend=0.0) @ (tp / np.maximum(tp + fp, np.finfo(float).tiny)) / tp[-1])


def brier(targets: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Mean squared difference of probability and outcome: 0 perfect, prevalence x (1 - prevalence) for a constant."""
    y, s, rows = known(targets, scores)
    if not len(y):
        raise NotComputable("no row has a known label")
    return float(np.average((probabilities(s) - y) ** 2, weights=_known_weights(weights, rows)))


def roc_curve(targets: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> Curve:
    """The ROC curve from (0, 0) to (1, 1); points inside a straight stretch are left out."""
    y, s, rows = known(targets, scores)
    thresholds, tp, fp = _cumulated(y, s, _known_weights(weights, rows))
    keep = np.ones(len(tp), dtype=bool)
    step_tp, step_fp = np.diff(tp, prepend=0.0), np.diff(fp, prepend=0.0)
    keep[:-1] = step_tp[:-1] * step_fp[1:] != step_tp[1:] * step_fp[:-1]
    return Curve(
        np.r_[0.0, fp[keep] / fp[-1]],
        np.r_[0.0, tp[keep] / tp[-1]],
        np.r_[np.nextafter(s.max(), np.inf), thresholds[keep]],
    )


def pr_curve(targets: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> Curve:
    """Precision against recall at every distinct threshold from the first that finds a positive; recall 0 has the
    precision of that one."""
    y, s, rows = known(targets, scores)
    thresholds, tp, fp = _cumulated(y, s, _known_weights(weights, rows))
    precision = tp / np.maximum(tp + fp, np.finfo(float).tiny)
    first = int(np.argmax(tp > 0))
    tp, precision, thresholds = tp[first:], precision[first:], thresholds[first:]
    above = np.nextafter(thresholds[0], np.inf)
    return Curve(np.r_[0.0, tp / tp[-1]], np.r_[precision[0], precision], np.r_[above, thresholds])


@dataclass(frozen=True, slots=True)
class Reliability:
    """Non-empty bins of predicted probability: mean ``score``, observed ``rate``, ``count``; ``bin_of`` the known rows
    (positions ``rows`` of the input)."""

    score: Array
    rate: Array
    count: NDArray[np.int64]
    bin_of: NDArray[np.intp]
    rows: NDArray[np.intp]


def reliability(targets: ArrayLike, scores: ArrayLike, *, bins: int = 10, scheme: Scheme = "mass") -> Reliability:
    """Bins of equal mass (by midrank, so equal scores share a bin) or of equal width on [0, 1]."""
    y, s, rows = known(targets, scores)
    if not len(y):
        raise NotComputable("no row has a known label")
    if scheme == "mass":
        _, block, size = np.unique(probabilities(s), return_inverse=True, return_counts=True)
        middle = (np.cumsum(size) - size / 2)[block] / len(s)
    else:
        middle = probabilities(s)
    _, bin_of = np.unique(np.minimum((middle * bins).astype(np.int64), bins - 1), return_inverse=True)
    count = np.bincount(bin_of)
    return Reliability(np.bincount(bin_of, s) / count, np.bincount(bin_of, y) / count, count, bin_of, rows)


def ece(targets: ArrayLike, scores: ArrayLike, *, bins: int = 10, scheme: Scheme = "mass") -> float:
    """Expected calibration error: mean |observed rate - mean score| over bins, weighted by their rows."""
    r = reliability(targets, scores, bins=bins, scheme=scheme)
    return float(np.abs(r.rate - r.score) @ r.count / r.count.sum())


def calibration_line(targets: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """(slope, intercept) of the logistic regression of the outcome on logit(score): (1, 0) is perfect, a slope below 1
    means over-confident scores (Cox 1958). Raises :class:`NotComputable` where scores separate the classes."""
    y, s, _ = known(targets, scores)
    both_classes(y)
    p = np.clip(probabilities(s), 1e-7, 1 - 1e-7)
    x = np.stack([np.log(p / (1 - p)), np.ones(len(p))], 1)
    beta = np.array([1.0, 0.0])
    for _ in range(100):
        q = 1 / (1 + np.exp(-np.clip(x @ beta, -500, 500)))
        hessian = (x * (q * (1 - q))[:, None]).T @ x
        if np.linalg.cond(hessian) > 1e12:
            break
        step = np.linalg.solve(hessian, x.T @ (y - q))
        # half steps keep Newton from overshooting where scores are nearly saturated
        beta = beta + step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < 1e-10:
            return float(beta[0]), float(beta[1])
    raise NotComputable("scores separate the classes or hardly vary: no calibration line")


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts at one threshold. A rate whose denominator is 0 is None."""

    tp: int
    fp: int
    fn: int
    tn: int

    @staticmethod
    def _rate(part: int, rest: int) -> float | None:
        return part / (part + rest) if part + rest else None

    @property
    def sensitivity(self) -> float | None:
        return self._rate(self.tp, self.fn)

    @property
    def specificity(self) -> float | None:
        return self._rate(self.tn, self.fp)

    @property
    def ppv(self) -> float | None:
        return self._rate(self.tp, self.fp)

    @property
    def npv(self) -> float | None:
        return self._rate(self.tn, self.fn)


def confusion(targets: ArrayLike, scores: ArrayLike, threshold: float) -> Confusion:
    """Counts when rows with score >= ``threshold`` are called positive; unknown targets count nowhere."""
    y, s, _ = known(targets, scores)
    called = s >= threshold
    return Confusion(
        int((y & called).sum()), int((~y & called).sum()), int((y & ~called).sum()), int((~y & ~called).sum())
    )


def ppv_at_prevalence(sensitivity: float, specificity: float, prevalence: float) -> float:
    """Bayes: what a positive call is worth where the finding is as common as ``prevalence``."""
    hit, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    if hit + false == 0:
        raise NotComputable("nothing would be called positive")
    return hit / (hit + false)
