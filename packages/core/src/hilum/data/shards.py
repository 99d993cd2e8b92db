"""The files of a shard cache: pairs ``NAME.bin`` (pixels back to back) and ``NAME.parquet`` (one row an image).

The table is written last: a shard without one does not exist. Nothing is changed in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hilum.core.checkpoint import FULL
from hilum.core.errors import HilumError
from hilum.core.types import Window
from hilum.data.image import STATISTICS, CachedImage
from hilum.data.ledger import replacing, write_table

ALIGN: Final = 64
SHARD_BYTES: Final = 256 << 20
SHARD_SECONDS: Final = 120.0  # a kill loses at most this much work

_TEXTS = ("sample_id", "appearance", "reason", "message", "dtype", "unit", "provenance")
_WHOLE = ("offset", "bytes", "channels", "height", "width", "source_height", "source_width")
_REAL = ("slope", "intercept", "spacing_y", "spacing_x", "lo", "hi", *STATISTICS)
SCHEMA: Final = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        *((name, pa.int64()) for name in _WHOLE),
        *((name, pa.float64()) for name in _REAL),
        ("inverted", pa.bool_()),
        ("window_kind", pa.string()),
        ("window_source", pa.string()),
        ("window_table", pa.dictionary(pa.int32(), pa.binary())),  # float64 little-endian, once a shard
    ]
)
_BLANK: Final[dict[str, Any]] = {**dict.fromkeys(SCHEMA.names), **dict.fromkeys(_WHOLE, 0), "inverted": False}


def record_of(image: CachedImage) -> tuple[dict[str, Any], bytes]:
    """A row of SCHEMA and the bytes it describes: pixels (C,H,W), then one byte a pixel where there is a valid mask."""
    stored, window, spacing = image.stored.numpy(), image.window, image.spacing_mm or (None, None)
    record = dict(zip(_WHOLE[2:], (*stored.shape, *image.source_size), strict=True)) | image.stats
    record |= {"dtype": stored.dtype.newbyteorder("<").str, "slope": image.slope, "intercept": image.intercept}
    record |= {"spacing_y": spacing[0], "spacing_x": spacing[1], "unit": image.unit, "inverted": image.inverted}
    record |= {"provenance": json.dumps(dict(image.provenance), sort_keys=True)}
    if window is not None:
        record |= {"lo": window.lo, "hi": window.hi, "window_kind": window.kind, "window_source": window.source}
        record |= {"window_table": np.array(window.table, "<f8").tobytes()}
    return record, stored.tobytes() + (b"" if image.valid is None else image.valid.numpy().tobytes())


class Shard:
    """A shard being written. It exists from :meth:`close` on, not before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.size, self.began = folder, 0, time.monotonic()
        self._rows: list[dict[str, Any]] = []
        self._chunks: list[bytes] = []

    @property
    def full(self) -> bool:
        return self.size > SHARD_BYTES or time.monotonic() - self.began > SHARD_SECONDS

    def add(self, record: Mapping[str, Any], data: bytes = b"") -> None:
        """``record`` names at least ``sample_id appearance``, and a ``reason`` where there are no pixels."""
        self._rows.append({**_BLANK, "reason": "", "message": "", **record, "offset": self.size, "bytes": len(data)})
        self._chunks += [data, bytes(-len(data) % ALIGN)]
        self.size += len(data) + (-len(data) % ALIGN)

    def close(self) -> None:
        rows, chunks, self._rows, self._chunks = self._rows, self._chunks, [], []
        if not rows:
            return
        content = hashlib.sha256("\n".join(r["sample_id"] for r in rows).encode()).hexdigest()[:16]
        path = self.folder / f"{time.time_ns():020d}-{content}.bin"  # names sort by time: later shards win
        try:
            with replacing(path) as stream:
                stream.writelines(chunks)
            write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path.with_suffix(".parquet"))
        except HilumError as error:
            path.unlink(missing_ok=True)
            if isinstance(error.__context__, OSError) and error.__context__.errno in FULL:
                raise HilumError(
                    f"the disk is full: {len(rows)} images could not be cached",
                    where=str(self.folder),
                    fix="free space and start again: finished shards are kept",
                ) from None
            raise


class Entries:
    """All tables of a cache as arrays, and where each row of the index stands in them; damaged shards are left out."""

    def __init__(self, folder: Path, study: Any) -> None:
        self.shards: list[Path] = []
        tables: list[pa.Table] = []
        for file in sorted(folder.glob("*.parquet")):
            with contextlib.suppress(pa.ArrowException, OSError, KeyError):
                table = pq.read_table(file, schema=SCHEMA)
                end = max(map(sum, zip(*(table[n].to_pylist() for n in ("offset", "bytes")), strict=True)), default=0)
                if file.with_suffix(".bin").stat().st_size >= end:
                    tables.append(table)
                    self.shards.append(file.with_suffix(".bin"))
        table = pa.concat_tables(tables).unify_dictionaries() if tables else SCHEMA.empty_table()
        self.shard = np.repeat(np.arange(len(tables)), [len(t) for t in tables])
        self.offset, self.bytes, self.inverted = (table[n].to_numpy() for n in ("offset", "bytes", "inverted"))
        self.shape = _stack(table, "channels", "height", "width")
        self.source = _stack(table, "source_height", "source_width")
        self.numbers = _stack(table, "slope", "intercept", *STATISTICS)
        self.spacing = _stack(table, "spacing_y", "spacing_x")
        names = ("dtype", "unit", "provenance", "reason", "message")
        self.dtype, self.unit, self.provenance, self.reason, self.message = (table[n].to_pylist() for n in names)
        self._read_windows(table)
        self._find_rows(table, study)

    def _read_windows(self, table: pa.Table) -> None:
        """Every distinct window once: a look-up table of 65,536 entries is shared by all images of one device."""
        self.windows: list[Window | None] = [None]
        self.window = np.zeros(len(table), np.int64)
        if not len(table):
            return
        tables = table["window_table"].combine_chunks()
        values = [tuple(np.frombuffer(b, "<f8").tolist()) for b in tables.dictionary.to_pylist()]
        known: dict[Any, int] = {}
        columns = (table[n].to_pylist() for n in ("window_kind", "window_source", "lo", "hi"))
        for at, key in enumerate(zip(*columns, tables.indices.to_pylist(), strict=True)):
            kind, source, lo, hi, place = key
            if kind is not None and key not in known:
                known[key] = len(self.windows)
                self.windows.append(Window(lo, hi, kind, values[place], source))
            self.window[at] = known.get(key, 0)

    def _find_rows(self, table: pa.Table, study: Any) -> None:
        place: dict[tuple[str, str], int] = {}
        keys = zip(table["sample_id"].to_pylist(), table["appearance"].to_pylist(), strict=True)
        for entry, key in enumerate(keys):
            if key not in place or self.reason[place[key]] or not self.reason[entry]:  # a failure never hides an image
                place[key] = entry
        wanted = zip(study.column("sample_id"), study.appearance, strict=True)
        self.entry = np.array([place.get(key, -1) for key in wanted], np.int64)


def _stack(table: pa.Table, *names: str) -> NDArray[Any]:
    return np.stack([table[name].to_numpy() for name in names], 1)
