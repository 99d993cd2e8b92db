"""The compiled back-end for the processor: what :mod:`hilum.augment.reference` computes, in one pass over tiles.

Parameters, filters and matrices are worked out here in float64; :mod:`hilum.augment._loops` does the pixels, one call a
sample, outside the interpreter's lock, on as many threads as torch uses (one in a data worker). No intermediate is
larger than a tile's part of the image. What is not compiled (types beside uint8, uint16, int16, float16 and float32, a gamma
that is not positive) goes to the reference, and so does everything it refuses, which gives its error messages.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilum.augment import reference
from hilum.augment.draw import Draw
from hilum.augment.filters import plan
from hilum.augment.policy import Policy
from hilum.augment.sampling import _SNAP
from hilum.core.errors import HilumError, MissingExtra
from hilum.core.types import Meta, Ragged, Window
from hilum.parts.rng import Stream, op_id

__all__ = ["apply", "installed", "require"]

Array = NDArray[np.float64]

_FAR: Final = 2.0**40  # positions beyond this are no positions in an image
_TYPES: Final = (torch.uint8, torch.uint16, torch.int16, torch.float16, torch.float32)  # as U8 .. F32 of the loops
_BORDERS: Final = {"border": 1, "reflect": 2}  # EDGE, REFLECT of the loops; else CONSTANT
_FLAT: Final = (np.uint8, np.uint16, np.int16, np.float32)
_NOTHING: Final = tuple(np.empty(0, kind) for kind in _FLAT)
_NO_TABLE: Final = np.empty(0, np.float32)
_NO_TAPS: Final = np.zeros((2, 4))
_NO_KEY: Final = np.zeros(5, np.uint64)


@cache
def installed() -> bool:
    """Whether numba is there; it is not imported."""
    return find_spec("numba") is not None


def require() -> None:
    """:class:`MissingExtra` where numba is not there."""
    if not installed():
        raise MissingExtra("numba", extra="cpu", wanted_by="the compiled augmentation back-end")


@cache
def _loops() -> ModuleType:
    require()
    try:
        from hilum.augment import _loops as module
    except ImportError as error:  # numba refuses versions of others that it does not know
        told = f"the compiled augmentation back-end cannot be loaded ({error})"
        raise HilumError(told, where="engine.backend", fix="engine.backend: reference, or mend numba") from None
    return module


def apply(
    images: Ragged | Tensor | Sequence[Tensor],
    draws: Sequence[Draw | Mapping[str, Any]],
    metas: Sequence[Meta],
    policy: Policy,
    *,
    view: str = "image",
) -> Tensor:
    """:func:`hilum.augment.reference.apply`, equal to 1e-5 of the window's range; copies are bit for bit the same.

    A sample's bytes depend neither on its batch nor on the number of threads.
    """
    loops = _loops()
    rows = list(reference.rows_of(images)) if len(images) == len(draws) == len(metas) else []
    if not rows or any(row.device.type != "cpu" for row in rows):
        return reference.apply(images, draws, metas, policy, view=view)
    out = torch.empty((len(rows), policy.channels, *policy.size), dtype=torch.float32)
    norm = np.empty((2, policy.channels), np.float32)
    norm[0], norm[1] = policy.mean, policy.std
    tiles = math.prod(-(-side // loops.TILE) for side in policy.size)
    threads = torch.get_num_threads()
    parts = 1 if len(rows) >= 2 * threads else min(tiles, threads)
    running: list[Future[None]] = []
    for b, (image, given, meta) in enumerate(zip(rows, draws, metas, strict=True)):
        draw = given if isinstance(given, Draw) else Draw.from_json(given)
        job = _job(image, draw, meta, policy, view)
        if job is None:
            out[b] = reference.apply([image], [draw], [meta], policy, view=view)[0]
            continue
        target = out[b].numpy()
        for part in range(parts):
            first, last = tiles * part // parts, tiles * (part + 1) // parts
            work = partial(loops.kernel, *job, norm, first, last, target)
            if threads == 1:
                work()
            else:
                running.append(_pool(os.getpid(), threads).submit(work))
    for task in running:
        task.result()
    return out


@cache
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="hilum-augment")


def _job(image: Tensor, draw: Draw, meta: Meta, policy: Policy, view: str) -> tuple[Any, ...] | None:
    """The kernel's arguments for one sample up to ``norm``, or None where the reference has to see to it."""
    if image.dim() != 3 or 0 in image.shape or tuple(image.shape[1:]) != draw.source_size or draw.size != policy.size:
        return None
    channels = len(image)
    fits = channels in (1, policy.channels) or (channels, policy.channels) == (3, 1)
    if not fits or image.dtype not in _TYPES:
        return None
    extra = reference.view_extra(meta, view)
    slope, intercept = float(extra.get("slope", 1.0)), float(extra.get("intercept", 0.0))
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        return None
    window = reference.window_of(image.dtype, extra, f"sample {meta.sample_id}, view {view!r}")
    values = _values(channels, slope, intercept, window, draw, policy)
    seen = _geometry(draw, nearest=policy.interpolation == "nearest", whole=not image.is_floating_point())
    noisy = draw.noise != 0.0
    if values is None or seen is None or (noisy and draw.key is None):
        return None
    codes, params, table = values
    mode, matrix, factors, reaches, taps = seen
    border = _BORDERS.get(str(policy.border), 0)
    outside = reference.black_of(window) if draw.fill is None else draw.fill
    stored, layout = _stored(image)
    about = (_TYPES.index(image.dtype), 0, *image.shape[1:], channels, *layout, border, mode, *factors, *reaches)
    fill = np.float32((outside - intercept) / slope)
    loud, key = np.float32(draw.noise), _key(draw) if noisy else _NO_KEY
    return stored, about, fill, matrix, taps, codes, params, table, loud, key


