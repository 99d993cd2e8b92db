"""Running ``predict`` over batches, the same way for validation, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from hilum.core.loop import Feed
from hilum.core.objective import Objective
from hilum.core.types import Batch, Prediction


@torch.no_grad()
def predict_batches(
    objective: Objective, loader: Iterable[Batch], feed: Feed, *, device: torch.device
) -> Iterable[tuple[Batch, Prediction]]:
    """Plain batches, moved and augmented for evaluation, with their predictions; empty ones are left out."""
    for batch in loader:
        if batch.size:
            moved = feed.augment(batch.to(device), train=False)
            yield moved, objective.predict(moved)
