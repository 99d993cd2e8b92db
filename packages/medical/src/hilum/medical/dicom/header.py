"""Reads a DICOM header: what an image reader needs and nothing else, never a person's name.

The pixel element is located, not read, so limits are checked before memory is asked for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from hilum.core.types import Limits
from hilum.data.ledger import Rejected
from hilum.medical.dicom.codecs import GE_PRIVATE
from hilum.medical.dicom.elements import UNDEFINED, Encoding, Place, Source, sought, walk
from hilum.medical.dicom.tags import PIXELS, TAGS, VRS, wanted
from hilum.medical.dicom.terms import ALLOWED

_EXECUTABLE = (b"MZ", b"\x7fELF", b"#!", b"\xfe\xed\xfa", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_META = sought("<", (0x00020002, 0x00020010))  # class and transfer syntax
_TEXT = frozenset(("AE", "AS", "CS", "LO", "SH", "UI"))
_DECIMAL = frozenset(("DS", "IS"))
_BINARY = frozenset(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"))
_WORDS = frozenset(
    (listed, vr) for listed in ("US", "US or SS") for vr in (None, "US", "SS") if (listed, vr) != ("US", "SS")
)
_PLAIN = re.compile(rb"[\x20-\x7e]*\Z")  # the same characters in every character set, none that switches sets
_OTHER = object()  # what _plain leaves to pydicom
_LOGGER = logging.getLogger("pydicom")
INFLATED = 1 << 28  # bytes of a deflated data set that are taken into memory
_SMALL = 1 << 26  # of which so many are not worth a suspicion


@dataclass
class Element:
    """Where the pixel element is: its value starts at ``offset``; ``length`` is None where it is encapsulated."""

    keyword: str
    vr: str
    offset: int
    length: int | None


@dataclass
class Header:
    """Attributes with faults tolerated: what cannot be read is None and named in ``problems`` (keywords only)."""

    path: Path
    elements: dict[int, RawDataElement]
    syntax: str
    size: int  # bytes from which the pixel element can come
    pixels: Element | None
    sop_class: str
    cut: bool = False  # the file ends inside an element before the pixels
    inflated: bytes | None = None  # the data set of a deflated file
    problems: list[str] = field(default_factory=list)
    _values: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def little_endian(self) -> bool:
        return self.syntax != str(ExplicitVRBigEndian)

    @property
    def big_endian_pixels(self) -> bool:
        return self.syntax in (str(ExplicitVRBigEndian), GE_PRIVATE)

    @cached_property
    def data(self) -> Dataset:
        """What was read as pydicom's data set, which converts an element when it is asked for."""
        charset = self.elements.get(0x00080005)
        names = (charset.value or b"").decode("latin-1").strip(" \0").split("\\") if charset else []
        try:
            encodings = convert_encodings(names[0] if len(names) == 1 else names) if any(names) else "iso8859"
        except Exception:
            encodings = "iso8859"
        data = Dataset({(t := BaseTag(tag)): raw._replace(tag=t) for tag, raw in self.elements.items()})
        implicit = any(e.is_implicit_VR for e in self.elements.values())
        data.set_original_encoding(implicit, self.little_endian, encodings)
        return data

    def note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def has(self, keyword: str, *, data: Dataset | None = None) -> bool:
        if data is None or data is self.__dict__.get("data"):
            return TAGS[keyword] in self.elements
        return keyword in data

    def value(self, keyword: str, *, data: Dataset | None = None) -> Any:
        """The value, or None where it is absent, empty or damaged."""
        if data is not None and data is not self.__dict__.get("data"):
            return self._converted(keyword, data)
        if keyword not in self._values:
            tag = TAGS[keyword]
            raw = self.elements.get(tag)
            plain = _plain(raw, VRS.get(tag)) if raw is not None else None
            self._values[keyword] = self._converted(keyword, self.data) if plain is _OTHER else plain
        return self._values[keyword]

    def _converted(self, keyword: str, data: Dataset) -> Any:
        try:
            found = data.get(keyword)
        except Exception:
            self.note(f"bad_value:{keyword}")
            return None
        if found is None or found in ("", b""):
            return None
        if not isinstance(found, Items) and _listed(TAGS[keyword]) == "SQ":
            self.note(f"bad_value:{keyword}")
            return None
        return found

    def numbers(self, keyword: str, *, data: Dataset | None = None, gaps: bool = False) -> list[float]:
        """All numbers of an element; decimal commas, "12.0" for an integer and overlong strings are read.

        ``gaps``: empty ones between others are NaN, so that the rest keep their index.
        """
        if data is None or data is self.__dict__.get("data"):
            raw = self.elements.get(TAGS[keyword])
        else:
            raw = data.get_item(keyword) if keyword in data else None
        if raw is None:
            return []
        text = getattr(raw, "value", None)
        binary = getattr(raw, "VR", None) in _BINARY
        if (
            isinstance(raw, RawDataElement)
            and isinstance(text, bytes)
            and not binary
            and _listed(TAGS[keyword]) in _DECIMAL
        ):
            try:
                return [float(part) for part in text.split(b"\\")]
            except ValueError:  # not as the standard wants it
                pass
            parts = [p.strip(" \0\t").replace(",", ".") for p in text.decode("latin-1").split("\\")]
        else:
            parts = _parts(self.value(keyword, data=data), self.little_endian)
        if gaps and len(parts) > 1:
            parts = ["nan" if p in ("", None) else p for p in parts]
        try:
            return [float(p) for p in parts if p not in ("", None)]
        except (TypeError, ValueError):
            self.note(f"bad_value:{keyword}")
            return []

    def shorts(self, keyword: str, *, signed: bool, data: Dataset | None = None) -> list[int]:
        """Values of an element that is US or SS by what another one says, read as 16 bits."""
        values = self.numbers(keyword, data=data)
        if not all(map(math.isfinite, values)):
            self.note(f"bad_value:{keyword}")
            return []
        words = [int(v) & 0xFFFF for v in values]
        return [w - 0x10000 if signed and w > 0x7FFF else w for w in words]

    def number(self, keyword: str, *, data: Dataset | None = None) -> float | None:
        values = self.numbers(keyword, data=data)
        return values[0] if values else None

    def integer(self, keyword: str) -> int | None:
        plain = self.value(keyword) if VRS.get(TAGS[keyword]) == "US" else None
        if type(plain) is int:
            return plain
        value = self.number(keyword)
        if value is None or not value.is_integer():
            if value is not None:
                self.note(f"bad_value:{keyword}")
            return None
        return int(value)

    def code(self, keyword: str, *, data: Dataset | None = None) -> str | None:
        """A listed code in upper case; what is not listed is dropped and noted, since anything could stand there."""
        value = self.value(keyword, data=data)
        first = value[0] if hasattr(value, "append") and value else value
        text = str(first or "").strip(" \0").upper()
        text = text.replace(" ", "") if keyword == "BodyPartExamined" else text
        if text and text not in ALLOWED[keyword]:
            if text != "US":  # of a unit: unspecified
                self.note(f"unlisted:{keyword}")
            return None
        return text or None

    def identifier(self, keyword: str) -> str | None:
        value = self.value(keyword)
        return None if value is None else str(value).strip(" \0") or None

    def functional(self, frame: int, keyword: str) -> Dataset | None:
        """The item of a functional group that holds for a frame: its own, else the shared one."""
        for name, at in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
            groups = self.value(name)
            if groups is not None and at < len(groups):
                inner = self.value(keyword, data=groups[at])
                if inner:
                    item: Dataset = inner[0]
                    return item
        return None

    def private(self, group: int, creator: str, offset: int, *, data: Dataset | None = None) -> Any:
        """A maker's own element (PS3.5 7.8): ``offset`` in whatever block its creator has reserved; None if absent."""
        try:
            return (self.data if data is None else data).private_block(group, creator)[offset].value
        except Exception:
            return None

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        if self.inflated is not None:
            yield io.BytesIO(self.inflated)
        else:
            with self.path.open("rb") as file:
                yield file


