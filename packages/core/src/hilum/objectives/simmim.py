"""SimMIM: all tokens pass the encoder, hidden ones as a mask token, and one linear layer predicts their pixels.

Xie et al. 2022 (arXiv 2111.09886), section 3: random masking of large units, raw pixels, l1 over the hidden pixels only,
L = 1 / |M| sum_{i in M} |x_i - y_i| (equation 1; here the mean over a patch's pixels, then over hidden patches).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hilum.core.encoder import refuse
from hilum.core.errors import HilumError
from hilum.core.objective import Objective, Parts
from hilum.core.types import Batch, EncoderSpec, Progress, StepOutput, Term, ViewSpec
from hilum.objectives.merging import merged
from hilum.parts.patchify import patch_grid
from hilum.parts.rng import pixel_noise
from hilum.parts.targets import pixel_targets


class SimMIM(Objective):
    """``ratio`` of units of ``unit`` x ``unit`` patches are hidden; needs an encoder that supports ``fill``.

    The choice comes from the samples' keys (op "mask"), so a loss depends neither on its batch nor on the rank.
    """

    def __init__(self, parts: Parts, *, ratio: float = 0.6, unit: int = 2) -> None:
        super().__init__(parts)
        if not 0 < ratio < 1 or unit < 1:
            raise HilumError(
                f"SimMIM cannot hide {ratio} of units of {unit} patches",
                where="objective",
                fix="0 < ratio < 1 and unit of at least 1",
            )
        self.encoder = parts.encoder
        spec: EncoderSpec = self.encoder.spec  # type: ignore[assignment]
        refuse(self.encoder, fill=True)
        self.view = next(iter(parts.encoders))
        size = parts.views.get(self.view, {}).get("size")
        if spec.patch is None or not isinstance(size, int):
            raise HilumError(
                "SimMIM needs an encoder of patches and square images", where="objective", fix="views.NAME.size: 224"
            )
        self.patch, self.unit, self.kind = spec.patch, unit, spec.kind
        self.grid = patch_grid([size] * len(self.patch), self.patch)
        if any(side % unit for side in self.grid):
            raise HilumError(
                f"units of {unit} patches do not tile a grid of {self.grid}", where="objective.unit", fix="unit: 1"
            )
        self.units = torch.Size([side // unit for side in self.grid]).numel()
        self.hidden = round(ratio * self.units)
        if not 0 < self.hidden < self.units:
            raise HilumError(
                f"a ratio of {ratio} hides {self.hidden} of {self.units} units",
                where="objective.ratio",
                fix="hide some units, not all",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(parts.seed)
            self.predictor = nn.Linear(spec.embed_dim, spec.in_channels * torch.Size(self.patch).numel())

    @property
    def views(self) -> Mapping[str, ViewSpec]:
        return {self.view: ViewSpec(self.kind)}

    def prepare(self, batch: Batch, progress: Progress) -> Batch:
        """``extra["noise"]`` (B, units): the units with the smallest values are hidden."""
        if "noise" in batch.extra:
            return batch
        keys = [m.key for m in batch.meta if m.key is not None]
        noise = pixel_noise(keys, "mask", (self.units,), device=self._images(batch).device)
        return batch.with_(extra={**batch.extra, "noise": noise})

    def mask(self, noise_BU: Tensor) -> Tensor:
        """(B, N) bool over patches, True where hidden."""
        hidden = torch.zeros_like(noise_BU, dtype=torch.bool)
        hidden.scatter_(1, noise_BU.argsort(dim=1, stable=True)[:, : self.hidden], True)
        coarse = hidden.view(-1, *(side // self.unit for side in self.grid))
        for axis in range(1, coarse.ndim):
            coarse = coarse.repeat_interleave(self.unit, dim=axis)
        return coarse.flatten(1)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"reconstruction": self.mask(batch.extra["noise"]).sum()}

    def forward(self, batch: Batch) -> StepOutput:
        images, mask_BN = self._images(batch), self.mask(batch.extra["noise"])
        predicted = self.predictor(self.encoder(images, fill=mask_BN).tokens)
        error_BN = (predicted.float() - pixel_targets(images, self.patch).float()).abs().mean(-1)
        return StepOutput({"reconstruction": Term((error_BN * mask_BN).sum(), mask_BN.sum())})

    def exported(self) -> dict[str, nn.Module]:
        return merged(self.adapters, encoder=self.encoder)

    def _images(self, batch: Batch) -> Tensor:
        images: Any = batch.views[self.view]
        return images  # type: ignore[no-any-return]
