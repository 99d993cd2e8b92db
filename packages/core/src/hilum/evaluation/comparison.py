"""Is one model better than another on the same patients? Paired bootstrap of groups, corrected for many findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hilum.core.errors import HilumError
from hilum.core.types import Metric
from hilum.evaluation.intervals import Intervals, intervals, percentile
from hilum.evaluation.metrics import Array

Correction = Literal["bh", "holm"]
LOWER_IS_BETTER = frozenset({"brier"})
ROUNDING = 1e-13
"""Means over findings, folds and seeds that differ by less differ by the order of summation only."""


def benjamini_hochberg(p: ArrayLike) -> Array:
    """p adjusted for the false discovery rate: min over larger p of p m / rank, at most 1 (Benjamini 1995)."""
    values, order = _ordered(p)
    scaled = values[order] * len(values) / np.arange(1, len(values) + 1)
    return _unordered(np.minimum.accumulate(scaled[::-1])[::-1], order)


def holm(p: ArrayLike) -> Array:
    """p adjusted for the family-wise error: max over smaller p of p (m - rank + 1), at most 1 (Holm 1979)."""
    values, order = _ordered(p)
    return _unordered(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), order)


def _ordered(p: ArrayLike) -> tuple[Array, NDArray[np.intp]]:
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1 or np.isnan(values).any() or ((values < 0) | (values > 1)).any():
        raise HilumError(
            "p-values must be a vector of numbers in [0, 1]", fix="leave out findings that are not computable"
        )
    return values, np.argsort(values, kind="stable")


def _unordered(adjusted: Array, order: NDArray[np.intp]) -> Array:
    out = np.empty_like(adjusted)
    out[order] = np.minimum(adjusted, 1.0)
    return out


@dataclass(slots=True)
class Row:
    """One finding (or the mean over findings) of a comparison. ``p_a_better`` is one-sided: the share of redraws in
    which A was not better than B; ``adjusted`` corrects it over findings. ``sd`` are deviations over redraws."""

    name: str
    a: Metric
    b: Metric
    difference: Metric
    sd_a: float | None = None
    sd_b: float | None = None
    p_a_better: float | None = None
    p_b_better: float | None = None
    adjusted_a: float | None = None
    adjusted_b: float | None = None


@dataclass(slots=True)
class Comparison:
    """Rows a finding, the ``mean`` over computable findings, and the redraws (n, F) of both models."""

    metric: str
    rows: list[Row]
    mean: Row
    covered: tuple[str, ...]
    correction: str
    n: int
    seed: int
    redraws_a: Array = field(repr=False)
    redraws_b: Array = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        from dataclasses import asdict

        keep = ("metric", "covered", "correction", "n", "seed")
        return {k: getattr(self, k) for k in keep} | {"rows": [asdict(r) for r in self.rows], "mean": asdict(self.mean)}


def paired_bootstrap(
    targets: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    *,
    names: Sequence[str] | None = None,
    metric: str = "auroc",
    n: int = 1000,
    seed: int = 0,
    folds: ArrayLike | None = None,
    correction: Correction = "bh",
    paired: bool = True,
) -> Comparison:
    """Compares score matrices ``a`` and ``b`` (N,F) or (S,N,F) on the same rows: arXiv 2308.07688, evaluation 3 and 4.

    Both models see the same redraws of groups; the one-sided p for "A better" is the share of redraws in which A is not
    strictly better (identical scores: 1 both ways; a dominated B: 0). Repeats S and ``folds`` are averaged inside each
    redraw. ``paired=False`` draws independent lists: only to show what pairing buys.
    """
    one = intervals(targets, a, groups, names=names, metrics=(metric,), n=n, seed=seed, folds=folds)
    two = intervals(
        targets, b, groups, names=names, metrics=(metric,), n=n, seed=seed if paired else seed + 1, folds=folds
    )
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    rows = [
        _row(
            name, one.metrics[f][metric], two.metrics[f][metric], _column(one, metric, f), _column(two, metric, f), sign
        )
        for f, name in enumerate(one.names)
    ]
    live = [f for f, name in enumerate(one.names) if name in one.covered]
    adjust = {"bh": benjamini_hochberg, "holm": holm}[correction]
    if live:
        better = adjust([rows[f].p_a_better or 0.0 for f in live]), adjust([rows[f].p_b_better or 0.0 for f in live])
        for f, p_a, p_b in zip(live, *better, strict=True):
            rows[f].adjusted_a, rows[f].adjusted_b = float(p_a), float(p_b)
    means = [x.redraws[metric][:, live].mean(1) if live else np.empty(0) for x in (one, two)]
    mean = _row("mean", one.macro[metric], two.macro[metric], means[0], means[1], sign)
    return Comparison(
        metric,
        rows,
        mean,
        one.covered,
        correction,
        n,
        seed,
        redraws_a=one.redraws[metric],
        redraws_b=two.redraws[metric],
    )


def _column(result: Intervals, metric: str, f: int) -> Array:
    column = result.redraws[metric][:, f]
    return column[~np.isnan(column)]


def _row(name: str, a: Metric, b: Metric, redraws_a: Array, redraws_b: Array, sign: float) -> Row:
    if a.value is None or b.value is None:
        reason = a.reason or b.reason
        return Row(name, a, b, Metric(None, n=a.n, n_groups=a.n_groups, reason=reason))
    gain = sign * (redraws_a - redraws_b)
    gain[np.abs(gain) < ROUNDING] = 0.0
    return Row(
        name,
        a,
        b,
        percentile(a.value - b.value, redraws_a - redraws_b, a.n, a.n_groups),
        sd_a=float(redraws_a.std()),
        sd_b=float(redraws_b.std()),
        p_a_better=float(np.mean(~(gain > 0))),
        p_b_better=float(np.mean(~(gain < 0))),
    )
