"""What rows of an index say about each other: one patient's spellings, copies, conflicts, labels, reports, series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.core.types import Intake
from hilum.data import ledger
from hilum.data.findings import Labels, labels_of
from hilum.data.identity import IdentityKey, Merges, Spelling, normalise, usable
from hilum.data.labels import ABOUT, GROUPS, JOINS, STUDIES, Joined, check_matched, join, patient_digest
from hilum.data.patients import unite
from hilum.data.reports import reports_of
from hilum.data.tables import Table

Columns = dict[str, list[Any]]  # one list a column: a hundred thousand rows as dictionaries take a gigabyte
_CHANGED = (*ABOUT, "group_id", "group_known", "study_id", "has_report", "duplicate_of", "problems")
_READ = ("sample_id", "status", "reason", "role", "instance", "patient", "spelling", "issued")
_PICTURE = ("stored_sha256", "rows", "columns", "frames", "role", "std")
_BLOCK = 4096  # rows turned into dictionaries at a time


@dataclass
class Resolved:
    index: pa.Table
    series: pa.Table
    labels: pa.Table | None = None
    reports: pa.Table | None = None
    label_counts: dict[str, int] | None = None
    kinds: Labels | None = None  # which columns of the table are labels
    error: HilumError | None = None  # of the tables: raised once the work of reading is safe on disk


def resolve(
    state: pa.Table,
    key: IdentityKey,
    merges: Merges,
    intakes: Sequence[Intake],
    *,
    spellings: dict[str, Spelling],
    again: Callable[[list[int]], None],
    labels: Table | None = None,
    by: str = "path",
    group: str | None = None,
    findings: Sequence[str] | None = None,
    reports: Path | None = None,
    max_unmatched: float = 0.01,
) -> Resolved:
    """The index of STATE rows. Order of rows decides nothing but which of several copies is the original.
    For ``spellings`` and ``again`` see :func:`~hilum.data.patients.unite`."""
    rows: Columns = {name: state.column(name).to_pylist() for name in (*_CHANGED, *_READ, *_PICTURE)}
    done = Resolved(state, state)
    try:
        if labels is not None:
            joined = join(labels, state, key, by=by)
            _describe(rows, labels, joined.rows, key, group, spellings)
            done.label_counts = _check(rows, labels, joined, limit=max_unmatched, by=by)
            done.kinds = labels_of(labels, names=findings, leave=() if group is None else (group,))
            done.labels = _labels(rows, done.kinds, joined.rows)
        if reports is not None:
            done.reports = _reports(rows, Table.read(reports), state, key, reports.parent)
    except HilumError as error:
        done.error = error
    _note(rows, unite(rows, merges, key, spellings, again), "issuer_missing")
    _compare(rows)
    for name in _CHANGED:
        field = state.schema.field(name)
        state = state.set_column(state.schema.get_field_index(name), field, pa.array(rows[name], field.type))
    done.index = state.select(ledger.COLUMNS.names)
    done.series = pa.Table.from_pylist(list(_series(done.index, intakes)), schema=ledger.SERIES)
    return done


def _describe(
    rows: Columns,
    table: Table,
    matched: Sequence[int | None],
    key: IdentityKey,
    group: str | None,
    spellings: dict[str, Spelling],
) -> None:
    """Fill what a file's own header does not say: group, study, view, laterality, modality, body part."""
    groups = table.need(group, why="the group of each file") if group else table.columns.get(table.find(*GROUPS) or "")
    issuers = table.columns.get(table.find("issuer") or "")
    studies = table.columns.get(table.find(*STUDIES) or "")
    about = {name: table.columns[column] for name in ABOUT if (column := table.find(name))}
    for row, at in enumerate(matched):
        if at is None:
            continue
        for name, values in about.items():
            rows[name][row] = rows[name][row] or values[at].upper() or None
        if not rows["group_known"][row] and groups is not None and usable(groups[at]):
            issuer, patient = issuers[at] if issuers else "", groups[at]
            rows["group_id"][row], rows["group_known"][row] = key.group(issuer, patient), True
            rows["patient"][row], rows["issued"][row] = patient_digest(key, patient), bool(normalise(issuer))
            rows["spelling"][row] = key.spelling(issuer, patient)
            spellings[rows["spelling"][row]] = issuer.strip("\0 "), patient.strip("\0 ")
        known = rows["group_known"][row]
        if rows["study_id"][row] is None and studies is not None and studies[at]:
            rows["study_id"][row] = key.digest("study of a table", rows["group_id"][row] if known else "", studies[at])
        if not known:
            rows["group_id"][row] = f"unknown-{rows['study_id'][row] or rows['sample_id'][row]}"