def _stored(image: Tensor) -> tuple[tuple[NDArray[Any], ...], tuple[int, int, int]]:
    """Flat arrays, of which one is the image's memory, and (row stride, channel stride, values a pixel).

    Images whose pixels do not lie side by side, neither (C, H, W) nor (H, W, C), are copied.
    """
    channels, _, width = image.shape
    code = _TYPES.index(image.dtype)
    image = image.detach()
    if image.stride(2) != 1 and width > 1 and (image.stride(0), image.stride(2)) != (1, channels):
        image = image.contiguous()
    group = channels if image.stride(2) == channels and width > 1 else 1
    extent = 1 + sum((n - 1) * step for n, step in zip(image.shape, image.stride(), strict=True))
    flat = image.as_strided((extent,), (1,))
    arrays: list[NDArray[Any]] = list(_NOTHING)
    arrays[min(code, 3) if code != 3 else 1] = (flat.view(torch.uint16) if code == 3 else flat).numpy()
    return tuple(arrays), (image.stride(1), image.stride(0), group)


def _geometry(
    draw: Draw, *, nearest: bool, whole: bool
) -> tuple[int, Array, tuple[int, int], tuple[int, int], Array] | None:
    """(mode, output -> level (2, 3), block sizes, reach of the kernels, the kernels from their centre on (2, 4))."""
    loops = _loops()
    if np.shape(draw.matrix) != (3, 3):
        return None
    rows = [[float(v) for v in row] for row in draw.matrix.tolist()]
    if not all(abs(v) < _FAR for row in rows for v in row):
        return None
    full = [[float(round(v)) if abs(v - round(v)) < _SNAP else v for v in row] for row in rows]
    (a, b, y), (c, d, x), _ = full
    turn = (abs(a) == abs(d) == 1.0 and b == c == 0.0) or (abs(b) == abs(c) == 1.0 and a == d == 0.0)
    copy = turn and draw.sigma == 0.0 and y.is_integer() and x.is_integer()
    if nearest or (copy and not whole):  # of floating point values, 0 times infinity must not be added
        return loops.NEAREST, np.array(full[:2]), (1, 1), (0, 0), _NO_TAPS
    of_y, of_x = plan(full, draw.sigma)
    f, g, taps = of_y.factor, of_x.factor, np.zeros((2, 4))
    taps[0, : of_y.reach + 1], taps[1, : of_x.reach + 1] = of_y.kernel[of_y.reach :], of_x.kernel[of_x.reach :]
    level = np.array([[a / f, b / f, (y + 0.5) / f - 0.5], [c / g, d / g, (x + 0.5) / g - 0.5]])
    return loops.ALIGNED if b == c == 0.0 else loops.GENERAL, level, (f, g), (of_y.reach, of_x.reach), taps


def _values(
    channels: int, slope: float, intercept: float, window: Window, draw: Draw, policy: Policy
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]] | None:
    """(ops, their parameters (n, 3), the look-up table) of everything between sampling and noise."""
    from hilum.augment import _lanes as lanes

    table = _NO_TABLE
    ops: list[tuple[int, float, float, float]] = []
    if policy.channels == 1 and channels == 3:
        ops.append((lanes.GREY, *reference.LUMA))
    if (slope, intercept) != (1.0, 0.0):
        ops.append((lanes.AFFINE, slope, intercept, 0.0))
    lo, hi = window.lo, window.hi
    moved = draw.window_shift != 0.0 or draw.window_width != 1.0
    if window.kind == "table":
        if not len(window.table):
            return None
        table, width = np.asarray(window.table, np.float32), float(len(window.table))
        if moved:
            centre = lo + (width - 1.0) / 2.0
            ops.append((lanes.MOVED, centre, draw.window_shift * width, draw.window_width))
        ops.append((lanes.TABLE, lo, 0.0, 0.0))
    elif window.kind in ("linear", "sigmoid"):
        if moved:
            centre = (lo + hi) / 2.0 + draw.window_shift * (hi - lo)
            half = (hi - lo) * draw.window_width / 2.0
            lo, hi = centre - half, centre + half
        low = np.float32(lo)
        width = float(np.float32(hi) - low)
        linear = window.kind == "linear"
        code = lanes.STEP if width == 0.0 else lanes.LINEAR if linear else lanes.SIGMOID
        ops.append((code, float(low), width, 0.5 * width))
    else:
        return None
    for name in policy.pointwise:
        value = float(getattr(draw, name))
        if value == 1.0:
            continue
        if name == "brightness":
            ops.append((lanes.SCALE, value, 0.0, 0.0))
        elif name == "contrast":
            ops.append((lanes.TURN, _pivot(window, draw), value, 0.0))
        elif 0.0 < value < math.inf:
            ops.append((lanes.GAMMA, value, 0.0, 0.0))
        else:
            return None
    return np.array([op[0] for op in ops], np.int64), np.array([op[1:] for op in ops], np.float32), table


def _pivot(window: Window, draw: Draw) -> float:
    """Where contrast turns: the stored mean as displayed, else mid-grey."""
    if draw.pivot is None:
        return 0.5
    return float(reference.windowed(torch.tensor([draw.pivot], dtype=torch.float64), window, draw))


def _key(draw: Draw) -> NDArray[np.uint64]:
    """(5,): the key of the sample's pixel noise, then frame, op and sample of its counter (:mod:`hilum.parts.rng`)."""
    assert draw.key is not None
    stream = Stream(draw.key, view=draw.view)
    return np.array([*stream.key, stream.frame, op_id("noise", host=False), stream.sample], np.uint64)
