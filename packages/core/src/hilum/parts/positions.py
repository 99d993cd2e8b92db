"""Position tables: fixed sine-cosine, and resizing of any table to another grid.

Sources: Vaswani et al. 2017 section 3.5; the 2-D layout of He et al. 2021 (MAE): first half of the width encodes x (w),
second half y (h), each as [sin, cos] of 10000^(-2i/width'). Checkpoints degrade silently under another layout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hilum.core.errors import HilumError


def _sincos_1d(dim: int, position: Tensor) -> Tensor:
    omega = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2.0))
    angle = position.reshape(-1, 1) * omega
    return torch.cat([angle.sin(), angle.cos()], 1)


def _sincos(dim: int, grid: Sequence[int], prefix: int) -> Tensor:
    """Axes last to first, each dim // (2 d) * 2 wide, zeros for what is left over and for the prefix rows."""
    width = dim // (2 * len(grid)) * 2
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    table = torch.cat([_sincos_1d(width, axis) for axis in reversed(axes)], 1)
    return F.pad(table, (0, dim - table.shape[1], prefix, 0)).float().unsqueeze(0)


def sincos_2d(dim: int, grid: Sequence[int], *, prefix: int = 1) -> Tensor:
    """(1, prefix + h*w, dim) float32, rows in raster order; ``dim`` must be a multiple of 4."""
    if dim % 4 or len(grid) != 2:
        raise HilumError(f"a 2-D sine-cosine table needs a width divisible by 4, got {dim} for grid {tuple(grid)}")
    return _sincos(dim, grid, prefix)


def sincos_3d(dim: int, grid: Sequence[int], *, prefix: int = 1) -> Tensor:
    """(1, prefix + d*h*w, dim) float32 in the order x, y, z; a width not divisible by 6 ends in zeros."""
    if dim < 6 or len(grid) != 3:
        raise HilumError(f"a 3-D sine-cosine table needs a width of at least 6, got {dim} for grid {tuple(grid)}")
    return _sincos(dim, grid, prefix)


def resize_positions(table_1ND: Tensor, *, old_grid: Sequence[int], new_grid: Sequence[int], prefix: int = 1) -> Tensor:
    """A table (1, prefix + N, D) for another grid: bicubic with antialias in 2-D, trilinear in 3-D.

    Prefix rows are untouched; an equal grid returns the very object that came in.
    """
    old_grid, new_grid = tuple(old_grid), tuple(new_grid)
    rows = table_1ND.shape[1]
    if rows != prefix + math.prod(old_grid) or len(old_grid) != len(new_grid):
        raise HilumError(
            f"a position table of {rows} rows is not {prefix} prefix rows and a grid {old_grid}",
            where=f"resizing to {new_grid}",
        )
    if old_grid == new_grid:
        return table_1ND
    kept, patches = table_1ND[:, :prefix], table_1ND[:, prefix:]
    image = patches.float().transpose(1, 2).reshape(*patches.shape[::2], *old_grid)
    if len(new_grid) == 2:
        image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=True)
    else:
        image = F.interpolate(image, size=new_grid, mode="trilinear")
    return torch.cat([kept, image.flatten(2).transpose(1, 2).to(table_1ND.dtype)], 1)
