"""Losses as :class:`~hilum.core.types.Term`: a sum and a count, so that means over ranks and micro-batches are exact.

Everything is computed in float32. What does not count contributes exactly 0 to value and gradient, even where it is
NaN or infinite.

Sources: He et al. 2021 (MAE) and arXiv 2210.12843 for the masked mean squared error.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hilum.core.types import Term


def masked_mse(pred_BND: Tensor, target_BND: Tensor, mask_BN: Tensor) -> Term:
    """Sum over removed patches (mask 1) of the mean squared error of a patch; count = removed patches."""
    removed = mask_BN.bool()
    return _patch_mse(pred_BND, target_BND, removed)


def feature_mse(pred_BND: Tensor, target_BND: Tensor, valid_BN: Tensor | None = None) -> Term:
    """Sum over valid rows of the mean squared error over the last axis; any leading shape; count = rows."""
    return _patch_mse(pred_BND, target_BND, _all(pred_BND[..., 0]) if valid_BN is None else valid_BN.bool())


def _patch_mse(pred: Tensor, target: Tensor, counts: Tensor) -> Term:
    error = pred.float() - target.float()
    error = error.masked_fill(~counts.unsqueeze(-1), 0.0)
    return Term(error.square().mean(-1).sum(), counts.sum())


def binary_cross_entropy(
    logits_BF: Tensor, target_BF: Tensor, valid_BF: Tensor | None = None, *, pos_weight: Tensor | None = None
) -> Term:
    """Sum of sigmoid cross-entropy over valid entries, positives times ``pos_weight`` (F,); count = their number."""
    valid = _all(logits_BF) if valid_BF is None else valid_BF.bool()
    logits = logits_BF.float().masked_fill(~valid, 0.0)
    target = target_BF.float().masked_fill(~valid, 0.0)
    loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight, reduction="none")
    return Term(loss.masked_fill(~valid, 0.0).sum(), valid.sum())


def cross_entropy(
    logits_BC: Tensor, target_B: Tensor, valid_B: Tensor | None = None, *, class_weight: Tensor | None = None
) -> Term:
    """Sum over valid rows of the softmax cross-entropy; count = rows, or the sum of their class weights (C,)."""
    valid = _all(target_B) if valid_B is None else valid_B.bool()
    weight = valid.float()
    if class_weight is not None:
        weight = weight * class_weight.float()[target_B.long().masked_fill(~valid, 0)]
    return token_cross_entropy(logits_BC, target_B, weight)


def token_cross_entropy(logits: Tensor, ids: Tensor, weight: Tensor) -> Term:
    """Sum of weight * cross-entropy, logits (..., V), ids and weight (...); count = sum of weights.

    A weight of 0 removes the entry; its id may be anything.
    """
    counts = weight != 0
    safe_logits = logits.float().masked_fill(~counts.unsqueeze(-1), 0.0)
    safe_ids = ids.long().masked_fill(~counts, 0)
    loss = F.cross_entropy(safe_logits.flatten(0, -2), safe_ids.flatten(), reduction="none")
    weight = weight.detach().float()
    return Term((loss * weight.flatten()).sum(), weight.sum())


def _all(like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.bool)
