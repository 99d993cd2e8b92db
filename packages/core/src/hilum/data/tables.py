"""Tables that users write: labels, groups, splits, reports. All cells are text until somebody asks for more."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hilum.core.errors import HilumError, nearest

EXAMPLES = 5  # row numbers a message names
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
    def read(source: Path | str | pa.Table) -> Table:
        """CSV (comma, semicolon or tab; also .gz), Parquet, or a table in memory."""
        if isinstance(source, pa.Table):
            return Table(
                "the dataset's table",
                {n: [_text(v) for v in source.column(n).to_pylist()] for n in source.column_names},
            )
        path = Path(source)
        try:
            if path.suffix == ".parquet":
                return Table(path.name, Table.read(pq.read_table(path)).columns)
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, pa.ArrowInvalid) as error:
            raise HilumError(
                f"the table cannot be read: {getattr(error, 'strerror', None) or 'not Parquet'}", where=str(path)
            ) from None
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        first = text.split("\n", 1)[0]
        lines = list(csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count)))
        header, body = ([h.strip() for h in lines[0]] if lines else []), [line for line in lines[1:] if any(line)]
        if not body:
            raise HilumError("the table has no rows", where=str(path))
        wrong = [n for n, line in enumerate(body, 2) if len(line) > len(header)]
        if wrong:
            raise HilumError(
                f"row {wrong[0]} has more fields than the header",
                where=str(path),
                fix="quote fields that hold the separator",
            )
        return Table(
            path.name,
            {h: [line[at].strip() if at < len(line) else "" for line in body] for at, h in enumerate(header) if h},
        )

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


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


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
