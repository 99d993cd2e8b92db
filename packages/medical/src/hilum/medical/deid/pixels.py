"""Pixel data on its way out: what is hidden beside the values goes, the values stay as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from hilum.data.ledger import Rejected
from hilum.medical.deid.streams import bare
from hilum.medical.dicom.codecs import NATIVE
from hilum.medical.dicom.codestream import inspect
from hilum.medical.dicom.layout import GREY, PALETTE, Layout

Array = NDArray[Any]
Box = tuple[int, int, int, int]  # top, left, bottom, right
_WHOLE_WORDS = (RLELossless, JPEGLossless, JPEGLosslessSV1)  # unused bits travel along
_ENCODERS = (RLELossless, JPEGLSLossless, JPEG2000Lossless)


def clear_unused_bits(data: Dataset, layout: Layout) -> bool:
    """Bits outside BitsStored take the value of the sign (unsigned: 0); returns whether any carried something else.

    Overlays of the retired kind (PS3.5 8.1.2, OverlayBitPosition) live there. Lossless streams are written anew, by
    the same codec where one encodes it, else uncompressed. :class:`Rejected` where a lossy stream has such bits.
    """
    if layout.kind == "f" or layout.allocated < 8 or layout.stored == layout.allocated:
        return False
    syntax = data.file_meta.TransferSyntaxUID
    if str(syntax) in NATIVE:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        size = layout.allocated // 8
        whole = len(data.PixelData) // size * size
        words = np.frombuffer(data.PixelData[:whole], f"{order}u{size}")
        clean = _cleared(words, layout)
        if np.array_equal(words, clean):
            return False
        data.PixelData = clean.astype(words.dtype).tobytes() + data.PixelData[whole:]
        return True
    if syntax not in _WHOLE_WORDS and not any(_wider(frame, layout) for frame in _frames(data, layout)):
        return False
    values = _decoded(data, raw=True, correct_unused_bits=False)
    words = values.view(f"u{values.dtype.itemsize}")
    clean = _cleared(words, layout)
    if np.array_equal(words, clean):
        return False
    if syntax not in (*_WHOLE_WORDS, JPEGLSLossless, JPEG2000Lossless):
        raise Rejected("uncleared_bits", "its lossy stream has values beyond BitsStored")
    _replace(data, clean, layout.photometric)
    return True


def _cleared(words: Array, layout: Layout) -> Array:
    shift, full = layout.high + 1 - layout.stored, layout.allocated
    mask = ((1 << layout.stored) - 1) << shift
    clean = words & words.dtype.type(mask)
    if layout.kind == "i" and shift == 0:
        negative = (words >> words.dtype.type(layout.stored - 1)) & words.dtype.type(1)
        upper = words.dtype.type(((1 << full) - 1) & ~mask)
        clean = clean | negative * upper
    return np.asarray(clean)


def blacken(data: Dataset, layout: Layout, boxes: list[Box]) -> None:
    """Paint boxes black in every frame. Lossy pixels are stored as they decode, uncompressed; lossless ones are
    compressed again. :class:`Rejected` for palettes and floats, where black has no number."""
    if layout.photometric == PALETTE or layout.kind == "f" or layout.allocated < 8:
        raise Rejected("uncleared_text", "text cannot be painted over in pixels of this kind")
    grey = layout.photometric in GREY
    values = np.array(_decoded(data, raw=grey))
    low = -(1 << (layout.stored - 1)) if layout.kind == "i" else 0
    black = low + (1 << layout.stored) - 1 if layout.photometric == "MONOCHROME1" else low
    shaped = values.reshape(layout.frames, layout.rows, layout.columns, layout.samples)
    for top, left, bottom, right in boxes:
        shaped[:, top:bottom, left:right] = black
    _replace(data, shaped, layout.photometric if grey else "RGB")


def _decoded(data: Dataset, *, raw: bool, **options: Any) -> Array:
    values, _ = get_decoder(data.file_meta.TransferSyntaxUID).as_array(data, raw=raw, **options)
    return np.asarray(values)


def _replace(data: Dataset, values: Array, photometric: str) -> None:
    """Store decoded values in place of the old ones."""
    before = data.file_meta.TransferSyntaxUID
    if values.dtype.kind == "u" and data.PixelRepresentation == 1:
        values = values.view(f"i{values.dtype.itemsize}")
    big = before == ExplicitVRBigEndian
    raw = values.astype(values.dtype.newbyteorder(">" if big else "<"), copy=False).tobytes()
    data.PixelData = raw + b"\0" * (len(raw) % 2)
    data["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
    data.PhotometricInterpretation = photometric
    if "PlanarConfiguration" in data:
        data.PlanarConfiguration = 0
    if str(before) not in NATIVE:
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if before in _ENCODERS:
            data.compress(before, generate_instance_uid=False)


def plain_syntax(syntax: str) -> UID:
    """The syntax that is written: the file's own, but never deflated, so that its bytes can be searched."""
    return ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else UID(syntax)


def without_excess(data: Dataset, layout: Layout) -> bool:
    """Leave what the image's values need: bytes after the last frame, frames beyond those that the header states,
    offset tables, and comments, boxes and tails of compressed frames go. Returns whether there were any."""
    for keyword in ("FloatPixelData", "DoubleFloatPixelData"):
        if keyword in data:
            return _cut(data, keyword, layout)
    if str(data.file_meta.TransferSyntaxUID) in NATIVE:
        return _cut(data, "PixelData", layout)
    frames = _frames(data, layout)
    rle = data.file_meta.TransferSyntaxUID == RLELossless
    clean = [bare(f, values=layout.rows * layout.columns, run_lengths=rle) for f in frames[: layout.frames]]
    same = [f.rstrip(b"\0") for f in clean] == [f.rstrip(b"\0") for f in frames]
    even = [f + b"\0" * (len(f) % 2) for f in clean]
    data.PixelData = encapsulate(even, has_bot=sum(map(len, even)) < 1 << 31)
    return not same


def _cut(data: Dataset, keyword: str, layout: Layout) -> bool:
    value, size = bytes(data[keyword].value), layout.bytes_of(layout.frames)
    spare = layout.frames * layout.frame_bits % 8  # of one-bit pixels
    if data.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:  # bytes lie in words, the last one behind its padding
        size, spare = size + size % 2, 0
    kept = value[:size]
    if spare:
        kept = kept[:-1] + bytes([kept[-1] & ((1 << spare) - 1)])
    data[keyword].value = kept + b"\0" * (len(kept) % 2)
    return bool(value.rstrip(b"\0") != kept.rstrip(b"\0"))


def _frames(data: Dataset, layout: Layout) -> list[bytes]:
    tables = [data.get(k) for k in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = (tables[0], tables[1]) if all(isinstance(t, bytes) and t for t in tables) else None
    return list(generate_frames(data.PixelData, number_of_frames=layout.frames, extended_offsets=offsets))


def _wider(frame: bytes, layout: Layout) -> bool:
    stream = inspect(frame)
    return stream is not None and stream.precision > layout.stored
