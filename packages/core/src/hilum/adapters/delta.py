"""What adapters share: freezing their base, and refusing a delta that does not fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hilum.core.adapter import state_sha256
from hilum.core.errors import HilumError


def freeze_base(module: nn.Module) -> str:
    """Switch off every gradient of ``module``; returns the hash that a delta names its base by."""
    module.requires_grad_(False)
    return state_sha256(module)


def check_delta(adapter: nn.Module, delta: Mapping[str, Tensor]) -> None:
    """Raise where ``delta`` has other tensors or shapes than ``adapter`` (another rank, other roles, more prompts)."""
    own, name = adapter.state_dict(), type(adapter).__name__
    fix = "build the adapter with the rank, roles, tokens and depth of the one that was saved"
    if own.keys() != delta.keys():
        lacking, foreign = sorted(own.keys() - delta.keys()), sorted(delta.keys() - own.keys())
        raise HilumError(
            f"this delta is not of this {name}: {len(lacking)} tensors are lacking, {len(foreign)} are unknown",
            where=", ".join([*lacking[:2], *foreign[:2]]),
            fix=fix,
        )
    wrong = [k for k in own if own[k].shape != delta[k].shape]
    if wrong:
        raise HilumError(
            f"this delta has other shapes than this {name}",
            where=f"{wrong[0]}: {tuple(delta[wrong[0]].shape)} in the delta, {tuple(own[wrong[0]].shape)} here",
            fix=fix,
        )
