"""A few images of an archive as small pictures: every kind of image once before any twice, in a keyed order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow, Intake, Limits
from hilum.data.archives import member_file
from hilum.data.cache import without_tables
from hilum.data.image import installed_intakes, reduce_pixels
from hilum.data.inventory import strata
from hilum.data.isolation import Readers
from hilum.data.ledger import Rejected
from hilum.data.study import Study

PICTURES = 48
SIDE = 176  # short side of a picture, pixels
_KINDS = ("modality", "view", "vendor")
_MOST = 1 << 26  # values of a file: a cine of thousands of frames is not opened to show one
_LIMITS = Limits(seconds=20.0)


@dataclass(frozen=True, slots=True)
class Picture:
    """``pixels`` uint8 (H,W) or (H,W,3) as displayed, or None where the file could not be drawn: then ``reason``.
    ``row`` is the index row."""

    row: Mapping[str, Any]
    pixels: NDArray[np.uint8] | None
    frame: int = 0
    window: str = ""
    reason: str = ""


def contact_sheet(study: Study, *, most: int = PICTURES, workers: int = 2) -> list[Picture]:
    """Up to ``most`` pictures, drawn by isolated readers through the intakes that indexed the files."""
    rows = chosen(study.index, most=most)
    if not len(rows):
        return []
    by_path: dict[Path, list[int]] = {}
    for row in rows.tolist():
        by_path.setdefault(study.file(row)[0], []).append(row)
    paths = list(by_path)
    about = {row: study.row(row) for row in rows.tolist()}
    drawer = _Drawer(without_tables(study), about, by_path, installed_intakes())
    drawn: dict[int, Picture] = {}
    for position, answers in Readers([drawer], workers=min(workers, len(paths)), limits=_LIMITS).read(paths):
        told = {a.columns.get("row"): a for a in answers}
        for row in by_path[paths[position]]:
            answer = told.get(row, answers[0])
            frame, window = answer.columns.get("frame", 0), answer.columns.get("window_source", "")
            drawn[row] = Picture(about[row], answer.thumbnail, frame, window, answer.reason)
    return [drawn[row] for row in rows.tolist() if row in drawn]


def chosen(index: pa.Table, *, most: int) -> NDArray[np.int64]:
    """Rows of at most ``most`` indexed images, kinds (modality, view, maker) beside each other.

    Of every kind those with the lowest ``sample_id``, a keyed hash, so nobody picks them; first one of every kind, then
    a second one, and so on.
    """
    values = pc.multiply(pc.multiply(index["rows"].cast("int64"), index["columns"].cast("int64")), index["frames"])
    fit = [
        pc.equal(index["status"], "indexed"),
        pc.equal(index["role"], "image"),
        pc.is_null(index["duplicate_of"]),
        pc.less_equal(values, _MOST),
    ]
    mask = fit[0]
    for condition in fit[1:]:
        mask = pc.and_kleene(mask, condition)
    rows = np.flatnonzero(np.asarray(pc.fill_null(mask, False)))
    if not len(rows):
        return rows
    taken = index.select(["sample_id", *_KINDS]).take(pa.array(rows))
    order = np.asarray(pc.sort_indices(taken, sort_keys=[("sample_id", "ascending")]))
    kind = strata(taken, _KINDS)[order]
    by_kind = np.argsort(kind, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(kind[by_kind]) > 0])
    turn = np.empty(len(rows), np.int64)  # the how manyth of its kind
    turn[by_kind] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    first = np.lexsort((order, turn))[:most]
    picked: NDArray[np.int64] = rows[order[first[np.lexsort((turn[first], kind[first]))]]]
    return picked


class _Drawer:
    """An :class:`~hilum.core.types.Intake` in shape, so that pictures are drawn under the readers' isolation."""

    name = "contact-sheet"

    def __init__(
        self,
        study: Study,
        about: Mapping[int, Mapping[str, Any]],
        by_path: dict[Path, list[int]],
        intakes: Mapping[str, Intake],
    ) -> None:
        self.study, self.about, self.by_path, self.intakes = study, about, by_path, dict(intakes)

    def claims(self, path: Path, head: bytes) -> float:
        return 1.0

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        drawn = []
        for row in self.by_path[path]:
            try:
                drawn.append(self._draw(row))
            except Rejected as error:
                drawn.append(IndexRow("quarantined", error.reason, error.what, columns={"row": row}))
        return drawn

    def _draw(self, row: int) -> IndexRow:
        about = self.about[row]
        intake = self.intakes.get(about.get("source") or "")
        if intake is None:
            raise Rejected("missing_reader", "the reader that indexed this file is not installed")
        path, member = self.study.file(row)
        with member_file(path, member) as file:
            pixels = intake.open(file, {**about, "member": member})
        middle = len(pixels.stored) // 2
        one = replace(
            pixels,
            stored=pixels.stored[middle : middle + 1],
            valid=None if pixels.valid is None else pixels.valid[middle : middle + 1],
        )
        image = reduce_pixels(one, side=SIDE)
        columns = {"row": row, "frame": middle, "window_source": image.window.source if image.window else "full range"}
        return IndexRow("indexed", columns=columns, thumbnail=image.shown())

    def open(self, path: Path, row: Any) -> Any:
        raise HilumError("a contact sheet is drawn in one go")

    def problems(self, rows: Any) -> list[dict[str, Any]]:
        return []
