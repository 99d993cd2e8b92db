"""``hilum index``: every file of an archive ends as indexed, skipped or quarantined, with a reason.

The result is a function of the files, the key and the tables: not of listing order, number of workers, or of what an
earlier run already knew.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow, Intake, Limits
from hilum.data import ledger
from hilum.data.findings import Labels
from hilum.data.identity import IdentityKey, Merges
from hilum.data.isolation import HEAD, Readers
from hilum.data.ledger import path_text
from hilum.data.listing import Found, walk
from hilum.data.resolution import resolve
from hilum.data.state import State, read_previous, reusable, vanished
from hilum.data.tables import Table

DICOM = 128, b"DICM"  # where a DICOM file says that it is one (PS3.10 section 7.1)
DICOM_EXTRA = "medical"  # of this distribution: installs a reader for such files
READER = "2"  # raise when the same file would give another row: all files are then read again


@dataclass(frozen=True)
class IndexResult:
    """``counts``: found, indexed, skipped, quarantined, vanished, read (not known from before), reasons, labels.
    ``kinds``: which columns of the labels table are findings, which one is the class, which were ignored."""

    counts: dict[str, Any]
    exit_code: int
    study: Path
    kinds: Labels | None = None


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
    licence: str | None = None,
    progress: bool = True,
    intakes: Sequence[Intake] | None = None,
) -> IndexResult:
    """Read an archive into a study (FORMATS 1, 3-6).

    ``labels`` is joined by ``join``; ``group`` names its column that holds the patient (or whatever must stay on one
    side of a split) for files whose header does not say, by default ``patient_id`` or ``group_id``. ``dataset`` (a
    registered name, or an object with ``table(root)``) stands for the labels of a known layout. ``workers=0`` reads in
    this process. ``licence`` is that of the images, by default the dataset's; runs and exports state it. A second call
    reads only new and changed files and marks those that are gone.
    """
    root, out, limits = Path(root), Path(out), limits or Limits()
    if not root.is_dir():
        raise HilumError("the archive is not a folder that can be read", where=str(root))
    key = IdentityKey.load(id_key)
    previous = read_previous(out, key, labelled=labels is not None or dataset is not None)
    table = _labels(labels, dataset, root)
    if table is not None and dataset is not None:
        join, group = "path", group or "patient_id"
    found = list(walk(root, out, exclude))
    if not found:
        raise HilumError("the archive holds no files", where=str(root))
    chosen = _intakes(intakes)
    if intakes is None:
        _refuse_unread_dicom(root, found, chosen)
    readers = Readers(chosen, workers=_workers(workers), limits=limits, headers_only=headers_only)
    rows = State(key, f"{READER} {_version()} {'headers' if headers_only else 'pixels'} {limits}")
    same, fresh = reusable(previous, found, rows.reader)
    rows.reuse(same)
    rows.reuse(vanished(previous, found))
    for file in found:
        if file.fault is not None:
            rows.add(file, IndexRow(*file.fault))  # type: ignore[arg-type]
    for file, row in _read(readers, root, fresh, progress=progress):
        rows.add(file, row)
    state, merges = rows.table(), Merges.read(out / "private" / "merges.csv")
    done = resolve(
        state, key, merges, readers.intakes, labels=table, by=join, group=group, findings=findings,
        spellings=rows.spellings,
        again=lambda at: rows.learn(state, at, lambda files: _read(readers, root, files, progress=False)),
        reports=None if reports is None else Path(reports), max_unmatched=max_unmatched,
    )  # fmt: skip
    finished = (out / "study.json").is_file()
    if done.error is not None and finished:
        # Without its table an index forgets patients and labels: what was read is kept, the study stays as it is.
        ledger.write_table(state, _private(out) / "state.parquet", private=True)
        raise done.error
    counts = ledger.counts_of(done.index) | ({"labels": done.label_counts} if table is not None else {})
    about = {"counts": counts, "headers_only": headers_only, "join": join if table is not None else None}
    known = json.loads((out / "study.json").read_text(encoding="utf-8")).get("licence") if finished else None
    about["licence"] = licence or getattr(dataset, "licence", None) or known
    _write(out, root, key, state, done, merges, about)
    if done.error is not None:
        raise done.error
    counts = counts | {"read": len(fresh)}
    return IndexResult(counts, ledger.exit_code(done.index, max_quarantined=max_quarantined), out, done.kinds)


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


def _refuse_unread_dicom(root: Path, found: Sequence[Found], intakes: Sequence[Intake]) -> None:
    """A clinical archive and no reader for it: said before anything is read, not as one harmless reason a file.

    Heads are only looked at where none of the readers takes DICOM, which a made-up head tells."""
    made_up = bytes(DICOM[0]) + DICOM[1]
    if any(intake.claims(root, made_up) > 0 for intake in intakes):
        return
    unread = sum(f.fault is None and _is_unread_dicom(root / os.fsdecode(f.path), intakes) for f in found)
    if not unread:
        return
    from hilum.core.registry import registry

    absent = [entry for entry in registry.entries("intake").values() if entry.missing()]
    needs = ", ".join(f"{entry.name!r} needs {', '.join(entry.missing())}" for entry in absent)
    extras = {entry.extra for entry in absent if entry.extra} or {DICOM_EXTRA}
    raise HilumError(
        f"{unread} of {len(found)} files are DICOM, and "
        + (f"their reader lacks a package: intake {needs}" if needs else "no reader for them is installed"),
        where=str(root),
        fix=f'pip install "hilum[{",".join(sorted(extras))}]", or leave these files out (hilum index --exclude)',
    )


def _is_unread_dicom(path: Path, intakes: Sequence[Intake]) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:  # the reader says so of the file
        return False
    return head[DICOM[0] :].startswith(DICOM[1]) and not any(intake.claims(path, head) > 0 for intake in intakes)


def _labels(labels: Path | str | pa.Table | None, dataset: Any, root: Path) -> Table | None:
    if dataset is None:
        return None if labels is None else Table.read(labels)
    if labels is not None:
        raise HilumError("labels come from the dataset or from a table, not from both", fix="leave out --labels")
    if isinstance(dataset, str):
        from hilum.core.registry import registry

        dataset = registry.build("dataset", dataset)
    return Table.read(dataset.table(root))


def _private(out: Path) -> Path:
    private = out / "private"
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    private.chmod(0o700)
    return private


def _write(
    out: Path, root: Path, key: IdentityKey, state: pa.Table, done: Any, merges: Merges, about: dict[str, Any]
) -> None:
    private = _private(out)
    ledger.write_table(state, private / "state.parquet", private=True)
    places = zip(*(state.column(name).to_pylist() for name in ("path", "member")), strict=True)
    paths = [path + (f"!{member}" if member else "") for path, member in places]
    ledger.write_table(
        pa.table({"sample_id": state.column("sample_id"), "path": paths}), private / "paths.parquet", private=True
    )
    ledger.write_json({"root": path_text(os.fsencode(root.resolve()))}, private / "root.json", private=True)
    ledger.write_csv(merges.lines(), private / "merges.csv", private=True)
    if done.reports is not None:
        ledger.write_table(done.reports, private / "reports.parquet", private=True)
    if done.labels is not None:
        ledger.write_table(done.labels, out / "labels.parquet")
    ledger.write_table(done.series, out / "series.parquet")
    ledger.write_table(done.index, out / "index.parquet")
    ledger.write_json({"format": 1, "hilum": _version(), "id_key": key.fingerprint, **about}, out / "study.json")
