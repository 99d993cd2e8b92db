"""Mean and standard deviation a channel, there and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hilum.core.errors import HilumError


def _per_channel(values: float | Sequence[float], x: Tensor, channel_dim: int) -> Tensor:
    row = torch.as_tensor(values, dtype=x.dtype, device=x.device).reshape(-1)
    channels = x.shape[channel_dim]
    if len(row) not in (1, channels):
        raise HilumError(f"{len(row)} means or deviations for {channels} channels", where=f"shape {tuple(x.shape)}")
    shape = [1] * x.dim()
    shape[channel_dim] = len(row)
    return row.reshape(shape)


def normalise(
    x: Tensor, mean: float | Sequence[float], std: float | Sequence[float], *, channel_dim: int = 1
) -> Tensor:
    """(x - mean) / std along ``channel_dim`` (1 in (B,C,...), 2 in a video); integers become float32."""
    x = x if x.is_floating_point() else x.float()
    if not np.min(std) > 0:
        raise HilumError(f"a standard deviation must be above 0, got {std}")
    return (x - _per_channel(mean, x, channel_dim)) / _per_channel(std, x, channel_dim)


def denormalise(
    x: Tensor, mean: float | Sequence[float], std: float | Sequence[float], *, channel_dim: int = 1
) -> Tensor:
    """The inverse of :func:`normalise`."""
    return x * _per_channel(std, x, channel_dim) + _per_channel(mean, x, channel_dim)
