"""From a checked recipe to networks: encoders with their start, adapters, head, objective."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hilum.core.adapter import check_adapter
from hilum.core.encoder import check_encoder
from hilum.core.errors import ContractError, HilumError
from hilum.core.head import check_head
from hilum.core.objective import Objective, Parts, check_objective
from hilum.core.recipe import Recipe
from hilum.core.registry import registry
from hilum.core.types import EncoderSpec, LabelSpace
from hilum.verbs.components import build_component
from hilum.verbs.optimisation import check_groups

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def build_objective(
    recipe: Recipe, labels: LabelSpace | None, *, init: Mapping[str, str] | None = None
) -> tuple[Objective, dict[str, Any]]:
    """Encoders (with their start loaded), adapters, head and objective; and a load report an encoder.

    ``init`` overrides the recipe's start of an encoder; the value ``"structure"`` builds without loading anything.
    """
    torch.manual_seed(int(recipe["seed"]))
    reports: dict[str, Any] = {}
    encoders: dict[str, nn.Module] = {}
    for name, config in recipe.get("encoders", {}).items():
        encoders[name], reports[name] = _encoder(recipe, name, dict(config), (init or {}).get(name))
    adapters, adapted = _adapters(recipe, encoders)
    head = _head(recipe, encoders, labels)
    parts = Parts(encoders, head, adapters, labels, recipe["views"], normalisation(recipe), int(recipe["seed"]))
    config = recipe["objective"]
    options = {k: v for k, v in config.items() if k != "name"}
    accepted = registry.keywords("objective", config["name"]) or set()
    told = {"task": recipe.get("task"), "pos_weight": recipe["labels"].get("pos_weight")}
    options = {k: v for k, v in told.items() if k in accepted and v is not None} | options
    objective: Objective = build_component("objective", recipe, "objective", config["name"], parts, **options)
    check_objective(objective, where=recipe.where("objective"))
    check_groups(recipe, objective)
    if adapters:
        _check_adapted(recipe, objective, adapters, adapted)
    return objective, reports


def _encoder(recipe: Recipe, name: str, config: dict[str, Any], start: str | None) -> tuple[nn.Module, Any]:
    from hilum.encoders.weights import load_weights

    view = recipe["views"].get(config.pop("view", name), {})
    factory, told, freeze = config.pop("name"), config.pop("init", "scratch"), config.pop("freeze", [])
    init = start or told
    if recipe["engine"]["checkpointing"]:
        config["checkpointing"] = True
    encoder: nn.Module = build_component("encoder", recipe, f"encoders.{name}", factory, view=view, **config)
    check_encoder(encoder, where=recipe.where(f"encoders.{name}"))
    report = None if init in ("scratch", "structure") else load_weights(encoder, init)
    for glob in ["*"] if freeze is True else freeze or []:
        frozen = [p for n, p in encoder.named_parameters() if fnmatch.fnmatchcase(n, f"*{glob}*")]
        if not frozen:
            raise HilumError(
                f"freeze: {glob!r} matches no parameter of the encoder {name!r}",
                where=recipe.where(f"encoders.{name}.freeze"),
                fix=f"its parameters: {', '.join(list(dict(encoder.named_parameters()))[:4])}, ...",
            )
        for parameter in frozen:
            parameter.requires_grad_(False)
    return encoder, report


def _adapters(recipe: Recipe, encoders: dict[str, nn.Module]) -> tuple[dict[str, nn.Module], list[nn.Module]]:
    """Adapters by name, attached; and the encoders that they stand in, which take the place of the plain ones."""
    adapters: dict[str, nn.Module] = {}
    targets = []
    for name, config in recipe.get("adapters", {}).items():
        section = f"adapters.{name}"
        options = {k: v for k, v in config.items() if k not in ("name", "encoder")}
        adapter = build_component("adapter", recipe, section, config["name"], **options)
        check_adapter(adapter, where=recipe.where(section))
        target = config.get("encoder", next(iter(encoders), None))
        if target is None:
            raise HilumError("an adapter needs an encoder and the recipe has none", where=recipe.where(section))
        encoders[target].requires_grad_(False)
        encoders[target] = adapter.attach(encoders[target])
        adapters[name] = adapter
        targets.append(target)
    return adapters, [encoders[target] for target in dict.fromkeys(targets)]


def _check_adapted(
    recipe: Recipe, objective: Objective, adapters: Mapping[str, nn.Module], adapted: list[nn.Module]
) -> None:
    """Adapters must be trained and leave with what is exported; an objective that forgets them trains the rest only."""
    known = {id(p) for p in objective.parameters()}
    gaps = [
        f"the parameters of the adapter {name!r} (call super().__init__(parts))"
        for name, adapter in adapters.items()
        if any(p.requires_grad and id(p) not in known for p in adapter.parameters())
    ]
    if any(module is encoder for module in objective.exported().values() for encoder in adapted):
        gaps.append("merged adapters in exported() (return hilum.objectives.merging.merged(self.adapters, ...))")
    if gaps:
        told = f"the objective {recipe['objective']['name']!r} cannot train adapters"
        raise ContractError(told, gaps, where=recipe.where("adapters"))


def _head(recipe: Recipe, encoders: Mapping[str, nn.Module], labels: LabelSpace | None) -> nn.Module | None:
    if "head" not in recipe.data:
        return None
    if labels is None:
        raise HilumError("a head needs labels and the study has none", where=recipe.where("head"))
    if not encoders:
        raise HilumError("a head needs an encoder and the recipe has none", where=recipe.where("head"))
    name = recipe["head"]["name"]
    options = {k: v for k, v in recipe["head"].items() if k != "name"}
    spec: EncoderSpec = next(iter(encoders.values())).spec  # type: ignore[assignment]
    needs = getattr(registry.load("head", name), "needs", ("pooled",))
    dim = spec.pooled_dim if "pooled" in needs else spec.embed_dim
    head: nn.Module = build_component(
        "head", recipe, "head", name, dim=dim, names=labels.names, task=labels.task, **options
    )
    check_head(head, where=recipe.where("head"))
    return head


def normalisation(recipe: Recipe) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """(mean, std) a view is normalised with, one value a channel."""
    norm = {}
    for name, view in recipe["views"].items():
        channels, rule = int(view.get("channels", 1)), view.get("normalise", "none")
        if rule == "none":
            mean, std = (0.0,) * channels, (1.0,) * channels
        elif rule == "imagenet":
            mean, std = IMAGENET if channels == 3 else ((0.449,) * channels, (0.226,) * channels)
        elif isinstance(rule, list) and len(rule) == 2:
            mean, std = (tuple(v * channels if len(v) == 1 else v) for v in rule)
        else:
            raise HilumError(
                f"unknown normalisation {rule!r}",
                where=recipe.where(f"views.{name}.normalise"),
                fix="dataset, imagenet, none, or [[mean, ...], [std, ...]]",
            )
        norm[name] = (tuple(map(float, mean)), tuple(map(float, std)))
    return norm
