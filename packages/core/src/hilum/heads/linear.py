"""The linear classifier, and how logits become scores."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hilum.core.errors import HilumError, nearest
from hilum.core.head import Head
from hilum.core.types import Batch, Features, Prediction

TASKS = ("multilabel", "multiclass", "binary")


def scores_of(logits_BF: Tensor, task: str) -> Tensor:
    """Softmax over classes for "multiclass", a sigmoid for each finding otherwise; computed in float32."""
    return logits_BF.float().softmax(-1) if task == "multiclass" else logits_BF.float().sigmoid()


def check_task(task: str, names: Sequence[str]) -> tuple[str, ...]:
    """``names`` as a tuple, or an error where they cannot be the outputs of ``task``."""
    if task not in TASKS:
        raise HilumError(
            f"no classification head for the task {task!r}", fix=nearest(task, TASKS) or "one of " + " ".join(TASKS)
        )
    fits, wanted = {
        "multilabel": (len(names) >= 1, "at least one finding"),
        "multiclass": (len(names) >= 2, "two or more classes"),
        "binary": (len(names) == 1, "one finding"),
    }[task]
    if not fits:
        raise HilumError(f"a {task} head needs {wanted}, got {len(names)}", fix="set task and labels.names to agree")
    return tuple(names)


class LinearHead(Head):
    """``pooled`` (B, dim) to one logit a name. Weights are truncated normal with ``init_std`` (arXiv 2210.12843: 2e-5), bias 0.

    ``batch_norm`` puts a normalisation without learned scale before it, as linear probing of masked autoencoders does.
    """

    needs = ("pooled",)

    def __init__(
        self,
        dim: int,
        names: Sequence[str],
        task: str = "multilabel",
        *,
        init_std: float = 2e-5,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if init_std < 0 or not 0 <= dropout < 1:
            raise HilumError(
                f"a linear head cannot have init_std {init_std} and dropout {dropout}",
                where="head",
                fix="init_std of at least 0, dropout in [0, 1)",
            )
        self.names, self.task = check_task(task, names), task
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, len(self.names))
        nn.init.trunc_normal_(self.linear.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
        nn.init.zeros_(self.linear.bias)
        self.made_with = {"dim": dim, "names": list(names), "task": task, "batch_norm": batch_norm}

    def forward(self, features: Features, batch: Batch | None = None) -> Prediction:
        """Logits (B, F) and scores (B, F) in [0, 1]."""
        logits = self.linear(self.dropout(self.norm(features.pooled)))
        return Prediction(scores=scores_of(logits, self.task), logits=logits, names=self.names)
