"""What a compressed frame says of itself: size and precision, read before anything is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # JPEG and JPEG-LS frame headers
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


@dataclass(frozen=True)
class Codestream:
    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool | None = None  # JPEG and JPEG-LS do not say


def inspect(frame: bytes) -> Codestream | None:
    """Of JPEG, JPEG-LS, JPEG 2000 and HTJ2K; None where the frame is none of these or its header is damaged."""
    try:
        if frame[:2] == b"\xff\xd8":
            return _jpeg(frame)
        start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # SOC, SIZ; some writers wrap the stream in JP2 boxes
        return _jpeg_2000(frame, start) if start >= 0 else None
    except (struct.error, IndexError):
        return None


def _jpeg(frame: bytes) -> Codestream | None:
    at = 2
    while at + 4 <= len(frame):
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF or marker in _BARE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _SOF:
            precision, rows, columns, samples = struct.unpack_from(">BHHB", frame, at + 4)
            return Codestream(rows, columns, samples, precision)
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def _jpeg_2000(frame: bytes, start: int) -> Codestream:
    x1, y1, x0, y0 = struct.unpack_from(">4I", frame, start + 8)
    samples, depth = struct.unpack_from(">HB", frame, start + 40)
    return Codestream(y1 - y0, x1 - x0, samples, (depth & 0x7F) + 1, bool(depth & 0x80))
