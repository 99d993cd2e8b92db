"""What the evaluating verbs say on the terminal, and where they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import write_run

from hilum.evaluation.comparison import paired_bootstrap
from hilum.verbs.evaluating import differences
from hilum.verbs.loading import inference_device, load_model


def test_a_comparison_is_told_with_its_p_values() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((200, 2)) < 0.4).astype(float)
    noise = rng.normal(size=y.shape)
    good, bad = y + noise, rng.normal(size=y.shape)
    compared = paired_bootstrap(y, good, bad, [str(i) for i in range(200)], names=("a", "b"), n=100)
    told = differences("one against two", compared).splitlines()
    row = compared.rows[0]
    assert row.p_a_better == 0 and told[1].endswith("p < 0.01  adjusted < 0.01")
    reverse = differences("two against one", paired_bootstrap(y, bad, good, [str(i) for i in range(200)], n=100))
    assert "p 1.000  adjusted 1.000" in reverse and "adjusted" in told[0]
    assert told[-1].startswith("  mean") and told[-1].endswith("adjusted –")


def test_a_trained_model_runs_where_training_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert inference_device().type == kind
    write_run(tmp_path / "run")
    assert load_model(tmp_path / "run").device.type == "cpu"
