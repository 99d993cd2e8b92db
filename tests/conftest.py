"""Shared settings of every test: offline, no telemetry, one thread a process, data where the environment names it.

Property tests try the same examples in every run, so that a red run is the change's; ``HYPOTHESIS_PROFILE=explore``
tries new ones.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session", autouse=True)
def _own_identity_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's identity key."""
    path = tmp_path_factory.mktemp("key") / "id.key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    os.environ["HILUM_ID_KEY"] = str(path)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Root of the licensed real images, or a skip where there are none."""
    root = os.environ.get("HILUM_TEST_DATA", "")
    if not root or not Path(root).is_dir():
        pytest.skip("HILUM_TEST_DATA names no folder of real images")
    return Path(root)