def _listed(tag: int) -> str:
    return VRS.get(tag) or str(dictionary_VR(tag))


def _plain(raw: RawDataElement, listed: str | None) -> Any:
    """A value that needs no character set and no conversion, or _OTHER: what pydicom would give, without its cost."""
    data = raw.value
    if not data:
        return None if raw.length == 0 and listed != "SQ" else _OTHER
    if listed in _TEXT and (raw.VR is None or raw.VR in _TEXT):
        text = data.rstrip(b"\0 ")
        if not _PLAIN.match(text):
            return _OTHER
        parts = text.decode("ascii").split("\\")
        return (parts[0] or None) if len(parts) == 1 else [p.rstrip(" ") for p in parts]
    if (listed, raw.VR) in _WORDS and len(data) % 2 == 0:
        kind = "h" if raw.VR == "SS" else "H"  # left open in an implicit file: see Header.shorts
        words = struct.unpack(f"{'<' if raw.is_little_endian else '>'}{len(data) // 2}{kind}", data)
        return words[0] if len(words) == 1 else list(words)
    return _OTHER


def _parts(value: Any, little_endian: bool) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, bytes):  # US or SS left open: 16-bit words
        return list(struct.unpack(f"{'<' if little_endian else '>'}{len(value) // 2}H", value[: len(value) // 2 * 2]))
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]


def looks_like_dicom(head: bytes) -> float:
    """1 with the DICM prefix; less where the first bytes are a plausible element of a bare data set."""
    if head[128:132] == b"DICM":
        return 1.0
    if len(head) < 16:
        return 0.0
    for order in "<>":
        group, element, length = struct.unpack(f"{order}HHI", head[:8])
        if group not in (0x0002, 0x0008) or element > 0x0100:
            continue
        if re.fullmatch(rb"[A-Z]{2}", head[4:6]) or (order == "<" and length < 1024):
            return 0.6
    return 0.0


def read_header(path: Path, limits: Limits) -> Header:
    """Find what is wanted up to the pixel element. Raises :class:`Rejected`."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        source = Source(file, size)
        source.load(0)
        head = source.block[:132]
        bare = head[128:] != b"DICM"
        if not bare and head.startswith(_EXECUTABLE):
            raise Rejected("unsafe_preamble", "its preamble is that of a program")
        if bare and not looks_like_dicom(head):
            raise Rejected("not_dicom", "no DICOM prefix, and no data set without one")
        try:
            return _parse(path, source, limits, bare=bare)
        except (Rejected, MemoryError, OSError):
            raise
        except Exception as error:
            raise Rejected("parse_error", f"its header cannot be parsed ({type(error).__name__})") from None


def _parse(path: Path, source: Source, limits: Limits, *, bare: bool) -> Header:
    meta = walk(source, 0 if bare else 132, Encoding(False, "<"), _META, group=b"\x02\x00", depth=limits.depth)
    named, at = _uid(meta.elements.get(0x00020010)), meta.at
    opening = source.take(at, 6) if at + 6 <= source.size else b""
    syntax, inflated = named or _guess(opening), None
    if syntax == DeflatedExplicitVRLittleEndian:
        inflated = _inflate(source, at, limits)
        source, at = Source(io.BytesIO(inflated), len(inflated)), 0
        opening = inflated[:6]
    implicit, order = syntax in (ImplicitVRLittleEndian, GE_PRIVATE), ">" if syntax == ExplicitVRBigEndian else "<"
    # As pydicom does: some writers name one encoding and use the other.
    implicit = not re.fullmatch(rb"[A-Z]{2}", opening[4:6]) if len(opening) == 6 else implicit
    found = walk(source, at, Encoding(implicit, order), wanted(order), depth=limits.depth)
    sop_class = _uid(found.elements.get(0x00080016)) or _uid(meta.elements.get(0x00020002))
    pixels = None if found.stop is None else _pixel_element(found.stop, order)
    cut = pixels is None and (found.cut or meta.cut)
    header = Header(path, found.elements, syntax, source.size, pixels, sop_class, cut=cut, inflated=inflated)
    if bare:
        header.note("no_preamble")
    if not named:
        header.note("guessed_transfer_syntax")
    return header


def _uid(raw: RawDataElement | None) -> str:
    return (raw.value or b"").decode("latin-1").strip(" \0") if raw is not None else ""


def _guess(head: bytes) -> str:
    """Of a data set without a transfer syntax: explicit where a VR follows the first tag, big endian by its group."""
    if len(head) < 6 or not re.fullmatch(rb"[A-Z]{2}", head[4:6]):
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRBigEndian if struct.unpack("<H", head[:2])[0] >= 0x0400 else ExplicitVRLittleEndian)


def _inflate(source: Source, at: int, limits: Limits) -> bytes:
    """The data set of a deflated file (PS3.5 A.5), which only exists whole: bounded more tightly than pixels."""
    source.file.seek(at)
    data = source.file.read()
    most = min(limits.max_bytes, max(int(len(data) * limits.inflate_ratio), _SMALL), INFLATED)
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    parts, size = [], 0
    try:
        while data and not engine.eof:
            parts.append(engine.decompress(data, min(most - size + 1, 1 << 24)))
            size += len(parts[-1])
            if size > most:
                raise Rejected("resource_limit", "its deflated data set unpacks to more than the limit")
            data = engine.unconsumed_tail
    except zlib.error:
        raise Rejected("parse_error", "its deflated data set is damaged") from None
    if not engine.eof:
        raise Rejected("truncated_pixels", "its deflated data set ends too early")
    return b"".join(parts)


def _pixel_element(place: Place, order: str) -> Element:
    group, element = struct.unpack(f"{order}HH", place.tag)
    vr = "OW" if place.vr is None else place.vr.decode("latin-1")
    return Element(PIXELS[group << 16 | element], vr, place.at, None if place.length == UNDEFINED else place.length)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that pydicom warns of or logs may leave: its messages quote header values."""
    silent = logging.root.manager.disable >= logging.CRITICAL  # as in a reader process; a change of level costs more
    level = _LOGGER.level
    if not silent:
        _LOGGER.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if not silent:
            _LOGGER.setLevel(level)
