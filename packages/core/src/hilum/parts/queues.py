"""A first-in, first-out store of past features (He et al. 2020, MoCo, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Queue(nn.Module):
    """The last ``size`` rows of width ``dim``. Saved with the model; starts empty, so nothing random is ever compared.

    On several ranks push what :func:`hilum.parts.gather.all_gather_with_grad` returns, so that all hold the same rows.
    """

    store: Tensor
    pushed: Tensor

    def __init__(self, dim: int, size: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("store", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))  # rows ever pushed

    @property
    def filled(self) -> int:
        """Rows held now."""
        return min(int(self.pushed), len(self.store))

    @torch.no_grad()
    def push(self, x_BD: Tensor) -> None:
        """Append rows; the oldest leave. More rows than ``size`` keep the last ones."""
        size = len(self.store)
        kept = x_BD.detach()[-size:]
        first = self.pushed + len(x_BD) - len(kept)
        at = (first + torch.arange(len(kept), device=self.store.device)) % size
        self.store[at] = kept.to(self.store.dtype)
        self.pushed += len(x_BD)

    def rows(self) -> Tensor:
        """(filled, dim) a copy, oldest first."""
        n = self.filled
        start = int(self.pushed) - n
        at = (start + torch.arange(n, device=self.store.device)) % len(self.store)
        return self.store[at]
