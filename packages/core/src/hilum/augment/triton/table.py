"""What the kernels are told: one int64 row a sample, worked out on the host in float64 (nothing here needs triton).

A row holds whole numbers (:data:`WHOLE`), then real ones as the bits of their float64 (:data:`REAL`). Behind the rows of a
group stand the means, the deviations and the tables of its windows, so that one transfer brings all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilum.augment.draw import Draw
from hilum.augment.filters import MOST_READS, plan, reads_of
from hilum.augment.policy import Policy
from hilum.augment.reference import black_of, view_extra, window_of, windowed
from hilum.core.errors import HilumError
from hilum.core.types import Meta, Window
from hilum.parts.rng import LOW32, op_id, philox_key

Words = NDArray[np.int64]

WHOLE: Final = (
    *("pixels", "height", "width", "stride_y", "stride_x", "stride_c"),  # what is read; ``pixels`` is an address
    *("block_y", "block_x", "shift_y", "shift_x", "reach_y", "reach_x"),  # its filter; a block is 1 << shift
    *("level", "row"),  # is a level read; row of the output
    *("window", "curve", "curve_size", "key_0", "key_1", "sample"),
    *("target", "low_y", "low_x", "level_height", "level_width"),  # what ``shrink`` writes
)
REAL: Final[Mapping[str, int]] = {
    "matrix": 6,
    "kernel_y": 9,
    "kernel_x": 9,
    **dict.fromkeys(("outside", "slope", "intercept", "low", "span"), 1),
    **dict.fromkeys(("curve_centre", "curve_moved", "curve_scale"), 1),
    **dict.fromkeys(("brightness", "contrast", "gamma", "pivot", "noise"), 1),
}
AT: Final[dict[str, int]] = {name: k for k, name in enumerate(WHOLE)}
for _name, _count in REAL.items():
    AT[_name] = COLUMNS = AT.get("end", len(WHOLE))
    AT["end"] = COLUMNS + _count
COLUMNS = AT.pop("end")

NOISE_OP: Final = op_id("noise", host=False)
SOURCES: Final = (torch.uint8, torch.uint16, torch.int16, torch.float16, torch.float32)
WINDOWS: Final = ("linear", "sigmoid", "table")
MOST_BLOCK: Final = 8  # pixels an axis that ``shrink`` averages in one pass; larger blocks are means of means
FURTHEST: Final = 1 << 30  # positions are int32 in the kernel
MOST_SCRATCH: Final = 1 << 28  # pixels of one sample's level
_SNAP: Final = 1e-10  # as in hilum.augment.sampling


@dataclass(slots=True)
class Pass:
    """One ``shrink`` of one sample: blocks, and the window (y, x) of blocks counted from pixel 0."""

    block: tuple[int, int]
    low: tuple[int, int]
    size: tuple[int, int]
    at: int = 0  # address of its result


@dataclass(slots=True)
class Read:
    """How one sample is read. ``matrix`` (2 x 3, y first): output pixel -> pixel of what ``fuse`` reads; ``block`` source
    pixels and ``kernels`` an axis; ``passes``: none, or how its level is made; ``folded``: no constant stands outside."""

    matrix: list[list[float]]
    block: tuple[int, int]
    kernels: tuple[list[float], list[float]]
    folded: bool
    passes: list[Pass] = field(default_factory=list)


@dataclass(slots=True)
class Sample:
    """One checked sample."""

    index: int
    image: Tensor
    draw: Draw
    window: Window
    slope: float
    intercept: float
    outside: float
    read: Read


def checked(index: int, image: Tensor, draw: Draw | Mapping[str, Any], meta: Meta, policy: Policy, view: str) -> Sample:
    """The reference's checks, and those of this back-end: :class:`HilumError` names the sample."""
    where = f"sample {meta.sample_id}, view {view!r}"
    draw = draw if isinstance(draw, Draw) else Draw.from_json(draw)
    if image.dim() != 3 or tuple(image.shape[1:]) != draw.source_size or draw.size != policy.size:
        fix = f"the draw was made for {draw.source_size} to become {draw.size}"
        raise HilumError(f"an image of shape {tuple(image.shape)} does not fit its draw", where=where, fix=fix)
    if len(image) not in (1, policy.channels) and (len(image), policy.channels) != (3, 1):
        raise HilumError(f"{len(image)} channels cannot become {policy.channels}", where=where)
    if 0 in image.shape:
        raise HilumError(f"an image of shape {tuple(image.shape)} has no pixels", where=where)
    if image.dtype not in SOURCES:
        known = ", ".join(str(d).removeprefix("torch.") for d in SOURCES)
        raise HilumError(f"{image.dtype} is not read by the Triton back-end", where=where, fix=f"one of {known}")
    if 1 + sum((n - 1) * s for n, s in zip(image.shape, image.stride(), strict=True)) >= 1 << 31:
        raise HilumError(f"an image of shape {tuple(image.shape)} has 2^31 elements or more", where=where)
    extra = view_extra(meta, view)
    slope, intercept = float(extra.get("slope", 1.0)), float(extra.get("intercept", 0.0))
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        raise HilumError(f"slope {slope} and intercept {intercept} are no rescaling", where=where)
    if draw.noise and draw.key is None:
        raise HilumError("noise needs the sample's key", where=where, fix="draw with a key")
    window = window_of(image.dtype, extra, where)
    if window.kind not in WINDOWS or (window.kind == "table" and not len(window.table)):
        raise HilumError(f"a window of kind {window.kind!r} with a table of {len(window.table)} entries", where=where)
    fill = black_of(window) if draw.fill is None else draw.fill
    border = policy.border if policy.border in ("border", "reflect") else None
    matrix = draw.matrix.tolist()
    if draw.matrix.shape != (3, 3) or not all(map(math.isfinite, matrix[0] + matrix[1])):
        raise HilumError(f"a matrix must be (3, 3) and finite, got {matrix}", where=where)
    height, width = draw.size
    if max(abs(a) * height + abs(b) * width + abs(c) for a, b, c in matrix[:2]) > FURTHEST:
        raise HilumError("the output reaches 2^30 pixels from its image", where=where, fix=str(matrix))
    read = reading(matrix, draw, policy.interpolation == "nearest", border, where)
    return Sample(index, image, draw, window, slope, intercept, (fill - intercept) / slope, read)


