"""Operating points come from validation predictions and say so."""

import json

import numpy as np
import pytest

from hilum.core.errors import HilumError
from hilum.evaluation.intervals import wilson
from hilum.evaluation.metrics import NotComputable, confusion
from hilum.evaluation.thresholds import OperatingPoint, at_threshold, choose_threshold


def draw(seed, n=300, ties=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.35).astype(float)
    s = 1 / (1 + np.exp(-(rng.normal(size=n) + 1.5 * y - 1)))
    return y, np.round(s * ties) / ties if ties else s, np.arange(n) // 2


def every_cut(y, s):
    cuts = np.r_[np.unique(s), 2.0]
    rates = [confusion(y, s, c) for c in cuts]
    return np.array([c.sensitivity for c in rates]), np.array([c.specificity for c in rates])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [0, 12])
def test_rules_find_the_best_of_all_cuts(seed, ties):
    y, s, group = draw(seed, ties=ties)
    sensitivity, specificity = every_cut(y, s)
    point = choose_threshold(y, s, group, split="val", rule="youden", finding="a")
    c = confusion(y, s, point.threshold)
    assert c.sensitivity + c.specificity == pytest.approx((sensitivity + specificity).max())
    assert (c.sensitivity, c.specificity) == pytest.approx((point.sensitivity, point.specificity))
    for wanted in (0.8, 0.9, 0.95, 1.0):
        c = confusion(y, s, choose_threshold(y, s, group, split="val", rule=f"sensitivity>={wanted}").threshold)
        assert c.sensitivity >= wanted
        assert c.specificity == specificity[sensitivity >= wanted].max()
        c = confusion(y, s, choose_threshold(y, s, group, split="val", rule=f"specificity >= {wanted}").threshold)
        assert c.specificity >= wanted
        assert c.sensitivity == sensitivity[specificity >= wanted].max()


def test_rounding_scores_moves_no_row_across_the_threshold():
    y, s, group = draw(1)
    point = choose_threshold(y, s, group, split="val")
    assert confusion(y, s.astype(np.float32), point.threshold) == confusion(y, s, point.threshold)
    assert not np.isin(point.threshold, s)


@pytest.mark.parametrize("split", ["test", "train", "", "validation-and-test"])
def test_only_validation_predictions_may_choose(split):
    with pytest.raises(HilumError, match="validation"):
        choose_threshold(*draw(0), split=split)
    forged = OperatingPoint("a", 0.5, "youden", split, 10, 10, 0.9, 0.9)
    with pytest.raises(HilumError, match="chosen on"):
        at_threshold(forged, *draw(0), split="test")


def test_a_point_remembers_where_it_came_from_through_json():
    point = choose_threshold(*draw(2), split="val", finding="edema", rule="sensitivity>=0.9")
    assert point.source == "sensitivity>=0.9 on val (300 rows, 150 groups)"
    assert OperatingPoint.from_json(json.loads(json.dumps(point.to_json()))) == point


def test_unknown_rule_and_too_few_groups():
    y, s, group = draw(0)
    for rule in ("best", "sensitivity>=2", "sensitivity=0.9"):
        with pytest.raises(HilumError, match="unknown threshold rule"):
            choose_threshold(y, s, group, split="val", rule=rule)
    few = np.where(group < 4, 1.0, 0.0)
    with pytest.raises(NotComputable, match="only 4 positive groups"):
        choose_threshold(few, s, group, split="val")


def test_rates_at_a_threshold_on_other_rows():
    point = choose_threshold(*draw(0), split="val")
    y, s, _ = draw(9)
    y[:5] = -1
    got = at_threshold(point, y, s, np.arange(300), split="test")
    c = confusion(y, s, point.threshold)
    assert got.counts == c and c.tp + c.fp + c.fn + c.tn == 295
    for name, hits, of in (
        ("sensitivity", c.tp, c.tp + c.fn),
        ("specificity", c.tn, c.tn + c.fp),
        ("ppv", c.tp, c.tp + c.fp),
        ("npv", c.tn, c.tn + c.fn),
    ):
        m = getattr(got, name)
        assert (m.value, m.lo, m.hi) == pytest.approx((hits / of, *wilson(hits, of)))
