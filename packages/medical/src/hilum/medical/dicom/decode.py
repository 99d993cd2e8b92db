"""The one decode path: stored -> modality -> window -> one polarity rule, the same numbers whoever asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.core.types import Limits, Pixels
from hilum.data.ledger import Rejected
from hilum.data.measurement import Measurement
from hilum.medical.dicom.geometry import SEGMENTATIONS
from hilum.medical.dicom.header import Header, quiet, read_header
from hilum.medical.dicom.layout import GREY, Layout, layout_of
from hilum.medical.dicom.lut import Modality, modality_of, to_rgb
from hilum.medical.dicom.real_world import RealWorldMap, real_world_maps
from hilum.medical.dicom.stored import Stored, open_stored
from hilum.medical.dicom.voi import fallback, mirrored, window_of

Array = NDArray[Any]


@dataclass
class Image:
    """One file, checked and ready to be decoded."""

    header: Header
    stored: Stored
    modality: Modality
    padding: tuple[int, int] | None  # stored values, inclusive

    @property
    def layout(self) -> Layout:
        return self.stored.layout

    @property
    def grey(self) -> bool:
        return self.layout.photometric in GREY

    def real_world(self, frame: int = 0) -> list[RealWorldMap]:
        """Quantities that the file maps stored values to, beside its modality values: for who asks, never applied."""
        return real_world_maps(self.header, frame)

    def chunks(self, which: range | None = None) -> Iterator[tuple[Array, Array | None, NDArray[np.bool_] | None]]:
        """(stored, modality values where they are no line of it, valid) of frames in order."""
        for frames, stored in self.stored.chunks(which):
            yield stored, self.modality.values(stored, frames), self.unpadded(stored)

    def valid(self, stored: Array) -> NDArray[np.bool_] | None:
        """False on declared padding (PS3.3 C.7.5.1.1.2); None where there is none, or nothing else."""
        mask = self.unpadded(stored)
        return mask if mask is not None and mask.any() else None

    def unpadded(self, stored: Array) -> NDArray[np.bool_] | None:
        """As :meth:`valid`, but all False where some frames of a file are padding alone."""
        if self.padding is None:
            return None
        low, high = self.padding
        mask: NDArray[np.bool_] = (stored < low) | (stored > high)
        return None if mask.all() else mask


def open_image(path: Path, limits: Limits, header: Header | None = None) -> Image:
    """Everything that can be known without decoding; :class:`Rejected` where the file cannot be used."""
    header = header or read_header(path, limits)
    layout = layout_of(header, limits)
    stored = open_stored(header, layout)
    return Image(header, stored, modality_of(header, stored.layout), _padding(header, layout))


def _padding(header: Header, layout: Layout) -> tuple[int, int] | None:
    if layout.photometric not in GREY or layout.kind == "f":
        return None
    values = header.shorts("PixelPaddingValue", signed=layout.kind == "i")
    others = header.shorts("PixelPaddingRangeLimit", signed=layout.kind == "i") or values
    if not values:
        return None
    low, high = min(values[0], others[0]), max(values[0], others[0])
    least, most = layout.span
    if high < least or low > most:  # in bits that are not stored, which no value keeps
        header.note("bad_value:PixelPaddingValue")
        return None
    return low, high


def inverted(header: Header, layout: Layout) -> bool:
    """The polarity rule: an image displays inverted where PhotometricInterpretation is MONOCHROME1 or
    PresentationLUTShape is INVERSE, once where both say so (PS3.3 C.7.6.3.1.2, C.8.11.3.1.2). Where they contradict
    each other (MONOCHROME2 with INVERSE, MONOCHROME1 with IDENTITY) that is a problem of the file."""
    if layout.photometric not in GREY:
        return False
    dark, shape = layout.photometric == "MONOCHROME1", header.code("PresentationLUTShape")
    if (shape == "INVERSE" and not dark) or (shape == "IDENTITY" and dark):
        header.note("polarity_contradiction")
    return dark or shape == "INVERSE"


def decode(
    path: Path | str,
    *,
    voi: str | int = "auto",
    frames: range | None = None,
    row: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
) -> Pixels:
    """Pixels of one file, all frames or some.

    ``voi`` is a window of the file (``auto``, index, explanation) or a preset in HU, see
    :func:`~hilum.medical.dicom.voi.window_of`. Only the bytes of ``frames`` are read; all of them together may not be
    more pixels than the limit.

    Values that are one line of the stored ones stay stored, beside slope and intercept. Modality LUTs and rescales that
    differ by frame are applied (unsigned integers, float32). Polarity is folded into slope, intercept and window, so
    larger is always brighter. ``row`` (of the index) spares a pass for the percentile window of files without one.
    """
    with quiet():
        image = open_image(Path(path), limits or Limits())
        header, layout = image.header, image.layout
        which = range(layout.frames) if frames is None else frames
        if not which or not all(0 <= f < layout.frames for f in (which[0], which[-1])):
            raise HilumError(f"the file has {layout.frames} frames, not those asked for", fix="frames=range(0, 1)")
        if len(which) * layout.pixels > (limits or Limits()).max_pixels:
            raise Rejected(
                "resource_limit",
                f"{len(which)} frames at once are more pixels than the limit: ask for some, frames=range(...)",
            )
        parts = list(image.chunks(which))
        stored = _joined([p[0] for p in parts])
        values = None if parts[0][1] is None else _joined([p[1] for p in parts if p[1] is not None])
        layout = image.layout  # a codec may have told more of it
        window, function = window_of(header, layout, image.modality, voi=voi, frame=which[0])
        shown = to_rgb(header, stored, layout) if not image.grey else stored if values is None else values
        if window is None:
            known = _percentiles(image, stored, values, row) if image.grey else {}
            window = fallback(layout, image.modality, known, wide_palette=shown.dtype == np.uint16)
        slope, intercept = image.modality.line or (1.0, 0.0)
        flipped = inverted(header, layout)
        provenance = {
            "codec": image.stored.codec,
            "codec_version": image.stored.codec_version,
            "window": window.source,
            "voi_lut": function,
        }
        return Pixels(
            stored=shown,
            slope=-slope if flipped else slope,
            intercept=-intercept if flipped else intercept,
            window=mirrored(window) if flipped else window,
            spacing_mm=spacing_of(header),
            unit=image.modality.unit,
            valid=image.valid(stored) if image.grey else None,
            inverted=flipped,
            provenance=provenance,
        )


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _percentiles(image: Image, stored: Array, values: Array | None, row: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if row and row.get("p005") is not None and row.get("p995") is not None:
        return row
    slope, intercept = image.modality.line or (1.0, 0.0)
    measured = Measurement(slope=slope, intercept=intercept, modality=False)
    measured.add(stored, values=values, valid=image.valid(stored))
    return measured.statistics()


def spacing_of(header: Header) -> tuple[float, float] | None:
    """(row, column) in mm: PixelSpacing, of the first frame's functional group where there is one, else at the detector
    plane; None where unknown."""
    measures = header.functional(0, "PixelMeasuresSequence")
    for keyword, data in (
        ("PixelSpacing", measures),
        ("PixelSpacing", None),
        ("ImagerPixelSpacing", None),
        ("NominalScannedPixelSpacing", None),
    ):
        values = header.numbers(keyword, data=data)
        if len(values) == 2 and all(0 < v < 1e4 for v in values):
            return values[0], values[1]
        if values:
            header.note(f"bad_value:{keyword}")
    return None


def measure(image: Image) -> Measurement:
    """Hashes and statistics of all frames, in bounded memory; of the padding where a file holds nothing else."""
    measured = _measured(image)
    if image.padding is None or measured.statistics()["min"] is not None:
        return measured
    return _measured(replace(image, padding=None))


def _measured(image: Image) -> Measurement:
    slope, intercept = image.modality.line or (1.0, 0.0)
    hashed = image.grey and image.header.sop_class not in SEGMENTATIONS
    measured = Measurement(slope=slope, intercept=intercept, modality=hashed)
    for stored, values, valid in image.chunks():
        shown = None if image.grey else to_rgb(image.header, stored, image.layout)
        measured.add(stored, values=values, shown=shown, valid=valid)
    return measured
