"""Simulated radiographs a second, written as DICOM, with one process a core.

There is no peer to divide by: the goal is a rate on two cores. Each repeat simulates other patients; the time includes
starting the processes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from claims import REPEATS, arguments, claim, cores, spread, tell, versions

from hilum.medical.simulate.cohort import simulate_cohort


def main() -> None:
    options = arguments(__doc__, ("--patients", {"type": int}), ("--size", {"type": int, "default": 256}))
    patients, workers = options.patients or (10 if options.quick else 60), cores()
    rates, images = [], 0
    with tempfile.TemporaryDirectory() as folder:
        simulate_cohort(Path(folder) / "warm", patients=2, size=options.size, workers=workers, progress=False)
        for seed in range(REPEATS):
            began = time.perf_counter()
            cohort = simulate_cohort(
                Path(folder) / str(seed),
                patients=patients,
                seed=seed,
                size=options.size,
                workers=workers,
                progress=False,
            )
            rates.append(cohort.count / (time.perf_counter() - began))
            images += cohort.count
    tell(
        f"{images} images of {options.size} pixels in {REPEATS} cohorts of {patients} patients, {workers} processes; "
        f"{versions('torch', 'pydicom', 'scipy')}",
        f"{spread(rates)} images/s",
    )
    claim("simulator", statistics.median(rates), "images/s", 6.0)


if __name__ == "__main__":
    main()
