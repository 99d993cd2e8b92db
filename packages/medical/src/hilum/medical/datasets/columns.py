"""Reading published tables: exact columns or a clear error, and where the images that they name are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hilum.core.errors import HilumError, nearest
from hilum.data.tables import Table


def read(path: Path, columns: Sequence[str], *, dataset: str, licence: str) -> Table:
    """The table with every column in ``columns``; what is missing is named."""
    if not path.is_file():
        raise HilumError(
            f"{dataset}: {path.name} is not there",
            where=str(path.parent),
            fix=f"unpack the set as published; {licence}",
        )
    table = Table.read(path)
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise HilumError(
            f"{dataset}: {path.name} has no column {missing[0]!r}"
            + (f" (nor {len(missing) - 1} more)" if missing[1:] else ""),
            where=str(path),
            fix=nearest(missing[0], table.columns) or "the file differs from the published one; restore its header",
        )
    return table


def first_match(root: Path, patterns: Sequence[str], *, dataset: str) -> Path:
    """The first file that fits a pattern, in sorted order."""
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            return path
    raise HilumError(
        f"{dataset}: no {patterns[0]} below the archive", where=str(root), fix="index the folder that holds the table"
    )


def files_by_name(root: Path, suffix: str) -> dict[str, str]:
    """File name -> path from ``root``, of every file that ends in ``suffix``; links to folders are not followed."""
    found: dict[str, str] = {}
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in names:
            if name.endswith(suffix):
                found.setdefault(name, (Path(folder) / name).relative_to(root).as_posix())
    return found
