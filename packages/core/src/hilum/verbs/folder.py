"""A RUN folder: its configuration, its lock, what it hands on."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hilum.core.checkpoint import write_atomically, write_json
from hilum.core.errors import HilumError
from hilum.core.recipe import Recipe, parse_recipe


class RunFolder:
    """``RUN/config.yaml run.json checkpoints/ exported/ eval/ logs/`` (FORMATS 1)."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run; an error that says what is missing."""
        folder = cls(path)
        if not folder.config.is_file():
            raise HilumError(
                f"{path} is not a run folder (it holds no config.yaml)",
                where=str(path),
                fix="give the folder that --out named for pretrain or finetune",
            )
        return folder

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def recipe(self) -> Recipe:
        return parse_recipe(self.config.read_text(encoding="utf-8"), origin=f"{self.path.name}/config.yaml")

    def study_of(self, recipe: Recipe) -> Path:
        """The study the run was trained on; it may be gone. A relative path counts from the run's folder."""
        told = Path(recipe.get("run", {}).get("study", "."))
        return told if told.is_absolute() else (self.path / told).resolve()

    @property
    def facts(self) -> dict[str, Any]:
        """``run.json``: label names, row counts, MLflow ids, digests."""
        path = self.path / "run.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def note(self, **facts: Any) -> None:
        """Add to ``run.json``."""
        write_json(self.path / "run.json", {**self.facts, **facts})

    def write_config(self, recipe: Recipe) -> None:
        write_atomically(self.config, lambda stream: _put(stream, recipe.to_yaml()))

    def checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.ckpt"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time; a lock whose process is gone is taken over."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / "lock.json"
        mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        with _alone(self.path):
            if path.exists() and _held(path):
                raise HilumError(
                    "another process works on this run",
                    where=str(path),
                    fix="wait for it, or remove lock.json if you are sure that it is gone",
                )
            write_atomically(path, lambda stream: _put(stream, mine))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes must not both find a lock stale and both take it: whoever looks holds the folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(ImportError, OSError):  # no such locks here: the lock file alone must do
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _put(stream: Any, text: str) -> None:
    stream.write(text.encode())


def _held(path: Path) -> bool:
    try:
        owner = json.loads(path.read_text())
        if owner["host"] != socket.gethostname():
            return True
        os.kill(int(owner["pid"]), 0)
    except (OSError, ValueError, KeyError) as error:
        return isinstance(error, PermissionError)
    return int(owner["pid"]) != os.getpid()
