"""Intervals: a group is one draw, coverage is about 95 %, and few groups give a reason, never a number."""

import numpy as np
import pytest
from scipy.stats import binomtest

from hilum.core.errors import HilumError
from hilum.evaluation.intervals import (
    Weighted,
    bootstrap_groups,
    curve_bands,
    interval,
    intervals,
    proportion,
    wilson,
)
from hilum.evaluation.metrics import auprc, auroc, brier, roc_curve


def clustered(rng, n_groups=80, prevalence=0.4, shift=1.0, spread=0.8, most=4):
    """Images in patients: label by patient, scores correlated inside a patient. Groups are (G,) sizes 1..most."""
    sizes = rng.integers(1, most + 1, n_groups)
    group = np.repeat(np.arange(n_groups), sizes)
    y = (rng.random(n_groups) < prevalence)[group].astype(float)
    z = rng.normal(size=n_groups)[group] * spread + rng.normal(size=len(group)) * np.sqrt(1 - spread**2) + shift * y
    return y, 1 / (1 + np.exp(-z)), group


def test_values_of_a_weighting_equal_rows_repeated_that_often():
    rng = np.random.default_rng(0)
    y, s, group = clustered(rng)
    s = np.round(s, 1)  # many ties
    y[rng.random(len(y)) < 0.1] = -1
    draws = bootstrap_groups(group, n=6, seed=3)
    one, w = Weighted(y, s, draws.codes, draws.size), draws.weights(np.arange(6))
    values = one.values(("auroc", "auprc", "brier"), w)
    for r in range(6):
        rows = np.repeat(np.arange(len(y)), w[draws.codes, r].astype(int))
        for name, metric in (("auroc", auroc), ("auprc", auprc), ("brier", brier)):
            assert values[name][r] == pytest.approx(metric(y[rows], s[rows]), abs=1e-12)


def test_point_values_are_the_plain_metrics():
    y, s, group = clustered(np.random.default_rng(1))
    for name, metric in (("auroc", auroc), ("auprc", auprc), ("brier", brier)):
        got = interval(name, y, s, group, n=50)
        assert got.value == pytest.approx(metric(y, s), abs=1e-12)
        assert got.lo < got.value < got.hi
        assert (got.n, got.n_groups) == (len(y), 80)


def test_redraws_are_pure_functions_of_seed_and_number():
    draws = bootstrap_groups(["a", "b", "b", "c"] * 5, n=100, seed=7)
    together = draws.weights(np.arange(100))
    assert np.array_equal(together[:, 40:43], draws.weights([40, 41, 42]))
    assert (together.sum(0) == draws.size).all()
    assert not np.array_equal(together, bootstrap_groups(["a", "b", "c"], n=100, seed=8).weights(np.arange(100)))
    assert not np.array_equal(together, draws.weights(np.arange(100), attempt=1))
    # every group is drawn once on average
    many = bootstrap_groups(np.arange(30), n=3000).weights(np.arange(3000))
    assert np.abs(many.mean(1) - 1).max() < 5 / np.sqrt(3000)


def test_same_seed_same_bits_and_independent_of_row_order():
    y, s, group = clustered(np.random.default_rng(2))
    first = interval("auroc", y, s, group, n=200, seed=5)
    assert first == interval("auroc", y, s, group, n=200, seed=5)
    assert first != interval("auroc", y, s, group, n=200, seed=6)
    order = np.random.default_rng(0).permutation(len(y))
    assert first == interval("auroc", y[order], s[order], group[order], n=200, seed=5)


def test_coverage_on_clustered_data_is_about_95_percent():
    def both(y, s, group, **kwargs):
        return intervals(y[:, None], s[:, None], group, metrics=("auroc", "brier"), **kwargs).metrics[0]

    truth = both(*clustered(np.random.default_rng(99), n_groups=100_000), n=1)
    inside, by_row, trials = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0), 160
    for trial in range(trials):
        y, s, group = clustered(np.random.default_rng(trial), n_groups=100)
        for groups, count in ((group, inside), (np.arange(len(y)), by_row)):
            for name, m in both(y, s, groups, n=200, seed=trial).items():
                count[name] += m.lo <= truth[name].value <= m.hi
    for name in truth:
        assert 0.89 <= inside[name] / trials <= 0.99
        assert by_row[name] < inside[name] - 4  # rows as if independent: too narrow


