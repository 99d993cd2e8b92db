"""What an index has read so far, on disk as it comes: a run that was killed goes on from there.

``STUDY/private/journal/`` holds parts of a few thousand rows of :data:`~hilum.data.ledger.STATE` in Arrow's file format.
A part has its name only when it is whole and on disk (a torn one is never seen), all rows of a file stand in one part,
and parts are read back through memory maps, so rows cost no memory of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.data import ledger
from hilum.data.ledger import STATE

FORMAT = 1
_ROWS = 4096  # of a part
_SECONDS = 10.0  # work that a kill may cost
_GONE = ".journal-"  # a journal that is being removed
_OPEN = "index.parquet", "series.parquet", "labels.parquet", "study.json"  # what an index writes into a study
_PRIVATE = "state.parquet", "paths.parquet", "reports.parquet", "root.json", "merges.csv"


class Journal:
    """A context: holds the study's lock; parts stay when it is left by an error, :meth:`finish` removes them."""

    def __init__(self, private: Path, *, key: str) -> None:
        self.folder, self.key = private / "journal", key
        self._waiting: list[pa.RecordBatch] = []
        self._last = time.monotonic()
        self._lock: Any = None
        self._number = 0

    def __enter__(self) -> Journal:
        self._lock = _locked(self.folder)
        _sweep(self.folder)
        about = self.folder / "about.json"
        if not about.is_file() or json.loads(about.read_text()) != self._about:
            for part in self.folder.glob("*.arrow"):
                part.unlink()
            ledger.write_json(self._about, about, private=True)
        parts = self._parts()
        self._number = int(parts[-1].stem) + 1 if parts else 0
        shutil.rmtree(self.scratch, ignore_errors=True)  # of a run that was killed
        self.scratch.mkdir(mode=0o700, exist_ok=True)  # a reader that outlives the killed run may hold on to it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
            self._lock.close()

    @property
    def _about(self) -> dict[str, Any]:
        return {"format": FORMAT, "id_key": self.key, "columns": STATE.names}

    @property
    def scratch(self) -> Path:
        """Where members of archives are unpacked, one a worker at a time."""
        return self.folder / "scratch"

    def table(self) -> pa.Table:
        """All rows, in the order they were written; a part that a failing disk has damaged is left out."""
        parts = [table for part in self._parts() if (table := _mapped(part, check=True)) is not None]
        return pa.concat_tables([STATE.empty_table(), *parts])

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows of whole files; on disk within seconds."""
        self._waiting.append(batch)
        late = time.monotonic() - self._last > _SECONDS
        if late or sum(b.num_rows for b in self._waiting) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting, STATE).combine_chunks()
        write_arrow([table], self.folder / f"{self._number:08}.arrow")
        self._number += 1
        self._waiting, self._last = [], time.monotonic()

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.arrow"))

    def mapped(self, name: str, tables: Iterable[pa.Table]) -> pa.Table:
        """Tables of STATE written one after another and read back through a map, so that they cost no memory."""
        target = self.folder / f"{name}.arrow"
        write_arrow(tables, target)
        pa.default_memory_pool().release_unused()
        table = _mapped(target, check=False)
        if table is None:
            raise HilumError("what was just written cannot be read back", where=str(self.folder), fix="check the disk")
        return table

    def finish(self) -> None:
        """The study is written: nothing here is needed any more."""
        self._waiting = []
        # Under another name first: who waits for the lock must not find a folder that is being removed.
        gone = self.folder.with_name(f"{_GONE}{os.getpid()}")
        shutil.rmtree(gone, ignore_errors=True)
        self.folder.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)


def write_arrow(tables: Iterable[pa.Table], path: Path) -> None:
    """Tables of STATE as one Arrow file, whole or not at all, for its owner only."""
    with ledger.replacing(path, private=True) as out, pa.ipc.new_file(out, STATE) as writer:
        for table in tables:
            writer.write_table(table)


def _mapped(path: Path, *, check: bool) -> pa.Table | None:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if check:
            table.validate(full=True)
    except (pa.ArrowException, OSError):  # whatever garbage makes of it
        return None
    return table if table.schema.equals(STATE) else None


def _sweep(folder: Path) -> None:
    """Remove what killed runs of this study had not finished writing; its lock is held."""
    private = folder.parent
    for left in private.glob(f"{_GONE}*"):
        shutil.rmtree(left, ignore_errors=True)
    for place, name in ((folder, "*.arrow"), *((private, n) for n in _PRIVATE), *((private.parent, n) for n in _OPEN)):
        for left in place.glob(f".{name}.????????"):  # as ledger.replacing names them
            left.unlink(missing_ok=True)


def _locked(folder: Path) -> Any:
    """The lock of a journal, open. One that was removed with its journal meanwhile is nobody's: the next one is taken."""
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            file = (folder / "lock").open("a")
        except FileNotFoundError:
            continue
        try:
            _lock(file, folder)
            os.fchmod(file.fileno(), 0o600)
            if os.path.samestat(os.fstat(file.fileno()), (folder / "lock").stat()):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: Any, folder: Path) -> None:
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HilumError("another run is writing this study", where=str(folder.parent.parent), fix="wait") from None
    except (ImportError, OSError):  # no locks here: two runs at once read files twice, no worse
        return
