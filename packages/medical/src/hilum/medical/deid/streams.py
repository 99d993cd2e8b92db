"""Compressed frames rebuilt from what a decoder needs: comments, application data, boxes and tails have no place.

Coded values are copied byte for byte; only segments that carry no values are left out.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from hilum.data.ledger import Rejected
from hilum.medical.dicom.codestream import unwrapped

_SEGMENTS = frozenset({*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD, 0xF7, 0xF8})  # of JPEG and JPEG-LS: frames, tables
_FIXED = {0xDC: 2, 0xDD: 2}  # content bytes of segments that hold one number, where they do
_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # in coded values: stuffed, restart and fill bytes are none
_SOC, _SOT, _SOD, _EOC = b"\xff\x4f", b"\xff\x90", b"\xff\x93", b"\xff\xd9"
_PARTS = frozenset({0x50, 0x51, 0x52, 0x53, 0x59, 0x5C, 0x5D, 0x5E, 0x5F, 0x60, 0x61, 0x63})  # of JPEG 2000: no
# comments, and no lists of lengths, which are optional and which leaving out comments makes wrong


def bare(frame: bytes, *, values: int, run_lengths: bool = False) -> bytes:
    """A frame without anything that carries no values. ``values``: of one segment of ``run_lengths``.

    :class:`Rejected` where its end or its parts cannot be told.
    """
    try:
        return _rebuilder(frame, values, run_lengths)()
    except (struct.error, IndexError):
        raise _unclear() from None


def _rebuilder(frame: bytes, values: int, run_lengths: bool) -> Callable[[], bytes]:
    plain = unwrapped(frame)
    if run_lengths:
        return lambda: _rle(frame, values)
    if frame[:2] == b"\xff\xd8":
        return lambda: _jpeg(frame)
    if plain[:2] == _SOC:
        return lambda: _jpeg_2000(plain)
    raise Rejected("unsupported_transfer_syntax", "comments in streams of this kind cannot be found")


def _unclear() -> Rejected:
    return Rejected("codec_error", "its compressed stream cannot be told from what else may stand in it")


def _jpeg(frame: bytes) -> bytes:
    """ISO/IEC 10918-1 B.1 and 14495-1 C.1, scan after scan up to the end marker."""
    kept, at = [frame[:2]], 2
    while True:
        if frame[at] != 0xFF:
            raise _unclear()
        marker = frame[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == 0xD9:
            return b"".join([*kept, frame[at : at + 2]])
        end = at + 2 + struct.unpack_from(">H", frame, at + 2)[0]
        if end < at + 4 or end > len(frame):
            raise _unclear()
        kept.append(_segment(marker, frame[at:end]))
        at = end
        if marker == 0xDA:
            found = _MARKER.search(frame, at)
            if found is None:
                raise _unclear()
            kept.append(frame[at : found.start()])
            at = found.start()


def _segment(marker: int, whole: bytes) -> bytes:
    content = whole[4:]
    if marker in _SEGMENTS:
        return whole if len(content) <= _FIXED.get(marker, len(content)) else b""
    if marker == 0xE0 and content[:5] == b"JFIF\0" and len(content) >= 14:  # colour is YBR; without the thumbnail
        return b"\xff\xe0\0\x10" + content[:12] + b"\0\0"
    if marker == 0xEE and content[:5] == b"Adobe" and len(content) >= 12:  # the colour transform
        return b"\xff\xee\0\x0e" + content[:5] + b"\0\x64\0\0\0\0" + content[11:12]
    if marker == 0xE8 and content[:4] == b"mrfx" and len(content) == 5:  # the colour transform of JPEG-LS
        return whole
    return b""


def _jpeg_2000(frame: bytes) -> bytes:
    """ISO/IEC 15444-1 A.2: the main header, then tile-parts by their lengths."""
    kept = [_SOC]
    at = _header(frame, 2, _SOT, kept)
    while frame[at : at + 2] == _SOT:
        length, tile, size, part = struct.unpack_from(">HHIH", frame, at + 2)
        end = at + size if size else frame.find(_EOC, at)
        if length != 10 or end > len(frame) or end < at + 14:
            raise _unclear()
        inner: list[bytes] = []
        body = _header(frame, at + 12, _SOD, inner)
        content = b"".join([*inner, frame[body:end]])
        kept += [_SOT, struct.pack(">HHIH", 10, tile, 12 + len(content) if size else 0, part), content]
        at = end
    return b"".join([*kept, _EOC])


def _header(frame: bytes, at: int, end: bytes, kept: list[bytes]) -> int:
    """Copies the marker segments that say how to decode; returns where ``end`` stands."""
    while frame[at : at + 2] != end:
        length = struct.unpack_from(">H", frame, at + 2)[0]
        if frame[at] != 0xFF or length < 2 or at + 2 + length > len(frame):
            raise _unclear()
        if frame[at + 1] in _PARTS:
            kept.append(frame[at : at + 2 + length])
        at += 2 + length
    return at


def _rle(frame: bytes, values: int) -> bytes:
    """PS3.5 G: a header of 16 words, then as many segments of packed bytes as its first word says."""
    count, *starts = struct.unpack_from("<16I", frame)
    if not 1 <= count <= 15 or sorted(starts[:count]) != starts[:count] or starts[0] < 64:
        raise _unclear()
    segments, offsets, at = [], [], 64
    for start, stop in zip(starts[:count], [*starts[1:count], len(frame)], strict=True):
        segment = _packed(frame[start:stop], values)
        segments.append(segment + b"\0" * (len(segment) % 2))
        offsets.append(at)
        at += len(segments[-1])
    return struct.pack("<16I", count, *offsets, *[0] * (15 - count)) + b"".join(segments)


def _packed(segment: bytes, values: int) -> bytes:
    """A segment up to the run that completes ``values`` bytes."""
    at = made = 0
    while made < values and at < len(segment):
        head = segment[at]
        if head < 128:
            made += head + 1
            at += head + 2
        else:
            made += 257 - head if head > 128 else 0
            at += 2 if head > 128 else 1
    return segment[:at]
