"""From a checked recipe to what the loop steps with: optimisers, schedule, monitor, sharding."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from hilum.core.errors import HilumError, nearest
from hilum.core.loop import LoopSettings
from hilum.core.recipe import Recipe
from hilum.parts.optimiser import build_optimizer, param_groups, scaled_lr
from hilum.parts.schedules import build_schedule
from hilum.verbs.components import told_by

RATES = ("lr", "base_lr")
LARGER_IS_BETTER = ("auroc_macro", "accuracy", "rankme")  # how the names of such monitors end
PROBED = {"linear": "probe/linear_auroc_macro", "knn": "probe/knn_auroc_macro", "rankme": "probe/rankme"}


def loop_settings(
    recipe: Recipe, *, steps_per_epoch: int, devices: int, monitor: tuple[str, str] | None
) -> LoopSettings:
    """The recipe's optimiser, schedule and engine sections, resolved. ``monitor`` is what the objective is chosen by
    where the recipe says nothing.

    Where the recipe asks for ``engine.deterministic``, torch is switched to deterministic algorithms here, at the start
    of the run.
    """
    optim, schedule, engine = recipe["optim"], recipe["schedule"], recipe["engine"]
    epochs = float(schedule["epochs"])
    total = max(round(epochs * steps_per_epoch), 1)
    size, per_device = int(recipe["batch"]["size"]), int(recipe["batch"]["per_device"])
    with told_by(recipe, "optim", "the optimiser"):
        lr = scaled_lr(optim, size)
    if engine["strategy"] == "fsdp2" and optim.get("ema") is not None:
        raise HilumError(
            "a moving average is not kept under fsdp2", where=recipe.where("optim.ema"), fix="strategy ddp, or no ema"
        )
    with told_by(recipe, "schedule", "the schedule"):
        multiplier = build_schedule(schedule, steps_per_epoch=steps_per_epoch, total_steps=total, base_lr=lr)
    if engine["deterministic"]:
        _be_deterministic()

    def optimisers(objective: nn.Module) -> dict[str, torch.optim.Optimizer]:
        with told_by(recipe, "optim", "the optimiser"):
            return _optimisers(objective, optim, size)

    return LoopSettings(
        optimisers=optimisers,
        schedule=multiplier,
        total_steps=total,
        total_epochs=math.ceil(epochs),
        accumulate=max(math.ceil(size / (per_device * devices)), 1),
        clip=optim.get("clip"),
        ema=optim.get("ema"),
        seed=int(recipe["seed"]),
        nan_guard=int(engine["nan_guard"]),
        log_every=int(engine["log_every"]),
        checkpoint_minutes=float(engine["checkpoint_minutes"]),
        monitor=_monitor(recipe, monitor),
        compile=bool(engine["compile"]),
        stop_after=schedule.get("stop_after"),
        shard=shard_blocks if engine["strategy"] == "fsdp2" else None,
    )


def trained_groups(objective: nn.Module) -> dict[str, nn.Module]:
    """What each optimiser of an objective trains, by the name that ``optim.groups`` knows it by."""
    groups = getattr(objective, "groups", None)
    return dict(groups()) if callable(groups) else {"main": objective}


def check_groups(recipe: Recipe, objective: nn.Module) -> None:
    """Raise where the recipe gives an optimiser to a group of parameters that the objective does not have."""
    known = trained_groups(objective)
    for name in recipe.get("optim", {}).get("groups", {}):
        if name not in known:
            raise HilumError(
                f"the objective {recipe['objective']['name']!r} has no group of parameters {name!r}",
                where=recipe.where(f"optim.groups.{name}"),
                fix=nearest(name, known) or f"its groups: {' '.join(known)}; optim.rules sets rates by parameter name",
            )


def _optimisers(objective: nn.Module, optim: Mapping[str, Any], size: int) -> dict[str, torch.optim.Optimizer]:
    built = {}
    for name, module in trained_groups(objective).items():
        depth_of, layers = depths(module)
        told = optim.get("groups", {}).get(name, {})
        # a group that states a rate in one way does not inherit one that is stated in the other
        kept = {k: v for k, v in optim.items() if not (k in RATES and any(r in told for r in RATES))}
        own = {**kept, **told}
        built[name] = build_optimizer(
            param_groups(
                module,
                lr=scaled_lr(own, size),
                weight_decay=float(own.get("weight_decay", 0.0)),
                rules=own.get("rules", ()),
                layer_decay=own.get("layer_decay"),
                depth_of=depth_of,
                num_layers=layers,
            ),
            own.get("name", "adamw"),
            betas=tuple(own.get("betas", (0.9, 0.999))),
            eps=float(own.get("eps", 1e-8)),
            momentum=float(own.get("momentum", 0.9)),
        )
    return built


def _monitor(recipe: Recipe, default: tuple[str, str] | None) -> tuple[str, str] | None:
    """(name, "max" or "min") that the best checkpoint is chosen by."""
    name = recipe["schedule"].get("monitor")
    if name is None:
        return default
    probed = [PROBED[probe] for probe, every in recipe.get("probes", {}).items() if every]
    known = sorted({"val/loss", *([default[0]] if default else []), *probed})
    if name not in known:
        raise HilumError(
            f"this run does not measure {name!r}",
            where=recipe.where("schedule.monitor"),
            fix=nearest(name, known) or f"one of {' '.join(known)}",
        )
    return name, "max" if name.endswith(LARGER_IS_BETTER) else "min"


def _be_deterministic() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)


def depths(module: nn.Module) -> tuple[Callable[[str], int] | None, int]:
    """(depth of a parameter by name, number of layers) for layer decay, as the encoders in ``module`` tell them.

    What belongs to no encoder (heads, decoders) is as deep as the deepest encoder's output.
    """
    encoders = {
        n: m for n, m in module.named_modules() if callable(getattr(m, "depth_of", None)) and hasattr(m, "num_layers")
    }
    if not encoders:
        return None, 0
    layers = max(int(m.num_layers) for m in encoders.values())

    def depth(name: str) -> int:
        for prefix, encoder in encoders.items():
            if name.startswith(f"{prefix}."):
                return int(encoder.depth_of(name[len(prefix) + 1 :]))
        return layers + 1

    return depth, layers


def shard_blocks(objective: nn.Module, mesh: Any) -> None:
    """FSDP2: every transformer block is a shard unit of its own, the rest is the root's."""
    from torch.distributed.fsdp import fully_shard

    data_mesh = mesh["data_parallel"]
    for module in list(objective.modules()):
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.Sequential | nn.ModuleList):
            for block in blocks:
                fully_shard(block, mesh=data_mesh)
    fully_shard(objective, mesh=data_mesh)