def test_copies_of_rows_do_not_narrow_the_interval_of_groups():
    y, s, group = clustered(np.random.default_rng(3), n_groups=120, most=1)
    once = interval("auroc", y, s, group, n=300)
    five = interval("auroc", np.repeat(y, 5), np.repeat(s, 5), np.repeat(group, 5), n=300)
    assert (five.value, five.lo, five.hi) == pytest.approx((once.value, once.lo, once.hi), abs=1e-12)
    rows = interval("auroc", np.repeat(y, 5), np.repeat(s, 5), np.arange(5 * len(y)), n=300)
    assert five.hi - five.lo > 1.8 * (rows.hi - rows.lo)  # sqrt(5) in theory


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_fewer_than_five_groups_of_a_class_give_a_reason(kind):
    # many rows, but only four groups of the rare class
    group = np.repeat(np.arange(60), 10)
    y = (group < 4).astype(float) if kind == "positive" else (group >= 4).astype(float)
    s = np.random.default_rng(0).random(len(y))
    for metric in ("auroc", "auprc", "brier"):
        m = interval(metric, y, s, group, n=20)
        assert m.value is None and m.lo is None and m.hi is None
        assert m.reason == f"only 4 {kind} groups, at least 5 are needed"
        assert (m.n, m.n_groups) == (600, 60)
    y[group == 4] = 1 - y[group == 4]
    assert interval("auroc", y, s, group, n=20).value is not None


def test_one_class_and_absent_labels_give_a_reason():
    s = np.random.default_rng(0).random(50)
    assert "0 positive" in interval("auroc", np.zeros(50), s, np.arange(50), n=5).reason
    assert interval("auroc", np.full(50, np.nan), s, np.arange(50), n=5).value is None


def test_resamples_without_both_classes_are_drawn_anew_and_counted():
    group = np.arange(40)
    y = np.r_[np.ones((40, 1)), np.zeros((0, 1))]
    y[5:] = 0  # five positive groups of 40: a resample misses them all with (35/40)^40 = 0.5 %
    s = np.random.default_rng(0).random((40, 1))
    result = intervals(y, s, group, n=2000)
    assert 2 <= result.redrawn[0] <= 25
    assert np.isfinite(result.redraws["auroc"]).all()
    # the values that stand are those of resamples which hold a positive: more trials, same law
    common = intervals(np.tile([[0.0], [1.0]], (50, 1)), np.tile(s[:20], (5, 1)), np.arange(100), n=500)
    assert common.redrawn == [0]


def test_macro_covers_computable_findings_and_names_them():
    rng = np.random.default_rng(4)
    y0, s0, group = clustered(rng, n_groups=60)
    y1 = np.where(np.arange(len(y0)) == 0, 1.0, 0.0)
    y2, s2 = (rng.random(len(y0)) < 0.3).astype(float), rng.random(len(y0))
    y, s = np.stack([y0, y1, y2], 1), np.stack([s0, s0, s2], 1)
    result = intervals(y, s, group, names=("a", "rare", "c"), n=100)
    assert result.covered == ("a", "c")
    assert result.metrics[1]["auroc"].value is None
    assert result.macro["auroc"].value == pytest.approx((auroc(y0, s0) + auroc(y2, s2)) / 2)
    mean = result.redraws["auroc"][:, [0, 2]].mean(1)
    assert (result.macro["auroc"].lo, result.macro["auroc"].hi) == pytest.approx(
        tuple(np.quantile(mean, [0.025, 0.975]))
    )
    # a finding's interval does not depend on which others stand beside it
    assert result.metrics[2]["auroc"] == interval("auroc", y2, s2, group, n=100)


def test_refused_findings_stay_out():
    y, s, group = clustered(np.random.default_rng(5))
    result = intervals(y[:, None], s[:, None], group, names=("a",), n=10, refused={"a": "never trained"})
    assert result.metrics[0]["auroc"].reason == "never trained"
    assert result.macro["auroc"].value is None


