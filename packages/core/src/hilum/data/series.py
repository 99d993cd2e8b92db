"""Rows of ``series.parquet``: what each intake makes of the images of one series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hilum.core.types import Intake
from hilum.data.ledger import SERIES
from hilum.data.revision import codes_of, equals, rows_of

# What an intake sees of the rows of one series: who, and where. Statistics and hashes are half of a row's cost.
_PLACED = (
    *("sample_id", "series_id", "study_id", "group_id", "group_known", "modality", "photometric", "problems"),
    *("frames", "rows", "columns", "spacing_mm", "orientation", "positions", "frame_keys", "frames_axis"),
)
_BLOCK = 4096  # rows turned into dictionaries at a time
Name = tuple[str, str]  # of a series, or of a file that has a place but no series; and of its reader


@dataclass(frozen=True)
class _Series:
    name: Name
    rows: NDArray[np.int64]  # in order
    torn: int  # more rows of it are in conflict
    lost: int  # more rows of it are quarantined


def series_of(index: pa.Table, intakes: Sequence[Intake], options: frozenset[str]) -> pa.Table:
    """``series.parquet`` as each intake sees the images of one series, or of a file that has a place but no series.

    Rows in conflict over one UID are left out, and no volume of their series is usable: what it lacks is not known. Where
    files of a series are quarantined, its rows say so to the intake (``lost_slices:N``)."""
    readers = {intake.name: intake for intake in intakes}
    parts = [SERIES.empty_table()]
    for block in _blocks(_members(index, readers)):
        lines = index.select(_PLACED).take(np.concatenate([same.rows for same in block])).to_pylist()
        found: list[dict[str, Any]] = []
        start = 0
        for same in block:
            own = lines[start : start + len(same.rows)]
            start += len(same.rows)
            if same.lost:
                own = [row | {"problems": [*(row["problems"] or ()), f"lost_slices:{same.lost}"]} for row in own]
            for volume in _volumes(readers[same.name[1]], own, options):
                if same.torn:
                    volume |= {"problems": sorted([*volume["problems"], f"uid_conflict:{same.torn}"]), "usable": False}
                found.append(volume)
        parts.append(pa.Table.from_pylist(found, schema=SERIES))
    series = pa.concat_tables(parts)
    return series.take(pc.sort_indices(series, [("series_id", "ascending"), ("volume_id", "ascending")]))


def _members(index: pa.Table, readers: Mapping[str, Intake]) -> Iterator[_Series]:
    """In the order of their names. A copy counts where it lies elsewhere than its original, or in another series that
    is no copy as a whole: a volume without it would lack a slice."""
    codes, names = codes_of(index.column("series_id"))
    sources, known = codes_of(index.column("source"))
    image = equals(index.column("status"), "indexed") & equals(index.column("role"), "image")
    image &= np.array([*(name in readers for name in known), False], bool)[sources]
    torn, copy = _torn(index), np.asarray(index.column("duplicate_of").is_valid(), bool)
    whole = image & ~torn & ~copy
    alone = np.flatnonzero(whole & (codes < 0) & np.asarray(index.column("positions").is_valid(), bool))
    codes[alone] = len(names) + np.arange(len(alone))
    names += rows_of(index, alone, ["sample_id"])["sample_id"]

    width = len(known) + 1  # sources, and none
    pairs = np.where(codes < 0, -1, codes.astype(np.int64) * width + sources + 1)
    rows = np.flatnonzero(whole & (codes >= 0))
    more = _elsewhere(index, np.flatnonzero(image & ~torn & copy & (codes >= 0)), codes)
    rows = np.sort(np.concatenate([rows, more[np.isin(pairs[more], pairs[rows])]]))
    rows = rows[np.argsort(pairs[rows], kind="stable")]
    faults = [
        _counted(pairs[mask & (codes >= 0)]) for mask in (image & torn, equals(index.column("status"), "quarantined"))
    ]
    starts = np.flatnonzero(np.diff(pairs[rows], prepend=-1))
    found = [(pair, *divmod(pair, width)) for pair in pairs[rows[starts]].tolist()]
    parts = np.split(rows, starts[1:]) if len(rows) else []
    for at in sorted(range(len(found)), key=lambda at: (names[found[at][1]], known[found[at][2] - 1])):
        pair, series, source = found[at]
        yield _Series((names[series], known[source - 1]), parts[at], *(counts.get(pair, 0) for counts in faults))


def _torn(index: pa.Table) -> NDArray[np.bool_]:
    """(n,) rows that are in conflict with another one of their UID."""
    torn = np.zeros(len(index), bool)
    start = 0
    for chunk in index.column("problems").chunks:
        bad = np.asarray(pc.equal(pc.list_flatten(chunk), "uid_conflict").fill_null(False), bool)
        torn[start + np.asarray(pc.list_parent_indices(chunk), np.int64)[bad]] = True
        start += len(chunk)
    return torn


def _elsewhere(index: pa.Table, copies: NDArray[np.int64], codes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Those of ``copies`` that lie in another series than their original, or at another place."""
    theirs = rows_of(index, copies, ["duplicate_of", "positions"])
    wanted = pa.array(sorted(set(theirs["duplicate_of"])), pa.string())
    rows = np.flatnonzero(np.asarray(pc.is_in(index.column("sample_id"), value_set=wanted), bool))
    originals = rows_of(index, rows, ["sample_id", "positions"])
    place = {
        name: (row, at) for name, row, at in zip(originals["sample_id"], rows, originals["positions"], strict=True)
    }
    kept = []
    for row, original, at in zip(copies, theirs["duplicate_of"], theirs["positions"], strict=True):
        first, there = place.get(original, (None, None))
        kept.append(first is None or codes[first] != codes[row] or there != at)
    found: NDArray[np.int64] = copies[np.array(kept, bool)]
    return found


def _counted(values: NDArray[np.int64]) -> dict[int, int]:
    return dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True))


def _volumes(intake: Any, rows: list[dict[str, Any]], options: frozenset[str]) -> list[dict[str, Any]]:
    known = getattr(intake, "volume_options", None)  # an intake without any need not take the argument
    volumes: list[dict[str, Any]] = intake.problems(rows, options & set(known)) if known else intake.problems(rows)
    return volumes


def _blocks(series: Iterator[_Series]) -> Iterator[list[_Series]]:
    """Whole series, a few thousand rows together."""
    block, size = list[_Series](), 0
    for item in series:
        block.append(item)
        size += len(item.rows)
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block
