"""Finds the elements of a data set by their lengths (PS3.5 section 7), interpreting only those that are asked for.

An index needs some thirty of two hundred elements, so the others are stepped over, not turned into objects. Nesting is
followed with a stack: its depth is a limit, never a crash. A length that reaches past the end of the file ends the walk
before a byte of it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement

from hilum.data.ledger import Rejected

UNDEFINED = 0xFFFFFFFF
LONGEST = 1 << 25  # bytes of a wanted value that are taken into memory
_BLOCK = 1 << 14
# True: the length has 32 bits and stands behind two reserved bytes (PS3.5 7.1.2).
_LONG = dict.fromkeys(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split(), True)
_STOP, _CLOSE = -1, -2
_READS = {o: tuple(struct.Struct(f"{o}{f}").unpack_from for f in ("4s2sH", "4sI", "I")) for o in "<>"}
_VRS = _LONG | dict.fromkeys(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split(), False)
_NAMES = {vr: vr.decode() for vr in _VRS}


class Cut(Exception):
    """The data end inside an element."""


@dataclass(slots=True)
class Source:
    """A file, or a data set in memory, read a block at a time."""

    file: BinaryIO
    size: int
    block: bytes = b""
    start: int = 0  # of the block

    def load(self, at: int) -> None:
        self.file.seek(at)
        self.block, self.start = self.file.read(_BLOCK), at

    def take(self, at: int, length: int) -> bytes:
        """``length`` bytes; :class:`Cut` where they are not all there."""
        offset = at - self.start
        if offset >= 0 and offset + length <= len(self.block):
            return self.block[offset : offset + length]
        if at + length > self.size:
            raise Cut
        if length < _BLOCK:
            self.load(at)
            return self.block[:length]
        self.file.seek(at)
        return self.file.read(length)


@dataclass(slots=True)
class Place:
    """An element whose value was not read."""

    tag: bytes
    vr: bytes | None
    at: int  # of its value
    length: int


@dataclass(slots=True)
class Walk:
    """What a walk found: raw elements by tag (a plain number in them, too), where and why it ended."""

    elements: dict[int, RawDataElement] = field(default_factory=dict)
    at: int = 0
    stop: Place | None = None  # the element it stopped at
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a data set is written. ``order`` is ``<`` or ``>``."""

    implicit: bool
    order: str

    def tag(self, tag: int) -> bytes:
        return struct.pack(f"{self.order}HH", tag >> 16, tag & 0xFFFF)


def sought(order: str, tags: Iterable[int], *, stops: Iterable[int] = ()) -> dict[bytes, int]:
    """What a walk looks for, by the four bytes that open an element: elements to take, and those to stop at."""
    encoding = Encoding(False, order)
    table = {encoding.tag(tag): tag for tag in tags} | {encoding.tag(tag): _STOP for tag in stops}
    return table | {encoding.tag(0xFFFEE00D): _CLOSE}


