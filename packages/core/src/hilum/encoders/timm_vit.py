"""Vision transformers of timm behind the encoder contract, with their own state-dict keys under ``net.``.

The blocks are timm's modules; only the way from block to block is ours, so that tokens can be left out, replaced,
tapped or joined by prompts between them (Dosovitskiy et al., arXiv 2010.11929; timm, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block as PreNormBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hilum.core.encoder import refuse
from hilum.core.errors import HilumError, Unsupported, nearest
from hilum.core.types import Block, EncoderSpec, FeatureMap, Features, State
from hilum.encoders.weights import LoadReport
from hilum.parts.masking import gather_tokens
from hilum.parts.patchify import patch_grid, patchify
from hilum.parts.positions import resize_positions, sincos_2d

Wrap = Callable[[int, Block], Block]


class ViTBlock:
    """Driver of one timm block: attention and feed-forward as two steps on a :class:`State`."""

    def __init__(self, block: Any, name: str) -> None:
        self.block, self.name = block, name

    def attend(self, state: State, *, mix: Callable[[Tensor, State], Tensor] | None = None) -> State:
        """``x + drop(ls(attn(norm(x))))``; ``mix`` may change the attention's result before it is added."""
        b, bias = self.block, attention_bias(state)
        if state.taps is not None and self.name in state.taps:
            state = replace(state, taps={**state.taps, self.name: self.logits(b.norm1(state.x), bias)})
        y = b.attn(b.norm1(state.x)) if bias is None else b.attn(b.norm1(state.x), attn_mask=bias)
        y = y if mix is None else mix(y, state)
        return replace(state, x=state.x + b.drop_path1(b.ls1(y)))

    def feed(self, state: State) -> State:
        """``x + drop(ls(mlp(norm(x))))``."""
        b = self.block
        return replace(state, x=state.x + b.drop_path2(b.ls2(b.mlp(b.norm2(state.x)))))

    def logits(self, x_BNE: Tensor, bias: Tensor | None) -> Tensor:
        """Scaled query-key products, plus the bias, before softmax: (B, heads, N, N). Computed beside the block's own
        attention, whose output therefore does not change by a bit."""
        attn = self.block.attn
        q, k, _ = attn.qkv(x_BNE).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        logits: Tensor = (attn.q_norm(q) * attn.scale) @ attn.k_norm(k).transpose(-2, -1)
        return logits if bias is None else logits + bias


class WholeBlock:
    """Driver of a timm block without that seam (parallel, post-norm): it runs in ``attend``."""

    def __init__(self, block: Any, name: str) -> None:
        self.block, self.name = block, name

    def attend(self, state: State, *, mix: Any = None) -> State:
        if mix is not None or (state.taps is not None and self.name in state.taps):
            raise Unsupported(f"{type(self.block).__name__} of {self.name} cannot be tapped or mixed")
        bias = attention_bias(state)
        return replace(state, x=self.block(state.x) if bias is None else self.block(state.x, attn_mask=bias))

    def feed(self, state: State) -> State:
        return state


def attention_bias(state: State) -> Tensor | None:
    """The state's additive bias with -inf at keys that are not valid; a row without any valid key stays unmasked."""
    if state.valid is None:
        return state.attention
    seen = state.valid | ~state.valid.any(dim=1, keepdim=True)
    mask = torch.zeros_like(seen, dtype=state.x.dtype).masked_fill(~seen, float("-inf"))[:, None, None, :]
    return mask if state.attention is None else mask + state.attention


