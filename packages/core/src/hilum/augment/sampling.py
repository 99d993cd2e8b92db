"""Reading an image through a matrix: border, minification filter, blur and interpolation in one place.

Conventions of docs/augmentation.md: pixel centres at integers, extent [-0.5, N - 0.5], as ``grid_sample(align_corners=False)``;
outside taps come from the border rule; nearest is floor(u + 0.5). The order is: cut the window the output needs out of
the stored pixels, extended by the border rule; reduce by whole factors where the scale is above 8; blur on the
source's grid; interpolate linearly at n x n box taps an output pixel. Positions are float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hilum.core.errors import HilumError

Border: TypeAlias = "float | Literal['border', 'reflect']"
Array: TypeAlias = NDArray[np.float64]

MAX_TAPS: Final = 8
_SNAP: Final = 1e-10  # matrix entries this near to whole numbers are whole: flips and quarter turns stay exact copies
_SIGNED: Final = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


@torch.no_grad()
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
    """An image (C, H, W) of any dtype seen through ``matrix`` (3, 3), output -> source: (C, *out_size).

    Linear results are float32, nearest ones keep the dtype. ``border``: a value in the image's own units, ``border``
    or ``reflect``. ``sigma``: Gaussian blur in output pixels. ``minify=False`` leaves the minification filter out
    (one linear read an output pixel). Flips, quarter turns and whole-pixel crops without blur are exact copies, which
    may share the image's memory.
    """
    if image.dim() != 3 or 0 in image.shape:
        raise HilumError(f"sample takes an image (C, H, W) with pixels, got {tuple(image.shape)}")
    full = _snap(np.asarray(matrix, np.float64))
    if full.shape != (3, 3) or not np.isfinite(full).all():
        raise HilumError(f"sample takes a finite (3, 3) matrix, got {full.tolist()}")
    height, width = map(int, out_size)
    x, m = image.permute(1, 2, 0), full[:2]
    if m[0, 0] == m[1, 1] == 0:  # rows and columns exchanged: turn the source instead
        x, m = x.transpose(0, 1), m[::-1]
    aligned = m[0, 1] == m[1, 0] == 0
    dtype = image.dtype if nearest else torch.float32
    if aligned and not (sigma and not nearest) and (np.abs(np.diag(m)) == 1).all() and _whole(m[:, 2]):
        out = _copy(x, m, (height, width), border, dtype)
    elif nearest:
        out = _nearest(x, m, (height, width), border)
    elif aligned:
        out = _separable(x, m, (height, width), border, sigma, minify)
    else:
        out = _general(x, m, (height, width), border, sigma, minify)
    return out.permute(2, 0, 1)


def _snap(matrix: Array) -> Array:
    whole = np.round(matrix)
    snapped: Array = np.where(np.abs(matrix - whole) < _SNAP, whole, matrix)
    return snapped


def _whole(values: Array) -> bool:
    return bool((values == np.round(values)).all())


def _copy(x: Tensor, m: Array, out: tuple[int, int], border: Border, dtype: torch.dtype) -> Tensor:
    ends = [sorted((int(m[a, 2]), int(m[a, 2] + m[a, a] * (out[a] - 1)))) for a in (0, 1)]
    window = _window(x, [e[0] for e in ends], [e[1] + 1 for e in ends], border, dtype)
    mirrored = [a for a in (0, 1) if m[a, a] < 0]
    if not mirrored:
        return window
    return _indexable(window).flip(mirrored).view(dtype)


def _nearest(x: Tensor, m: Array, out: tuple[int, int], border: Border) -> Tensor:
    q_y, q_x = (torch.arange(n, dtype=torch.float64) for n in out)
    index, inside = [], torch.ones(out, dtype=torch.bool)
    for axis, n in enumerate(x.shape[:2]):
        u = m[axis, 0] * q_y[:, None] + m[axis, 1] * q_x[None, :] + m[axis, 2]
        at = (u + 0.5).floor().long()
        inside &= (at >= 0) & (at < n)
        index.append(_fold(at, n, border))
    window = _indexable(x)[index[0].to(x.device), index[1].to(x.device)]
    if not isinstance(border, str):
        fill = _full((1, 1, 1), border, x.dtype, x.device)
        window = torch.where(inside[..., None].to(x.device), window, _indexable(fill))
    return window.view(x.dtype)


def _separable(x: Tensor, m: Array, out: tuple[int, int], border: Border, sigma: float, minify: bool) -> Tensor:
    factors = _factors(m[:, :2]) if minify else (1, 1)
    bands = []
    for axis, (n, factor) in enumerate(zip(out, factors, strict=True)):
        step, offset = m[axis, axis] / factor, (m[axis, 2] + 0.5) / factor - 0.5
        taps = _taps(step) if minify else 1
        inner = (np.arange(taps) + 0.5) / taps - 0.5
        kernel = discrete_gaussian((sigma * step) ** 2)
        u = step * (np.arange(n)[:, None] + inner) + offset
        bands.append(_band(_clip(u, x.shape[axis], factor, len(kernel) // 2, border), kernel))
    low = [int(base.min()) for base, _ in bands]
    high = [int(base.max()) + weights.shape[1] for base, weights in bands]
    window = _reduced(x, low, high, factors, border)
    (y, w_y), (x_, w_x) = [(base - start, weights) for (base, weights), start in zip(bands, low, strict=True)]
    return _mix(_mix(window, y, w_y).transpose(0, 1), x_, w_x).transpose(0, 1)


def _general(x: Tensor, m: Array, out: tuple[int, int], border: Border, sigma: float, minify: bool) -> Tensor:
    factors = _factors(m[:, :2]) if minify else (1, 1)
    m = np.column_stack((m[:, :2], m[:, 2] + 0.5)) / np.array(factors)[:, None] - [[0, 0, 0.5]]
    linear = m[:, :2]
    taps = [_taps(step) if minify else 1 for step in np.linalg.norm(linear, axis=0)]
    along, diagonal, sign = _split_covariance(sigma**2 * linear @ linear.T)
    reach = [len(k) // 2 + len(diagonal) // 2 for k in along]
    corners = linear @ [[-0.5, -0.5, out[0] - 0.5, out[0] - 0.5], [-0.5, out[1] - 0.5, -0.5, out[1] - 0.5]] + m[:, 2:]
    ends = [_clip(corners[a], x.shape[a], factors[a], reach[a], border) for a in (0, 1)]
    low = [math.floor(e.min()) for e in ends]
    high = [math.floor(e.max()) + 2 for e in ends]
    start, stop = ([n + s * r for n, r in zip(end, reach, strict=True)] for end, s in ((low, -1), (high, 1)))
    window = _blur(_reduced(x, start, stop, factors, border), along, diagonal, sign)
    sizes = np.array(window.shape[:2], np.float64)
    grid_m = (m - [[0, 0, low[0]], [0, 0, low[1]]] + [[0, 0, 0.5]]) * (2.0 / sizes)[:, None] - [[0, 0, 1.0]]
    source = window.permute(2, 0, 1)[None]
    q_y, q_x = (torch.arange(n, dtype=torch.float64, device=x.device) for n in out)
    base = torch.empty((1, *out, 2), dtype=torch.float32, device=x.device)
    for k, (a, b, c) in enumerate(grid_m[::-1].tolist()):  # grid_sample wants (x, y)
        base[0, ..., k] = b * q_x + (a * q_y + c)[:, None]
    grid, total = torch.empty_like(base), base.new_zeros((1, x.shape[2], *out))
    for i, j in np.ndindex(*taps):
        inner = grid_m[::-1, :2] @ [(i + 0.5) / taps[0] - 0.5, (j + 0.5) / taps[1] - 0.5]
        torch.add(base, base.new_tensor(inner), out=grid)
        total += F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return total.div_(taps[0] * taps[1])[0].permute(1, 2, 0)


# --- window and border -----------------------------------------------------------------------------------


def _window(x: Tensor, low: Sequence[int], high: Sequence[int], border: Border, dtype: torch.dtype) -> Tensor:
    """x[low:high] on both axes, going on beyond the image by the border rule, converted to ``dtype`` after the cut."""
    sizes = x.shape[:2]
    inner = [slice(max(lo, 0), max(min(hi, n), 0)) for lo, hi, n in zip(low, high, sizes, strict=True)]
    if all(lo >= 0 and hi <= n for lo, hi, n in zip(low, high, sizes, strict=True)):
        return x[inner[0], inner[1]].to(dtype)
    if isinstance(border, str):
        rows, columns = (
            _fold(torch.arange(lo, hi, device=x.device), n, border) for lo, hi, n in zip(low, high, sizes, strict=True)
        )
        return _indexable(x)[rows][:, columns].view(x.dtype).to(dtype)
    window = _full((high[0] - low[0], high[1] - low[1], x.shape[2]), border, dtype, x.device)
    if all(part.start < part.stop for part in inner):
        target = [slice(part.start - lo, part.stop - lo) for part, lo in zip(inner, low, strict=True)]
        window[target[0], target[1]] = x[inner[0], inner[1]].to(dtype)
    return window


def _reduced(x: Tensor, low: Sequence[int], high: Sequence[int], factors: tuple[int, int], border: Border) -> Tensor:
    """Pixels ``low`` .. ``high`` of the image averaged over blocks of ``factors``, blocks counted from pixel 0."""
    ends = [[n * f for n, f in zip(end, factors, strict=True)] for end in (low, high)]
    window = _window(x, ends[0], ends[1], border, torch.float32)
    if factors == (1, 1):
        return window
    height, width, channels = window.shape
    return window.reshape(height // factors[0], factors[0], width // factors[1], factors[1], channels).mean((1, 3))


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


def _clip(u: Array, n: int, factor: int, reach: int, border: Border) -> Array:
    """Positions far outside read what is near outside, so that no window grows beyond need."""
    if border == "reflect":
        return u
    margin = reach + 2
    return np.clip(u, -margin, math.ceil(n / factor) - 1 + margin)


# --- filters -----------------------------------------------------------------------------------------------


def _taps(step: float) -> int:
    return min(MAX_TAPS, max(1, math.ceil(abs(step) - 1e-9)))


def _factors(linear: Array) -> tuple[int, int]:
    """Whole factors (y, x of the source) after which no output axis walks more than ``MAX_TAPS`` pixels a step."""
    factors = np.maximum(1, np.ceil(np.linalg.norm(linear, axis=1) / MAX_TAPS - 1e-9))
    while np.linalg.norm(linear / factors[:, None], axis=0).max() > MAX_TAPS + 1e-9:
        factors[np.argmax(np.linalg.norm(linear / factors[:, None], axis=1))] += 1
    return int(factors[0]), int(factors[1])


def discrete_gaussian(variance: float) -> Array:
    """(2R + 1,) the discrete Gaussian e^-t I_k(t), t = variance in pixels squared, whose variance is t at every t.

    Lindeberg 1990, *Scale-space for discrete signals*; from its transform exp(t (cos w - 1)). R keeps all but 1e-4 of
    the mass; nothing else is cut.
    """
    if variance <= 0.0:
        return np.ones(1)
    reach = math.ceil(4.0 * math.sqrt(variance)) + 1
    turns = 2.0 * np.pi * np.arange(4 * reach + 1) / (8 * reach)
    full = np.fft.irfft(np.exp(variance * (np.cos(turns) - 1.0)), 8 * reach)
    kernel: Array = np.concatenate((full[reach:0:-1], full[: reach + 1]))
    kernel /= kernel.sum()
    return kernel


def _band(u: Array, kernel: Array) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Weights of the source pixels base .. base + K - 1 for each output pixel: taps at u (n, taps), linear, blurred."""
    index = np.floor(u).astype(np.int64)
    rest = u - index
    base = index.min(1)
    at = index - base[:, None]
    linear = np.zeros((len(u), int(at.max()) + 2))
    rows = np.arange(len(u))[:, None]
    np.add.at(linear, (rows, at), (1.0 - rest) / u.shape[1])
    np.add.at(linear, (rows, at + 1), rest / u.shape[1])
    weights = np.zeros((len(u), linear.shape[1] + len(kernel) - 1))
    for shift, weight in enumerate(kernel):
        weights[:, shift : shift + linear.shape[1]] += weight * linear
    return base - len(kernel) // 2, weights.astype(np.float32)


