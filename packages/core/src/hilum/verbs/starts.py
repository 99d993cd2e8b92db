"""Starts that lie in a tracking store, brought to this machine before any encoder looks for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hilum.core.recipe import Recipe
from hilum.tracking.stored import SCHEME, fetch_exported


def local_starts(starts: Mapping[str, str], recipe: Recipe, *, study: Path, into: Path) -> dict[str, str]:
    """``starts`` by encoder, and the recipe's own, with every ``runs:/RUN_ID...`` as a folder below ``into``."""
    encoders = recipe.get("encoders", {})
    told = {name: str(config["init"]) for name, config in encoders.items() if "init" in config} | dict(starts)
    fetched = {n: fetch_exported(init, into, study=study) for n, init in told.items() if init.startswith(SCHEME)}
    return dict(starts) | fetched
