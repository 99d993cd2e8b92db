"""What a segmentation or a structure set marks, on the grid of the volume that it refers to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.core.types import Limits
from hilum.data.archives import member_file
from hilum.data.study import Study
from hilum.medical.volumes.volume import Volume

STRUCTURES = "non_image:rtstruct"


@dataclass(frozen=True)
class Label:
    """One segment or structure: its number in the file, ``code`` of its category where that is a listed one, and
    ``mask`` (K,J,I) on the volume's grid: bool, or float32 in [0, 1] of a fractional segmentation.

    ``left_out`` counts contours that are no areas (points, open lines)."""

    number: int
    code: str | None
    mask: NDArray[Any]
    left_out: int = 0


def open_label(study: Study, row: int, volume: Volume, *, limits: Limits | None = None) -> list[Label]:
    """Labels of a SEG or RTSTRUCT row of the index on the grid of ``volume``, one a segment or structure.

    :class:`HilumError` where the file is neither, marks planes that the volume has not, or lies on another grid: labels
    are never interpolated.
    """
    about, limits = study.row(row), limits or Limits()
    path, member = study.file(row)
    with member_file(path, member, limits) as file:
        if about["reason"] == STRUCTURES:
            from hilum.medical.volumes.structures import read_structures

            return read_structures(file, volume, limits)
        if about["role"] == "label" and about["source"] == "dicom":
            from hilum.medical.volumes.segmentation import read_segments

            return read_segments(file, volume, limits)
    raise HilumError("the row is no segmentation and no structure set", where=f"row {row}")


def labels_of(study: Study, series_id: str) -> list[int]:
    """Rows of the index that mark a series."""
    names = ("refers_to", "role", "reason", "status")
    rows = zip(*(study.index.column(n).to_pylist() for n in names), strict=True)
    return [
        at
        for at, (refers, role, reason, status) in enumerate(rows)
        if series_id in (refers or ()) and ((role == "label" and status == "indexed") or reason == STRUCTURES)
    ]


def label_map(labels: list[Label]) -> NDArray[np.uint16] | None:
    """One (K,J,I) map of segment numbers, or None where segments overlap, are fractional or have large numbers."""
    if any(label.mask.dtype != bool or not 0 < label.number < 1 << 16 for label in labels):
        return None
    out = np.zeros(labels[0].mask.shape, np.uint16)
    for label in labels:
        if out[label.mask].any():
            return None
        out[label.mask] = label.number
    return out