class TimmViT(nn.Module):
    """A timm ``VisionTransformer`` without its classifier.

    Images (B, C, H, W) with H and W multiples of the patch; another size than ``img_size`` resizes the position table
    on the way. ``positions``: "learned" (the table trains) or "sincos-fixed" (2-D sine-cosine of MAE, not trained).
    ``mask_token`` adds the token that ``fill`` needs. ``wraps`` is the seam of adapters that work between blocks: each
    is called with (index, block) and returns the block to run; tokens it adds count in ``state.num_prefix`` and are
    dropped at the end.
    """

    def __init__(
        self,
        net: VisionTransformer,
        *,
        positions: str = "learned",
        mask_token: bool = False,
        checkpointing: bool = False,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        licence: str = "Apache-2.0",
    ) -> None:
        super().__init__()
        self.made_with: dict[str, Any] = {}
        self.report: LoadReport | None = None
        if not isinstance(net.patch_drop, nn.Identity):
            raise Unsupported("patch_drop_rate is not supported", fix="pass keep= instead: it says which patches stay")
        self.net = net
        self.wraps: list[Wrap] = []
        self.checkpointing = checkpointing
        if positions == "sincos-fixed":
            prefix = 0 if net.no_embed_class else net.num_prefix_tokens
            table = sincos_2d(net.embed_dim, net.patch_embed.grid_size, prefix=prefix)
            net.pos_embed = nn.Parameter(table, requires_grad=False)
        elif positions != "learned":
            raise HilumError(f"unknown positions {positions!r}", fix="learned or sincos-fixed")
        self.mask_token = nn.Parameter(torch.zeros(1, 1, net.embed_dim)) if mask_token else None
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=0.02)
        self.spec = EncoderSpec(
            embed_dim=net.embed_dim,
            pooled_dim=net.embed_dim,
            patch=tuple(net.patch_embed.patch_size),
            in_channels=net.patch_embed.proj.in_channels,
            mean=tuple(mean),
            std=tuple(std),
            layer_dims=(net.embed_dim,) * len(net.blocks),
            num_prefix=net.num_prefix_tokens,
            licence=licence,
            supports=frozenset({"keep", "valid", "layers", "taps", "stop", "checkpointing", "export"})
            | ({"fill"} if mask_token else set()),
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns) at the size the encoder was built for."""
        rows, columns = self.net.patch_embed.grid_size
        return rows, columns

    def forward(
        self,
        x: Tensor,
        *,
        valid: Tensor | None = None,
        keep: Tensor | None = None,
        fill: Tensor | None = None,
        context: Any = None,
        layers: Sequence[int] = (),
        taps: Sequence[str] = (),
        stop: int | None = None,
    ) -> Features:
        """``valid`` (B,N) patches that may be attended to; ``keep`` (B,K) patches to encode; ``fill`` (B,N) patches
        shown as the mask token; ``layers`` and ``stop`` block indices; ``taps`` of "blocks.0", "blocks.1", ..."""
        refuse(self, context=context, fill=fill)
        depth = len(self.net.blocks) if stop is None else min(stop, len(self.net.blocks))
        wanted = self._layer_indices(layers, depth)
        state = self._embed(x, valid=valid, keep=keep, fill=fill)
        if taps:
            state.taps = self._tap_slots(taps, depth)
        grid = state.grid if keep is None else None
        maps: dict[int, FeatureMap] = {}
        for index in range(depth):
            state = self._step(index, state)
            if index in wanted:
                maps[index] = FeatureMap(state.x[:, state.num_prefix :], grid)
        y = self.net.norm(state.x)
        prefix, tokens = y[:, : self.net.num_prefix_tokens], y[:, state.num_prefix :]
        seen = None if state.valid is None else state.valid[:, state.num_prefix :]
        return Features(
            tokens=tokens,
            pooled=self.net.fc_norm(self._pool(prefix, tokens, seen)),
            grid=grid,
            valid=seen,
            prefix=prefix,
            ids=keep,
            taps=state.taps or {},
            layers=[maps[i] for i in wanted],
        )

    def _embed(self, x: Tensor, *, valid: Tensor | None, keep: Tensor | None, fill: Tensor | None) -> State:
        net, rows = self.net, 0 if self.net.no_embed_class else self.net.num_prefix_tokens
        self._check(x)
        height, width = patch_grid(x.shape[2:], self.spec.patch or ())
        for name, given in (("valid", valid), ("fill", fill)):
            if given is not None and given.shape != (x.shape[0], height * width):
                raise HilumError(
                    f"{name} is {tuple(given.shape)}, the image has (batch, patches) {(x.shape[0], height * width)}"
                )
        tokens = self._embed_patches(x, keep)
        if keep is not None:
            valid = None if valid is None else valid.gather(1, keep)
            fill = None if fill is None else fill.gather(1, keep)
        if fill is not None:
            assert self.mask_token is not None
            tokens = torch.where(fill[..., None], self.mask_token.to(tokens.dtype), tokens)
        prefix = [t.expand(x.shape[0], -1, -1) for t in (net.cls_token, net.reg_token) if t is not None]
        front = torch.cat(prefix, dim=1) if prefix else tokens[:, :0]
        if net.pos_embed is not None:
            table = resize_positions(net.pos_embed, old_grid=self.grid, new_grid=(height, width), prefix=rows)
            tokens = tokens + (table[:, rows:] if keep is None else table[0, rows:][keep])
            front = front + table[:, :rows] if rows else front
        if valid is not None:
            valid = torch.cat([valid.new_ones(x.shape[0], front.shape[1]), valid], dim=1)
        joined = net.norm_pre(net.pos_drop(torch.cat([front, tokens], dim=1)))
        return State(joined, num_prefix=front.shape[1], grid=(height, width), valid=valid)

    def _embed_patches(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """(B, N, E), or only the patches at ``keep``: (B, K, E). Hidden patches are never multiplied where the
        embedding is a plain convolution, whose stride is its kernel: a matrix product per patch."""
        embed, proj = self.net.patch_embed, self.net.patch_embed.proj
        if keep is None or type(proj) is not nn.Conv2d or proj.kernel_size != proj.stride:
            tokens = proj(x).flatten(2).transpose(1, 2)
            tokens = tokens if keep is None else gather_tokens(tokens, keep)
        else:
            weight = proj.weight.permute(0, 2, 3, 1).flatten(1)  # patches lie as (row, column, channel)
            tokens = F.linear(gather_tokens(patchify(x, proj.kernel_size), keep), weight, proj.bias)
        out: Tensor = embed.norm(tokens)
        return out

    def _check(self, x: Tensor) -> None:
        channels, (p, q) = self.spec.in_channels, self.net.patch_embed.patch_size
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % p or x.shape[3] % q:
            raise HilumError(
                f"this encoder takes images (B, {channels}, H, W), H a multiple of {p}, W of {q}, got {tuple(x.shape)}",
                fix="set the view's size and channels in the recipe",
            )

    def block(self, index: int) -> Block:
        """The driver of one block, with what adapters wrapped around it."""
        module = self.net.blocks[index]
        kind = ViTBlock if type(module) is PreNormBlock else WholeBlock
        driver: Block = kind(module, f"blocks.{index}")
        for wrap in self.wraps:
            driver = wrap(index, driver)
        return driver

    def _step(self, index: int, state: State) -> State:
        block = self.block(index)
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return block.feed(block.attend(state))
        result: State = checkpoint(lambda s: block.feed(block.attend(s)), state, use_reentrant=False)
        return result

    def _pool(self, prefix: Tensor, tokens: Tensor, valid: Tensor | None) -> Tensor:
        net = self.net
        if net.attn_pool is None and net.global_pool == "avg" and not net.pool_include_prefix:
            if valid is None:
                return tokens.mean(dim=1)
            share = valid.to(tokens.dtype)[..., None]
            return (tokens * share).sum(dim=1) / share.sum(dim=1).clamp(min=1)
        if valid is not None and net.global_pool != "token":
            raise Unsupported(
                f"pooling {net.global_pool!r} does not know about padded patches", fix="pooling: cls or avg"
            )
        pooled: Tensor = net.pool(torch.cat([prefix, tokens], dim=1))
        return pooled

    def _layer_indices(self, layers: Sequence[int], depth: int) -> list[int]:
        total = len(self.net.blocks)
        wanted = [i + total if i < 0 else i for i in layers]
        outside = [i for i, index in zip(layers, wanted, strict=True) if not 0 <= index < depth]
        if outside:
            raise HilumError(
                f"there is no layer {outside[0]} among the {depth} blocks that run", fix=f"0 to {depth - 1}"
            )
        return wanted

    def _tap_slots(self, taps: Sequence[str], depth: int) -> dict[str, Tensor]:
        known = [f"blocks.{i}" for i in range(depth)]
        for name in taps:
            if name not in known:
                raise HilumError(
                    f"there is no block {name!r} to tap", fix=nearest(name, known) or f"{known[0]} ... {known[-1]}"
                )
        return {name: torch.empty(0) for name in taps}

    # --- what optimisers ask ---

    @property
    def num_layers(self) -> int:
        """Number of blocks; what stands after the last one (final norm, head) has depth ``num_layers + 1``."""
        return len(self.net.blocks)

    def depth_of(self, name: str) -> int:
        """0 for embeddings, k + 1 for block k, ``num_layers + 1`` for the rest; ``name`` relative to this module."""
        first, _, rest = name.removeprefix("net.").partition(".")
        if first == "blocks":
            return int(rest.partition(".")[0]) + 1
        embeddings = ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre", "mask_token")
        return 0 if first in embeddings else self.num_layers + 1

    def no_weight_decay(self) -> frozenset[str]:
        """Parameters that must not decay although they have more than one dimension."""
        return frozenset({"mask_token", *(f"net.{n}" for n in self.net.no_weight_decay())})

    def load_notes(self) -> Mapping[str, Any]:
        """What a loader must know to resize: the position table's key, grid and prefix rows."""
        rows = 0 if self.net.no_embed_class else self.net.num_prefix_tokens
        return (
            {"positions": "net.pos_embed", "grid": self.grid, "prefix": rows} if self.net.pos_embed is not None else {}
        )
