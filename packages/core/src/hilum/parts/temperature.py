"""The temperature of a contrastive softmax, fixed or learned.

Source: Radford et al. 2021 (CLIP) section 2.5: learned as log(1 / temperature), the scale limited to 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hilum.core.errors import HilumError
from hilum.core.types import Progress


class Temperature(nn.Module):
    """logits / temperature. ``clamp`` = (lowest, highest) temperature, enforced after each optimiser step.

    Clamping the parameter rather than the value lets it come back from the limit.
    """

    logit_scale: Tensor

    def __init__(
        self, init: float = 0.07, *, learn: bool = True, clamp: tuple[float, float] | None = (0.01, 1.0)
    ) -> None:
        super().__init__()
        if init <= 0 or (clamp and not 0 < clamp[0] <= init <= clamp[1]):
            raise HilumError(f"temperature {init} is not above 0 and within {clamp}", where="objective.temperature")
        self.clamp = clamp
        scale = torch.tensor(-math.log(init))
        if learn:
            self.logit_scale = nn.Parameter(scale)
        else:
            self.register_buffer("logit_scale", scale)

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.logit_scale.exp()

    @property
    def value(self) -> Tensor:
        """The temperature, a scalar without gradient."""
        return (-self.logit_scale.detach()).exp()

    @torch.no_grad()
    def after_step(self, progress: Progress, outputs: Mapping[str, Any]) -> None:
        """Back into ``clamp``."""
        if self.clamp:
            self.logit_scale.clamp_(-math.log(self.clamp[1]), -math.log(self.clamp[0]))
