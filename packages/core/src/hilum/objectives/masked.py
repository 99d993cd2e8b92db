"""Masked autoencoding: encode the few visible patches, predict the pixels of the hidden ones.

He et al. 2021 (arXiv 2111.06377) section 3; arXiv 2210.12843, "Pretraining forward pass":
L = sum_bp m_bp mean_c (pred_bpc - target_bpc)^2 / sum_bp m_bp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hilum.core.errors import HilumError, Unsupported, nearest
from hilum.core.objective import Objective, Parts
from hilum.core.types import Batch, EncoderSpec, Progress, StepOutput, ViewSpec
from hilum.objectives.merging import merged
from hilum.parts.losses import feature_mse
from hilum.parts.masking import Masking, block_mask, keep_count, random_masking
from hilum.parts.normalise import denormalise
from hilum.parts.patchify import patch_grid, patchify, unpatchify
from hilum.parts.predictors import PixelDecoder
from hilum.parts.rng import Stream, pixel_noise
from hilum.parts.targets import pixel_targets

MASKS = ("random", "block")


class Masked(Objective):
    """MAE on any encoder that supports ``keep``. The decoder is dropped afterwards; ``exported`` is the encoder.

    ``mask``: "random" (independent patches) or "block" (rectangles). ``norm_target`` normalises each patch. Masks come
    from the samples' keys, so a sample's loss depends neither on its batch nor on the rank; ``batch.extra["noise"]``
    (B, N), kept where it is smallest, takes precedence.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        mask: str = "random",
        ratio: float = 0.9,
        target: str = "pixels",
        norm_target: bool = False,
        decoder_depth: int = 2,
        decoder_width: int = 512,
        decoder_heads: int = 16,
    ) -> None:
        super().__init__(parts)
        if mask not in MASKS or target != "pixels":
            raise HilumError(
                f"masked autoencoding knows no mask {mask!r} with target {target!r}",
                where="objective",
                fix=nearest(mask, MASKS) or "mask: random or block; target: pixels",
            )
        if min(decoder_depth, decoder_width, decoder_heads) < 1:
            raise HilumError("a decoder has at least one block, channel and head", where="objective")
        self.encoder: nn.Module = parts.encoder
        spec: EncoderSpec = self.encoder.spec  # type: ignore[assignment]
        if "keep" not in spec.supports or spec.patch is None:
            raise Unsupported(
                f"{type(self.encoder).__name__} cannot encode visible patches only",
                where="objective masked",
                fix="use a vision transformer, e.g. timm/vit_small_patch16_224",
            )
        self.view = next(iter(parts.encoders))
        size = parts.views.get(self.view, {}).get("size")
        axes = [int(size)] * len(spec.patch) if isinstance(size, int) else size
        self.patch = spec.patch
        self.grid = patch_grid(axes, self.patch) if axes else tuple(self.encoder.grid)  # type: ignore[arg-type]
        self.kind, self.mask, self.norm_target = spec.kind, mask, norm_target
        self.patches = math.prod(self.grid)
        self.kept = keep_count(self.patches, ratio)
        if self.kept == self.patches:
            raise HilumError(
                f"mask ratio {ratio} hides none of {self.patches} patches", where="objective.ratio", fix="raise it"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(parts.seed)
            geometry: tuple[Any, ...] = (spec.embed_dim, self.grid, self.patch, spec.in_channels)
            blocks: dict[str, Any] = {"depth": decoder_depth, "width": decoder_width, "heads": decoder_heads}
            self.decoder = PixelDecoder(*geometry, num_prefix=spec.num_prefix, **blocks)

    @property
    def views(self) -> Mapping[str, ViewSpec]:
        return {self.view: ViewSpec(self.kind)}

    def prepare(self, batch: Batch, progress: Progress) -> Batch:
        """The noise that decides which patches stay: Philox, keyed by sample, op "mask" (FORMATS 10)."""
        if "noise" in batch.extra:
            return batch
        keys = [m.key for m in batch.meta if m.key is not None]
        if len(keys) != batch.size:
            raise HilumError("a sample without a key cannot be masked", where="objective masked")
        device = batch.views[self.view].data.device
        if self.mask == "random":
            noise = pixel_noise(keys, "mask", (self.patches,), device=device)
        else:
            hidden = self.patches - self.kept
            masks = [torch.from_numpy(block_mask(Stream(k), self.grid, hidden, op="mask")).flatten() for k in keys]
            noise = torch.stack(masks).to(device, torch.float32)
        return batch.with_(extra={**batch.extra, "noise": noise})

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        hidden = torch.tensor(self.patches - self.kept, device=batch.views[self.view].data.device)
        return {"reconstruction": hidden * len(batch.views[self.view])}

    def forward(self, batch: Batch) -> StepOutput:
        images, masking = self._images(batch), self._masking(batch)
        hidden = masking.ids_hidden  # visible patches are not scored, so they are not predicted either
        target = pixel_targets(images, self.patch, normalise=self.norm_target, ids_BM=hidden)
        term = feature_mse(self.predict_patches(images, masking, ids_BM=hidden), target)
        with torch.no_grad():  # 1 is the score of predicting the hidden patches' mean
            unexplained = term.mean / target.float().var(correction=0).clamp(min=1e-12)
        return StepOutput({"reconstruction": term}, logs={"unexplained_variance": unexplained})

    def predict_patches(self, images: Tensor, masking: Masking, *, ids_BM: Tensor | None = None) -> Tensor:
        """(B, N, p*p*C), or (B, M, p*p*C) at ``ids_BM``, from the patches of ``masking.ids_keep`` alone."""
        features = self.encoder(images, keep=masking.ids_keep)
        prefix = features.prefix if self.decoder.num_prefix else None
        patches: Tensor = self.decoder(features.tokens, masking.ids_restore, prefix_BPE=prefix, ids_BM=ids_BM)
        return patches

    def exported(self) -> dict[str, nn.Module]:
        return merged(self.adapters, encoder=self.encoder)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures (B, C, H, W) in [0, 1]: "image"; "visible", hidden patches grey; "reconstruction" of those."""
        batch = self.prepare(batch, Progress())
        images, masking = self._images(batch), self._masking(batch)
        patches, hidden = patchify(images, self.patch), masking.mask.bool()[..., None]
        predicted = self.predict_patches(images, masking).to(patches.dtype)
        if self.norm_target:
            mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
            predicted = predicted * (variance + 1e-6).sqrt() + mean
        rows = {
            "image": patches,
            "visible": patches.masked_fill(hidden, 0.0),
            "reconstruction": torch.where(hidden, predicted, patches),
        }
        mean_std = batch.norm.get(self.view)
        pictures = {k: unpatchify(v, self.patch, images.shape[1], self.grid) for k, v in rows.items()}
        return {k: (denormalise(v, *mean_std) if mean_std else v).clamp(0, 1) for k, v in pictures.items()}

    def _images(self, batch: Batch) -> Tensor:
        images: Any = batch.views[self.view]
        return images  # type: ignore[no-any-return]

    def _masking(self, batch: Batch) -> Masking:
        if "noise" not in batch.extra:
            raise HilumError("this batch was not prepared", fix="call Masked.prepare(batch, progress) first")
        return random_masking(batch.extra["noise"], self.kept)
