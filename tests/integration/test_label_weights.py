"""Weights of positives come from the very rows that a run trains on (card of arXiv 2308.07688)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hilum.core.recipe import load_recipe
from hilum.data.study import Study
from hilum.verbs import assembly

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("chosen", ["all", "where", "fraction", "limit"])
def test_the_weights_are_those_of_the_rows_that_the_loader_serves(study: Path, recipes: Path, chosen: str) -> None:
    opened, sets = Study(study), ["labels.pos_weight=auto"]
    if chosen == "where":
        darkest = sorted(v for v in opened.column("min") if v is not None)
        sets.append(f"where=status = 'indexed' and min > {darkest[len(darkest) // 3]}")
    options: dict[str, Any] = {"fraction": {"fraction": 0.5}, "limit": {"limit": 13}}.get(chosen, {})
    recipe = load_recipe(str(recipes / "findings.yaml"), sets=sets)
    data = assembly.open_data(recipe, opened, split_name="default", need_labels=True, quiet=True, **options)
    recipe = assembly.resolve(recipe, data, devices=1)
    objective, _ = assembly.build_objective(recipe, data.labels)
    feed = assembly.feed_of(recipe, data)
    steps = feed.train_loader(0, start_step=0, rank=0, world=1, accumulate=1)
    served = [batch for step in steps for batch in step if batch.size]
    feed.close()
    labels = torch.cat([b.targets["labels"] for b in served]).double()
    valid = torch.cat([b.valid["labels"] for b in served]).bool()
    assert len(labels) == len(data.rows["train"])
    positive = ((labels == 1) & valid).sum(0).double()
    expected = (valid.sum(0) - positive) / positive
    weights = objective.pos_weight
    assert isinstance(weights, torch.Tensor)
    np.testing.assert_allclose(weights.double().numpy(), expected.numpy(), rtol=1e-6)
    whole = opened.label_matrix(("left", "right"), opened.rows("status = 'indexed'"))
    if chosen != "all":  # what a count over the whole study would have given
        assert not np.allclose(expected.numpy(), ((whole == 0).sum(0) / (whole == 1).sum(0)))
