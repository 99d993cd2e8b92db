"""Rows of an index as they come from readers: identifiers keyed and dropped, what an earlier run knew reused."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow
from hilum.data.identity import IdentityKey, Spelling, normalise, usable
from hilum.data.labels import accession_digest, instance_digest, patient_digest, study_digest
from hilum.data.ledger import STATE, path_bytes, path_text
from hilum.data.listing import Found

_BLOCK = 4096  # rows held as dictionaries before they become a table
_NAMES = frozenset(STATE.names)
Reading = Callable[[list[Found]], Iterable[tuple[Found, IndexRow]]]


class State:
    """Collects rows of STATE; ``spellings`` keeps the plain identifiers of this run, in memory only."""

    def __init__(self, key: IdentityKey, reader: str) -> None:
        self.key, self.reader = key, reader
        self.spellings: dict[str, Spelling] = {}
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []

    def add(self, file: Found, row: IndexRow) -> None:
        """A row that a reader gave, or that stands for a file that must not be read."""
        self._rows.append(self.row(file, row))
        if len(self._rows) >= _BLOCK:
            self._flush()

    def reuse(self, table: pa.Table) -> None:
        """Rows of an earlier run."""
        self._tables.append(table)

    def _flush(self) -> None:
        self._tables.append(pa.Table.from_pylist(self._rows, schema=STATE))
        self._rows = []

    def table(self) -> pa.Table:
        """All rows, sorted by path bytes, in one chunk: equal rows give equal files."""
        self._flush()
        whole = pa.concat_tables(self._tables)
        paths, members = (whole.column(name).to_pylist() for name in ("path", "member"))
        places = [(path_bytes(path), member or "") for path, member in zip(paths, members, strict=True)]
        return whole.take(pa.array(sorted(range(len(places)), key=places.__getitem__), pa.int64())).combine_chunks()

    def row(self, file: Found, row: IndexRow) -> dict[str, Any]:
        """Identifiers become digests here and are dropped."""
        who, key = row.identity, self.key
        sample = key.digest("sample", file.path, row.member)
        study = study_digest(key, who["study"]) if who.get("study") else None
        issuer, patient = (text or "" for text in who.get("group") or ("", ""))
        known = usable(patient)
        spelling = key.spelling(issuer, patient) if known else None
        if spelling is not None:
            self.spellings[spelling] = issuer.strip("\0 "), patient.strip("\0 ")
        return {
            **{name: value for name, value in row.columns.items() if name in _NAMES},
            "sample_id": sample,
            "status": row.status,
            "reason": row.reason,
            "message": row.message,
            "problems": sorted(set(row.problems)),
            "group_id": key.group(issuer, patient) if known else f"unknown-{study or sample}",
            "group_known": known,
            "study_id": study,
            "series_id": key.digest("series", who["series"].strip("\0 ")) if who.get("series") else None,
            "bytes": file.size,
            "has_report": False,
            "path": path_text(file.path),
            "member": row.member or None,
            "size": file.size,
            "mtime_ns": file.mtime_ns,
            "reader": self.reader,
            "instance": instance_digest(key, who["sop_instance_uid"]) if who.get("sop_instance_uid") else None,
            "accession": accession_digest(key, who["accession"]) if who.get("accession") else None,
            "patient": patient_digest(key, patient) if known else None,
            "spelling": spelling,
            "issued": known and bool(normalise(issuer)),
        }

    def learn(self, table: pa.Table, rows: Sequence[int], read: Reading) -> None:
        """Read the files of some rows of ``table`` again, to have their identifiers in plain text."""
        places = table.select(["path", "size", "mtime_ns"]).take(pa.array(rows, pa.int64())).to_pylist()
        for file, row in read([Found(path_bytes(p["path"]), p["size"], p["mtime_ns"]) for p in places]):
            self.row(file, row)


def read_previous(out: Path, key: IdentityKey, *, labelled: bool) -> pa.Table:
    """STATE of an earlier run into ``out``, empty where there is none; another key or a forgotten table is an error."""
    file, empty = out / "study.json", STATE.empty_table()
    if not file.is_file():
        return empty
    about = json.loads(file.read_text())
    if about.get("id_key") != key.fingerprint:
        raise HilumError(
            "the study was indexed with another identity key",
            where=str(out),
            fix="pass the same --id-key, or another --out",
        )
    if about.get("join") and not labelled:
        raise HilumError(
            "the study was indexed with a table", where=str(out), fix="pass the same --labels, or another --out"
        )
    state = out / "private" / "state.parquet"
    if not state.is_file() or pq.read_schema(state).names != STATE.names:
        return empty
    return pq.read_table(state).cast(STATE)  # Parquet renames the items of lists


def reusable(previous: pa.Table, found: Sequence[Found], reader: str) -> tuple[pa.Table, list[Found]]:
    """(rows of files that did not change, files to read)."""
    names = ("path", "size", "mtime_ns", "reader", "reason")
    rows: dict[str, list[int]] = defaultdict(list)
    about: dict[str, tuple[int, int]] = {}
    for at, (path, size, mtime, by, reason) in enumerate(
        zip(*(previous.column(n).to_pylist() for n in names), strict=True)
    ):
        if by == reader and reason != "vanished":
            rows[path].append(at)
            about[path] = size, mtime
    fresh = [f for f in found if f.fault is None and about.get(path_text(f.path)) != (f.size, f.mtime_ns)]
    skip = {f.path for f in fresh}
    same = [at for f in found if f.fault is None and f.path not in skip for at in rows[path_text(f.path)]]
    return previous.take(pa.array(same, pa.int64())), fresh


def vanished(previous: pa.Table, found: Sequence[Found]) -> pa.Table:
    """Rows of files that are no longer there, marked so."""
    there = {path_text(f.path) for f in found}
    gone = previous.filter(pa.array(np.array([p not in there for p in previous.column("path").to_pylist()], bool)))
    for name, value in (("status", "skipped"), ("reason", "vanished"), ("message", "")):
        gone = gone.set_column(
            STATE.get_field_index(name), STATE.field(name), pa.array([value] * len(gone), pa.string())
        )
    return gone
