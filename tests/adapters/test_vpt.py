"""Visual prompts: an explicit loop, identities, counts, deltas."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hilum.adapters.lora import LoRA
from hilum.adapters.vpt import VPT
from hilum.core.adapter import check_adapter, state_sha256
from hilum.core.errors import HilumError, Unsupported
from hilum.encoders.build import timm_encoder


def vit(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    small = {"patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 4, **options}
    encoder = timm_encoder("vit_tiny_patch16_224", view={"size": 32, "channels": 3}, **small).eval()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return encoder


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def attached(encoder: Any, **options: Any) -> VPT:
    torch.manual_seed(3)
    adapter = VPT(**options)
    adapter.attach(encoder)
    return adapter.eval()


def by_hand(encoder: Any, prompts: Tensor, x: Tensor, *, deep: bool, registers: int = 0) -> Tensor:
    """x_i = Block_i([cls; P_{i-1}; patches]) with timm's blocks and a plain loop (arXiv 2304.13639)."""
    net, p = encoder.net, prompts.shape[1]
    start = 1 + registers
    h = net._pos_embed(net.patch_embed(x))
    for i, block in enumerate(net.blocks):
        if i == 0:
            h = torch.cat([h[:, :start], prompts[0].expand(len(h), -1, -1), h[:, start:]], 1)
        elif deep:
            h = torch.cat([h[:, :start], prompts[i].expand(len(h), -1, -1), h[:, start + p :]], 1)
        h = block(h)
    h = net.norm(h)
    return torch.cat([h[:, :start], h[:, start + p :]], 1)


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("registers", [0, 2])
def test_equals_an_explicit_loop(deep: bool, registers: int) -> None:
    """Card 47."""
    encoder, x = vit(reg_tokens=registers), images()
    adapter = attached(encoder, tokens=4, deep=deep)
    check_adapter(adapter)
    out = encoder(x, layers=[0, -1])
    reference = by_hand(encoder, adapter.prompts, x, deep=deep, registers=registers)
    assert torch.allclose(torch.cat([out.prefix, out.tokens], 1), reference, atol=1e-6)
    assert out.tokens.shape == (2, 16, 32) and out.prefix.shape == (2, 1 + registers, 32) and out.grid == (4, 4)
    assert [layer.tokens.shape for layer in out.layers] == [(2, 16, 32)] * 2


def test_no_prompts_or_scale_zero_is_the_backbone() -> None:
    encoder, x = vit(), images()
    before = encoder(x)
    empty = attached(vit(), tokens=0)
    assert torch.equal(vit()(x).tokens, before.tokens) and sum(p.numel() for p in empty.trainable()) == 0
    zero = vit()
    attached(zero, tokens=0)
    assert torch.equal(zero(x).tokens, before.tokens) and torch.equal(zero(x).pooled, before.pooled)
    adapter = attached(encoder, tokens=3)
    assert not torch.allclose(encoder(x).tokens, before.tokens, atol=1e-3)
    adapter.scale = 0.0
    assert torch.equal(encoder(x).tokens, before.tokens)


def test_a_prompt_changes_nothing_before_its_block() -> None:
    encoder, x = vit(), images()
    adapter = attached(encoder, tokens=3)
    before = encoder(x, layers=[0, 1, 2])
    with torch.no_grad():
        adapter.prompts[2] += 1.0
    after = encoder(x, layers=[0, 1, 2])
    assert torch.equal(before.layers[0].tokens, after.layers[0].tokens)
    assert torch.equal(before.layers[1].tokens, after.layers[1].tokens)
    assert not torch.equal(before.layers[2].tokens, after.layers[2].tokens)


def test_counts_bounds_and_frozen_base() -> None:
    """Card 47: L p D deep, p D shallow; bound sqrt(6 / (3 patch^2 + D))."""
    encoder = vit()
    keys, digest = list(encoder.state_dict()), state_sha256(encoder)
    deep, shallow = attached(encoder, tokens=50), attached(vit(), tokens=50, deep=False)
    assert sum(p.numel() for p in deep.trainable()) == 3 * 50 * 32
    assert sum(p.numel() for p in shallow.trainable()) == 50 * 32
    assert "4,800 parameters" in deep.summary()
    bound = math.sqrt(6 / (3 * 8 * 8 + 32))
    assert 0.99 * bound < deep.prompts.abs().max() <= bound
    assert list(encoder.state_dict()) == keys and deep.base_sha256 == digest
    assert not any(p.requires_grad for p in encoder.parameters())
    assert (deep.slot, shallow.slot) == ("blocks", "embedding")


