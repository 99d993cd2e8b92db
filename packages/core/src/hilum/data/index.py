"""``hilum index``: every file of an archive ends as indexed, skipped or quarantined, with a reason.

The result is a function of the files, the key and the tables: not of listing order, number of workers, where they ran,
how often the run was interrupted, or of what an earlier run already knew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow, Intake, Limits
from hilum.data import ledger
from hilum.data.findings import Labels
from hilum.data.identity import IdentityKey, Merges, Spelling
from hilum.data.isolation import HEAD
from hilum.data.journal import Journal
from hilum.data.ledger import path_bytes, path_text
from hilum.data.listing import Found, Listing, walk
from hilum.data.processes import Stopped, stoppable
from hilum.data.progress import following
from hilum.data.reading import Job, Jobs, Reading, Rows, batch_of, installed
from hilum.data.resolution import Resolved, resolve
from hilum.data.state import Keyed, Known, find_previous, in_order, places_of, read_previous, settled, vanished
from hilum.data.tables import Table

DICOM = 128, b"DICM"  # where a DICOM file says that it is one (PS3.10 section 7.1)
DICOM_EXTRA = "medical"  # of this distribution: installs a reader for such files
READER = "3"  # raise when the same file would give another row: all files are then read again
_SPELLINGS = 1 << 17  # plain identifiers kept in memory; others are read again where they are needed


@dataclass(frozen=True)
class IndexResult:
    """``counts``: found, indexed, skipped, quarantined, vanished, read (not known from before), reasons, labels.
    ``kinds``: which columns of the labels table are findings, which one is the class, which were ignored."""

    counts: dict[str, Any]
    exit_code: int
    study: Path
    kinds: Labels | None = None


class Interrupted(HilumError):
    """A signal ended the run; what it had read is kept. ``exit_code`` is 130 or 143."""

    def __init__(self, signal: int) -> None:
        self.exit_code = 128 + signal
        super().__init__("interrupted; what was read is kept", fix="the same command goes on where this one stopped")


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
    executor: Literal["local", "ray"] = "local",
    headers_only: bool = False,
    volumes: Sequence[str] = (),
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
    this process; ``executor="ray"`` reads on a Ray cluster. ``volumes`` are options of intakes on how series become
    volumes. ``licence`` is that of the images, by default the dataset's; runs and exports state it. A second call reads
    only new and changed files and marks those that are gone; after an interruption it goes on where it was.
    """
    root, out, limits = Path(root), Path(out), limits or Limits()
    if not root.is_dir():
        raise HilumError("the archive is not a folder that can be read", where=str(root), fix="give a folder")
    if os.path.realpath(root) == os.path.realpath(out):
        raise HilumError("the study would be written into the archive itself", where=str(out), fix="another --out")
    key, chosen = IdentityKey.load(id_key), _intakes(intakes)
    options = _volume_options(volumes, chosen)
    if isinstance(dataset, str):
        dataset = _dataset(dataset)
    previous = find_previous(out, key, labelled=labels is not None or dataset is not None)
    table = _labels(labels, dataset, root)
    if table is not None and dataset is not None:
        join, group = "path", group or "patient_id"
    listing = Listing(walk(root, out, [*exclude, *getattr(dataset, "exclude", ())]))
    if not len(listing):
        raise HilumError("the archive holds no files", where=str(root), fix="check the path, and what --exclude leaves")
    if intakes is None:
        _refuse_unread_dicom(root, listing, chosen)
    keyed = Keyed(key, _reader(headers_only, limits))
    decided, proposed = Merges.read(out / "private" / "merges.csv").decided(key, _proposed(out))
    merges = Merges(dict(decided.rows))
    with stoppable(), Journal(_private(out), key=key.fingerprint) as journal:
        try:
            work = _Work(root, chosen, limits, headers_only, keyed, journal, _workers(workers), executor)
            work.spellings |= {key.spelling(*raw): raw for raw in proposed.rows}
            fresh, state = work.state(listing, previous, progress=progress)
            done = resolve(
                state, key, merges, chosen, labels=table, by=join, group=group, findings=findings,
                spellings=work.spellings, again=lambda at: work.learn(state, at),
                reports=None if reports is None else Path(reports), max_unmatched=max_unmatched,
                volume_options=options, published=dataset is not None,
            )  # fmt: skip
            finished = (out / "study.json").is_file()
            if done.error is not None and finished:
                # Without its table an index forgets patients and labels: what was read is kept, the study stays.
                ledger.write_table(state, _private(out) / "state.parquet", private=True)
                journal.finish()
                raise done.error
            counts = ledger.counts_of(done.index) | ({"labels": done.label_counts} if table is not None else {})
            about = {"counts": counts, "headers_only": headers_only, "join": join if table is not None else None}
            known = json.loads((out / "study.json").read_text(encoding="utf-8")).get("licence") if finished else None
            about["licence"] = licence or getattr(dataset, "licence", None) or known
            about["volumes"] = sorted(options)
            about["dataset"] = getattr(dataset, "name", None)
            about["issuers"] = _issuers(table) if dataset is not None else []
            _write(out, root, key, state, done, merges, merges.proposals(key, decided), about)
            journal.finish()
        except Stopped as stop:
            raise Interrupted(stop.signal) from None
    if done.error is not None:
        raise done.error
    counts = counts | {"read": fresh}
    return IndexResult(counts, ledger.exit_code(done.index, max_quarantined=max_quarantined), out, done.kinds)


