"""Processes that may die: a crash, a hang or a memory bomb costs one job, never the run.

Workers take a handful of jobs at a time and answer in batches, so that pipes and wake-ups cost little a file; which job
is in progress, and since when, stands in memory that a worker shares with its parent.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing as mp
import os
import pickle
import signal
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any, Protocol

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow, Limits
from hilum.data.processes import bare_main, end_with_parent, fork_server

_BATCH_S = 0.2  # seconds of work that a worker is handed, and the longest it holds an answer back
_MOST = 64  # jobs handed out at once
_ROOM = 1 << 15  # bytes of jobs on their way to one worker: below what a pipe holds, so that nobody blocks
_START = 120.0  # seconds a worker may take to import what it needs
_GLANCE = 0.5  # seconds between two looks at what workers are doing
_STOPPED = 2.0  # seconds by which a look comes late where this process, and so its workers, had been stopped
_LAST = 10.0  # seconds that a worker has to end
_FAILURES = 3  # workers in a row that may end before they start, or between two jobs
_NONE = -1.0
_pulse: Any = [_NONE, 0.0, _NONE]  # job in progress, since when, which part of it; shared memory in a worker


def beat(part: int = -1) -> None:
    """In a worker: the time limit starts anew, since part number ``part`` of a job counts as a file of its own."""
    _pulse[1], _pulse[2] = time.monotonic(), part


@dataclass(frozen=True)
class Retry:
    """A job to be done in place of one that was lost."""

    job: Any


class Task(Protocol):
    """What workers do. ``task(job)`` runs in a worker; ``pack`` turns its answers into what travels.

    ``lost`` runs in the parent when the worker of process id ``pid`` died or was ended in part ``part`` of ``job`` (-1
    where it has none): an answer made of ``row``, which says why, or :class:`Retry`.
    """

    def __call__(self, job: Any, /) -> Any: ...
    def pack(self, answers: list[Any]) -> Any: ...
    def lost(self, job: Any, part: int, row: IndexRow, pid: int, /) -> Any: ...


@dataclass
class _Worker:
    process: Any
    channel: Connection
    pulse: Any
    jobs: dict[int, tuple[Any, int]] = field(default_factory=dict)  # number: job, its bytes; in the order of reading
    ready: bool = False
    began: float = field(default_factory=time.monotonic)
    answered: float = 0.0
    pace: float = _BATCH_S / 4  # seconds a job, so far
    spared: float = 0.0  # a job's time counts from here on at the earliest

    def stop(self) -> int | None:
        self.process.kill()
        self.process.join(_LAST)  # one that waits for a dead disk does not even end when it is killed
        code: int | None = self.process.exitcode
        return code


class Pool:
    """Runs ``task`` over jobs in ``workers`` isolated processes; 0: in this process, without isolation.

    ``most`` jobs at once are handed to a worker and answered together: few where answers are large."""

    def __init__(
        self, task: Task, *, workers: int, limits: Limits, preload: Sequence[str] = (), most: int = _MOST
    ) -> None:
        self.task, self.workers, self.limits, self.most = task, workers, limits, most
        # A fork server imports what readers need once; a worker that died is back within milliseconds.
        method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        modules = [__name__, *sorted(set(preload) - {"__main__"})]
        self.context: Any = fork_server(modules) if method == "forkserver" else mp.get_context(method)

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(number of jobs, their packed answers), every job exactly once, in the order workers finish."""
        if self.workers == 0:
            yield from self._here(jobs)
            return
        self._pending: deque[tuple[int, Any]] = deque()  # given back
        self._next, self._jobs, self._failures = 0, jobs, 0
        pool = [self._start() for _ in range(min(self.workers, len(jobs)))]
        try:
            while self._left() or any(w.jobs for w in pool):
                for worker in pool:
                    self._hand_out(worker)
                self._wait(pool)
                for at, worker in enumerate(pool):
                    dead = yield from self._collect(worker)
                    if dead or self._overdue(worker):
                        yield from self._bury(worker, dead)
                        pool[at] = self._start()
        finally:
            for worker in pool:
                worker.stop()
                worker.channel.close()

    def _wait(self, pool: list[_Worker]) -> None:
        """Until somebody answers or is late. Time for which a job control, a freezer or a debugger had stopped
        everything is nobody's: it must not turn what was being read into files that take too long."""
        began, patience = time.monotonic(), self._patience(pool)
        wait([w.channel for w in pool], timeout=patience)
        now = time.monotonic()
        if now - began > patience + _STOPPED:
            for worker in pool:
                worker.spared = worker.began = now

    def _here(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        answers: list[Any] = []
        since = time.monotonic()
        for job in jobs:
            try:
                answers.append(self.task(job))
            except KeyboardInterrupt:  # what is done is handed on first
                if answers:
                    yield len(answers), self.task.pack(answers)
                raise
            if len(answers) == self.most or time.monotonic() - since > _BATCH_S:
                yield len(answers), self.task.pack(answers)
                answers, since = [], time.monotonic()
        if answers:
            yield len(answers), self.task.pack(answers)

    def _left(self) -> int:
        return len(self._pending) + len(self._jobs) - self._next

    def _start(self) -> _Worker:
        here, there = self.context.Pipe()
        pulse = RawArray("d", [_NONE, 0.0, _NONE])
        process = self.context.Process(target=_serve, args=(there, pulse, self.task, self.limits), daemon=True)
        with bare_main():
            process.start()
        there.close()
        return _Worker(process, here, pulse)

    def _hand_out(self, worker: _Worker) -> None:
        """Keep a ready worker supplied with twice what it does between two answers."""
        if not worker.ready:
            return
        size = max(
            1, min(self.most, int(_BATCH_S / max(worker.pace, 1e-6)), math.ceil(self._left() / (2 * self.workers)))
        )
        if len(worker.jobs) > size:
            return
        room, batch = _ROOM - sum(weight for _, weight in worker.jobs.values()), list[tuple[int, Any]]()
        while len(batch) < size and self._left():
            number, job = self._pending[0] if self._pending else (self._next, self._jobs[self._next])
            weight = len(pickle.dumps((number, job)))
            if weight > room and worker.jobs:
                break
            if self._pending:
                self._pending.popleft()
            else:
                self._next += 1
            if not worker.jobs:
                worker.answered = time.monotonic()
            worker.jobs[number] = job, weight
            batch.append((number, job))
            room -= weight
        if batch:
            with contextlib.suppress(OSError):  # a dead worker is found when its answer is collected
                worker.channel.send(batch)

    def _collect(self, worker: _Worker) -> Generator[tuple[int, Any], None, bool]:
        """Pass on what a worker sent; returns whether it died."""
        try:
            while worker.channel.poll():
                answer = worker.channel.recv()
                if answer is None:
                    worker.ready = True
                    continue
                numbers, packed = answer
                self._failures = 0
                for number in numbers:
                    del worker.jobs[number]
                now = time.monotonic()
                worker.pace = 0.5 * worker.pace + 0.5 * (now - worker.answered) / len(numbers)
                worker.answered = now
                yield len(numbers), packed
        except (EOFError, OSError):
            return True
        return False

    def _bury(self, worker: _Worker, dead: bool) -> Iterator[tuple[int, Any]]:
        """End a worker; the job it was at gets its obituary, the others go back."""
        code = worker.stop()
        yield from self._collect(worker)  # what it had still sent
        worker.channel.close()
        number, since, part = int(worker.pulse[0]), float(worker.pulse[1]), int(worker.pulse[2])
        late = time.monotonic() - max(since, worker.spared) > self.limits.seconds
        guilty = number in worker.jobs and (dead or late)
        if guilty:
            self._failures = 0
            job, _ = worker.jobs.pop(number)
            answer = self.task.lost(job, part, self._obituary(code if dead else None), int(worker.process.pid))
            if isinstance(answer, Retry):
                self._pending.append((number, answer.job))
            else:
                yield 1, self.task.pack([answer])
        elif dead or not worker.ready:
            self._failures += 1
            if self._failures > _FAILURES:
                raise HilumError(
                    f"reader processes end before they read (exit code {code})", fix="try --workers 0, or free memory"
                )
        self._pending.extendleft((n, job) for n, (job, _) in reversed(worker.jobs.items()))

    def _overdue(self, worker: _Worker) -> bool:
        if not worker.ready:
            return time.monotonic() - worker.began > _START
        since = max(worker.pulse[1], worker.spared)
        return bool(worker.pulse[0] != _NONE and time.monotonic() - since > self.limits.seconds)

    def _patience(self, pool: list[_Worker]) -> float:
        ends = [max(w.pulse[1], w.spared) + self.limits.seconds for w in pool if w.pulse[0] != _NONE]
        return float(max(0.01, min([_GLANCE, *(end - time.monotonic() + 0.01 for end in ends)])))

    def _obituary(self, code: int | None) -> IndexRow:
        if code is None:
            return IndexRow("quarantined", "resource_limit", f"reading it took more than {self.limits.seconds:g} s")
        if code == -signal.SIGKILL:
            return IndexRow("quarantined", "resource_limit", "the system ended its reader, probably for memory")
        return IndexRow("quarantined", "codec_error", f"its reader died (exit code {code})")


def _serve(channel: Connection, pulse: Any, task: Task, limits: Limits) -> None:
    """A worker: silent, uninterruptible by Ctrl-C (the parent ends it), bounded in memory."""
    global _pulse
    _pulse = pulse
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    task.pack([])  # imports what packing needs before any time counts
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # codecs written in C report header values there
        os.dup2(null, stream)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold what the file does, wherever it fell
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + limits.max_bytes, hard))
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        channel.send(None)  # ready
        while True:
            _work(channel, task, channel.recv())


def _work(channel: Connection, task: Task, jobs: list[tuple[int, Any]]) -> None:
    numbers, answers, since = [], [], time.monotonic()
    for number, job in jobs:
        # In this order: a parent that looks in between sees an old job with a new time, never a time that is up.
        _pulse[1], _pulse[2] = time.monotonic(), _NONE
        _pulse[0] = number
        answers.append(task(job))
        numbers.append(number)
        if time.monotonic() - since > _BATCH_S:
            channel.send((numbers, task.pack(answers)))
            _pulse[0] = _NONE
            numbers, answers, since = [], [], time.monotonic()
    if numbers:
        channel.send((numbers, task.pack(answers)))
        _pulse[0] = _NONE
