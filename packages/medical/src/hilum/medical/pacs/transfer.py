"""What pull and push share: the peer they talk to, the ledger of a transfer, patience, and what arrives.

found = done + skipped + failed, each with a reason, whatever happens on the way.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hilum.core.errors import HilumError
from hilum.core.types import Limits
from hilum.data.identity import IdentityKey
from hilum.data.labels import instance_digest, study_digest
from hilum.data.ledger import Rejected, write_table
from hilum.medical.pacs.query import Answer

T = TypeVar("T")
_TEXT = pa.string()
LEDGER = pa.schema(
    [
        ("instance_id", _TEXT),
        ("series_id", _TEXT),
        ("study_id", _TEXT),
        ("status", _TEXT),  # received, verified, skipped, failed
        ("reason", _TEXT),
        ("detail", _TEXT),  # keywords only
        ("bytes", pa.int64()),
        ("sha256", _TEXT),  # of the file
        ("transfer_syntax", _TEXT),
        ("attempts", pa.int16()),
        ("study_instance_uid", _TEXT),
        ("series_instance_uid", _TEXT),
        ("sop_instance_uid", _TEXT),
        ("path", _TEXT),  # what was sent
    ]
)
"""``private/transfer.parquet``: one row an instance."""
GONE, SILENCE = (
    ("unreachable", "timeout", "aborted"),
    3,
)  # so many requests in a row without an answer: the archive is gone
_EVERY = 60.0  # seconds between two writings of the ledger
_QUOTING = ("pynetdicom", "dicomweb_client", "retrying", "urllib3", "requests", "pydicom")


@dataclass(frozen=True, repr=False)
class Ref:
    """One instance. ``sop_class`` is empty where the archive does not say."""

    study: str
    series: str
    instance: str
    sop_class: str = ""


class Trouble(Exception):
    """A request that failed: a stable ``reason``, whether it may succeed ``again``, and after how many seconds."""

    def __init__(self, reason: str, *, again: bool = False, after: float = 0.0, detail: str = "") -> None:
        self.reason, self.again, self.after, self.detail = reason, again, after, detail
        super().__init__(reason)


@dataclass(frozen=True)
class Arrival:
    """An instance that came, as a file in the folder that was given, or the reason why it did not."""

    ref: Ref
    file: Path | None = None
    reason: str = ""


class Peer(Protocol):
    """An archive. Every method raises :class:`Trouble`; :class:`HilumError` where trying again is no use at all."""

    batch: int  # instances that one request may ask for

    def studies(self, filters: Mapping[str, str]) -> Iterator[Answer]: ...

    def series(self, study: str) -> Iterator[Answer]: ...

    def instances(self, study: str, series: str, instance: str = "") -> Iterator[Answer]: ...

    def fetch(self, refs: Sequence[Ref], folder: Path) -> Iterator[Arrival]: ...

    def store(self, file: Path, ref: Ref, syntax: str) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Manners:
    """How a peer is treated. ``rate``: requests a second, None for no limit; ``timeout``: seconds of silence."""

    retries: int = 4
    timeout: float = 30.0
    rate: float | None = None
    sleep: Callable[[float], None] = time.sleep
    tell: Callable[[str], None] = lambda line: None  # of progress, once a minute
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.retries < 0 or self.timeout <= 0 or (self.rate is not None and self.rate <= 0):
            told = "--retries is 0 or more, --timeout and --rate are more than 0"
            raise HilumError(told, fix="leave them out for 4 retries, 30 seconds and no limit")

    def persist(self, call: Callable[[], T]) -> T:
        """``call``, again after 1, 2, 4 ... seconds (at most 60) while its trouble may pass."""
        for attempt in range(self.retries + 1):
            try:
                return call()
            except Trouble as trouble:
                if not trouble.again or attempt == self.retries:
                    raise
                self.wait(attempt, trouble)
        raise AssertionError("the last attempt returns or raises")

    def wait(self, attempt: int, trouble: Trouble) -> None:
        self.sleep(min(60.0, max(trouble.after, float(1 << min(attempt, 6)))))


class Pace:
    """Keeps requests ``1 / rate`` seconds apart."""

    def __init__(self, manners: Manners) -> None:
        self._gap = 0.0 if manners.rate is None else 1.0 / manners.rate
        self._sleep, self._next = manners.sleep, 0.0

    def wait(self) -> None:
        if self._gap:
            now = time.monotonic()
            if self._next > now:
                self._sleep(self._next - now)
            self._next = max(now, self._next) + self._gap


class Ledger:
    """Rows of a transfer, written now and then and at the end; rows of earlier transfers into the folder stay."""

    def __init__(self, out: Path, key: IdentityKey, tell: Callable[[str], None] = lambda line: None) -> None:
        self._tell = tell
        self.key, self.counts, self.reasons = key, Counter[str](), Counter[str]()
        self.private = out / "private"
        self._file, self._chunks, self._rows = self.private / "transfer.parquet", list[pa.Table](), list[Any]()
        self._seen, self._written = set[str](), time.monotonic()
        self._before = _read(self._file)
        self._of_this_key(out)
        ids, hashes = (self._before.column(n).to_pylist() for n in ("instance_id", "sha256"))
        self._known = {i: h for i, h in zip(ids, hashes, strict=True) if h}

    def _of_this_key(self, out: Path) -> None:
        """Under another key every name is another: nothing would be found again, and patients would come twice."""
        told = self._before.filter(pc.is_valid(self._before["study_instance_uid"])).slice(0, 1).to_pylist()
        if told and told[0]["study_id"] != study_digest(self.key, told[0]["study_instance_uid"]):
            raise HilumError(
                "an earlier transfer filled this folder under another identity key",
                where=str(out),
                fix="pass the same --id-key, or choose another folder",
            )

    def ids(self, ref: Ref) -> tuple[str, str, str]:
        """Digests of study, series and instance, the first two as an index of the same key has them."""
        return (
            study_digest(self.key, ref.study),
            self.key.digest("series", ref.series),
            instance_digest(self.key, ref.instance),
        )

    def known(self, instance_id: str) -> str | None:
        """SHA-256 of the file that an earlier transfer left."""
        return self._known.get(instance_id)

    def add(self, ref: Ref | None, status: str, reason: str = "", **columns: Any) -> None:
        """One row; ``ref`` is None where a file does not say which instance it is."""
        self.counts[status] += 1
        if reason:
            self.reasons[reason] += 1
        row = {"status": status, "reason": reason, **columns}
        if ref is None:
            row["instance_id"] = self.key.digest("file", columns["path"])
        else:
            row |= dict(zip(("study_id", "series_id", "instance_id"), self.ids(ref), strict=True))
            row |= {
                "study_instance_uid": ref.study,
                "series_instance_uid": ref.series,
                "sop_instance_uid": ref.instance,
            }
        self._rows.append(row)
        self._seen.add(row["instance_id"])
        if len(self._rows) >= 4096:
            self._pack()
        if time.monotonic() - self._written > _EVERY:
            self.write()
            self._tell("so far: " + ", ".join(f"{n} {status}" for status, n in sorted(self.counts.items())))

    def _pack(self) -> None:
        self._chunks.append(pa.Table.from_pylist(self._rows, schema=LEDGER))
        self._rows = []

    def write(self) -> None:
        self._pack()
        kept = [i not in self._seen for i in self._before.column("instance_id").to_pylist()]
        table = pa.concat_tables([self._before.filter(pa.array(kept, pa.bool_())), *self._chunks])
        write_table(
            table.sort_by([("study_id", "ascending"), ("series_id", "ascending"), ("instance_id", "ascending")]),
            self._file,
            private=True,
        )
        self._written = time.monotonic()


def _read(file: Path) -> pa.Table:
    if not file.exists():
        return LEDGER.empty_table()
    try:
        return pq.read_table(file, schema=LEDGER)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise HilumError(
            "private/transfer.parquet is damaged", fix="delete it: files that are whole are kept"
        ) from None


@contextlib.contextmanager
def private_folder(out: Path) -> Iterator[Path]:
    """``OUT/private`` (0700) under a lock, with an empty ``incoming`` that is gone afterwards."""
    try:
        if not out.exists():
            out.mkdir(parents=True, mode=0o700)
        (private := out / "private").mkdir(exist_ok=True, mode=0o700)
        private.chmod(0o700)
        lock = (private / "lock").open("w")
    except OSError as error:
        told = f"the folder cannot be written: {error.strerror}"
        raise HilumError(told, where=str(out), fix="choose another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            told = "another transfer writes this folder"
            raise HilumError(told, where=str(out), fix="wait for it, or choose another folder") from None
        incoming = private / "incoming"
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(mode=0o700)
        try:
            yield incoming
        finally:
            shutil.rmtree(incoming, ignore_errors=True)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing that the network libraries log may leave: their records quote queries, URLs and data sets."""
    loggers = [logging.getLogger(name) for name in _QUOTING]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate


