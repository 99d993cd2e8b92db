"""What an archive holds: every entry of the tree, before anything is opened."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Fault = tuple[str, str, str]  # status, reason, message


@dataclass(frozen=True)
class Found:
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
            if entry.is_dir(follow_symlinks=False):
                if os.path.realpath(os.fsdecode(entry.path)) != own:
                    pending.append(path)
                continue
            about = entry.stat(follow_symlinks=False)
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
    except (OSError, RuntimeError):  # RuntimeError: how Python 3.11 reports a link loop
        return "quarantined", "cycle", "a link that leads to itself"
    if path.parent.resolve().is_relative_to(target):
        return "quarantined", "cycle", "a link to a folder that contains it"
    return "quarantined", "special_file", "a link; links are not followed"


def _matches(path: bytes, pattern: str) -> bool:
    text = os.fsdecode(path)
    parents = [text[:at] for at, letter in enumerate(text) if letter == "/"]
    return any(fnmatch.fnmatchcase(t, pattern) for t in (text, text.rsplit("/", 1)[-1], *parents))
