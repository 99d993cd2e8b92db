"""A volume: stored values on a grid in the patient's coordinates, and how one is read from a study."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from hilum.core.errors import HilumError, nearest
from hilum.core.types import Limits
from hilum.data.archives import member_file
from hilum.data.study import Study
from hilum.medical.volumes.assemble import FATAL, LOST, RESOLVES, Plan, plans
from hilum.medical.volumes.planes import Plane, moved, planes_of
from hilum.medical.volumes.spacing import HOLE

Array = NDArray[Any]
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_DIRECTIONS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}  # axis of LPS, sign


@dataclass(frozen=True)
class Volume:
    """``stored`` (K,J,I): slices, rows, columns. Modality values of slice k are ``stored[k] * slopes[k] +
    intercepts[k]``; polarity of display is left out. ``affine_lps`` (4,4) maps (i, j, k) to LPS mm, to a voxel's centre;
    ``spacing_mm`` is (k, j, i), k along the normal. ``valid`` (K,J,I) is False on padding, on slices that the series
    lacks and beside tilted slices on a grid without tilt, None where every voxel counts."""

    volume_id: str
    stored: Array
    slopes: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    affine_lps: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    valid: NDArray[np.bool_] | None = None
    unit: str | None = None
    modality: str | None = None
    problems: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)  # codec, codec_version, options

    @property
    def shape(self) -> tuple[int, int, int]:
        k, j, i = self.stored.shape
        return k, j, i

    @property
    def line(self) -> tuple[float, float] | None:
        """Slope and intercept where all slices share them."""
        same = (self.slopes == self.slopes[0]).all() and (self.intercepts == self.intercepts[0]).all()
        return (float(self.slopes[0]), float(self.intercepts[0])) if same else None

    def values(self) -> NDArray[np.float32]:
        """Modality values (K,J,I), rounded once to float32."""
        out = np.empty(self.shape, np.float32)
        for k, plane in enumerate(self.stored):
            out[k] = plane * self.slopes[k] + self.intercepts[k]
        return out

    def world(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """LPS mm (...,3) of positions (i, j, k) (...,3); whole numbers are voxel centres."""
        at = np.asarray(ijk, np.float64)
        found: NDArray[np.float64] = at @ self.affine_lps[:3, :3].T + self.affine_lps[:3, 3]
        return found

    def index(self, lps: ArrayLike) -> NDArray[np.float64]:
        """Positions (i, j, k) (...,3) of LPS mm (...,3)."""
        at = np.asarray(lps, np.float64) - self.affine_lps[:3, 3]
        found: NDArray[np.float64] = at @ np.linalg.inv(self.affine_lps[:3, :3]).T
        return found

    @property
    def affine_ras(self) -> NDArray[np.float64]:
        """(4,4): (i, j, k) to RAS mm, as NIfTI has it."""
        affine: NDArray[np.float64] = _RAS @ self.affine_lps
        return affine

    def to_ras(self) -> Volume:
        """Axes turned so that i, j, k run most nearly to the right, to the front and up; nothing is interpolated."""
        return self.oriented("RAS")

    def oriented(self, codes: str) -> Volume:
        """Axes i, j, k permuted and flipped to run most nearly towards ``codes`` (of L R P A S I, one a body axis).

        Every voxel keeps its world coordinates, ``affine_lps`` stays LPS.
        """
        wanted = [_DIRECTIONS.get(c, (-1, 0)) for c in codes.upper()]
        if sorted(axis for axis, _ in wanted) != [0, 1, 2]:
            raise HilumError(f"{codes!r} names no three directions", fix="for instance LPS or RAS")
        lengths = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        cosines = self.affine_lps[:3, :3] / lengths
        order = max(permutations(range(3)), key=lambda p: sum(abs(cosines[b, a]) for b, a in enumerate(p)))
        source = [order[axis] for axis, _ in wanted]  # axis of this volume that becomes i, j, k
        flips = [bool(cosines[axis, order[axis]] * sign < 0) for axis, sign in wanted]
        turn = np.zeros((4, 4))  # new (i, j, k) to old
        turn[3, 3] = 1
        size = self.shape[::-1]
        for new, (old, flip) in enumerate(zip(source, flips, strict=True)):
            turn[old, new], turn[old, 3] = (-1.0, size[old] - 1.0) if flip else (1.0, 0.0)
        base = self if source[2] == 2 or self.line is not None else self._plain()
        slopes, intercepts = base.slopes, base.intercepts
        if source[2] == 2:
            way = slice(None, None, -1 if flips[2] else 1)
            slopes, intercepts = slopes[way], intercepts[way]
        else:
            slopes, intercepts = (np.full(size[source[2]], v[0]) for v in (slopes, intercepts))
        spacing = self.spacing_mm[::-1]
        return replace(
            base,
            stored=_turned(base.stored, source, flips),
            valid=None if base.valid is None else _turned(base.valid, source, flips),
            slopes=slopes,
            intercepts=intercepts,
            affine_lps=self.affine_lps @ turn,
            spacing_mm=(spacing[source[2]], spacing[source[1]], spacing[source[0]]),
        )

    def _plain(self) -> Volume:
        ones = np.ones(len(self.stored))
        return replace(self, stored=self.values(), slopes=ones, intercepts=0 * ones)


def _turned(array: Array, source: list[int], flips: list[bool]) -> Array:
    """A (K,J,I) array whose new axes i, j, k are the old ``source``, some backwards; a view."""
    turned = array.transpose([2 - source[2 - axis] for axis in range(3)])
    return turned[tuple(slice(None, None, -1 if flips[2 - axis] else 1) for axis in range(3))]


def volumes_of(study: Study) -> pa.Table:
    """``series.parquet`` of a study."""
    return pq.read_table(study.path / "series.parquet")


def open_volume(
    study: Study | Path | str,
    volume_id: str,
    *,
    options: Collection[str] = (),
    limits: Limits | None = None,
) -> Volume:
    """Read one volume of ``series.parquet``, decoded slice by slice.

    ``options`` are added to those the study was indexed with (names of ``OPTIONS``); with ``split_4d`` the ids of the
    parts become valid. :class:`HilumError` where the volume is not usable, with the reason and what resolves it, or
    where it is larger than ``limits``.
    """
    study = study if isinstance(study, Study) else Study(study)
    limits = limits or Limits()
    taken = frozenset(options) | frozenset(study.about.get("volumes") or ())
    rows = series_rows(study, volume_id.partition("-")[0])
    plan = _plan(plans([row for row, _ in rows.values()], taken), volume_id)
    if not plan.row["usable"] or plan.row["affine_lps"] is None:
        raise refusal(plan.row)
    return _read(study, plan, rows, taken, limits)


def series_rows(study: Study, series_id: str) -> dict[str, tuple[dict[str, Any], int]]:
    """Index rows of the images that make up the volumes of a series, with their row numbers, by sample_id."""
    listed = volumes_of(study)
    own = listed.filter(pc.equal(listed.column("series_id"), series_id))
    if not len(own):
        raise HilumError(f"the study has no series {series_id!r} of images", where=str(study.path))
    if any(p.startswith("uid_conflict") for row in own.column("problems").to_pylist() for p in row):
        raise HilumError(
            f"no volume of series {series_id} is usable: uid_conflict", fix="remove one of the files in conflict"
        )
    samples = pc.unique(pc.list_flatten(own.column("sample_ids")))
    at = np.flatnonzero(pc.is_in(study.index.column("sample_id"), value_set=samples))
    lines = study.index.take(pa.array(at)).to_pylist()
    lost = sorted({p for row in own.column("problems").to_pylist() for p in row if p.startswith(LOST)})
    lines = [line | {"problems": [*(line["problems"] or ()), *lost]} for line in lines]
    return {line["sample_id"]: (line, int(row)) for line, row in zip(lines, at, strict=True)}


def refusal(row: Mapping[str, Any]) -> HilumError:
    """Why a volume cannot be read, and which options resolve it."""
    codes = {p.partition(":")[0] for p in row["problems"]}
    resolved = {code for code in codes if RESOLVES.get(code) in codes}
    faults = [p for p in row["problems"] if p.partition(":")[0] in FATAL - resolved] or ["it has no geometry"]
    needed = {RESOLVES.get(p.partition(":")[0]) for p in faults} - {None}
    lost = any(p.partition(":")[0] not in RESOLVES for p in faults)
    fix = "" if lost or not needed else "options that resolve it: " + ", ".join(sorted(str(n) for n in needed))
    return HilumError(f"volume {row['volume_id']} is not usable: {'; '.join(faults)}", fix=fix)


def _plan(found: list[Plan], volume_id: str) -> Plan:
    known = {str(plan.row["volume_id"]): plan for plan in found}
    if volume_id not in known:
        split = [p for p in found if any(t.startswith("four_d") for t in p.row["problems"])]
        fix = "options={'split_4d'} takes the series apart" if split else nearest(volume_id, known)
        raise HilumError(f"there is no volume {volume_id!r}; its series has {', '.join(sorted(known))}", fix=fix)
    return known[volume_id]


def _read(
    study: Study,
    plan: Plan,
    rows: Mapping[str, tuple[dict[str, Any], int]],
    options: frozenset[str],
    limits: Limits,
) -> Volume:
    shape = tuple(int(n) for n in plan.row["shape_kji"])
    if np.prod(shape, dtype=np.float64) > limits.max_pixels:
        raise HilumError(f"volume {plan.row['volume_id']} of {' x '.join(map(str, shape))} voxels is above the limit")
    grid = _Grid(shape, plan)
    files: dict[str, list[int]] = defaultdict(list)
    for at, (sample, _) in enumerate(plan.slices):
        files[sample].append(at)
    for sample, own in files.items():
        row, number = rows[sample]
        path, member = study.file(number)
        numbers = [plan.slices[at][1] for at in own]
        with member_file(path, member, limits) as file:
            for at, plane in zip(own, planes_of(file, row, numbers, limits), strict=True):
                grid.add(at, plane)
    step, rows_mm, columns_mm = plan.row["spacing_mm"]
    affine = np.array(plan.row["affine_lps"], np.float64).reshape(4, 4)
    return grid.volume(
        volume_id=plan.row["volume_id"],
        affine_lps=affine,
        spacing_mm=(step or float(np.linalg.norm(affine[:3, 2])), rows_mm, columns_mm),
        modality=plan.row["modality"],
        problems=tuple(plan.row["problems"]),
        options=options,
    )


class _Grid:
    """The array that planes are put into; slices that are interpolated each add their share to their neighbours, and
    holes stay empty. Tilted slices are moved in their planes first."""

    def __init__(self, shape: tuple[int, ...], plan: Plan) -> None:
        self.shape, self.offsets, self.resampled = shape, np.array(plan.offsets), plan.resampled
        self.shear = plan.shear
        self.stored: Array | None = None
        self.valid: NDArray[np.bool_] | None = None
        self.slopes, self.intercepts = np.ones(shape[0]), np.zeros(shape[0])
        self.there = np.zeros(shape[0], bool)
        self.unit: str | None = None
        self.reference = ""
        self.codecs: set[tuple[str, str]] = set()

    def add(self, at: int, plane: Plane) -> None:
        """Slice ``at`` of the plan."""
        if plane.stored.shape != (self.shape[1:] if self.shear is None else self.shear.size):
            raise HilumError("a slice has another size than when it was indexed", fix="index the archive again")
        if plane.reference and self.reference and plane.reference != self.reference:
            told = "its slices are measured in several frames of reference: their positions are no places of one grid"
            raise HilumError(told, fix="find out which slices belong together (FrameOfReferenceUID)")
        self.unit, self.reference = plane.unit, plane.reference or self.reference
        self.codecs.add(plane.codec)
        if self.shear is not None:
            rows, columns = (b + self.offsets[at] * s for b, s in zip(self.shear.before, self.shear.shift, strict=True))
            plane = moved(plane, (rows, columns), self.shear.grid)
        if self.resampled:
            self._blend(at, plane)
            return
        k = round(float(self.offsets[at]))
        if self.stored is None:
            self.stored = np.zeros(self.shape, plane.stored.dtype)
        wide = np.result_type(self.stored.dtype, plane.stored.dtype)
        if wide != self.stored.dtype:
            self.stored = self.stored.astype(wide)
        self.stored[k], self.slopes[k], self.intercepts[k] = plane.stored, plane.slope, plane.intercept
        self.there[k] = True
        if plane.valid is not None:
            self._invalid(k, plane.valid)

    def _blend(self, at: int, plane: Plane) -> None:
        """Linear interpolation: the weight of a slice falls from 1 where it is to 0 at its neighbours."""
        if self.stored is None:
            self.stored = np.zeros(self.shape, np.float32)
        values = plane.stored * plane.slope + plane.intercept
        here = self.offsets[at]
        before, after = self.offsets[max(at - 1, 0)], self.offsets[min(at + 1, len(self.offsets) - 1)]
        before, after = (there if abs(there - here) < HOLE else here for there in (before, after))
        for z in range(max(0, int(np.ceil(before))), min(self.shape[0] - 1, int(np.floor(after))) + 1):
            gap = here - before if z < here else after - here
            weight = 1.0 if z == here else 1 - abs(z - here) / gap if gap else 0.0
            if weight > 0:
                self.stored[z] += (weight * values).astype(np.float32)
                self.there[z] = True
                if plane.valid is not None:
                    self._invalid(z, plane.valid)

    def _invalid(self, k: int, valid: NDArray[np.bool_]) -> None:
        if self.valid is None:
            self.valid = np.ones(self.shape, bool)
        self.valid[k] &= valid

    def volume(self, *, options: frozenset[str], **about: Any) -> Volume:
        assert self.stored is not None
        missing = ~self.there
        if missing.any():  # they look like the darkest voxel that is there, and do not count
            first = int(np.argmax(self.there))
            self.slopes[missing], self.intercepts[missing] = self.slopes[first], self.intercepts[first]
            whole = self.stored[self.there]
            self.stored[missing] = whole.min() if self.slopes[first] > 0 else whole.max()
            self._invalid(0, np.ones(self.shape[1:], bool))
            assert self.valid is not None
            self.valid[missing] = False
        names, versions = zip(*sorted(self.codecs), strict=True)
        provenance = {
            "codec": ", ".join(dict.fromkeys(names)),
            "codec_version": ", ".join(versions),
            "options": " ".join(sorted(options)),
        }
        return Volume(
            stored=self.stored,
            slopes=self.slopes,
            intercepts=self.intercepts,
            valid=self.valid,
            unit=self.unit,
            provenance=provenance,
            **about,
        )
