"""Stored values: decoded, unused bits removed, sign applied, colour last; before palette, YBR to RGB and any table.

A frame is read when it is asked for, so a long cine costs the memory of the frames that are in hand.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from hilum.data.ledger import Rejected
from hilum.medical.dicom.codecs import GDCM, JPEG_XL, NATIVE, Codec, direct, installed
from hilum.medical.dicom.codestream import Codestream, completed, inspect, unwrapped
from hilum.medical.dicom.encapsulated import Pieces, fragments_of, frames_of, joined
from hilum.medical.dicom.header import Header
from hilum.medical.dicom.layout import Layout

Array = NDArray[Any]
_CHUNK = 1 << 23  # pixels decoded at a time
_WHOLE_WORDS = (JPEGLossless, JPEGLosslessSV1, RLELossless)  # unused bits travel along, as in uncompressed pixels
_FOLLOWING = (bytes(8), b"\xff\0" * 8, b"\x55" * 8)  # after a stream that may be cut
_SMALL = 1 << 26  # bytes of a decoded frame that are not worth a suspicion
_DENSEST = 1000  # bytes that one byte of a large compressed frame may become; RLE makes 64


@dataclass
class Stored:
    """Frames of one file. ``layout`` may have gained frames or another photometric from the pixel data itself."""

    header: Header
    layout: Layout
    codec: str
    codec_version: str
    frames: Sequence[Pieces] | None = None  # compressed

    def chunks(self, which: range | None = None) -> Iterator[tuple[range, Array]]:
        """Frames and their values (f,H,W) or (f,H,W,3), in order, a bounded number of pixels at a time."""
        which = range(self.layout.frames) if which is None else which
        size = max(1, _CHUNK // self.layout.pixels)
        for start in range(0, len(which), size):
            part = which[start : start + size]
            yield part, self._native(part) if self.frames is None else self._decoded(part)

    def _native(self, which: range) -> Array:
        layout = self.layout
        parts = [which] if which.step == 1 else [range(i, i + 1) for i in which]
        values = [self._run(part) for part in parts]
        stored = values[0] if len(values) == 1 else np.concatenate(values)
        return significant(stored, layout)

    def _run(self, which: range) -> Array:
        """Successive frames as they lie in the file."""
        layout, count = self.layout, len(which)
        first = which.start * layout.frame_bits
        data = self._bytes(first // 8, -(-(first + count * layout.frame_bits) // 8))
        if layout.allocated == 1:  # packed across frames, least significant bit first (PS3.5 8.1.1)
            bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
            return bits[first % 8 :][: count * layout.frame_bits].reshape(count, layout.rows, layout.columns)
        if layout.photometric == "YBR_FULL_422":
            padded = bytes(data) + b"\0" * (len(data) % 2)
            return self._as_array(padded, count, "", correct_unused_bits=False)[0].reshape(
                count, layout.rows, layout.columns, 3
            )
        values = np.frombuffer(data, layout.dtype.newbyteorder(">" if self.header.big_endian_pixels else "<"))
        values = values.astype(layout.dtype, copy=False)
        if layout.samples == 1:
            return values.reshape(count, layout.rows, layout.columns)
        if layout.planar:
            return values.reshape(count, layout.samples, layout.rows, layout.columns).transpose(0, 2, 3, 1)
        return values.reshape(count, layout.rows, layout.columns, layout.samples)

    def _bytes(self, start: int, stop: int) -> bytearray:
        """Of the value; bytes in big-endian words (PS3.5 8.1.1) are exchanged in pairs, which may span two frames."""
        assert self.header.pixels is not None
        if self.header.big_endian_pixels and self.layout.allocated < 16 and self.header.pixels.vr != "OB":
            even = start // 2 * 2
            words = np.frombuffer(self._read(even, -(-stop // 2) * 2), np.uint16).byteswap()
            return bytearray(words.tobytes()[start - even : stop - even])
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> bytearray:
        assert self.header.pixels is not None
        data = bytearray(stop - start)
        with self.header.opened() as file:
            file.seek(self.header.pixels.offset + start)
            if file.readinto(data) < len(data):  # type: ignore[attr-defined]
                raise Rejected("truncated_pixels", "the file ends inside its pixels")
        return data

    def _as_array(self, data: bytes, frames: int, plugin: str, **options: Any) -> tuple[Array, dict[str, Any]]:
        assert self.header.pixels is not None
        layout = self.layout
        # gdcm ends the process where fewer than 8 bits are stored in 8; they are cut to what is stored later on.
        stored = 8 if plugin == "gdcm" and layout.allocated == 8 else layout.stored
        options |= {
            "rows": layout.rows,
            "columns": layout.columns,
            "number_of_frames": frames,
            "samples_per_pixel": layout.samples,
            "bits_allocated": layout.allocated,
            "bits_stored": stored,
            "pixel_representation": int(layout.kind == "i"),
            "photometric_interpretation": layout.photometric,
            # Of uncompressed pixels alone; a stream has its own order, which the plug-in knows (PS3.5 8.2).
            "planar_configuration": layout.planar if self.frames is None else 0,
            "pixel_keyword": self.header.pixels.keyword,
            "pixel_vr": self.header.pixels.vr,
        }
        syntax = str(ExplicitVRLittleEndian) if self.header.syntax in NATIVE else self.header.syntax
        array, about = get_decoder(syntax).as_array(data, raw=True, decoding_plugin=plugin, **options)
        return array.astype(array.dtype.newbyteorder("="), copy=False), about

    def _decoded(self, which: range) -> Array:
        assert self.frames is not None
        with self.header.opened() as file:
            return np.stack([self._decode(joined(file, self.frames[i])) for i in which])

    def _decode(self, data: bytes) -> Array:
        """One compressed frame, by the first codec that can; the others are asked only where it fails."""
        data = completed(unwrapped(data))
        stream = self._compare(data)
        ended = stream is None or stream.ended
        return self._conform(self._values(data, stream) if ended else self._unended(data, stream), stream)

    def _unended(self, data: bytes, stream: Codestream | None) -> Array:
        """Of a JPEG without its end marker, which some writers forget or cut: codecs make up what a cut stream lacks, so
        it is whole only where its pixels do not depend on what follows. CharLS itself takes no more and no less."""
        following = (b"",) if self.header.syntax in JPEGLSTransferSyntaxes else _FOLLOWING
        sure = data.rstrip(b"\0").removesuffix(b"\xff")  # without padding, and half of a marker
        found: list[Array] = []
        for each in following:
            with contextlib.suppress(Rejected):
                found.append(self._values(sure + each + b"\xff\xd9", stream))
        if len(found) < len(following) or not all(np.array_equal(found[0], other) for other in found[1:]):
            raise Rejected("truncated_pixels", "a compressed frame ends too early, without its end marker")
        self.header.note("missing_delimiter")
        return found[0]

    def _values(self, data: bytes, stream: Codestream | None) -> Array:
        failures = []
        codecs = installed(self.header.syntax)
        if self.header.syntax == JPEGExtended12Bit and stream is not None and stream.precision == 8:
            codecs = codecs[::-1]  # a baseline stream but for its name: by the codec, and the colours, of those
        for codec, version in codecs:
            if codec is GDCM and self.layout.allocated > 16:  # it would end the process
                failures.append(f"{codec.name}: more than 16 bits")
                continue
            try:
                values = self._by(codec, data, stream)
            except (Rejected, MemoryError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic of a codec written in Rust is no Exception
                failures.append(f"{codec.name}: {type(error).__name__}")
                continue
            if codec.name != self.codec:
                self.codec, self.codec_version = codec.name, version
            return values
        raise Rejected("codec_error", "no codec decodes it (" + ", ".join(failures) + ")")

    def _by(self, codec: Codec, data: bytes, stream: Codestream | None) -> Array:
        layout = self.layout
        if layout.photometric == "RGB" and stream is not None and stream.subsampled:
            self.header.note("photometric_mismatch")  # chrominance alone is ever subsampled
            self.layout = layout = replace(layout, photometric="YBR_FULL_422")
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

    def _compare(self, data: bytes) -> Codestream | None:
        """The stream's own size must be the header's: what is decoded is then within the limits."""
        layout, size = self.layout, self.layout.bytes_of(1)
        if size > _SMALL and size > len(data) * (64 if self.header.syntax == RLELossless else _DENSEST):
            raise Rejected("resource_limit", f"{len(data)} bytes would unpack to a frame of {size}")
        if self.header.syntax == RLELossless:
            return None
        stream = inspect(data)
        if stream is None:
            raise Rejected("codec_error", "a compressed frame does not begin as its transfer syntax says")
        samples = stream.samples or layout.samples
        if (stream.rows, stream.columns, samples) != (layout.rows, layout.columns, layout.samples):
            raise Rejected("inconsistent_attributes", "the compressed stream has another size than the header says")
        if stream.precision > layout.allocated:
            raise Rejected("inconsistent_attributes", "the compressed stream has more bits than are allocated")
        if stream.signed is not None and stream.signed != (layout.kind == "i"):
            self.header.note("pixel_representation_mismatch")
        return stream

    def _conform(self, values: Array, stream: Codestream | None) -> Array:
        """To the header's bits and sign, where the stream keeps to them."""
        layout = self.layout
        if layout.high != layout.stored - 1:
            raise Rejected("inconsistent_attributes", "HighBit is not BitsStored - 1 in compressed pixels")
        wide = values.astype(layout.dtype, copy=False) if values.dtype != layout.dtype else values
        precision = stream.precision if stream is not None and stream.precision else layout.stored
        cleaned = significant(wide, layout)
        if self.header.syntax in JPEG_XL and not np.array_equal(cleaned, values):
            raise Rejected("inconsistent_attributes", "the compressed stream has values beyond BitsStored")
        if precision > layout.stored:
            # A stream that knows no sign may hold negative values cut to BitsStored.
            fits = stream is not None and stream.signed is None and not (wide >> layout.stored).any()
            if self.header.syntax not in _WHOLE_WORDS and not fits and not np.array_equal(cleaned, wide):
                raise Rejected("inconsistent_attributes", "the compressed stream has values beyond BitsStored")
            self.header.note("codestream_precision")
        elif precision < layout.stored and layout.kind == "i" and stream is not None and stream.signed is None:
            self.header.note("codestream_precision")  # where its negative values would lie is not known
        return cleaned


