"""What an adapter learned, as a file of kilobytes beside the run's encoder, and back onto the base it was learned on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hilum.core.adapter import Adapter, check_adapter, delta_base, state_sha256
from hilum.core.errors import HilumError
from hilum.core.objective import Objective
from hilum.core.recipe import Recipe
from hilum.core.registry import registry
from hilum.encoders.exported import load_exported, save_tensors

SUFFIX = "-delta"


def save_deltas(objective: Objective, folder: Path, recipe: Recipe, *, card: Mapping[str, Any]) -> list[Path]:
    """Write ``FOLDER/NAME-delta.safetensors`` and its card for every adapter of the recipe that ``objective`` holds.

    The card names the hash of the base, the adapter's kind and options, and the licence of the base's weights, which
    a delta cannot be freer than. ``card`` adds digests and the recipe.
    """
    written = []
    for name, adapter in adapters_of(objective, recipe).items():
        told = recipe["adapters"][name]
        spec = getattr(adapter.base[0], "spec", None) if adapter.base else None
        entry = {
            "kind": told["name"],
            "options": {k: v for k, v in told.items() if k not in ("name", "encoder")},
            "base_sha256": adapter.base_sha256,
            "base_source": getattr(spec, "source", ""),
            "licence": getattr(spec, "licence", "unknown"),
        }
        written.append(save_tensors(folder, name + SUFFIX, adapter.delta(), card={**card, **entry}))
    return written


def adapters_of(objective: Objective, recipe: Recipe) -> dict[str, Adapter]:
    """The objective's adapters by the names they have in the recipe."""
    named = {path.rpartition(".")[2]: module for path, module in objective.named_modules()}
    return {n: m for n in recipe.get("adapters", {}) if isinstance(m := named.get(n), Adapter)}


def load_delta(path: Path | str, encoder: nn.Module) -> Adapter:
    """Attach to ``encoder``, in place, what ``RUN/exported/NAME-delta.safetensors`` holds; returns the adapter.

    Raises :class:`HilumError`, before anything is attached, where ``encoder`` does not have the weights that the delta
    was learned on, where a file was changed, or where it is no delta.
    """
    path = Path(path)
    found = load_exported(path.parent, path.name.removesuffix(".safetensors"))
    told, kind, here = delta_base(found.tensors), found.card.get("kind"), state_sha256(encoder)
    if told is None or kind is None or told != found.card.get("base_sha256"):
        raise HilumError(f"{path.name} is no adapter's delta", fix=f"give RUN/exported/NAME{SUFFIX}.safetensors")
    if told != here:
        raise HilumError(
            "this adapter was trained on other base weights",
            where=f"{path.name}: {told[:12]}, this encoder: {here[:12]}",
            fix=f"load the base it was trained on: {found.card.get('base_source') or 'its card does not name it'}",
        )
    adapter: Adapter = registry.build("adapter", str(kind), **found.card.get("options", {}))
    check_adapter(adapter, where=path.name)
    adapter.attach(encoder)
    adapter.load(found.tensors)
    return adapter.eval()
