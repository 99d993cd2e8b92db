"""Metrics: closed forms, equality with scikit-learn on data with ties, and refusals in place of wrong numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from sklearn.metrics import precision_recall_curve as sk_pr
from sklearn.metrics import roc_curve as sk_roc

from hilum.core.errors import HilumError
from hilum.evaluation.metrics import (
    NotComputable,
    auprc,
    auroc,
    brier,
    calibration_line,
    confusion,
    ece,
    known,
    ppv_at_prevalence,
    pr_curve,
    reliability,
    roc_curve,
)


def draw(seed, n=400, ties=20, prevalence=0.3):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < prevalence
    s = rng.random(n) * 0.7 + 0.3 * y * rng.random(n)
    return y.astype(float), np.round(s * ties) / ties if ties else s


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [0, 5, 20])
def test_equal_to_scikit_learn(seed, ties):
    y, s = draw(seed, ties=ties)
    w = np.random.default_rng(seed + 100).integers(0, 4, len(y)).astype(float)
    assert auroc(y, s) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert auprc(y, s) == pytest.approx(average_precision_score(y, s), abs=1e-12)
    assert brier(y, s) == pytest.approx(brier_score_loss(y, s), abs=1e-12)
    assert auroc(y, s, weights=w) == pytest.approx(roc_auc_score(y, s, sample_weight=w), abs=1e-12)
    assert auprc(y, s, weights=w) == pytest.approx(average_precision_score(y, s, sample_weight=w), abs=1e-12)
    assert brier(y, s, weights=w) == pytest.approx(brier_score_loss(y, s, sample_weight=w), abs=1e-12)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40).filter(
        lambda rows: len({y for y, _ in rows}) == 2
    )
)
@settings(max_examples=100)
def test_auroc_counts_pairs_with_ties_as_half(rows):
    y, s = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], dtype=float)
    difference = s[y][:, None] - s[~y][None, :]
    assert auroc(y, s) == pytest.approx(np.mean((difference > 0) + 0.5 * (difference == 0)), abs=1e-12)
    assert auroc(y, s) + auroc(y, -s) == pytest.approx(1.0, abs=1e-12)
    assert auroc(y, np.exp(s)) == auroc(y, s)  # only the order counts
    assert auroc(~y, -s) == pytest.approx(auroc(y, s), abs=1e-12)


def test_closed_forms():
    y = np.array([1, 1, 0, 0, 0], dtype=float)
    assert auroc(y, [5, 4, 3, 2, 1]) == 1.0
    assert auroc(y, [0.5] * 5) == 0.5
    assert auprc(y, [0.5] * 5) == pytest.approx(0.4)  # a constant score gives the prevalence
    # ranks 1 and 3 are positive: 1/2 * 1/1 + 1/2 * 2/3
    assert auprc(y, [5, 3, 4, 2, 1]) == pytest.approx(0.5 + 1 / 3)
    assert brier(y, [0.4] * 5) == pytest.approx(0.4 * 0.6)


def test_unknown_targets_are_masked():
    y, s = draw(1)
    padded = np.r_[y, -1, np.nan, -1]
    scores = np.r_[s, 0.99, 0.01, 0.5]
    for metric in (auroc, auprc, brier, ece):
        assert metric(padded, scores) == metric(y, s)
    assert len(known(padded, scores)[0]) == len(y)


@pytest.mark.parametrize("metric", [auroc, auprc, brier, ece, roc_curve, pr_curve, reliability])
def test_nan_scores_are_refused(metric):
    with pytest.raises(HilumError, match="1 of 4 scores are NaN"):
        metric([0, 1, 0, 1], [0.1, np.nan, 0.2, 0.9])
    with pytest.raises(HilumError, match="NaN"):  # on a row that would be masked as well
        metric([0, 1, -1, 1], [0.1, 0.8, np.nan, 0.9])


@pytest.mark.parametrize("metric", [auroc, auprc, roc_curve, pr_curve, calibration_line])
@pytest.mark.parametrize("y", [[1, 1, 1], [0, 0, 0], [-1, np.nan, -1]])
def test_one_class_is_not_computable(metric, y):
    with pytest.raises(NotComputable):
        metric(y, [0.1, 0.2, 0.3])


@pytest.mark.parametrize("metric", [brier, ece])
def test_scores_outside_the_unit_interval_are_no_probabilities(metric):
    with pytest.raises(HilumError, match=r"outside \[0, 1\]"):
        metric([0, 1, 0], [0.2, 1.0001, 0.3])  # never taken for logits


@pytest.mark.parametrize("y", [[0, 1, 2], [0, 0.5, 1]])
def test_odd_targets_are_refused(y):
    with pytest.raises(HilumError, match="targets must be"):
        auroc(y, [0.1, 0.2, 0.3])
    with pytest.raises(HilumError, match="equal length"):
        auroc([0, 1], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("seed", range(4))
def test_curves_equal_scikit_learn(seed):
    y, s = draw(seed, ties=15)
    mine = roc_curve(y, s)
    fpr, tpr, _ = sk_roc(y, s, drop_intermediate=False)
    grid = np.linspace(0, 1, 101)
    assert (mine.x[0], mine.y[0], mine.x[-1], mine.y[-1]) == (0, 0, 1, 1)
    assert np.abs(np.interp(grid, mine.x, mine.y) - np.interp(grid, fpr, tpr)).max() < 1e-12
    assert np.trapezoid(mine.y, mine.x) == pytest.approx(auroc(y, s), abs=1e-12)

    precision, recall, thresholds = sk_pr(y, s)
    theirs = {round(float(t), 9): (r, p) for t, r, p in zip(thresholds, recall, precision)}
    pr = pr_curve(y, s)
    for x, value, t in zip(pr.x[1:], pr.y[1:], pr.thresholds[1:]):
        assert theirs[round(float(t), 9)] == pytest.approx((x, value))
    assert np.diff(pr.x) @ pr.y[1:] == pytest.approx(auprc(y, s), abs=1e-12)


def test_curve_points_are_confusions():
    y, s = draw(3, ties=12)
    for curve, axes in ((roc_curve(y, s), ("specificity", "sensitivity")), (pr_curve(y, s), ("sensitivity", "ppv"))):
        for x, value, threshold in zip(curve.x[1:], curve.y[1:], curve.thresholds[1:]):
            c = confusion(y, s, threshold)
            got = getattr(c, axes[0])
            assert x == pytest.approx(1 - got if axes[0] == "specificity" else got)
            assert value == pytest.approx(getattr(c, axes[1]))


def test_confusion_counts_and_undefined_rates():
    c = confusion([1, 1, 0, 0, 0, -1], [0.9, 0.2, 0.7, 0.1, 0.7, 0.99], 0.7)
    assert (c.tp, c.fp, c.fn, c.tn) == (1, 2, 1, 1)
    assert (c.sensitivity, c.specificity, c.ppv, c.npv) == (0.5, 1 / 3, 1 / 3, 0.5)
    assert confusion([0, 0], [0.1, 0.2], 0.5).sensitivity is None
    assert confusion([0, 1], [0.1, 0.2], 0.5).ppv is None


def test_ppv_at_prevalence_is_the_observed_one_at_the_observed_prevalence():
    y, s = draw(8)
    c = confusion(y, s, 0.5)
    assert ppv_at_prevalence(c.sensitivity, c.specificity, y.mean()) == pytest.approx(c.ppv)
    assert ppv_at_prevalence(0.9, 0.9, 0.01) == pytest.approx(0.009 / (0.009 + 0.099))


def test_ece_by_hand():
    # equal width, 2 bins: (0.2, 0.4 | rate 0) and (0.6, 0.8 | rate 0.5)
    y, s = [0, 0, 1, 0], [0.2, 0.4, 0.6, 0.8]
    assert ece(y, s, bins=2, scheme="width") == pytest.approx(0.5 * 0.3 + 0.5 * 0.2)
    assert ece(y, s, bins=2, scheme="mass") == pytest.approx(0.25)
    assert ece([0, 1], [0.0, 1.0]) == 0.0


@pytest.mark.parametrize("scheme", ["mass", "width"])
def test_bins_keep_ties_together_whatever_the_order(scheme):
    y, s = draw(5, n=300, ties=7)
    r = reliability(y, s, bins=10, scheme=scheme)
    for value in np.unique(s):
        assert len(np.unique(r.bin_of[s == value])) == 1
    assert r.count.sum() == len(y)
    assert (r.rate * r.count).sum() == pytest.approx(y.sum())
    shuffled = np.random.default_rng(0).permutation(len(y))
    assert np.allclose(reliability(y[shuffled], s[shuffled], bins=10, scheme=scheme).rate, r.rate)
    if scheme == "mass":
        assert reliability(*draw(5, n=300, ties=0), bins=10).count.tolist() == [30] * 10


def test_calibration_line_finds_the_distortion_put_in():
    rng = np.random.default_rng(0)
    logit = rng.normal(size=40_000) * 1.5 - 1
    y = rng.random(len(logit)) < 1 / (1 + np.exp(-logit))
    slope, intercept = calibration_line(y, 1 / (1 + np.exp(-logit)))
    assert slope == pytest.approx(1, abs=0.05)
    assert intercept == pytest.approx(0, abs=0.05)
    over = 1 / (1 + np.exp(-(2 * logit + 0.6)))  # true logit = 0.5 * shown - 0.3
    slope, intercept = calibration_line(y, over)
    assert (slope, intercept) == (pytest.approx(0.5, abs=0.03), pytest.approx(-0.3, abs=0.05))
    with pytest.raises(NotComputable):
        calibration_line([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
