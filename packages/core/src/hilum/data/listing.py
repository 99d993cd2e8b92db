"""What an archive holds: every entry of the tree, before anything is opened."""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Fault = tuple[str, str, str]  # status, reason, message


class Found(NamedTuple):
    """A directory entry: ``path`` relative to the root; ``fault`` where it must not be opened."""

    path: bytes
    size: int
    mtime_ns: int
    fault: Fault | None = None


def walk(root: Path, out: Path, exclude: Sequence[str]) -> Iterator[Found]:
    """Every entry below ``root`` that is not a folder; links are named, never followed. The study is left out."""
    base, own = os.fsencode(root) + b"/", os.path.realpath(out)
    pending = [b""]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(base + folder))
        except OSError as error:
            yield Found(folder, 0, 0, ("quarantined", "unreadable", f"the folder cannot be listed: {error.strerror}"))
            continue
        for entry in entries:
            path = folder + b"/" + entry.name if folder else entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    if os.path.realpath(os.fsdecode(entry.path)) != own:
                        pending.append(path)
                    continue
                about = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # removed since its folder was read
                continue
            except OSError as error:  # of a path too long for the system, for instance
                yield Found(path, 0, 0, ("quarantined", "unreadable", f"it cannot be looked at: {error.strerror}"))
                continue
            fault = _fault(Path(os.fsdecode(entry.path)), about.st_mode)
            if fault is None and any(_matches(path, pattern) for pattern in exclude):
                fault = ("skipped", "excluded", "")
            yield Found(path, about.st_size, about.st_mtime_ns, fault)


def _fault(path: Path, mode: int) -> Fault | None:
    if stat.S_ISREG(mode):
        return None
    if not stat.S_ISLNK(mode):
        return "quarantined", "special_file", "neither a file nor a folder; not opened"
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        return "quarantined", "special_file", "a link to nothing"
    except (OSError, RuntimeError) as error:  # RuntimeError: how Python 3.11 reports a link loop
        if isinstance(error, OSError) and error.errno != errno.ELOOP:
            return "quarantined", "special_file", "a link to what cannot be reached"
        return "quarantined", "cycle", "a link that leads to itself"
    if path.parent.resolve().is_relative_to(target):
        return "quarantined", "cycle", "a link to a folder that contains it"
    return "quarantined", "special_file", "a link; links are not followed"


def _matches(path: bytes, pattern: str) -> bool:
    text = os.fsdecode(path)
    parents = [text[:at] for at, letter in enumerate(text) if letter == "/"]
    return any(fnmatch.fnmatchcase(t, pattern) for t in (text, text.rsplit("/", 1)[-1], *parents))


_ENTRY = pa.schema(
    [
        ("path", pa.large_binary()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)
_BLOCK = 1 << 14


class Listing(Sequence[Found]):
    """Entries of a tree sorted by the bytes of their paths, as columns: a hundred bytes an entry, not a kilobyte."""

    def __init__(self, entries: Iterable[Found]) -> None:
        blocks, entries = [], iter(entries)
        while block := list(islice(entries, _BLOCK)):
            faults = [e.fault or (None, None, None) for e in block]
            columns = [[e.path for e in block], [e.size for e in block], [e.mtime_ns for e in block]]
            columns += [[fault[at] for fault in faults] for at in range(3)]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, _ENTRY, strict=True)]
            blocks.append(pa.Table.from_arrays(arrays, schema=_ENTRY))
        table = pa.concat_tables(blocks) if blocks else _ENTRY.empty_table()
        table = table.take(pc.sort_indices(table, [("path", "ascending")])).combine_chunks()
        self._columns = [c.chunk(0) if c.num_chunks else pa.array([], c.type) for c in table.columns]
        self._faulty: NDArray[np.bool_] = np.asarray(self._columns[3].is_valid())

    @property
    def paths(self) -> pa.Array:
        """Paths (n,) as bytes."""
        return self._columns[0]

    @property
    def sizes(self) -> pa.Array:
        return self._columns[1]

    @property
    def times(self) -> pa.Array:
        """Modification times (n,) in nanoseconds."""
        return self._columns[2]

    @property
    def faults(self) -> NDArray[np.bool_]:
        """(n,) True where an entry must not be opened."""
        return self._faulty

    def __len__(self) -> int:
        return len(self._columns[0])

    @overload
    def __getitem__(self, at: int) -> Found: ...
    @overload
    def __getitem__(self, at: slice) -> list[Found]: ...
    def __getitem__(self, at: int | slice) -> Found | list[Found]:
        if isinstance(at, slice):
            return [self[n] for n in range(*at.indices(len(self)))]
        path, size, mtime, *fault = self._columns
        told = tuple(column[at].as_py() for column in fault) if self._faulty[at] else None
        return Found(path[at].as_py(), size[at].as_py(), mtime[at].as_py(), told)
