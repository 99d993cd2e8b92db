"""Paired comparison (arXiv 2308.07688)."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from hilum.core.errors import HilumError
from hilum.evaluation.comparison import benjamini_hochberg, holm, paired_bootstrap


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(150), 2)
    y = (rng.random((150, 3)) < [0.3, 0.5, 0.2])[group].astype(float)
    good = rng.normal(size=y.shape) + 1.5 * y
    return y, good, good + rng.normal(size=y.shape), group


def test_identical_scores_give_p_1_both_ways_and_no_difference_at_all(cohort):
    y, good, _, group = cohort
    same = paired_bootstrap(y, good, good.copy(), group, n=300)
    for row in [*same.rows, same.mean]:
        assert row.p_a_better == row.p_b_better == 1.0
        assert (row.difference.value, row.difference.lo, row.difference.hi) == (0.0, 0.0, 0.0)
    assert np.array_equal(same.redraws_a, same.redraws_b)


def test_a_dominated_model_gives_p_0(cohort):
    y, _, _, group = cohort
    perfect, against = y + 0.0, 0.5 - y  # every positive above every negative, and the reverse
    made = paired_bootstrap(y, perfect, against, group, n=200)
    for row in [*made.rows, made.mean]:
        assert row.p_a_better == 0.0 and row.p_b_better == 1.0
        assert row.difference.value == 1.0
    assert all(row.adjusted_a == 0.0 for row in made.rows)


def test_same_seed_is_bit_identical_and_swapping_swaps(cohort):
    y, good, worse, group = cohort
    one, two = (paired_bootstrap(y, good, worse, group, n=200, seed=4) for _ in range(2))
    assert np.array_equal(one.redraws_a, two.redraws_a) and np.array_equal(one.redraws_b, two.redraws_b)
    assert one.to_json() == two.to_json()
    assert not np.array_equal(one.redraws_a, paired_bootstrap(y, good, worse, group, n=200, seed=5).redraws_a)
    back = paired_bootstrap(y, worse, good, group, n=200, seed=4)
    assert np.array_equal(back.redraws_a, one.redraws_b)
    assert [r.p_b_better for r in back.rows] == [r.p_a_better for r in one.rows]


def test_independent_lists_are_visibly_wider(cohort):
    y, good, _, group = cohort
    near = good + 0.2 * np.random.default_rng(1).normal(size=good.shape)
    paired = paired_bootstrap(y, good, near, group, n=300)
    loose = paired_bootstrap(y, good, near, group, n=300, paired=False)
    for f in range(3):
        tight = np.std(paired.redraws_a[:, f] - paired.redraws_b[:, f])
        assert np.std(loose.redraws_a[:, f] - loose.redraws_b[:, f]) > 2 * tight


def test_p_and_sd_are_shares_and_deviations_of_the_redraws(cohort):
    y, good, worse, group = cohort
    made = paired_bootstrap(y, good, worse, group, n=250)
    for f, row in enumerate(made.rows):
        assert row.p_a_better == np.mean(made.redraws_a[:, f] <= made.redraws_b[:, f])
        assert row.sd_a == pytest.approx(made.redraws_a[:, f].std())
    mean_a, mean_b = made.redraws_a.mean(1), made.redraws_b.mean(1)
    assert made.mean.p_a_better == np.mean(mean_a <= mean_b)
    assert made.mean.a.value == pytest.approx(np.mean([r.a.value for r in made.rows]))


def test_p_values_of_equal_models_are_not_all_small(cohort):
    y, good, _, group = cohort
    rng = np.random.default_rng(3)
    p = [
        paired_bootstrap(
            y[:, :1], good[:, :1] + rng.normal(size=(300, 1)), good[:, :1] + rng.normal(size=(300, 1)), group, n=100
        )
        .rows[0]
        .p_a_better
        for _ in range(40)
    ]
    assert np.mean(np.array(p) < 0.05) < 0.2 and 0.3 < np.mean(p) < 0.7


def test_lower_brier_is_better(cohort):
    y, _, _, group = cohort
    sharp, blunt = 0.05 + 0.9 * y, np.full(y.shape, 0.5)
    made = paired_bootstrap(y, sharp, blunt, group, metric="brier", n=100)
    assert all(r.p_a_better == 0.0 and r.difference.value < 0 for r in made.rows)


def test_repeats_and_folds(cohort):
    y, good, worse, group = cohort
    seeds = np.stack([good, worse])
    made = paired_bootstrap(y, seeds, seeds[::-1], group, n=60, folds=group % 3)
    assert all(r.p_a_better == r.p_b_better == 1.0 for r in made.rows)  # the same set of runs, in another order
    alone = paired_bootstrap(y, good, worse, group, n=60)
    assert not np.array_equal(made.redraws_a, alone.redraws_a)


def test_not_computable_findings_stay_out_of_correction_and_mean(cohort):
    y, good, worse, group = cohort
    y = y.copy()
    y[:, 1] = np.where(group < 3, 1, 0)
    made = paired_bootstrap(y, good, worse, group, names=("a", "rare", "c"), n=100, correction="holm")
    assert made.covered == ("a", "c")
    assert made.rows[1].p_a_better is None and "only 3 positive groups" in made.rows[1].difference.reason
    want = holm([made.rows[0].p_a_better, made.rows[2].p_a_better])
    assert [made.rows[0].adjusted_a, made.rows[2].adjusted_a] == pytest.approx(want.tolist())


def test_corrections_by_hand():
    p = (0.01, 0.02, 0.03, 0.5)
    assert benjamini_hochberg(p) == pytest.approx([0.04, 0.04, 0.04, 0.5])
    assert holm(p) == pytest.approx([0.04, 0.06, 0.06, 0.5])


@pytest.mark.parametrize("seed", range(5))
def test_corrections_equal_statsmodels(seed):
    p = np.random.default_rng(seed).random(14) ** 2
    p[3] = p[5]
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])


@pytest.mark.parametrize("p", [[0.1, np.nan], [1.2], [[0.1]]])
def test_corrections_refuse_what_is_no_p_value(p):
    with pytest.raises(HilumError, match="p-values"):
        benjamini_hochberg(p)
