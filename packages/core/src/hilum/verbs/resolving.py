"""What a recipe leaves to the machine: every ``auto``, and whether its precision can, and should, be used here."""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from hilum.core.errors import HilumError
from hilum.core.recipe import Recipe
from hilum.verbs.launch import own_rank

if TYPE_CHECKING:
    from hilum.verbs.run_data import Data

BF16_UNITS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of torch.cpu: private, and not in every version


def resolve(recipe: Recipe, data: Data, *, devices: int) -> Recipe:
    """Every ``auto`` replaced by what it stands for here."""
    from hilum.verbs.run_data import image_statistics

    check_precision(recipe)
    note_slow_precision(recipe["precision"])
    changes: dict[str, Any] = {"batch": {}, "engine": {}, "views": {}}
    size = int(recipe["batch"]["size"])
    per_device = recipe["batch"]["per_device"]
    if per_device == "auto":
        cap = 256 if torch.cuda.is_available() else 64
        per_device = min(size // max(devices, 1), cap)
    if size < devices:
        raise HilumError(
            f"a batch of {size} cannot be shared by {devices} devices",
            where=recipe.where("batch.size"),
            fix=f"--set batch.size={devices}, or fewer engine.devices",
        )
    changes["batch"] = {"per_device": per_device}
    workers, augment = feeding(recipe, per_device)
    changes["engine"] = {
        "workers": workers, "augment": augment, "backend": backend_of(recipe, augment), "devices": devices,
        "strategy": strategy_of(recipe, devices),
    }  # fmt: skip
    for name, view in recipe["views"].items():
        if view.get("normalise", "none") == "dataset":
            mean, std = image_statistics(data)
            changes["views"][name] = {"normalise": [[round(mean, 6)], [round(std, 6)]]}
    return recipe.with_(changes)


def feeding(recipe: Recipe, per_device: int) -> tuple[int, str]:
    """(data workers, where augmentation is applied) of a process that trains on one device.

    The plain torch back-end treats samples one by one: on a GPU it is bound by launches, at about 1 ms a sample, and
    cores are faster. Dense batches then wait in shared memory, which a container may have little of.
    """
    workers, augment = recipe["engine"]["workers"], str(recipe["engine"]["augment"])
    gpu = torch.cuda.is_available()
    if workers == "auto":
        workers = min(16, max((os.cpu_count() or 2) // max(torch.cuda.device_count(), 1) - 1, 1)) if gpu else 0
    if augment == "auto":
        dense = sum(4 * view.get("channels", 3) * math.prod(_sides(view["size"])) for view in _sized(recipe))
        fits = workers * 3 * per_device * dense < free_shared_memory() / 2  # two ahead of each worker, one in use
        augment = "workers" if gpu and workers > 1 and fits else "device"
    return int(workers), augment


def backend_of(recipe: Recipe, augment: str) -> str:
    """What computes augmented pixels, on the device or in the workers as ``augment`` says."""
    from hilum.augment.augmenter import resolve_backend
    from hilum.verbs.components import told_by

    told, cpu = str(recipe["engine"]["backend"]), augment == "workers" or not torch.cuda.is_available()
    if told == "compiled" and not cpu:
        raise HilumError(
            "the compiled augmentation back-end works on the processor, and this run augments on a GPU",
            where=recipe.where("engine.backend"),
            fix="--set engine.augment=workers, or engine.backend=auto",
        )
    with told_by(recipe, "engine.backend", "the augmentation"):
        return resolve_backend(told, cpu=cpu)


def free_shared_memory() -> int:
    """Bytes left where processes share tensors."""
    place = Path("/dev/shm")
    return shutil.disk_usage(place).free if place.exists() else psutil.virtual_memory().available


def _sized(recipe: Recipe) -> list[dict[str, Any]]:
    return [view for view in recipe["views"].values() if "size" in view]


def _sides(size: Any) -> tuple[int, ...]:
    return (int(size),) * 2 if isinstance(size, int) else tuple(map(int, size))


def strategy_of(recipe: Recipe, devices: int) -> str:
    """``single`` on one device, else ``ddp`` or what the recipe says."""
    told = str(recipe["engine"]["strategy"])
    return ("ddp" if devices > 1 else "single") if told in ("auto", "single") else told


def check_precision(recipe: Recipe) -> None:
    """Raise where no device here trains in the recipe's precision."""
    if recipe["precision"] == "16-mixed" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise HilumError(
            "16-mixed needs a GPU, and this machine shows none",
            where=recipe.where("precision"),
            fix="--set precision=32-true, or bf16-mixed",
        )


@cache
def note_slow_precision(precision: str) -> None:
    """One line, once, where bfloat16 runs on a processor that has to emulate it (60 times slower than float32)."""
    if precision != "bf16-mixed" or torch.cuda.is_available() or torch.backends.mps.is_available() or own_rank():
        return
    units = [getattr(torch.cpu, name, None) for name in BF16_UNITS]
    if platform.machine().lower() in ("x86_64", "amd64") and not any(has() for has in units if callable(has)):
        print(
            "note: this processor has no bfloat16 units, bf16-mixed will be very slow: --set precision=32-true",
            file=sys.stderr,
        )
