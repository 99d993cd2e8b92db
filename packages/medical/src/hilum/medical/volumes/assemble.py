"""Index rows of one series to rows of ``series.parquet`` (FORMATS 6): one grid each, or the reason why there is none.

A pure function of the rows and the options: the order of rows decides nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hilum.medical.volumes.frames import Frame, Part, Real, frames_of, parted
from hilum.medical.volumes.separation import mixed, separate
from hilum.medical.volumes.spacing import Stack, depths_of, measured, positions_of

OPTIONS: Final = {
    "allow_gaps": "use volumes with missing slices; their planes are marked invalid",
    "resample": "interpolate irregular slices linearly along the normal, tilted ones in their planes, on a regular grid",
    "split_4d": "take a series of several volumes (time, b-value, echo, ...) apart",
}
LOST: Final = "lost_slices"  # slices may be missing at the ends; of quarantined files core tells
RESOLVES: Final = {
    "gap": "allow_gaps",
    LOST: "allow_gaps",
    "irregular_spacing": "resample",
    "four_d": "split_4d",
    "affine_from_pixdim": "pixdim_affine",
}
FATAL: Final = frozenset(
    {
        *RESOLVES,
        "irregular_position",
        "duplicate_position",
        "missing_geometry",
        "mixed_patients",
        "uid_conflict",
        "mosaic",
        "colour",
    }
)
_GREY = (None, "MONOCHROME1", "MONOCHROME2")
_LEAST_SHIFT = 0.02  # pixels over the whole stack: what two decimals of a written position explain
_MOST_PIXELS = 1 << 16  # rows or columns of DICOM's own images (US); a grid beyond them is a wrong position


@dataclass(frozen=True)
class Shear:
    """How slices of a tilted stack lie on a grid without tilt; pairs are (rows, columns). A slice at offset n, ``size``
    pixels, begins ``before + n * shift`` pixels after the first pixel of the grid, whose planes have ``grid`` pixels."""

    size: tuple[int, int]
    grid: tuple[int, int]
    before: tuple[int, int]
    shift: tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """One volume: its row, and the (sample_id, frame) of each slice along the normal with its offset in steps.
    ``resampled``: interpolated along the normal; ``shear``: interpolated in the planes, to take a tilt out."""

    row: dict[str, Any]
    slices: tuple[tuple[str, int], ...]
    offsets: tuple[float, ...]
    resampled: bool = False
    shear: Shear | None = None


def assemble(rows: Sequence[Mapping[str, Any]], options: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Rows of ``series.parquet`` from the index rows of one series; ``options``: names of OPTIONS.

    Slices are ordered by the projection of their position on the normal (row x column cosines). ``affine_lps`` maps
    (i, j, k), which count columns, rows and slices, to LPS mm; a gantry tilt stays in it as shear, unless ``resample``
    takes it out: then the grid is orthogonal, and larger, to hold every slice. ``spacing_mm`` (k, j, i) is measured along
    the normal, so that its product is the volume of a voxel. What makes a volume unusable, and which option resolved
    that, stands in ``problems``.
    """
    return [plan.row for plan in plans(rows, options)]


def plans(rows: Sequence[Mapping[str, Any]], options: frozenset[str] = frozenset()) -> list[Plan]:
    """Like :func:`assemble`, with the slices of each volume."""
    patients: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: r["sample_id"]):  # files that name no patient are one patient's: the series'
        patients.setdefault(str(row["group_id"]) if row.get("group_known", True) else "unknown", []).append(row)
    several = [f"mixed_patients:{len(patients)}"] if len(patients) > 1 else []
    done = []
    for group, own in sorted(patients.items()):
        who = (f"group={group}",) if several else ()
        frames = [frame for row in own for frame in frames_of(row)]
        parts, problems = parted(frames)
        about = {row["sample_id"]: row for row in own}
        lost = Counter(f.size for f in frames if not f.placed and not f.keys.get("localizer"))
        for part in parts:
            part = Part(part.frames, (*who, *part.split))
            told = _carried(part, about)
            if (
                len(part.frames) > 1 and part.frames[0].placed
            ):  # of what has its size and no place, some may belong to it
                told += _lost(lost[part.frames[0].size])
            done += _of_part(part, own[0], several + problems + told, options)
    return sorted(done, key=lambda p: str(p.row["volume_id"]))


