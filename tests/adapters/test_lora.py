"""Low-rank updates: where they act, what they cost, how they are switched off, merged, shipped."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hilum.adapters.lora import AdaptedLinear, LoRA
from hilum.core.adapter import check_adapter, state_sha256
from hilum.core.errors import HilumError
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


def trained(adapter: LoRA, seed: int = 9) -> LoRA:
    """As after training: B is not zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapter.trainable():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return adapter


def test_identity_at_the_start_and_when_switched_off() -> None:
    encoder, x = vit(), images()
    check_adapter(LoRA())
    before = encoder(x).tokens
    adapter = LoRA(roles=("q", "k", "v", "o", "ffn"), rank=4)
    assert adapter.attach(encoder) is encoder
    assert torch.equal(encoder(x).tokens, before)  # B = 0
    trained(adapter)
    assert not torch.allclose(encoder(x).tokens, before, atol=1e-2)
    adapter.scale = 0.0
    assert torch.equal(encoder(x).tokens, before)
    adapter.scale = 0.5
    half = encoder(x).tokens
    adapter.scale = 1.0
    assert not torch.equal(half, encoder(x).tokens)


def test_only_the_asked_rows_of_a_fused_projection_change() -> None:
    """Card 47."""
    encoder, x = vit(), torch.randn(5, 32)
    layer = encoder.net.blocks[1].attn.qkv
    before = layer(x)
    adapter = trained(LoRA(roles=("q", "v"), rank=2, alpha=6.0).attach(encoder) and _last(encoder))
    after = encoder.net.blocks[1].attn.qkv(x)
    assert torch.equal(after[:, 32:64], before[:, 32:64])  # k
    for role, rows in (("q", slice(0, 32)), ("v", slice(64, 96))):
        update = adapter.updates[f"net/blocks/1/attn/qkv:{role}"]
        expected = before[:, rows] + (x @ update.A.T @ update.B.T) * 6.0 / 2
        assert torch.allclose(after[:, rows], expected, atol=1e-5) and not torch.equal(after[:, rows], before[:, rows])
    with adapter.merged():
        weight = encoder.net.blocks[1].attn.qkv.weight
        assert torch.equal(weight[32:64], layer.weight[32:64])


def _last(encoder: Any) -> LoRA:
    adapted = next(m for m in encoder.modules() if isinstance(m, AdaptedLinear))
    return adapted.links[0].adapter


def test_counts_names_and_frozen_base() -> None:
    encoder = vit()
    keys, digest = list(encoder.state_dict()), state_sha256(encoder)
    adapter = LoRA(roles=("q", "o", "ffn"), rank=3)
    adapter.attach(encoder)
    per_block = 3 * (32 + 32) + 3 * (32 + 32) + 3 * (32 + 128) + 3 * (128 + 32)
    assert sum(p.numel() for p in adapter.trainable()) == 3 * per_block
    assert f"{3 * per_block:,} parameters" in adapter.summary() and "12 projections" in adapter.summary()
    assert list(encoder.state_dict()) == keys and adapter.base_sha256 == digest
    assert not any(p.requires_grad for p in encoder.parameters())
    assert len(list(encoder.parameters())) == len(list(vit().parameters()))


def test_training_moves_the_adapter_alone() -> None:
    encoder, x = vit(), images()
    adapter = LoRA(rank=2)
    adapter.attach(encoder)
    digest = state_sha256(encoder)
    optimiser = torch.optim.SGD(adapter.trainable(), lr=0.1)
    losses = []
    for _ in range(4):
        loss = (encoder(x).pooled - 1.0).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] and state_sha256(encoder) == digest


def test_kaiming_and_zero_initialisation() -> None:
    torch.manual_seed(0)
    encoder = vit(embed_dim=96, num_heads=4)
    adapter = LoRA(rank=16)
    adapter.attach(encoder)
    update = adapter.updates["net/blocks/0/attn/qkv:q"]
    bound = math.sqrt(6 / ((1 + 5) * 96))  # Kaiming-uniform with a = sqrt 5
    assert not update.B.any() and 0.97 * bound < update.A.abs().max() <= bound
    assert abs(update.A.std() - bound / math.sqrt(3)) < 0.05 * bound


def test_merged_equals_unmerged_and_unmerging_is_exact() -> None:
    encoder, x = vit(), images()
    adapter = LoRA(roles=("q", "v", "ffn"), rank=4, alpha=8.0)
    adapter.attach(encoder)
    trained(adapter)
    base, live = {k: v.clone() for k, v in encoder.state_dict().items()}, encoder(x).tokens
    with adapter.merged():
        assert torch.allclose(encoder(x).tokens, live, atol=1e-5)
        plain = vit(seed=4)
        plain.load_state_dict(encoder.state_dict())
        assert torch.allclose(plain(x).tokens, live, atol=1e-5)
    assert all(torch.equal(v, base[k]) for k, v in encoder.state_dict().items())
    assert torch.equal(encoder(x).tokens, live)
    with pytest.raises(ZeroDivisionError), adapter.merged():
        1 / 0  # noqa: B018
    assert all(torch.equal(v, base[k]) for k, v in encoder.state_dict().items())


