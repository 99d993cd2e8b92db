"""Two ranks equal one process: loss, gradients (through the weights they made), accounting."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from core_ranks import train
from ranks import run_on_ranks


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return train(folder=tmp_path_factory.mktemp("alone"), strategy="auto", accumulate=1)


@pytest.mark.integration
@pytest.mark.parametrize(("strategy", "accumulate"), [("ddp", 1), ("ddp", 2), ("fsdp2", 2)])
def test_two_ranks_with_unequal_counts_equal_one_process(
    strategy: str, accumulate: int, alone: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    both = run_on_ranks("core_ranks:train", tmp_path, strategy=strategy, accumulate=accumulate)
    assert both["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    torch.testing.assert_close(both["weights"], alone["weights"], rtol=0, atol=1e-6)
    assert both["samples"] == alone["samples"] == 48


@pytest.mark.integration
def test_a_sharded_run_resumes(alone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    both = run_on_ranks("core_ranks:train", tmp_path, strategy="fsdp2", accumulate=1, resume_at=3)
    torch.testing.assert_close(both["weights"], alone["weights"], rtol=0, atol=1e-6)
