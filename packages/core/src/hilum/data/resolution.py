"""What rows of an index say about each other: one patient's spellings, copies, conflicts, labels, reports, series."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.core.types import Intake
from hilum.data import ledger
from hilum.data.identity import IdentityKey, Merges, usable
from hilum.data.labels import ABOUT, GROUPS, JOINS, STUDIES, check_matched, findings_of, join
from hilum.data.reports import reports_of
from hilum.data.tables import Table

Row = dict[str, Any]


@dataclass
class Resolved:
    index: pa.Table
    series: pa.Table
    labels: pa.Table | None = None
    reports: pa.Table | None = None
    label_counts: dict[str, int] | None = None
    error: HilumError | None = None  # of the tables: raised once the index itself is safe on disk


def resolve(
    state: pa.Table,
    key: IdentityKey,
    merges: Merges,
    intakes: Sequence[Intake],
    *,
    labels: Table | None = None,
    by: str = "path",
    group: str | None = None,
    findings: Sequence[str] | None = None,
    reports: Path | None = None,
    max_unmatched: float = 0.01,
) -> Resolved:
    """The index of STATE rows. Order of rows decides nothing but which of several copies is the original."""
    rows: list[Row] = state.to_pylist()
    merged = merges.groups(key)
    for row in rows:
        row["group_id"] = merged.get(row["spelling"], row["group_id"])
    done = Resolved(state, state)
    try:
        if labels is not None:
            matched = join(labels, state, key, by=by)
            _describe(rows, labels, matched, key, group)
            done.labels, done.label_counts = _labels(rows, labels, matched, findings, group, limit=max_unmatched, by=by)
        if reports is not None:
            done.reports = _reports(rows, Table.read(reports), state, key, reports.parent)
    except HilumError as error:
        done.error = error
    _compare(rows)
    done.index = pa.Table.from_pylist(rows, schema=ledger.COLUMNS)
    done.series = pa.Table.from_pylist(list(_series(rows, intakes)), schema=ledger.SERIES)
    return done


def _describe(
    rows: list[Row], table: Table, matched: Sequence[int | None], key: IdentityKey, group: str | None
) -> None:
    """Fill what a file's own header does not say: group, study, view, laterality, modality, body part."""
    groups = table.need(group, why="the group of each file") if group else table.columns.get(table.find(*GROUPS) or "")
    issuers = table.columns.get(table.find("issuer") or "")
    studies = table.columns.get(table.find(*STUDIES) or "")
    about = {name: table.columns[c] for name in ABOUT if (c := table.find(name))}
    for row, at in zip(rows, matched, strict=True):
        if at is None:
            continue
        for target, values in about.items():
            if row[target] is None and values[at]:
                row[target] = values[at].upper()
        if not row["group_known"] and groups is not None and usable(groups[at]):
            row["group_id"] = key.group(issuers[at] if issuers else None, groups[at])
            row["group_known"] = True
        if row["study_id"] is None and studies is not None and studies[at]:
            row["study_id"] = key.digest("study of a table", row["group_id"] if row["group_known"] else "", studies[at])
        if not row["group_known"]:
            row["group_id"] = f"unknown-{row['study_id'] or row['sample_id']}"


def _labels(
    rows: list[Row],
    table: Table,
    matched: Sequence[int | None],
    names: Sequence[str] | None,
    group: str | None,
    *,
    limit: float,
    by: str,
) -> tuple[pa.Table, dict[str, int]]:
    """``labels.parquet``: sample_id, findings or class, and the table's own ``split`` where it has one."""
    images = [row["status"] == "indexed" and row["role"] == "image" for row in rows]
    counts = check_matched(table, matched, images, limit=limit, by=by)
    columns = findings_of(table, names=names, leave=() if group is None else (group,))
    if (split := table.find("split")) is not None:
        columns["split"] = pa.array([v or None for v in table.columns[split]], pa.string())
    kept = [
        (row["sample_id"], at)
        for row, at in zip(rows, matched, strict=True)
        if at is not None and row["status"] == "indexed"
    ]
    take = pa.array([at for _, at in kept], pa.int64())
    labels = {
        "sample_id": pa.array([sample for sample, _ in kept], pa.string()),
        **{n: v.take(take) for n, v in columns.items()},
    }
    return pa.table(labels), counts


def _reports(rows: list[Row], table: Table, state: pa.Table, key: IdentityKey, folder: Path) -> pa.Table:
    """Join reports to studies by the first key the table has, and mark the rows of those studies."""
    by = next((name for name in JOINS if table.find(name)), None)
    if by is None:
        raise HilumError(f"{table.name} has no column that says whose report it is", fix=f"one of {', '.join(JOINS)}")
    matched = join(table, state, key, by=by)
    studies: list[str | None] = [None] * len(table)
    for row, at in zip(rows, matched, strict=True):
        if at is not None:
            studies[at] = studies[at] or row["study_id"] or row["sample_id"]
    written = reports_of(table, studies, key, folder=folder)
    reported = set(written.column("study_id").to_pylist())
    for row in rows:
        row["has_report"] = (row["study_id"] or row["sample_id"]) in reported
    return written


def _compare(rows: list[Row]) -> None:
    """Copies and conflicts (FORMATS 5). Files of one UID are copies where pixels and patient agree, else in conflict;
    files without UIDs are copies where pixels agree and no patient contradicts."""
    indexed = [row for row in rows if row["status"] == "indexed"]
    for same in _by(indexed, lambda r: r["instance"]):
        original = same[0]
        if original["stored_sha256"] is None:
            continue  # headers only: nothing to compare
        if any(r["stored_sha256"] != original["stored_sha256"] or r["group_id"] != original["group_id"] for r in same):
            for row in same:
                _note(row, "uid_conflict")
        else:
            for row in same[1:]:
                row["duplicate_of"] = original["sample_id"]
    for same in _by(indexed, lambda r: r["stored_sha256"] if r["std"] else None):
        bare = [r for r in same if r["instance"] is None]
        for copies in _by(bare, lambda r: r["group_id"] if r["group_known"] else "unknown"):
            for row in copies[1:]:
                row["duplicate_of"] = copies[0]["sample_id"]
        if len({r["group_id"] for r in same if r["group_known"]}) > 1:
            for row in same:
                _note(row, "same_pixels_other_patient")


def _by(rows: Iterable[Row], key: Callable[[Row], str | None]) -> list[list[Row]]:
    """Groups of more than one row with the same key, in row order."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if (value := key(row)) is not None:
            groups[value].append(row)
    return [g for g in groups.values() if len(g) > 1]


def _note(row: Row, problem: str) -> None:
    row["problems"] = sorted({*(row["problems"] or ()), problem})


def _series(rows: list[Row], intakes: Sequence[Intake]) -> list[Row]:
    """``series.parquet`` as each intake sees the images of one series."""
    readers = {intake.name: intake for intake in intakes}
    members: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        usable_row = row["status"] == "indexed" and row["role"] == "image" and row["duplicate_of"] is None
        if usable_row and row["series_id"] is not None and row["source"] in readers:
            members[row["series_id"], row["source"]].append(row)
    found = [line for (_, source), same in sorted(members.items()) for line in readers[source].problems(same)]
    return sorted(found, key=lambda s: (s["series_id"], s["volume_id"]))
