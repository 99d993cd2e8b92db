"""Values of a few rows of a long table replaced; all others stay where they are, most often in a mapped file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Lists = dict[str, list[Any]]
BLOCK = 1 << 14  # rows turned into Python's values at a time


def revised(table: pa.Table, changes: Mapping[str, Mapping[int, Any]]) -> pa.Table:
    """With ``changes`` (column -> row -> value); blocks without any are shared with ``table``."""
    for name, values in changes.items():
        if not values:
            continue
        field, column = table.schema.field(name), table.column(name)
        rows = np.sort(np.fromiter(values, np.int64, len(values)))
        chunks: list[pa.Array] = []
        done = 0
        for block in np.unique(rows // BLOCK).tolist():
            start, stop = block * BLOCK, min((block + 1) * BLOCK, len(table))
            chunks += column.slice(done, start - done).chunks
            cells = column.slice(start, stop - start).to_pylist()
            for row in rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)].tolist():
                cells[row - start] = values[row]
            chunks.append(pa.array(cells, field.type))
            done = stop
        chunks += column.slice(done).chunks
        table = _with(table, field, pa.chunked_array(chunks, field.type))
    return table


def rewritten(
    table: pa.Table, read: Sequence[str], written: Sequence[str], change: Callable[[Lists, int], None]
) -> pa.Table:
    """With the columns ``written`` after ``change(lists of the columns read, first row)`` of every block."""
    chunks: dict[str, list[pa.Array]] = {name: [] for name in written}
    for start in range(0, len(table), BLOCK):
        part = table.slice(start, BLOCK)
        lists = {name: part.column(name).to_pylist() for name in read}
        change(lists, start)
        for name in written:
            chunks[name].append(pa.array(lists[name], table.schema.field(name).type))
    for name in written:
        field = table.schema.field(name)
        table = _with(table, field, pa.chunked_array(chunks[name], field.type))
    return table


def rows_of(table: pa.Table, rows: NDArray[np.int64], names: Sequence[str]) -> Lists:
    """Values of some rows, a list a column."""
    part = table.select(list(names)).take(pa.array(rows, pa.int64()))
    return {name: part.column(name).to_pylist() for name in names}


def codes_of(column: pa.ChunkedArray) -> tuple[NDArray[np.int32], list[Any]]:
    """(n,) the number of each value in the list of distinct ones, -1 where there is none."""
    coded = pc.dictionary_encode(column)
    chunks = [np.asarray(c.indices.fill_null(-1), np.int32) for c in coded.chunks]
    known = coded.chunk(coded.num_chunks - 1).dictionary.to_pylist() if coded.num_chunks else []
    return np.concatenate([*chunks, np.empty(0, np.int32)]), known


def equals(column: pa.ChunkedArray, value: Any) -> NDArray[np.bool_]:
    """(n,) where a column has a value; False where it has none."""
    return np.asarray(pc.equal(column, value).fill_null(False), bool)


def shared(column: pa.ChunkedArray, among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rows ``among`` (n,) whose value another one of them has, in order; now and then one more.

    Eight bytes a row: values are told apart by Python's hashes, so whoever asks compares what is found.
    """
    keys = np.empty(len(column), np.int64)
    for start in range(0, len(column), BLOCK):
        part = column.slice(start, BLOCK)
        keys[start : start + BLOCK] = np.fromiter(map(hash, part.to_pylist()), np.int64, len(part))
    rows = np.flatnonzero(among & np.asarray(column.is_valid(), bool))
    found = np.sort(keys[rows])
    twice = np.unique(found[1:][found[1:] == found[:-1]])
    return rows[np.isin(keys[rows], twice)]


def _with(table: pa.Table, field: pa.Field, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(field.name), field, column)
