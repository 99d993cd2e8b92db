"""What networks start from: fetched from a tracking store where it lies there, and remembered where it no longer shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilum.core.recipe import Recipe
from hilum.tracking.stored import SCHEME, fetch_exported

if TYPE_CHECKING:
    from torch import nn

ORIGIN = ("licence", "source", "sha256")


def local_starts(starts: Mapping[str, str], recipe: Recipe, *, study: Path, into: Path) -> dict[str, str]:
    """``starts`` by encoder, and the recipe's own, with every ``runs:/RUN_ID...`` as a folder below ``into``."""
    encoders = recipe.get("encoders", {})
    told = {name: str(config["init"]) for name, config in encoders.items() if "init" in config} | dict(starts)
    fetched = {n: fetch_exported(init, into, study=study) for n, init in told.items() if init.startswith(SCHEME)}
    return dict(starts) | fetched


def origins(objective: nn.Module) -> dict[str, dict[str, Any]]:
    """Licence, source and hash of what every encoder started from, by its path in ``objective``.

    No checkpoint holds them, and a model that is rebuilt from one would pass for freshly initialised.
    """
    return {path: {key: getattr(module.spec, key) for key in ORIGIN} for path, module in _encoders(objective)}


def restore_origins(objective: nn.Module, told: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what :func:`origins` said of this objective back into its encoders' specs."""
    for path, module in _encoders(objective):
        module.spec = replace(module.spec, **{k: v for k, v in told.get(path, {}).items() if k in ORIGIN})


def _encoders(objective: nn.Module) -> Iterator[tuple[str, Any]]:
    from hilum.core.types import EncoderSpec

    for path, module in objective.named_modules():
        if isinstance(getattr(module, "spec", None), EncoderSpec):
            yield path, module
