"""Exact area averaging: the one reduction between a decoded image and the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError

Array = NDArray[Any]


def reduced_size(rows: int, columns: int, side: int | None) -> tuple[int, int]:
    """(h, w) with the short side at ``side`` and the long side rounded half up; never larger than the source."""
    short, long = min(rows, columns), max(rows, columns)
    if side is None or short <= side:
        return rows, columns
    other = (2 * long * side + short) // (2 * short)
    return (side, other) if rows <= columns else (other, side)


def area_average(image: Array, size: tuple[int, int], *, valid: NDArray[np.bool_] | None = None) -> Array:
    """Mean of the source area under each output pixel, (H,W) or (H,W,C) to ``size``, in the dtype of ``image``.

    Output pixel i of m covers source [i n/m, (i+1) n/m). Integer images are summed in exact rational arithmetic (each
    source pixel weighs a whole number of 1/m) and rounded half up; float images are summed in float64. Where ``valid``
    (H,W) is given, padding carries no weight under an output pixel that sees any valid source pixel.
    """
    rows, columns = image.shape[:2]
    if not (0 < size[0] <= rows and 0 < size[1] <= columns):
        raise HilumError(f"an image of {rows} x {columns} cannot be area-averaged to {size[0]} x {size[1]}")
    if size == (rows, columns):
        return image
    exact = image.dtype.kind in "iub"
    wide = image.astype(np.int64 if exact else np.float64, copy=False)
    sums, weight = _area_sums(wide, size)
    if valid is None or valid.all():
        mean = _divide(sums, weight, exact)
    else:
        channels = (1,) * (image.ndim - 2)
        seen, _ = _area_sums(valid.astype(np.int64), size)
        kept, _ = _area_sums(np.where(valid.reshape(rows, columns, *channels), wide, 0), size)
        seen = seen.reshape(*size, *channels)
        mean = np.where(seen > 0, _divide(kept, np.maximum(seen, 1), exact), _divide(sums, weight, exact))
    return mean.astype(image.dtype)


def valid_average(valid: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A reduced pixel is valid where at least half of its source area is."""
    if size == valid.shape:
        return valid
    seen, weight = _area_sums(valid.astype(np.int64), size)
    half: NDArray[np.bool_] = 2 * seen >= weight
    return half


def _divide(sums: Array, weight: Any, exact: bool) -> Array:
    mean: Array = (2 * sums + weight) // (2 * weight) if exact else sums / weight
    return mean


def _area_sums(x: Array, size: tuple[int, int]) -> tuple[Array, int]:
    down, wy = _axis_sums(x, size[0])
    across, wx = _axis_sums(np.ascontiguousarray(down.swapaxes(0, 1)), size[1])
    return across.swapaxes(0, 1), wy * wx


def _axis_sums(x: Array, m: int) -> tuple[Array, int]:
    """(m, ...) weighted sums along the first axis of length n, and the total weight of each."""
    n = len(x)
    if n % m == 0:
        return x.reshape(m, n // m, *x.shape[1:]).sum(1), n // m
    whole, part = np.divmod(np.arange(m + 1) * n, m)
    weights = part.reshape(-1, *(1,) * (x.ndim - 1))
    # The pixel that an edge cuts gives `part` of its m shares to the left output and the rest to the right one.
    cut = np.where(weights == 0, 0, x[whole.clip(max=n - 1)] * weights)
    return m * np.add.reduceat(x, whole[:-1], axis=0) - cut[:-1] + cut[1:], n
