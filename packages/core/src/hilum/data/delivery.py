"""Every request is answered: by a sample, or by the reason why there is none.

pydicom raises a bare StopIteration on a damaged file; raised inside a plain DataLoader it ends the epoch early and
silently. Here it is one bad sample.
"""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from torch.utils.data import get_worker_info

from hilum.core.errors import HilumError
from hilum.core.types import BadSample, Batch, Request, Sample, Source, Tokenizer
from hilum.data.collate import collate
from hilum.data.ledger import Rejected

SLOT: Final = 3  # diary entries a worker: process id, row it is reading or -1, since when (monotonic seconds)


class Augmenting(Protocol):
    """What :class:`hilum.augment.augmenter.Augmenter` offers: draws in the worker, applies on the device."""

    def draw(self, sample: Sample, *, train: bool) -> Any: ...
    def apply(self, batch: Batch, *, train: bool) -> Batch: ...


@dataclass(frozen=True, slots=True)
class Task:
    """One micro-batch to deliver: requests by stream ("main" first). ``last`` closes a step."""

    split: str
    requests: Mapping[str, list[Request]]
    train: bool = False
    last: bool = True


@dataclass(frozen=True, slots=True)
class Fault:
    """An error of set-up rather than of a sample, carried to the main process as it is."""

    error: HilumError


@dataclass
class Fetch:
    """Answers tasks, in a worker or in the main process. ``sources`` by split, and by stream where one has its own."""

    sources: Mapping[str, Source]
    augmenter: Augmenting | None = None
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    applies: bool = False  # the worker also applies what it drew: batches are dense, normalised, and have their norm
    condemned: dict[tuple[str, int], tuple[str, str]] = field(default_factory=dict)  # (source, row): reason, message
    diary: Any = None

    def __getitem__(self, task: Task) -> Batch | Fault:
        try:
            main, *others = task.requests
            batch = self._stream(task, main)
            if self.applies and self.augmenter is not None and batch.size:
                batch = self.augmenter.apply(batch, train=task.train)
            batch.streams.update({name: self._stream(task, name) for name in others})
            return batch
        except HilumError as error:
            return Fault(error)
        except Exception as error:
            return Fault(HilumError(f"a batch could not be put together: {reason_of(error)[1]}"))

    def source_of(self, task: Task, stream: str) -> str:
        return stream if stream in self.sources else task.split

    def _stream(self, task: Task, stream: str) -> Batch:
        key = self.source_of(task, stream)
        answers = [self._one(key, request, task.train) for request in task.requests[stream]]
        try:
            return collate(answers, tokenizers=self.tokenizers)
        except HilumError:
            raise
        except Exception as error:
            told = reason_of(error)
            bad = [a if isinstance(a, BadSample) else BadSample(a.meta.sample_id, *told) for a in answers]
            return Batch({}, bad=bad)

    def _one(self, key: str, request: Request, train: bool) -> Sample | BadSample:
        source = self.sources[key]
        if (key, request.row) in self.condemned:
            return BadSample(sample_id(source, request), *self.condemned[key, request.row])
        self._note(request.row)
        try:
            sample = source[request]
            if not isinstance(sample, Sample):
                return BadSample(sample_id(source, request), "contract", f"the source gave {type(sample).__name__}")
            if self.augmenter is None:
                return sample
            drawn = self.augmenter.draw(sample, train=train)
            return drawn if isinstance(drawn, Sample) else sample
        except Exception as error:  # StopIteration, MemoryError and RecursionError are such
            return BadSample(sample_id(source, request), *reason_of(error))
        finally:
            self._note(-1)

    def _note(self, row: int) -> None:
        info = get_worker_info() if self.diary is not None else None
        if info is not None:
            self.diary[SLOT * info.id : SLOT * (info.id + 1)] = [os.getpid(), row, time.monotonic()]


def sample_id(source: Source, request: Request) -> str:
    """The sample's id where the source tells it, else the 32 bits that keys hold."""
    name = getattr(source, "sample_id", None)
    try:
        return str(name(request.row)) if callable(name) else f"{request.key.sample:08x}"
    except Exception:
        return f"{request.key.sample:08x}"


def reason_of(error: BaseException) -> tuple[str, str]:
    """(reason, message) without anything a file says: messages of foreign errors may quote headers or paths."""
    if isinstance(error, Rejected):
        return error.reason, error.what
    name = type(error).__name__
    reason = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    if isinstance(error, HilumError):
        return reason, error.what
    frames = traceback.extract_tb(error.__traceback__)
    return reason, f"{name} at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else name
