"""Stored values: decoded, unused bits removed, sign applied, colour last; before palette, YBR to RGB and any table."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRLittleEndian, JPEGLossless, JPEGLosslessSV1, RLELossless

from hilum.data.ledger import Rejected
from hilum.medical.dicom.codecs import NATIVE, Codec, direct, installed
from hilum.medical.dicom.codestream import inspect
from hilum.medical.dicom.header import Header
from hilum.medical.dicom.layout import Layout

Array = NDArray[Any]
_CHUNK = 1 << 25  # pixels decoded at a time
_WHOLE_WORDS = (JPEGLossless, JPEGLosslessSV1, RLELossless)  # unused bits travel along, as in uncompressed pixels


@dataclass
class Stored:
    """Frames of one file. ``layout`` may have gained frames or another photometric from the pixel data itself."""

    header: Header
    layout: Layout
    codec: str
    codec_version: str
    frames: Sequence[bytes] | None = None  # compressed

    def chunks(self, which: range | None = None) -> Iterator[tuple[range, Array]]:
        """Frames and their values (f,H,W) or (f,H,W,3), in order, a bounded number of pixels at a time."""
        which = range(self.layout.frames) if which is None else which
        size = max(1, _CHUNK // (self.layout.rows * self.layout.columns * self.layout.samples))
        if self.frames is None and (self.layout.frame_bits % 16 or self.layout.allocated < 8):
            yield which, self._native(range(self.layout.frames))[which.start : which.stop : which.step]
            return
        for start in range(0, len(which), size):
            part = which[start : start + size]
            yield part, self._native(part) if self.frames is None else np.stack([self._decode(i) for i in part])

    def _native(self, which: range) -> Array:
        assert self.header.pixels is not None
        layout = self.layout
        with self.header.opened() as file:
            if which.step == 1:
                file.seek(self.header.pixels.offset + which.start * layout.frame_bits // 8)
                size = layout.bytes_of(len(which))
                data = file.read(size + size % 2)  # the pad byte is a pixel where 8-bit pixels lie in big-endian words
            else:
                data = b"".join(_at(file, self.header.pixels.offset, i, layout) for i in which)
        if len(data) < layout.bytes_of(len(which)):
            raise Rejected("truncated_pixels", "the file ends inside its pixels")
        try:
            values, _ = self._as_array(data + b"\0" * (len(data) % 2), len(which), "", correct_unused_bits=False)
        except ValueError:
            raise Rejected("inconsistent_attributes", "its pixels do not fit its header") from None
        shape = (len(which), layout.rows, layout.columns, layout.samples)
        return significant(values.reshape(shape[: 3 + layout.colour]), layout)

    def _as_array(self, data: bytes, frames: int, plugin: str, **options: Any) -> tuple[Array, dict[str, Any]]:
        assert self.header.pixels is not None
        layout = self.layout
        options |= {
            "rows": layout.rows,
            "columns": layout.columns,
            "number_of_frames": frames,
            "samples_per_pixel": layout.samples,
            "bits_allocated": layout.allocated,
            "bits_stored": layout.stored,
            "pixel_representation": int(layout.kind == "i"),
            "photometric_interpretation": layout.photometric,
            "planar_configuration": layout.planar,
            "pixel_keyword": self.header.pixels.keyword,
            "pixel_vr": self.header.pixels.vr,
        }
        syntax = (
            str(ExplicitVRLittleEndian)
            if self.header.syntax in NATIVE and self.header.little_endian
            else self.header.syntax
        )
        array, about = get_decoder(syntax).as_array(data, raw=True, decoding_plugin=plugin, **options)
        return array.astype(array.dtype.newbyteorder("="), copy=False), about

    def _decode(self, frame: int) -> Array:
        """One compressed frame, by the first codec that can; the others are asked only where it fails."""
        assert self.frames is not None
        data = self.frames[frame]
        self._compare(data)
        failures = []
        for codec, version in installed(self.header.syntax):
            try:
                values = self._by(codec, data)
            except (Rejected, MemoryError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic of a codec written in Rust is no Exception
                failures.append(f"{codec.name}: {type(error).__name__}")
                continue
            if codec.name != self.codec:
                self.codec, self.codec_version = codec.name, version
            return self._conform(values, data)
        raise Rejected("codec_error", "no codec decodes it (" + ", ".join(failures) + ")")

    def _by(self, codec: Codec, data: bytes) -> Array:
        layout = self.layout
        if codec.plugin is None:
            values = direct(self.header.syntax)(data)
            self.layout = replace(layout, photometric="RGB") if layout.colour else layout
        else:
            if codec.name == "gdcm":
                import gdcm

                gdcm.Trace.WarningOff()
                gdcm.Trace.ErrorOff()
            values, about = self._as_array(encapsulate([data], has_bot=False), 1, codec.plugin)
            shown = str(about["photometric_interpretation"])
            if shown != layout.photometric:
                if not (layout.photometric in ("YBR_ICT", "YBR_RCT") and shown == "RGB"):
                    self.header.note("photometric_mismatch")
                self.layout = replace(layout, photometric=shown)
        return values.reshape((layout.rows, layout.columns, layout.samples)[: 2 + layout.colour])

    def _compare(self, data: bytes) -> None:
        """The stream's own size must be the header's: what is decoded is then within the limits."""
        stream, layout = inspect(data), self.layout
        if stream is None:
            return
        if (stream.rows, stream.columns, stream.samples) != (layout.rows, layout.columns, layout.samples):
            raise Rejected("inconsistent_attributes", "the compressed stream has another size than the header says")
        if stream.precision > layout.allocated:
            raise Rejected("inconsistent_attributes", "the compressed stream has more bits than are allocated")
        if stream.signed is not None and stream.signed != (layout.kind == "i"):
            self.header.note("pixel_representation_mismatch")

    def _conform(self, values: Array, data: bytes) -> Array:
        """To the header's bits and sign, where the stream keeps to them."""
        layout, stream = self.layout, inspect(data)
        if layout.high != layout.stored - 1:
            raise Rejected("inconsistent_attributes", "HighBit is not BitsStored - 1 in compressed pixels")
        wide = values.astype(layout.dtype, copy=False) if values.dtype != layout.dtype else values
        precision = stream.precision if stream is not None else layout.stored
        cleaned = significant(wide, layout)
        if precision > layout.stored:
            if self.header.syntax not in _WHOLE_WORDS and not np.array_equal(cleaned, wide):
                raise Rejected("inconsistent_attributes", "the compressed stream has values beyond BitsStored")
            self.header.note("codestream_precision")
        return cleaned


