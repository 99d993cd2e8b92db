"""Who launched this process decides its rank and how many machines there are."""

from __future__ import annotations

import pytest

from hilum.core.errors import HilumError
from hilum.verbs.launch import Launch, launched, own_rank

NAMES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_STEP_ID",
    "SLURM_NNODES",
)


@pytest.mark.parametrize(
    ("told", "expected", "rank"),
    [
        ({}, None, 0),
        ({"LOCAL_RANK": "3"}, None, 3),  # a process that the run started itself
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "9", "LOCAL_RANK": "1"}, Launch(16, 8, 2, 9), 9),
        ({"WORLD_SIZE": "2", "RANK": "1"}, Launch(2, 2, 1, 1), 1),
        (
            {"SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_PROCID": "9", "SLURM_STEP_ID": "0"},
            Launch(16, 8, 2, 9),
            9,
        ),
        # a shell inside an allocation of 16 tasks that srun did not start: alone
        ({"SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_PROCID": "0"}, None, 0),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, None, 0),
    ],
)
def test_launchers(told: dict[str, str], expected: Launch | None, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected and own_rank() == rank


def test_uneven_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "10")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(HilumError, match="10 processes"):
        launched()
