"""Reads files in processes that may die: a crash, a hang or a memory bomb costs one file, never the run."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing as mp
import os
import signal
import sys
import time
import types
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow, Intake, Limits
from hilum.data.ledger import Rejected
from hilum.data.processes import fork_server

HEAD = 4096  # bytes an intake sees before it claims a file
_CHUNK = 8  # files handed to a worker at once
_START = 120.0  # seconds a worker may take to import what it needs
_MESSAGES = {
    MemoryError: ("resource_limit", "reading it needs more memory than the limit"),
    RecursionError: ("resource_limit", "it is nested too deeply"),
    PermissionError: ("unreadable", "permission denied"),
    OSError: ("unreadable", "the file system reports an error"),
}


def read_file(path: Path, intakes: Sequence[Intake], limits: Limits, *, headers_only: bool = False) -> list[IndexRow]:
    """Rows of one file from the intake that claims it most. Never raises; messages name no header value."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if not head:
            return [IndexRow("quarantined", "empty_file", "the file is empty")]
        intake = _claimant(path, head, intakes)
        if intake is None:
            return [IndexRow("quarantined", "not_dicom", "no installed reader knows this kind of file")]
        read = getattr(intake, "read_header", intake.read) if headers_only else intake.read
        rows: list[IndexRow] = read(path, limits)
        for row in rows:
            row.columns.setdefault("source", intake.name)
        return rows
    except Rejected as error:
        return [IndexRow("quarantined", error.reason, error.what)]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library written in Rust is no Exception
        for kind, (reason, message) in _MESSAGES.items():
            if isinstance(error, kind):
                return [IndexRow("quarantined", reason, message)]
        return [IndexRow("quarantined", "parse_error", f"the reader failed ({type(error).__name__})")]


def _claimant(path: Path, head: bytes, intakes: Sequence[Intake]) -> Intake | None:
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        raise Rejected("unsupported_container", "zip archives are not opened; unpack it first")
    claims = [(intake.claims(path, head), -at, intake) for at, intake in enumerate(intakes)]
    best = max(claims, key=lambda c: c[:2], default=(0.0, 0, None))
    return best[2] if best[0] > 0 else None


def _serve(channel: Connection, intakes: Sequence[Intake], limits: Limits, headers_only: bool) -> None:
    """A worker: silent, uninterruptible by Ctrl-C (the parent ends it), bounded in memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # codecs written in C report header values there
        os.dup2(null, stream)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + limits.max_bytes, hard))
    channel.send(None)  # ready
    while True:
        try:
            jobs = channel.recv()
        except (EOFError, OSError):
            return
        for number, path in jobs:
            channel.send((number, read_file(Path(os.fsdecode(path)), intakes, limits, headers_only=headers_only)))


@dataclass
class _Worker:
    process: Any
    channel: Connection
    jobs: deque[int] = field(default_factory=deque)  # in the order the worker reads them
    ready: bool = False
    since: float = field(default_factory=time.monotonic)

    def stop(self) -> int | None:
        self.process.kill()
        self.process.join()
        self.channel.close()
        code: int | None = self.process.exitcode
        return code


class Readers:
    """A pool of isolated readers. ``workers=0`` reads in this process, without isolation."""

    def __init__(self, intakes: Sequence[Intake], *, workers: int, limits: Limits, headers_only: bool = False) -> None:
        self.intakes, self.workers, self.limits, self.headers_only = list(intakes), workers, limits, headers_only
        # A fork server imports what readers need once; a worker that died is back within milliseconds.
        method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        preload = [__name__, *sorted({type(i).__module__ for i in intakes} - {"__main__"})]
        self.context: Any = fork_server(preload) if method == "forkserver" else mp.get_context(method)

    def read(self, paths: Sequence[Path]) -> Iterator[tuple[int, list[IndexRow]]]:
        """(position, rows) of every path exactly once, in the order readers finish."""
        if self.workers == 0:
            for number, path in enumerate(paths):
                yield number, read_file(path, self.intakes, self.limits, headers_only=self.headers_only)
            return
        pending = deque(range(len(paths)))
        pool = [self._start() for _ in range(min(self.workers, -(-len(paths) // _CHUNK)))]
        failures = 0
        try:
            while pending or any(w.jobs for w in pool):
                for worker in pool:
                    if worker.ready and not worker.jobs and pending:
                        self._hand_out(worker, pending, paths)
                wait([w.channel for w in pool], timeout=self._patience(pool))
                for at, worker in enumerate(pool):
                    lost = yield from self._collect(worker)
                    if not lost and not self._overdue(worker):
                        continue
                    code = worker.stop()
                    if not worker.ready:
                        failures += 1
                        if failures > 3:
                            raise HilumError(
                                f"reader processes end before they start (exit code {code})", fix="try --workers 0"
                            )
                    elif worker.jobs:
                        yield worker.jobs.popleft(), [self._obituary(code if lost else None)]
                    pending.extendleft(reversed(worker.jobs))
                    pool[at] = self._start()
        finally:
            for worker in pool:
                worker.stop()

    def _start(self) -> _Worker:
        here, there = self.context.Pipe()
        arguments = (there, self.intakes, self.limits, self.headers_only)
        process = self.context.Process(target=_serve, args=arguments, daemon=True)
        with _bare_main():
            process.start()
        there.close()
        return _Worker(process, here)

    def _hand_out(self, worker: _Worker, pending: deque[int], paths: Sequence[Path]) -> None:
        size = max(1, min(_CHUNK, len(pending) // max(self.workers, 1)))
        worker.jobs.extend(pending.popleft() for _ in range(size))
        worker.since = time.monotonic()
        with contextlib.suppress(OSError):  # a dead worker is found when its answer is collected
            worker.channel.send([(n, os.fsencode(paths[n])) for n in worker.jobs])

    def _collect(self, worker: _Worker) -> Generator[tuple[int, list[IndexRow]], None, bool]:
        """Pass on what a worker sent; returns whether it died."""
        try:
            while worker.channel.poll():
                answer = worker.channel.recv()
                worker.since = time.monotonic()
                if answer is None:
                    worker.ready = True
                else:
                    worker.jobs.popleft()
                    yield answer
        except (EOFError, OSError):
            return True
        return False

    def _limit(self, worker: _Worker) -> float:
        return self.limits.seconds if worker.ready else _START

    def _overdue(self, worker: _Worker) -> bool:
        waiting = bool(worker.jobs) or not worker.ready
        return waiting and time.monotonic() - worker.since > self._limit(worker)

    def _patience(self, pool: list[_Worker]) -> float:
        busy = [w.since + self._limit(w) for w in pool if w.jobs or not w.ready]
        return max(0.01, min(busy) - time.monotonic() + 0.01) if busy else 0.01

    def _obituary(self, code: int | None) -> IndexRow:
        if code is None:
            return IndexRow("quarantined", "resource_limit", f"reading it took more than {self.limits.seconds:g} s")
        if code == -signal.SIGKILL:
            return IndexRow("quarantined", "resource_limit", "the system ended its reader, probably for memory")
        return IndexRow("quarantined", "codec_error", f"its reader died (exit code {code})")


@contextlib.contextmanager
def _bare_main() -> Iterator[None]:
    """Workers need nothing of the user's script: not running it again spares scripts the ``__main__`` guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
