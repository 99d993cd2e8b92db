"""What a masked model predicts.

Source: He et al. 2021 (MAE) section 3, "Reconstruction target"; arXiv 2210.12843 step 5.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hilum.parts.masking import gather_tokens
from hilum.parts.patchify import patchify


def pixel_targets(
    images_BCHW: Tensor,
    p: int | Sequence[int],
    *,
    normalise: bool = False,
    eps: float = 1e-6,
    ids_BM: Tensor | None = None,
) -> Tensor:
    """(B, N, p*p*C) patch values, or (B, M, p*p*C) of the patches at ``ids_BM``; ``normalise`` gives each patch mean 0
    and (unbiased) variance 1, as MAE does."""
    target = patchify(images_BCHW, p)
    if ids_BM is not None:
        target = gather_tokens(target, ids_BM)
    if not normalise:
        return target
    target = target.float()
    return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + eps).sqrt()
