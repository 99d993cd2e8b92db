"""A run's losses do not depend on what computes the augmented pixels, and its folder says what did."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hilum.verbs.training import start

pytest.importorskip("numba", reason="the extra cpu (numba) is not installed")

RECIPES = {
    "medical/demo-cxr": ("pretrain", "train/reconstruction"),
    "medical/demo-cxr-finetune": ("finetune", "train/classification"),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_first_twenty_losses_agree(recipe: str, study: Path, tmp_path: Path) -> None:
    """1e-3 relative, with the recipe's own network and augmentation."""
    losses, (verb, term) = {}, RECIPES[recipe]
    for backend in ("reference", "compiled", "auto"):
        sets = [
            "where=status = 'indexed'", "batch.size=8", "batch.per_device=8", "schedule.epochs=6",
            "schedule.warmup_epochs=1", "engine.validate_epochs=6", "engine.log_every=1", "engine.workers=0",
            f"engine.backend={backend}", "probes={}",
        ]  # fmt: skip
        out = tmp_path / backend
        done = start(recipe, data=study, out=out, sets=sets, split="default", verb=verb, track=False, quiet=True)
        losses[backend] = [line[term] for line in done.history][:20]
        used = yaml.safe_load((out / "config.yaml").read_text())["engine"]["backend"]
        assert used == ("reference" if backend == "reference" else "compiled")
    assert len(losses["reference"]) == 20
    assert losses["compiled"] == losses["auto"]
    assert losses["compiled"] == pytest.approx(losses["reference"], rel=1e-3)
    assert losses["compiled"] != losses["reference"], "the back-ends are not one and the same"
