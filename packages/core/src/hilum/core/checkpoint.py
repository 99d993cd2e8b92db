"""Checkpoints that survive a kill at any moment, on any file system.

A file is written beside its target, flushed to disk, hashed, announced in a side file and only then renamed; the one
before it is kept. Reading verifies the hash and falls back to the one before. Contents are tensors and JSON-able
values, read with ``weights_only``. One process writes a checkpoint, any number may read it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from hilum.core.errors import HilumError


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write through a file in the same folder, fsync, rename, fsync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if full else str(error.strerror or type(error).__name__)
        raise HilumError(
            f"{path.name} could not be written: {reason}",
            where=str(path.parent),
            fix="free space there" if full else "check that this folder can be written to",
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_atomically(path, lambda stream: _write(stream, text.encode()))


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".*{path.name}*.partial"):  # of a killed process
        stale.unlink(missing_ok=True)
    sums = _finish_interrupted(path)
    fresh = _incoming(path)
    try:
        write_atomically(fresh, lambda stream: torch.save(content, stream))
        sums["incoming"] = file_sha256(fresh)
        write_json(_side(path), sums)  # both hashes are on record before either file moves
    except (HilumError, OSError, RuntimeError) as error:  # torch tells of a full disk by a writer's RuntimeError
        fresh.unlink(missing_ok=True)
        raise HilumError(
            error.what if isinstance(error, HilumError) else f"{path.name} could not be written: {_first_line(error)}",
            where=str(path.parent),
            fix="free space and run `hilum resume`; the last good checkpoint was kept",
        ) from error
    _finish_interrupted(path)


def _finish_interrupted(path: Path) -> dict[str, str]:
    """Rename an incoming file that is on record; the hashes on record afterwards."""
    sums, fresh = _sums(path), _incoming(path)
    if sums.get("incoming") and fresh.is_file() and file_sha256(fresh) == sums["incoming"]:
        if path.exists():
            path.replace(_previous(path))
        fresh.replace(path)
        _sync_folder(path.parent)
    if "incoming" in sums:  # renamed, now or before the kill
        sums = {"current": sums["incoming"], "previous": sums.get("current", "")}
        write_json(_side(path), sums)
    return sums


def _plain(value: Any, where: str) -> Any:
    """``value`` with numpy scalars as Python's; what could be written but never read again raises."""
    if value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(_plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(value, dict):
        made = {_plain(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
        changed = any(made.get(k) is not v for k, v in value.items())
        return made if changed else value  # an unchanged state dict keeps its metadata
    raise HilumError(
        f"a checkpoint holds tensors and plain values, not {type(value).__name__}",
        where=where,
        fix="store it as a tensor, a number or text",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _incoming(path: Path) -> Path:
    return path.with_name(f"incoming-{path.name}")


def _previous(path: Path) -> Path:
    return path.with_name(f"previous-{path.name}")


def _side(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256.json")


def _sums(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(_side(path).read_text()))
    except (OSError, ValueError):
        return {}


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The newest intact checkpoint at ``path``: it, the incoming one a kill left unrenamed, or the one before."""
    sums = set(_sums(path).values())
    for candidate in (_incoming(path), path, _previous(path)):
        if not candidate.is_file():
            continue
        known = not sums or file_sha256(candidate) in sums
        if not known and candidate == _incoming(path):
            continue  # never announced: the write before it is the last that finished
        if not known:
            warnings.warn(
                f"{candidate.name} is damaged (its hash is not on record); trying the one before", stacklevel=2
            )
            continue
        try:
            payload = torch.load(candidate, map_location="cpu", weights_only=True)
        except Exception as error:
            warnings.warn(
                f"{candidate.name} cannot be read ({type(error).__name__}); trying the one before", stacklevel=2
            )
            continue
        return dict(payload)
    raise HilumError(
        "there is no intact checkpoint", where=str(path), fix="start the run again in a new folder, or restore the file"
    )
