"""Reads files in processes that may die: whatever a file does, it ends as rows with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hilum.core.types import IndexRow, Intake, Limits
from hilum.data.ledger import Rejected
from hilum.data.pool import Pool

HEAD = 4096  # bytes an intake sees before it claims a file
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_OWN = 0.5  # a claim to a zip's bytes that is above this is a format's own
_CONTAINERS = (
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"Rar!\x1a\x07", "rar"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"BZh", "bzip2"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (257, b"ustar", "tar"),
)
_MESSAGES = {
    MemoryError: ("resource_limit", "reading it needs more memory than the limit"),
    RecursionError: ("resource_limit", "it is nested too deeply"),
    PermissionError: ("unreadable", "permission denied"),
    OSError: ("unreadable", "the file system reports an error"),
}
Opener = Callable[[Path], list[IndexRow]]


def read_file(
    path: Path,
    intakes: Sequence[Intake],
    limits: Limits,
    *,
    headers_only: bool = False,
    archive: Opener | None = None,
) -> list[IndexRow]:
    """Rows of one file from the intake that claims it most, or of a zip from ``archive``, which opens it.

    Never raises; messages name no header value.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if not head:
            return [IndexRow("quarantined", "empty_file", "the file is empty")]
        claims = [(intake.claims(path, head), -at, intake) for at, intake in enumerate(intakes)]
        claim, _, intake = max(claims, key=lambda c: c[:2], default=(0.0, 0, None))
        if head.startswith(ZIP) and claim <= _OWN:
            if archive is None:
                raise Rejected("unsupported_container", "a zip archive inside another one, or where none is opened")
            return archive(path)
        if intake is None or claim <= 0:
            return [_unclaimed(head)]
        if head.startswith(ZIP) and head[128:132] == b"DICM":
            raise Rejected("unsafe_preamble", "its first bytes are those of a zip archive")
        read = getattr(intake, "read_header", intake.read) if headers_only else intake.read
        rows: list[IndexRow] = read(path, limits)
        for row in rows:
            row.columns.setdefault("source", intake.name)
        return rows
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library written in Rust is no Exception
        return [refusal(error)]


def refusal(error: BaseException) -> IndexRow:
    """The quarantined row that stands for a failure; its message names no header value."""
    if isinstance(error, Rejected):
        return IndexRow("quarantined", error.reason, error.what)
    for kind, (reason, message) in _MESSAGES.items():
        if isinstance(error, kind):
            return IndexRow("quarantined", reason, message)
    return IndexRow("quarantined", "parse_error", f"the reader failed ({type(error).__name__})")


def _unclaimed(head: bytes) -> IndexRow:
    for at, magic, name in _CONTAINERS:
        if head[at : at + len(magic)] == magic:
            return IndexRow("quarantined", "unsupported_container", f"a {name} archive; unpack it first")
    return IndexRow("quarantined", "not_dicom", "no installed reader knows this kind of file")


class _ReadFile:
    """A pool's task: (number, path) to (number, rows)."""

    def __init__(self, intakes: Sequence[Intake], limits: Limits, headers_only: bool) -> None:
        self.intakes, self.limits, self.headers_only = list(intakes), limits, headers_only

    def __call__(self, job: tuple[int, Path]) -> tuple[int, list[IndexRow]]:
        return job[0], read_file(job[1], self.intakes, self.limits, headers_only=self.headers_only)

    def pack(self, answers: list[Any]) -> list[Any]:
        return answers

    def lost(self, job: tuple[int, Path], part: int, row: IndexRow, pid: int) -> tuple[int, list[IndexRow]]:
        return job[0], [row]


class Readers:
    """A pool of isolated readers. ``workers=0`` reads in this process, without isolation."""

    def __init__(self, intakes: Sequence[Intake], *, workers: int, limits: Limits, headers_only: bool = False) -> None:
        task = _ReadFile(intakes, limits, headers_only)
        self._pool = Pool(task, workers=workers, limits=limits, preload=[__name__, *modules_of(intakes)])

    def read(self, paths: Sequence[Path]) -> Iterator[tuple[int, list[IndexRow]]]:
        """(position, rows) of every path exactly once, in the order readers finish."""
        for _, answers in self._pool.run(list(enumerate(paths))):
            yield from answers


def modules_of(intakes: Sequence[Any]) -> list[str]:
    """What a worker imports for its intakes."""
    return sorted({type(i).__module__ for i in intakes})
