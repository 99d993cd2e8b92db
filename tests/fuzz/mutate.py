"""Damage of the kinds that archives and attackers do to a file: each mutant is decided by its number alone."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

_LENGTHS = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF)
_SIZES = (0, 1, 2, 255, 4096, 32768, 65535)
_FIELDS = tuple(
    struct.pack("<HH", 0x28, e) + b"US\x02\0" for e in (0x02, 0x04, 0x06, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103)
)
_MARKERS = (b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xf7", b"\xff\x51", b"\xff\x52", b"\xff\xda", b"\xff\x0a")
_SEQUENCE = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
Random = np.random.Generator


def mutant(seeds: list[bytes], number: int, run: int = 0) -> bytes:
    """The ``number``-th mutant: a seed with one to four kinds of damage."""
    rng = np.random.default_rng([run, number])
    data = bytearray(seeds[number % len(seeds)])
    for _ in range(1 + int(rng.integers(4))):
        kind = KINDS[int(rng.integers(len(KINDS)))]
        data = kind(data, rng, seeds)
        if len(data) < 8:
            break
    return bytes(data)


def _header(data: bytearray, rng: Random, seeds: list[bytes]) -> bytearray:
    """Any bytes of the first two kilobytes behind the preamble."""
    for at in rng.integers(min(128, len(data) - 1), min(len(data), 2600), 1 + int(rng.integers(6))):
        data[at] = int(rng.integers(256))
    return data


def _length(data: bytearray, rng: Random, seeds: list[bytes]) -> bytearray:
    """The length of an element or sequence in the header."""
    places = [
        i
        for i in range(132, min(len(data) - 12, 20000))
        if data[i : i + 2].isalpha() and data[i + 2 : i + 4] == b"\0\0"
    ]
    if places:
        at = places[int(rng.integers(len(places)))] + 4
        data[at : at + 4] = struct.pack("<I", _LENGTHS[int(rng.integers(len(_LENGTHS)))])
    return data


def _item(data: bytearray, rng: Random, seeds: list[bytes]) -> bytearray:
    """The length of an item, or a delimiter: sequences and fragments."""
    mark = (b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xfe\xff\x0d\xe0")[int(rng.integers(3))]
    places = _all(data, mark)
    if places:
        at = places[int(rng.integers(len(places)))]
        if rng.integers(3):
            value = _LENGTHS[int(rng.integers(len(_LENGTHS)))] if rng.integers(2) else int(rng.integers(1 << 16))
            data[at + 4 : at + 8] = struct.pack("<I", value)
        else:
            del data[at : at + 8]
    return data


def _size(data: bytearray, rng: Random, seeds: list[bytes]) -> bytearray:
    """Rows, Columns, bits and samples that cannot be, or are too large."""
    field = _FIELDS[int(rng.integers(len(_FIELDS)))]
    at = data.find(field)
    if at < 0:
        at = data.find(field[:4] + b"\x02\0\0\0")
    if at >= 0:
        data[at + 8 : at + 10] = struct.pack("<H", _SIZES[int(rng.integers(len(_SIZES)))])
    return data


def _stream(data: bytearray, rng: Random, seeds: list[bytes]) -> bytearray:
    """Bytes of the last half, where pixels and codestreams lie."""
    half = len(data) // 2
    for at in rng.integers(half, len(data), 1 + int(rng.integers(8))):
        data[at] = int(rng.integers(256))
    return data


def _marker(data: bytearray, rng: Random, seeds: list[bytes]) -> bytearray:
    """The segment of a codestream that says how large it is."""
    places = _all(data, _MARKERS[int(rng.integers(len(_MARKERS)))])
    if places:
        at = places[-1 - int(rng.integers(min(2, len(places))))] + 2
        end = min(len(data), at + 24)
        for i in rng.integers(at, max(at + 1, end), 3):
            if i < len(data):
                data[i] = (0, 1, 0x7F, 0xFF, int(rng.integers(256)))[int(rng.integers(5))]
    return data


def _cut(data: bytearray, rng: Random, seeds: list[bytes]) -> bytearray:
    return data[: int(rng.integers(1, len(data)))]


def _splice(data: bytearray, rng: Random, seeds: list[bytes]) -> bytearray:
    """The head of one file and the tail of another."""
    other = seeds[int(rng.integers(len(seeds)))]
    return data[: int(rng.integers(1, len(data)))] + other[int(rng.integers(len(other))) :]


def _nest(data: bytearray, rng: Random, seeds: list[bytes]) -> bytearray:
    """Sequences in sequences."""
    at = data.find(b"\x10\x00\x20\x00")
    return data if at < 0 else data[:at] + _SEQUENCE * int(rng.integers(1, 400)) + data[at:]


def _repeat(data: bytearray, rng: Random, seeds: list[bytes]) -> bytearray:
    start = int(rng.integers(len(data)))
    piece = data[start : start + int(rng.integers(1, 200))]
    return data[:start] + piece * int(rng.integers(1, 20)) + data[start:]


def _all(data: bytearray, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0 and len(found) < 1000:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


KINDS: tuple[Callable[[bytearray, Random, list[bytes]], bytearray], ...] = (
    *(_header, _length, _length, _item, _item, _size, _size, _stream, _stream, _marker, _marker),
    *(_cut, _splice, _nest, _repeat),
)
