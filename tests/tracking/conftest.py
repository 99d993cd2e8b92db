"""Fixtures of the tracker's tests: one real SQLite store a session, made by a process that is then killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hilum.tracking.tracker import Tracker

KILLED_RUN = """
import logging, os, signal, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO)
from hilum.tracking.tracker import Tracker
assert "mlflow" not in sys.modules
study = Path(sys.argv[1])
tracker = Tracker.open(study=study, run_dir=study / "runs/killed", experiment="killed", run_name="k")
tracker.log_metrics({"loss": 1.0}, 3)
print("pickles", os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"])
print("telemetry off", os.environ["MLFLOW_DISABLE_TELEMETRY"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="session")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A study whose store was made by a process that then was killed: (study, its stdout, its stderr)."""
    folder = tmp_path_factory.mktemp("study")
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(folder)],
        capture_output=True,
        text=True,
        env=env,
        cwd=folder,
        timeout=280,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder, done.stdout, done.stderr


@pytest.fixture
def tracked_study(killed_run: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    for key in ("MLFLOW_TRACKING_URI", "RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(key, raising=False)
    return killed_run[0]


@pytest.fixture
def begin(tracked_study: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Opens trackers of one experiment a test; closes what a test left open."""
    opened: list[Tracker] = []

    def begin(name: str = "run", **options: Any) -> Tracker:
        run_dir = tracked_study / "runs" / request.node.name / name
        options = {"experiment": request.node.name, "run_name": name, **options}
        opened.append(Tracker.open(study=tracked_study, run_dir=run_dir, **options))
        return opened[-1]

    yield begin
    for tracker in opened:
        tracker.close("KILLED")