def _check(rows: Columns, table: Table, joined: Joined, *, limit: float, by: str) -> dict[str, int]:
    images = [s == "indexed" and role == "image" for s, role in zip(rows["status"], rows["role"], strict=True)]
    return check_matched(table, joined, images, limit=limit, by=by)


def _labels(rows: Columns, kinds: Labels, matched: Sequence[int | None]) -> pa.Table:
    """``labels.parquet``: sample_id, findings or class, and the table's own ``split`` where it has one."""
    kept = [(row, at) for row, at in enumerate(matched) if at is not None and rows["status"][row] == "indexed"]
    take = pa.array([at for _, at in kept], pa.int64())
    samples = pa.array([rows["sample_id"][row] for row, _ in kept], pa.string())
    return pa.table({"sample_id": samples, **{name: values.take(take) for name, values in kinds.columns.items()}})


def _reports(rows: Columns, table: Table, state: pa.Table, key: IdentityKey, folder: Path) -> pa.Table:
    """Join reports to studies by the first key the table has, and mark the rows of those studies."""
    by = next((name for name in JOINS if table.find(name)), None)
    if by is None:
        raise HilumError(f"{table.name} has no column that says whose report it is", fix=f"one of {', '.join(JOINS)}")
    own = [study or sample for study, sample in zip(rows["study_id"], rows["sample_id"], strict=True)]
    studies: list[str | None] = [None] * len(table)
    for study, at in zip(own, join(table, state, key, by=by).rows, strict=True):
        if at is not None:
            studies[at] = studies[at] or study
    written = reports_of(table, studies, key, folder=folder)
    reported = set(written.column("study_id").to_pylist())
    rows["has_report"] = [study in reported for study in own]
    return written


def _compare(rows: Columns) -> None:
    """Copies and conflicts (FORMATS 5). Files of one UID are copies where pixels and patient agree, else in conflict;
    files of other UIDs, or none, are copies where pixels agree and the patient is known to be the same, or unknown
    of files without UIDs."""
    instance, pixels, group, known = (rows[n] for n in ("instance", "stored_sha256", "group_id", "group_known"))
    indexed = [at for at, status in enumerate(rows["status"]) if status == "indexed" and pixels[at] is not None]
    torn: set[int] = set()
    for same in _groups(indexed, instance):
        if len({(pixels[at], group[at]) for at in same}) > 1:
            _note(rows, same, "uid_conflict")
            torn.update(same)
        else:
            _copies(rows, same)
    varied = [at for at in indexed if rows["std"][at]]  # constant images are equal without being copies
    owner = [g if k else None if uid else "unknown" for g, k, uid in zip(group, known, instance, strict=True)]
    for same in _groups(varied, pixels):
        if len({group[at] for at in same if known[at]}) > 1:
            _note(rows, same, "same_pixels_other_patient")
    pictures = list(zip(*(rows[name] for name in _PICTURE[:-1]), strict=True))
    for same in _groups([at for at in varied if at not in torn], pictures):
        for copies in _groups(same, owner):
            _copies(rows, copies)


def _groups(members: Sequence[int], values: Sequence[Any]) -> list[list[int]]:
    """Rows that share a value with another one, in row order; None is shared by nobody."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for at in members:
        if values[at] is not None:
            groups[values[at]].append(at)
    return [g for g in groups.values() if len(g) > 1]


def _copies(rows: Columns, same: Sequence[int]) -> None:
    for at in same[1:]:
        rows["duplicate_of"][at] = rows["sample_id"][same[0]]


def _note(rows: Columns, same: Sequence[int], problem: str) -> None:
    for at in same:
        rows["problems"][at] = sorted({*(rows["problems"][at] or ()), problem})


def _series(index: pa.Table, intakes: Sequence[Intake]) -> list[dict[str, Any]]:
    """``series.parquet`` as each intake sees the images of one series."""
    readers = {intake.name: intake for intake in intakes}
    names = ("status", "role", "duplicate_of", "series_id", "source")
    rows = zip(*(index.column(name).to_pylist() for name in names), strict=True)
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for at, (status, role, original, series, source) in enumerate(rows):
        if (status, role, original) == ("indexed", "image", None) and series is not None and source in readers:
            members[series, source].append(at)
    found: list[dict[str, Any]] = []
    for block in _blocks(list(members.items())):
        lines = index.take(pa.array([at for _, same in block for at in same], pa.int64())).to_pylist()
        start = 0
        for (_, source), same in block:
            found += readers[source].problems(lines[start : start + len(same)])
            start += len(same)
    return sorted(found, key=lambda s: (s["series_id"], s["volume_id"]))


def _blocks(series: list[tuple[tuple[str, str], list[int]]]) -> Iterator[list[tuple[tuple[str, str], list[int]]]]:
    """Whole series, a few thousand rows together."""
    block, size = [], 0
    for item in series:
        block.append(item)
        size += len(item[1])
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block
