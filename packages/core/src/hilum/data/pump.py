"""Answers to a stream of tasks, in order, from worker processes that may die.

Workers come from a fork server: they share no thread, lock or CUDA state with the run, and their death raises no signal
in it. A worker notes which sample it reads. A sample that ends its worker twice, or holds it longer than a limit, is
bad; everything else is asked again and, being keyed, comes out the same.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import re
import shutil
import signal
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from torch.utils.data import DataLoader

from hilum.core.errors import HilumError
from hilum.core.privacy import install
from hilum.core.types import Batch
from hilum.data.delivery import SLOT, Fault, Fetch, Task, sample_id
from hilum.data.processes import bare_main, fork_server, outlive_one_signal

DEATHS: Final = 2  # of workers reading one sample, after which it is bad
RESTARTS: Final = 8  # in a row that neither deliver a batch nor find a bad sample
_POLL: Final = 1.0  # seconds between looks at workers that say nothing
log = logging.getLogger(__name__)


class WorkerLost(Exception):
    """Worker processes ``pids`` ended, and ``how``."""

    def __init__(self, pids: list[int], how: str) -> None:
        super().__init__(how)
        self.pids, self.how = pids, how


class Pump:
    """``workers`` processes around a :class:`~hilum.data.delivery.Fetch`; 0 fetches in this process."""

    def __init__(
        self, fetch: Fetch, *, workers: int, prefetch: int = 2, pin_memory: bool = False, sample_seconds: float = 300.0
    ) -> None:
        self.fetch, self.workers, self.sample_seconds = fetch, workers, sample_seconds
        self.busy = False
        self.tasks: Iterable[Task] = ()  # what the loader's sampler reads
        self._options = {"prefetch_factor": prefetch, "pin_memory": pin_memory}
        self._loader: DataLoader[Any] | None = None
        self._diary: Any = None
        self._deaths: Counter[tuple[str, int]] = Counter()
        self._stuck: set[int] = set()  # processes ended because they held a sample too long

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Batch]]:
        """Every task once, in order, each with its batch (empty where all its samples are bad)."""
        self.busy, finished = True, False
        try:
            answers = self._from_workers(iter(tasks)) if self.workers else ((t, self.fetch[t]) for t in tasks)
            for task, batch in answers:
                if isinstance(batch, Fault):
                    raise batch.error
                yield task, batch
            finished = True
        finally:
            self.busy = False
            if not finished:
                self.close()  # workers may still be busy with what nobody waits for

    def close(self) -> None:
        """End the workers."""
        self._loader = None

    def _from_workers(self, rest: Iterator[Task]) -> Iterator[tuple[Task, Batch | Fault]]:
        sent: deque[Task] = deque()  # asked for and not delivered
        restarts = 0
        while True:
            again, sent = sent, deque()
            self.tasks = _remember(itertools.chain(again, rest), sent)
            try:
                for answer in self._answers(sent):
                    task = sent.popleft()
                    restarts = 0
                    yield task, answer
                return
            except WorkerLost as lost:
                self.close()
                restarts = 0 if self._blame(lost, sent) else restarts + 1
                if restarts > RESTARTS:
                    raise HilumError(
                        f"data workers ended {restarts} times in a row ({lost.how})",
                        where=self._surroundings(sent),
                        fix="fewer --workers, a smaller batch.per_device, more memory or a larger /dev/shm",
                    ) from None
                log.warning("a data worker ended (%s; %s); starting again", lost.how, self._surroundings(sent))

    def _answers(self, sent: deque[Task]) -> Iterator[Batch | Fault]:
        iterator: Any = None
        waiting = time.monotonic()
        while True:
            try:
                if iterator is None:  # the fork server, too, may have been ended
                    iterator = self._start()
                answer = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if "timed out" in str(error):
                    self._look_after(time.monotonic() - waiting, sent)
                    continue
                raise _lost(error, iterator) from None
            yield answer
            waiting = time.monotonic()

    def _start(self) -> Iterator[Any]:
        if self._loader is None:
            context = fork_server([__name__])
            self._diary = context.RawArray("d", [-1.0] * (SLOT * self.workers))
            self._loader = DataLoader(
                replace(self.fetch, diary=self._diary),  # type: ignore[arg-type]  # indexed by tasks
                batch_size=None,
                sampler=_Feed(self),
                num_workers=self.workers,
                collate_fn=_as_is,
                timeout=_POLL,
                worker_init_fn=_begin,
                multiprocessing_context=context,
                persistent_workers=True,
                **self._options,  # type: ignore[arg-type]
            )
        with contextlib.nullcontext() if self._needs_main() else bare_main():
            return iter(self._loader)

    def _needs_main(self) -> bool:
        """Whether something that workers get was defined in the user's script."""
        try:
            return b"__main__" in pickle.dumps(self.fetch)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise HilumError(
                f"the data source cannot be sent to worker processes ({type(error).__name__})",
                fix="define its classes and functions at the top of a module, or use --workers 0",
            ) from error

    def _slots(self) -> list[tuple[int, int, float]]:
        """(process, row it reads or -1, since when) of every worker."""
        numbers = list(self._diary)
        return [(int(p), int(r), s) for p, r, s in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)]

    def _look_after(self, waited: float, sent: deque[Task]) -> None:
        reading = [(pid, since) for pid, row, since in self._slots() if row >= 0]
        for pid, since in reading:
            if time.monotonic() - since > self.sample_seconds:
                self._stuck.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if not reading and waited > self.sample_seconds:
            raise HilumError(
                f"data workers have been silent for {waited:.0f} s",
                where=self._surroundings(sent),
                fix="something in a sample cannot be sent between processes: try --workers 0 to see what",
            )

    def _blame(self, lost: WorkerLost, sent: deque[Task]) -> bool:
        """Count deaths against the samples that were being read; True where one is bad now."""
        found = False
        for pid, row, _ in self._slots():
            if pid not in lost.pids or row < 0:
                continue
            stuck = pid in self._stuck
            keys = {
                (self.fetch.source_of(task, stream), row)
                for task in sent
                for stream, requests in task.requests.items()
                if any(request.row == row for request in requests)
            }
            for key in keys:
                self._deaths[key] += DEATHS if stuck else 1
                if self._deaths[key] >= DEATHS:
                    how = f"it took more than {self.sample_seconds:g} s" if stuck else lost.how
                    self.fetch.condemned[key] = ("timeout" if stuck else "worker_died", how)
                    found = True
        return found

    def _surroundings(self, sent: deque[Task]) -> str:
        first = list(sent)[:1]
        ids = [sample_id(self.fetch.sources[t.split], r) for t in first for r in t.requests.get("main", ())]
        return f"{memory_text()}; samples asked for last: {' '.join(ids[:8]) or 'none'}"


