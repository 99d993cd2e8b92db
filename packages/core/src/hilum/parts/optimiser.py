"""Parameter groups from rules, layer-wise learning-rate decay, and the optimisers.

Sources: layer decay as in Clark et al. 2020 (ELECTRA) and arXiv 2210.12843: group of depth l gets lr * d^(L + 1 - l), L blocks;
LARS: You et al. 2017, equation 6.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hilum.core.errors import HilumError, nearest

NO_DECAY = ("*cls_token", "*reg_token", "*pos_embed")
RULE_KEYS = ("match", "lr", "weight_decay", "clip", "freeze", "depth_decay")
OPTIMISERS = ("adamw", "adam", "sgd", "lars")
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)(?:\.|$)")
_STEM = {"patch_embed", "cls_token", "reg_token", "dist_token", "mask_token", "pos_embed", "norm_pre"}


def vit_depth(name: str, num_layers: int) -> int:
    """Depth of a timm-style ViT parameter: 0 for patch embedding, tokens and positions, k + 1 for block k, else L + 1.

    Prefixes such as ``encoder.net.`` do not matter.
    """
    if block := _BLOCK.search(name):
        depth = int(block[1]) + 1
        if depth > num_layers:
            raise HilumError(f"{name} stands in block {depth - 1} of a network said to have {num_layers}")
        return depth
    return 0 if _STEM.intersection(name.split(".")) else num_layers + 1


def scaled_lr(config: Mapping[str, Any], batch_size: int) -> float:
    """``lr`` as it stands, or ``base_lr * batch_size / lr_per`` (256): the linear rule of Goyal et al. 2017.

    ``batch_size`` is the effective one: per device x accumulation x world.
    """
    if ("lr" in config) == ("base_lr" in config):
        raise HilumError(
            "give either lr or base_lr", where="optim", fix="base_lr: 1.5e-4 with lr_per: 256, or lr: 1e-3"
        )
    if "lr" in config:
        return float(config["lr"])
    return float(config["base_lr"]) * batch_size / float(config.get("lr_per", 256))


def param_groups(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    rules: Sequence[Mapping[str, Any]] = (),
    layer_decay: float | None = None,
    depth_of: Callable[[str], int] | None = None,
    num_layers: int = 0,
    no_decay: Sequence[str] = NO_DECAY,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: ``params``, ``names``, ``lr``, ``initial_lr``, ``lr_scale``, ``weight_decay``, ``clip``.

    ``lr_scale`` is the group's factor on ``lr``; ``lr`` and ``initial_lr`` have it applied. ``rules`` are applied in
    order, later ones win: ``match`` (a glob on parameter names), ``lr`` ("x5" multiplies, a number sets),
    ``weight_decay``, ``clip`` (the group's gradient norm), ``freeze``, ``depth_decay`` (layer decay for these alone).
    Parameters of at most one dimension never decay; names in ``no_decay`` do only where a rule says so.
    ``depth_of`` defaults to :func:`vit_depth`. Raises where a rule matches nothing or has an unknown key.
    """
    names = [name for name, _ in module.named_parameters()]
    matches = [_matches(rule, names) for rule in rules]
    depth = depth_of or (lambda name: vit_depth(name, num_layers))
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        mine = {k: v for rule, match in zip(rules, matches, strict=True) if name in match for k, v in rule.items()}
        if mine.get("freeze"):
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        decay = mine.get("depth_decay", layer_decay)
        scale = float(decay) ** (num_layers + 1 - depth(name)) if decay is not None else 1.0
        scale *= _factor(mine.get("lr"), lr)
        wd = 0.0 if any(fnmatch.fnmatchcase(name, glob) for glob in no_decay) else weight_decay
        wd = 0.0 if parameter.ndim <= 1 else float(mine.get("weight_decay", wd))
        clip = mine.get("clip")
        rate = lr * scale
        fresh: dict[str, Any] = {
            "params": [],
            "names": [],
            "lr": rate,
            "initial_lr": rate,
            "lr_scale": scale,
            "weight_decay": wd,
            "clip": clip,
        }
        group = groups.setdefault((scale, wd, clip), fresh)
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise HilumError("nothing is left to train", where="optim.rules", fix="freeze less")
    return list(groups.values())


def _matches(rule: Mapping[str, Any], names: Sequence[str]) -> set[str]:
    for key in rule:
        if key not in RULE_KEYS:
            raise HilumError(f"unknown key {key!r} in a rule", where="optim.rules", fix=nearest(key, RULE_KEYS))
    glob = rule.get("match")
    matched = set(fnmatch.filter(names, str(glob)))
    if not matched:
        raise HilumError(
            f"the rule {glob!r} matches no parameter", where="optim.rules", fix=nearest(str(glob).strip("*"), names)
        )
    return matched


def _factor(rule_lr: Any, lr: float) -> float:
    if rule_lr is None:
        return 1.0
    try:
        return float(rule_lr[1:]) if isinstance(rule_lr, str) and rule_lr.startswith("x") else float(rule_lr) / lr
    except (ValueError, ZeroDivisionError):
        raise HilumError(
            f"lr {rule_lr!r} is neither a number nor a factor", where="optim.rules", fix="lr: x5"
        ) from None


def build_optimizer(
    groups: Iterable[dict[str, Any]],
    name: str = "adamw",
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    momentum: float = 0.9,
) -> Optimizer:
    """adamw, adam and sgd in their fused kernels where the parameters allow it, and lars. Rates stand in ``groups``."""
    groups = list(groups)
    tensors = [p for group in groups for p in group["params"]]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in tensors)
    if name in ("adamw", "adam"):
        adam = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
        return adam(groups, betas=(float(betas[0]), float(betas[1])), eps=eps, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, fused=fused)
    if name == "lars":
        return LARS(groups, momentum=momentum)
    raise HilumError(
        f"unknown optimiser {name!r}", where="optim.name", fix=nearest(name, OPTIMISERS) or f"one of {OPTIMISERS}"
    )


class LARS(Optimizer):
    """SGD with momentum whose step is, for tensors of two and more dimensions, scaled by trust * |w| / |g + wd w|."""

    def __init__(
        self, params: Any, *, lr: float = 0.0, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` re-evaluates the loss."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self._update(w, w.grad, group)
        return loss

    def _update(self, w: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        update = grad.add(w, alpha=group["weight_decay"])
        if w.ndim > 1:
            size, step = w.norm(), update.norm()
            update = update * torch.where((size > 0) & (step > 0), group["trust"] * size / step, 1.0)
        buffer = self.state[w].setdefault("momentum_buffer", torch.zeros_like(w))
        w.sub_(buffer.mul_(group["momentum"]).add_(update), alpha=group["lr"])
