"""The index's reading over Ray Data: the same task in the same isolated workers, on the machines of a cluster.

Every machine must see the archive under the same path. Rows come back packed as from a local worker, so that the study
is the same to the byte; plain identifiers do not travel.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from hilum.core.errors import MissingExtra
from hilum.data.listing import Found
from hilum.data.reading import Job, Reading, Rows

_BATCH = 256  # files of one Ray task: seconds of work
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def read_on_ray(reading: Reading, jobs: Sequence[Job], *, workers: int) -> Iterator[tuple[int, Rows]]:
    """(number of files, their rows) of every job once. Joins the cluster that RAY_ADDRESS names, else starts one here
    with ``workers`` processors; what it started it stops."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        from ray.data import DataContext
    except ImportError:
        raise MissingExtra("ray", extra="ray", wanted_by="--executor ray") from None

    if not len(jobs):
        return
    started = not ray.is_initialized()
    if started:
        here: dict[str, Any] = (
            {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": max(workers, 1), "include_dashboard": False}
        )
        ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **here)
    try:
        context = DataContext.get_current()
        context.enable_progress_bars = False
        with _silent("ray.data"):
            founds = [job.found for job in jobs]
            table = pa.table(
                {
                    "path": pa.array([f.path for f in founds], pa.binary()),
                    "size": pa.array([f.size for f in founds], pa.int64()),
                    "mtime_ns": pa.array([f.mtime_ns for f in founds], pa.int64()),
                }
            )
            read = _Remote(reading)
            parts = max(1, -(-len(table) // _BATCH))
            data = (
                ray.data.from_arrow(table).repartition(parts).map_batches(read, batch_format="pyarrow", batch_size=None)
            )
            for batch in data.iter_batches(batch_format="pyarrow", batch_size=None):
                assert isinstance(batch, pa.Table)
                for number, stream in zip(batch["files"].to_pylist(), batch["rows"].to_pylist(), strict=True):
                    yield number, Rows(stream, {})
    finally:
        if started:
            ray.shutdown()


class _Remote:
    """One Ray task: a table of files to packed rows, read by one isolated worker."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def __call__(self, table: pa.Table) -> pa.Table:
        columns = (table[name].to_pylist() for name in ("path", "size", "mtime_ns"))
        jobs = [Job(Found(*entry)) for entry in zip(*columns, strict=True)]
        with tempfile.TemporaryDirectory(prefix="hilum-index-") as scratch:
            self.reading.scratch = Path(scratch)
            done = list(self.reading.pool(1).run(jobs))
        return pa.table(
            {"files": [n for n, _ in done], "rows": pa.array([r.stream for _, r in done], pa.large_binary())}
        )


@contextlib.contextmanager
def _silent(name: str) -> Iterator[Any]:
    """Nothing of a library's start-up messages: they name paths."""
    logger = logging.getLogger(name)
    level, spread = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL)
    logger.propagate = False
    try:
        yield logger
    finally:
        logger.setLevel(level)
        logger.propagate = spread