class _Feed:
    """The sampler of a loader whose workers outlive an epoch: it reads whatever the pump has to deliver now."""

    def __init__(self, pump: Pump) -> None:
        self.pump = pump

    def __iter__(self) -> Iterator[Task]:
        return iter(self.pump.tasks)


def _remember(tasks: Iterable[Task], sent: deque[Task]) -> Iterator[Task]:
    for task in tasks:
        sent.append(task)
        yield task


def _as_is(value: Any) -> Any:
    return value


def _begin(worker: int) -> None:
    install()
    outlive_one_signal()


def _lost(error: Exception, iterator: Any) -> WorkerLost:
    """What a DataLoader's complaint means. Where a worker died after it answered, its answer may be lost with it."""
    codes = {w.pid: w.exitcode for w in getattr(iterator, "_workers", ()) if w.exitcode is not None}
    pids = sorted({*codes, *(int(n) for n in re.findall(r"\d+", str(error)) if "pid" in str(error))})
    code = next((c for c in codes.values() if c), None)
    if code is None:
        return WorkerLost(pids, str(error).splitlines()[0][:200] if str(error) else type(error).__name__)
    hints = {
        -signal.SIGKILL: ", often the system's answer to a lack of memory",
        -signal.SIGBUS: ", often a full /dev/shm",
    }
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return WorkerLost(pids, name + hints.get(code, ""))


def memory_text() -> str:
    """Free memory and shared memory, for messages."""
    import psutil

    text = f"{psutil.virtual_memory().available / 2**30:.1f} GiB of memory free"
    if Path("/dev/shm").exists():
        usage = shutil.disk_usage("/dev/shm")
        text += f", {usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB of /dev/shm free"
    return text


def auto_workers() -> int:
    """One worker a core but one, at most 16, and no more than a GiB of free memory each."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(cores - 1, 16, int(psutil.virtual_memory().available / 2**30) - 1))
