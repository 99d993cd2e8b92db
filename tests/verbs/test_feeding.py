"""How many data workers there are, and where augmentation is applied, follows from the machine."""

from __future__ import annotations

import pytest
import torch

from hilum.augment import compiled
from hilum.core.errors import HilumError, MissingExtra
from hilum.core.recipe import load_recipe
from hilum.verbs import resolving


def machine(patch: pytest.MonkeyPatch, *, gpus: int, cores: int, shared: int = 64 << 30) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    patch.setattr(torch.cuda, "device_count", lambda: gpus)
    patch.setattr(resolving.os, "cpu_count", lambda: cores)
    patch.setattr(resolving, "free_shared_memory", lambda: shared)


@pytest.mark.parametrize(
    ("gpus", "cores", "shared", "sets", "expected"),
    [
        (0, 64, 64 << 30, [], (0, "device")),
        (1, 16, 64 << 30, [], (15, "workers")),
        (4, 32, 64 << 30, [], (7, "workers")),  # cores are shared by the processes of one machine
        (1, 2, 64 << 30, [], (1, "device")),  # one worker would be slower than the card
        (1, 16, 64 << 20, [], (15, "device")),  # a container's 64 MiB hold no dense batch
        (1, 16, 64 << 20, ["engine.augment=workers"], (15, "workers")),
        (1, 16, 64 << 30, ["engine.workers=3", "engine.augment=device"], (3, "device")),
    ],
)
def test_machines(
    gpus: int, cores: int, shared: int, sets: list[str], expected: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus=gpus, cores=cores, shared=shared)
    recipe = load_recipe("medical/mae-cxr-s", sets=sets)
    assert resolving.feeding(recipe, 256) == expected


@pytest.mark.parametrize(
    ("gpus", "numba", "told", "augment", "expected"),
    [
        (0, True, "auto", "device", "compiled"),
        (0, False, "auto", "device", "reference"),
        (0, True, "reference", "device", "reference"),
        (1, True, "auto", "workers", "compiled"),  # the workers are on the processor
        (1, True, "auto", "device", "reference"),
        (1, True, "compiled", "workers", "compiled"),
    ],
)
def test_back_ends(
    gpus: int, numba: bool, told: str, augment: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus=gpus, cores=16)
    monkeypatch.setattr(compiled, "installed", lambda: numba)
    recipe = load_recipe("medical/mae-cxr-s", sets=[f"engine.backend={told}"])
    assert resolving.backend_of(recipe, augment) == expected


def test_a_back_end_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("medical/mae-cxr-s", sets=["engine.backend=compiled"])
    machine(monkeypatch, gpus=1, cores=16)
    with pytest.raises(HilumError, match="works on the processor") as caught:
        resolving.backend_of(recipe, "device")
    assert "engine.augment=workers" in caught.value.fix
    monkeypatch.setattr(compiled, "installed", lambda: False)
    with pytest.raises(MissingExtra) as missing:
        resolving.backend_of(recipe, "workers")
    assert "[cpu]" in missing.value.fix and "numba" in str(missing.value)
    with pytest.raises(HilumError, match=r"engine\.backend must be"):
        load_recipe("medical/mae-cxr-s", sets=["engine.backend=fast"])