def test_merging_for_good_leaves_a_plain_network() -> None:
    encoder, x = vit().double(), images().double()
    adapter = LoRA(rank=4)
    adapter.attach(encoder)
    trained(adapter.double())
    live = encoder(x).tokens
    adapter.merge()
    assert torch.allclose(encoder(x).tokens, live, atol=1e-6)
    assert all(type(m) is nn.Linear for m in encoder.modules() if isinstance(m, nn.Linear))
    again = LoRA(rank=1)
    again.attach(encoder)
    assert torch.allclose(encoder(x).tokens, live, atol=1e-6)


def test_two_adapters_add_up_and_scale_apart() -> None:
    encoder, x = vit(), torch.randn(4, 32)
    layer = encoder.net.blocks[0].attn.proj
    before = layer(x)
    first, second = LoRA(roles=("o",), rank=2), LoRA(roles=("o",), rank=3)
    for adapter, seed in ((first, 1), (second, 2)):
        adapter.attach(encoder)
        trained(adapter, seed)
    both = encoder.net.blocks[0].attn.proj(x)
    first.scale = 0.0
    only_second = encoder.net.blocks[0].attn.proj(x)
    second.scale = 0.0
    assert torch.equal(encoder.net.blocks[0].attn.proj(x), before)
    first.scale = 1.0
    only_first = encoder.net.blocks[0].attn.proj(x)
    assert torch.allclose(both - before, (only_first - before) + (only_second - before), atol=1e-5)


def test_a_delta_is_small_and_moves_to_an_equal_base_only() -> None:
    """Card 47."""
    x, source = images(), vit()
    adapter = LoRA(rank=2)
    adapter.attach(source)
    trained(adapter)
    delta, features = adapter.delta(), source(x).pooled
    assert sum(t.numel() * 4 for t in delta.values()) < 10_000
    twin, other = vit(), vit(seed=5)
    fresh = LoRA(rank=2)
    fresh.attach(twin)
    fresh.load(delta, base_sha256=adapter.base_sha256)
    assert torch.equal(twin(x).pooled, features)
    foreign = LoRA(rank=2)
    foreign.attach(other)
    with pytest.raises(HilumError, match="other base weights"):
        foreign.load(delta, base_sha256=adapter.base_sha256)
    for wrong, said in (
        (LoRA(rank=3), r"\(2, 32\) in the delta, \(3, 32\) here"),
        (LoRA(roles=("q",), rank=2), "unknown"),
    ):
        wrong.attach(vit())
        with pytest.raises(HilumError, match=said):
            wrong.load(delta)


def test_what_matches_nothing_is_an_error() -> None:
    with pytest.raises(HilumError, match="found no projection"):
        LoRA().attach(timm_encoder("resnet18", view={"size": 32}))
    with pytest.raises(HilumError, match="found no projection"):
        LoRA(match="*.blocks.7.*").attach(vit())
    with pytest.raises(HilumError, match="did you mean 'ffn'"):
        LoRA(roles=("fnn",))
    adapter = LoRA(match="net.blocks.2.*")
    adapter.attach(vit())
    assert {n.split(":")[0] for n in adapter.updates} == {"net/blocks/2/attn/qkv"}
    with pytest.raises(HilumError, match="attached already"):
        adapter.attach(vit())


def test_copies_are_independent() -> None:
    encoder, x = vit(), images()
    adapter = LoRA(rank=2)
    adapter.attach(encoder)
    trained(adapter)
    before = encoder(x).tokens
    copied, its = copy.deepcopy((encoder, adapter))
    its.merge()
    assert torch.allclose(copied(x).tokens, before, atol=1e-5) and torch.equal(encoder(x).tokens, before)
    trained(adapter, 3)
    assert torch.allclose(copied(x).tokens, before, atol=1e-5)


def test_dropout_acts_in_training_mode_of_the_adapter() -> None:
    encoder, x = vit(), images()
    adapter = LoRA(rank=4, dropout=0.5)
    adapter.attach(encoder)
    trained(adapter).eval()
    assert torch.equal(encoder(x).tokens, encoder(x).tokens)
    adapter.train()
    assert not torch.equal(encoder(x).tokens, encoder(x).tokens)


class BertStyle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.query, self.attention.key, self.attention.value = (nn.Linear(8, 8) for _ in range(3))


def test_separate_projections_are_found_by_role() -> None:
    model, x = BertStyle(), torch.randn(3, 8)
    before = model.attention.key(x), model.attention.value(x)
    adapter = LoRA(roles=("v",), rank=2)
    adapter.attach(model)
    trained(adapter)
    assert torch.equal(model.attention.key(x), before[0]) and not torch.equal(model.attention.value(x), before[1])
