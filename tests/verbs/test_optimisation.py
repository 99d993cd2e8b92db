"""What the loop steps with: monitors that are measured, deterministic algorithms, precision this machine has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hilum.core.errors import HilumError
from hilum.core.recipe import Recipe, parse_recipe
from hilum.verbs import resolving
from hilum.verbs.optimisation import loop_settings
from hilum.verbs.resolving import check_precision, note_slow_precision, resolve

YAML = """
recipe: test/one
verb: pretrain
views: {image: {size: 32, channels: 1, normalise: none}}
objective: {name: masked}
encoders: {image: {name: timm/vit_tiny_patch16_224}}
optim: {name: adamw, lr: 1.0e-2}
schedule: {name: constant, epochs: 2}
batch: {size: 4, per_device: 4}
engine: {devices: 1, workers: 0, strategy: single}
probes: {rankme: 1, knn: 0}
"""


def settings(*sets: str, monitor: tuple[str, str] | None = ("val/auroc_macro", "max")) -> Any:
    recipe = parse_recipe(YAML, origin="one.yaml", sets=sets)
    return loop_settings(recipe, steps_per_epoch=3, devices=1, monitor=monitor)


@pytest.mark.parametrize(
    ("sets", "chosen"),
    [
        ((), ("val/auroc_macro", "max")),
        (("schedule.monitor=val/auroc_macro",), ("val/auroc_macro", "max")),
        (("schedule.monitor=val/loss",), ("val/loss", "min")),
        (("schedule.monitor=probe/rankme",), ("probe/rankme", "max")),
    ],
)
def test_the_monitor_is_the_recipe_s(sets: tuple[str, ...], chosen: tuple[str, str]) -> None:
    assert settings(*sets).monitor == chosen


@pytest.mark.parametrize("name", ["val/auroc", "probe/knn_auroc_macro", "val/accuracy"])
def test_a_monitor_that_is_not_measured_is_refused(name: str) -> None:
    with pytest.raises(HilumError, match="does not measure") as caught:
        settings(f"schedule.monitor={name}")
    assert "schedule.monitor" in caught.value.where
    assert "val/auroc_macro" in caught.value.fix


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms_are_switched_on_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    settings()
    assert not torch.are_deterministic_algorithms_enabled()
    settings("engine.deterministic=true")
    assert torch.are_deterministic_algorithms_enabled()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_what_the_schedule_and_rules_refuse_has_the_recipe_s_line() -> None:
    with pytest.raises(HilumError, match="does not fit a run") as caught:
        settings("schedule.warmup_epochs=5")
    assert caught.value.where == "one.yaml:8 (schedule)"  # the section: it takes two keys to be wrong
    with pytest.raises(HilumError, match="matches no parameter") as caught:
        settings("optim.rules=[{match: nothing*}]").optimisers(torch.nn.Linear(2, 2))
    assert caught.value.where == "--set optim.rules"
    with pytest.raises(HilumError, match="neither a number nor a factor"):
        settings("optim.rules=[{match: '*', lr: fast}]").optimisers(torch.nn.Linear(2, 2))


def recipe_with(precision: str) -> Recipe:
    return parse_recipe(YAML, origin="one.yaml", sets=[f"precision={precision}"])


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine without an accelerator, whose processor has no bfloat16 units."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(resolving.platform, "machine", lambda: "x86_64")
    for name in resolving.BF16_UNITS:
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    note_slow_precision.cache_clear()
    yield monkeypatch
    note_slow_precision.cache_clear()


def test_half_precision_on_a_cpu_is_refused(cpu: pytest.MonkeyPatch) -> None:
    with pytest.raises(HilumError, match="16-mixed needs a GPU") as caught:
        check_precision(recipe_with("16-mixed"))
    assert caught.value.where == "--set precision"
    with pytest.raises(HilumError, match="16-mixed needs a GPU"):
        resolve(recipe_with("16-mixed"), None, devices=1)  # type: ignore[arg-type]
    check_precision(recipe_with("bf16-mixed"))
    cpu.setattr(torch.cuda, "is_available", lambda: True)
    check_precision(recipe_with("16-mixed"))


def test_slow_bfloat16_is_told_once(cpu: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        resolve(recipe_with("bf16-mixed"), None, devices=1)  # type: ignore[arg-type]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "--set precision=32-true" in told[0]
    note_slow_precision.cache_clear()
    resolve(recipe_with("32-true"), None, devices=1)  # type: ignore[arg-type]
    cpu.setattr(torch.cpu, resolving.BF16_UNITS[0], lambda: True)
    resolve(recipe_with("bf16-mixed"), None, devices=1)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


def test_a_batch_smaller_than_the_devices_is_told() -> None:
    recipe = parse_recipe(YAML, origin="one.yaml", sets=["batch={size: 1, per_device: auto}"])
    with pytest.raises(HilumError, match="cannot be shared by 2 devices"):
        resolve(recipe, None, devices=2)  # type: ignore[arg-type]
