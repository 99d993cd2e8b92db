"""Feeds damaged DICOM to the isolated readers: ``python tests/fuzz/run.py --mutants 100000``.

A reader may die, but not for memory; the run may not, no file may take more than ten seconds or 512 MB, and every file
has one row.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.mutate import mutant
from fuzz.seeds import write_seeds
from fuzz.target import LIMITS, MEMORY, SECONDS, WatchedIntake

from hilum.data.isolation import Readers

_BATCH = 2000
_SLOW = "took more than"
_STARVED = ("ended its reader", "needs more memory")  # by the system, by the limit


def fuzz(
    mutants: int, *, run: int = 0, workers: int = 2, first: int = 0, kept: Path | None = None, tell: bool = False
) -> dict[str, object]:
    """Counts by outcome, the slowest and the largest file, and ``faults``: mutants that broke a promise."""
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    slowest = largest = 0.0
    deaths = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = [f.read_bytes() for f in write_seeds(folder / "seeds")]
        for start in range(first, first + mutants, _BATCH):
            numbers = range(start, min(start + _BATCH, first + mutants))
            paths = []
            for number in numbers:
                paths.append(folder / f"{number}.dcm")
                paths[-1].write_bytes(mutant(seeds, number, run))
            seen: Counter[int] = Counter()
            for at, rows in Readers([WatchedIntake()], workers=workers, limits=LIMITS).read(paths):
                seen[at] += len(rows)
                row = rows[0]
                outcomes[row.status if row.status != "quarantined" else row.reason] += 1
                about = dict(p.split(":", 1) for p in row.problems if p.startswith(("seconds:", "kilobytes:")))
                seconds, grown = float(about.get("seconds", 0)), float(about.get("kilobytes", 0)) * 1024
                slowest, largest = max(slowest, seconds), max(largest, grown)
                deaths += "its reader died" in row.message or "ended its reader" in row.message
                starved = any(told in row.message for told in _STARVED)
                if seconds > SECONDS or _SLOW in row.message:
                    faults.append(f"{numbers[at]}: slow")
                if starved:
                    faults.append(f"{numbers[at]}: ended for memory")
                if grown > MEMORY:
                    faults.append(f"{numbers[at]}: {grown / 2**20:.0f} MB")
                if row.status == "quarantined" and not row.reason:
                    faults.append(f"{numbers[at]}: no reason")
                if kept is not None and (starved or "died" in row.message or _SLOW in row.message):
                    (kept / f"{numbers[at]}.dcm").write_bytes(paths[at].read_bytes())
            faults += [f"{numbers[at]}: {seen[at]} rows" for at in range(len(paths)) if seen[at] != 1]
            for path in paths:
                path.unlink()
            if tell:
                print(
                    f"{numbers[-1] + 1 - first} read, {deaths} readers died, faults: {faults}",
                    file=sys.stderr,
                    flush=True,
                )
    return {
        "mutants": mutants,
        "seeds": len(seeds),
        "outcomes": dict(outcomes.most_common()),
        "deaths": deaths,
        "slowest_s": slowest,
        "largest_mb": largest / 2**20,
        "faults": faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--run", type=int, default=0, help="another number gives other mutants")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for mutants that end a reader")
    given = parser.parse_args()
    start = time.monotonic()
    found = fuzz(given.mutants, run=given.run, workers=given.workers, first=given.first, kept=given.keep, tell=True)
    for name, value in found.items():
        print(f"{name}: {value}")
    print(f"seconds: {time.monotonic() - start:.0f}")
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
