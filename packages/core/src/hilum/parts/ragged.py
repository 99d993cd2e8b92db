"""Rows of different length: packed (:class:`~hilum.core.types.Ragged`), padded, masked, pooled.

Source: packing with a block-diagonal mask as in Dehghani et al. 2023 (NaViT) section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hilum.core.errors import HilumError
from hilum.core.types import Ragged


def pad(ragged: Ragged, *, value: float = 0.0) -> tuple[Tensor, Tensor]:
    """(B, Nmax, ...) with ``value`` behind each row's end, and ``valid`` (B, Nmax)."""
    longest = int(ragged.lengths.max()) if len(ragged) else 0
    lengths = ragged.lengths.to(ragged.data.device)
    valid = torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)
    x = ragged.data.new_full((len(ragged), longest, *ragged.data.shape[1:]), value)
    return x.index_put((valid,), ragged.data), valid


def unpad(x_BN: Tensor, valid_BN: Tensor) -> Ragged:
    """The inverse of :func:`pad`."""
    valid = valid_BN.bool()
    return Ragged(x_BN[valid], valid.sum(1))


def segments(lengths: Tensor) -> Tensor:
    """(sum N,) the row that each packed entry belongs to."""
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def block_diagonal_mask(lengths: Tensor) -> Tensor:
    """(sum N, sum N) true where two packed entries belong to one row and may attend to each other."""
    row = segments(lengths)
    return row.unsqueeze(1) == row


def segment_mean(ragged: Ragged) -> Tensor:
    """(B, ...) the mean of each row, summed in float32 or wider; 0 for an empty row."""
    data = ragged.data
    wide = data if data.dtype == torch.float64 else data.float()
    lengths = ragged.lengths.to(data.device)
    total = wide.new_zeros(len(lengths), *data.shape[1:]).index_add(0, segments(lengths), wide)
    mean = total / lengths.clamp(min=1).reshape(-1, *[1] * (data.dim() - 1))
    return mean.to(data.dtype) if data.is_floating_point() else mean


def pack_images(images: Sequence[Tensor]) -> Ragged:
    """Images (C, H_b, W_b) of one channel count as (sum H*W, C) with ``grid`` (B, 2)."""
    if len({len(image) for image in images}) > 1:
        raise HilumError(f"images of one batch have {sorted({len(i) for i in images})} channels")
    return Ragged.of([i.flatten(1).T for i in images], grid=[i.shape[1:] for i in images])


def images(ragged: Ragged) -> list[Tensor]:
    """The inverse of :func:`pack_images`: views (C, H_b, W_b), channels last in memory."""
    if ragged.grid is None:
        raise HilumError("these packed rows are no images: they have no grid")
    return [row.T.view(-1, *size) for row, size in zip(ragged.rows(), ragged.grid.tolist(), strict=True)]
