"""Reading published tables: exact columns or a clear error, and where the images that they name are."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from hilum.core.errors import HilumError, nearest
from hilum.data.tables import Table

BOXES = pa.schema(
    [("path", pa.string()), ("finding", pa.string()), ("reader", pa.string())]
    + [(name, pa.float64()) for name in ("x0", "y0", "x1", "y1")]
)
"""Boxes in pixels of the stored image, x to the right, y down; ``x1`` and ``y1`` are the far edges."""
MASKS = pa.schema([("path", pa.string()), ("mask", pa.string()), ("finding", pa.string())])
"""Which mask marks which image; ``finding`` is null where one mask holds several, told apart by value."""
OLDEST = 110  # years; more is a fault of the table
_VALUES: Mapping[str, float | None] = {"": None, "1": 1.0, "0": 0.0, "-1": -1.0}


class Rows:
    """The rows of a dataset's table, added one by one; what a row does not say is null."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {"path": [], "patient_id": []}  # groups come from it, whatever rows say

    def __len__(self) -> int:
        return len(self.columns["path"])

    def add(self, path: str, findings: Mapping[str, Any] | None = None, /, **about: Any) -> None:
        before = len(self)
        for name, value in {"path": path, **about, **(findings or {})}.items():
            self._filled(name, before).append(value)

    def table(self, findings: Mapping[str, Any] | None = None) -> pa.Table:
        """Columns in order of first use, then whole columns of ``findings``."""
        return pa.table({name: self._filled(name, len(self)) for name in self.columns} | dict(findings or {}))

    def _filled(self, name: str, length: int) -> list[Any]:
        column = self.columns.setdefault(name, [])
        column += [None] * (length - len(column))
        return column


def read(
    path: Path,
    columns: Sequence[str],
    *,
    dataset: str,
    licence: str,
    keep: Sequence[str] | None = None,
    also: Sequence[str] = (),
) -> Table:
    """The table, whose header must have every column in ``columns``; what is missing is named.

    It holds the columns in ``keep`` (default: ``columns``) and, where they are there, those in ``also``.
    """
    if not path.is_file():
        raise HilumError(
            f"{dataset}: {path.name} is not there",
            where=str(path.parent),
            fix=f"unpack the set as published; {licence}",
        )
    need_columns(path, columns, Table.names(path), dataset=dataset)
    return Table.read(path, only={*(columns if keep is None else keep), *also})


def need_columns(path: Path, columns: Sequence[str], found: Iterable[str], *, dataset: str) -> None:
    """HilumError that names the first missing column (of a table) or key (of a record), and the nearest there is."""
    found = list(found)
    missing = [c for c in columns if c not in found]
    if missing:
        raise HilumError(
            f"{dataset}: {path.name} has no column {missing[0]!r}"
            + (f" (nor {len(missing) - 1} more)" if missing[1:] else ""),
            where=str(path),
            fix=nearest(missing[0], found) or "the file differs from the published one; restore its header",
        )


def records(path: Path, keys: Sequence[str], *, dataset: str) -> list[dict[str, Any]]:
    """A JSON list of objects, each with every key in ``keys``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise HilumError(f"{dataset}: {path.name} cannot be read as JSON", where=str(path)) from error
    if not (isinstance(content, list) and content and all(isinstance(record, dict) for record in content)):
        raise HilumError(f"{dataset}: {path.name} is no list of records", where=str(path))
    for number, record in enumerate(content):
        need_columns(Path(f"{path}, record {number + 1}"), keys, record, dataset=dataset)
    return content


def first_match(root: Path, patterns: Sequence[str], *, dataset: str) -> Path:
    """The first file that fits a pattern, in sorted order; a pattern is also tried one and two folders down."""
    found = any_match(root, patterns)
    if found is None:
        raise HilumError(
            f"{dataset}: no {patterns[0]} below the archive",
            where=str(root),
            fix="index the folder that holds the table",
        )
    return found


def any_match(root: Path, patterns: Sequence[str]) -> Path | None:
    """As :func:`first_match`, None where nothing fits. AppleDouble twins (``._*``) are no files of a set."""
    for depth in ("", "*/", "*/*/"):
        for pattern in patterns:
            for path in sorted(root.glob(depth + pattern)):
                if not path.name.startswith("._"):
                    return path
    return None


def inside(root: Path, path: Path) -> str:
    """``path`` from ``root`` as a table writes it."""
    return path.relative_to(root).as_posix()


def files_by_name(root: Path, suffix: str | tuple[str, ...]) -> dict[str, str]:
    """File name -> path from ``root``, of every file that ends in ``suffix``; links to folders are not followed."""
    found: dict[str, str] = {}
    for path in files_below(root, suffix):
        found.setdefault(path.rpartition("/")[2], path)
    return found


def files_below(root: Path, suffix: str | tuple[str, ...]) -> list[str]:
    """Paths from ``root`` in sorted order; links to folders are not followed, ``._*`` are left out."""
    found = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        place = Path(folder).relative_to(root).as_posix()
        found += [
            name if place == "." else f"{place}/{name}"
            for name in sorted(names)
            if name.endswith(suffix) and not name.startswith("._")
        ]
    return found


def age(text: str) -> str | None:
    """An age as DICOM writes it (``061Y``), of ``61``, ``061Y`` or ``18M``; None where nobody can be that old."""
    match = re.fullmatch(r"0*(\d+)(?:\.0)?([YMWD]?)", text.strip().upper())
    if match is None or int(match[1]) > (OLDEST if match[2] in ("", "Y") else 999):
        return None
    return f"{int(match[1]):03}{match[2] or 'Y'}"


def sex(text: str) -> str | None:
    """``M`` or ``F`` of a word; None of anything else."""
    return {"M": "M", "F": "F"}.get(text.strip()[:1].upper())


def value(text: str, *, dataset: str, where: str) -> float | None:
    """1, 0 or -1 of ``1``, ``0.0``, ``-1.0``; None of a blank; anything else is an error that does not quote it."""
    text = text.strip().removesuffix(".0")
    if text not in _VALUES:
        raise HilumError(f"{dataset}: a label is none of 1, 0, -1 and blank", where=where, fix="restore the file")
    return _VALUES[text]


def number(text: str, *, dataset: str, where: str) -> float:
    """A finite number; anything else is an error that does not quote it."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise HilumError(f"{dataset}: a cell is no number", where=where, fix="restore the file")
    return found


def listed(text: str, *, dataset: str, where: str) -> list[str] | None:
    """Entries of a list of strings written as Python writes it, without stray blanks and blank entries; None of a blank.

    It is matched as text and never evaluated.
    """
    text = text.strip()
    if text.casefold() in ("", "nan"):
        return None
    entry = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|nan|None"""
    if not re.fullmatch(rf"\[\s*(?:(?:{entry})\s*(?:,\s*(?:{entry})\s*)*,?\s*)?\]", text):
        raise HilumError(f"{dataset}: a cell is no list of names", where=where, fix="restore the file")
    found = [word[1:-1].replace("\\'", "'").strip() for word in re.findall(entry, text) if word[0] in "'\""]
    return list(dict.fromkeys(word for word in found if word))


def one_part(parts: Iterable[str]) -> str:
    """The part of an image that questions of several parts ask about: training, since it was seen there."""
    named = set(parts)
    return named.pop() if len(named) == 1 else "train"