def test_folds_and_repeats_are_averaged_not_pooled():
    y, s, group = clustered(np.random.default_rng(6))
    fold = group % 2
    # fold 1's model scores on another scale: pooled ranks would be wrong, the mean of folds is not touched
    shifted = np.where(fold == 1, s / 100, s)
    want = np.mean([auroc(y[fold == f], s[fold == f]) for f in (0, 1)])
    result = intervals(y[:, None], shifted[:, None], group, metrics=("auroc",), n=20, folds=fold)
    assert result.metrics[0]["auroc"].value == pytest.approx(want, abs=1e-12)
    noisy = np.random.default_rng(0).random(len(s))
    twice = intervals(y[:, None], np.stack([s, noisy])[:, :, None], group, metrics=("auroc",), n=20)
    assert twice.metrics[0]["auroc"].value == pytest.approx((auroc(y, s) + auroc(y, noisy)) / 2, abs=1e-12)


def test_shapes_and_names_are_checked():
    with pytest.raises(HilumError, match="do not belong together"):
        intervals(np.zeros((3, 1)), np.zeros((4, 1)), np.arange(3))
    with pytest.raises(HilumError, match="no interval for"):
        interval("accuracy", [0, 1], [0.1, 0.2], [0, 1])
    with pytest.raises(HilumError, match="NaN"):
        interval("auroc", np.tile([0.0, 1.0], 10), np.full(20, np.nan), np.arange(20))


def test_bands_hold_the_curve_and_are_plain_interpolations():
    y, s, group = clustered(np.random.default_rng(7), n_groups=150)
    grid = np.linspace(0, 1, 21)
    roc, pr = curve_bands(y, s, group, grid, n=200)
    curve = roc_curve(y, s)
    at = np.interp(grid[1:-1], curve.x, curve.y)
    assert (roc[0, 1:-1] <= at + 0.05).all() and (roc[1, 1:-1] >= at - 0.05).all()
    assert (roc[1] - roc[0])[1:-1].mean() > 0.02
    assert pr.min() >= 0 and pr.max() <= 1
    assert pr[0, -1] <= y.mean() + 0.05  # full recall costs all precision
    draws = bootstrap_groups(group, n=4, seed=1)
    one, w = Weighted(y, s, draws.codes, draws.size), draws.weights(np.arange(4))
    lines, _ = one.curves(grid, w)
    for r in range(4):
        rows = np.repeat(np.arange(len(y)), w[draws.codes, r].astype(int))
        again = roc_curve(y[rows], s[rows])
        # vertical steps make interpolation at a step ambiguous: compare areas
        assert np.trapezoid(lines[:, r], grid) == pytest.approx(
            np.trapezoid(np.interp(grid, again.x, again.y), grid), abs=0.02
        )


@pytest.mark.parametrize(("hits", "n"), [(0, 12), (7, 12), (12, 12), (480, 500)])
def test_wilson_equals_scipy(hits, n):
    theirs = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_proportion_is_wilson_where_each_group_gives_one_row():
    hits = np.r_[np.ones(30), np.zeros(10)]
    m = proportion(hits, np.arange(40))
    assert (m.value, m.lo, m.hi) == pytest.approx((0.75, *wilson(30, 40)))


def test_copies_of_rows_do_not_narrow_a_proportion():
    hits = np.r_[np.ones(30), np.zeros(10)]
    m = proportion(np.repeat(hits, 6), np.repeat(np.arange(40), 6))
    assert (m.lo, m.hi) == pytest.approx(wilson(30, 40))
    assert (m.n, m.n_groups) == (240, 40)
    # all agree: each group counts once, and the interval is not a point
    all_hit = proportion(np.ones(60), np.repeat(np.arange(20), 3))
    assert (all_hit.lo, all_hit.hi) == pytest.approx(wilson(20, 20))
    assert proportion([], []).value is None


def test_proportion_covers_clustered_rates():
    inside = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        p = rng.beta(3, 2, 60)  # a rate a patient, mean 0.6
        group = np.repeat(np.arange(60), 4)
        m = proportion(rng.random(240) < p[group], group)
        inside += m.lo <= 0.6 <= m.hi
    assert 0.90 <= inside / 300 <= 0.99
