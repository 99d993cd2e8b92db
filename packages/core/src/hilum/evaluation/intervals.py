"""95 % intervals that respect groups: several images of one patient are one draw, not several.

The bootstrap resamples GROUPS. A resample is never materialised: it is a weight per group, and each finding is
compressed once to sparse counts per distinct positive score, so 1,000 weightings are one sparse product. Redraw ``k``
is a pure function of (seed, k, attempt): every finding and every model sees the same index lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hilum.core.errors import HilumError
from hilum.core.types import Metric
from hilum.evaluation.metrics import Array, known, probabilities

MIN_GROUPS = 5
"""Fewer positive (or negative) groups than this give no number."""

METRICS = ("auroc", "auprc", "brier")


@dataclass(frozen=True)
class Resamples:
    """``n`` redraws with replacement of ``size`` groups; ``codes`` (N,) is each row's group number."""

    codes: NDArray[np.intp]
    size: int
    n: int = 1000
    seed: int = 0

    def weights(self, redraws: ArrayLike, *, attempt: int = 0) -> Array:
        """(size, R): how often each group is drawn in each of the redraws asked for."""
        out = np.empty((self.size, len(np.atleast_1d(redraws))))
        for column, k in enumerate(np.atleast_1d(redraws)):
            # raw words of Philox: the stream is fixed by its definition, not by a numpy version
            raw = np.random.Philox(key=[self.seed, attempt], counter=[0, 0, 0, int(k)]).random_raw(self.size)
            drawn = ((raw >> np.uint64(11)) * (2.0**-53 * self.size)).astype(np.intp)
            out[:, column] = np.bincount(drawn, minlength=self.size)
        return out

    def chunks(self, width: int) -> Iterator[NDArray[np.intp]]:
        step = int(np.clip(4_000_000 // max(width, self.size, 1), 8, 250))
        for start in range(0, self.n, step):
            yield np.arange(start, min(start + step, self.n))


def bootstrap_groups(groups: Sequence[Any] | NDArray[Any], *, n: int = 1000, seed: int = 0) -> Resamples:
    """Redraws of the distinct values of ``groups`` (N,), one entry a row."""
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    return Resamples(codes.astype(np.intp), len(names), n, seed)


class Weighted:
    """One finding's rows, compressed so that a matrix of group weights (G, R) gives R values of each metric.

    Only the K distinct scores of positives matter. Sums per level of its positives, of the negatives from it up to the
    level above, and of those that tie with it are all that AUROC and AUPRC need.
    """

    def __init__(self, targets: ArrayLike, scores: ArrayLike, codes: NDArray[np.intp], size: int) -> None:
        from scipy.sparse import csr_array

        y, s, rows = known(targets, scores)
        g = codes[rows]
        self.n, self.n_positive, self.size = len(y), int(y.sum()), size
        self.positive, self.negative = (np.bincount(g[c], minlength=size).astype(float) for c in (y, ~y))
        levels = np.unique(s[y])
        self.width = max(len(levels), 1)
        at = np.searchsorted(levels, s, side="right")
        # negatives below every positive (at = 0) are in no sum: they enter by the total alone
        loose = ~y & (at > 0)
        tied = loose & (levels[at - 1] == s) if len(levels) else loose

        def sums(of: NDArray[np.bool_]) -> Any:
            return csr_array((np.ones(of.sum()), (len(levels) - at[of], g[of])), shape=(len(levels), size))

        self._positives, self._negatives, self._ties = sums(y), sums(loose), sums(tied) if tied.any() else None
        self._rows = (y, s, g)

    @property
    def n_groups(self) -> int:
        return int(((self.positive + self.negative) > 0).sum())

    @property
    def refusal(self) -> str:
        """Why no number may be given; empty where one may."""
        for name, per_group in (("positive", self.positive), ("negative", self.negative)):
            have = int((per_group > 0).sum())
            if have < MIN_GROUPS:
                return f"only {have} {name} group{'' if have == 1 else 's'}, at least {MIN_GROUPS} are needed"
        return ""

    @cached_property
    def _squared_error(self) -> Array:
        y, s, g = self._rows
        return np.bincount(g, (probabilities(s) - y) ** 2, minlength=self.size).astype(np.float64)

    def defined(self, weights_GR: Array) -> NDArray[np.bool_]:
        """(R,) which weightings hold both classes."""
        out: NDArray[np.bool_] = (self.positive @ weights_GR > 0) & (self.negative @ weights_GR > 0)
        return out

    def _levels(self, weights_GR: Array) -> tuple[Array, Array | float, Array]:
        """Per level from the top (K,R): positives, tied negatives, and all negatives at or above."""
        tied: Array | float = 0.0 if self._ties is None else self._ties @ weights_GR
        return self._positives @ weights_GR, tied, np.cumsum(self._negatives @ weights_GR, 0)

    def values(self, metrics: Sequence[str], weights_GR: Array) -> dict[str, Array]:
        """Metric name -> (R,); NaN where a weighting lacks a class."""
        out: dict[str, Array] = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            if {"auroc", "auprc"} & set(metrics):
                positives, tied, fp = self._levels(weights_GR)
                total, negatives = self.positive @ weights_GR, self.negative @ weights_GR
                if "auroc" in metrics:
                    out["auroc"] = (positives * (negatives - fp + tied / 2)).sum(0) / (total * negatives)
                if "auprc" in metrics:
                    tp = np.cumsum(positives, 0)
                    out["auprc"] = (positives * (tp / np.maximum(tp + fp, 1e-300))).sum(0) / total
            if "brier" in metrics:
                out["brier"] = self._squared_error @ weights_GR / ((self.positive + self.negative) @ weights_GR)
        undefined = ~self.defined(weights_GR)
        for value in out.values():
            value[undefined] = np.nan
        return out

    def curves(self, grid: Array, weights_GR: Array) -> tuple[Array, Array]:
        """Sensitivity at 1 - specificity = ``grid`` and precision at recall = ``grid``, each (len(grid), R)."""
        positives, tied, fp = self._levels(weights_GR)
        tp, before, negatives = np.cumsum(positives, 0), fp - tied, self.negative @ weights_GR
        roc, pr = np.empty((2, len(grid), weights_GR.shape[1]))
        for r in range(weights_GR.shape[1]):
            p, n = tp[-1, r], negatives[r]
            x = np.r_[0.0, np.stack([before[:, r], fp[:, r]], 1).ravel() / n, 1.0]
            y = np.r_[0.0, np.stack([tp[:, r] - positives[:, r], tp[:, r]], 1).ravel() / p, 1.0]
            roc[:, r] = np.interp(grid, x, y)
            at = np.minimum(np.searchsorted(tp[:, r] / p, grid - 1e-12), len(tp) - 1)
            at = np.maximum(at, np.argmax(tp[:, r] > 0))
            pr[:, r] = tp[at, r] / (tp[at, r] + fp[at, r])
        return roc, pr


@dataclass(slots=True)
class Intervals:
    """Findings x metrics with the redraws they came from.

    ``metrics[f][name]`` is a :class:`Metric`; ``macro[name]`` the unweighted mean over the ``covered`` findings;
    ``redraws[name]`` (n, F) with NaN columns for refused findings; ``redrawn[f]`` counts resamples that lacked a class.
    """

    names: tuple[str, ...]
    metrics: list[dict[str, Metric]]
    macro: dict[str, Metric]
    covered: tuple[str, ...]
    redraws: dict[str, Array] = field(repr=False)
    redrawn: list[int] = field(default_factory=list)


def tables(targets: Array, scores: Array, draws: Resamples, folds: ArrayLike | None = None) -> list[Weighted]:
    """One finding as one :class:`Weighted` a seed and fold. ``scores`` (N,) or (S,N); ``folds`` (N,) keeps scores of
    different models from being ranked against each other."""
    fold_of = np.zeros(len(targets), dtype=np.intp) if folds is None else np.unique(folds, return_inverse=True)[1]
    return [
        Weighted(targets[rows], one[rows], draws.codes[rows], draws.size)
        for one in np.atleast_2d(scores)
        for rows in (np.flatnonzero(fold_of == f) for f in range(fold_of.max(initial=0) + 1))
    ]


def _mean(parts: Sequence[Weighted], metrics: Sequence[str], weights_GR: Array) -> dict[str, Array]:
    """Mean over the folds and seeds that hold both classes under a weighting; NaN where none does."""
    values = [p.values(metrics, weights_GR) for p in parts]
    if len(values) == 1:
        return values[0]
    stacked = {m: np.stack([v[m] for v in values]) for m in metrics}
    count = {m: (~np.isnan(x)).sum(0) for m, x in stacked.items()}
    return {m: np.where(count[m], np.nansum(x, 0) / np.maximum(count[m], 1), np.nan) for m, x in stacked.items()}


def _refusal(parts: Sequence[Weighted], pooled: Weighted) -> str:
    if pooled.refusal:
        return pooled.refusal
    return "" if any(p.n_positive and p.n_positive < p.n for p in parts) else "no fold holds both classes"


def intervals(
    targets: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    *,
    names: Sequence[str] | None = None,
    metrics: Sequence[str] = METRICS,
    n: int = 1000,
    seed: int = 0,
    folds: ArrayLike | None = None,
    refused: dict[str, str] | None = None,
) -> Intervals:
    """Every finding's metrics with percentile intervals (2.5 % to 97.5 % of ``n`` redraws of groups).

    ``targets`` (N,F) with -1 or NaN unknown; ``scores`` (N,F), or (S,N,F) for S repeats whose metric is averaged inside
    each redraw; ``groups`` (N,); ``folds`` (N,) likewise averaged. All groups are resampled, also those without a known
    label for a finding. A redraw without both classes is drawn anew for that finding (next attempt of the same number)
    and counted. A finding with < 5 positive or negative groups, or named in ``refused``, has ``value=None`` and a
    reason, and stays out of the macro mean.
    """
    y_NF, s_SNF = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    s_SNF = s_SNF[None] if s_SNF.ndim == 2 else s_SNF
    if y_NF.ndim != 2 or s_SNF.shape[1:] != y_NF.shape or len(groups) != len(y_NF):
        raise HilumError(
            f"targets {y_NF.shape}, scores {s_SNF.shape[1:]} and {len(groups)} groups do not belong together"
        )
    if unknown := set(metrics) - set(METRICS):
        raise HilumError(f"no interval for the metric {sorted(unknown)[0]!r}", fix=f"one of {', '.join(METRICS)}")
    columns = y_NF.shape[1]
    labels = tuple(names) if names is not None else tuple(str(f) for f in range(columns))
    draws = bootstrap_groups(groups, n=n, seed=seed)
    parts = [tables(y_NF[:, f], s_SNF[:, :, f], draws, folds) for f in range(columns)]
    pooled = [Weighted(y_NF[:, f], s_SNF[0, :, f], draws.codes, draws.size) for f in range(columns)]
    reasons = [(refused or {}).get(labels[f]) or _refusal(parts[f], pooled[f]) for f in range(columns)]
    live = [f for f in range(columns) if not reasons[f]]
    redraws = {m: np.full((n, columns), np.nan) for m in metrics}
    redrawn = [0] * columns
    for ks in draws.chunks(max((p.width for f in live for p in parts[f]), default=1)):
        weights_GR = draws.weights(ks)
        for f in live:
            own, open_ = weights_GR, np.flatnonzero(~_defined(parts[f], weights_GR))
            attempt = 0
            while len(open_):
                attempt += 1
                own = own.copy() if attempt == 1 else own
                redrawn[f] += len(open_)
                own[:, open_] = draws.weights(ks[open_], attempt=attempt)
                open_ = open_[~_defined(parts[f], own[:, open_])]
            for m, value in _mean(parts[f], metrics, own).items():
                redraws[m][ks, f] = value
    ones = np.ones((draws.size, 1))
    table: list[dict[str, Metric]] = []
    for f in range(columns):
        count, n_groups = pooled[f].n, pooled[f].n_groups
        if reasons[f]:
            table.append({m: Metric(None, n=count, n_groups=n_groups, reason=reasons[f]) for m in metrics})
            continue
        point = _mean(parts[f], metrics, ones)
        table.append({m: percentile(float(point[m][0]), redraws[m][:, f], count, n_groups) for m in metrics})
    macro = {m: _macro([row[m] for row in table], redraws[m][:, live], len(y_NF), draws.size) for m in metrics}
    return Intervals(labels, table, macro, tuple(labels[f] for f in live), redraws, redrawn)


def _defined(parts: Sequence[Weighted], weights_GR: Array) -> NDArray[np.bool_]:
    out: NDArray[np.bool_] = np.any([p.defined(weights_GR) for p in parts], axis=0)
    return out


def percentile(value: float, redraws: Array, n: int, n_groups: int) -> Metric:
    """A value with the 2.5 % and 97.5 % quantiles of its redraws."""
    lo, hi = np.quantile(redraws, [0.025, 0.975]) if len(redraws) else (None, None)
    return Metric(value, None if lo is None else float(lo), None if hi is None else float(hi), n, n_groups)


def _macro(row: Sequence[Metric], redraws: Array, n: int, n_groups: int) -> Metric:
    values = [m.value for m in row if m.value is not None]
    if not values:
        return Metric(None, n=n, n_groups=n_groups, reason="no finding is computable")
    return percentile(float(np.mean(values)), redraws.mean(1), n, n_groups)


def interval(
    metric: str,
    targets: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    *,
    n: int = 1000,
    seed: int = 0,
) -> Metric:
    """One finding's metric (``auroc``, ``auprc``, ``brier``) with its interval, or the reason why there is none."""
    y, s = np.asarray(targets, dtype=np.float64)[:, None], np.asarray(scores, dtype=np.float64)[:, None]
    return intervals(y, s, groups, metrics=(metric,), n=n, seed=seed).metrics[0][metric]


def curve_bands(
    targets: ArrayLike,
    scores: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    grid: Array,
    *,
    n: int = 200,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Pointwise 95 % bands over ``grid`` of [0, 1]: (lo, hi) rows for ROC and for precision-recall, each (2, len)."""
    draws = bootstrap_groups(groups, n=n, seed=seed)
    one = Weighted(targets, scores, draws.codes, draws.size)
    kept: list[tuple[Array, Array]] = []
    for ks in draws.chunks(one.width):
        weights_GR = draws.weights(ks)
        kept.append(one.curves(grid, weights_GR[:, one.defined(weights_GR)]))
    roc, pr = (np.concatenate(c, axis=1) for c in zip(*kept, strict=True))
    return np.quantile(roc, [0.025, 0.975], axis=1), np.quantile(pr, [0.025, 0.975], axis=1)


def wilson(hits: float, n: float, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); ``n`` may be an effective size."""
    p, shrink = hits / n, 1 + z * z / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, float((middle - half) / shrink)), min(1.0, float((middle + half) / shrink))


def proportion(hits: ArrayLike, groups: Sequence[Any] | NDArray[Any]) -> Metric:
    """The share of ``hits`` (n,) with Wilson's interval at the effective sample size n / deff.

    deff is the ratio of the variance between groups (linearised ratio estimator) to the binomial one, at least 1: one
    row a group gives Wilson's interval itself. Where all rows agree the correlation inside groups cannot be seen, and
    each group counts once.
    """
    hit, group = np.asarray(hits, dtype=np.float64), np.asarray(groups)
    if not len(hit):
        return Metric(None, reason="no row to count")
    _, codes = np.unique(group, return_inverse=True)
    n, n_groups, p = len(hit), int(codes.max()) + 1, float(hit.mean())
    between = float((np.bincount(codes, hit - p) ** 2).sum())
    within = n * p * (1 - p)
    deff = max(1.0, between / within) if within > 0 else n / n_groups
    lo, hi = wilson(hit.sum() / deff, n / deff)
    return Metric(p, lo, hi, n, n_groups)
