"""Checkpoints that survive a kill at any moment, on any file system.

A file is written beside its target, flushed to disk, hashed, announced in a side file and only then renamed; the one
before it is kept. Reading verifies the hash and falls back to the one before. Contents are tensors and JSON-able
values, read with ``weights_only``. One process writes a checkpoint, any number may read it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from hilum.core.errors import HilumError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write through a file in the same folder, fsync, rename, fsync the folder."""
    partial, watched = path.with_name(f".{path.name}.{os.getpid()}.partial"), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            watched = _Watched(stream)
            write(watched)  # type: ignore[arg-type]  # all of a binary file that writers use
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else watched.error if watched is not None else None
        if cause is None:
            raise
        full = cause.errno in FULL
        reason = "the disk is full" if full else str(cause.strerror or type(cause).__name__)
        fix = "free space there" if full else "check that this folder can be written to"
        raise HilumError(f"{path.name} could not be written: {reason}", where=str(path.parent), fix=fix) from error


class _Watched:
    """A binary file that remembers why it failed: writers in C++ report a full disk as something else."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.error = stream, None

    error: OSError | None

    def write(self, data: Any) -> int:
        try:
            return self.stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """One line of a CSV file, with a header if it is the first; several processes may write to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = ",".join(str(value) for value in row.values()) + "\n"
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line if stream.tell() else ",".join(row) + "\n" + line)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_checkpoint(path: Path, payload: Mapping[str, Any]) -> None:
    """Write ``payload`` to ``path``; what stood there becomes ``previous-NAME``.

    :class:`HilumError` where a value is neither a tensor nor JSON-able, or where the disk is full: then the last good
    checkpoint still stands.
    """
    content = _plain(dict(payload), path.name)
    for stale in path.parent.glob(f".*{path.name}*.partial"):  # of a killed process
        stale.unlink(missing_ok=True)
    sums, fresh = _recover(path), _incoming(path)
    try:
        write_atomically(fresh, lambda stream: torch.save(content, stream))
        sums["incoming"] = file_sha256(fresh)
        write_json(_side(path), sums)  # both hashes are on record before either file moves
    except (HilumError, OSError, RuntimeError) as error:  # torch tells of a full disk by a writer's RuntimeError
        fresh.unlink(missing_ok=True)
        first = (str(error).splitlines() or [type(error).__name__])[0]
        told = error.what if isinstance(error, HilumError) else f"{path.name} could not be written: {first}"
        kept = "; the last good checkpoint was kept" if stands(path) else ""
        fix = f"free space there and run `hilum resume`{kept}"
        raise HilumError(told, where=str(path.parent), fix=fix) from error
    _rename(path, sums)


def _rename(path: Path, sums: Mapping[str, str]) -> dict[str, str]:
    """Put the incoming file in its place and what stood there beside it; returns the hashes on record."""
    if _incoming(path).is_file():
        if path.exists():
            path.replace(_previous(path))
        _incoming(path).replace(path)
        _sync_folder(path.parent)
    settled = {"current": sums["incoming"], "previous": sums.get("current", "")}
    write_json(_side(path), settled)
    return settled


def _recover(path: Path) -> dict[str, str]:
    """The hashes on record, after a rename that a kill interrupted was carried out."""
    sums = _sums(path)
    if not sums and path.is_file():  # came without its side file
        return {"current": file_sha256(path)}
    announced = sums.get("incoming")
    if announced is None:
        return sums
    waiting = _incoming(path) if _incoming(path).is_file() else path
    if waiting.is_file() and file_sha256(waiting) == announced:
        return _rename(path, sums)
    return {name: value for name, value in sums.items() if name != "incoming"}


def _plain(value: Any, where: str) -> Any:
    """``value`` with numpy scalars as Python's; what could be written but never read again raises."""
    if value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple, torch.Size):
        items = [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
        same = type(value) is not torch.Size and all(a is b for a, b in zip(items, value, strict=True))
        return value if same else tuple(items) if isinstance(value, tuple) else items
    if type(value) in (dict, OrderedDict):
        made = {_plain(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
        return value if all(made.get(k) is v for k, v in value.items()) else made  # state dicts keep their metadata
    told = f"a checkpoint holds tensors and plain values, not {type(value).__name__}"
    raise HilumError(told, where=where, fix="store it as a tensor, a number or text")


def _incoming(path: Path) -> Path:
    return path.with_name(f"incoming-{path.name}")


def _previous(path: Path) -> Path:
    return path.with_name(f"previous-{path.name}")


def _side(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256.json")


def _sums(path: Path) -> dict[str, str]:
    try:
        found = json.loads(_side(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def stands(path: Path) -> bool:
    """Whether there is a checkpoint at ``path``, or what a kill left of one that :func:`load_checkpoint` reads."""
    return any(place.is_file() for place in (path, _incoming(path), _previous(path)))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The newest intact checkpoint at ``path``: it, the incoming one a kill left unrenamed, or the one before."""
    sums = set(_sums(path).values())
    for candidate in (_incoming(path), path, _previous(path)):
        if not candidate.is_file():
            continue
        try:
            if sums and file_sha256(candidate) not in sums:
                if candidate == _incoming(path):
                    continue  # never announced: the write before it is the last that finished
                raise ValueError("its hash is not on record")
            payload = torch.load(candidate, map_location="cpu", weights_only=True)
        except Exception as error:
            told = error if type(error) is ValueError else type(error).__name__
            warnings.warn(f"{candidate.name} is damaged ({told}); trying the one before", stacklevel=2)
            continue
        return dict(payload)
    fix = "start the run again in a new folder, or restore the file"
    raise HilumError("there is no intact checkpoint", where=str(path), fix=fix)
