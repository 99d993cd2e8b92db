"""Report texts: they stay in ``private/`` and are joined to studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.data.identity import IdentityKey
from hilum.data.tables import Table

REPORTS = pa.schema(
    [(n, pa.string()) for n in ("report_id", "study_id", "section")] + [("sentence", pa.int32()), ("text", pa.string())]
)


def reports_of(table: Table, studies: Sequence[str | None], key: IdentityKey, *, folder: Path | None) -> pa.Table:
    """``private/reports.parquet``: one row a report, section ``full``; ``studies`` gives each table row's study."""
    column = table.find("text", "file")
    if column is None:
        table.need("text", why="reports come as 'text' or as 'file'")
        raise AssertionError
    load: Callable[[str], str] = (
        (lambda t: t) if column.casefold() == "text" else (lambda name: _read_text(folder, name))
    )
    lines = []
    for row, (study, value) in enumerate(zip(studies, table.columns[column], strict=True)):
        if study is not None and value:
            lines.append((key.digest("report", study, str(row)), study, "full", 0, load(value)))
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(zip(*lines, strict=True), REPORTS, strict=True)]
        if lines
        else [pa.array([], f.type) for f in REPORTS],
        schema=REPORTS,
    )


def _read_text(folder: Path | None, name: str) -> str:
    try:
        return ((folder or Path()) / name).read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise HilumError(
            f"a report file cannot be read: {error.strerror}", fix="paths in 'file' are relative to the table"
        ) from None
