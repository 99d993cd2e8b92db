"""What a run says of itself, in names a tracking store takes and in words that may leave the machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import posixpath
import re
import socket
import subprocess
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError

NAME_CHARS = 200  # MLflow's limit is 250, less our longest tag prefix
_WORDS = str.maketrans({"@": " at ", "%": " pct ", "=": " eq ", "<": " lt ", ">": " gt ", "+": " plus ", "&": " and "})
_START = r"(?:file|sqlite):/+|~[^/\s]*/|[A-Za-z]:[\\/](?!/)|\\\\"
_WHOLE_PATH = re.compile(rf"(?:{_START}|/).+")
_INNER_PATH = re.compile(rf"(?<![\w./\\~-])(?:{_START}|/(?!/)(?=[^\s/]+/))[^\s'\",;|<>()\[\]{{}}]+")


def sha(text: str, chars: int = 64) -> str:
    """The first hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:chars]


def config_sha256(config: Mapping[str, Any]) -> str:
    """Of the configuration's JSON with sorted keys."""
    return sha(json.dumps(config, sort_keys=True, default=str))


def legal_name(name: str) -> str:
    """``name`` in the characters MLflow takes: letters digits _ - . space : /; a legal name is returned as it is.

    ``"AUROC (val)@0.5"`` becomes ``"AUROC _val_ at 0.5"``. Two names may fall together: see ``Names``.
    """
    legal = re.fullmatch(r"[\w\-. :/]+", name, re.ASCII) and posixpath.normpath(name) == name == name.strip()
    if not legal or name[0] in "/.":
        text = re.sub(r"[^\w\-. :/]", "_", unicodedata.normalize("NFKC", name).translate(_WORDS), flags=re.ASCII)
        parts = (re.sub(" +", " ", part).strip() for part in text.split("/"))
        name = "/".join(re.sub(r"^\.+", lambda dots: "_" * len(dots[0]), part) for part in parts if part) or "unnamed"
    return name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 9].rstrip(' /.')}-{sha(name, 8)}"


class Names(dict[str, str]):
    """Original -> legal name, one to one: the second of two that fall together carries a hash."""

    def __missing__(self, name: str) -> str:
        text = legal_name(name)
        self[name] = text if text not in self.values() else f"{text} {sha(name, 8)}"
        return self[name]


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaves; lists of mappings by position, other lists whole; a dot inside a key becomes ``\\.``."""
    nested = isinstance(config, list | tuple) and any(isinstance(item, Mapping) for item in config)
    if config and (nested or isinstance(config, Mapping)):
        for key, item in config.items() if isinstance(config, Mapping) else enumerate(config):
            name = str(key).replace(".", "\\.")
            yield from flatten(item, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, config


def redact(text: str, known: Mapping[str, Path]) -> str:
    """Absolute paths and file addresses replaced: below a ``known`` folder by ``LABEL/rest``, else by 8 hex digits of
    the SHA-256 of their last part.

    A text that is one path is taken whole, blanks included; within a longer text a path ends at a blank, quote,
    bracket or comma and needs two parts. Relative paths and web addresses stay.
    """

    def replace(match: re.Match[str]) -> str:
        path = posixpath.normpath(match[0])
        for label, folder in known.items():
            for place in (folder.absolute().as_posix(), folder.resolve().as_posix()):
                if path == place or path.startswith(place + "/"):
                    return label + path[len(place) :]
        return sha(re.split(r"[/\\]", path)[-1], 8)

    return replace(whole) if (whole := _WHOLE_PATH.fullmatch(text)) else _INNER_PATH.sub(replace, text)


def plain(value: object, clean: Callable[[str], str]) -> str:
    """A parameter's or tag's text: a string as it is, anything else as JSON, every string in it ``clean``ed."""

    def walk(item: object) -> object:
        if isinstance(item, Mapping):
            return {clean(str(key)): walk(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [walk(entry) for entry in item]
        return item if item is None or isinstance(item, bool | int | float) else clean(str(item))

    cleaned = walk(value)
    return cleaned if isinstance(cleaned, str) else json.dumps(cleaned, ensure_ascii=False)


def refuse_private(path: Path, roots: Iterable[Path]) -> None:
    """HilumError where ``path`` is absent, or holds or reaches through a link anything of a ``private/`` folder of
    the ``roots`` or of another study."""
    if not path.exists():
        raise HilumError("there is no such file to log", where=str(path))
    known = {root.resolve() for root in roots}
    for item in (path, *path.rglob("*")) if path.is_dir() else (path,):
        real = item.resolve()
        owners = [part.parent for part in (real, *real.parents) if part.name == "private"]
        linked_folder = item is not path and item.is_symlink() and item.is_dir()
        if linked_folder or any(owner in known or (owner / "study.json").exists() for owner in owners):
            fix = "log what lies outside private/, without links to folders"
            raise HilumError("nothing from private/ may leave the study", where=str(item), fix=fix)


@functools.cache
def environment() -> str:
    """Interpreter, system and every installed distribution, one ``name==version`` a line."""
    found = {f"{item.name}=={item.version}" for item in importlib.metadata.distributions() if item.name}
    lines = [f"python=={platform.python_version()}", f"platform=={platform.platform()}"]
    return "\n".join(lines + sorted(found, key=str.casefold)) + "\n"


def _git(*arguments: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command, env = ["git", *arguments], {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, env=env, check=True, timeout=5)
        return done.stdout.decode("utf-8", "replace").strip()
    return None


def surroundings() -> dict[str, object]:
    """Versions, device and the git state of the working folder (None where there is none); never fails."""
    import torch

    try:
        version = importlib.metadata.version("hilum")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    commit = _git("rev-parse", "HEAD")
    cuda = torch.cuda.is_available()
    in_use = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # naming the card would start it
    return {
        "version": version,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "device": torch.cuda.get_device_name() if in_use else "cuda" if cuda else "cpu",
        "git_commit": commit,
        "git_dirty": None if commit is None else _git("status", "--porcelain", "--untracked-files=no") != "",
    }


def _started(pid: int) -> int | None:
    """When process ``pid`` of this machine began, seconds since 1970; None where there is none."""
    import psutil

    try:
        return int(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):
        return None


def process_tags() -> dict[str, str]:
    """What tells this process from any other, before and after: host, number, start."""
    own = os.getpid()
    return {"hilum.host": socket.gethostname(), "hilum.pid": str(own), "hilum.started": str(_started(own))}


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process of these tags ran on this host and is gone, its number possibly in use again."""
    pid, started = tags.get("hilum.pid", ""), tags.get("hilum.started", "")
    if tags.get("hilum.host") != socket.gethostname() or not pid.isdigit():
        return False
    begun = _started(int(pid))
    # The start is computed from a clock that may be adjusted: some seconds of difference are the same process.
    return begun is None or (started.isdigit() and abs(begun - int(started)) > 5)
