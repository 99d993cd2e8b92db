"""Learning from labels: findings (sigmoid) or classes (softmax), fine-tuning or with a frozen encoder.

arXiv 2210.12843, "Fine-tuning", and arXiv 2308.07688, "Loss": for findings
L = mean over known entries of -w_c y log s(z) - (1 - y) log(1 - s(z)), w_c = (N - n_c) / n_c with ``pos_weight`` auto.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hilum.core.errors import ContractError, HilumError, nearest
from hilum.core.objective import Objective, Parts
from hilum.core.types import Batch, EncoderSpec, Features, Prediction, StepOutput, Term, ViewSpec
from hilum.objectives.label_weights import positive_weights
from hilum.objectives.merging import merged
from hilum.parts.losses import binary_cross_entropy, cross_entropy

TASKS = ("multilabel", "multiclass", "binary")


class Supervised(Objective):
    """A head on an encoder, learned from ``batch.targets["labels"]``.

    Findings: (B, F) in [0, 1]. Classes: (B,) or (B, 1) indices, or (B, F) one-hot. ``valid["labels"]`` of the same
    shape says what is known. ``pos_weight``: "none", "auto", or a mapping from finding to "none", "auto" or a number.
    ``frozen`` keeps the encoder in eval mode and without gradient (linear probing); with adapters the base is always
    frozen and in eval mode, and gradients reach the adapters through it.
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        parts: Parts,
        *,
        task: str = "multilabel",
        pos_weight: str | Mapping[str, str | float] = "none",
        label_smoothing: float = 0.0,
        frozen: bool = False,
    ) -> None:
        super().__init__(parts)
        if task not in TASKS:
            raise HilumError(
                f"unknown task {task!r}", where="task", fix=nearest(task, TASKS) or "one of " + " ".join(TASKS)
            )
        if not 0 <= label_smoothing < 1:
            raise HilumError(
                f"label_smoothing must be in [0, 1), got {label_smoothing}",
                where="objective.label_smoothing",
                fix="0.1",
            )
        if parts.head is None or parts.labels is None:
            raise ContractError("supervised learning lacks parts", ["a head", "labels"], where="recipe")
        self.encoder, self.head, self.labels = parts.encoder, parts.head, parts.labels
        self.view, self.task, self.label_smoothing = next(iter(parts.encoders)), task, label_smoothing
        self.frozen, self.eval_encoder = frozen and not parts.adapters, frozen or bool(parts.adapters)
        if self.frozen:
            self.encoder.requires_grad_(False)
        self.register_buffer("pos_weight", None if task == "multiclass" else positive_weights(parts.labels, pos_weight))
        self.train(self.training)

    @property
    def views(self) -> Mapping[str, ViewSpec]:
        spec: EncoderSpec = self.encoder.spec  # type: ignore[assignment]
        return {self.view: ViewSpec(spec.kind)}

    def train(self, mode: bool = True) -> Supervised:
        """Train mode for all but an encoder whose weights stand still: no dropout, no stochastic depth in it."""
        super().train(mode)
        if self.eval_encoder:
            self.encoder.eval()
        return self

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"classification": self._targets(batch)[1].sum()}

    def forward(self, batch: Batch) -> StepOutput:
        target, valid = self._targets(batch)
        logits = self.predict(batch).logits
        assert logits is not None
        s = self.label_smoothing
        if self.task != "multiclass":
            target = target * (1 - s) + 0.5 * s
            term = binary_cross_entropy(logits, target, valid, pos_weight=self.pos_weight)
        else:
            term = cross_entropy(logits, target, valid)
            if s:  # the uniform distribution's share
                uniform = -logits.float().log_softmax(-1).mean(-1)
                term = Term((1 - s) * term.sum + s * uniform[valid].sum(), term.count)
        return StepOutput({"classification": term})

    def predict(self, batch: Batch) -> Prediction:
        """Scores (B, F) after the head's link."""
        prediction: Prediction = self.head(self.features(batch), batch)
        return prediction

    def features(self, batch: Batch) -> Features:
        """What the head reads; without gradient where the encoder is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Features = self.encoder(batch.views[self.view])
        return features

    def exported(self) -> dict[str, nn.Module]:
        return merged(self.adapters, encoder=self.encoder, head=self.head)

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Targets and what counts of them: (B, F) for findings, (B,) indices for classes."""
        if "labels" not in batch.targets:
            raise HilumError("this batch has no labels", where="supervised", fix="index the study with --labels")
        target = batch.targets["labels"]
        valid = batch.valid.get("labels", torch.ones_like(target, dtype=torch.bool)).bool()
        if self.task != "multiclass":
            return target, valid
        if target.ndim == 2:
            one_hot = target.shape[1] > 1
            target, valid = (target.argmax(1) if one_hot else target[:, 0]), valid.all(1)
        return target.long(), valid
