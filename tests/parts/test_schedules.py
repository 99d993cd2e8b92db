"""Schedules against arXiv 2210.12843's formula and on their corners."""

import math
import pickle

import pytest

from hilum.core.errors import HilumError
from hilum.core.types import Progress
from hilum.parts.schedules import Schedule, build_schedule, constant, cosine, step, warmup_cosine


def card(e, *, base, floor, warm, epochs):
    if e < warm:
        return base * e / warm
    return floor + (base - floor) * 0.5 * (1 + math.cos(math.pi * (e - warm) / (epochs - warm)))


def test_warmup_cosine_is_card_28_in_epochs_and_steps():
    schedule = warmup_cosine(75, 5, base=1e-3, floor=1e-5)
    for e in (0, 0.5, 4.999, 5, 20.25, 74.9, 75):
        assert math.isclose(schedule(e), card(e, base=1e-3, floor=1e-5, warm=5, epochs=75), rel_tol=1e-12)
    assert schedule(80) == 1e-5
    assert warmup_cosine(10, 0)(0) == 1.0
    assert warmup_cosine(10, 10)(10) == 1.0


def test_recipe_schedule_is_a_multiplier_updated_every_step():
    config = {"name": "cosine", "epochs": 75, "warmup_epochs": 5, "min_lr": 1e-5}
    multiplier = build_schedule(config, steps_per_epoch=13, total_steps=75 * 13, base_lr=1e-3)
    for s in (0, 1, 64, 65, 66, 400, 974):
        expected = card(s / 13, base=1e-3, floor=1e-5, warm=5, epochs=75)
        assert math.isclose(1e-3 * multiplier(s), expected, rel_tol=1e-12, abs_tol=1e-18)


def test_constant_and_step_names_warm_up_too():
    flat = build_schedule({"name": "constant", "warmup_epochs": 2}, steps_per_epoch=10, total_steps=100)
    assert [flat(s) for s in (0, 5, 20, 99)] == [0.0, 0.25, 1.0, 1.0]
    drops = build_schedule({"name": "step", "milestones": [3, 6], "factor": 0.5}, steps_per_epoch=10, total_steps=100)
    assert [drops(s) for s in (0, 29, 30, 59, 60)] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_units_of_time():
    progress = Progress(step=25, total_steps=100)
    assert math.isclose(cosine(0.996, 1.0).at(progress), 1 - 0.004 * (math.cos(math.pi / 4) + 1) / 2)
    assert math.isclose(warmup_cosine(100, 50).at(progress), 0.5)
    assert constant(0.9).at(progress) == 0.9
    assert step([10, 25], gamma=0.1, base=2.0).at(progress) == pytest.approx(0.02)
    assert Schedule(lambda t: 2 * t, "step").at(progress) == 50
    assert cosine(1.0, 0.5)(7.0) == 0.5


def test_schedules_can_be_sent_to_another_process():
    schedule = warmup_cosine(100, 10)
    assert pickle.loads(pickle.dumps(schedule))(55) == schedule(55)


def test_errors_name_the_key():
    with pytest.raises(HilumError, match="cosine"):
        build_schedule({"name": "cosin"}, steps_per_epoch=1, total_steps=1)
    with pytest.raises(HilumError, match="warm-up of 40"):
        build_schedule({"warmup_epochs": 4}, steps_per_epoch=10, total_steps=20)
    with pytest.raises(HilumError, match="min_lr"):
        build_schedule({"min_lr": 1e-5}, steps_per_epoch=1, total_steps=2)
