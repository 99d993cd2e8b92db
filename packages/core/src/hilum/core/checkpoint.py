"""Checkpoints that survive a kill at any moment, on any file system.

A file is written beside its target, flushed to disk, hashed, announced in a side file and only then renamed; the one
before it is kept. Reading verifies the hash and falls back to the one before. Contents are tensors and JSON-able
values, read with ``weights_only``.
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

import torch

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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HilumError(
                f"the disk is full: {path.name} could not be written",
                where=str(path.parent),
                fix="free space and run `hilum resume`; the last good checkpoint was kept",
            ) from error
        raise
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
    """Write ``payload`` to ``path``; what stood there becomes ``previous-NAME``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"incoming-{path.name}")
    try:
        write_atomically(fresh, lambda stream: torch.save(dict(payload), stream))
    except RuntimeError as error:  # torch reports a full disk as a writer's RuntimeError
        raise HilumError(
            f"{path.name} could not be written: {str(error).splitlines()[0]}",
            where=str(path.parent),
            fix="check free space; the last good checkpoint was kept",
        ) from error
    sums = _sums(path)
    sums["incoming"] = file_sha256(fresh)
    write_json(_side(path), sums)  # both hashes are on record before either file moves
    previous = path.with_name(f"previous-{path.name}")
    if path.exists():
        path.replace(previous)
    fresh.replace(path)
    _sync_folder(path.parent)
    write_json(_side(path), {"current": sums["incoming"], "previous": sums.get("current", "")})


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
    candidates = [path, path.with_name(f"incoming-{path.name}"), path.with_name(f"previous-{path.name}")]
    for candidate in candidates:
        if not candidate.is_file():
            continue
        if sums and file_sha256(candidate) not in sums:
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
