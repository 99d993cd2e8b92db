"""Attentive pooling: a learned query reads the tokens that a frozen or fine-tuned encoder gives.

Cross-attention with one query, as in attentive probing (Chen et al. 2023, arXiv 2202.03026, section 4.1; Lee et al.
2019, arXiv 1810.00825, equation 7).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hilum.core.errors import HilumError
from hilum.core.head import Head
from hilum.core.types import Batch, Features, Prediction
from hilum.heads.linear import check_task, scores_of


class AttentiveHead(Head):
    """``tokens`` (B, N, dim), those of ``features.valid`` only, to one logit a name; attention weights in ``maps``."""

    needs = ("tokens",)

    def __init__(
        self, dim: int, names: Sequence[str], task: str = "multilabel", *, heads: int = 8, init_std: float = 0.02
    ) -> None:
        super().__init__()
        if heads < 1 or init_std < 0:
            raise HilumError(f"an attentive head cannot have {heads} heads and init_std {init_std}", where="head")
        if dim % heads:
            raise HilumError(f"{heads} heads do not divide the width {dim}", fix="set the head's heads to a divisor")
        self.names, self.task, self.heads = check_task(task, names), task, heads
        self.norm, self.query = nn.LayerNorm(dim, eps=1e-6), nn.Parameter(torch.empty(1, 1, dim))
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.out_norm, self.linear = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, len(self.names))
        for weight in (self.query, self.q.weight, self.kv.weight, self.proj.weight, self.linear.weight):
            nn.init.trunc_normal_(weight, std=init_std)
        for layer in (self.q, self.kv, self.proj, self.linear):
            nn.init.zeros_(layer.bias)
        self.made_with = {"dim": dim, "names": list(names), "task": task, "heads": heads}

    def pool(self, tokens_BNE: Tensor, valid_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, dim) and the attention of the query (B, heads, N); rows without any valid token attend to all."""
        x = self.norm(tokens_BNE)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, dim/heads)
        q = self.q(self.query).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (1, heads, 1, dim/heads)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, 1, N)
        if valid_BN is not None:
            seen = valid_BN | ~valid_BN.any(1, keepdim=True)
            logits = logits.masked_fill(~seen[:, None, None, :], float("-inf"))
        attention = logits.float().softmax(-1).to(v.dtype)
        pooled: Tensor = self.proj((attention @ v).flatten(1))
        return pooled, attention[:, :, 0]

    def forward(self, features: Features, batch: Batch | None = None) -> Prediction:
        """Logits and scores (B, F); ``maps["attention"]`` (B, h, w) or (B, N), averaged over heads."""
        pooled, attention = self.pool(features.tokens, features.valid)
        logits = self.linear(self.out_norm(pooled))
        weights = attention.mean(1)
        attended = weights if features.grid is None else weights.reshape(-1, *features.grid)
        return Prediction(scores_of(logits, self.task), logits=logits, names=self.names, maps={"attention": attended})
