"""What rows of an index say about each other: one patient's spellings, copies, conflicts, labels, reports, series."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_CORRECTED = ("role", "photometric", "inverted")  # by a published set's table, where the file itself cannot say
_READ = ("sample_id", "status", "reason", "source", "instance", "patient", "spelling", "issued")
_PICTURE = ("stored_sha256", "rows", "columns", "frames", "role", "std")
# What an intake sees of the rows of one series: who, and where. Statistics and hashes are half of a row's cost.
_PLACED = (
    *("sample_id", "series_id", "study_id", "group_id", "group_known", "modality", "photometric", "problems"),
    *("frames", "rows", "columns", "spacing_mm", "orientation", "positions", "frame_keys", "frames_axis"),
)
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
    volume_options: frozenset[str] = frozenset(),
    published: bool = False,
) -> Resolved:
    """The index of STATE rows. Order of rows decides nothing but which of several copies is the original.
    For ``spellings`` and ``again`` see :func:`~hilum.data.patients.unite`."""
    rows: Columns = {name: _values(state.column(name)) for name in (*_CHANGED, *_CORRECTED, *_READ, *_PICTURE)}
    done = Resolved(state, state)
    try:
        if labels is not None:
            joined = join(labels, state, key, by=by)
            if published:
                _trust(rows, labels, joined.rows)
            _describe(rows, labels, joined.rows, key, group, spellings)
            done.label_counts = _check(rows, labels, joined, limit=max_unmatched, by=by)
            done.kinds = labels_of(labels, names=findings, leave=_left(group, published))
            done.labels = _labels(rows, done.kinds, joined.rows)
        if reports is not None:
            done.reports = _reports(rows, Table.read(reports), state, key, reports.parent)
    except HilumError as error:
        done.error = error
    _note(rows, unite(rows, merges, key, spellings, again), "issuer_missing")
    _compare(rows)
    for name in (*_CHANGED, *_CORRECTED):
        field = state.schema.field(name)
        state = state.set_column(state.schema.get_field_index(name), field, pa.array(rows[name], field.type))
    done.index = state.select(ledger.COLUMNS.names)
    rows.clear()  # a kilobyte a row, and series need their own
    done.series = pa.Table.from_pylist(list(_series(done.index, intakes, volume_options)), schema=ledger.SERIES)
    return done


def _left(group: str | None, published: bool) -> tuple[str, ...]:
    """Columns of the table that have another use than as labels."""
    return (*(() if group is None else (group,)), *(_CORRECTED if published else ()))


def _trust(rows: Columns, table: Table, matched: Sequence[int | None]) -> None:
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


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A column as a list in which equal texts are one object, and so are all empty lists: lists are replaced, never
    changed."""
    if pa.types.is_list(column.type):
        nothing: list[Any] = []
        return [value or nothing if value is not None else None for value in column.to_pylist()]
    if not pa.types.is_string(column.type):
        return list(column.to_pylist())
    coded = column.combine_chunks().dictionary_encode()
    coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
    texts = [*coded.dictionary.to_pylist(), None]
    return [texts[at] for at in coded.indices.fill_null(-1).to_pylist()]


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
    for same in _groups([at for at in varied if at not in torn], pixels):
        pictures = {at: tuple(rows[name][at] for name in _PICTURE[:-1]) for at in same}
        for alike in _groups(same, pictures):
            for copies in _groups(alike, owner):
                _copies(rows, copies)


def _groups(members: Sequence[int], values: Sequence[Any] | Mapping[int, Any]) -> list[list[int]]:
    """Rows that share a value with another one, in row order; None is shared by nobody."""
    first: dict[Any, int] = {}
    groups: dict[Any, list[int]] = {}  # only of values that are shared: most are not
    for at in members:
        value = values[at]
        if value is not None and (one := first.setdefault(value, at)) != at:
            groups.setdefault(value, [one]).append(at)
    return list(groups.values())


def _copies(rows: Columns, same: Sequence[int]) -> None:
    for at in same[1:]:
        rows["duplicate_of"][at] = rows["sample_id"][same[0]]


def _note(rows: Columns, same: Sequence[int], problem: str) -> None:
    for at in same:
        rows["problems"][at] = sorted({*(rows["problems"][at] or ()), problem})


def _series(index: pa.Table, intakes: Sequence[Intake], options: frozenset[str]) -> list[dict[str, Any]]:
    """``series.parquet`` as each intake sees the images of one series, or of a file that has a place but no series.

    Rows in conflict over one UID are left out, and no volume of their series is usable: what it lacks is not known. Where
    files of a series are quarantined, its rows say so to the intake (``lost_slices:N``)."""
    readers = {intake.name: intake for intake in intakes}
    members, torn, lost = _members(index, readers)
    found: list[dict[str, Any]] = []
    placed = index.select([name for name in _PLACED if name in index.column_names])
    for block in _blocks(sorted(members.items())):
        lines = placed.take(pa.array([at for _, same in block for at in same], pa.int64())).to_pylist()
        start = 0
        for name, same in block:
            own = lines[start : start + len(same)]
            if lost[name]:
                own = [row | {"problems": [*(row["problems"] or ()), f"lost_slices:{lost[name]}"]} for row in own]
            for volume in _volumes(readers[name[1]], own, options):
                if torn[name]:
                    volume |= {"problems": sorted([*volume["problems"], f"uid_conflict:{torn[name]}"]), "usable": False}
                found.append(volume)
            start += len(same)
    return sorted(found, key=lambda s: (s["series_id"], s["volume_id"]))


def _members(
    index: pa.Table, readers: Mapping[str, Intake]
) -> tuple[dict[tuple[str, str], list[int]], Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """(rows of each series and reader, how many more are in conflict, how many more are quarantined).

    A copy counts where it lies elsewhere than its original, or in another series that is no copy as a whole: a volume
    without it would lack a slice."""
    names = ("status", "role", "series_id", "source", "sample_id", "problems", "duplicate_of")
    status, role, series, source, sample, problems, original = (_values(index.column(n)) for n in names)
    place = index.column("positions")
    has_place = place.is_valid().to_pylist()
    rows = {name: at for at, name in enumerate(sample)}
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    copies: dict[tuple[str, str], list[int]] = defaultdict(list)
    torn, lost = (Counter[tuple[str, str]]() for _ in range(2))
    for at in range(len(sample)):
        own = series[at] or (sample[at] if has_place[at] else None)
        if status[at] == "quarantined" and series[at]:
            lost[series[at], source[at]] += 1
        if (status[at], role[at]) != ("indexed", "image") or own is None or source[at] not in readers:
            continue
        first = rows.get(original[at]) if original[at] is not None else None
        if "uid_conflict" in (problems[at] or ()):
            torn[own, source[at]] += 1
        elif original[at] is None:
            members[own, source[at]].append(at)
        elif first is None or series[first] != series[at] or place[first].as_py() != place[at].as_py():
            copies[own, source[at]].append(at)
    return {name: sorted([*same, *copies[name]]) for name, same in members.items()}, torn, lost


def _volumes(intake: Any, rows: list[dict[str, Any]], options: frozenset[str]) -> list[dict[str, Any]]:
    known = getattr(intake, "volume_options", None)  # an intake without any need not take the argument
    volumes: list[dict[str, Any]] = intake.problems(rows, options & set(known)) if known else intake.problems(rows)
    return volumes


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