def walk(
    source: Source,
    at: int,
    encoding: Encoding,
    table: Mapping[bytes, int],
    *,
    group: bytes | None = None,
    depth: int = 32,
) -> Walk:
    """Elements of ``table`` (see :func:`sought`) from ``at`` on, until one to stop at, another ``group``, or the end.

    An element whose VR is none is read as implicit, as some writers switch in mid-file. :class:`Rejected` where
    sequences nest deeper than ``depth``, are no items, or a wanted value is longer than LONGEST.
    """
    implicit, size, little = encoding.implicit, source.size, encoding.order == "<"
    explicit_of, implicit_of, long_of = _READS[encoding.order]
    kinds = table.get
    found = Walk(at=at)
    taken, vrs, block, start = found.elements, _VRS.get, source.block, source.start
    known = len(block) - 12  # the last offset at which the head of an element is in the block
    try:
        while at + 8 <= size:
            offset = at - start
            if offset < 0 or offset > known:
                source.load(at)
                block, start, offset = source.block, source.start, 0
                known = len(block) - 12
            plain, value = implicit, at + 8
            if implicit:
                vr = None
                tag, length = implicit_of(block, offset)
            else:
                tag, vr, length = explicit_of(block, offset)
                long = vrs(vr)
                if long:
                    value += 4
                    if value > size:
                        raise Cut
                    length = long_of(block, offset + 8)[0]
                elif long is None and not b"AA" <= vr <= b"ZZ":
                    vr, plain = None, True
                    length = long_of(block, offset + 4)[0]
            number = kinds(tag)
            if number is None:
                if group is not None and not tag.startswith(group):
                    found.stop = Place(tag, vr, value, length)
                    break
                if length != UNDEFINED:
                    at = value + length
                else:
                    at = past(source, value, Encoding(plain or vr == b"UN", encoding.order), depth)
                if at > size:
                    raise Cut
                continue
            if number == _STOP:
                found.stop = Place(tag, vr, value, length)
                break
            if number == _CLOSE:
                at = value
                break
            if length == UNDEFINED:
                plain = plain or vr == b"UN"  # PS3.5 6.2.2: such a sequence is implicit
                at = past(source, value, Encoding(plain, encoding.order), depth, into=True)
                length, vr = at - 8 - value, b"SQ"
            else:
                at = value + length
                if at > size:
                    raise Cut
                if length >= 8 and _is_sequence(vr, number):
                    past(source, value, Encoding(plain, encoding.order), depth, end=at, into=True)
            if length > LONGEST:
                raise Rejected("resource_limit", f"one of its values has {length} bytes, more than the limit")
            offset = value - start
            inside = offset >= 0 and offset + length <= len(block)
            raw = block[offset : offset + length] if inside else source.take(value, length)
            name = None if vr is None else _NAMES.get(vr) or vr.decode("latin-1")
            taken[number] = RawDataElement(number, name, length, raw, value, plain, little)
    except Cut:
        found.cut = True
    found.at = at
    return found


def past(source: Source, at: int, encoding: Encoding, depth: int, *, end: int | None = None, into: bool = False) -> int:
    """Where the sequence ends whose first item stands at ``at``: at ``end``, or after its delimiter.

    ``into``: look into items and sequences of stated length, too, which is needed where they are parsed later.
    """
    order, size = encoding.order, source.size
    item, item_end, sequence_end = (encoding.tag(t) for t in (0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD))
    head = struct.Struct(f"{order}4sI").unpack
    stack: list[tuple[bool, int | None, bool]] = [(True, end, encoding.implicit)]  # (a sequence, end, implicit)
    while stack:
        sequence, close, implicit = stack[-1]
        if close is not None and at >= close:
            stack.pop()
            continue
        tag, length = head(source.take(at, 8))
        at += 8
        if tag == (sequence_end if sequence else item_end):
            stack.pop()
        elif sequence:
            if tag != item:
                raise Rejected("parse_error", "a sequence of its header is no list of items")
            if length == UNDEFINED or into:
                stack.append((False, None if length == UNDEFINED else _within(at + length, close), implicit))
            else:
                at += length
        else:
            vr = None if implicit else source.take(at - 4, 2)
            long = False if vr is None else _VRS.get(vr)
            if long:
                length = struct.unpack(f"{order}I", source.take(at, 4))[0]
                at += 4
            elif vr is not None and (long is False or b"AA" <= vr <= b"ZZ"):
                length = struct.unpack(f"{order}H", source.take(at - 2, 2))[0]
            else:
                vr = None
            plain = vr is None or (vr == b"UN" and length == UNDEFINED)
            number = int.from_bytes(tag[1::-1] + tag[:1:-1] if order == "<" else tag, "big")
            if length == UNDEFINED:
                stack.append((True, None, plain))
            elif into and length >= 8 and _is_sequence(vr, number):
                stack.append((True, _within(at + length, close), plain))
            else:
                at = _within(at + length, close)
        if len(stack) > 2 * depth:
            raise Rejected("resource_limit", f"its sequences nest deeper than {depth} levels")
        if at > size:
            raise Cut
    return at


def _within(end: int, outer: int | None) -> int:
    """An item cannot be longer than what it lies in, whatever it says."""
    return end if outer is None else min(end, outer)


def _is_sequence(vr: bytes | None, tag: int) -> bool:
    if vr is not None:
        return vr == b"SQ"
    try:
        return str(dictionary_VR(tag)) == "SQ"
    except KeyError:
        return False
