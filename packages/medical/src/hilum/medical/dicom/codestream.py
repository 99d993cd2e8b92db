"""What a compressed frame says of itself: size and precision, read before anything is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # JPEG and JPEG-LS frame headers
_SOC_SIZ = b"\xff\x4f\xff\x51"
_SOT = b"\xff\x90"
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, ISO/IEC 18181-1 SizeHeader


@dataclass(frozen=True)
class Codestream:
    """``samples`` and ``precision`` are 0 where the head does not say."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool | None = None  # JPEG, JPEG-LS and JPEG XL do not say
    subsampled: bool = False  # JPEG: its components have several sizes
    ended: bool = True  # JPEG, JPEG-LS: an end marker follows, which coded data cannot contain


def inspect(frame: bytes) -> Codestream | None:
    """Of JPEG, JPEG-LS, JPEG 2000, HTJ2K and JPEG XL; None where it is none of these or its header is damaged."""
    try:
        if frame[:2] == b"\xff\xd8":
            return _jpeg(frame)
        if frame[:2] == b"\xff\x0a" or frame[4:8] == b"JXL ":
            return _jpeg_xl(frame)
        start = frame.find(_SOC_SIZ, 0, 4096)
        return _jpeg_2000(frame, start) if start >= 0 else None
    except (struct.error, IndexError):
        return None


def unwrapped(frame: bytes) -> bytes:
    """A JPEG 2000 stream without the JP2 boxes that some writers put around it against PS3.5 A.4.4; others as they are.

    pydicom 3.0.2 walks the boxes by their lengths and never ends where one is zero.
    """
    start = frame.find(_SOC_SIZ, 0, 4096) if frame[4:8] == b"jP  " else 0
    return frame[start:] if start > 0 else frame


def completed(frame: bytes) -> bytes:
    """A JPEG 2000 stream with the end marker that its writer forgot, where every tile part is as long as it says
    (ISO/IEC 15444-1 A.4.2): nothing else is missing, and openjpeg refuses it. Others as they are."""
    if frame[:4] != _SOC_SIZ or b"\xff\xd9" in frame[-4:]:
        return frame
    at = 2
    try:
        while frame[at : at + 2] != _SOT:
            at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
        while frame[at : at + 2] == _SOT:
            length = struct.unpack_from(">I", frame, at + 6)[0]
            if length < 14:  # 0: whatever follows up to the end marker
                return frame
            at += length
    except struct.error:
        return frame
    whole = frame[at:] == b"\0" or (at == len(frame) and frame[-1] != 0)  # a last 0 could stand for a lost byte
    return frame[:at] + b"\xff\xd9" if whole else frame


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
            factors = frame[at + 11 : at + 10 + 3 * samples : 3]  # one byte a component
            ended = frame.rfind(b"\xff\xd9", at) >= 0
            return Codestream(rows, columns, samples, precision, subsampled=len(set(factors)) > 1, ended=ended)
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def _jpeg_2000(frame: bytes, start: int) -> Codestream:
    x1, y1, x0, y0 = struct.unpack_from(">4I", frame, start + 8)
    samples, depth = struct.unpack_from(">HB", frame, start + 40)
    return Codestream(y1 - y0, x1 - x0, samples, (depth & 0x7F) + 1, bool(depth & 0x80))


def _jpeg_xl(frame: bytes) -> Codestream | None:
    """The size header (ISO/IEC 18181-1): least significant bit first, behind the signature, bare or in a box."""
    at = frame.find(b"\xff\x0a", 0, 4096)
    if at < 0:
        return None
    word, used = int.from_bytes(frame[at + 2 : at + 18], "little"), 0

    def bits(count: int) -> int:
        nonlocal used
        used += count
        return word >> (used - count) & ((1 << count) - 1)

    def length() -> int:
        return 8 * (bits(5) + 1) if small else bits((9, 13, 18, 30)[bits(2)]) + 1

    small = bool(bits(1))
    rows = length()
    ratio = bits(3)
    columns = length() if ratio == 0 else rows * _RATIOS[ratio - 1][0] // _RATIOS[ratio - 1][1]
    return Codestream(rows, columns, 0, 0)
