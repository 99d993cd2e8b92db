"""``hilum index``: every file of an archive ends as indexed, skipped or quarantined, with a reason.

The result is a function of the files, the key and the tables: not of listing order, number of workers, or of what an
earlier run already knew.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow, Intake, Limits
from hilum.data import ledger
from hilum.data.identity import IdentityKey, Merges, usable
from hilum.data.isolation import Readers
from hilum.data.labels import accession_digest, instance_digest, patient_digest, study_digest
from hilum.data.ledger import path_bytes, path_text
from hilum.data.listing import Found, walk
from hilum.data.resolution import resolve
from hilum.data.tables import Table

READER = "1"  # raise when the same file would give another row: all files are then read again


@dataclass(frozen=True)
class IndexResult:
    """``counts``: found, indexed, skipped, quarantined, vanished, read (not known from before), reasons, labels."""

    counts: dict[str, Any]
    exit_code: int
    study: Path


def index_archive(
    root: Path | str,
    out: Path | str,
    *,
    labels: Path | str | pa.Table | None = None,
    join: str = "path",
    group: str | None = None,
    findings: Sequence[str] | None = None,
    dataset: Any = None,
    reports: Path | str | None = None,
    id_key: Path | str | None = None,
    workers: int | None = None,
    headers_only: bool = False,
    exclude: Sequence[str] = (),
    limits: Limits | None = None,
    max_quarantined: float | str | None = None,
    max_unmatched: float = 0.01,
    progress: bool = True,
    intakes: Sequence[Intake] | None = None,
) -> IndexResult:
    """Read an archive into a study (FORMATS 1, 3-6).

    ``labels`` is joined by ``join``; ``group`` names its column that holds the patient (or whatever must stay on one
    side of a split) for files whose header does not say, by default ``patient_id`` or ``group_id``. ``dataset`` (a
    registered name, or an object with ``table(root)``) stands for the labels of a known layout. ``workers=0`` reads in
    this process.
    A second call reads only new and changed files and marks those that are gone.
    """
    root, out, limits = Path(root), Path(out), limits or Limits()
    if not root.is_dir():
        raise HilumError("the archive is not a folder that can be read", where=str(root))
    key = IdentityKey.load(id_key)
    previous = _previous(out, key, labelled=labels is not None or dataset is not None)
    table = _labels(labels, dataset, root)
    if table is not None and dataset is not None:
        join, group = "path", group or "patient_id"
    found = sorted(walk(root, out, exclude), key=lambda f: f.path)
    if not found:
        raise HilumError("the archive holds no files", where=str(root))
    readers = Readers(_intakes(intakes), workers=_workers(workers), limits=limits, headers_only=headers_only)
    stamp = f"{READER} {_version()} {'headers' if headers_only else 'pixels'} {limits}"
    known = {row["path"]: row for row in previous if row["reader"] == stamp}
    rows: list[dict[str, Any]] = []
    fresh: list[Found] = []
    for file in found:
        old = known.get(path_text(file.path))
        if file.fault is not None:
            rows.append(_base(file, IndexRow(*file.fault), key, stamp))  # type: ignore[arg-type]
        elif old is not None and (old["size"], old["mtime_ns"]) == (file.size, file.mtime_ns):
            rows.append(old)
        else:
            fresh.append(file)
    merges = Merges.read(out / "private" / "merges.csv")
    spellings: dict[str, tuple[str, str]] = {}
    for file, row in _read(readers, root, fresh, progress=progress):
        rows.append(_base(file, row, key, stamp, spellings))
    _learn_merges(merges, rows, spellings, lambda files: _read(readers, root, files, progress=False), key)
    gone = {path_text(f.path) for f in found}
    rows += [{**r, "status": "skipped", "reason": "vanished", "message": ""} for r in previous if r["path"] not in gone]
    rows.sort(key=lambda r: (path_bytes(r["path"]), r["sample_id"]))
    state = pa.Table.from_pylist(rows, schema=ledger.STATE)
    done = resolve(
        state, key, merges, readers.intakes, labels=table, by=join, group=group, findings=findings,
        reports=None if reports is None else Path(reports), max_unmatched=max_unmatched,
    )  # fmt: skip
    counts = {
        **ledger.counts_of(done.index),
        "read": len(fresh),
        **({"labels": done.label_counts} if table is not None else {}),
    }
    _write(
        out,
        root,
        key,
        state,
        done,
        merges,
        {"counts": counts, "headers_only": headers_only, "join": join if table is not None else None},
    )
    if done.error is not None:
        raise done.error
    return IndexResult(counts, ledger.exit_code(done.index, max_quarantined=max_quarantined), out)


# -- reading -------------------------------------------------------------------------------------------------------


def _read(readers: Readers, root: Path, files: Sequence[Found], *, progress: bool) -> Iterator[tuple[Found, IndexRow]]:
    results = readers.read([root / os.fsdecode(f.path) for f in files])
    for number, rows in _progress(results, len(files), shown=progress):
        for row in rows:
            yield files[number], row


def _progress(results: Iterable[Any], total: int, *, shown: bool) -> Iterator[Any]:
    """A bar with the time that is left, on a terminal only."""
    if not (shown and total and sys.stderr.isatty()):
        yield from results
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("index", total=total)
        for result in results:
            yield result
            bar.advance(task)


def _base(
    file: Found, row: IndexRow, key: IdentityKey, stamp: str, spellings: dict[str, tuple[str, str]] | None = None
) -> dict[str, Any]:
    """A row of STATE: identifiers become digests here and are dropped."""
    who = row.identity
    path = path_text(file.path) + (f"!{row.member}" if row.member else "")
    sample = key.digest("sample", file.path, row.member)
    study = study_digest(key, who["study"]) if who.get("study") else None
    issuer, patient = (text or "" for text in who.get("group") or ("", ""))
    known = usable(patient)
    base: dict[str, Any] = dict.fromkeys(ledger.STATE.names)
    base |= {name: value for name, value in row.columns.items() if name in base}
    base |= {
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
        "path": path,
        "size": file.size,
        "mtime_ns": file.mtime_ns,
        "reader": stamp,
        "instance": instance_digest(key, who["sop_instance_uid"]) if who.get("sop_instance_uid") else None,
        "accession": accession_digest(key, who["accession"]) if who.get("accession") else None,
        "patient": patient_digest(key, patient) if known else None,
        "spelling": key.spelling(issuer, patient) if known else None,
    }
    if known and spellings is not None:
        spellings[str(base["spelling"])] = issuer.strip("\0 "), patient.strip("\0 ")
    return base


def _learn_merges(
    merges: Merges,
    rows: Sequence[dict[str, Any]],
    spellings: dict[str, tuple[str, str]],
    read: Callable[[list[Found]], Iterator[tuple[Found, IndexRow]]],
    key: IdentityKey,
) -> None:
    """List groups of more than one spelling. Plain text is not kept between runs: where it is needed of a file that did
    not change, that file is read again."""
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["spelling"] is not None:
            variants.setdefault(row["group_id"], {}).setdefault(row["spelling"], row)
    listed = set(merges.groups(key))
    joined = [v for v in variants.values() if len(v) > 1 and not listed >= set(v)]
    again = [
        Found(path_bytes(r["path"]), r["size"], r["mtime_ns"])
        for v in joined
        for s, r in v.items()
        if s not in spellings and s not in listed
    ]
    for file, fresh in read(again) if again else ():
        _base(file, fresh, key, "", spellings)
    merges.add(spellings[s] for v in joined for s in sorted(v) if s in spellings)


# -- around it -----------------------------------------------------------------------------------------------------


def _version() -> str:
    try:
        return version("hilum")
    except PackageNotFoundError:
        return "0"


def _workers(workers: int | None) -> int:
    if workers is not None:
        if workers < 0:
            raise HilumError(f"{workers} workers cannot read", fix="--workers 0 reads in this process")
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _intakes(intakes: Sequence[Intake] | None) -> list[Intake]:
    if intakes is not None:
        return list(intakes)
    from hilum.core.registry import registry

    return [kind() for kind in registry.all("intake").values()]


def _labels(labels: Path | str | pa.Table | None, dataset: Any, root: Path) -> Table | None:
    if dataset is None:
        return None if labels is None else Table.read(labels)
    if labels is not None:
        raise HilumError("labels come from the dataset or from a table, not from both", fix="leave out --labels")
    if isinstance(dataset, str):
        from hilum.core.registry import registry

        dataset = registry.build("dataset", dataset)
    return Table.read(dataset.table(root))


def _previous(out: Path, key: IdentityKey, *, labelled: bool) -> list[dict[str, Any]]:
    file = out / "study.json"
    if not file.is_file():
        return []
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
    return pq.read_table(state, schema=ledger.STATE).to_pylist() if state.is_file() else []


def _write(
    out: Path, root: Path, key: IdentityKey, state: pa.Table, done: Any, merges: Merges, about: dict[str, Any]
) -> None:
    private = out / "private"
    private.mkdir(parents=True, exist_ok=True)
    private.chmod(0o700)
    ledger.write_table(state, private / "state.parquet", private=True)
    ledger.write_table(state.select(["sample_id", "path"]), private / "paths.parquet", private=True)
    ledger.write_json({"root": path_text(os.fsencode(root.resolve()))}, private / "root.json", private=True)
    with ledger.replacing(private / "merges.csv", private=True) as file:
        _csv(file, merges.lines())
    if done.reports is not None:
        ledger.write_table(done.reports, private / "reports.parquet", private=True)
    if done.labels is not None:
        ledger.write_table(done.labels, out / "labels.parquet")
    ledger.write_table(done.series, out / "series.parquet")
    ledger.write_table(done.index, out / "index.parquet")
    ledger.write_json({"format": 1, "hilum": _version(), "id_key": key.fingerprint, **about}, out / "study.json")


def _csv(file: Any, lines: list[list[str]]) -> None:
    import csv
    import io

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    file.write(text.getvalue().encode())
