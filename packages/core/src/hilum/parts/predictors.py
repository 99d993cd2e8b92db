"""Networks that predict what was hidden: a pre-norm transformer block and the pixel decoder of a masked autoencoder.

Sources: Dosovitskiy et al. 2021 (ViT) section 3.1; He et al. 2021 (MAE) section 3; arXiv 2210.12843, "Pretraining forward pass",
steps 3 and 4. Names of parameters are those of published checkpoints (``blocks.0.attn.qkv``, ``decoder_embed``, ...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hilum.core.errors import HilumError
from hilum.parts.masking import gather_tokens, restore_tokens
from hilum.parts.patchify import patch_sizes
from hilum.parts.positions import sincos_2d, sincos_3d


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection; torch picks the kernel."""

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if dim % heads:
            raise HilumError(f"a width of {dim} does not split into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BNE: Tensor, *, mask: Tensor | None = None, ids_BM: Tensor | None = None) -> Tensor:
        """(B,N,E), or (B,M,E): what only the tokens at ``ids_BM`` read from all tokens."""
        b, n, e = x_BNE.shape
        if ids_BM is None:
            q, k, v = self.qkv(x_BNE).reshape(b, n, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(gather_tokens(x_BNE, ids_BM), weight[:e], None if bias is None else bias[:e])
            q = q.reshape(b, -1, self.heads, e // self.heads).transpose(1, 2)
            kv = F.linear(x_BNE, weight[e:], None if bias is None else bias[e:])
            k, v = kv.reshape(b, n, 2, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.proj(x.transpose(1, 2).reshape(b, -1, e))
        return out


class Mlp(nn.Module):
    """fc1, GELU, fc2."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class TransformerBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)).

    ``mask`` is boolean (true = may attend) or additive, broadcastable to (B, heads, N, N). With ``ids_BM`` only those
    tokens come out, (B,M,E), and ``mask`` broadcasts to (B, heads, M, N): for a last block whose other results nobody reads.
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float = 4.0, *, qkv_bias: bool = True, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x_BNE: Tensor, *, mask: Tensor | None = None, ids_BM: Tensor | None = None) -> Tensor:
        kept = x_BNE if ids_BM is None else gather_tokens(x_BNE, ids_BM)
        x = kept + self.attn(self.norm1(x_BNE), mask=mask, ids_BM=ids_BM)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def init_linear(module: nn.Module) -> None:
    """MAE's initialisation of one module: Xavier-uniform weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PixelDecoder(nn.Module):
    """Visible tokens -> values of every patch.

    Linear in_dim -> width, mask tokens appended, un-shuffled, prefix put back in front, fixed sine-cosine positions
    (zero for the prefix), blocks, LayerNorm, linear to p*p*C, prefix dropped. ``grid`` and ``patch`` may have 3 axes.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self,
        in_dim: int,
        grid: Sequence[int],
        patch: int | Sequence[int],
        channels: int,
        *,
        depth: int = 8,
        width: int = 512,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        num_prefix: int = 1,
    ) -> None:
        super().__init__()
        self.grid, self.num_prefix = tuple(grid), num_prefix
        positions = (sincos_2d if len(self.grid) == 2 else sincos_3d)(width, self.grid, prefix=num_prefix)
        self.decoder_embed = nn.Linear(in_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", positions)
        self.decoder_blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_pred = nn.Linear(width, math.prod(patch_sizes(patch, len(self.grid))) * channels)
        self.apply(init_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        tokens_BKE: Tensor,
        ids_restore_BN: Tensor,
        *,
        prefix_BPE: Tensor | None = None,
        ids_BM: Tensor | None = None,
    ) -> Tensor:
        """(B,K,E), (B,N), (B,P,E) -> (B, N, p*p*C); of the patches at ``ids_BM`` alone: (B, M, p*p*C)."""
        given = 0 if prefix_BPE is None else prefix_BPE.shape[1]
        if given != self.num_prefix or ids_restore_BN.shape[1] != math.prod(self.grid):
            raise HilumError(
                f"a pixel decoder for {self.num_prefix} prefix tokens and a grid {self.grid} got {given} prefix tokens "
                f"and {ids_restore_BN.shape[1]} positions"
            )
        x = tokens_BKE if prefix_BPE is None else torch.cat([prefix_BPE, tokens_BKE], 1)
        x = self.decoder_embed(x)
        x = torch.cat([x[:, :given], restore_tokens(x[:, given:], self.mask_token, ids_restore_BN)], 1)
        x = x + self.decoder_pos_embed
        rows = None if ids_BM is None else ids_BM + given
        last = len(self.decoder_blocks) - 1
        for number, block in enumerate(self.decoder_blocks):
            x = block(x, ids_BM=rows if number == last else None)
        if rows is None:
            x = x[:, given:]
        elif last < 0:
            x = gather_tokens(x, rows)
        out: Tensor = self.decoder_pred(self.decoder_norm(x))
        return out
