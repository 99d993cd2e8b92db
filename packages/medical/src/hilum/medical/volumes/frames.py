"""Frames of one series as an index knows them, parted where no single grid can hold them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]
_COSINE, _SPACING = 1e-3, 1e-3  # differences (spacing: of the value) that are the noise of written numbers
_MOST_DIRECTIONS = 512


@dataclass(frozen=True, slots=True)
class Frame:
    """One plane. ``axes``: row and column cosines, ``position``: mm LPS of the first pixel's centre, ``spacing``:
    (row, column) mm; each None where unknown. ``keys``: what else tells frames apart."""

    sample: str
    number: int  # in its file
    size: tuple[int, int]
    spacing: tuple[float, float] | None
    axes: tuple[float, ...] | None
    position: tuple[float, float, float] | None
    keys: Mapping[str, float]

    @property
    def placed(self) -> bool:
        return self.spacing is not None and self.axes is not None and self.position is not None

    @property
    def normal(self) -> Real:
        """Row x column, of unit length."""
        assert self.axes is not None
        normal = np.cross(self.axes[:3], self.axes[3:])
        return normal / np.linalg.norm(normal)


@dataclass(frozen=True, slots=True)
class Part:
    """Frames that one grid may hold; ``split`` says what parted them from the rest of their series."""

    frames: Sequence[Frame]
    split: tuple[str, ...] = ()


def frames_of(row: Mapping[str, Any]) -> list[Frame]:
    """Planes of one index row, in file order."""
    count = int(row.get("frames") or 1)
    keys = {k["name"]: k["values"] for k in row.get("frame_keys") or ()}
    axes, places = list(row.get("orientation") or ()), list(row.get("positions") or ())
    spacing = tuple(row["spacing_mm"]) if row.get("spacing_mm") else None
    own = "row_spacing" in keys and "column_spacing" in keys
    planes = []
    for at in range(count):
        mine = {n: v for n, values in keys.items() if (v := values[at if len(values) > 1 else 0]) is not None}
        each = tuple(axes[6 * at : 6 * at + 6]) if len(axes) > 6 else tuple(axes)
        place = tuple(places[3 * at : 3 * at + 3])
        planes.append(
            Frame(
                row["sample_id"],
                at,
                (int(row["rows"]), int(row["columns"])),
                (mine["row_spacing"], mine["column_spacing"]) if own else spacing,
                each if len(each) == 6 and None not in each else None,
                place if len(place) == 3 and None not in place else None,
                mine,
            )
        )
    return planes


def parted(frames: Sequence[Frame]) -> tuple[list[Part], list[str]]:
    """Parts by localiser, frame of reference, size, spacing, orientation and stack, and the problems that this shows.

    Localisers and planes without a place do not count as mixing: they are no slices of anything.
    """
    parts = _split([Part(frames)], "localizer", lambda f: bool(f.keys.get("localizer")), lambda v: str(int(v)))
    parts = _split(parts, "placed", lambda f: f.placed, lambda v: str(int(v)))
    references = sorted({v for f in frames if f.placed and (v := f.keys.get("frame_of_reference")) is not None})
    if len(references) > 1:  # positions of different origins; their order in the series' numbers is all that is told
        number = {value: at for at, value in enumerate(references, 1)}
        parts = _split(parts, "frame_of_reference", lambda f: number.get(f.keys.get("frame_of_reference", -1.0)), str)
    parts = _split(parts, "size", lambda f: f.size, lambda v: f"{v[0]}x{v[1]}")
    known = sorted({f.spacing for f in frames if f.spacing is not None})
    spacings = _representatives(known, lambda a: _SPACING * float(np.abs(a).max()))
    parts = _split(parts, "spacing", lambda f: spacings.get(f.spacing), _numbers)
    directions = _representatives(sorted({f.axes for f in frames if f.placed and f.axes}), lambda a: _COSINE)
    parts = _split(parts, "orientation", lambda f: directions.get(f.axes) if f.placed else None, _numbers)
    parts = _split(parts, "stack", lambda f: f.keys.get("stack"), lambda v: f"{v:g}")
    slices = [p.frames[0] for p in parts if p.frames[0].placed and not p.frames[0].keys.get("localizer")]
    problems = []
    for code, values in (
        ("mixed_frame_of_reference", {f.keys.get("frame_of_reference") for f in slices} if references[1:] else ()),
        ("mixed_size", {f.size for f in slices}),
        ("mixed_spacing", {spacings.get(f.spacing) for f in slices}),
        ("mixed_orientation", {directions.get(f.axes) for f in slices}),
    ):
        if len(values) > 1:
            problems.append(f"{code}:{len(values)}")
    return parts, problems


def _split(parts: Iterable[Part], name: str, key: Callable[[Frame], Any], text: Callable[[Any], str]) -> list[Part]:
    done = []
    for part in parts:
        groups: dict[Hashable, list[Frame]] = {}
        for frame in part.frames:
            groups.setdefault(key(frame), []).append(frame)
        for value, frames in groups.items():
            told = f"{name}={'none' if value is None else text(value)}"
            done.append(replace(part, frames=frames, split=(*part.split, told) if len(groups) > 1 else part.split))
    return done


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{v + 0:.4g}" for v in values)


def _representatives(
    values: Sequence[tuple[float, ...]], tolerance: Callable[[Real], float]
) -> dict[tuple[float, ...] | None, tuple[float, ...]]:
    """Each value's stand-in: the first one in sorted order that is near enough."""
    known: list[tuple[float, ...]] = []
    found: dict[tuple[float, ...] | None, tuple[float, ...]] = {}
    for value in values:
        if len(known) > _MOST_DIRECTIONS:  # every plane another one: no grid, and no time to compare them all
            found[value] = value
            continue
        near = np.abs(np.array(known) - value).max(axis=1) if known else np.empty(0)
        at = int(np.argmin(near)) if len(near) else -1
        if at < 0 or near[at] > tolerance(np.array(value)):
            known.append(value)
            at = len(known) - 1
        found[value] = known[at]
    return found
