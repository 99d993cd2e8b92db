"""Probes of frozen features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hilum.core.errors import HilumError, LeakError
from hilum.evaluation.probes import KNNProbe, LinearProbe, rankme


def features(seed=0, n_groups=120, dim=12, strength=2.0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), 2)
    y = (rng.random((n_groups, 2)) < [0.5, 0.25])[group].astype(np.float32)
    x = rng.normal(size=(len(group), dim)) * np.linspace(0.2, 5, dim) + 3
    x[:, 0] += strength * 0.2 * y[:, 0]
    x[:, 5] += strength * 2.4 * y[:, 1]
    return torch.tensor(x), torch.tensor(y), [f"{seed}-{g}" for g in group]


@pytest.mark.parametrize("strength", [1e-3, 1e-1, 1.0])
def test_linear_probe_equals_scikit_learn(strength):
    x, y, groups = features()
    y[:30, 1] = float("nan")
    probe = LinearProbe((strength,)).fit(x, y, groups)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    for f in range(2):
        rows = torch.isfinite(y[:, f]).numpy()
        theirs = LogisticRegression(C=1 / (rows.sum() * strength), tol=1e-10, max_iter=5000)
        theirs.fit(z[rows], y[rows, f].numpy())
        assert probe.weight[:, f].numpy() == pytest.approx(theirs.coef_[0], abs=2e-4)
        assert float(probe.bias[f]) == pytest.approx(theirs.intercept_[0], abs=2e-4)
        assert probe.predict(x)[:, f].numpy() == pytest.approx(theirs.predict_proba(z)[:, 1], abs=1e-4)


@pytest.mark.parametrize("probe", [LinearProbe(), KNNProbe(k=15)])
def test_probes_find_what_is_there_and_nothing_where_nothing_is(probe):
    train, held = features(0, strength=4), features(1, strength=4)
    report = probe.fit(*train).score(*held, names=("a", "b"), n=100)
    assert report.covered == ("a", "b")
    assert report.macro["auroc"].lo > 0.7
    x, y, groups = held
    shuffled = torch.tensor(np.random.default_rng(0).normal(size=tuple(x.shape)))
    blind = probe.fit(shuffled, *train[1:]).score(torch.flip(shuffled, [0]), y, groups, n=100)
    assert blind.macro["auroc"].lo < 0.55


def test_the_split_of_groups_picks_the_regularisation():
    x, y, groups = features(dim=80, n_groups=40, strength=1.0)
    more = features(1, n_groups=400, dim=80, strength=1.0)
    chosen = LinearProbe().fit(x, y, groups, validation=more[:2])
    loss = []
    for strength in LinearProbe().strengths:
        p = LinearProbe((strength,)).fit(x, y, groups).predict(more[0]).clamp(1e-12, 1 - 1e-12)
        loss.append(torch.nn.functional.binary_cross_entropy(p, more[1].double(), reduction="none").mean(0))
    best = torch.stack(loss).argmin(0)
    assert chosen.strength.tolist() == [LinearProbe().strengths[i] for i in best]
    assert chosen.strength.max() > 1e-3  # 80 features, 80 rows: little regularisation would fit noise
    assert torch.equal(LinearProbe().fit(x, y, groups).weight, LinearProbe().fit(x, y, groups).weight)


def test_held_out_rows_are_whole_groups():
    _, _, groups = features()
    held = LinearProbe(seed=3)._held_out(groups).numpy()
    names = np.array(groups)
    assert not set(names[held]) & set(names[~held])
    assert held.sum() == 48  # a fifth of 120 groups, two rows each


def test_scoring_fitted_groups_is_a_leak():
    x, y, groups = features()
    with pytest.raises(LeakError, match="fitted and scored"):
        KNNProbe().fit(x, y, groups).score(x, y, groups)


def test_a_finding_without_both_classes_is_never_judged():
    x, y, groups = features()
    y[:, 1] = 0
    for probe in (LinearProbe(), KNNProbe()):
        report = probe.fit(x, y, groups).score(*features(1), names=("a", "b"), n=20)
        assert report.covered == ("a",)
        assert report.finding("b").reason == "never trained: no positive row to learn from"


def test_features_that_are_not_finite_are_refused():
    x, y, groups = features()
    x[3, 2] = float("nan")
    for probe in (LinearProbe(), KNNProbe()):
        with pytest.raises(HilumError, match="NaN or infinite"):
            probe.fit(x, y, groups)
    with pytest.raises(HilumError, match="do not fit"):
        LinearProbe().fit(x[:3], y, groups)


def test_nearest_neighbours_by_hand():
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    y = torch.tensor([[1.0], [0.0], [float("nan")]])
    probe = KNNProbe(k=2, temperature=0.5).fit(bank, y, ["a", "b", "c"])
    query = torch.tensor([[3.0, 1.0]])  # cosines 0.9487 and 0.3162 with the first two
    w = np.exp(np.array([3, 1]) / np.sqrt(10) / 0.5)
    assert float(probe.predict(query)) == pytest.approx(w[0] / w.sum(), abs=1e-6)
    assert torch.allclose(probe.predict(query * 100), probe.predict(query))  # length does not count
    # the nearest two of this one are (0, 1) and the unknown: only the known one speaks
    assert float(probe.predict(torch.tensor([[-1.0, 0.2]]))) == 0.0
    only = KNNProbe(k=1).fit(bank, y, ["a", "b", "c"])
    assert float(only.predict(torch.tensor([[-1.0, 0.0]]))) == 0.5  # all unknown: the prevalence
    assert torch.isfinite(KNNProbe(temperature=1e-4).fit(bank, y, ["a", "b", "c"]).predict(query)).all()


def test_chunks_do_not_change_neighbours():
    x, y, groups = features()
    whole, parts = (KNNProbe(chunk=c).fit(x, y, groups).predict(features(1)[0]) for c in (10_000, 7))
    assert torch.allclose(whole, parts, atol=1e-6)


def test_rankme_closed_forms():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 8, generator=generator)).Q
    assert rankme(basis) == pytest.approx(8.0)  # eight equal singular values
    assert rankme(torch.outer(torch.arange(1.0, 9), torch.ones(5))) == pytest.approx(1.0, abs=1e-5)
    p = torch.tensor([0.7, 0.2, 0.1])
    assert rankme(torch.diag(p)) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), abs=1e-6)
    x = torch.randn(50, 6, generator=generator)
    assert rankme(x) == pytest.approx(rankme(17 * x)) and rankme(x) <= 6
    for bad in (torch.zeros(3, 3), torch.full((3, 3), float("nan"))):
        with pytest.raises((HilumError, RuntimeError)):
            rankme(bad)
