"""Segmentation objects (PS3.3 A.51, C.8.20.2): their frames put where they lie in a volume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from hilum.core.errors import HilumError
from hilum.core.types import Limits
from hilum.medical.dicom.decode import Image, open_image
from hilum.medical.dicom.geometry import geometry_of
from hilum.medical.dicom.header import Header, quiet
from hilum.medical.volumes.frames import Frame, frames_of
from hilum.medical.volumes.labels import Label
from hilum.medical.volumes.volume import Volume

_NEAR = 0.1  # of a voxel: how far the pixels of a frame may be from the voxels that they mark
# Segmented Property Category (PS3.16 CID 7150): SNOMED CT and retired SNOMED-RT codes.
_CODES = """85756007 91723000 123037004 260787004 309825002 362837007 363346000 49755003 91720002 410607006 420135007
    T-D0050 T-D000A T-D0080 M-01000 M-01100 A-00004 R-42018 R-42019 R-3F196 F-01101 A-10101"""


def read_segments(path: Path, volume: Volume, limits: Limits) -> list[Label]:
    """Segments in order of their numbers; BINARY and LABELMAP as bool, FRACTIONAL as float32 in [0, 1]."""
    with quiet():
        image = open_image(path, limits)
        header, layout = image.header, image.layout
        codes = dict(_codes(header))
        columns = geometry_of(header, layout)
        spacing = _spacing(header)
        row = {**columns, "sample_id": "", "frames": layout.frames, "rows": layout.rows, "columns": layout.columns}
        frames = frames_of({**row, "spacing_mm": spacing})
        kind = header.value("SegmentationType")
        whole = float(header.number("MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 0.0
        found: dict[int, NDArray[Any]] = {}
        for number, plane, frame in _planes(image, frames, labelmap=_is_labelmap(header)):
            if number not in found:
                found[number] = np.zeros(volume.shape, np.float32 if whole else bool)
            if whole and plane.max() > whole:
                raise HilumError("the segmentation holds more than its MaximumFractionalValue")
            _put(found[number], plane / whole if whole else plane != 0, frame, volume)
    empty = sorted(set(codes) - set(found))
    found |= {n: np.zeros(volume.shape, np.float32 if whole else bool) for n in empty}
    return [Label(n, codes.get(n), found[n]) for n in sorted(found)]


def _is_labelmap(header: Header) -> bool:
    return str(header.value("SegmentationType")) == "LABELMAP"


def _codes(header: Header) -> Iterator[tuple[int, str | None]]:
    for item in header.value("SegmentSequence") or ():
        number = header.number("SegmentNumber", data=item)
        category = header.value("SegmentedPropertyCategoryCodeSequence", data=item) or [Dataset()]
        code = str(header.value("CodeValue", data=category[0]) or "")
        if number:
            yield int(number), code if code in _CODES.split() else None


def _spacing(header: Header) -> list[float] | None:
    measures = header.functional(0, "PixelMeasuresSequence")
    values = header.numbers("PixelSpacing", data=measures) if measures is not None else []
    return values if len(values) == 2 else None


def _planes(image: Image, frames: list[Frame], *, labelmap: bool) -> Iterator[tuple[int, NDArray[Any], Frame]]:
    """(segment number, plane, where it lies) of each frame; a label map gives one plane a number that it holds."""
    for at, frame in enumerate(frames):
        for stored, _, _ in image.chunks(range(at, at + 1)):
            if not labelmap:
                number = frame.keys.get("segment")
                if number is None:
                    raise HilumError("a frame of the segmentation names no segment")
                yield int(number), stored[0], frame
                continue
            for number in np.unique(stored[0]):
                if number:
                    yield int(number), stored[0] == number, frame


def _put(mask: NDArray[Any], plane: NDArray[Any], frame: Frame, volume: Volume) -> None:
    """Place a plane on the grid; its rows and columns may run along any axis, either way."""
    origin, down, right = _steps(frame, volume)
    rows, columns = (np.arange(n) for n in plane.shape)
    ijk = [origin[a] + rows[:, None] * down[a] + columns[None, :] * right[a] for a in range(3)]
    inside = np.ones(plane.shape, bool)
    for index, size in zip(ijk, mask.shape[::-1], strict=True):
        inside &= (index >= 0) & (index < size)
    if plane[~inside].any():
        raise HilumError("the segmentation marks what lies outside of the volume")
    i, j, k = (index[inside] for index in ijk)
    mask[k, j, i] = np.maximum(mask[k, j, i], plane[inside])


def _steps(frame: Frame, volume: Volume) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(i, j, k) of a frame's first pixel, and from one row and one column to the next: whole numbers, or an error."""
    if not frame.placed or frame.spacing is None or frame.axes is None or frame.position is None:
        raise HilumError("the segmentation does not say where its frames lie")
    there = np.linalg.inv(volume.affine_lps[:3, :3])
    origin = volume.index(frame.position)
    right = there @ np.array(frame.axes[:3]) * frame.spacing[1]
    down = there @ np.array(frame.axes[3:]) * frame.spacing[0]
    drift = max(frame.size)
    on_grid = np.abs(origin - np.rint(origin)).max() <= _NEAR
    straight = max(np.abs(v - np.rint(v)).max() for v in (right, down)) * drift <= _NEAR
    if not (on_grid and straight) or any(np.abs(np.rint(v)).sum() != 1 for v in (right, down)):
        raise HilumError(
            "the segmentation lies on another grid than the volume", fix="resample it with a tool that says how"
        )
    return tuple(np.rint(v).astype(np.int64) for v in (origin, down, right))  # type: ignore[return-value]
