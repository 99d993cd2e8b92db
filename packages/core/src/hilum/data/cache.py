"""The shard cache: stored-dtype pixels, reduced once, memory-mapped by every worker and rank.

``STUDY/cache/FINGERPRINT/`` holds shards (:mod:`hilum.data.shards`). Readers need no lock; builders take one.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow, Intake, Limits
from hilum.data.archives import forget
from hilum.data.image import STATISTICS, CachedImage, installed_intakes, open_image
from hilum.data.isolation import modules_of, refusal
from hilum.data.ledger import Rejected
from hilum.data.pool import Pool
from hilum.data.progress import following
from hilum.data.reduce import reduced_size
from hilum.data.shards import ALIGN, Entries, Shard, record_of

FORMAT: Final = 2  # raise when cached bytes would differ
_OPEN: Final = 64  # shards mapped at a time
_SPARE: Final = 64 << 20  # bytes of disk that a cache leaves free
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Built:
    """What a cache holds of its rows. ``bad`` maps rows to (reason, message); ``read`` counts files this call read."""

    images: int
    bad: dict[int, tuple[str, str]]
    read: int
    seconds: float


class ShardCache:
    """Reduced images of ``rows`` (default: all) of a study. ``side`` is the short side in pixels, or "full"; ``voi``
    the window (:func:`~hilum.data.image.open_image`)."""

    def __init__(
        self,
        study: Any,
        *,
        side: int | Literal["full"] = 512,
        rows: NDArray[np.int64] | None = None,
        intakes: Sequence[Intake] | None = None,
        workers: int | None = None,
        limits: Limits | None = None,
        voi: str | int = "auto",
    ) -> None:
        if side != "full" and (not isinstance(side, int) or side < 1):
            raise HilumError(f"cache.side is a number of pixels or 'full', not {side!r}")
        self.study, self.side = study, None if side == "full" else side
        self.rows: NDArray[np.int64] = np.asarray(study.rows(None) if rows is None else rows, np.int64)
        self.workers, self.limits, self._intakes, self.voi = workers, limits or Limits(), intakes, voi
        self.folder = Path(study.path) / "cache" / self.fingerprint
        self._maps: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    @cached_property
    def fingerprint(self) -> str:
        """What decides the bytes: format, side, and the readers that indexed the study, with their versions."""
        used = {str(s) for s in self.study.column("source") if s is not None}
        readers = {n: str(getattr(i, "version", 1)) for n, i in installed_intakes(self._intakes).items() if n in used}
        about = {"format": FORMAT, "side": self.side, "readers": readers}
        text = json.dumps(about if self.voi == "auto" else about | {"voi": str(self.voi)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # ---- reading --------------------------------------------------------------------------------------------

    def get(self, row: int) -> CachedImage:
        """A copy of one image; Rejected with the recorded reason where its file could not be read."""
        table = self._entries
        entry = int(table.entry[row])
        if entry < 0:
            raise HilumError(
                "the image is not in the cache", where=str(self.folder), fix="build it for these rows first"
            )
        if table.reason[entry]:
            raise Rejected(table.reason[entry], table.message[entry])
        shape, dtype = table.shape[entry].tolist(), np.dtype(table.dtype[entry])
        start, size = int(table.offset[entry]), shape[0] * shape[1] * shape[2] * dtype.itemsize
        data = np.array(self._map(int(table.shard[entry]))[start : start + int(table.bytes[entry])])
        slope, intercept, *stats = table.numbers[entry].tolist()
        spacing = tuple(table.spacing[entry].tolist())
        return CachedImage(
            torch.from_numpy(data[:size].view(dtype).reshape(shape)),
            slope,
            intercept,
            table.windows[table.window[entry]],
            tuple(table.source[entry].tolist()),
            None if spacing[0] != spacing[0] else spacing,
            table.unit[entry],
            bool(table.inverted[entry]),
            torch.from_numpy(data[size:].view(bool).reshape(shape[1:])) if len(data) > size else None,
            dict(zip(STATISTICS, stats, strict=True)),
            json.loads(table.provenance[entry]),
        )

    def __contains__(self, row: int) -> bool:
        entry = int(self._entries.entry[row])
        return entry >= 0 and not self._entries.reason[entry]

    def _map(self, shard: int) -> NDArray[np.uint8]:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        # A plain view: slicing an np.memmap costs more than copying a small image.
        self._maps[shard] = np.asarray(np.memmap(self._entries.shards[shard], np.uint8, mode="r"))
        if len(self._maps) > _OPEN:
            self._maps.popitem(last=False)
        return self._maps[shard]

    @cached_property
    def _entries(self) -> Entries:
        return Entries(self.folder, self.study)

    def reload(self) -> None:
        """See shards that were written since."""
        self.__dict__.pop("_entries", None)
        self._maps.clear()

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k != "_entries"}
        return {**state, "_maps": OrderedDict(), "study": without_tables(self.study)}

    # ---- building -------------------------------------------------------------------------------------------

    def missing(self) -> NDArray[np.int64]:
        """Rows that are not in the cache, those whose files could not be read included."""
        return np.array([r for r in self.rows.tolist() if r not in self], np.int64)

    def estimate(self, rows: NDArray[np.int64] | None = None) -> int:
        """Bytes that ``rows`` (default: the missing ones) will take, from the index."""
        rows = self.missing() if rows is None else rows
        about = {n: self.study.column(n) for n in ("rows", "columns", "bits_stored", "photometric")}
        total = 0
        for row in rows.tolist():
            height, width, bits = (_whole(about[n][row]) for n in ("rows", "columns", "bits_stored"))
            if height and width:
                h, w = reduced_size(height, width, self.side)
                colour = str(about["photometric"][row] or "").upper().startswith(("RGB", "YBR", "PALETTE"))
                total += h * w * (3 if colour else 1) * (1 if 0 < bits <= 8 else 2 if bits <= 16 else 4) + ALIGN
        return total

    def build(self, progress: bool = False) -> Built:
        """Read what is missing in isolated processes and write it in shards; safe to kill and to run twice at once.

        A file that cannot be read becomes a row with its reason and is tried again by the next build.
        """
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self.folder / ".lock"):
            self.reload()
            rows = self.missing()
            if len(rows):
                self._refuse_full_disk(rows)
                self._write(rows, progress)
                self.reload()
        table = self._entries
        reasons = {
            r: (table.reason[e], table.message[e]) for r in self.rows.tolist() if (e := int(table.entry[r])) >= 0
        }
        bad = {r: told for r, told in reasons.items() if told[0]}
        return Built(len(reasons) - len(bad), bad, len(rows), time.monotonic() - began)

    def _refuse_full_disk(self, rows: NDArray[np.int64]) -> None:
        need, free = self.estimate(rows), shutil.disk_usage(self.folder).free
        log.info("cache: %d images, about %s, in %s", len(rows), _size(need), self.folder)
        if need + _SPARE > free:
            raise HilumError(
                f"the cache of {len(rows)} images needs about {_size(need)}, the disk has {_size(free)} free",
                where=str(self.folder),
                fix="free space, lower cache.side, or delete older folders beside this one",
            )

    def _write(self, rows: NDArray[np.int64], progress: bool) -> None:
        workers = self.workers
        if workers is None:
            workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        reducer = _Reducer(without_tables(self.study), self.side, installed_intakes(self._intakes), self.voi)
        preload = [__name__, *modules_of(list(reducer.intakes.values()))]
        results = Pool(reducer, workers=workers, limits=self.limits, preload=preload, most=1).run(rows.tolist())
        ids, appearance = list(self.study.column("sample_id")), self.study.appearance
        shard = Shard(self.folder)
        try:
            for answers in following(results, len(rows), name="cache", shown=progress):
                for row, answer in answers:
                    record = {"sample_id": ids[row], "appearance": appearance[row]}
                    if answer.status == "indexed":
                        shard.add(record | answer.columns["record"], answer.columns["data"])
                    elif not self._recorded(row, answer):
                        shard.add(record | {"reason": answer.reason, "message": answer.message})
                    if shard.full:
                        shard.close()
                        shard = Shard(self.folder)
        finally:
            shard.close()  # after an interruption too: what was read is kept

    def _recorded(self, row: int, answer: IndexRow) -> bool:
        entry = int(self._entries.entry[row])
        return entry >= 0 and self._entries.reason[entry] == answer.reason


class _Reducer:
    """A pool's task: a row to (row, its record and data, or why it cannot be read)."""

    def __init__(self, study: Any, side: int | None, intakes: dict[str, Intake], voi: str | int) -> None:
        self.study, self.side, self.intakes, self.voi = study, side, intakes, voi

    def __call__(self, row: int) -> tuple[int, IndexRow]:
        try:
            record, data = record_of(open_image(self.study, row, side=self.side, intakes=self.intakes, voi=self.voi))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library written in Rust is no Exception
            return row, refusal(error)
        return row, IndexRow("indexed", columns={"record": record, "data": data})

    def pack(self, answers: list[Any]) -> list[Any]:
        return answers

    def lost(self, row: int, part: int, told: IndexRow, pid: int) -> tuple[int, IndexRow]:
        forget(pid)
        return row, told


def without_tables(study: Any) -> Any:
    """A copy that a worker can receive: it reads the study's tables again when it needs them."""
    clone = copy.copy(study)
    for name, value in vars(type(study)).items():
        if isinstance(value, cached_property):
            clone.__dict__.pop(name, None)
    return clone


def _whole(value: Any) -> int:
    return 0 if value is None or value != value else int(value)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One builder at a time. Where a file system has no locks two builders write the same images twice, no worse."""
    with path.open("a") as file:
        try:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("cache: waiting for another process that builds %s", path.parent)
                fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            log.warning("cache: this file system has no locks")
        yield
