"""Copies and conflicts among the rows of an index (FORMATS 5)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hilum.data.revision import Lists, equals, rows_of, shared

_VALUES = ("stored_sha256", "modality_sha256", "inverted")
_PICTURE = (*_VALUES, "rows", "columns", "frames", "role")  # and of labels the series that they mark
_READ = (*_PICTURE, "refers_to", "std", "instance", "group_id", "group_known", "sample_id", "problems")
Changes = dict[str, dict[int, Any]]


def compared(table: pa.Table) -> Changes:
    """What ``duplicate_of`` and ``problems`` become: column -> row -> value.

    Files of one UID are copies where pixels, what they mean and patient agree, else in conflict; files of other UIDs,
    or none, are copies where pixels and their meaning agree and the patient is known to be the same, or unknown of files
    without UIDs. Meaning: values after the rescale, and polarity.
    """
    indexed = equals(table.column("status"), "indexed") & np.asarray(table.column("stored_sha256").is_valid(), bool)
    # Constant images are equal without being copies.
    varied = indexed & ~np.asarray(table.column("std").is_null(), bool) & ~equals(table.column("std"), 0.0)
    # Most rows share nothing with another one: only those that do are looked at.
    at = np.union1d(shared(table.column("instance"), indexed), shared(table.column("stored_sha256"), varied))
    return _Rows(at.tolist(), rows_of(table, at, _READ)).changes()


class _Rows:
    """Some rows of a table by their place among them; ``at`` are their numbers in the table."""

    def __init__(self, at: list[int], columns: Lists) -> None:
        self.at, self.columns = at, columns
        self.original: dict[int, str] = {}
        self.problems: dict[int, set[str]] = defaultdict(set)

    def changes(self) -> Changes:
        instance, pixels, group, known = (
            self.columns[n] for n in ("instance", "stored_sha256", "group_id", "group_known")
        )
        everyone = range(len(self.at))
        torn: set[int] = set()
        for same in groups(everyone, instance):
            if len({(*(self.columns[name][row] for name in _VALUES), group[row]) for row in same}) > 1:
                self._note(same, "uid_conflict")
                torn.update(same)
            else:
                self._copies(same)
        varied = [row for row in everyone if self.columns["std"][row]]
        owner = [g if k else None if uid else "unknown" for g, k, uid in zip(group, known, instance, strict=True)]
        for same in groups(varied, pixels):
            if len({group[row] for row in same if known[row]}) > 1:
                self._note(same, "same_pixels_other_patient")
        for same in groups([row for row in varied if row not in torn], pixels):
            pictures = {
                row: (*(self.columns[name][row] for name in _PICTURE), *(self.columns["refers_to"][row] or ()))
                for row in same
            }
            for alike in groups(same, pictures):
                for copies in groups(alike, owner):
                    self._copies(copies)
        noted = {row: sorted({*(self.columns["problems"][row] or ()), *new}) for row, new in self.problems.items()}
        changed: Changes = {"duplicate_of": {**self.original}, "problems": {**noted}}
        return {name: {self.at[row]: value for row, value in rows.items()} for name, rows in changed.items()}

    def _copies(self, same: Sequence[int]) -> None:
        for row in same[1:]:
            self.original[row] = self.columns["sample_id"][same[0]]

    def _note(self, same: Sequence[int], problem: str) -> None:
        for row in same:
            self.problems[row].add(problem)


def groups(members: Sequence[int], values: Sequence[Any] | Mapping[int, Any]) -> list[list[int]]:
    """Members that share a value with another one, in order; None is shared by nobody."""
    first: dict[Any, int] = {}
    found: dict[Any, list[int]] = {}  # only of values that are shared: most are not
    for at in members:
        value = values[at]
        if value is not None and (one := first.setdefault(value, at)) != at:
            found.setdefault(value, [one]).append(at)
    return list(found.values())
