"""Feeding: every sample asked for is delivered or named, whatever it does to the process that reads it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fake.feeds import Draws, Pictures, Toy, name_of
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_on_ranks

from hilum.core.errors import HilumError, TooManyBadSamples
from hilum.core.types import BadSample, Batch
from hilum.data import pump
from hilum.data.module import DataModule, EpochAccount
from hilum.data.plan import Sequential, Shuffle


def ids(n: int) -> list[str]:
    return [name_of(i) for i in range(n)]


def module_of(source: Toy, *, batch: int = 4, seed: int = 0, drop_last: bool = False, **options: Any) -> DataModule:
    n = len(source)
    plans = {
        "train": Shuffle(np.arange(n), ids(n), batch_size=batch, seed=seed, drop_last=drop_last),
        "val": Sequential(np.arange(n), ids(n), batch_size=batch),
    }
    return DataModule({"train": source, "val": source}, plans, **{"workers": 0, **options})


def names(steps: list[list[Batch]]) -> list[list[list[str]]]:
    return [[[m.sample_id for m in b.meta] for b in micro] for micro in steps]


def flat(steps: list[list[Batch]]) -> list[str]:
    return [m.sample_id for micro in steps for b in micro for m in b.meta]


def bad_of(steps: list[list[Batch]]) -> dict[str, str]:
    return {x.sample_id: x.reason for micro in steps for b in micro for x in b.bad}


# ---- steps, ranks, micro-batches ---------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_ranks_and_micro_batches_share_every_global_step(
    n: int, batch: int, world: int, accumulate: int, epoch: int
) -> None:
    module = module_of(Toy(n), batch=batch)
    wanted = [[module.sources["train"].sample_id(r.row) for r in s["main"]] for s in module.plan("train").steps(epoch)]
    ranks = [list(module.train_loader(epoch, rank=r, world=world, accumulate=accumulate)) for r in range(world)]
    for step, asked in enumerate(wanted):
        mine = [[m.sample_id for b in ranks[r][step] for m in b.meta] for r in range(world)]
        assert mine == [asked[r::world] for r in range(world)]
        assert len({len(ranks[r][step]) for r in range(world)}) == 1, "every rank has equally many micro-batches"
        assert 1 <= len(ranks[0][step]) <= accumulate
    assert all(len(steps) == len(wanted) == module.steps_per_epoch for steps in ranks)
    for r in range(world):
        assert module.train_loader(epoch, rank=r, world=world).expected == len(flat(ranks[r]))
    largest = -(-(-(-min(batch, n) // world)) // accumulate)
    assert max(b.size for steps in ranks for micro in steps for b in micro) <= largest


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_resuming_inside_an_epoch_gives_the_remaining_steps(start: int) -> None:
    module = module_of(Toy(21), augmenter=Draws())
    whole = list(module.train_loader(2, world=2, rank=1))
    rest = list(module_of(Toy(21), augmenter=Draws()).train_loader(2, start_step=start, world=2, rank=1))
    assert names(rest) == names(whole)[start:]
    draws = [[m.extra["draws"] for b in micro for m in b.meta] for micro in whole]
    assert [[m.extra["draws"] for b in micro for m in b.meta] for micro in rest] == draws[start:]
    assert len(module.train_loader(2, start_step=start)) == 6 - start


def test_evaluation_goes_in_order_and_is_shared_by_ranks() -> None:
    module = module_of(Toy(10), augmenter=Draws())
    batches = list(module.loader("val"))
    assert [m.sample_id for b in batches for m in b.meta] == ids(10)
    assert all(m.extra["draws"] == -1 for b in batches for m in b.meta)
    shared = [m.sample_id for r in range(3) for b in module.loader("val", rank=r, world=3) for m in b.meta]
    assert sorted(shared) == sorted(ids(10)) and len(shared) == 10
    assert module.augment(batches[0], train=False).extra == {"applied": False}
    with pytest.raises(HilumError, match="no data for 'tets'"):
        module.loader("tets")


def test_side_streams_arrive_beside_the_batch() -> None:
    class Support(Shuffle):
        def steps(self, epoch: int, *, start: int = 0) -> Any:
            for step in super().steps(epoch, start=start):
                yield {**step, "support": step["main"][::-1][:2]}

    support = Toy(12)
    plan = Support(np.arange(12), ids(12), batch_size=6)
    module = DataModule({"train": Toy(12)}, {"train": plan}, streams={"support": support}, workers=0)
    for micro, step in zip(module.train_loader(0, accumulate=2), plan.steps(0), strict=True):
        told = [m.sample_id for b in micro for m in b.streams["support"].meta]
        assert told == [name_of(r.row) for r in step["support"]]
        assert [b.streams["support"].size for b in micro] == [1, 1]


# ---- bad samples -------------------------------------------------------------------------------------------------

FAULTS = {2: "stop", 5: "memory", 7: "deep", 11: "value", 13: "hilum", 14: "none"}
REASONS = {
    2: "stop_iteration",
    5: "memory_error",
    7: "recursion_error",
    11: "value_error",
    13: "hilum_error",
    14: "contract",
}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_failure_is_one_bad_sample_and_no_epoch_is_short(workers: int) -> None:
    module = module_of(Toy(18, FAULTS), workers=workers, augmenter=Draws(failing=(name_of(16),)), max_bad=0.5)
    for epoch in (0, 1):
        steps = []
        for micro in module.train_loader(epoch):
            module.account(sum(b.size for b in micro), [x for b in micro for x in b.bad], epoch=epoch)
            module.check_account(epoch=epoch, final=False)
            steps.append(micro)
        module.check_account(epoch=epoch, final=True)
        assert len(steps) == module.steps_per_epoch == 5
        assert bad_of(steps) == {name_of(r): reason for r, reason in (REASONS | {16: "stop_iteration"}).items()}
        assert sorted(flat(steps)) == sorted(name_of(r) for r in range(18) if r not in FAULTS and r != 16)
        assert sum(b.expected for micro in steps for b in micro) == 18
    messages = [x.message for micro in steps for b in micro for x in b.bad]
    assert not any("DOE" in m for m in messages), "foreign messages may quote headers"
    assert any("feeds.py:" in m for m in messages) and any("this one is not readable" in m for m in messages)
    module.close()


def test_a_batch_of_bad_samples_is_delivered_empty() -> None:
    module = module_of(Toy(8, dict.fromkeys(range(8), "stop")))
    steps = list(module.train_loader(0))
    assert [[(b.size, b.expected, b.views) for b in micro] for micro in steps] == [[(0, 4, {})]] * 2


@pytest.mark.integration
def test_workers_change_nothing(tmp_path: Path) -> None:
    plain = module_of(Toy(17), augmenter=Draws())
    several = module_of(Toy(17), augmenter=Draws(), workers=2)
    for epoch in (0, 1, 2):
        a, b = (list(m.train_loader(epoch, accumulate=2)) for m in (plain, several))
        assert names(a) == names(b)
        for x, y in zip((b for s in a for b in s), (b for s in b for b in s), strict=True):
            assert torch.equal(x.views["image"], y.views["image"]) and x.meta == y.meta
            assert torch.equal(x.targets["labels"], y.targets["labels"])
    # An iteration that is given up, two at once, and evaluation in between.
    given_up = iter(several.train_loader(3))
    next(given_up)
    assert names(list(several.train_loader(3))) == names(list(plain.train_loader(3)))
    one, two = several.loader("val"), several.loader("val")
    mixed = [(next(one).meta, next(two).meta) for _ in range(3)]
    assert all(a == b for a, b in mixed)
    several.close()


@pytest.mark.integration
def test_dead_workers_cost_one_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Toy(24, {3: "kill", 10: "segfault", 4: "kill once", 20: "kill once", 15: "stop"}, folder=tmp_path)
    module = module_of(source, workers=2, augmenter=Draws())
    with caplog.at_level(logging.WARNING):
        steps = list(module.train_loader(0))
    healthy = list(module_of(Toy(24), augmenter=Draws()).train_loader(0))
    lost = {name_of(3): "worker_died", name_of(10): "worker_died", name_of(15): "stop_iteration"}
    assert bad_of(steps) == lost
    assert names(steps) == [[[s for s in b if s not in lost] for b in micro] for micro in names(healthy)]
    told = {x.sample_id: x.message for micro in steps for b in micro for x in b.bad}
    assert "SIGKILL" in told[name_of(3)] and "SIGSEGV" in told[name_of(10)]
    assert "memory free" in caplog.text and "samples asked for last" in caplog.text
    # The next epoch does not try them again.
    caplog.clear()
    assert bad_of(list(module.train_loader(1))) == lost and "ended" not in caplog.text
    module.close()


@pytest.mark.integration
def test_a_sample_that_takes_for_ever_is_bad() -> None:
    module = module_of(Toy(8, {5: "hang"}), workers=1, sample_seconds=1.5)
    steps = list(module.train_loader(0))
    assert bad_of(steps) == {name_of(5): "timeout"} and len(flat(steps)) == 7
    module.close()


@pytest.mark.integration
def test_workers_that_always_die_end_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "RESTARTS", 1)
    module = module_of(Toy(4, {1: "ends on sending"}), workers=1)
    with pytest.raises(HilumError, match=r"data workers ended 2 times in a row \(exit code 7\)") as caught:
        list(module.train_loader(0))
    text = str(caught.value)
    assert "memory free" in text and "/dev/shm" in text and name_of(0) in text and "--workers" in text


@pytest.mark.integration
def test_silent_workers_end_in_one_message() -> None:
    module = module_of(Toy(4, {1: "unsendable"}), workers=1, sample_seconds=2.0)
    with pytest.raises(HilumError, match="silent for"):
        list(module.train_loader(0))


def test_a_source_that_cannot_travel_is_told_before_the_start() -> None:
    source = Toy(4)
    source.local = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(HilumError, match="cannot be sent to worker processes") as caught:
        list(module_of(source, workers=1).train_loader(0))
    assert "--workers 0" in str(caught.value)


# ---- the account -------------------------------------------------------------------------------------------------


def test_too_many_bad_samples_stop_the_run_after_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.parquet"
    module = module_of(Toy(100, dict.fromkeys(range(0, 100, 25), "stop")), batch=10, max_bad=0.02, bad_path=path)
    delivered = 0
    with pytest.raises(TooManyBadSamples, match=r"3 of 100 samples of epoch 4 cannot be read; at most 2.00%") as caught:
        for micro in module.train_loader(4):
            module.account(sum(b.size for b in micro), [x for b in micro for x in b.bad], epoch=4)
            module.check_account(epoch=4, final=False)
            delivered += sum(b.size for b in micro)
    assert caught.value.exit_code == 4 and "3 stop_iteration" in str(caught.value)
    table = pq.read_table(path).to_pylist()
    assert len(table) == 3 and {r["reason"] for r in table} == {"stop_iteration"} and {r["epoch"] for r in table} == {4}
    assert {r["sample_id"] for r in table} <= {name_of(r) for r in range(0, 100, 25)}


def test_few_bad_samples_are_written_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    path = tmp_path / "bad_samples.parquet"
    module = module_of(Toy(20, {6: "value"}), max_bad=0.05, bad_path=path)
    for epoch in (0, 1):
        for micro in module.train_loader(epoch):
            module.account(sum(b.size for b in micro), [x for b in micro for x in b.bad], epoch=epoch)
        module.check_account(epoch=epoch, final=True)
    rows = pq.read_table(path).to_pylist()
    assert [(r["epoch"], r["split"], r["sample_id"]) for r in rows] == [(e, "train", name_of(6)) for e in (0, 1)]


def test_a_silently_short_epoch_is_an_error() -> None:
    account = EpochAccount(expected=10, total=10, epoch=2)
    account.add(7, [BadSample("a", "x")])
    account.check(0.5)
    with pytest.raises(HilumError, match="asked for 10 samples, 7 came, 1 failed"):
        account.check(0.5, final=True)
    account.add(2, [])
    account.check(0.5, final=True)
    assert account.delivered + len(account.bad) == account.expected


def test_a_plan_that_promises_more_than_it_gives_is_an_error() -> None:
    class Short(Shuffle):
        def steps(self, epoch: int, *, start: int = 0) -> Any:
            return iter(list(super().steps(epoch, start=start))[:-1])

    module = DataModule({"train": Toy(12)}, {"train": Short(np.arange(12), ids(12), batch_size=4)}, workers=0)
    with pytest.raises(HilumError, match="ended after 2 of its 3 steps"):
        list(module.train_loader(0))


def test_sources_and_plans_belong_together() -> None:
    with pytest.raises(HilumError, match="val: every split needs both"):
        DataModule({"train": Toy(2), "val": Toy(2)}, {"train": Shuffle([0, 1], ids(2), batch_size=1)})
    module = module_of(Toy(3))
    with pytest.raises(HilumError, match="rank 2 of 2"):
        module.train_loader(0, rank=2, world=2)
    with pytest.raises(HilumError, match="loader was not made"):
        module.account(1, [], epoch=0)


def test_workers_are_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    from types import SimpleNamespace

    import psutil

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=200 << 30))
    assert pump.auto_workers() == 11
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 << 30))
    assert pump.auto_workers() == 3


# ---- the account over a stop, evaluation, and ranks ---------------------------------------------------------------


def count(module: DataModule, epoch: int, *, steps: int | None = None, start: int = 0) -> None:
    for at, micro in enumerate(module.train_loader(epoch, start_step=start)):
        module.account(sum(b.size for b in micro), [x for b in micro for x in b.bad], epoch=epoch)
        module.check_account(epoch=epoch, final=False)
        if at + 1 == steps:
            return


def test_a_resumed_epoch_goes_on_with_its_account(tmp_path: Path) -> None:
    path, faults = tmp_path / "bad_samples.parquet", dict.fromkeys(range(0, 100, 10), "value")

    def fresh(share: float) -> DataModule:
        return module_of(Toy(100, faults), batch=10, max_bad=share, bad_path=path)

    first = fresh(0.08)
    count(first, 3, steps=5)
    state = json.loads(json.dumps(first.state_dict()))  # a checkpoint holds plain values
    before = len(state["account"]["bad"])
    assert 0 < before < 9 and state["account"]["delivered"] + before == 50
    assert pq.read_table(path).num_rows == before, "the list is as old as the checkpoint"
    resumed = fresh(0.08)
    resumed.load_state_dict(state)
    with pytest.raises(TooManyBadSamples, match=r"(9|10) of 100 samples of epoch 3"):
        count(resumed, 3, start=5)
    patient = fresh(0.5)
    patient.load_state_dict(state)
    count(patient, 3, start=5)
    account = patient._account
    assert account is not None and account.expected == account.total == 100 == account.delivered + len(account.bad)
    patient.check_account(epoch=3, final=True)
    assert {r["sample_id"] for r in pq.read_table(path).to_pylist()} == {name_of(r) for r in faults}
    count(patient, 4)  # another epoch begins at nought
    assert patient._account is not None and patient._account.expected == 100
    patient._account.delivered -= 1
    with pytest.raises(HilumError, match="asked for 100 samples, 89 came, 10 failed"):
        patient.check_account(epoch=4, final=True)


@pytest.mark.integration
def test_workers_that_augment_give_what_the_device_gives() -> None:
    from hilum.augment.augmenter import Augmenter

    views, policy = {"image": {"size": 32, "channels": 3}}, {"resized_crop": [0.5, 1.0], "rotate": 10, "noise": 0.02}
    modules = [
        module_of(
            Pictures(12),
            batch=4,
            workers=workers,
            augmenter=Augmenter(views, policy, norm={"image": ((0.4,) * 3, (0.25,) * 3)}),
            augment_in_workers=workers > 0,
        )
        for workers in (0, 1)
    ]
    for train in (True, False):
        seen = []
        for module in modules:
            steps = [b for step in module.train_loader(0) for b in step] if train else list(module.loader("val"))
            seen.append([module.augment(b, train=train) for b in steps])
        assert len(seen[0]) == len(seen[1]) > 0
        for here, there in zip(*seen, strict=True):
            assert here.norm == there.norm and [m.geometry["image"].size for m in there.meta] == [(32, 32)] * there.size
            assert torch.equal(here.views["image"], there.views["image"])
    for module in modules:
        module.close()


def test_a_run_does_not_go_on_with_other_samples_than_it_had() -> None:
    state = module_of(Toy(100), batch=10).state_dict()
    module_of(Toy(100), batch=10).load_state_dict(state)
    for other in (module_of(Toy(99), batch=10), module_of(Toy(100), batch=20)):
        with pytest.raises(HilumError, match="other samples or batches"):
            other.load_state_dict(state)


def test_what_one_stop_reported_does_not_stop_the_mended_run_again() -> None:
    faults = dict.fromkeys(range(0, 100, 25), "value")
    module = module_of(Toy(100, faults), batch=10, max_bad=0.02)
    with pytest.raises(TooManyBadSamples):
        count(module, 0)
    account = module._account
    assert account is not None
    steps = (account.delivered + len(account.bad)) // 10
    state = module.state_dict()
    mended = module_of(Toy(100), batch=10, max_bad=0.02)
    mended.load_state_dict(state)
    count(mended, 0, start=steps)
    mended.check_account(epoch=0, final=True)
    assert mended._account is not None and len(mended._account.bad) == 3 == state["account"]["told"]


def test_evaluation_is_accounted_like_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "bad_samples.parquet"
    module = module_of(Toy(20, {6: "value"}), max_bad=0.05, bad_path=path)
    for epoch in (0, 1):
        count(module, epoch)
        list(module.loader("val"))
        next(module.loader("val"))  # given up: no pass over the split, no account
        assert [a.counts for a in module.evaluated] == [
            {"expected": 20, "delivered": 19, "missing": {"value_error": 1}}
        ]
        module.check_account(epoch=epoch, final=True)
        assert module.evaluated == []
    rows = [(r["epoch"], r["split"]) for r in pq.read_table(path).to_pylist()]
    assert sorted(rows) == [(0, "train"), (0, "val"), (1, "train"), (1, "val")]
    told = [r.getMessage() for r in caplog.records]
    assert told == [f"epoch 0, {s}: 19 of 20 samples delivered, missing: 1 value_error" for s in ("train", "val")]
    strict = module_of(Toy(20, {6: "value"}), max_bad=0.01, bad_path=path)
    list(strict.loader("val"))
    with pytest.raises(TooManyBadSamples, match="1 of 20 samples of val cannot be read"):
        strict.check_evaluated()
    assert (-1, "val") in [(r["epoch"], r["split"]) for r in pq.read_table(path).to_pylist()]


@pytest.mark.integration
def test_bad_samples_of_every_rank_are_listed_and_carried_over_a_stop(tmp_path: Path) -> None:
    told = run_on_ranks("account_ranks:train", tmp_path)
    assert told["bad"] == sorted(name_of(r) for r in (0, 5, 9)) and told["delivered"] == 9
    rows = pq.read_table(tmp_path / "bad_samples.parquet").to_pylist()
    assert sorted({r["sample_id"] for r in rows if r["split"] == "train"}) == told["bad"]
    assert sorted({r["sample_id"] for r in rows if r["split"] == "val"}) == told["bad"]
    assert told["strict"] == "3 of 12 samples of epoch 0 cannot be read; at most 20.00% may fail"
    assert told["val"] == "3 of 12 samples of val after epoch 0 cannot be read; at most 20.00% may fail"