def open_stored(header: Header, layout: Layout) -> Stored:
    """Check that the pixel element holds what the layout says; compressed frames are cut apart, nothing is decoded."""
    assert header.pixels is not None
    there = header.size - header.pixels.offset
    if header.syntax in NATIVE:
        return _open_native(header, layout, there)
    codec, version = installed(header.syntax)[0]
    if header.pixels.length is not None:
        raise Rejected("inconsistent_attributes", "its transfer syntax is compressed, its pixels are not")
    with header.opened() as file:
        file.seek(header.pixels.offset)
        data = _fragments(header, file, there)
    tables = [header.value(k) for k in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = tuple(tables) if all(isinstance(t, bytes) and t for t in tables) else None
    try:
        frames = list(generate_frames(data, number_of_frames=layout.frames, extended_offsets=offsets))
    except Exception:
        raise Rejected("inconsistent_attributes", "its fragments and offsets do not agree") from None
    if len(frames) < layout.frames:
        raise Rejected("truncated_pixels", f"{len(frames)} of {layout.frames} frames are there")
    if len(frames) > layout.frames:
        frames = _excess(header, layout, len(frames), frames)
    return Stored(header, replace(layout, frames=len(frames)), codec.name, version, frames)


def _open_native(header: Header, layout: Layout, there: int) -> Stored:
    from pydicom import __version__

    assert header.pixels is not None
    if header.pixels.length is None:
        raise Rejected("inconsistent_attributes", "its transfer syntax is not compressed, its pixels are")
    wanted = layout.bytes_of(layout.frames)
    if min(there, header.pixels.length) < wanted:
        raise Rejected("truncated_pixels", f"{min(there, header.pixels.length)} of {wanted} bytes of pixels are there")
    whole = header.pixels.length * 8 // layout.frame_bits
    if whole > layout.frames and layout.frame_bits >= 16 and header.pixels.length - layout.bytes_of(whole) < 2:
        extra = _excess(header, layout, whole, range(whole))
        layout = replace(layout, frames=len(extra))
    elif header.pixels.length > wanted + 1:
        header.note("excess_pixel_bytes")
    return Stored(header, layout, "native", __version__)


def _excess(header: Header, layout: Layout, found: int, frames: Any) -> Any:
    """More frames than stated: all are kept where the header states none, else the stated ones; it is noted."""
    if header.integer("NumberOfFrames") is None:
        header.note("frames_from_data")
        return frames
    header.note(f"excess_frames:{found - layout.frames}")
    return frames[: layout.frames]


def _fragments(header: Header, file: BinaryIO, there: int) -> bytes:
    """The value of an encapsulated element (PS3.5 A.4): items up to the delimiter, each whole."""
    data = file.read(there)
    at = 0
    while at + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHI", data, at)
        if (group, element) == (0xFFFE, 0xE0DD):
            return data[:at]
        if (group, element) != (0xFFFE, 0xE000):
            raise Rejected("parse_error", "its compressed pixels are not a sequence of items")
        if at + 8 + length > len(data):
            raise Rejected("truncated_pixels", "the file ends inside a compressed frame")
        at += 8 + length
    if at == 0:
        raise Rejected("truncated_pixels", "the file ends before its compressed pixels")
    header.note("missing_delimiter")
    return data[:at]


def _at(file: BinaryIO, offset: int, frame: int, layout: Layout) -> bytes:
    file.seek(offset + frame * layout.frame_bits // 8)
    return file.read(layout.bytes_of(1))


def significant(values: Array, layout: Layout) -> Array:
    """The BitsStored bits that end at HighBit, sign-extended (PS3.5 8.1.1); what else shares the words (overlays) goes.

    A HighBit above BitsStored - 1 is believed unless the words say otherwise: nothing above BitsStored bits and
    something below the claimed ones means that the values lie at the bottom, and the header is wrong.
    """
    if layout.kind == "f" or layout.allocated == 1:
        return values
    words = values.view(f"u{values.dtype.itemsize}")
    shift, full = layout.high + 1 - layout.stored, words.dtype.itemsize * 8
    if shift:
        if (words & ((1 << shift) - 1)).any() and not (words >> layout.stored).any():
            raise Rejected("inconsistent_attributes", "HighBit says that values lie where they do not")
        words = words >> shift
    lift = full - layout.stored
    if not lift:
        return words.view(layout.dtype)
    kept = (words << lift).view(layout.dtype)
    return np.right_shift(kept, lift, out=kept)  # an arithmetic shift where the dtype is signed
