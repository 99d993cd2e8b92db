"""Planes of one file through its reader's own decode path, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.core.types import Limits
from hilum.data.image import installed_intakes
from hilum.data.ledger import Rejected

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Plane:
    """``stored`` (J,I); modality values are ``stored * slope + intercept``, whatever polarity it displays with.
    ``valid`` (J,I) is False on padding, None where every pixel counts. ``reference``: what its position is measured
    from (FrameOfReferenceUID; never written or shown), empty where the file does not say."""

    stored: Array
    slope: float
    intercept: float
    valid: NDArray[np.bool_] | None
    unit: str | None
    codec: tuple[str, str]  # name and version
    reference: str = ""


def planes_of(path: Path, row: Mapping[str, Any], numbers: Sequence[int], limits: Limits) -> Iterator[Plane]:
    """Frames ``numbers`` of the file of an index row, in that order."""
    if row["source"] == "dicom":
        yield from _dicom(path, numbers, limits)
        return
    intake = installed_intakes().get(row["source"] or "")
    if intake is None:
        raise Rejected("missing_reader", f"the reader {row['source']!r} that indexed this file is not installed")
    pixels = intake.open(path, row)
    sign = -1.0 if pixels.inverted else 1.0
    codec = pixels.provenance.get("codec", ""), pixels.provenance.get("codec_version", "")
    for number in numbers:
        valid = None if pixels.valid is None else pixels.valid[number]
        slope, intercept = sign * pixels.slope, sign * pixels.intercept
        yield Plane(pixels.stored[number], slope, intercept, valid, pixels.unit, codec)


def moved(plane: Plane, shift: tuple[float, float], shape: tuple[int, int]) -> Plane:
    """``plane`` on a grid of ``shape`` whose first pixel lies ``shift`` (rows, columns; >= 0) pixels before its own.

    Modality values (float32), interpolated linearly; ``valid`` is False beside the plane, where its darkest value stands,
    and where an invalid pixel has a share.
    """
    values = plane.stored * plane.slope + plane.intercept
    valid = np.ones(values.shape, bool) if plane.valid is None else plane.valid
    darkest, inside = values.min(), np.ones(shape, bool)
    for axis, (by, length) in enumerate(zip(shift, shape, strict=True)):
        first = int(np.floor(1e-6 - by))  # pixel n lies between pixels n + first and n + first + 1 of the plane
        part = -by - first if -by - first > 1e-6 else 0.0
        low = np.arange(length) + first
        high, last = low + (part > 0), values.shape[axis] - 1
        within = (low >= 0) & (high <= last)
        inside &= within[:, None] if axis == 0 else within
        low, high = low.clip(0, last), high.clip(0, last)
        below = values.take(low, axis)
        values = (1 - part) * below + part * values.take(high, axis) if part else below
        valid = valid.take(low, axis) & valid.take(high, axis)
    stored = np.where(inside, values, darkest).astype(np.float32)
    return replace(plane, stored=stored, slope=1.0, intercept=0.0, valid=inside & valid)


def _dicom(path: Path, numbers: Sequence[int], limits: Limits) -> Iterator[Plane]:
    from hilum.medical.dicom.decode import open_image
    from hilum.medical.dicom.header import quiet

    with quiet():
        image = open_image(path, limits)
        if not image.grey:
            raise HilumError("a volume of colour images has no modality values")
        lines, reference = image.modality, image.header.identifier("FrameOfReferenceUID") or ""
        for number in numbers:
            if number >= image.layout.frames:
                raise Rejected("inconsistent_attributes", "the file has fewer frames than when it was indexed")
            for stored, _, valid in image.chunks(range(number, number + 1)):
                plane, slope, intercept = stored[0], 1.0, 0.0
                if lines.table is not None:
                    plane = lines.table(plane)
                else:
                    at = number if len(lines.slopes) > 1 else 0
                    slope, intercept = float(lines.slopes[at]), float(lines.intercepts[at])
                codec = image.stored.codec, image.stored.codec_version
                kept = None if valid is None else valid[0]
                yield Plane(plane, slope, intercept, kept, lines.unit, codec, reference)