@dataclass
class _Work:
    """Reading, and what is needed again to read some files once more."""

    root: Path
    intakes: list[Intake]
    limits: Limits
    headers_only: bool
    keyed: Keyed
    journal: Journal
    workers: int
    executor: str

    def __post_init__(self) -> None:
        self.spellings: dict[str, Spelling] = {}

    def state(self, listing: Listing, earlier: Path | None, *, progress: bool) -> tuple[int, pa.Table]:
        """(number of files read now, all rows of STATE in order)."""
        previous = self.journal.mapped("previous", read_previous(earlier))
        readers = self.keyed.reader, f"{self.keyed.reader} {installed(self.intakes)}"
        known = Known([self.journal.table(), settled(previous)], listing, *readers)
        read, before = known.same
        for rows in following(self._rows(Jobs(listing, known.fresh)), len(known.fresh), name="index", shown=progress):
            self._tell(rows)
            self.journal.add(rows.batch())
        self.journal.flush()
        if len(known.fresh):
            [read] = Known([self.journal.table()], listing, *readers).same
        faults = [self.keyed.row(f, IndexRow(*f.fault)) for f in _faulty(listing) if f.fault]  # type: ignore[arg-type]
        tables = [read, before, pa.Table.from_batches([batch_of(faults)])]
        tables.append(vanished(previous, listing, tables))
        return len(known.fresh), self.journal.mapped("sorted", in_order(tables))

    def learn(self, state: pa.Table, rows: Sequence[int]) -> None:
        """Read the files of some rows of ``state`` again, to have their identifiers in plain text."""
        places = state.select(["path", "size", "mtime_ns"]).take(pa.array(rows, pa.int64())).to_pylist()
        files = {p["path"]: Found(path_bytes(p["path"]), p["size"], p["mtime_ns"]) for p in places}
        self.keyed = Keyed(self.keyed.key, self.keyed.reader, most=math.inf)
        for _, rows_ in self._rows([Job(file) for file in files.values()], local=True):
            self._tell(rows_, most=None)

    def _rows(self, jobs: Sequence[Job], *, local: bool = False) -> Iterator[tuple[int, Rows]]:
        reading = Reading(
            self.root, self.intakes, self.limits, headers_only=self.headers_only, keyed=self.keyed,
            scratch=self.journal.scratch,
        )  # fmt: skip
        if self.executor == "ray" and not local:
            from hilum.data.ray_reading import read_on_ray

            return read_on_ray(reading, jobs, workers=self.workers)
        return reading.pool(self.workers).run(jobs)

    def _tell(self, rows: Rows, most: int | None = _SPELLINGS) -> None:
        if most is None or len(self.spellings) < most:
            self.spellings |= rows.spellings


def _faulty(listing: Listing) -> Iterator[Found]:
    return (listing[int(at)] for at in np.flatnonzero(listing.faults))


def _reader(headers_only: bool, limits: Limits) -> str:
    """What decides a file's row besides its bytes."""
    digest = hashlib.sha256(repr(limits).encode()).hexdigest()[:8]
    return f"{READER} {_version()} {'headers' if headers_only else 'pixels'} {digest}"


def _volume_options(names: Sequence[str], intakes: Sequence[Intake]) -> frozenset[str]:
    known: dict[str, str] = {}
    for intake in intakes:
        known |= getattr(intake, "volume_options", {})
    unknown = [name for name in names if name not in known]
    if unknown:
        told = "; ".join(f"{name}: {text}" for name, text in sorted(known.items())) or "no installed reader has any"
        raise HilumError(f"there is no option {unknown[0]!r} for volumes", where="--volumes", fix=told)
    return frozenset(names)


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


def _refuse_unread_dicom(root: Path, found: Listing, intakes: Sequence[Intake]) -> None:
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
    return Table.read(dataset.table(root))


def _issuers(table: Table | None) -> list[str]:
    """Who numbers the patients of a published set: with a number alone nobody is found again."""
    named = table.find("issuer") if table is not None else None
    return sorted({*table.columns[named]} - {""}) if table is not None and named else []


def _dataset(name: str) -> Any:
    from hilum.core.registry import registry

    return registry.build("dataset", name)


def _private(out: Path) -> Path:
    private = out / "private"
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    private.chmod(0o700)
    return private


def _proposed(out: Path) -> frozenset[str]:
    """Digests of the lines of ``merges.csv`` that an earlier run wrote by itself."""
    try:
        return frozenset(json.loads((out / "private" / "root.json").read_text(encoding="utf-8")).get("proposed", ()))
    except (OSError, ValueError):
        return frozenset()


def _write(
    out: Path,
    root: Path,
    key: IdentityKey,
    state: pa.Table,
    done: Resolved,
    merges: Merges,
    proposed: list[str],
    about: dict[str, Any],
) -> None:
    private = _private(out)
    ledger.write_table(state, private / "state.parquet", private=True)
    paths = pa.table({"sample_id": state.column("sample_id"), "path": places_of(state)})
    ledger.write_table(paths, private / "paths.parquet", private=True)
    place = {"root": path_text(os.fsencode(root.resolve())), "proposed": proposed}
    ledger.write_json(place, private / "root.json", private=True)
    ledger.write_csv(merges.lines(), private / "merges.csv", private=True)
    if done.reports is not None:
        ledger.write_table(done.reports, private / "reports.parquet", private=True)
    if done.labels is not None:
        ledger.write_table(done.labels, out / "labels.parquet")
    elif about["join"] is None:  # of a run with a table that was killed before it wrote study.json
        (out / "labels.parquet").unlink(missing_ok=True)
    ledger.write_table(done.series, out / "series.parquet")
    ledger.write_table(done.index, out / "index.parquet")
    ledger.write_json({"format": 1, "hilum": _version(), "id_key": key.fingerprint, **about}, out / "study.json")
