"""The shape and storage of an image as its header states them, checked before any pixel is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hilum.core.types import Limits
from hilum.data.ledger import Rejected
from hilum.medical.dicom.codecs import JPEG_XL
from hilum.medical.dicom.header import Header

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "XYB")  # the last one of JPEG XL alone
PALETTE = "PALETTE COLOR"
MOST_FRAMES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """``kind`` is numpy's: u, i or f. ``frames`` is what the header says, or the data where it says nothing."""

    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    high: int
    kind: str
    planar: int
    photometric: str

    @property
    def colour(self) -> bool:
        return self.photometric not in (*GREY, PALETTE)

    @property
    def pixels(self) -> int:
        """Values of a frame."""
        return self.rows * self.columns * self.samples

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of decoded stored values."""
        return np.dtype(f"{self.kind}{max(1, self.allocated // 8)}")

    @property
    def span(self) -> tuple[float, float]:
        """Least and greatest stored value of integers."""
        half = 1 << (self.stored - 1)
        return (float(-half), float(half - 1)) if self.kind == "i" else (0.0, float(2 * half - 1))

    @property
    def frame_bits(self) -> int:
        """Of an uncompressed frame as it lies in the file."""
        bits = self.pixels * self.allocated
        return bits * 2 // 3 if self.photometric == "YBR_FULL_422" else bits

    def bytes_of(self, frames: int) -> int:
        return -(-frames * self.frame_bits // 8)


def layout_of(header: Header, limits: Limits) -> Layout:
    """Read and check the Image Pixel module (PS3.3 C.7.6.3); :class:`Rejected` names the attribute at fault."""
    if header.pixels is None:
        raise Rejected("truncated_pixels", "the file ends before its pixels") if header.cut else missing("PixelData")
    floats = header.pixels.keyword != "PixelData"
    photometric = " ".join(str(header.value("PhotometricInterpretation") or "").upper().split())
    if not photometric:
        raise missing("PhotometricInterpretation")
    if photometric not in (*GREY, *COLOUR, PALETTE) or (photometric == "XYB" and header.syntax not in JPEG_XL):
        raise Rejected("unsupported_photometric", "its PhotometricInterpretation is retired or unknown")
    rows, columns, allocated = (_need(header, k) for k in ("Rows", "Columns", "BitsAllocated"))
    if floats and allocated != (32 if header.pixels.keyword == "FloatPixelData" else 64):
        raise Rejected("inconsistent_attributes", f"{header.pixels.keyword} has other words than BitsAllocated says")
    stored = allocated if floats else _need(header, "BitsStored")
    signed = 0 if floats else _need(header, "PixelRepresentation")
    samples = header.integer("SamplesPerPixel")
    if samples is None:
        header.note("assumed:SamplesPerPixel")
        samples = 3 if photometric in COLOUR else 1
    high = header.integer("HighBit")
    if high is None and not floats:
        header.note("assumed:HighBit")
    high = stored - 1 if high is None or floats else high
    planar = header.integer("PlanarConfiguration") or 0
    layout = Layout(
        _frames(header),
        rows,
        columns,
        samples,
        allocated,
        stored,
        high,
        "f" if floats else "ui"[signed & 1],
        planar,
        photometric,
    )
    _check(layout, signed, planar)
    # Frames are read a few at a time, so a frame is what must fit into memory; the whole bounds the time.
    most = max(layout.bytes_of(layout.frames), layout.frames * layout.pixels)
    if layout.pixels > limits.max_pixels or most > limits.max_bytes or layout.frames > MOST_FRAMES:
        raise Rejected(
            "resource_limit", f"{layout.frames} frames of {rows} x {columns} x {samples} are more than the limit"
        )
    return layout


def missing(keyword: str) -> Rejected:
    return Rejected("missing_attribute", f"{keyword} is absent")


def _need(header: Header, keyword: str) -> int:
    value = header.integer(keyword)
    if value is not None:
        return value
    if header.has(keyword):
        raise Rejected("inconsistent_attributes", f"{keyword} is not one number")
    raise missing(keyword)


def _frames(header: Header) -> int:
    frames = header.integer("NumberOfFrames")
    if "bad_value:NumberOfFrames" in header.problems or (frames or 0) < 0:
        raise Rejected("inconsistent_attributes", "NumberOfFrames is not a number of frames")
    if frames == 0:
        header.note("assumed:NumberOfFrames")
    return frames or 1


def _check(layout: Layout, signed: int, planar: int) -> None:
    wrong = ""
    if not (0 < layout.rows < 65536 and 0 < layout.columns < 65536):
        wrong = "Rows and Columns"
    elif layout.allocated != 1 and layout.allocated not in (8, 16, 32, 64):
        wrong = "BitsAllocated"
    elif not 1 <= layout.stored <= layout.allocated:
        wrong = "BitsStored and BitsAllocated"
    elif not layout.stored - 1 <= layout.high < layout.allocated:
        wrong = "HighBit"
    elif signed not in (0, 1):
        wrong = "PixelRepresentation"
    elif layout.samples != (3 if layout.colour else 1):
        wrong = "SamplesPerPixel and PhotometricInterpretation"
    elif planar not in (0, 1):
        wrong = "PlanarConfiguration"
    if wrong:
        raise Rejected("inconsistent_attributes", f"its values of {wrong} cannot all be true")
    if layout.colour and layout.photometric.startswith("YBR") and layout.allocated != 8:
        raise Rejected("unsupported_photometric", "YBR colour of more than 8 bits")
