"""What rows of an index say about each other: one patient's spellings, copies, conflicts, labels, reports, series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hilum.core.errors import HilumError
from hilum.core.types import Intake
from hilum.data import ledger
from hilum.data.comparison import compared
from hilum.data.findings import Labels, labels_of
from hilum.data.identity import IdentityKey, Merges, Spelling, normalise, usable
from hilum.data.labels import ABOUT, GROUPS, JOINS, STUDIES, Joined, check_matched, join, patient_digest
from hilum.data.patients import united
from hilum.data.reports import reports_of
from hilum.data.revision import Lists, equals, revised, rewritten
from hilum.data.series import series_of
from hilum.data.tables import Table

_CORRECTED = ("role", "photometric", "inverted")  # by a published set's table, where the file itself cannot say
_OWN = ("group_id", "group_known", "study_id", "patient", "spelling", "issued")


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
    volume_options: frozenset[str] = frozenset(),
    published: bool = False,
) -> Resolved:
    """The index of STATE rows. Order of rows decides nothing but which of several copies is the original.
    For ``spellings`` and ``again`` see :func:`~hilum.data.patients.united`."""
    done = Resolved(state, state)
    try:
        if labels is not None:
            joined = join(labels, state, key, by=by)
            state = _described(state, labels, joined, key, group, spellings, published=published)
            done.label_counts = _check(state, labels, joined, limit=max_unmatched, by=by)
            done.kinds = labels_of(labels, names=findings, leave=_left(group, published))
            done.labels = _labels(state, done.kinds, joined.rows)
        if reports is not None:
            done.reports, state = _reports(state, Table.read(reports), key, reports.parent)
    except HilumError as error:
        done.error = error
    state = revised(state, united(state, merges, key, spellings, again))
    done.index = revised(state, compared(state)).select(ledger.COLUMNS.names)
    done.series = series_of(done.index, intakes, volume_options)
    return done


def _left(group: str | None, published: bool) -> tuple[str, ...]:
    """Columns of the table that have another use than as labels."""
    return (*(() if group is None else (group,)), *(_CORRECTED if published else ()))


def _described(
    state: pa.Table,
    table: Table,
    joined: Joined,
    key: IdentityKey,
    group: str | None,
    spellings: dict[str, Spelling],
    *,
    published: bool,
) -> pa.Table:
    """Rows of STATE with what the table knows better, or alone."""
    written = (*ABOUT, *_OWN, *(_CORRECTED if published else ()))
    read = dict.fromkeys((*written, *(("source",) if published else ()), "sample_id"))

    def change(rows: Lists, start: int) -> None:
        matched = joined.rows[start : start + len(rows["sample_id"])]
        if published:
            _trust(rows, table, matched)
        _describe(rows, table, matched, key, group, spellings)

    return rewritten(state, [*read], written, change)


def _trust(rows: Lists, table: Table, matched: Sequence[int | None]) -> None:
    """What a published set's table decides: who is who (its headers name images as often as people), which files are
    masks, and the polarity of pictures whose file cannot say it."""
    for row, (study, sample) in enumerate(zip(rows["study_id"], rows["sample_id"], strict=True)):
        rows["group_id"][row], rows["group_known"][row] = f"unknown-{study or sample}", False
        rows["patient"][row] = rows["spelling"][row] = None
        rows["issued"][row] = False
    roles, kinds = (table.columns.get(table.find(name) or "") for name in ("role", "photometric"))
    for row, at in enumerate(matched):
        if at is None or rows["role"][row] != "image":
            continue
        if roles is not None and roles[at] == "label":
            rows["role"][row] = "label"
        if kinds is not None and kinds[at] == "MONOCHROME1" and rows["source"][row] == "image-files":
            rows["photometric"][row], rows["inverted"][row] = "MONOCHROME1", True


def _describe(
    rows: Lists,
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


def _check(state: pa.Table, table: Table, joined: Joined, *, limit: float, by: str) -> dict[str, int]:
    images = equals(state.column("status"), "indexed") & equals(state.column("role"), "image")
    return check_matched(table, joined, images.tolist(), limit=limit, by=by)


def _labels(state: pa.Table, kinds: Labels, matched: Sequence[int | None]) -> pa.Table:
    """``labels.parquet``: sample_id, findings or class, and the table's own ``split`` where it has one."""
    at = np.fromiter((-1 if m is None else m for m in matched), np.int64, len(matched))
    rows = np.flatnonzero((at >= 0) & equals(state.column("status"), "indexed"))
    samples, take = state.column("sample_id").take(pa.array(rows, pa.int64())), pa.array(at[rows], pa.int64())
    return pa.table({"sample_id": samples, **{name: values.take(take) for name, values in kinds.columns.items()}})


def _reports(state: pa.Table, table: Table, key: IdentityKey, folder: Path) -> tuple[pa.Table, pa.Table]:
    """(reports, rows): reports joined to studies by the first key the table has, and rows that say whether their study
    has one."""
    by = next((name for name in JOINS if table.find(name)), None)
    if by is None:
        raise HilumError(f"{table.name} has no column that says whose report it is", fix=f"one of {', '.join(JOINS)}")
    own = pc.coalesce(state.column("study_id"), state.column("sample_id"))
    studies: list[str | None] = [None] * len(table)
    for row, at in enumerate(join(table, state, key, by=by).rows):
        if at is not None and studies[at] is None:
            studies[at] = own[row].as_py()
    written = reports_of(table, studies, key, folder=folder)
    reported = pc.is_in(own, value_set=written.column("study_id").combine_chunks())
    place = state.schema.get_field_index("has_report")
    return written, state.set_column(place, state.schema.field(place), reported)