def test_gradients_reach_every_prompt_through_checkpointing_too() -> None:
    x, grads = images(), []
    for checkpointing in (False, True):
        encoder = vit(checkpointing=checkpointing).train()
        adapter = attached(encoder, tokens=2)
        encoder(x).pooled.square().sum().backward()
        grads.append(adapter.prompts.grad)
        assert adapter.prompts.grad.abs().sum(2).min() > 0
    assert torch.equal(*grads)


def test_works_with_kept_tokens_padding_and_taps() -> None:
    encoder, x = vit(), images()
    attached(encoder, tokens=4)
    full = encoder(x)
    kept = encoder(x, keep=torch.arange(16).expand(2, -1))
    # visible patches are embedded by a matrix product, whole images by a convolution: equal up to rounding
    torch.testing.assert_close(full.tokens, kept.tokens, rtol=0, atol=2e-6)
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[:, 12:] = False
    changed = x.clone()
    changed[:, :, 24:] = 3.0
    assert torch.equal(encoder(x, valid=valid).tokens[:, :12], encoder(changed, valid=valid).tokens[:, :12])
    tapped = encoder(x, taps=["blocks.2"])
    assert tapped.taps["blocks.2"].shape == (2, 4, 21, 21) and torch.equal(tapped.tokens, full.tokens)


def test_delta_moves_and_wrong_sizes_raise() -> None:
    """Card 47."""
    x, source = images(), vit()
    adapter = attached(source, tokens=4)
    twin = vit()
    torch.manual_seed(8)
    fresh = VPT(tokens=4)
    fresh.attach(twin)
    assert not torch.allclose(twin(x).pooled, source(x).pooled, atol=1e-3)
    fresh.load(adapter.delta(), base_sha256=adapter.base_sha256)
    assert torch.equal(twin(x).pooled, source(x).pooled)
    wrong = attached(vit(), tokens=5)
    with pytest.raises(HilumError, match=r"\(3, 4, 32\) in the delta, \(3, 5, 32\) here"):
        wrong.load(adapter.delta())
    foreign = attached(vit(seed=2), tokens=4)
    with pytest.raises(HilumError, match="other base weights"):
        foreign.load(adapter.delta(), base_sha256=adapter.base_sha256)


def test_refusals() -> None:
    with pytest.raises(Unsupported, match="no blocks"):
        VPT().attach(timm_encoder("resnet18", view={"size": 32}))
    encoder = vit()
    attached(encoder)
    with pytest.raises(HilumError, match="attached already"):
        attached(encoder)
    with pytest.raises(HilumError, match="cannot be merged"):
        VPT().merge()
    with pytest.raises(HilumError):
        VPT(tokens=-1)


class Pooled(nn.Module):
    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).pooled


def test_exports_with_a_free_batch() -> None:
    encoder = vit()
    attached(encoder, tokens=2)
    free = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(Pooled(encoder), (images(),), dynamic_shapes=free, strict=False)
    more = images().repeat(3, 1, 1, 1)
    assert torch.allclose(program.module()(more), encoder(more).pooled, atol=1e-5)


def test_prompts_and_low_rank_updates_work_together_and_copy() -> None:
    encoder, x = vit(), images()
    adapter = attached(encoder, tokens=2)
    with pytest.raises(HilumError):
        LoRA(match="nothing").attach(encoder)
    low = LoRA(rank=2)
    low.attach(encoder)
    with torch.no_grad():
        for p in low.parameters():
            p.normal_()
    before = encoder(x).tokens
    copied, prompts = copy.deepcopy((encoder, adapter))
    assert torch.equal(copied(x).tokens, before)
    with torch.no_grad():
        prompts.prompts += 1.0
    assert torch.equal(encoder(x).tokens, before) and not torch.equal(copied(x).tokens, before)
