"""Which tokens a masked model sees.

Sources: He et al. 2021 (MAE) section 3 and arXiv 2210.12843, "Masking"; block-wise masking: Bao et al. 2021 (BEiT) algorithm 1.
Noise comes from :func:`hilum.parts.rng.pixel_noise`, so a mask depends on the sample's key and on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilum.core.errors import HilumError
from hilum.parts.rng import Stream


class Masking(NamedTuple):
    """``ids_keep`` (B,K) kept positions; ``ids_restore`` (B,N) undoes the shuffle; ``mask`` (B,N) 1 = removed."""

    ids_keep: Tensor
    ids_restore: Tensor
    mask: Tensor

    @property
    def ids_hidden(self) -> Tensor:
        """(B,N-K) removed positions."""
        return self.ids_restore.argsort(dim=1)[:, self.ids_keep.shape[1] :]


def keep_count(n: int, ratio: float) -> int:
    """int(n (1 - ratio)) tokens stay: 19 of 196 at 0.9."""
    if not 0.0 <= ratio < 1.0:
        raise HilumError(f"mask ratio {ratio} is outside [0, 1)", fix="set objective.ratio, e.g. 0.75")
    keep = int(n * (1.0 - ratio))
    if keep < 1:
        raise HilumError(f"mask ratio {ratio} leaves none of {n} patches", fix="lower objective.ratio")
    return keep


def random_masking(noise_BN: Tensor, keep: int) -> Masking:
    """Keep the ``keep`` smallest of each row's noise (stable: ties keep their order)."""
    ids_shuffle = torch.argsort(noise_BN, dim=1, stable=True)
    ids_restore = torch.argsort(ids_shuffle, dim=1, stable=True)
    return Masking(ids_shuffle[:, :keep], ids_restore, (ids_restore >= keep).to(torch.float32))


def block_mask(
    stream: Stream,
    grid: Sequence[int],
    masked: int,
    *,
    op: str = "block_mask",
    smallest: int = 16,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    attempts: int = 128,
) -> NDArray[np.bool_]:
    """(h, w), true = removed: rectangles of log-uniform aspect until exactly ``masked`` patches are covered.

    A rectangle that would exceed the count is not taken; what is missing in the end is filled in random order.
    """
    h, w = grid
    if not 0 <= masked <= h * w:
        raise HilumError(f"{masked} of {h * w} patches cannot be masked")
    mask = np.zeros((h, w), np.bool_)
    low, high = (math.log(a) for a in aspect)
    for u_area, u_aspect, u_top, u_left in stream.uniform(op, 4 * attempts).reshape(-1, 4):
        missing = masked - int(mask.sum())
        area = min(smallest, missing) + u_area * max(missing - smallest, 0)
        ratio = math.exp(low + (high - low) * u_aspect)
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if not (0 < height <= h and 0 < width <= w):
            continue
        top, left = int(u_top * (h - height + 1)), int(u_left * (w - width + 1))
        block = mask[top : top + height, left : left + width]
        if block.size - int(block.sum()) <= missing:
            block[:] = True
    order = np.argsort(stream.uniform(op, h * w, occurrence=1), kind="stable")
    mask.flat[order[~mask.flat[order]][: masked - int(mask.sum())]] = True
    return mask


def gather_tokens(x_BNE: Tensor, ids_BK: Tensor) -> Tensor:
    """(B,N,E), (B,K) -> (B,K,E): whole rows are copied, and the gradient adds whole rows."""
    b, n, e = x_BNE.shape
    rows = ids_BK + n * torch.arange(b, device=ids_BK.device).unsqueeze(1)
    return x_BNE.reshape(b * n, e).index_select(0, rows.flatten()).view(b, ids_BK.shape[1], e)


def restore_tokens(x_BKE: Tensor, mask_token: Tensor, ids_restore: Tensor) -> Tensor:
    """Kept tokens back in their places, ``mask_token`` (broadcastable to (1,1,E)) everywhere else: (B,N,E)."""
    (b, k, e), n = x_BKE.shape, ids_restore.shape[1]
    rows = torch.arange(b * n, device=ids_restore.device).view(b, n)
    shuffled = torch.empty_like(rows).scatter_(1, ids_restore, rows)  # where each shuffled position came from
    # one copy, and a backward pass without scattered additions: faster than gathering, and deterministic on a GPU
    full = mask_token.to(x_BKE.dtype).expand(1, 1, e).reshape(1, e).repeat(b * n, 1)
    return full.index_copy_(0, shuffled[:, :k].flatten(), x_BKE.flatten(0, 1)).view(b, n, e)
