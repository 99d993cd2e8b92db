"""Heads turn features into predictions."""

from __future__ import annotations

from typing import Any

from torch import nn

from hilum.core.errors import ContractError
from hilum.core.types import Batch, Features, Prediction

FORWARD = "method forward(features, batch=None) -> Prediction"


class Head(nn.Module):
    """Base of every head. ``needs`` names the fields of :class:`Features` it reads ("pooled", "tokens", "layers")."""

    needs: tuple[str, ...] = ("pooled",)

    def forward(self, features: Features, batch: Batch | None = None) -> Prediction:
        """Features of a batch to scores."""
        raise ContractError(f"{type(self).__name__} is not a head", [FORWARD])


def check_head(candidate: Any, *, where: str = "") -> None:
    """Raise :class:`ContractError` naming everything that is missing of the head contract."""
    gaps = [] if isinstance(candidate, nn.Module) else ["must be a torch.nn.Module"]
    if not gaps and type(candidate).forward in (nn.Module.forward, Head.forward):
        gaps.append(FORWARD)
    needs = getattr(candidate, "needs", None)
    if not isinstance(needs, tuple) or not set(needs) <= set(Features.__dataclass_fields__):
        gaps.append("attribute needs: tuple of Features' fields, e.g. ('pooled',)")
    if gaps:
        raise ContractError(f"{type(candidate).__name__} is not a head", gaps, where=where)
