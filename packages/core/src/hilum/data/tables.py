"""Tables that users write: labels, groups, splits, reports. All cells are text until somebody asks for more."""

from __future__ import annotations

import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hilum.core.errors import HilumError, nearest

EXAMPLES = 5  # row numbers a message names
_SHORT = 16  # characters of a cell that is worth sharing
_PARTS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    "exclude": "none",
}
_BLANK = frozenset({"", "na", "n/a", "<na>", "nan", "null", "none"})  # how programs write that there is no value


@dataclass(frozen=True)
class Table:
    """Columns of text (blank where empty). Messages number rows as a spreadsheet does: the header is row 1."""

    name: str
    columns: Mapping[str, Sequence[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @staticmethod
    def read(source: Path | str | pa.Table, *, only: Collection[str] | None = None) -> Table:
        """CSV (comma, semicolon or tab; also .gz), Parquet, or a table in memory; of the columns ``only`` those named."""
        if isinstance(source, pa.Table):
            names = [n for n in source.column_names if only is None or n in only]
            return Table("the dataset's table", {n: [_text(v) for v in source.column(n).to_pylist()] for n in names})
        path = Path(source)
        try:
            if path.suffix == ".parquet":
                return Table(path.name, Table.read(pq.read_table(path), only=only).columns)
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError, zlib.error, pa.ArrowInvalid) as error:
            raise HilumError(
                f"the table cannot be read: {getattr(error, 'strerror', None) or 'not Parquet'}",
                where=str(path),
                fix="give a CSV, gzipped or not, or a Parquet file",
            ) from None
        header, lines = _csv(_decoded(data))
        place = {name: at for at, name in enumerate(header) if name and (only is None or name in only)}
        columns: dict[str, list[str]] = {name: [] for name in place}
        rows = 0
        for line in filter(any, lines):
            rows += 1
            if len(line) > len(header):
                raise HilumError(
                    f"row {rows + 1} has more fields than the header",
                    where=str(path),
                    fix="quote fields that hold the separator",
                )
            for name, at in place.items():
                columns[name].append(_cell(line[at]) if at < len(line) else "")
        if not rows:
            raise HilumError("the table has no rows", where=str(path))
        return Table(path.name, columns)

    @staticmethod
    def names(path: Path) -> list[str]:
        """The header of a CSV file (also .gz), without reading its rows."""
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                return [name for name in _csv(_decoded(file.readline()))[0] if name]
        except (OSError, EOFError, zlib.error):
            raise HilumError("the table cannot be read", where=str(path), fix="save it as CSV in UTF-8") from None

    def find(self, *names: str) -> str | None:
        """The first of ``names`` this table has, whatever its case."""
        known = {c.casefold(): c for c in reversed(list(self.columns))}
        return next((known[n.casefold()] for n in names if n.casefold() in known), None)

    def need(self, name: str, *, why: str, fix: str | None = None) -> Sequence[str]:
        column = self.find(name)
        if column is None:
            known = list(self.columns)
            raise HilumError(
                f"{self.name} has no column {name!r} ({why})",
                where="columns: " + ", ".join(known),
                fix=nearest(name, known) if fix is None else fix,
            )
        return self.columns[column]


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _csv(text: str) -> tuple[list[str], Iterator[list[str]]]:
    """(header, rows) of comma-, semicolon- or tab-separated text."""
    first = text.split("\n", 1)[0]
    lines = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count))
    return [name.strip() for name in next(lines, [])], lines


def _cell(text: str) -> str:
    """Without outer blanks. Short cells repeat: a million equal ones are one object."""
    text = text.strip()
    return sys.intern(text) if len(text) <= _SHORT else text


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return _cell(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))


def is_blank(text: str) -> bool:
    return text.casefold() in _BLANK


def part_of(word: str) -> str | None:
    """The part of a split that a word names (blank: ``none``), or None where it names none."""
    return "none" if is_blank(word) else _PARTS.get(word.casefold())


def is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) is not None


def row_list(rows: Sequence[int]) -> str:
    listed = ", ".join(map(str, rows[:EXAMPLES]))
    return f"row{'s' * (len(rows) > 1)} {listed}" + (
        f" and {len(rows) - EXAMPLES} more" if len(rows) > EXAMPLES else ""
    )
