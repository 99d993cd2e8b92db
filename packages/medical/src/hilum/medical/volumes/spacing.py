"""Slices along their normal: regular, with gaps, irregular, sheared; measured from positions, never from a header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hilum.medical.volumes.frames import Frame, Real

_TIE = 0.01  # of a pixel: slices nearer than that are at one position
_LEAST = 1e-6  # mm: the same of any pixel
_MOST_PLANES = 1 << 20  # of a grid; a span that large is a wrong position
HOLE = 3.0  # steps between irregular slices from which on there is nothing to interpolate
_TILT = 0.05  # degrees that positions written in decimals can show by themselves


@dataclass(frozen=True)
class Stack:
    """Measured slices in order. ``offsets``: of each from the first, in steps; whole numbers where they are regular or
    have gaps. ``missing``: planes without a slice, of irregular ones those in holes of ``HOLE`` steps and more. ``step``:
    LPS mm from one plane of the grid to the next, ``step_mm``: the same along the normal."""

    offsets: Real
    step: Real
    step_mm: float
    missing: int
    irregular: tuple[float, float] | None  # smallest and largest distance
    tilt_deg: float
    stray_mm: float  # farthest that a slice lies beside the line through the first and the last
    bent: bool  # that is more than written numbers explain

    @property
    def planes(self) -> int:
        """Of the grid that the slices fill."""
        return int(np.floor(self.offsets[-1] + 1e-6)) + 1


def depths_of(frames: Sequence[Frame]) -> Real:
    """mm along the first frame's normal."""
    return np.array([f.position for f in frames], np.float64) @ frames[0].normal


def positions_of(depths: Real, spacing: tuple[float, float]) -> list[int]:
    """Number of the position that each frame is at, ties sharing one; ``depths`` in any order."""
    order = np.argsort(depths, kind="stable")
    new = np.diff(depths[order], prepend=depths[order[0]]) > max(_TIE * min(spacing), _LEAST)
    numbers = np.empty(len(depths), np.int64)
    numbers[order] = np.cumsum(new)
    found: list[int] = numbers.tolist()
    return found


def measured(frames: Sequence[Frame]) -> Stack:
    """Of two or more frames in ascending order, no two at one position."""
    assert frames[0].spacing is not None
    depths = depths_of(frames)
    places = np.array([f.position for f in frames], np.float64)
    extent, steps = depths[-1] - depths[0], np.diff(depths)
    along = (places[-1] - places[0]) / extent  # LPS mm for each mm along the normal
    stray = np.linalg.norm(places - places[0] - np.outer(depths - depths[0], along), axis=1)
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(along - frames[0].normal), 1.0)))
    even = extent / len(steps)
    missing, irregular = 0, None
    if np.abs(depths - depths[0] - even * np.arange(len(depths))).max() <= _tolerance(even):
        step, offsets = even, np.arange(len(depths), dtype=np.float64)
    else:
        typical = float(np.sort(steps)[(len(steps) - 1) // 2])
        whole = _multiples(steps, typical)
        if whole is None:
            whole = _multiples(steps, float(steps.min()))
        if whole is not None:
            missing = int(whole.sum()) - len(steps)
            step, offsets = extent / whole.sum(), np.concatenate([[0.0], np.cumsum(whole)])
        else:
            irregular = float(steps.min()), float(steps.max())
            step, offsets = typical, (depths - depths[0]) / typical
            if 0 < (last := np.ceil(offsets[-1])) - offsets[-1] <= _tolerance(typical) / typical:
                offsets[-1] = last  # the last plane is there but for the noise of written numbers
            wide = steps[steps >= HOLE * typical]
            missing = int((np.rint(wide / typical) - 1).sum())
    wild = offsets[-1] >= _MOST_PLANES
    if wild:
        offsets, irregular = np.arange(len(depths), dtype=np.float64), (float(steps.min()), float(steps.max()))
    return Stack(
        offsets,
        along * step,
        float(step),
        missing,
        irregular,
        tilt if tilt > _TILT else 0.0,
        float(stray.max()),
        bool(wild or stray.max() > max(0.02, 0.05 * min(frames[0].spacing))),
    )


def _multiples(steps: Real, step: float) -> Real | None:
    """Distances in whole steps, where all are and no more slices are missing than there."""
    whole = np.maximum(np.rint(steps / step), 1)
    on_grid = np.abs(steps - whole * step).max() <= _tolerance(step)
    even = steps.sum() / whole.sum()  # small differences add up: every slice must lie where the grid says
    on_grid &= np.abs(np.cumsum(steps) - even * np.cumsum(whole)).max() <= _tolerance(step)
    return whole if on_grid and whole.sum() <= 2 * len(steps) + 1 else None


def _tolerance(step: float) -> float:
    """mm that a slice may be off: a hundredth of the step, or what two decimals of a written position explain."""
    return max(0.01 * step, min(0.02, 0.1 * step))