@dataclass(frozen=True, repr=False)
class Described:
    """What a file says it is, read up to its pixels and no further."""

    ref: Ref
    syntax: str
    deidentified: bool = False  # PatientIdentityRemoved is YES; False where nobody asked
    told: Answer = field(default_factory=dict)  # PatientID, AccessionNumber


def describe(file: Path, limits: Limits, *, marks: bool = False) -> Described:
    """Identity of a DICOM file; :class:`Trouble` with FORMATS 5's reason where it cannot be read."""
    from hilum.medical.dicom.header import read_header

    try:
        if file.stat().st_size > limits.max_bytes:
            raise Trouble("too_large")
        header = read_header(file, limits)
    except Rejected as rejected:
        raise Trouble(rejected.reason) from None
    except (RecursionError, MemoryError):
        raise Trouble("resource_limit") from None
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    study, series, instance = (header.identifier(k) or "" for k in keywords)
    if not (study and series and instance):
        raise Trouble("missing_attribute")
    ref = Ref(study, series, instance, header.sop_class)
    told = {k: header.identifier(k) or "" for k in ("PatientID", "AccessionNumber")}
    return Described(ref, header.syntax, marks and _deidentified(file, header.inflated), told)


def _deidentified(file: Path, inflated: bytes | None) -> bool:
    from pydicom.filereader import read_dataset, read_partial

    from hilum.medical.dicom.header import quiet

    tag = 0x00120062  # PatientIdentityRemoved
    options: dict[str, Any] = {"stop_when": lambda at, vr, length: at > tag, "specific_tags": [tag]}
    try:
        with quiet(), file.open("rb") as opened:
            if inflated is None:
                found = read_partial(opened, force=True, **options)
            else:
                found = read_dataset(io.BytesIO(inflated), False, True, **options)
            return str(found.get("PatientIdentityRemoved") or "").strip(" \0").upper() == "YES"
    except Exception:  # what cannot be read says nothing of the kind
        return False


def sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def settle(file: Path, target: Path) -> None:
    """Move a whole file to its place: on disk before it has its name."""
    for folder in (target.parent.parent, target.parent):
        folder.mkdir(exist_ok=True, mode=0o700)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    file.chmod(0o600)
    file.replace(target)
