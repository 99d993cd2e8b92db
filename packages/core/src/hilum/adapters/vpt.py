"""Visual prompts: learned tokens between the prefix and the patches of a frozen vision transformer.

Shallow: before the first block. Deep: before every block, where they replace those of the block before
(Jia et al. 2022, arXiv 2203.12119, equations 4 to 6; arXiv 2304.13639, module A).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hilum.core.adapter import Adapter, Slot
from hilum.core.errors import HilumError, Unsupported
from hilum.core.types import Block, EncoderSpec, State


class VPT(Adapter):
    """``tokens`` prompts of the encoder's width, uniform in +-sqrt(6 / (3 patch^2 + width)), without positions.

    Works on encoders that have the list ``wraps`` (see ``encoders.timm_vit``). ``scale`` 0 switches the prompts off,
    any other value on. Prompts cannot be merged: they are shipped as a delta beside the untouched base.
    """

    def __init__(self, *, tokens: int = 5, deep: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        if tokens < 0:
            raise HilumError(f"the number of prompts cannot be {tokens}")
        self.tokens, self.deep, self.dropout, self.scale = tokens, deep, dropout, 1.0
        self.slot: Slot = "blocks" if deep else "embedding"
        self.prompts: nn.Parameter | None = None  # (blocks or 1, tokens, width)

    def attach(self, module: nn.Module) -> nn.Module:
        """Stand before the blocks of ``module``; returns it."""
        wraps, spec = getattr(module, "wraps", None), getattr(module, "spec", None)
        if not isinstance(wraps, list) or not isinstance(spec, EncoderSpec) or spec.patch is None:
            raise Unsupported(
                f"{type(module).__name__} has no blocks that prompts could stand before",
                fix="use a plain vision transformer",
            )
        if self.prompts is not None or any(isinstance(getattr(w, "__self__", None), VPT) for w in wraps):
            raise HilumError("prompts are attached already", fix="one VPT adapter for each encoder")
        module.requires_grad_(False)
        self.base = (module,)
        rows = len(spec.layer_dims) if self.deep else 1
        bound = math.sqrt(6.0 / (3 * math.prod(spec.patch) + spec.embed_dim))
        device = next(module.parameters()).device
        self.prompts = nn.Parameter(
            torch.empty(rows, self.tokens, spec.embed_dim, device=device).uniform_(-bound, bound)
        )
        wraps.append(self.wrap)
        return module

    def wrap(self, index: int, block: Block) -> Block:
        """The block to run in place of ``block``."""
        if self.scale == 0 or self.tokens == 0 or (index > 0 and not self.deep):
            return block
        return PromptedBlock(self, index, block)

    def insert(self, index: int, state: State) -> State:
        """``state`` with the prompts of block ``index``: added before the first block, replaced before the others."""
        assert self.prompts is not None
        end = state.num_prefix if index else state.num_prefix + self.tokens
        start = end - self.tokens
        prompts = F.dropout(self.prompts[index], self.dropout, self.training).to(state.x.dtype)
        after = state.x[:, end:] if index else state.x[:, start:]
        x = torch.cat([state.x[:, :start], prompts.expand(after.shape[0], -1, -1), after], dim=1)
        valid = state.valid
        if valid is not None and index == 0:
            valid = torch.cat([valid[:, :start], valid.new_ones(x.shape[0], self.tokens), valid[:, start:]], dim=1)
        return replace(state, x=x, num_prefix=end, valid=valid)

    def summary(self) -> str:
        """What is added, and how many parameters that takes."""
        where = "every block" if self.deep else "the first block"
        return f"{self.tokens} prompts before {where}: {sum(p.numel() for p in self.trainable()):,} parameters"


@dataclass(frozen=True)
class PromptedBlock:
    """A block that gets its prompts before it attends."""

    adapter: VPT
    index: int
    block: Block

    def attend(self, state: State, *, mix: Any = None) -> State:
        return self.block.attend(self.adapter.insert(self.index, state), mix=mix)

    def feed(self, state: State) -> State:
        return self.block.feed(state)
