"""Planes of one file through its reader's own decode path, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
