"""Where the frames of a compressed pixel element lie (PS3.5 A.4), from the heads of its items: nothing is taken in."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from hilum.data.ledger import Rejected

MOST = 1 << 20  # fragments
_ITEM, _DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
Pieces = tuple[tuple[int, int], ...]
"""(offset in the file, length) of the fragments that make a frame."""


@dataclass(frozen=True)
class Fragments:
    """``table`` is the Basic Offset Table: where frames start, counted from the first fragment's item."""

    offsets: array[int]  # of the values, in the file
    lengths: array[int]
    table: tuple[int, ...]
    delimited: bool

    def __len__(self) -> int:
        return len(self.offsets)

    def pieces(self, start: int, stop: int) -> Pieces:
        return tuple(zip(self.offsets[start:stop], self.lengths[start:stop], strict=True))


def fragments_of(file: BinaryIO, at: int, size: int) -> Fragments:
    """Items from ``at`` to the delimiter, each whole. :class:`Rejected` where one is cut, or is no item."""
    offsets, lengths, table, number = array("Q"), array("Q"), (), file.fileno()
    first, delimited = True, False
    while at + 8 <= size:
        group, element, length = struct.unpack("<HHI", os.pread(number, 8, at))
        if (group, element) == _DELIMITER:
            delimited = True
            break
        if (group, element) != _ITEM:
            raise Rejected("parse_error", "its compressed pixels are not a sequence of items")
        if at + 8 + length > size:
            raise Rejected("truncated_pixels", "the file ends inside a compressed frame")
        if first:
            raw = os.pread(number, min(length, 4 * MOST) // 4 * 4, at + 8)
            table, first = struct.unpack(f"<{len(raw) // 4}I", raw), False
        else:
            offsets.append(at + 8)
            lengths.append(length)
            if len(offsets) > MOST:
                raise Rejected("resource_limit", f"its pixels are in more than {MOST} pieces")
        at += 8 + length
    if first:
        raise Rejected("truncated_pixels", "the file ends before its compressed pixels")
    return Fragments(offsets, lengths, table, delimited)


def frames_of(
    file: BinaryIO, fragments: Fragments, frames: int, extended: tuple[bytes, bytes] | None = None
) -> Sequence[Pieces]:
    """The pieces of each frame: by the extended table, else the basic one, else one fragment a frame, else by the
    signature that opens a stream, else by the marker that ends it. There may be more or fewer than ``frames``;
    :class:`Rejected` where nothing tells."""
    if extended is not None:
        return _extended(fragments, *extended)
    count = len(fragments)
    if not count:
        return []
    if len(fragments.table) > 1 or (fragments.table and frames == 1):
        found = _tabled(fragments)
        if found is not None:
            return found
    if count <= frames:
        return [fragments.pieces(i, i + 1) for i in range(count)]
    begun = _begun(file, fragments)
    if frames <= 1 or len(begun) >= frames:  # one frame may be all that the header knows of several
        return begun
    return _ended(file, fragments)


def _extended(fragments: Fragments, starts: bytes, lengths: bytes) -> Sequence[Pieces]:
    """PS3.3 C.7.6.3.1.8: one fragment a frame; each must be one that is there."""
    if len(starts) != len(lengths) or len(starts) % 8 or not fragments:
        raise Rejected("inconsistent_attributes", "its extended offset tables do not agree")
    origin = fragments.offsets[0] - 8
    known = dict(zip(fragments.offsets, fragments.lengths, strict=True))
    found: list[Pieces] = []
    for start, length in zip(*(struct.unpack(f"<{len(raw) // 8}Q", raw) for raw in (starts, lengths)), strict=True):
        at = origin + start + 8
        if length > known.get(at, -1):
            raise Rejected("inconsistent_attributes", "its extended offsets point at no fragment")
        found.append(((at, length),))
    if len(set(found)) < len(found):
        raise Rejected("inconsistent_attributes", "its extended offsets name a fragment twice")
    return found


def _tabled(fragments: Fragments) -> Sequence[Pieces] | None:
    """By the Basic Offset Table; None where it does not point at fragments, as some writers leave it."""
    origin = fragments.offsets[0] - 8
    place = {at - 8 - origin: i for i, at in enumerate(fragments.offsets)}
    starts = [place.get(start, -1) for start in fragments.table]
    if starts[0] != 0 or -1 in starts or any(b <= a for a, b in pairwise(starts)):
        return None
    return [fragments.pieces(a, b) for a, b in zip(starts, [*starts[1:], len(fragments)], strict=True)]


def _begun(file: BinaryIO, fragments: Fragments) -> Sequence[Pieces]:
    """By fragments that begin as a stream does: JPEG and JPEG-LS, JPEG 2000 with or without boxes, JPEG XL, RLE."""
    number, count = file.fileno(), len(fragments)
    heads = [os.pread(number, 12, at) for at in fragments.offsets]
    starts = [0, *(i for i in range(1, count) if _opens(heads[i], heads[0])), count]
    return [fragments.pieces(a, b) for a, b in pairwise(starts)]


def _opens(head: bytes, first: bytes) -> bool:
    if head.startswith((b"\xff\xd8\xff", b"\xff\x4f\xff\x51")) or head[4:8] in (b"jP  ", b"JXL "):
        return True
    if head.startswith(b"\xff\x0a"):  # two bytes occur by chance: the size of the first frame must follow them, too
        return head[:6] == first[:6]
    rle = head[4:8] == b"\x40\0\0\0"  # PS3.5 G.5: the first segment follows the header of 64 bytes
    return rle and 1 <= head[0] <= 15 and head[1:4] == b"\0\0\0"


def _ended(file: BinaryIO, fragments: Fragments) -> Sequence[Pieces]:
    """By the end-of-image marker in the last bytes of a fragment, which JPEG, JPEG-LS and JPEG 2000 share."""
    found, start, number = [], 0, file.fileno()
    for i, (at, length) in enumerate(fragments.pieces(0, len(fragments))):
        tail = min(length, 10)
        if b"\xff\xd9" in os.pread(number, tail, at + length - tail):
            found.append(fragments.pieces(start, i + 1))
            start = i + 1
    if start < len(fragments):
        found.append(fragments.pieces(start, len(fragments)))
    return found


def joined(file: BinaryIO, pieces: Pieces) -> bytes:
    """The stream of one frame."""
    data = b"".join(os.pread(file.fileno(), length, at) for at, length in pieces)
    if len(data) < sum(length for _, length in pieces):
        raise Rejected("truncated_pixels", "the file ends inside a compressed frame")
    return data
