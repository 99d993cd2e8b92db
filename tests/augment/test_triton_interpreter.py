"""The Triton kernels in Triton's interpreter, which has to be asked for before triton is imported: in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_interpreted.py")

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed (it comes with the dev extra on Linux)", allow_module_level=True)


def run(**more: str) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": "1", **more}
    for name in [name for name in environment if name.startswith("PYTEST_")]:  # this run's workers are not that run's
        del environment[name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", "--no-header", str(CASES)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1500, check=False, env=environment, cwd=CASES.parents[2]
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(900)  # seconds on a free machine; the interpreter's Python shares two cores with whatever runs
def test_the_interpreted_kernels_equal_oracle_and_reference() -> None:
    assert " passed" in run()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_hundred_random_policies() -> None:
    assert " passed" in run(HILUM_TRITON_POLICIES="200")
