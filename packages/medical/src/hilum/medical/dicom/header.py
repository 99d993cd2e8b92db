"""Reads a DICOM header: what an image reader needs and nothing else, never a person's name.

The pixel element is located, not read, so limits are checked before memory is asked for.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from hilum.core.types import Limits
from hilum.data.ledger import Rejected
from hilum.medical.dicom.terms import ALLOWED

IDENTIFIERS = "SOPInstanceUID StudyInstanceUID SeriesInstanceUID AccessionNumber PatientID IssuerOfPatientID"
ATTRIBUTES = """SOPClassUID Modality ImageType BodyPartExamined ViewPosition ImageLaterality Laterality
    PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing FrameTime FrameTimeVector GridFrameOffsetVector Units
    SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames Rows Columns BitsAllocated BitsStored
    HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleIntercept RescaleSlope RescaleType
    WindowCenter WindowWidth WindowCenterWidthExplanation VOILUTFunction ModalityLUTSequence VOILUTSequence
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData PresentationLUTShape SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence ExtendedOffsetTable ExtendedOffsetTableLengths"""
PIXEL_TAGS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_TAGS = [tag for k in f"{IDENTIFIERS} {ATTRIBUTES}".split() if (tag := tag_for_keyword(k)) is not None]
_EXECUTABLE = (b"MZ", b"\x7fELF", b"#!", b"\xfe\xed\xfa", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
_LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"SQ", b"UT", b"UC", b"UR", b"SV", b"UV")
UNDEFINED = 0xFFFFFFFF
DICOMDIR = "1.2.840.10008.1.3.10"


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
    data: Dataset
    syntax: str
    size: int  # bytes from which the pixel element can come
    pixels: Element | None
    sop_class: str
    cut: bool = False  # the file ends inside an element before the pixels
    inflated: bytes | None = None  # the data set of a deflated file
    problems: list[str] = field(default_factory=list)

    @property
    def little_endian(self) -> bool:
        return self.syntax != str(ExplicitVRBigEndian)

    def note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def has(self, keyword: str, *, data: Dataset | None = None) -> bool:
        return keyword in (self.data if data is None else data)

    def value(self, keyword: str, *, data: Dataset | None = None) -> Any:
        """The value, or None where it is absent, empty or damaged."""
        try:
            found = (self.data if data is None else data).get(keyword)
        except Exception:
            self.note(f"bad_value:{keyword}")
            return None
        return None if found is None or found == "" else found

    def numbers(self, keyword: str, *, data: Dataset | None = None) -> list[float]:
        """All numbers of an element; decimal commas, "12.0" for an integer and overlong strings are read."""
        source = self.data if data is None else data
        if keyword not in source:
            return []
        raw = source.get_item(keyword)
        text = getattr(raw, "value", None)
        if isinstance(raw, RawDataElement) and isinstance(text, bytes) and dictionary_VR(keyword) in ("DS", "IS"):
            parts = [p.strip(" \0\t").replace(",", ".") for p in text.decode("latin-1").split("\\")]
        else:
            parts = _parts(self.value(keyword, data=data), self.little_endian)
        try:
            return [float(p) for p in parts if p not in ("", None)]
        except (TypeError, ValueError):
            self.note(f"bad_value:{keyword}")
            return []

    def shorts(self, keyword: str, *, signed: bool, data: Dataset | None = None) -> list[int]:
        """Values of an element that is US or SS by what another one says, read as 16 bits."""
        words = [int(v) & 0xFFFF for v in self.numbers(keyword, data=data)]
        return [w - 0x10000 if signed and w > 0x7FFF else w for w in words]

    def number(self, keyword: str, *, data: Dataset | None = None) -> float | None:
        values = self.numbers(keyword, data=data)
        return values[0] if values else None

    def integer(self, keyword: str) -> int | None:
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

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        if self.inflated is not None:
            yield io.BytesIO(self.inflated)
        else:
            with self.path.open("rb") as file:
                yield file


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
    """Parse up to the pixel element. Raises :class:`Rejected`; ``RecursionError`` where sequences nest too deeply."""
    with path.open("rb") as file, quiet():
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(132)
        if head[128:] == b"DICM":
            if head.startswith(_EXECUTABLE):
                raise Rejected("unsafe_preamble", "its preamble is that of a program")
        else:
            if not looks_like_dicom(head):
                raise Rejected("not_dicom", "no DICOM prefix, and no data set without one")
            file.seek(0)
        try:
            return _parse(path, file, size, limits, bare=head[128:] != b"DICM")
        except (Rejected, RecursionError, MemoryError):
            raise
        except Exception as error:
            raise Rejected("parse_error", f"its header cannot be parsed ({type(error).__name__})") from None


def _parse(path: Path, file: BinaryIO, size: int, limits: Limits, *, bare: bool) -> Header:
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    named = str(meta.get("TransferSyntaxUID") or "").strip(" \0")
    syntax = named or _guess(file)
    inflated = None
    if syntax == DeflatedExplicitVRLittleEndian:
        inflated = _inflate(file.read(), limits)
        file, size = io.BytesIO(inflated), len(inflated)
    implicit = syntax == ImplicitVRLittleEndian
    little = syntax != ExplicitVRBigEndian
    data = read_dataset(
        file, implicit, little, stop_when=lambda tag, vr, length: tag in PIXEL_TAGS, specific_tags=_TAGS
    )
    at = file.tell()
    pixels = _pixel_element(file, implicit, "<" if little else ">")
    sop_class = str(data.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "").strip(" \0")
    last = max(data.values(), key=lambda e: e.tag, default=None)
    short = isinstance(last, RawDataElement) and len(last.value or b"") < last.length != UNDEFINED
    header = Header(
        path, data, syntax, size, pixels, sop_class, cut=pixels is None and (at > size or short), inflated=inflated
    )
    if bare:
        header.note("no_preamble")
    if not named:
        header.note("guessed_transfer_syntax")
    return header


def _guess(file: BinaryIO) -> str:
    """Of a data set without a transfer syntax: explicit where a VR follows the first tag, big endian by its group."""
    head = file.read(6)
    file.seek(-len(head), 1)
    if len(head) < 6 or not re.fullmatch(rb"[A-Z]{2}", head[4:6]):
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRBigEndian if struct.unpack("<H", head[:2])[0] >= 0x0400 else ExplicitVRLittleEndian)


def _inflate(data: bytes, limits: Limits) -> bytes:
    most = min(limits.max_bytes, int(len(data) * limits.inflate_ratio))
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = engine.decompress(data, most)
    except zlib.error:
        raise Rejected("parse_error", "its deflated data set is damaged") from None
    if engine.unconsumed_tail:
        raise Rejected("resource_limit", "its deflated data set unpacks to more than the limit")
    if not engine.eof:
        raise Rejected("truncated_pixels", "its deflated data set ends too early")
    return out


def _pixel_element(file: BinaryIO, implicit: bool, order: str) -> Element | None:
    head = file.read(8)
    if len(head) < 8:
        return None
    group, element = struct.unpack(f"{order}HH", head[:4])
    keyword = PIXEL_TAGS.get(group << 16 | element)
    if keyword is None:
        return None
    if implicit or not re.fullmatch(rb"[A-Z]{2}", head[4:6]):
        vr, length = "OW", struct.unpack(f"{order}I", head[4:])[0]
    elif head[4:6] in _LONG:
        more = file.read(4)
        if len(more) < 4:
            return None
        vr, length = head[4:6].decode(), struct.unpack(f"{order}I", more)[0]
    else:
        vr, length = head[4:6].decode(), struct.unpack(f"{order}H", head[6:])[0]
    return Element(keyword, vr, file.tell(), None if length == UNDEFINED else length)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that pydicom warns of or logs may leave: its messages quote header values."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