def _carried(part: Part, rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Problems of files that are problems of their volume."""
    files = [rows[s] for s in dict.fromkeys(f.sample for f in part.frames)]
    problems = sorted({p for row in files for p in row.get("problems") or () if p.startswith("affine_")})
    if len(part.frames) > 1:  # of one image nothing is missing
        problems += sorted({p for row in files for p in row.get("problems") or () if p.startswith(LOST)})
    if any(row.get("photometric") not in _GREY for row in files) and len(part.frames) > 1:
        problems.append("colour")
    return problems


def _of_part(part: Part, about: Mapping[str, Any], problems: list[str], options: frozenset[str]) -> list[Plan]:
    frames = part.frames
    if frames[0].keys.get("localizer"):
        problems = [*problems, "localizer"]
    if any(f.keys.get("mosaic") for f in frames):  # slices side by side in one image, whose place is none of theirs
        return [_plan(part, about, [*problems, f"mosaic:{len(frames)}"], options)]
    if not frames[0].placed:
        told = [f"missing_geometry:{len(frames)}"] if len(frames) > 1 else []
        return [_plan(part, about, problems + told, options)]
    assert frames[0].spacing is not None
    depths = depths_of(frames)
    bins = positions_of(depths, frames[0].spacing)
    apart = len(set(bins)) == len(frames)
    found = mixed(frames) if apart else separate(frames, bins)
    if found is None and apart:
        return [_grid(part, about, problems, options)]
    if found is None:
        return [_plan(part, about, [*problems, f"duplicate_position:{len(frames) - len(set(bins))}"], options)]
    problems = [*problems, f"four_d:{found.text}"]
    if "split_4d" not in options:
        return [_plan(part, about, problems, options)]
    volumes: dict[str, list[Frame]] = {}
    for label, frame in zip(found.labels, frames, strict=True):
        volumes.setdefault(label, []).append(frame)
    volumes = {" ".join(name): own for label, same in volumes.items() for name, own in _pure(label, same)}
    problems.append(f"split_4d:{len(volumes)} volumes")
    full = 0 if apart else len(set(bins))  # what the others of its series say of a volume's slices
    return [
        _grid(Part(own, (*part.split, label)), about, [*problems, *_lost(full - len(own))], options)
        for label, own in volumes.items()
    ]


def _lost(missing: int) -> list[str]:
    return [f"{LOST}:{missing}"] if missing > 0 else []


def _pure(label: str, frames: Sequence[Frame]) -> Iterable[tuple[tuple[str, ...], list[Frame]]]:
    """Frames of one label, parted once more where they are of several contrasts."""
    found = mixed(frames)
    more: dict[tuple[str, ...], list[Frame]] = {}
    for at, frame in enumerate(frames):
        more.setdefault((label,) if found is None or len(frames) == 1 else (label, found.labels[at]), []).append(frame)
    return more.items()


def _grid(part: Part, about: Mapping[str, Any], problems: list[str], options: frozenset[str]) -> Plan:
    """A part whose frames all have their own position."""
    order = np.argsort(depths_of(part.frames), kind="stable")
    frames = [part.frames[i] for i in order]
    part = Part(frames, part.split)
    if len(frames) == 1:
        thickness = frames[0].keys.get("thickness_mm")
        thickness = thickness if thickness is not None and 0 < thickness < 1e4 else None
        step = frames[0].normal * (thickness or 1.0)
        affine = _affine(frames[0], step)
        return _plan(part, about, [*problems, "single_slice"], options, affine=affine, thickness=thickness)
    stack = measured(frames)
    problems = problems + list(_problems(stack, frames, options))
    affine = _affine(frames[0], stack.step)
    if not stack.tilt_deg or stack.bent or "resample" not in options:
        return _plan(part, about, problems, options, affine=affine, stack=stack)
    shear = _shear(frames[0], stack)
    if shear is None:  # usable as it is, but not what was asked for
        problems = [*problems, f"irregular_position:{np.linalg.norm(stack.step) * stack.offsets[-1]:.4g} mm"]
        return _plan(part, about, problems, options, affine=affine, stack=stack)
    affine[:3, 2] = frames[0].normal * stack.step_mm
    affine[:3, 3] -= affine[:3, 1] * shear.before[0] + affine[:3, 0] * shear.before[1]
    return _plan(part, about, [*problems, "resample:tilt"], options, affine=affine, stack=stack, shear=shear)


def _shear(first: Frame, stack: Stack) -> Shear | None:
    """The grid that holds every slice of a tilted stack, None where it would be too large."""
    assert first.axes is not None and first.spacing is not None
    basis = np.column_stack([first.axes[3:], first.axes[:3], first.normal])  # down, right, along the normal
    along = np.linalg.solve(basis / np.linalg.norm(basis, axis=0), stack.step)
    size, shifts, before, grid = (first.size[0], first.size[1]), [], [], []
    for pixels, mm, spacing in zip(size, along, first.spacing, strict=False):
        shift = float(mm) / spacing
        total = shift * float(stack.offsets[-1])
        if abs(total) <= _LEAST_SHIFT:
            shift = total = 0.0
        if not abs(total) + pixels < _MOST_PIXELS:
            return None
        more = int(np.ceil(abs(total) - 1e-6))
        shifts.append(shift)
        before.append(more if total < 0 else 0)
        grid.append(pixels + more)
    return Shear(size, (grid[0], grid[1]), (before[0], before[1]), (shifts[0], shifts[1]))


def _problems(stack: Stack, frames: Sequence[Frame], options: frozenset[str]) -> Iterable[str]:
    if stack.missing:
        yield f"gap:{stack.missing} missing, step {stack.step_mm:.4g} mm"
        if "allow_gaps" in options:
            yield f"allow_gaps:{stack.missing} planes invalid"
    if stack.irregular:
        yield f"irregular_spacing:{stack.irregular[0]:.4g} to {stack.irregular[1]:.4g} mm"
        if "resample" in options:
            yield f"resample:step {stack.step_mm:.4g} mm"
    if stack.bent:
        yield f"irregular_position:{stack.stray_mm:.4g} mm"
    if stack.tilt_deg:
        yield f"gantry_tilt:{stack.tilt_deg:.4g}"
    whole = len({f.sample for f in frames}) == 1
    counts = [float(f.number) if whole else f.keys.get("instance") for f in frames]
    numbers = [c for c in counts if c is not None]
    if len(numbers) == len(frames) and not _monotone(numbers):
        yield "instance_order"


def _monotone(values: Sequence[float]) -> bool:
    steps = np.diff(values)
    return bool((steps > 0).all() or (steps < 0).all())


def _affine(first: Frame, step: Real) -> Real:
    """(4,4): (i, j, k) to LPS mm (PS3.3 C.7.6.2.1.1)."""
    assert first.axes is not None and first.spacing is not None
    affine = np.eye(4)
    row, column = (np.array(first.axes[at : at + 3]) for at in (0, 3))
    affine[:3, 0] = row / np.linalg.norm(row) * first.spacing[1]  # along a row, columns count
    affine[:3, 1] = column / np.linalg.norm(column) * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, first.position
    return affine


def _plan(
    part: Part,
    about: Mapping[str, Any],
    problems: Sequence[str],
    options: frozenset[str],
    *,
    affine: Real | None = None,
    stack: Stack | None = None,
    thickness: float | None = None,
    shear: Shear | None = None,
) -> Plan:
    frames, split = part.frames, " ".join(part.split)
    first, series = frames[0], about["series_id"] or about["sample_id"]
    codes = {p.partition(":")[0] for p in problems}
    if LOST in codes and "allow_gaps" in options:
        problems = [*problems, "allow_gaps:ends"]
    refused = {c for c in codes & FATAL if RESOLVES.get(c) not in options}
    step = stack.step_mm if stack is not None else thickness
    row = {
        "series_id": series,
        "volume_id": f"{series}-{hashlib.sha256(split.encode()).hexdigest()[:8]}" if split else series,
        "group_id": about["group_id"],
        "study_id": about["study_id"],
        "modality": about["modality"],
        "sample_ids": list(dict.fromkeys(f.sample for f in frames)),
        "frames": len(frames),
        "regular": None if affine is None else stack is None or not (stack.missing or stack.irregular),
        "shape_kji": [
            stack.planes if stack is not None else len(frames),
            *(first.size if shear is None else shear.grid),
        ],
        "spacing_mm": None if affine is None or first.spacing is None else [step, *first.spacing],
        "affine_lps": None if affine is None else affine.ravel().tolist(),
        "split_key": split,
        "tilt_deg": None if stack is None else stack.tilt_deg,
        "problems": sorted(set(problems)),
        "usable": not refused,
    }
    offsets = tuple(stack.offsets.tolist()) if stack is not None else tuple(float(n) for n in range(len(frames)))
    resampled = stack is not None and stack.irregular is not None
    return Plan(row, tuple((f.sample, f.number) for f in frames), offsets, resampled, shear)
