"""Which columns of a labels table are findings, which one holds classes, and which are neither."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.data.labels import ABOUT, GROUPS, JOINS, STUDIES
from hilum.data.tables import Table, is_blank, is_number, part_of, row_list

_VALUES = {"1": 1.0, "0": 0.0, "-1": -1.0, "1.0": 1.0, "0.0": 0.0, "-1.0": -1.0}
_CLASS = ("class", "label", "diagnosis")
_IDENTIFIERS = """id uid uuid name file filename filepath image imageid imageindex imagename imagepath sampleid
    patient patientid patientname patientnumber patientbirthdate otherpatientids issuerofpatientid subject subjectid
    person personid caseid mrn medicalrecordnumber ssn nhsnumber insurancenumber email phone address firstname lastname
    surname fullname birthdate dateofbirth dob accessionnumber accessionid accessionno examid reportid seriesid sopuid
    studyuid seriesuid seriesinstanceuid"""
_MANY = 50  # classes; a column of more, most of them met once, is an identifier or free text
_MEASURED = 4  # distinct values beside 1, 0 and -1 above which a column of numbers is a measurement
_TYPING = 0.05  # share of label values up to which a column is of another kind


@dataclass
class Labels:
    """Columns of ``labels.parquet`` beside ``sample_id``, row by row as the table, and what became of the others."""

    columns: dict[str, pa.Array]
    classes: str | None = None  # the table's column that ``class`` was taken from
    ignored: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        return [name for name in self.columns if name not in ("class", "split")]


def labels_of(table: Table, *, names: Sequence[str] | None = None, leave: Sequence[str] = ()) -> Labels:
    """Findings as float32 (1, 0, -1 uncertain, NaN unknown), or else one text column as ``class``; ``split`` is kept.

    Without ``names``, a column is a finding where all its values are 1, 0, -1 or blank (NA, nan, null and none are
    blank), and a text column is the class where it is called class, label or diagnosis. A column that mixes label
    values with others is an error, since labels would be lost silently; identifiers are never labels; ``leave`` are
    columns that have another use.
    """
    left = {name.casefold() for name in leave}
    open_to = [n for n in table.columns if _plain(n) not in _RESERVED and n.casefold() not in left]
    if names is None:
        kinds = {name: _kind(table, name) for name in open_to}
        chosen = {name: name for name, kind in kinds.items() if kind == "finding"}
        texts = [name for wanted in _CLASS for name, kind in kinds.items() if kind == "text" and _plain(name) == wanted]
        classes = texts[0] if texts and not chosen else None
    else:
        chosen, classes = _named(table, names)
    labels = Labels({name: _numbers(table.columns[column]) for name, column in chosen.items()}, classes)
    if classes is not None:
        labels.columns["class"] = _classes(table, classes)
    used = {*chosen.values(), classes}
    split = table.find("split")
    if split is not None and all(part_of(word) for word in table.columns[split]):
        labels.columns["split"] = pa.array([v or None for v in table.columns[split]], pa.string())
        used.add(split)
    about = _DESCRIBING - {"split"}
    labels.ignored = [n for n in table.columns if n not in used and n.casefold() not in left | about]
    return labels


def _plain(name: str) -> str:
    """PatientID, patient_id and "Patient ID" are one name."""
    return re.sub(r"[\W_]+", "", name).casefold()


_DESCRIBING = frozenset({*JOINS, *GROUPS, *STUDIES, *ABOUT, "issuer", "split"})
_NEVER = frozenset({*_IDENTIFIERS.split(), *map(_plain, (*JOINS, *GROUPS, *STUDIES, "issuer"))})
_RESERVED = _NEVER | frozenset(map(_plain, _DESCRIBING))


def _named(table: Table, names: Sequence[str]) -> tuple[dict[str, str], str | None]:
    """({finding: column}, class column) as the user asked for."""
    chosen: dict[str, str] = {}
    texts: list[str] = []
    for name in names:
        table.need(name, why="asked for as a finding")
        column = table.find(name) or name
        if _plain(name) in _NEVER:
            raise HilumError(f"column {name!r} names files or people: it cannot be a label", where=table.name)
        if _kind(table, column, strict=True) == "text":
            texts.append(column)
        else:
            chosen[name] = column
    if len(texts) > 1 or (texts and chosen):
        raise HilumError(
            f"column {texts[-1]!r} holds classes and cannot be taken beside {[*chosen, *texts][0]!r}",
            where=table.name,
            fix="name either findings (1, 0, -1, blank) or one column of classes",
        )
    return chosen, texts[0] if texts else None


def _kind(table: Table, name: str, *, strict: bool = False) -> str:
    """``finding``, ``text`` or ``other``. ``strict``: it was asked for, so that ``other`` is an error."""
    values = table.columns[name]
    filled = [(row, v) for row, v in enumerate(values, 2) if not is_blank(v)]
    others = [(row, v) for row, v in filled if v not in _VALUES]
    if filled and _plain(name) == "class":
        return "text"
    if not others:
        return "finding" if filled or strict else "other"
    numbers = all(is_number(v) for _, v in filled)
    kind = "other" if numbers else "text"
    pure = len(others) == len(filled)
    measured = numbers and len({v for _, v in others}) > _MEASURED and len(others) >= len(filled) / 10
    if (strict and pure and not numbers) or (not strict and (measured or len(others) >= (1 - _TYPING) * len(filled))):
        return kind
    raise HilumError(
        f"column {name!r} holds values other than 1, 0, -1 and blank",
        where=f"{table.name}, {row_list([row for row, _ in others])}",
        fix="correct these rows, call the column 'class' where they are classes, or name the labels: --finding NAME",
    )


def _numbers(values: Sequence[str]) -> pa.Array:
    return pa.array([_VALUES.get(v, np.nan) for v in values], pa.float32())


def _classes(table: Table, name: str) -> pa.Array:
    """Text as it stands; "none" is a class, as of an image without a finding."""
    values = [None if is_blank(v) and v.casefold() != "none" else v for v in table.columns[name]]
    distinct, filled = len({v for v in values if v is not None}), sum(v is not None for v in values)
    if distinct > _MANY and distinct > filled / 2:
        raise HilumError(
            f"column {name!r} has {distinct} different values in {filled} rows: these are no classes",
            where=table.name,
            fix="name the column of classes, or the findings: --finding NAME",
        )
    return pa.array(values, pa.string())
