"""Reading an image or volume through a matrix: border, filter, blur and interpolation in one place.

Conventions of docs/augmentation.md: pixel centres at integers, extent [-0.5, N - 0.5], as in
``grid_sample(align_corners=False)``; outside pixels come from the border rule; nearest is floor(u + 0.5). The order is:
cut the window the output needs out of the stored pixels, extended by the border rule; average it over the blocks of its
level; filter it along each axis with the short kernels of :mod:`hilum.augment.filters`; read it once an output pixel,
linearly. Positions are float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations, product
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hilum.augment.filters import AxisFilter, plan
from hilum.core.errors import HilumError

Border: TypeAlias = "float | Literal['border', 'reflect']"
Array: TypeAlias = NDArray[np.float64]

_SNAP: Final = 1e-10  # matrix entries this near to whole numbers are whole: flips and quarter turns stay exact copies
_SIGNED: Final = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def sample(
    image: Tensor,
    matrix: ArrayLike,
    out_size: Sequence[int],
    *,
    border: Border = 0.0,
    nearest: bool = False,
    sigma: float = 0.0,
    minify: bool = True,
) -> Tensor:
    """An image (C, H, W) or volume (C, D, H, W) of any dtype seen through ``matrix`` (d+1, d+1): (C, *out_size).

    The matrix maps output pixel centres to source pixel centres. Linear results are float32 and differentiable in the
    image, nearest ones keep the dtype. ``border``: a value in the image's own units, ``border`` or ``reflect``.
    ``sigma``: Gaussian blur in output pixels. ``minify=False`` leaves the minification filter out. Flips, quarter
    turns and whole-pixel crops without blur are exact copies, which may share the image's memory.
    """
    d = image.dim() - 1
    if d not in (2, 3) or 0 in image.shape:
        raise HilumError(f"sample takes pixels (C, H, W) or (C, D, H, W), got {tuple(image.shape)}")
    m = np.asarray(matrix, np.float64)
    if m.shape != (d + 1, d + 1) or not np.isfinite(m).all():
        raise HilumError(f"sample takes a finite ({d + 1}, {d + 1}) matrix, got {m.tolist()}")
    whole, out = np.round(m), tuple(map(int, out_size))
    m = np.where(np.abs(m - whole) < _SNAP, whole, m)[:d]
    x, order = image.movedim(0, -1), _order(m[:, :d])
    if order is not None:  # output axes run along source axes: turn the source instead
        x, m = x.permute(*order, d), m[list(order)]
    if order is not None and (np.abs(np.diag(m)) == 1).all() and _whole(m[:, d]) and (nearest or not sigma):
        read = _copy(x, m, out, border, image.dtype if nearest else torch.float32)
    elif nearest:
        read = _nearest(x, m, out, border)
    else:
        filters = plan(np.vstack((m, np.eye(d + 1)[d])), sigma, minify=minify)
        read = (_general if order is None else _separable)(x, m, out, border, filters)
    return read.movedim(-1, 0)


def _order(linear: Array) -> tuple[int, ...] | None:
    """The source axis along which each output axis runs, where each runs along one."""
    at = range(len(linear))
    fits = (order for order in permutations(at) if not any(linear[order[a], b] for a in at for b in at if a != b))
    return next(fits, None)


def _whole(values: Array) -> bool:
    return bool((values == np.round(values)).all())


def _copy(x: Tensor, m: Array, out: tuple[int, ...], border: Border, dtype: torch.dtype) -> Tensor:
    ends = [sorted((int(m[a, -1]), int(m[a, -1] + m[a, a] * (n - 1)))) for a, n in enumerate(out)]
    window = _window(x, [e[0] for e in ends], [e[1] + 1 for e in ends], border, dtype)
    mirrored = [a for a in range(len(out)) if m[a, a] < 0]
    return _indexable(window).flip(mirrored).view(dtype) if mirrored else window


def _nearest(x: Tensor, m: Array, out: tuple[int, ...], border: Border) -> Tensor:
    index, inside = [], torch.ones(out, dtype=torch.bool)
    for u, n in zip(_positions(m, out), x.shape, strict=False):  # on the host, so that ties fall alike everywhere
        at = (u + 0.5).floor().long()
        inside &= (at >= 0) & (at < n)
        index.append(_fold(at, n, border).to(x.device))
    read = _indexable(x)[tuple(index)]
    if not isinstance(border, str):
        fill = _full((1,), border, x.dtype, x.device)
        read = torch.where(inside[..., None].to(x.device), read, _indexable(fill))
    return read.view(x.dtype)


def _separable(x: Tensor, m: Array, out: tuple[int, ...], border: Border, filters: tuple[AxisFilter, ...]) -> Tensor:
    """Kernel and linear read in one mix an axis."""
    reads = []
    for a, f in enumerate(filters):
        u = _clip((m[a, a] * np.arange(out[a]) + m[a, -1] + 0.5) / f.factor - 0.5, x.shape[a], f, border)
        left = np.floor(u).astype(np.int64)
        share, nothing = (u - left)[:, None], np.zeros((out[a], 1))
        near, far = (1.0 - share) * f.kernel, share * f.kernel
        reads.append((left - f.reach, np.hstack((near, nothing)) + np.hstack((nothing, far))))
    low = [int(first.min()) for first, _ in reads]
    high = [int(first.max()) + weights.shape[1] for first, weights in reads]
    x = _level(x, low, high, border, filters)
    for start, (first, weights) in zip(low, reads, strict=True):
        x = _mix(x, first - start, weights)
    return x


def _general(x: Tensor, m: Array, out: tuple[int, ...], border: Border, filters: tuple[AxisFilter, ...]) -> Tensor:
    """The kernels over the whole window, then 2^d neighbours an output pixel."""
    m = m / [[f.factor] for f in filters]
    m[:, -1] += [0.5 / f.factor - 0.5 for f in filters]
    corners = m @ np.vstack((np.array(list(product(*((0, n - 1) for n in out)))).T, np.ones(2 ** len(out))))
    ends = [_clip(u, n, f, border) for u, n, f in zip(corners, x.shape, filters, strict=False)]
    low, high = [math.floor(e.min()) for e in ends], [math.floor(e.max()) + 2 for e in ends]
    reach = [f.reach for f in filters]
    x = _level(x, np.subtract(low, reach).tolist(), np.add(high, reach).tolist(), border, filters)
    for f, lo, hi in zip(filters, low, high, strict=True):
        x = _mix(x, np.arange(hi - lo), np.tile(f.kernel, (hi - lo, 1))) if f.reach else x.movedim(0, -2)
    sizes = np.array(x.shape[:-1], np.float64)[:, None]
    m[:, -1] += 0.5 - np.array(low)
    m = m * 2.0 / sizes - np.eye(len(out) + 1)[-1]
    grid = torch.stack(_positions(m[::-1], out, x.device), -1)[None]  # (x, y) or (x, y, z) in [-1, 1]
    # in float64: a float32 position in [-1, 1] is off by 1e-4 pixels at 4096
    source = x.movedim(-1, 0)[None].to(torch.float64)
    read = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return read[0].movedim(0, -1).to(torch.float32)


def _positions(m: Array, out: Sequence[int], device: torch.device | None = None) -> list[Tensor]:
    """m (q, 1), one float64 tensor (*out) a row of ``m``, over all output pixels q."""
    axes = [torch.arange(n, dtype=torch.float64, device=device) for n in out]
    at = []
    for *steps, offset in m.tolist():
        u = torch.full((), offset, dtype=torch.float64, device=device)
        for step, q in zip(steps, axes, strict=True):
            u = u[..., None] + step * q
        at.append(u)
    return at


# --- window, border, level ---------------------------------------------------------------------------------


def _window(x: Tensor, low: Sequence[int], high: Sequence[int], border: Border, dtype: torch.dtype) -> Tensor:
    """x[low:high] on every axis, going on beyond the image by the border rule, converted to ``dtype`` after the cut."""
    spans = list(zip(low, high, x.shape[:-1], strict=True))
    inner = [slice(max(lo, 0), max(min(hi, n), 0)) for lo, hi, n in spans]
    if all(lo >= 0 and hi <= n for lo, hi, n in spans):
        return x[tuple(inner)].to(dtype)
    if isinstance(border, str):
        window = _indexable(x)
        for axis, (lo, hi, n) in enumerate(spans):
            window = window.index_select(axis, _fold(torch.arange(lo, hi, device=x.device), n, border))
        return window.view(x.dtype).to(dtype)
    window = _full([*(hi - lo for lo, hi, _ in spans), x.shape[-1]], border, dtype, x.device)
    if all(part.start < part.stop for part in inner):
        window[tuple(slice(p.start - lo, p.stop - lo) for p, lo in zip(inner, low, strict=True))] = x[tuple(inner)].to(
            dtype
        )
    return window


def _level(
    x: Tensor, low: Sequence[int], high: Sequence[int], border: Border, filters: tuple[AxisFilter, ...]
) -> Tensor:
    """Pixels ``low`` .. ``high`` of the image averaged over blocks of ``factor`` an axis, in float32."""
    if all(f.factor == 1 for f in filters):
        return _window(x, low, high, border, torch.float32)
    for lo, hi, f in zip(low, high, filters, strict=True):
        x = _blocks(x, lo, hi, f.factor, border).movedim(0, -2)
    return x


def _blocks(x: Tensor, low: int, high: int, factor: int, border: Border) -> Tensor:
    """(N, ..., C) -> (high - low, ..., C): block b is the mean of pixels b f .. (b + 1) f - 1, in or outside."""
    n, rest = x.shape[0], x.shape[1:]
    first, last = (min(max(edge, 0), n // factor) for edge in (low, high))  # blocks inside the image
    inner = x[first * factor : last * factor].to(torch.float32)
    for _ in range(factor.bit_length() - 1):
        inner = (inner[::2] + inner[1::2]) * 0.5
    if first == low and last == high:
        return inner
    parts = [inner]
    for start, stop in ((low, min(first, high)), (max(last, low), high)):
        counts = _counts(np.arange(start, max(stop, start)), n, factor, border)
        held = np.flatnonzero(counts.any(0))
        a, b = (int(held[0]), int(held[-1]) + 1) if len(held) else (0, 0)
        weights = torch.from_numpy(counts[:, a:b] / factor).to(x.device)
        part = torch.tensordot(weights, x[a:b].to(torch.float64), 1)  # float64 also keeps TensorFloat-32 out
        if not isinstance(border, str):
            lacking = torch.from_numpy(1.0 - counts.sum(1) / factor).to(x.device)
            part = part + border * lacking.view(-1, *(1 for _ in rest))
        parts.insert(len(parts) if start >= last else 0, part.to(torch.float32))
    return torch.cat(parts)


def _counts(block: NDArray[np.int64], n: int, factor: int, border: Border) -> Array:
    """(blocks, N): how often each of N pixels stands in each block of the image that goes on by the border rule."""
    k, start = np.arange(n, dtype=np.float64), block[:, None].astype(np.float64) * factor

    def before(edge: Array) -> Array:
        if border == "reflect":
            turns = np.floor(edge / (2 * n))
            edge = edge - 2 * n * turns
            return 2 * turns + np.clip(edge - k, 0, 1) + np.clip(edge - (2 * n - 1 - k), 0, 1)
        count = np.clip(edge - k, 0, 1)
        if border == "border":
            count[:, :1] += np.minimum(edge, 0)
            count[:, -1:] += np.maximum(edge - n, 0)
        return count

    return before(start + factor) - before(start)


def _fold(index: Tensor, n: int, border: Border) -> Tensor:
    if border != "reflect":
        return index.clamp(0, n - 1)
    index = index.remainder(2 * n)  # mirrored about -0.5 and n - 0.5
    return torch.minimum(index, 2 * n - 1 - index)


def _full(shape: Sequence[int], value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    if not dtype.is_floating_point and dtype != torch.bool:
        limits = torch.iinfo(dtype)
        if not (limits.min <= value <= limits.max and value == int(value)):
            raise HilumError(f"a border of {value} does not fit into {dtype}", fix="a whole number in its range")
        value = int(value)
    return torch.full(tuple(shape), value, dtype=dtype, device=device)


def _indexable(x: Tensor) -> Tensor:
    # torch has few kernels for wide unsigned types; moving values about does not care for the sign
    return x.view(_SIGNED.get(x.dtype, x.dtype))


def _clip(u: Array, n: int, filter_: AxisFilter, border: Border) -> Array:
    """Positions far outside read what is near outside, so that no window grows beyond need."""
    if border == "reflect":
        return u
    margin = filter_.reach + 2
    return np.clip(u, -margin, math.ceil(n / filter_.factor) - 1 + margin)


def _mix(x: Tensor, first: NDArray[np.int64], weights: Array) -> Tensor:
    """(R, ..., C) -> (..., n, C): rows first .. first + K - 1 summed with ``weights`` (n, K); the axis goes last."""
    index = torch.from_numpy(first[:, None] + np.arange(weights.shape[1])).to(x.device)
    w = torch.from_numpy(weights.astype(np.float32)).to(x.device)
    out = F.embedding_bag(index, x.flatten(1), mode="sum", per_sample_weights=w)
    return out.reshape(len(first), *x.shape[1:]).movedim(0, -2)
