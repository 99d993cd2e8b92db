"""An intake whose reader crashes, hangs, hogs memory or raises, as the first bytes of a file say."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hilum.core.types import IndexRow, Limits, Pixels


class HostileIntake:
    name = "hostile"

    def claims(self, path: Path, head: bytes) -> float:
        return 1.0 if head.startswith(b"HOSTILE") else 0.0

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        deed = path.read_bytes()[8:].decode().strip()
        if deed == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if deed == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "slow":
            time.sleep(0.02)
        if deed.startswith("tell"):
            (path.parent.parent / "pid").write_text(str(os.getpid()))
            time.sleep(float(deed.split()[1]))
        if deed == "hang":
            time.sleep(1000)
        if deed == "hog":
            return [IndexRow("indexed", message=str(len(bytearray(1 << 40))))]
        if deed == "deep":
            return self.read(path, limits)
        if deed == "stop":
            raise StopIteration
        if deed == "name":
            raise ValueError("Doe^Jane")
        return [IndexRow("indexed", columns={"role": "image", "stored_sha256": "0" * 64, "std": 1.0})]

    def open(self, path: Path, row: Mapping[str, Any]) -> Pixels:
        raise AssertionError

    def problems(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return []
