"""Images as rows of patches, and back, bit for bit.

Values of a patch lie in (row, column, channel) order, as in He et al. 2021 (MAE); of a volume's in (slice, row, column,
channel) order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from hilum.core.errors import HilumError


def patch_sizes(p: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """``p`` as one size an axis."""
    sizes = (p,) * dims if isinstance(p, int) else tuple(p)
    if len(sizes) != dims:
        raise HilumError(f"patch {sizes} does not fit an image of {dims} axes")
    return sizes


def patch_grid(size: Sequence[int], p: int | Sequence[int]) -> tuple[int, ...]:
    """Patches along each axis of an image of ``size``."""
    sizes = patch_sizes(p, len(size))
    if any(s % q for s, q in zip(size, sizes, strict=True)):
        raise HilumError(f"an image of {tuple(size)} does not split into patches of {sizes}", fix="set views.*.size")
    return tuple(s // q for s, q in zip(size, sizes, strict=True))


def patchify(images_BCHW: Tensor, p: int | Sequence[int]) -> Tensor:
    """(B,C,H,W) -> (B, N, p*p*C); (B,C,D,H,W) -> (B, N, p*p*p*C). Patches in raster order."""
    b, c, *size = images_BCHW.shape
    sizes, grid, d = patch_sizes(p, len(size)), patch_grid(size, p), len(size)
    x = images_BCHW.reshape(b, c, *(n for pair in zip(grid, sizes, strict=True) for n in pair))
    x = x.permute(0, *range(2, 2 + 2 * d, 2), *range(3, 3 + 2 * d, 2), 1)
    return x.reshape(b, math.prod(grid), math.prod(sizes) * c)


def unpatchify(x_BNP: Tensor, p: int | Sequence[int], channels: int, grid: Sequence[int] | None = None) -> Tensor:
    """The inverse of :func:`patchify`; without ``grid`` the image is taken to be square."""
    b, n, width = x_BNP.shape
    grid = (math.isqrt(n), math.isqrt(n)) if grid is None else tuple(grid)
    sizes, d = patch_sizes(p, len(grid)), len(grid)
    if math.prod(grid) != n or math.prod(sizes) * channels != width:
        raise HilumError(
            f"{n} patches of {width} values are no grid {grid} of {sizes} patches with {channels} channels"
        )
    x = x_BNP.reshape(b, *grid, *sizes, channels)
    x = x.permute(0, 2 * d + 1, *(axis for i in range(d) for axis in (1 + i, 1 + d + i)))
    return x.reshape(b, channels, *(g * q for g, q in zip(grid, sizes, strict=True)))
