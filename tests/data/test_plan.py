"""Plans: every sample once an epoch, in an order that seed, epoch and samples alone decide."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.core.errors import HilumError
from hilum.core.types import Request, SampleKey
from hilum.data.plan import Sequential, Shuffle


def ids(n: int) -> list[str]:
    return [f"{(i * 2654435761) % 2**32:08x}{i:024x}" for i in range(n)]


def flat(plan: Shuffle, epoch: int) -> list[Request]:
    return [r for step in plan.steps(epoch) for r in step["main"]]


@settings(max_examples=40)
@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_every_sample_once_an_epoch(n: int, size: int, seed: int, epoch: int, drop: bool) -> None:
    if drop and n < size:
        with pytest.raises(HilumError, match="make no step"):
            Shuffle(np.arange(n), ids(n), batch_size=size, drop_last=True)
        return
    plan = Shuffle(np.arange(n) + 100, ids(n), batch_size=size, seed=seed, drop_last=drop)
    sizes = [len(s["main"]) for s in plan.steps(epoch)]
    rows = [r.row for r in flat(plan, epoch)]
    assert sizes == plan.sizes(epoch) and len(sizes) == plan.steps_per_epoch(epoch)
    assert sum(sizes) == plan.samples_per_epoch(epoch) == (n - n % size if drop else n)
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(100, 100 + n))
    assert all(s == size for s in sizes[:-1])
    for request in flat(plan, epoch):
        assert request.key == SampleKey(seed, epoch, int(ids(n)[request.row - 100][:8], 16))


@settings(max_examples=25)
@given(st.integers(2, 40), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(n: int, random: object) -> None:
    order = list(range(n))
    random.shuffle(order)  # type: ignore[attr-defined]
    one = Shuffle(np.arange(n), ids(n), batch_size=4, seed=3)
    two = Shuffle(order, [ids(n)[i] for i in order], batch_size=4, seed=3)
    assert flat(one, 2) == flat(two, 2)
    assert one.state_dict() == two.state_dict()


def test_epochs_and_seeds_differ_and_repeat() -> None:
    plan = Shuffle(np.arange(64), ids(64), batch_size=8, seed=1)
    orders = [[r.row for r in flat(plan, e)] for e in range(4)]
    assert len({tuple(o) for o in orders}) == 4
    assert [r.row for r in flat(plan, 2)] == orders[2]
    assert [r.row for r in flat(Shuffle(np.arange(64), ids(64), batch_size=8, seed=2), 0)] != orders[0]


def test_the_batch_size_does_not_change_the_order() -> None:
    a, b = (Shuffle(np.arange(30), ids(30), batch_size=s, seed=0) for s in (4, 7))
    assert flat(a, 5) == flat(b, 5)


def test_any_step_can_be_the_first() -> None:
    plan = Shuffle(np.arange(23), ids(23), batch_size=4, seed=0)
    whole = list(plan.steps(3))
    for start in range(7):
        assert list(plan.steps(3, start=start)) == whole[start:] == list(islice(plan.steps(3), start, None))


def test_sequential_keeps_the_order_given() -> None:
    rows = np.array([9, 2, 5, 7])
    plan = Sequential(rows, ids(4), batch_size=3)
    assert [r.row for r in flat(plan, 0)] == [r.row for r in flat(plan, 8)] == rows.tolist()
    assert [r.key.sample for r in flat(plan, 0)] == [int(i[:8], 16) for i in ids(4)]
    assert plan.sizes(0) == [3, 1]


def test_going_on_with_other_samples_is_refused() -> None:
    plan = Shuffle(np.arange(20), ids(20), batch_size=4, seed=0)
    state = plan.state_dict()
    Shuffle(np.arange(20)[::-1], ids(20)[::-1], batch_size=4, seed=0).load_state_dict(state)
    others = [
        Shuffle(np.arange(20), ids(20), batch_size=5, seed=0),
        Shuffle(np.arange(20), ids(20), batch_size=4, seed=1),
        Shuffle(np.arange(19), ids(19), batch_size=4, seed=0),
        Sequential(np.arange(20), ids(20), batch_size=4),
    ]
    for other in others:
        with pytest.raises(HilumError, match="cannot go on with other samples or batches"):
            other.load_state_dict(state)
