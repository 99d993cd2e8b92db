"""Plain ViTs behind the contract: timm's own numbers, visible-token encoding, taps, masks, checkpointing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hilum.core.encoder import check_encoder
from hilum.core.errors import HilumError, Unsupported
from hilum.core.types import State
from hilum.encoders.build import build
from hilum.encoders.timm_vit import TimmViT, ViTBlock
from hilum.parts.optimiser import param_groups

NAME = "timm/vit_tiny_patch16_224"


def tiny(size: int | tuple[int, int] = 32, **options: Any) -> TimmViT:
    torch.manual_seed(0)
    small = {"patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 4}
    encoder = build(NAME, view={"size": size, "channels": 3}, **{**small, **options})
    assert isinstance(encoder, TimmViT)
    with torch.no_grad():  # zero-initialised tokens and biases would hide mistakes
        for p in encoder.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    return encoder.eval()


def images(size: int = 32, n: int = 2, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def sequence(features: Any) -> Tensor:
    return torch.cat([features.prefix, features.tokens], 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg"},
        {"pooling": "avg", "fc_norm": False},
        {"pooling": "max"},
        {"init_values": 0.1, "reg_tokens": 2},
        {"class_token": False, "global_pool": "avg", "no_embed_class": True},
        {"pre_norm": True, "qk_norm": True},
        {"class_token": False, "global_pool": "map"},
        {"pos_embed": "none"},
    ],
)
def test_equals_timm_bit_for_bit(options: dict[str, Any]) -> None:
    encoder, x = tiny(**options), images()
    check_encoder(encoder)
    out, reference = encoder(x), encoder.net.forward_features(x)
    assert torch.equal(sequence(out), reference)
    assert torch.allclose(out.pooled, encoder.net.forward_head(reference, pre_logits=True), atol=1e-6)
    assert out.grid == (4, 4) and out.map().shape == (2, 32, 4, 4)
    assert torch.equal(out.map()[:, :, 1, 2], out.tokens[:, 1 * 4 + 2])


def test_parallel_blocks_run_and_cannot_be_tapped() -> None:
    from timm.models.vision_transformer import ParallelScalingBlock

    encoder, x = tiny(block_fn=ParallelScalingBlock), images()
    assert torch.equal(sequence(encoder(x)), encoder.net.forward_features(x))
    with pytest.raises(Unsupported):
        encoder(x, taps=["blocks.1"])


def test_keep_of_all_tokens_is_the_plain_forward() -> None:
    encoder, x = tiny(), images()
    ids = torch.arange(16).expand(2, -1)
    plain, kept = encoder(x), encoder(x, keep=ids)
    assert torch.allclose(kept.tokens, plain.tokens, atol=1e-5) and torch.allclose(kept.pooled, plain.pooled, atol=1e-5)
    assert kept.grid is None and kept.ids is ids
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3)).expand(2, -1)
    shuffled = encoder(x, keep=order)  # positions travel with their tokens
    assert torch.allclose(shuffled.tokens, plain.tokens[:, order[0]], atol=1e-5)
    assert torch.allclose(shuffled.prefix, plain.prefix, atol=1e-5)


def test_keep_equals_a_short_reference() -> None:
    """arXiv 2210.12843: positions are added before tokens are removed, CLS gets its own afterwards."""
    encoder, x = tiny(), images()
    net, noise = encoder.net, torch.rand(2, 16, generator=torch.Generator().manual_seed(5))
    keep = noise.argsort(1)[:, :4]
    tokens = []
    for b in range(2):
        rows = torch.nn.functional.conv2d(
            x[b : b + 1], net.patch_embed.proj.weight, net.patch_embed.proj.bias, stride=8
        )
        rows = rows.flatten(2).transpose(1, 2)[0] + net.pos_embed[0, 1:]
        tokens.append(torch.cat([net.cls_token[0] + net.pos_embed[0, :1], torch.stack([rows[i] for i in keep[b]])]))
    reference = net.norm(net.blocks(torch.stack(tokens)))
    assert torch.allclose(sequence(encoder(x, keep=keep)), reference, atol=1e-6)


def test_hidden_patches_cannot_leak_into_visible_tokens() -> None:
    encoder, x = tiny(), images()
    keep = torch.tensor([[0, 5, 6], [1, 2, 15]])
    changed = x.clone()
    changed[0, :, 16:, 16:] = 7.0  # patches 10, 11, 14, 15 of the first image
    assert torch.equal(encoder(x, keep=keep).tokens, encoder(changed, keep=keep).tokens)


def test_fill_shows_the_mask_token() -> None:
    encoder, x = tiny(mask_token=True), images()
    none, every = torch.zeros(2, 16, dtype=torch.bool), torch.ones(2, 16, dtype=torch.bool)
    assert torch.equal(encoder(x, fill=none).tokens, encoder(x).tokens)
    assert torch.equal(encoder(x, fill=every).tokens, encoder(-x, fill=every).tokens)
    some = none.clone()
    some[:, 3] = True
    changed = x.clone()
    changed[:, :, :8, 24:] = 9.0  # patch 3
    assert torch.equal(encoder(x, fill=some).tokens, encoder(changed, fill=some).tokens)
    assert not torch.equal(encoder(x, fill=some).tokens, encoder(x).tokens)
    with pytest.raises(Unsupported, match="fill"):
        tiny()(x, fill=some)


def test_layers_are_timms_and_stop_ends_early() -> None:
    encoder, x = tiny(), images()
    out = encoder(x, layers=[2, 0, -2])
    reference = encoder.net.forward_intermediates(x, indices=[0, 1, 2], output_fmt="NLC", intermediates_only=True)
    for found, index in zip(out.layers, (2, 0, 1), strict=True):
        assert torch.equal(found.tokens, reference[index]) and found.grid == (4, 4)
    assert torch.equal(encoder.net.norm(out.layers[0].tokens), out.tokens)
    stopped = encoder(x, stop=2, layers=[1])
    assert torch.equal(stopped.tokens, encoder.net.norm(reference[1]))
    with pytest.raises(HilumError, match="no layer 2"):
        encoder(x, stop=2, layers=[2])


def test_taps_are_the_logits_of_the_attention_that_runs() -> None:
    encoder, x = tiny(qk_norm=True), images()
    plain, tapped = encoder(x, layers=[0]), encoder(x, taps=["blocks.1"])
    assert torch.equal(plain.tokens, tapped.tokens) and torch.equal(plain.pooled, tapped.pooled)
    logits = tapped.taps["blocks.1"]
    assert logits.shape == (2, 4, 17, 17) and plain.taps == {}
    block = encoder.net.blocks[1]
    inside = encoder.net.blocks[0](encoder.net._pos_embed(encoder.net.patch_embed(x)))
    v = block.attn.qkv(block.norm1(inside))[..., 64:].unflatten(2, (4, 8)).transpose(1, 2)
    own = block.attn.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(own, block.attn(block.norm1(inside)), atol=1e-5)
    with pytest.raises(HilumError, match=r"did you mean 'blocks\.1'"):
        encoder(x, taps=["block.1"])


def test_padding_is_not_read() -> None:
    encoder, x = tiny(pooling="avg", fc_norm=False), images()
    valid = torch.ones(2, 16, dtype=torch.bool)
    valid[0, 12:] = False  # the last row of patches of the first image
    changed = x.clone()
    changed[0, :, 24:] = 5.0
    one, two = encoder(x, valid=valid), encoder(changed, valid=valid)
    assert torch.equal(one.tokens[valid], two.tokens[valid]) and torch.equal(one.pooled, two.pooled)
    assert torch.allclose(one.pooled[0], one.tokens[0, :12].mean(0), atol=1e-6)
    cropped = encoder(x[:1, :, :24], keep=None)  # 3 rows of patches: same, but for the resized position table
    assert cropped.tokens.shape == (1, 12, 32)
    subset = encoder(x[:1], keep=torch.arange(12)[None])
    assert torch.allclose(subset.tokens[0], one.tokens[0, :12], atol=1e-5)
    kept = encoder(x, valid=valid, keep=torch.tensor([[0, 13], [0, 13]]))
    assert kept.valid is not None and kept.valid.tolist() == [[True, False], [True, True]]
    with pytest.raises(HilumError, match="valid is"):
        encoder(x, valid=valid[:, :5])


def test_a_row_that_is_all_padding_stays_finite() -> None:
    encoder, x = tiny(class_token=False, global_pool="avg"), images()
    out = encoder(x, valid=torch.tensor([[False] * 16, [True] * 16]))
    assert out.pooled.isfinite().all() and torch.allclose(out.tokens[1], encoder(x).tokens[1], atol=1e-6)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_gives_equal_gradients(drop_path: float) -> None:
    x, keep, grads = images(), torch.tensor([[0, 3, 9], [1, 4, 15]]), []
    for checkpointing in (False, True):
        encoder = tiny(drop_path=drop_path, checkpointing=checkpointing).train()
        torch.manual_seed(7)
        out = encoder(x, keep=keep, layers=[1], taps=["blocks.0"])
        (out.pooled.square().sum() + out.layers[0].tokens.sum() + out.taps["blocks.0"].square().mean()).backward()
        grads.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 20
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])


def test_fixed_sincos_table_has_maes_layout() -> None:
    encoder = tiny(positions="sincos-fixed", size=(32, 48))
    table = encoder.net.pos_embed
    assert not table.requires_grad and table.shape == (1, 1 + 4 * 6, 32) and not table[0, 0].any()
    row, column, i = 2, 5, 3  # width 32: 8 sines and 8 cosines of the column, then of the row
    omega = 10000.0 ** (-i / 8)
    entry = table[0, 1 + row * 6 + column]
    expected = [math.sin(column * omega), math.cos(column * omega), math.sin(row * omega), math.cos(row * omega)]
    assert np.allclose(entry[[i, 8 + i, 16 + i, 24 + i]].tolist(), expected, atol=1e-6)
    with pytest.raises(HilumError, match="positions"):
        tiny(positions="rope")


def test_patch_14_at_224_gives_257_tokens() -> None:
    """arXiv 2308.07688: 16 x 16 patches and CLS."""
    encoder = tiny(size=224, patch_size=14, depth=1)
    out = encoder(images(224, n=1))
    assert sequence(out).shape == (1, 257, 32) and out.grid == (16, 16)
    assert encoder.spec.patch == (14, 14)


def test_another_size_resizes_positions_as_timm_does() -> None:
    encoder, x = tiny(), images(48)
    dynamic = build(NAME, view={"size": 32}, patch_size=8, depth=3, embed_dim=32, num_heads=4, dynamic_img_size=True)
    dynamic.load_state_dict(encoder.state_dict())
    out = encoder(x)
    assert out.grid == (6, 6)
    assert torch.allclose(sequence(out), dynamic.net.eval().forward_features(x), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 30, 32), (3, 32, 32)])
def test_wrong_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(HilumError, match=r"takes images \(B, 3, H, W\)"):
        tiny()(torch.zeros(shape))
    with pytest.raises(Unsupported, match="context"):
        tiny()(images(), context=torch.zeros(1))


def test_second_reader_between_attention_and_feed_forward() -> None:
    encoder, x = tiny(drop_path=0.1), images()
    block, start = encoder.block(1), torch.randn(2, 17, 32)
    assert isinstance(block, ViTBlock)
    state = State(start, num_prefix=1)
    assert torch.equal(block.feed(block.attend(state)).x, encoder.net.blocks[1](start))
    assert torch.equal(state.x, start)  # states are not changed in place
    silent = block.attend(state, mix=lambda y, s: torch.zeros_like(y))
    assert torch.equal(silent.x, start)
    seen = []
    encoder.wraps.append(lambda index, inner: seen.append(index) or inner)
    encoder(x, stop=2)
    assert seen == [0, 1]


@pytest.mark.parametrize("options", [{}, {"patch_size": (8, 4)}, {"embed_norm_layer": torch.nn.LayerNorm}])
def test_only_visible_patches_are_embedded_and_equal_those_of_the_convolution(options: dict[str, Any]) -> None:
    encoder, x = tiny(mask_token=True, **options), images(channels=3)
    net = encoder.net
    n = net.patch_embed.num_patches
    keep = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(i))[:5] for i in range(2)])
    fill = torch.rand(2, n, generator=torch.Generator().manual_seed(7)) < 0.5
    seen: list[Any] = []
    encoder.wraps.append(lambda index, inner: seen.append(inner) or inner)
    hook = net.patch_embed.proj.register_forward_hook(lambda *a: seen.append("convolution"))
    embedded = encoder._embed(x, valid=None, keep=keep, fill=fill).x[:, 1:]
    assert "convolution" not in seen
    hook.remove()
    whole = net.patch_embed(x)
    whole = torch.where(fill[..., None], encoder.mask_token, whole) + net.pos_embed[:, 1:]
    assert torch.allclose(embedded, whole.gather(1, keep[..., None].expand(-1, -1, 32)), atol=1e-5)


def test_a_changed_patch_embedding_is_called_as_it_is() -> None:
    """An adapter in place of the convolution must not be passed by."""
    encoder, x = tiny(), images()

    class Doubled(torch.nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    before, keep = encoder(x, keep=torch.tensor([[3, 5]] * 2)).tokens, torch.tensor([[3, 5]] * 2)
    proj = encoder.net.patch_embed.proj
    doubled = Doubled(3, 32, proj.kernel_size, proj.stride)
    doubled.load_state_dict({k: v / 2 for k, v in proj.state_dict().items()})
    encoder.net.patch_embed.proj = doubled
    assert torch.allclose(encoder(x, keep=keep).tokens, before, atol=1e-5)


def test_average_pooling_has_a_new_norm_and_no_final_norm() -> None:
    """arXiv 2210.12843, fine-tuning: mean of the patch tokens without CLS, then fc_norm; the final norm is gone."""
    encoder, x = tiny(pooling="avg"), images()
    names = {n for n, _ in encoder.named_parameters()}
    assert "net.fc_norm.weight" in names and "net.norm.weight" not in names
    out = encoder(x, layers=[-1])
    assert torch.equal(out.tokens, out.layers[0].tokens)
    norm = encoder.net.fc_norm
    mean = out.layers[0].tokens.mean(1)
    hand = (mean - mean.mean(-1, keepdim=True)) / (mean.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    assert torch.allclose(out.pooled, hand * norm.weight + norm.bias, atol=1e-5)


def test_layer_decay_by_depth() -> None:
    """arXiv 2210.12843, on the encoder's own names."""
    encoder = tiny(depth=12, pooling="avg")
    groups = param_groups(
        encoder,
        lr=1.0,
        weight_decay=0.05,
        layer_decay=0.55,
        depth_of=encoder.depth_of,
        num_layers=encoder.num_layers,
        no_decay=tuple(encoder.no_weight_decay()),
    )
    rate = {n: g["lr"] for g in groups for n in g["names"]}
    decay = {n: g["weight_decay"] for g in groups for n in g["names"]}
    assert abs(rate["net.blocks.11.mlp.fc2.weight"] - 0.55) < 1e-12
    assert abs(rate["net.blocks.0.attn.qkv.weight"] - 0.55**12) < 1e-12
    for name in ("net.patch_embed.proj.weight", "net.cls_token", "net.pos_embed"):
        assert abs(rate[name] - 0.55**13) < 1e-12
    assert rate["net.fc_norm.weight"] == 1.0 and len(set(rate.values())) == 14
    parameters = dict(encoder.named_parameters())
    assert set(rate) == set(parameters)
    for name, p in parameters.items():
        flat = p.ndim <= 1 or name in ("net.cls_token", "net.pos_embed")
        assert decay[name] == (0.0 if flat else 0.05)


def test_state_dict_keys_are_timms_under_net() -> None:
    encoder = tiny()
    assert set(encoder.state_dict()) == {f"net.{k}" for k in encoder.net.state_dict()}
    assert encoder.spec.num_prefix == 1 and encoder.spec.layer_dims == (32, 32, 32)


class Pooled(nn.Module):
    """Tensors in, tensors out, as exporters want it."""

    def __init__(self, encoder: TimmViT) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).pooled


def test_exports_and_runs_in_bfloat16() -> None:
    encoder, x = tiny(depth=2), images()
    out = encoder(x)
    free = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(Pooled(encoder), (x,), dynamic_shapes=free, strict=False)
    more = images(n=5)
    assert torch.allclose(program.module()(more), encoder(more).pooled, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = encoder(x)
    assert torch.allclose(low.pooled.float(), out.pooled, atol=0.1)
