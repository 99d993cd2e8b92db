"""Rows of an index as they come from readers: identifiers keyed and dropped, what an earlier run knew reused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow
from hilum.data.identity import IdentityKey, Spelling, normalise, usable
from hilum.data.labels import accession_digest, instance_digest, patient_digest, study_digest
from hilum.data.ledger import STATE, path_bytes, path_text
from hilum.data.listing import Found, Listing

_SORTED = 1 << 14  # rows written at a time
_REMEMBERED = 1 << 17  # spellings kept in plain text; others are read again where they are needed
_NAMES = frozenset(STATE.names)
_OUTSIDE = pa.array(["unreadable", "missing_reference"])  # reasons: permissions, a failing disk, other files
INSTALLED = frozenset({"not_dicom", "unsupported_container", "unsupported_transfer_syntax"})  # reasons: no reader yet


class Keyed:
    """Turns identifiers into digests. Plain spellings, ``most`` of them, are handed on once, for ``private/merges.csv``."""

    OWN = (
        *("sample_id", "group_id", "group_known", "study_id", "series_id", "problems", "bytes", "has_report", "path"),
        *("member", "size", "mtime_ns", "reader", "instance", "accession", "patient", "spelling", "issued"),
    )

    def __init__(self, key: IdentityKey, reader: str, *, most: float = _REMEMBERED) -> None:
        self.key, self.reader, self.most = key, reader, most
        self._new: dict[str, Spelling] = {}
        self._known: set[str] = set()
        self._last: tuple[Any, dict[str, Any]] = (None, {})

    def told(self) -> dict[str, Spelling]:
        """Spellings, by digest, that were met since this was last asked."""
        new, self._new = self._new, {}
        return new

    def row(self, file: Found, row: IndexRow) -> dict[str, Any]:
        """A row of STATE. Identifiers become digests here and are dropped."""
        who, key = row.identity, self.key
        sample = key.digest("sample", file.path, row.member)
        whose = self._whose(who)
        refers = {key.digest("series", uid.strip("\0 ")) for uid in who.get("refers_to") or () if uid}
        return {
            **{name: value for name, value in row.columns.items() if name in _NAMES},
            "sample_id": sample,
            "status": row.status,
            "reason": row.reason,
            "message": row.message,
            "problems": sorted(set(row.problems)),
            "refers_to": sorted(refers) or None,
            **whose,
            "group_id": whose["group_id"] or f"unknown-{whose['study_id'] or sample}",
            "bytes": file.size,
            "has_report": False,
            "path": path_text(file.path),
            "member": row.member or None,
            "size": file.size,
            "mtime_ns": file.mtime_ns,
            "reader": self.reader,
            "instance": instance_digest(key, who["sop_instance_uid"]) if who.get("sop_instance_uid") else None,
        }

    def _whose(self, who: Mapping[str, Any]) -> dict[str, Any]:
        """Digests of what the files of one series have in common: the last series' are kept."""
        issuer, patient = (text or "" for text in who.get("group") or ("", ""))
        study, series, accession = (who.get(name) for name in ("study", "series", "accession"))
        asked = (issuer, patient, study, series, accession)
        if asked == self._last[0]:
            return self._last[1]
        key, known = self.key, usable(patient)
        spelling = key.spelling(issuer, patient) if known else None
        if spelling is not None and spelling not in self._known and len(self._known) < self.most:
            self._known.add(spelling)
            self._new[spelling] = issuer.strip("\0 "), patient.strip("\0 ")
        told = {
            "group_id": key.group(issuer, patient) if known else None,
            "group_known": known,
            "study_id": study_digest(key, study) if study else None,
            "series_id": key.digest("series", series.strip("\0 ")) if series else None,
            "accession": accession_digest(key, accession) if accession else None,
            "patient": patient_digest(key, patient) if known else None,
            "spelling": spelling,
            "issued": known and bool(normalise(issuer)),
        }
        self._last = asked, told
        return told


def find_previous(out: Path, key: IdentityKey, *, labelled: bool) -> Path | None:
    """Where STATE of an earlier run into ``out`` is; None where there is none, or one of other columns. Another key, or
    a table that is not given again, is an error."""
    file = out / "study.json"
    if not file.is_file():
        return None
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
    return state if state.is_file() and pq.read_schema(state).names == STATE.names else None


def read_previous(state: Path | None) -> Iterator[pa.Table]:
    """Rows of STATE, a few at a time."""
    if state is not None:
        with pq.ParquetFile(state) as file:
            for batch in file.iter_batches(_SORTED):
                yield pa.Table.from_batches([batch]).cast(STATE)  # Parquet renames the items of lists


class Known:
    """What earlier tables of STATE, the newest first, know of a listing's files.

    ``fresh`` are the entries (n,) to read; ``same`` the rows, one table for each given, of files that did not change.
    """

    def __init__(self, tables: Sequence[pa.Table], listing: Listing, *readers: str) -> None:
        accepted = pa.array(readers, pa.string())
        texts = texts_of(listing.paths)
        twice = len(pc.unique(texts)) < len(texts)  # a name that spells another one's bytes: both are read again
        open_ = ~listing.faults
        self.same: list[pa.Table] = []
        for table in tables:
            place = _places(table.column("path"), texts)
            hit = place >= 0
            for name, values in (("size", listing.sizes), ("mtime_ns", listing.times)):
                theirs = np.asarray(table.column(name), np.int64)
                hit &= theirs == np.asarray(values, np.int64)[np.maximum(place, 0)]
            hit &= np.asarray(pc.is_in(table.column("reader"), value_set=accepted), bool)
            hit &= ~np.asarray(pc.equal(table.column("reason"), "vanished").fill_null(False), bool)
            hit &= open_[np.maximum(place, 0)] if len(open_) else False
            if twice:
                hit &= np.asarray([listing.paths[int(p)].as_py() == path_bytes(texts[int(p)].as_py()) for p in place])
            hit = _once(table, hit)
            open_[place[hit]] = False
            self.same.append(_kept(table, hit))
        self.fresh: NDArray[np.int64] = np.flatnonzero(open_)


