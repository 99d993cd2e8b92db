"""What PS3.15 Annex E asks of each attribute, and what is done where the table leaves a choice or says nothing.

``profile.csv`` holds Table E.1-1 (facts only; edition in its first line), ``required.csv`` the attributes that some
module makes Type 1 or 2, ``terms.txt`` those of PS3.3's terms that images need. An attribute that is not in
the table is kept only where it can carry no free text: numbers, listed terms, listed words.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from pydicom.datadict import DicomDictionary, dictionary_VR, tag_for_keyword

from hilum.core.errors import HilumError, nearest

Action = Literal["remove", "empty", "dummy", "keep", "clean", "uid", "items", "terms", "number", "bulk"]

RETAIN: dict[str, tuple[str, str, str]] = {  # option -> column of profile.csv, CID 7050 code, its meaning
    "dates": ("dates", "113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "dates-shifted": ("dates_shifted", "113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "uids": ("uids", "113110", "Retain UIDs Option"),
    "device": ("device", "113109", "Retain Device Identity Option"),
    "institution": ("institution", "113112", "Retain Institution Identity Option"),
    "patient": ("patient", "113108", "Retain Patient Characteristics Option"),
    "descriptors": ("descriptors", "113105", "Clean Descriptors Option"),
}
BASIC = ("113100", "Basic Application Confidentiality Profile")
PRIVATE = ("113111", "Retain Safe Private Option")
PIXELS = ("113101", "Clean Pixel Data Option")

_NAMES = {  # value representations, and keywords of opaque values that hold nothing but numbers
    "numbers": "DS IS US SS UL SL SV UV FL FD AT",
    "bulk numbers": "OF OD OL OV",
    "times": "DA DT TM",
    "text": "SH LO ST LT UT UC",
    "bulk": """LUTData RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
        AlphaPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
        SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData
        SegmentedAlphaPaletteColorLookupTableData FrameSelectionVector BlendingLookupTableData VectorGridData""",
}
NUMBERS, BULK_NUMBERS, TIMES, TEXT, BULK = (frozenset(names.split()) for names in _NAMES.values())
KEEPABLE = TEXT | {"CS", "AE", "UR"}  # with --keep
IDENTIFIERS = frozenset({"AccessionNumber", "StudyID", "AdmissionID", "ServiceEpisodeID"})


@dataclass(frozen=True)
class Row:
    """One line of Table E.1-1: the basic code and the codes of options that name this attribute."""

    keyword: str
    basic: str
    options: dict[str, str]


@dataclass(frozen=True)
class Options:
    """What a user asked to keep. ``keep`` holds keywords of text kept as it is; ``private`` (creator, group, element
    within the block)."""

    retain: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()
    private: frozenset[tuple[str, int, int]] = frozenset()

    def __post_init__(self) -> None:
        for name in sorted(self.retain - RETAIN.keys()):
            fix = nearest(name, RETAIN) or f"one of {', '.join(RETAIN)}"
            raise HilumError(f"there is no option {name!r} to retain", where="--retain", fix=fix)
        if {"dates", "dates-shifted"} <= self.retain:
            raise HilumError("dates cannot be both full and shifted", where="--retain", fix="name one of the two")
        for name in sorted(self.keep):
            tag = tag_for_keyword(name)
            if tag is None:
                fix = nearest(name, _keepable()) or "a keyword of DICOM's dictionary, e.g. ManufacturerModelName"
                raise HilumError("an attribute to keep is not in the DICOM dictionary", where=f"--keep {name}", fix=fix)
            if tag >> 16 == 0x0010 or dictionary_VR(tag) not in KEEPABLE or name in IDENTIFIERS:
                fix = "text of a device or procedure; --retain has options for what is no text"
                raise HilumError(
                    "an attribute to keep names the patient, or is no text", where=f"--keep {name}", fix=fix
                )

    @property
    def codes(self) -> list[tuple[str, str]]:
        """(code, meaning) of CID 7050 for every option asked for, the basic profile first."""
        asked = [RETAIN[name][1:] for name in RETAIN if name in self.retain]
        return [BASIC, *asked, *([PRIVATE] if self.private else [])]


@dataclass(frozen=True)
class Profile:
    """The table, ready to be asked. ``edition`` names the DICOM standard it comes from."""

    edition: str
    rows: dict[int, Row]
    required: dict[int, int]  # tag -> 1 or 2: the most that any module asks
    terms: frozenset[str]
    options: Options = field(default_factory=Options)

    @classmethod
    def load(cls, options: Options | None = None) -> Profile:
        edition, rows, required, terms = _tables()
        return cls(edition, rows, required, terms, options or Options())

    def action(self, tag: int, vr: str, keyword: str) -> Action:
        """What happens to a standard attribute outside the pixel data. ``vr`` is the one it was read with."""
        if keyword in self.options.keep:
            return "items" if vr == "SQ" else "keep"
        row = self.rows.get(tag)
        return self._unlisted(tag, vr, keyword) if row is None else self._listed(tag, vr, row)

    def _listed(self, tag: int, vr: str, row: Row) -> Action:
        columns = (RETAIN[name][0] for name in self.options.retain)
        asked = {row.options.get(column) for column in columns}
        if asked & {"K", "C"} and vr != dictionary_VR(tag):
            return self.fallback(tag)  # a VR of the file's own choice could make text of it
        if "K" in asked:
            return "items" if vr == "SQ" else "keep"
        if "C" in asked:
            return "items" if vr == "SQ" else "clean"
        if vr == "UI" and "U" in row.basic:
            return "uid"
        if vr == "SQ" and "U" in row.basic:
            return "items"  # X/Z/U*: references stay, with their UIDs mapped
        code = self._resolved(tag, row.basic)
        return "items" if vr == "SQ" and code == "dummy" else code

    def _resolved(self, tag: int, code: str) -> Action:
        """A compound code by the attribute's Type: D where some module needs a value, Z where it needs the element."""
        choices, demand = code.rstrip("*").split("/"), self.required.get(tag, 3)
        if demand == 1 and "D" in choices:
            return "dummy"
        if "X" in choices and (demand == 3 or len(choices) == 1):
            return "remove"
        return "empty" if "Z" in choices else "dummy" if "D" in choices else "remove"

    def _unlisted(self, tag: int, vr: str, keyword: str) -> Action:
        if vr == "SQ":
            return "items"
        if vr == "UI":
            return "uid"
        if (vr in NUMBERS | BULK_NUMBERS or vr.startswith("US or")) and not _is_number(dictionary_VR(tag)):
            return self.fallback(tag)  # a VR of the file's own choice made numbers of text
        if vr in NUMBERS or vr.startswith("US or"):
            return "number"
        if vr in BULK_NUMBERS or (keyword in BULK and vr in ("OB", "OW")):
            return "bulk"
        if vr in TIMES and self.options.retain & {"dates", "dates-shifted"}:
            return "keep" if "dates" in self.options.retain else "clean"
        if vr == "CS" or keyword == "SpecificCharacterSet":
            return "terms"
        return "clean" if vr in TEXT else self.fallback(tag)

    def fallback(self, tag: int) -> Action:
        """Of a value that must not stay: dummy, empty or remove by what modules require."""
        demands: dict[int, Action] = {1: "dummy", 2: "empty"}
        return demands.get(self.required.get(tag, 3), "remove")


