"""The norm of gradients and scaling them: clipping in two halves, because the guard looks at the norm in between."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients as one vector; the whole one where they are sharded. 0 without gradients."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = nn.utils.get_total_norm(gradients)
    full = getattr(norm, "full_tensor", None)  # a DTensor under FSDP2
    return full() if callable(full) else norm


def scale_gradients(parameters: Sequence[nn.Parameter], factor: Tensor) -> None:
    """Multiply gradients by ``min(factor, 1)`` in place."""
    factor = factor.clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor.to(parameter.grad.device))
