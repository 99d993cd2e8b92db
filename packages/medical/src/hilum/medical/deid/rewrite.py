"""A fresh data set from a read one: every element is decided on, at every depth; nothing is copied by default."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VM, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from hilum.data.ledger import Rejected
from hilum.medical.deid.profile import NUMBERS, TIMES, Profile, is_graphics
from hilum.medical.deid.pseudonyms import DUMMIES, Pseudonyms, capped_age, is_time
from hilum.medical.deid.searching import SHORT, Needles
from hilum.medical.deid.vocabulary import LISTED_CODES, listed, meaning, patterned

PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
CODE = frozenset(["CodeValue", "CodingSchemeDesignator", "CodeMeaning", "LongCodeValue", "URNCodeValue"])
MARKS = frozenset(
    [
        "PatientIdentityRemoved",
        "DeidentificationMethod",
        "DeidentificationMethodCodeSequence",
        "LongitudinalTemporalInformationModified",
    ]
)  # said anew of every copy
LOCAL_SCHEME = "99HILUM"
REMOVED = "REMOVED"
_NUMBER = re.compile(r"\s*[+-]?([0-9]{1,15}\.?[0-9]{0,15}|\.[0-9]{1,15})([eE][+-]?[0-9]{1,3})?\s*")


@dataclass
class Rewriter:
    """Rewrites the data sets of one file. ``counts`` tells (keyword, action) -> how often; ``needles`` what must not
    be found in the result."""

    profile: Profile
    pseudonyms: Pseudonyms
    limit: int = 32  # nesting
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    needles: Needles = field(default_factory=Needles)

    def dataset(self, source: Dataset, depth: int = 0) -> Dataset:
        """Elements of ``source`` that may stay, as they may stay; :class:`Rejected` where sequences nest too deeply."""
        if depth > self.limit:
            raise Rejected("resource_limit", "its sequences nest too deeply")
        out = Dataset()
        coded = "CodeMeaning" in source or "CodeValue" in source
        for tag in sorted(source.keys()):
            keyword = keyword_for_tag(tag)
            if (coded and keyword in CODE) or (depth == 0 and keyword in MARKS):
                continue
            try:
                element = source[tag]
            except Exception:  # a value that cannot be read cannot be judged
                self._count(keyword or "unreadable", "remove")
                continue
            kept = self._element(source, element, keyword, depth)
            if kept is not None:
                out.add(kept)
        if coded:
            self._code(source, out)
        return out

    def _element(self, source: Dataset, element: DataElement, keyword: str, depth: int) -> DataElement | None:
        tag = element.tag
        if tag.group == 0x7FE0:
            if tag in PIXELS and depth == 0:
                return element
            self._count("Pixels", "remove")  # of a nested image, offset tables
            return None
        if tag.is_private:
            return self._private(source, element)
        if tag.element == 0 or tag.group in (0x0000, 0x0002):
            return None
        if is_graphics(tag.group):
            self.needles.add_all(element)
            self._count("Graphics", "remove")
            return None
        if not keyword or not dictionary_has_tag(tag):
            self.needles.add_all(element)
            self._count("Unknown", "remove")
            return None
        return self._standard(element, keyword, depth)

    def _standard(self, element: DataElement, keyword: str, depth: int) -> DataElement | None:
        tag, vr = element.tag, element.VR
        action = self.profile.action(tag, vr, keyword)
        if vr == "SQ" and action not in ("items", "remove", "empty"):
            action = "items"
        if action == "items":
            return DataElement(tag, "SQ", Sequence([self.dataset(item, depth + 1) for item in element.value]))
        if action == "keep" or (action == "bulk" and not is_text(element.value)):
            return self._kept(element, keyword)
        values = _values(element)
        if action == "uid" and vr == "UI":
            return self._made(element, keyword, "map", [self._uid(v) for v in values])
        if action == "number":
            return element if _numeric(element) else self._dropped(element, keyword, None)
        if action == "terms" and all(v == "" or self._term(keyword, v) for v in values):
            return element
        if action == "terms" and keyword == "ImageType":  # values after the second are the maker's
            return self._made(element, keyword, "clean", [v if self._term(keyword, v) else "" for v in values])
        if action == "clean":
            cleaned = [self._cleaned(keyword, vr, v) for v in values]
            if all(v is not None for v in cleaned):
                same = cleaned == values
                return element if same else self._made(element, keyword, "shift", cleaned)
        return self._dropped(element, keyword, action if action in ("remove", "empty", "dummy") else None)

    def _term(self, keyword: str, value: str) -> bool:
        plain = value.strip(" \0")
        return plain in self.profile.terms or plain.upper() in LISTED_CODES or patterned(keyword, plain)

    def _cleaned(self, keyword: str, vr: str, value: str) -> str | None:
        """A value of similar meaning that identifies nobody (code C), or None where there is none."""
        if not value.strip(" \0"):
            return value
        if vr in ("DA", "DT"):
            moved = self.pseudonyms.shifted(value)
            if moved is not None:
                self.needles.add_date(value)
                self.needles.allow(moved)
            return moved
        if vr == "TM":
            return value if is_time(vr, value) else None
        return value if listed(value) or patterned(keyword, value) else None

    def _uid(self, old: str) -> str:
        new = self.pseudonyms.uid(old)
        if new != old.strip(" \0"):
            self.needles.add_uid(old)
        return new

    def _kept(self, element: DataElement, keyword: str) -> DataElement:
        values = _values(element)
        if keyword == "PatientAge":
            ages = [capped_age(v) for v in values]
            return (
                self._made(element, keyword, "keep", ages)
                if None not in ages
                else self._dropped(element, keyword, None)
            )
        if element.VR in TIMES and not all(v.strip(" \0") == "" or is_time(element.VR, v) for v in values):
            return self._dropped(element, keyword, None)
        if element.VR in NUMBERS and not _numeric(element):
            return self._dropped(element, keyword, None)
        if element.VR not in NUMBERS:
            self.needles.keep(values)
        self._count(keyword, "keep")
        return element

    def _dropped(self, element: DataElement, keyword: str, action: str | None) -> DataElement | None:
        """Remove, empty or replace by a dummy; what stood there is looked for afterwards."""
        self.needles.add_all(element)
        if keyword == "PatientID" and not self.pseudonyms.known:  # a pseudonym would make a patient of a study
            return self._made(element, keyword, "empty", [])
        if keyword in ("PatientID", "PatientName"):
            return self._made(element, keyword, "pseudonym", [self.pseudonyms.name])
        action = action or self.profile.fallback(element.tag)
        if action == "remove":
            self._count(keyword, "remove")
            return None
        if action == "empty":
            if element.VR == "SQ":
                self._count(keyword, "empty")
                return DataElement(element.tag, "SQ", Sequence([]))
            return self._made(element, keyword, "empty", [])
        return self._made(element, keyword, "dummy", [_dummy(element.VR)])

    def _made(self, element: DataElement, keyword: str, action: str, values: list[Any]) -> DataElement:
        self._count(keyword, action)
        value: Any = values if len(values) > 1 else values[0] if values else None
        return DataElement(element.tag, element.VR, value)

    def _private(self, source: Dataset, element: DataElement) -> DataElement | None:
        """Kept where creator, group and element are on the user's list, and the creator's own element with it."""
        tag, kept = element.tag, self.profile.options.private
        if tag.is_private_creator:
            name = str(element.value or "").strip()
            if any(name == creator and tag.group == group for creator, group, _ in kept):
                return element
        else:
            creator = source.get_item(BaseTag(tag.group << 16 | tag.element >> 8))
            name = _text(getattr(creator, "value", None)).strip()
            if (name, tag.group, tag.element & 0xFF) in kept and element.VR != "SQ":
                self._count("Private", "keep")
                self.needles.keep(_values(element))
                return element
        self.needles.add_all(element)
        self._count("Private", "remove")
        return None

    def _code(self, source: Dataset, out: Dataset) -> None:
        """Code items (PS3.3 8.8) say what the standard says of their code; others are marked as removed."""
        scheme, value = (_text(source.get(k)).strip(" \0") for k in ("CodingSchemeDesignator", "CodeValue"))
        told = meaning(scheme, value)
        if told is not None:
            if _text(source.get("CodeMeaning")).strip(" \0").casefold() != told.casefold():
                self.needles.add_other(_text(source.get("CodeMeaning")), told)
            out.CodeValue, out.CodingSchemeDesignator, out.CodeMeaning = value, scheme, told[:64]
            return
        for keyword in CODE & {e.keyword for e in source}:
            self.needles.add_all(source[keyword])
        out.CodeValue, out.CodingSchemeDesignator, out.CodeMeaning = REMOVED, LOCAL_SCHEME, REMOVED
        self._count("CodeSequence", "dummy")

    def _count(self, keyword: str, action: str) -> None:
        self.counts[keyword, action] += 1


def _values(element: DataElement) -> list[str]:
    value = element.value
    if value is None:
        return []
    return [_text(v) for v in value] if isinstance(value, MultiValue | list | tuple) else [_text(value)]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return "" if value is None else str(value)


def _numeric(element: DataElement) -> bool:
    """Whether an element of numbers holds numbers, as many as its attribute has at most."""
    value = element.value
    if isinstance(value, bytes):  # of an open VR: words
        return not is_text(value)
    values = _values(element)
    most = dictionary_VM(element.tag)
    if most.isdecimal() and len(values) > max(1, int(most)):
        return False
    return element.VR not in ("DS", "IS") or all(v == "" or _NUMBER.fullmatch(v) for v in values)


def is_text(value: Any) -> bool:
    """Whether bytes that should be numbers are letters; a ramp of a lookup table, which climbs, is none."""
    if not isinstance(value, bytes) or len(plain := value.strip(b" \0")) < SHORT:
        return False
    letters = sum(0x20 <= b < 0x7F for b in plain)
    return letters >= 0.95 * len(plain) and list(plain) not in (sorted(plain), sorted(plain, reverse=True))


def _dummy(vr: str) -> Any:
    if vr in ("OB", "OW", "UN", "OD", "OF", "OL", "OV"):
        return b"\0\0"
    return DUMMIES.get(vr, 0 if vr in NUMBERS else REMOVED)


def elements(data: Dataset) -> Iterator[DataElement]:
    """Every element at every depth that can be read."""
    for tag in sorted(data.keys()):
        try:
            element = data[tag]
        except Exception:
            continue
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)
