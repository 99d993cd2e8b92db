"""What networks start from: fetched from a tracking store where it lies there, and remembered where it no longer shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilum.core.errors import LeakError
from hilum.core.recipe import Recipe
from hilum.tracking.stored import SCHEME, fetch_exported
from hilum.verbs.launch import own_rank

if TYPE_CHECKING:
    from torch import nn

ORIGIN = ("licence", "source", "sha256")


def local_starts(starts: Mapping[str, str], recipe: Recipe, *, study: Path, into: Path) -> dict[str, str]:
    """``starts`` by encoder, and the recipe's own, with every ``runs:/RUN_ID...`` as a folder below ``into``."""
    encoders = recipe.get("encoders", {})
    told = {name: str(config["init"]) for name, config in encoders.items() if "init" in config} | dict(starts)
    fetched = {n: fetch_exported(init, into, study=study) for n, init in told.items() if init.startswith(SCHEME)}
    return dict(starts) | fetched


def learned_from(starts: Mapping[str, str], recipe: Recipe, data: Any, *, before: Mapping[str, Any]) -> dict[str, Any]:
    """What ``run.json`` keeps of the published datasets behind a run: ``datasets``, its own study's last, and
    ``allowed_overlaps``. LeakError where a start learned from images that this study's test part may hold.

    ``before``: what was noted when a run that is resumed began; it no longer has its starts.
    """
    from hilum.data.overlaps import refuse_overlap

    if "datasets" in before:
        return {key: before[key] for key in ("datasets", "allowed_overlaps") if key in before}
    earlier, own, plan = datasets_of(starts, recipe), data.study.about.get("dataset"), recipe["run"]
    held_out = data.split is not None and bool((data.split.split == "test").any())
    allowed = plan.get("allow_overlap", ())
    notes = refuse_overlap(earlier, own if held_out else None, allowed=allowed)
    if held_out and own is not None and own not in allowed:
        _refuse_resplit(starts, recipe, own, data.split_digest)
    if notes and own_rank() == 0:
        print("\n".join(f"note: {note}" for note in notes))
    datasets = list(dict.fromkeys([*earlier, *([own] if own else [])]))
    return {"datasets": datasets, **({"allowed_overlaps": {"init": sorted(allowed)}} if allowed else {})}


def datasets_of(starts: Mapping[str, str], recipe: Recipe) -> list[str]:
    """Published datasets that the starts of a run's encoders learned from, as the cards beside those weights say."""
    return list(dict.fromkeys(name for card in _told(starts, recipe) for name in card.get("datasets", ())))


def _refuse_resplit(starts: Mapping[str, str], recipe: Recipe, own: str, digest: str) -> None:
    """LeakError where a start learned from the study's own dataset, and not from what this very split trains on."""
    if any(own in card.get("datasets", ()) and card.get("split_digest") != digest for card in _told(starts, recipe)):
        raise LeakError(
            f"a start of this run learned from {own} under another split: it may have seen images of the test part",
            where="split_digest in the card of the exported weights",
            fix=f"train both on one split; --allow-overlap {own} where you know that no image is in both (recorded)",
        )


def _told(starts: Mapping[str, str], recipe: Recipe) -> Iterator[dict[str, Any]]:
    """The cards beside the weights that a run starts from."""
    told = {name: str(config["init"]) for name, config in recipe.get("encoders", {}).items() if "init" in config}
    for init in (told | dict(starts)).values():
        place, _, part = (init, "", "") if Path(init).exists() else init.partition("#")
        for card in _cards(Path(place).expanduser(), part or "encoder"):
            content = json.loads(card.read_text(encoding="utf-8"))
            if isinstance(content, dict):
                yield content


def _cards(path: Path, name: str) -> list[Path]:
    """The card of exported weights: of a RUN, of a folder of exports, or beside a file."""
    places = (
        [path.with_suffix(".json")] if path.is_file() else [path / "exported" / f"{name}.json", path / f"{name}.json"]
    )
    return [card for card in places if card.is_file()][:1]


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
