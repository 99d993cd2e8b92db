"""What an isolated worker does for the index: reads a file, or an archive's members, and answers with rows of STATE.

Identifiers become digests in the worker; rows travel as Arrow batches, which cost the parent next to nothing.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from hilum.core.types import IndexRow, Intake, Limits
from hilum.data.archives import read_archive
from hilum.data.identity import Spelling
from hilum.data.isolation import modules_of, read_file, refusal
from hilum.data.ledger import STATE
from hilum.data.listing import Found, Listing
from hilum.data.pool import Pool, Retry
from hilum.data.state import INSTALLED, Keyed

_CHANGED = "it is no longer the file that was listed"
_DEATHS = 16  # of readers of one archive's members, after which the archive is given up


class Job(NamedTuple):
    """A file to read; ``lost`` are members, by number, that their reader did not survive. ``dead`` is what became of the
    file where its reader did not: then its header alone is read, to say whose it is."""

    found: Found
    lost: Mapping[int, IndexRow] = {}
    dead: IndexRow | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed rows of whole files: an Arrow stream, and the plain spellings not told before, by digest."""

    stream: bytes
    spellings: dict[str, Spelling]

    def batch(self) -> pa.RecordBatch:
        return pa.ipc.open_stream(self.stream).read_next_batch()


class Jobs(Sequence[Job]):
    """Entries ``at`` of a listing as jobs, made when they are handed out."""

    def __init__(self, listing: Listing, at: Any) -> None:
        self.listing, self.at = listing, at

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, number: Any) -> Any:
        return Job(self.listing[int(self.at[number])])


class Reading:
    """A pool's task: :class:`Job` to rows. ``scratch`` is a private folder for members of archives."""

    def __init__(
        self, root: Path, intakes: Sequence[Intake], limits: Limits, *, headers_only: bool, keyed: Keyed, scratch: Path
    ) -> None:
        self.root, self.intakes, self.limits, self.headers_only = root, list(intakes), limits, headers_only
        self.keyed, self.scratch = keyed, scratch
        self.installed = installed(intakes)

    def pool(self, workers: int) -> Pool:
        """Isolated workers for this task."""
        preload = ["pandas", __name__, *modules_of(self.intakes)]  # pyarrow imports pandas where it is installed
        return Pool(self, workers=workers, limits=self.limits, preload=preload)

    def __call__(self, job: Job) -> list[dict[str, Any]]:
        read = partial(read_file, intakes=self.intakes, limits=self.limits, headers_only=self.headers_only)
        members = partial(read_archive, limits=self.limits, read=read, scratch=self.scratch, lost=job.lost)
        path = self.root / os.fsdecode(job.found.path)
        if not _is_file(path):
            rows = [IndexRow("quarantined", "unreadable", _CHANGED)]
        elif job.dead is not None:
            rows = [self._whose(path, job.dead)]
        else:
            rows = read(path, archive=members)
        keyed = [self._keyed(job.found, row) for row in rows]
        if any(row["reason"] in INSTALLED for row in keyed):  # all rows of a file have one reader: they go together
            for row in keyed:
                row["reader"] = f"{self.keyed.reader} {self.installed}"
        return keyed

    def _whose(self, path: Path, dead: IndexRow) -> IndexRow:
        """The obituary of a file with what its header says, where an intake reads headers alone."""
        able = [intake for intake in self.intakes if hasattr(intake, "read_header")]
        told = read_file(path, able, self.limits, headers_only=True)
        if len(told) != 1 or told[0].status != "indexed":
            return dead
        return replace(told[0], status=dead.status, reason=dead.reason, message=dead.message)

    def _keyed(self, found: Found, row: IndexRow) -> dict[str, Any]:
        try:
            return self.keyed.row(found, row)
        except Exception as error:  # identifiers of a kind that nobody expects, from any plugin
            told = refusal(error)
            told.member = row.member
            return self.keyed.row(found, told)

    def pack(self, answers: list[list[dict[str, Any]]]) -> Rows:
        try:
            batch = batch_of([row for answer in answers for row in answer])
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            batch = batch_of([row for answer in answers for row in _sound(answer)])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, STATE) as writer:
            writer.write_batch(batch)
        return Rows(sink.getvalue().to_pybytes(), self.keyed.told())

    def lost(self, job: Job, part: int, row: IndexRow, pid: int) -> list[dict[str, Any]] | Retry:
        """A file's obituary, once its header has been asked whose it was (its volume lacks it); an archive is read again
        without the member that its reader did not survive."""
        for left in self.scratch.glob(f"{pid}-*"):
            left.unlink(missing_ok=True)
        if part < 0 and job.dead is None and not self.headers_only:
            return Retry(job._replace(dead=row))
        if part < 0:
            return [self.keyed.row(job.found, job.dead or row)]
        if len(job.lost) < _DEATHS:
            return Retry(job._replace(lost={**job.lost, part: row}))
        row = IndexRow("quarantined", "unsafe_archive", f"more than {_DEATHS} of its members end their reader")
        return [self.keyed.row(job.found, row)]


def installed(intakes: Sequence[Intake]) -> str:
    """Stands for the readers and codecs that there are: what none of them read is read again when another one comes."""
    known = sorted(
        (i.name, *sorted(made().items() if callable(made := getattr(i, "codecs", None)) else ())) for i in intakes
    )
    return hashlib.sha256(repr(known).encode()).hexdigest()[:8]


def _is_file(path: Path) -> bool:
    """Whether a path that was listed as a file still is one: a pipe in its place would never end."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def batch_of(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Rows as one batch of STATE; absent columns are null."""
    arrays = [pa.array([row.get(f.name) for row in rows], f.type) for f in STATE]
    return pa.RecordBatch.from_arrays(arrays, schema=STATE)


def _sound(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows as they are where every value fits its column; others lose what their reader said, and say so."""
    for row in rows:
        try:
            batch_of([row])
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            kept = {n: row[n] for n in Keyed.OWN if n in row}
            told = {"status": "quarantined", "reason": "parse_error", "message": "a value does not fit its column"}
            yield kept | told
        else:
            yield row