def _kept(table: pa.Table, hit: NDArray[np.bool_]) -> pa.Table:
    """Rows of a mapped table; blocks that are wanted whole stay where they are, on disk."""
    kept, start = [table.slice(0, 0)], 0
    for batch in table.to_batches():
        mask = hit[start : start + len(batch)]
        start += len(batch)
        kept.append(pa.Table.from_batches([batch if mask.all() else batch.filter(pa.array(mask))]))
    return pa.concat_tables(kept)


def _once(table: pa.Table, hit: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The first of rows for one sample: a file that was changed and changed back between interruptions has several."""
    samples = table.column("sample_id")
    if len(pc.unique(samples)) == len(samples):
        return hit
    rows = np.flatnonzero(hit)
    _, first = np.unique(np.asarray(samples.take(rows), str), return_index=True)
    kept = np.zeros_like(hit)
    kept[rows[first]] = True
    return kept


def settled(table: pa.Table) -> pa.Table:
    """Rows but those of files of which a row failed for what lies outside of the file: mending that leaves the file as
    it is, so only another reading can tell."""
    failed = pc.is_in(table.column("reason"), value_set=_OUTSIDE)
    if not pc.any(failed).as_py():
        return table
    files = pc.unique(table.column("path").filter(failed))
    return _kept(table, ~np.asarray(pc.is_in(table.column("path"), value_set=files), bool))


def vanished(previous: pa.Table, listing: Listing, now: Sequence[pa.Table]) -> pa.Table:
    """Rows of files, and of members of archives, that are no longer there, marked so. ``now`` are tables of STATE."""
    gone = _places(previous.column("path"), texts_of(listing.paths)) < 0
    inside = np.flatnonzero(np.asarray(previous.column("member").is_valid()) & ~gone)
    if len(inside):
        there = {pair for table in now for pair in _pairs(table)}
        gone[inside] = [pair not in there for pair in _pairs(previous.take(inside))]
    lost = previous.filter(pa.array(gone))
    for name, value in (("status", "skipped"), ("reason", "vanished"), ("message", "")):
        lost = lost.set_column(
            STATE.get_field_index(name), STATE.field(name), pa.array([value] * len(lost), pa.string())
        )
    return lost


def in_order(tables: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """All rows sorted by the bytes of ``path`` or ``archive!member``, some ten thousand at a time: equal rows give
    equal tables, wherever they came from. Rows of a part lie close together, so few parts are touched at a time."""
    tables = [pa.Table.from_batches([b]) for table in tables for b in table.to_batches() if len(b)]
    keys = pa.chunked_array([_bytes(places_of(table)) for table in tables], pa.large_binary())
    inside = pa.chunked_array([c for t in tables for c in t.column("member").is_valid().chunks], pa.bool_())
    samples = pa.chunked_array([c for t in tables for c in t.column("sample_id").chunks], pa.string())
    names = pa.table({"key": keys, "inside": pc.cast(inside, pa.uint8()), "sample": samples})
    by: list[Any] = [("key", "ascending"), ("inside", "descending"), ("sample", "ascending")]
    order = np.asarray(pc.sort_indices(names, by), np.int64)
    starts = np.cumsum([0, *(len(table) for table in tables)])
    for begin in range(0, len(order), _SORTED):
        rows = order[begin : begin + _SORTED]
        part = np.searchsorted(starts, rows, "right") - 1
        by_part = np.argsort(part, kind="stable")
        pieces = [tables[p].take(rows[by_part][part[by_part] == p] - starts[p]) for p in np.unique(part)]
        yield pa.concat_tables(pieces).combine_chunks().take(np.argsort(by_part)).combine_chunks()


def places_of(state: pa.Table) -> pa.Array:
    """``path`` or ``archive!member`` (n,) of rows, as text."""
    return pc.binary_join_element_wise(
        state.column("path"), state.column("member"), pa.scalar("!"), null_handling="skip"
    )


def _bytes(texts: Any) -> pa.Array:
    """Stored paths as the bytes that they stand for."""
    escaped = np.flatnonzero(np.asarray(pc.match_substring(texts, "\\x")))
    plain = pc.cast(texts, pa.large_string()).cast(pa.large_binary())
    plain = plain.combine_chunks() if isinstance(plain, pa.ChunkedArray) else plain
    if not len(escaped):
        return plain
    values = plain.to_pylist()
    for at in escaped.tolist():
        values[at] = path_bytes(values[at].decode())
    return pa.array(values, pa.large_binary())


def texts_of(paths: pa.Array) -> pa.Array:
    """Paths as they are stored."""
    with contextlib.suppress(pa.ArrowInvalid):  # some are not UTF-8
        texts = paths.cast(pa.large_string()).cast(pa.string())
        if not pc.any(pc.match_substring(texts, "\\x")).as_py():
            return texts
    return pa.array([path_text(path) for path in paths.to_pylist()], pa.string())


def _places(paths: Any, texts: pa.Array) -> NDArray[np.int64]:
    """For every path its entry in ``texts``, -1 where it has none."""
    return np.asarray(pc.index_in(paths, value_set=texts).fill_null(-1), np.int64)


def _pairs(table: pa.Table) -> list[tuple[str, str]]:
    inner = table.filter(table.column("member").is_valid())
    return list(zip(inner.column("path").to_pylist(), inner.column("member").to_pylist(), strict=True))
