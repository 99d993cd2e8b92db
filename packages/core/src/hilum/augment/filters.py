"""What an image is averaged with before one linear read an output pixel: a pyramid level and a short kernel an axis.

Filters stand in SOURCE axes and are separable. A read at source position u of a filtered image is
``linear((K_y x K_x) * L)(u_L)``, where L is the image, extended by its border rule, averaged over blocks of f source
pixels an axis (blocks counted from pixel 0), and u_L = (u + 0.5) / f - 0.5. On the source, averaged over where between
pixels the read falls, block, linear read and kernel have the variances (f^2 - 1) / 12, f^2 / 6 and f^2 t.
Every back-end takes f and K from here (docs/decisions/0018-filters-in-source-axes.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hilum.core.errors import HilumError

Array = NDArray[np.float64]

REACH: Final = 3  # no kernel reaches further, in pixels of its level
MOST_READS: Final = 64  # of source pixels an output pixel and channel in one pass; more are read from a stored level
_WHOLE: Final = 1e-9  # a step this little (of itself) beside a power of two is that power: whole reductions stay exact
_SERIES: Final = [
    [1.0 / (math.factorial(m) * math.factorial(m + k)) for m in reversed(range(8))] for k in range(REACH + 1)
]


class AxisFilter(NamedTuple):
    """Of one source axis: block size ``factor`` (a power of two), ``kernel`` (1, 3 or 7,), symmetric, sum 1."""

    factor: int
    kernel: Array

    @property
    def reach(self) -> int:
        """Pixels of the level on either side that the kernel reads."""
        return len(self.kernel) // 2


def axis_filter(step: float, sigma: float = 0.0, *, minify: bool = True, origin: float | None = None) -> AxisFilter:
    """Level and kernel of one source axis.

    ``step``: source pixels along this axis an output step, the norm of the matrix's row; ``sigma``: Gaussian blur in
    output pixels. Without blur f is the largest power of two up to the step and K = [t / 2, 1 - t, t / 2] has variance
    t = (rho^2 - 1) / 6, rho = step / f in [1, 2): nothing at rho = 1, a zero at Nyquist as rho nears 2. With blur K
    is the discrete Gaussian of variance t on seven pixels (Lindeberg 1990, *Scale-space for discrete signals*), f the
    smallest power of two with t <= 1, and the variance on the source grows by (sigma step)^2. ``origin``, where one
    whole step leads from each read to the next: the position of the first, since a linear read on the grid has no
    variance and one half-way 1/4; else 1/6 is the mean. ``minify=False`` leaves out what the step asks for.
    """
    if not (math.isfinite(step) and step >= 0.0 and math.isfinite(sigma) and sigma >= 0.0):
        raise HilumError(f"no filter for a step of {step} pixels and a blur of {sigma}", fix="finite, 0 or more")
    factor, t = 1, 0.0
    if minify and step > 1.0:
        factor = 1 << math.floor(math.log2(step) + _WHOLE)
        rho = step / factor
        t = (rho * rho - 1.0) / 6.0 if rho > 1.0 + _WHOLE else 0.0
    if sigma == 0.0:
        return AxisFilter(factor, np.array([t / 2.0, 1.0 - t, t / 2.0]) if t else np.ones(1))
    t += (sigma * step / factor) ** 2
    between = _between(factor, step, origin)
    while t > 1.0:  # then blocks twice as large: t + between + 1/12 a pixel of the level, a quarter of it there
        factor, left = 2 * factor, t + between - 0.25
        between = _between(factor, step, origin)
        t = max(0.0, left / 4.0 - between)
    return AxisFilter(factor, _gaussian(t))


def reads_of(filters: Sequence[AxisFilter]) -> int:
    """Source pixels under one output pixel where its level is not stored: a GPU makes a second pass above
    ``MOST_READS`` of a level's blocks."""
    return math.prod((len(f.kernel) + 1) * f.factor for f in filters)


def _between(factor: int, step: float, origin: float | None) -> float:
    """Mean variance of the linear reads, p (1 - p) at p between two pixels of the level."""
    if origin is None or factor > 64:
        return 1.0 / 6.0
    places = [((origin + round(step) * q + 0.5) / factor - 0.5) % 1.0 for q in range(factor)]
    return sum(p * (1.0 - p) for p in places) / factor


def plan(matrix: ArrayLike, sigma: float = 0.0, *, minify: bool = True) -> tuple[AxisFilter, ...]:
    """:func:`axis_filter` of every source axis (y, x) or (z, y, x) of ``matrix`` (d+1, d+1), output -> source."""
    filters = []
    for *row, offset in np.asarray(matrix, np.float64)[:-1].tolist():
        step = math.sqrt(sum(a * a for a in row))
        on_grid = max(map(abs, row)) >= step * (1.0 - _WHOLE) and abs(step - round(step)) < _WHOLE
        filters.append(axis_filter(step, sigma, minify=minify, origin=offset if on_grid else None))
    return tuple(filters)


def _gaussian(t: float) -> Array:
    """(7,) the discrete Gaussian e^-a I_k(a), -3 <= k <= 3, divided by its sum, of variance t, 0 <= t <= 1.

    a is t but for what the tails beyond 3 would have added (at t = 1, 3.6 %), so that no variance is lost.
    """
    if t == 0.0:
        return np.ones(1)
    a = t
    for _ in range(4):
        centre, one, two, three = half = _bessel(a)
        lost = 1.0 - 2.0 * (one + 4.0 * two + 9.0 * three) / (centre + 2.0 * (one + two + three)) / a
        a += (t - a * (1.0 - lost)) / (1.0 - 4.0 * lost)  # Newton; lost grows as a^3
    kernel = np.array(half[:0:-1] + half)
    out: Array = kernel / kernel.sum()
    return out


def _bessel(a: float) -> list[float]:
    """I_0 .. I_3 at 0 < a <= 1.1 to 1e-13, from their power series."""
    square = 0.25 * a * a
    values = []
    for order, terms in enumerate(_SERIES):
        total = 0.0
        for term in terms:
            total = total * square + term
        values.append(total * (0.5 * a) ** order)
    return values