def _mix(x: Tensor, base: NDArray[np.int64], weights: NDArray[np.float32]) -> Tensor:
    """(R, W, C) -> (n, W, C): rows base .. base + K - 1 summed with ``weights`` (n, K)."""
    index = torch.from_numpy(base[:, None] + np.arange(weights.shape[1])).to(x.device)
    w = torch.from_numpy(weights).to(x.device)
    out = F.embedding_bag(index, x.flatten(1).contiguous(), mode="sum", per_sample_weights=w)
    return out.reshape(len(base), *x.shape[1:])


def _split_covariance(covariance: Array) -> tuple[tuple[Array, Array], Array, int]:
    """A Gaussian's covariance as a sum along y, along x and along one diagonal, so that line filters do it.

    Exact while the larger of the two axes is not too thin for the grid (|c_yx| <= c_yy, c_xx: any rotation and crop in
    use); beyond that the diagonal part stops at the smaller variance.
    """
    cross = float(covariance[0, 1])
    shared = min(abs(cross), covariance[0, 0], covariance[1, 1])
    if shared <= 1e-3 * min(covariance[0, 0], covariance[1, 1]):
        shared = 0.0
    along = discrete_gaussian(covariance[0, 0] - shared), discrete_gaussian(covariance[1, 1] - shared)
    return along, discrete_gaussian(shared), 1 if cross > 0 else -1


def _blur(x: Tensor, along: tuple[Array, Array], diagonal: Array, sign: int) -> Tensor:
    for kernel in along:  # y, then x, each pass turning the image over
        if len(kernel) > 1:
            n = x.shape[0] - len(kernel) + 1
            x = _mix(x, np.arange(n), np.tile(kernel.astype(np.float32), (n, 1)))
        x = x.transpose(0, 1)
    if len(diagonal) == 1:
        return x
    n, w = x.shape[0] - len(diagonal) + 1, x.shape[1] - len(diagonal) + 1
    x, total = x.contiguous(), x.new_zeros(n, w, x.shape[2])
    for k, weight in enumerate(diagonal.tolist()):
        column = k if sign > 0 else len(diagonal) - 1 - k
        total.add_(x[k : k + n, column : column + w], alpha=weight)
    return total