def reading(matrix: Sequence[Sequence[float]], draw: Draw, nearest: bool, border: object, where: str) -> Read:
    """Level, kernels and matrix of one sample: from the source while ``MOST_READS`` reads a pixel do, else by passes.

    Python floats throughout: a batch waits for this, and arrays of three numbers are slow.
    """
    m = [[w if abs(v - (w := float(round(v)))) < _SNAP else v for v in row] for row in matrix[:2]]
    if nearest:
        return Read(m, (1, 1), ([1.0], [1.0]), border is not None)
    y, x = filters = plan([*m, [0.0, 0.0, 1.0]], draw.sigma)
    if y.factor * x.factor > 1:
        m = [[a / n, b / n, c / n + (0.5 / n - 0.5)] for (a, b, c), (n, _) in zip(m, filters, strict=True)]
    whole = Read(m, (y.factor, x.factor), (y.kernel.tolist(), x.kernel.tolist()), border is not None)
    if y.factor * x.factor == 1 or reads_of(filters) <= MOST_READS:
        return whole
    low, size = [], []
    for (a, b, c), (factor, kernel), n in zip(m, filters, draw.source_size, strict=True):
        ends = [c + a * p + b * q for p in (0, draw.size[0] - 1) for q in (0, draw.size[1] - 1)]
        first, last, reach = min(ends), max(ends), len(kernel) // 2
        if border != "reflect":  # beyond the margin all is border
            nearest_, furthest = -(reach + 2), math.ceil(n / factor) + 1 + reach
            first, last = (min(max(end, nearest_), furthest) for end in (first, last))
        low.append(math.floor(first) - reach)
        size.append(math.floor(last) + 2 + reach - low[-1])
    left = [y.factor, x.factor]
    while max(left) > 1:
        block = min(left[0], MOST_BLOCK), min(left[1], MOST_BLOCK)
        left = [n // b for n, b in zip(left, block, strict=True)]
        whole.passes.append(Pass(block, (low[0] * left[0], low[1] * left[1]), (size[0] * left[0], size[1] * left[1])))
    if (most := max(math.prod(p.size) for p in whole.passes)) > MOST_SCRATCH:
        fix = "a smaller scale, or another back-end"
        raise HilumError(f"a level of {most} pixels would be needed for one view", where=where, fix=fix)
    for row, start in zip(m, low, strict=True):
        row[2] -= start
    whole.block = (1, 1)
    return whole


def sums(samples: Sequence[Sample]) -> bool:
    """Whether the levels of a group may be sums in uint16, half of float32's bytes and exact: blocks of up to 64 bytes."""
    return all(
        s.image.dtype == torch.uint8 and len(s.read.passes) == 1 and (s.outside in range(256) or s.read.folded)
        for s in samples
        if s.read.passes
    )


def fuse_rows(samples: Sequence[Sample], policy: Policy, *, summed: bool) -> tuple[Words, int]:
    """(words,) for ``fuse``, and where in them the means stand. ``summed``: levels are sums, not means."""
    tail = [v for row in (policy.mean, policy.std) for v in (row * policy.channels if len(row) == 1 else row)]
    start, whole, real = len(samples) * COLUMNS, [], []
    for s in samples:
        draw, read, curve = s.draw, s.read, (0, 0)
        if s.window.kind == "table":
            curve = start + len(tail), len(s.window.table)
            tail += s.window.table
        key = (0, 0, 0)
        if draw.key is not None:
            key = (*philox_key(draw.key.run_seed, draw.key.epoch, draw.view), draw.key.sample & LOW32)
        (y, x), reach = read.block, [len(kernel) // 2 for kernel in read.kernels]
        filter_ = (y, x, y.bit_length() - 1, x.bit_length() - 1, *reach)
        window = (WINDOWS.index(s.window.kind), *curve)
        whole.append(
            (*_source(s, len(read.passes)), *filter_, bool(read.passes), s.index, *window, *key, 0, 0, 0, 0, 0)
        )
        areas, kernels = read.passes[0].block if read.passes and summed else read.block, []
        for kernel, area in zip(read.kernels, areas, strict=True):  # a 0 before the kernel, and zeros behind it
            kernels += [0.0, *(weight / area for weight in kernel), *[0.0] * (8 - len(kernel))]
        values = (draw.brightness, draw.contrast, draw.gamma, _pivot(s), draw.noise)
        real.append((*read.matrix[0], *read.matrix[1], *kernels, s.outside, s.slope, s.intercept, *_moved(s), *values))
    rows = np.hstack((np.array(whole, np.int64), np.array(real, np.float64).view(np.int64)))
    return np.concatenate((rows.ravel(), np.array(tail, np.float64).view(np.int64))), start


def shrink_rows(samples: Sequence[Sample], step: int) -> Words:
    """(words,) for the ``step``-th ``shrink`` of ``samples``."""
    whole, outside = [], np.zeros((len(samples), COLUMNS - len(WHOLE)))
    for s in samples:
        done = s.read.passes[step]
        low = done.low
        if step:  # counted from the window that the pass before has written
            before = s.read.passes[step - 1].low
            low = (low[0] - before[0] // done.block[0], low[1] - before[1] // done.block[1])
        whole.append((*_source(s, step), *done.block, *[0] * (len(WHOLE) - 13), done.at, *low, *done.size))
    outside[:, AT["outside"] - len(WHOLE)] = [s.outside for s in samples]
    return np.hstack((np.array(whole, np.int64), outside.view(np.int64))).ravel()


def _source(s: Sample, step: int) -> tuple[int, ...]:
    """What is read: the stored image (step 0), or what pass ``step`` - 1 wrote, (h, w, C)."""
    if step == 0:
        channel, row, column = s.image.stride()
        return s.image.data_ptr(), *s.draw.source_size, row, column, channel
    (height, width), channels = s.read.passes[step - 1].size, len(s.image)
    return s.read.passes[step - 1].at, height, width, width * channels, channels, 1


def _moved(s: Sample) -> tuple[float, ...]:
    """low, span, curve_centre, curve_moved, curve_scale of the sample's window."""
    draw, window = s.draw, s.window
    low, high, curve = window.lo, window.hi, (0.0, 0.0, 0.0)
    moved = draw.window_shift != 0.0 or draw.window_width != 1.0
    if window.kind == "table":
        width, high = float(len(window.table)), low + 1.0
        if moved:
            curve = (low + (width - 1.0) / 2.0, draw.window_shift * width, draw.window_width)
    elif moved:
        width, centre = high - low, (low + high) / 2.0 + draw.window_shift * (high - low)
        low, high = centre - width * draw.window_width / 2.0, centre + width * draw.window_width / 2.0
    return low, _f32(high) - _f32(low), *curve


def _pivot(s: Sample) -> float:
    """Of contrast, as displayed."""
    if s.draw.pivot is None or s.draw.contrast == 1.0:
        return 0.5
    low, span, *_ = _moved(s)
    if s.window.kind == "linear" and span:
        return min(max((s.draw.pivot - low) / span, 0.0), 1.0)
    return float(windowed(torch.tensor([s.draw.pivot], dtype=torch.float64), s.window, s.draw))


def _f32(value: float) -> float:
    return float(np.float32(value))
