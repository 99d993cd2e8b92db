"""The self-check: what was taken out of a file is looked for in what was written, as bytes and as text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue

from hilum.medical.deid.pseudonyms import DUMMIES, registered
from hilum.medical.deid.vocabulary import LISTED_CODES, listed

ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be", "shift_jis", "gb18030", "euc_kr", "iso8859_5", "iso8859_7")
SHORT = 3  # letters that a word of a name has, at least, to be looked for
FREE = 5  # characters that other text has, at least
RAW = 6  # bytes that are looked for anywhere, not only as a word of a value
_BLOB = 1024  # bytes of an opaque value that are read as text, at most
_RUN = re.compile(rb"[0-9]+(?:\.[0-9]+)+")
_PARTS = 24  # of a run of digits and dots; a UID has fewer
_BEFORE, _AFTER = re.compile(rb"[0-9.]*$"), re.compile(rb"[0-9.]*")  # what a number goes on with
_OWN = frozenset(
    {"removed", "99hilum", *DUMMIES.values()}
)  # what stands in the place of values: a copy may be de-identified again
_NUMERIC = frozenset(["DS", "IS", "US", "SS", "UL", "SL", "SV", "UV", "FL", "FD", "AT", "OF", "OD", "OL", "OV", "OW"])


@dataclass
class Needles:
    """Texts that must not be found, in lower case. ``words``: whole words of values; ``uids``: with nothing numeric
    around them; ``allowed``: what the rewriting itself put there."""

    words: set[str] = field(default_factory=set)
    uids: set[str] = field(default_factory=set)
    free: set[str] = field(default_factory=set)  # other text: given up where the user keeps the same text elsewhere
    allowed: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)

    def add_all(self, element: DataElement) -> None:
        """Everything that an element holds, sequences included."""
        vr, value = element.VR, element.value
        if vr == "SQ":
            for item in value:
                for tag in sorted(item.keys()):
                    try:
                        inner = item[tag]
                    except Exception:
                        continue
                    self.add_all(inner)
            return
        if value is None or vr in _NUMERIC:
            return
        for one in value if isinstance(value, MultiValue | list | tuple) else [value]:
            self._add(vr, one)

    def _add(self, vr: str, value: Any) -> None:
        text = value[:_BLOB].decode("latin-1").split("\0")[0] if isinstance(value, bytes) else str(value)
        text = " ".join(text.split()).casefold()
        if isinstance(value, bytes) and (len(value) > _BLOB or not text.isprintable()):
            return
        if vr == "UI":
            self.add_uid(text)
        elif vr == "PN":
            self._add_name(text)
        elif vr in ("DA", "DT"):
            self.add_date(text)
        elif vr == "TM":
            return  # a time of day names nobody without its date
        elif len(text) >= FREE and text.strip("0") and not _listed(text):  # zeros name nobody
            self.free.add(text)
            if vr in ("UN", "OB") and "^" in text:
                self._add_name(text)

    def _add_name(self, text: str) -> None:
        for word in re.split(r"[\^=\s,;/]+", text):
            least = SHORT if word.isascii() else SHORT - 1  # a name of Han characters has two
            if len(word) >= least and not _listed(word):
                self.words.add(word)

    def add_uid(self, text: str) -> None:
        uid = text.strip(" \0")
        if len(uid) >= RAW and not registered(uid):
            self.uids.add(uid.casefold())

    def add_identifier(self, text: str | None) -> None:
        """A patient's number or the like: looked for even where it is short."""
        plain = " ".join((text or "").strip("\0").split()).casefold()
        if len(plain) >= SHORT and not _listed(plain) and not re.fullmatch(r"0*\d{1,4}", plain):
            self.words.add(plain)

    def add_other(self, text: str, kept: str) -> None:
        """Text that gave way to another one, which may be a part of it."""
        plain = " ".join(text.split()).casefold()
        if len(plain) >= FREE and plain not in kept.casefold() and not _listed(plain):
            self.free.add(plain)

    def add_date(self, text: str) -> None:
        digits = re.sub(r"[^\d]", "", text[:10])[:8]
        if len(digits) == 8 and digits not in ("00000000", "19000101"):
            self.words.add(digits)

    def allow(self, text: str) -> None:
        self.allowed.add(text.casefold()[:8])

    def keep(self, values: Iterable[str]) -> None:
        """Text that the user asked to keep."""
        for value in values:
            text = " ".join(value.split()).casefold()
            self.kept |= {text, *re.split(r"[\s_/,;:.\-]+", text)}

    def looked_for(self) -> set[str]:
        """Texts of names, identifiers, dates and free text."""
        return (self.words - self.allowed) | (self.free - self.kept)

    def in_bytes(self, data: bytes, *, longest: int | None = None) -> int:
        """How many are found in raw bytes, in any of :data:`ENCODINGS`; ``longest`` bounds how many are tried."""
        lower = data.lower()
        texts = sorted((t for t in self.looked_for() if len(t) >= RAW), key=len, reverse=True)
        found = sum(any(_stands(form, lower) for form in _forms(text)) for text in texts[:longest])
        return found + len(self.uids & self._runs(lower))

    def _runs(self, lower: bytes) -> set[str]:
        """Whole UIDs in raw bytes, and what their parts spell from any of them to any other: one pass, however many
        are looked for."""
        if not self.uids:
            return set()
        found = {run.decode("ascii") for run in set(_RUN.findall(lower))}
        for run in list(found):
            parts = run.split(".")
            if len(parts) <= _PARTS:
                ends = range(1, len(parts) + 1)
                found |= {".".join(parts[a:b]) for b in ends for a in range(b)}
            else:
                found |= {uid for uid in self.uids if uid in run}
        return found

    def in_text(self, values: Iterable[str]) -> int:
        """How many are found as words of decoded values, or as a part of them where they are long."""
        texts = self.looked_for()
        short = {t for t in texts if len(t) < RAW}
        long = texts - short
        found: set[str] = set()
        for value in values:
            plain = " ".join(value.split()).casefold()
            found |= {t for t in long if t in plain and (not t.isdigit() or _stands(t.encode(), plain.encode()))}
            found |= short & {plain, *re.split(r"[\^=\s,;/_\-\\]+", plain)}
            if plain in self.uids:
                found.add(plain)
        return len(found)


def _listed(text: str) -> bool:
    return text in _OWN or text.upper() in LISTED_CODES or listed(text)


def _stands(form: bytes, data: bytes) -> bool:
    """Whether a text stands in ``data``. Digits count as a number of their own, zeros before it or not: a mapped UID or
    the decimals of a position hold any six of them by chance. A date may be followed by its time."""
    if not form.isdigit() or form not in data:
        return form in data
    end = rb"" if re.fullmatch(rb"(1[89]|2[01])[0-9]{6}", form) else rb"(?![0-9])"
    for at in re.finditer(rb"(?<![0-9])0*" + form + end, data):
        whole = data[: at.start()][-20:], data[at.start() : at.end() + 20]
        run = b"".join((_BEFORE.search(whole[0])[0], _AFTER.match(whole[1])[0]))  # type: ignore[index]
        if run.count(b".") != 1 or not whole[0].endswith(b"."):  # not the decimals of a number
            return True
    return False


def _forms(text: str) -> set[bytes]:
    """The bytes of a text in every encoding that has all its letters, in both cases where ASCII does not fold them."""
    forms = set()
    for encoding in ENCODINGS:
        for shape in (text, text.upper(), text.title()):
            try:
                forms.add(shape.encode(encoding).lower())
            except UnicodeEncodeError:
                continue
    return forms
