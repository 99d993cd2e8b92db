"""A trained model gives the same scores on a card as on the CPU."""

from __future__ import annotations

import pytest
import torch
from matrix import OBJECTIVES, MatrixFeed, sample

from hilum.data.collate import collate
from hilum.verbs.inference import predict_batches

pytestmark = pytest.mark.gpu


def test_scores_equal_the_cpu_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    objective, scores = OBJECTIVES["supervised"]().eval(), []
    for device in ("cpu", "cuda"):
        batches = [collate([sample(n) for n in range(k, k + 8)]) for k in (0, 8)]
        told = predict_batches(objective.to(device), batches, MatrixFeed(), device=torch.device(device))
        scores.append(torch.cat([prediction.scores.cpu() for _, prediction in told]))
    assert scores[0].shape == (16, 3)
    torch.testing.assert_close(scores[1], scores[0], rtol=0, atol=1e-5)
