"""One small study for the runs of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_road import write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("adapters"))