def _keepable() -> list[str]:
    """Keywords that ``--keep`` takes."""
    entries = DicomDictionary.items()
    return [e[4] for tag, e in entries if e[0] in KEEPABLE and tag >> 16 != 0x0010 and e[4] and e[4] not in IDENTIFIERS]


def _is_number(listed: str) -> bool:
    """Whether a dictionary's VR, or one that it leaves open, is of numbers."""
    return bool(set(listed.split(" or ")) & (NUMBERS | BULK_NUMBERS | {"OB", "OW"}))


@cache
def _tables() -> tuple[str, dict[int, Row], dict[int, int], frozenset[str]]:
    here = Path(__file__).parent
    lines = (here / "profile.csv").read_text(encoding="ascii").splitlines()
    edition = lines[0].removeprefix("# ").strip()
    rows = {
        int(line["tag"], 16): Row(line["keyword"], line["basic"], _codes(line)) for line in csv.DictReader(lines[1:])
    }
    required = csv.DictReader((here / "required.csv").read_text(encoding="ascii").splitlines()[1:])
    terms = (here / "terms.txt").read_text(encoding="ascii").splitlines()
    listed = frozenset(term for term in terms if not term.startswith("#"))
    return edition, rows, {int(r["tag"], 16): int(r["type"]) for r in required}, listed


def _codes(line: dict[str, str]) -> dict[str, str]:
    return {column: code for column, code in line.items() if column not in ("tag", "keyword", "basic") and code}


_LIST = "a CSV with the line creator,group,element and then, for instance, SIEMENS MR HEADER,0019,0C"


def private_list(path: Path) -> frozenset[tuple[str, int, int]]:
    """A keep list of private attributes: CSV with the columns ``creator,group,element`` (hexadecimal, the element
    within its block, 00-FF). :class:`HilumError` names the line at fault."""
    kept = set()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "it is not UTF-8"
        raise HilumError(f"the keep list cannot be read: {told}", where="--keep-private", fix=_LIST) from None
    with io.StringIO(text, newline="") as file:
        reader = csv.DictReader(file)
        if not {"creator", "group", "element"} <= set(reader.fieldnames or ()):
            raise HilumError("a keep list has the columns creator,group,element", where="--keep-private", fix=_LIST)
        for number, line in enumerate(reader, 2):
            try:
                group, element = int(line["group"], 16), int(line["element"], 16)
            except (TypeError, ValueError):
                group, element = 0, -1
            if not group % 2 or not 0 <= element <= 0xFF or not (line["creator"] or "").strip():
                raise HilumError(f"line {number} names no private attribute", where="--keep-private", fix=_LIST)
            kept.add((line["creator"].strip(), group, element))
    return frozenset(kept)


def is_graphics(group: int) -> bool:
    """Curves (50xx) and overlays (60xx): repeating groups that the table removes as a whole."""
    return group % 2 == 0 and (0x5000 <= group <= 0x50FF or 0x6000 <= group <= 0x60FF)


def names_of(options: Iterable[str] | None) -> frozenset[str]:
    """Options given once, repeatedly or with commas."""
    return frozenset(part.strip() for text in options or () for part in text.split(",") if part.strip())
