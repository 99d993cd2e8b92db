"""What to ask an archive for, and whether an answer is one that was asked for.

An archive may ignore a filter that it does not know and answer with everything it holds. Every answer is therefore
compared with the question before anything is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hilum.core.errors import HilumError
from hilum.data.identity import normalise
from hilum.data.tables import Table, is_blank

Answer = Mapping[str, str]  # keyword -> value; several are joined by backslashes
_KINDS = {
    "study": "StudyInstanceUID", "studyinstanceuid": "StudyInstanceUID", "studyuid": "StudyInstanceUID",
    "patient": "PatientID", "patientid": "PatientID", "accession": "AccessionNumber", "accessionnumber": "AccessionNumber",
}  # fmt: skip
ANSWERS = 500_000  # to one query; an archive that never ends is left
ASKED = ("StudyInstanceUID", "PatientID", "AccessionNumber", "StudyDate", "ModalitiesInStudy")


@dataclass(frozen=True, repr=False)
class Query:
    """Criteria that all hold. ``exact``: keyword -> value; ``dates``: first and last day, YYYYMMDD or empty."""

    exact: tuple[tuple[str, str], ...] = ()
    modality: str = ""
    dates: tuple[str, str] | None = None

    def filters(self) -> dict[str, str]:
        """Matching keys of a study-level query (PS3.4 C.2.2.2)."""
        keys = dict(self.exact)
        if self.dates is not None:
            first, last = self.dates
            keys["StudyDate"] = first if first == last else f"{first}-{last}"
        if self.modality:
            keys["ModalitiesInStudy"] = self.modality
        return keys

    def answered_by(self, study: Answer) -> bool:
        """Whether a study meets every criterion that a study-level answer must carry; modality is series' business."""
        if any(_plain(study.get(keyword, "")) != value for keyword, value in self.exact):
            return False
        if self.dates is None:
            return True
        day = study.get("StudyDate", "").replace(".", "").strip()  # dots: ACR-NEMA
        first, last = self.dates
        return bool(re.fullmatch(r"\d{8}", day)) and (first or "0") <= day <= (last or "9")

    def contradiction(self, told: Answer) -> str:
        """Keyword of a criterion that a file itself contradicts, or an empty text. An archive may repeat the question
        as if it were the answer; a file that does not say whose it is contradicts nothing, and spellings of one
        identifier are one (FORMATS 4)."""
        for keyword, value in self.exact:
            own = normalise(told.get(keyword, ""))
            if own and own != normalise(value):
                return keyword
        return ""

    def wants(self, series: Answer) -> bool:
        return not self.modality or _plain(series.get("Modality", "")).upper() == self.modality


def queries_of(
    *,
    study: str | None = None,
    patient: str | None = None,
    accession: str | None = None,
    modality: str | None = None,
    date: str | None = None,
    table: str | None = None,
) -> Iterator[Query]:
    """One query, or one for each distinct value of a table's column (``FILE:COLUMN`` or ``FILE:COLUMN=KIND``)."""
    named = {"StudyInstanceUID": study, "PatientID": patient, "AccessionNumber": accession}
    exact = tuple((k, _value(v, k)) for k, v in named.items() if v is not None)
    if modality is not None and not re.fullmatch(r"[A-Z0-9_]{1,16}", modality := modality.strip().upper()):
        raise HilumError("a modality is one code", where="--modality", fix="e.g. --modality CT")
    base = Query(exact, modality or "", None if date is None else _dates(date))
    if not base.filters() and table is None:
        raise HilumError(
            "nothing says what to pull, and all of an archive is never meant",
            fix="--study, --patient, --accession, --date, --modality or --from TABLE.csv:COLUMN",
        )
    if table is None:
        yield base
        return
    keyword, values = _column(table)
    for value in dict.fromkeys(values):
        yield replace(base, exact=(*exact, (keyword, value)))


def _column(text: str) -> tuple[str, list[str]]:
    name, _, column = text.rpartition(":")
    column, _, kind = column.partition("=")
    if not name or not column:
        raise HilumError("--from is TABLE.csv:COLUMN", where="--from", fix="e.g. --from worklist.csv:AccessionNumber")
    cells = Table.read(Path(name)).need(column, why="--from names it")
    keyword = _KINDS.get(re.sub(r"[\W_]", "", kind or column).casefold())
    if keyword is None:
        raise HilumError(
            f"what {column!r} holds is not known", where="--from", fix=f"{column}=study, =patient or =accession"
        )
    values = []
    for row, cell in enumerate(cells, 2):
        if not is_blank(cell):
            values.append(_value(cell, keyword, where=f"row {row} of --from"))
    if not values:
        raise HilumError("every row of the column is blank", where="--from", fix="name another column")
    return keyword, values


def _value(text: str, keyword: str, *, where: str = "") -> str:
    """One exact value: a wildcard, a list or a blank would match what nobody asked for (PS3.4 C.2.2.2)."""
    value = text.strip()
    if not value or len(value) > 64 or re.search(r"[*?\\\x00-\x1f\x7f]", value):
        told, fix = f"one {keyword} without wildcards is needed", "one value; several come by --from TABLE.csv:COLUMN"
        raise HilumError(told, where=where or f"--{_option(keyword)}", fix=fix)
    if keyword == "StudyInstanceUID" and not is_uid(value):
        told, fix = "a UID has digits and dots, 64 characters at most", "the StudyInstanceUID, not the StudyID"
        raise HilumError(told, where=where or "--study", fix=fix)
    return value


def _option(keyword: str) -> str:
    return {"StudyInstanceUID": "study", "PatientID": "patient"}.get(keyword, "accession")


def _dates(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"(\d{8})?(-)?(\d{8})?", text.strip())
    if not found or not (found[1] or found[3]) or (found[1] and found[3] and not found[2]):
        raise HilumError("a date is YYYYMMDD, or FIRST-LAST", where="--date", fix="e.g. --date 20200101-20201231")
    first, last = found[1] or "", found[3] or ""
    if not found[2]:
        last = first
    if first and last and first > last:
        raise HilumError("the first day is after the last", where="--date", fix="e.g. --date 20200101-20201231")
    return first, last


def is_uid(text: str) -> bool:
    """PS3.5 9.1, leading zeros tolerated; what is not one never reaches a URL or a query."""
    return re.fullmatch(r"[0-9]+(\.[0-9]+)*", text) is not None and len(text) <= 64


def _plain(text: str) -> str:
    return text.strip(" \0")
