"""The reader under test, watched: what it needed is told in the row, since it may be dead before anyone could ask."""

from __future__ import annotations

import resource
import time
from pathlib import Path

from hilum.core.types import IndexRow, Limits
from hilum.data.isolation import refusal
from hilum.medical.dicom.intake import DicomIntake

SECONDS, MEMORY = 10.0, 512 << 20
LIMITS = Limits(seconds=SECONDS)  # a user's but for time: what a file needs is measured, not capped


class WatchedIntake(DicomIntake):
    """Adds ``seconds:S`` and ``kilobytes:K`` (most that the process ever held above its start) to the problems."""

    name = "watched"
    _before: float | None = None

    def claims(self, path: Path, head: bytes) -> float:
        return 1.0

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        if WatchedIntake._before is None:
            WatchedIntake._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        try:
            rows = super().read(path, limits)
        except Exception as error:  # what read_file does with it, but watched
            rows = [refusal(error)]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - WatchedIntake._before
        rows[0].problems += [f"seconds:{time.monotonic() - start:.3f}", f"kilobytes:{grown:.0f}"]
        return rows