def open_stored(header: Header, layout: Layout) -> Stored:
    """Check that the pixel element holds what the layout says; compressed frames are located, nothing is decoded."""
    assert header.pixels is not None
    if header.syntax in NATIVE:
        return _open_native(header, layout, header.size - header.pixels.offset)
    codec, version = installed(header.syntax)[0]
    if header.pixels.length is not None:
        raise Rejected("inconsistent_attributes", "its transfer syntax is compressed, its pixels are not")
    tables = [header.value(k) for k in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    extended = (tables[0], tables[1]) if all(isinstance(t, bytes) and t for t in tables) else None
    with header.opened() as file:
        fragments = fragments_of(file, header.pixels.offset, header.size)
        if not fragments.delimited:
            header.note("missing_delimiter")
        frames = frames_of(file, fragments, layout.frames, extended)
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
    if layout.photometric == "YBR_FULL_422":
        _check_subsampling(layout, header.pixels.length)
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


def _check_subsampling(layout: Layout, length: int) -> None:
    """Two pixels share their chrominance (PS3.3 C.7.6.3.1.2): what is not in pairs, or not subsampled, is refused."""
    if layout.columns % 2 or layout.planar:
        raise Rejected("inconsistent_attributes", "YBR_FULL_422 needs pairs of columns, colour by pixel")
    if 0 <= length - layout.frames * layout.pixels < 2:
        raise Rejected("inconsistent_attributes", "its pixels are as long as YBR_FULL, and YBR_FULL_422 is stated")


def _excess(header: Header, layout: Layout, found: int, frames: Any) -> Any:
    """More frames than stated: all are kept where the header states none, else the stated ones; it is noted."""
    if header.integer("NumberOfFrames") is None:
        header.note("frames_from_data")
        return frames
    header.note(f"excess_frames:{found - layout.frames}")
    return frames[: layout.frames]


def significant(values: Array, layout: Layout) -> Array:
    """The BitsStored bits that end at HighBit, sign-extended (PS3.5 8.1.1); what else shares the words (overlays) goes.

    A HighBit above BitsStored - 1 is believed unless the words say otherwise: nothing (or but a sign) above BitsStored
    bits and something below the claimed ones means that the values lie at the bottom, and the header is wrong.
    """
    if layout.kind == "f" or layout.allocated == 1:
        return values
    words = values.view(f"u{values.dtype.itemsize}")
    shift, full = layout.high + 1 - layout.stored, words.dtype.itemsize * 8
    if shift:
        if (words & ((1 << shift) - 1)).any() and _lies_low(words, layout):
            raise Rejected("inconsistent_attributes", "HighBit says that values lie where they do not")
        words = words >> shift
    lift = full - layout.stored
    if not lift:
        return words.view(layout.dtype)
    kept = (words << lift).view(layout.dtype)
    return np.right_shift(kept, lift, out=kept)  # an arithmetic shift where the dtype is signed


def _lies_low(words: Array, layout: Layout) -> bool:
    """Whether all words are values of BitsStored bits at the bottom, negative ones sign-extended or not."""
    if not (words >> layout.stored).any():
        return True
    if layout.kind != "i":
        return False
    sign = words.view(layout.dtype) >> (layout.stored - 1)  # 0 or -1 of what fits
    return not ((sign != 0) & (sign != -1)).any()
