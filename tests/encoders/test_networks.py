"""Convolutional and hierarchical networks of timm and MONAI behind the contract, and the factories of both."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from hilum.core.encoder import check_encoder
from hilum.core.errors import HilumError, MissingExtra, Unsupported
from hilum.encoders.build import build, monai_encoder, timm_encoder

NETWORKS = [
    ("resnet18", 64, {}),
    ("efficientnet_lite0", 64, {}),
    ("convnext_atto", 64, {}),
    ("swin_tiny_patch4_window7_224", 56, {"depths": (1, 1, 1, 1), "window_size": 7, "embed_dim": 24}),
    ("mixer_s32_224", 64, {}),
]


@pytest.mark.parametrize(("name", "size", "options"), NETWORKS)
def test_equals_timm(name: str, size: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder = timm_encoder(name, view={"size": size, "channels": 3}, **options).eval()
    check_encoder(encoder)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        out, y = encoder(x), encoder.net.forward_features(x)
        layered = encoder(x, layers=[-1, 0])
        ends = [0, len(encoder.spec.layer_dims) - 1]
        first, last = encoder.net.forward_intermediates(x, indices=ends, intermediates_only=True)
        pooled = encoder.net.forward_head(y, pre_logits=True)
    assert torch.equal(out.pooled, pooled) and out.pooled.shape == (2, encoder.spec.pooled_dim)
    assert out.tokens.shape[2] == encoder.spec.embed_dim and out.grid is not None
    if y.ndim == 4:
        y = y.permute(0, 3, 1, 2) if name.startswith("swin") else y
        assert torch.equal(out.map(), y)
        assert torch.equal(out.tokens[:, 1], y[:, :, 0, 1])  # row by row
    else:
        assert torch.equal(out.tokens, y) and out.grid == (size // 32, size // 32)
    assert torch.equal(layered.tokens, out.tokens) and torch.equal(layered.pooled, out.pooled)
    assert torch.equal(layered.layers[0].map(), last) and torch.equal(layered.layers[1].map(), first)
    dims = encoder.spec.layer_dims
    assert [layer.tokens.shape[2] for layer in layered.layers] == [dims[-1], dims[0]]


def test_layers_do_not_run_batch_statistics_twice() -> None:
    encoder = timm_encoder("resnet18", view={"size": 32})
    x = torch.randn(2, 3, 32, 32)
    encoder(x, layers=[0, 1, 2])
    assert encoder.net.bn1.num_batches_tracked == 1


def test_what_a_network_cannot_do_is_refused() -> None:
    encoder, x = timm_encoder("resnet18", view={"size": 32, "channels": 3}), torch.randn(1, 3, 32, 32)
    for asked in (
        {"keep": torch.zeros(1, 1, dtype=torch.long)},
        {"taps": ["layer1"]},
        {"stop": 1},
        {"valid": torch.ones(1, 1)},
    ):
        with pytest.raises(Unsupported):
            encoder(x, **asked)
    with pytest.raises(HilumError, match="takes images"):
        encoder(x[:, :1])
    with pytest.raises(HilumError, match="5 stages"):
        encoder(x, layers=[5])


def test_checkpointing_of_a_cnn_gives_equal_gradients() -> None:
    x, grads = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = timm_encoder("resnet18", view={"size": 32, "channels": 3}, checkpointing=checkpointing).train()
        encoder(x).pooled.square().sum().backward()
        grads.append([p.grad for p in encoder.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_a_network_that_cannot_checkpoint_says_so() -> None:
    with pytest.raises(Unsupported, match="cannot checkpoint"):
        timm_encoder("dla34", view={"size": 32}, checkpointing=True)


def test_depths_rise_from_stem_to_last_stage() -> None:
    encoder = timm_encoder("resnet18", view={"size": 32})
    stem, first, last = (
        encoder.depth_of(f"net.{n}") for n in ("conv1.weight", "layer1.0.conv1.weight", "layer4.1.conv2.weight")
    )
    assert stem == 0 < first < last == encoder.num_layers + 1
    mon = monai_encoder("segresnet", view={"size": [32, 32, 32], "channels": 1})
    assert mon.depth_of("net.convInit.conv.weight") == 0
    assert mon.depth_of("net.down_layers.3.1.conv1.conv.weight") == 4 == mon.num_layers


@pytest.mark.parametrize(
    ("name", "size", "grids"),
    [
        ("resnet10", [32, 32, 32], [(16, 16, 16), (8, 8, 8), (4, 4, 4), (2, 2, 2)]),
        ("resnet18", [64, 64], [(32, 32), (16, 16), (8, 8), (4, 4)]),
        ("densenet121", [64, 64], [(16, 16), (8, 8), (4, 4), (2, 2)]),
        ("segresnet", [16, 16, 16], [(16, 16, 16), (8, 8, 8), (4, 4, 4), (2, 2, 2)]),
    ],
)
def test_monai(name: str, size: list[int], grids: list[tuple[int, ...]]) -> None:
    pytest.importorskip("monai", reason="the extra monai is not installed")
    torch.manual_seed(0)
    encoder = build(f"monai/{name}", view={"size": size, "channels": 2}).eval()
    check_encoder(encoder)
    x = torch.randn(1, 2, *size)
    with torch.no_grad():
        out = encoder(x, layers=[0, 1, 2, -1])
        if name.startswith("resnet"):
            assert torch.allclose(out.pooled, encoder.net(x), atol=1e-6)  # MONAI's own forward ends in this mean
    assert [layer.grid for layer in out.layers] == grids == [*grids[:3], out.grid]
    assert tuple(layer.tokens.shape[2] for layer in out.layers) == encoder.spec.layer_dims
    assert torch.allclose(out.pooled, out.map().flatten(2).mean(2), atol=1e-6)
    assert encoder.spec.kind == ("volume" if len(size) == 3 else "image")
    with pytest.raises(HilumError, match="takes"):
        encoder(x[:, :1])


def test_densenet_sees_what_monais_classifier_sees() -> None:
    nets = pytest.importorskip("monai.networks.nets", reason="the extra monai is not installed")
    encoder = monai_encoder("densenet121", view={"size": [64, 64], "channels": 1}).eval()
    whole = nets.DenseNet121(spatial_dims=2, in_channels=1, out_channels=1).eval()
    whole.load_state_dict(encoder.net.state_dict(), strict=False)
    whole.class_layers.out = torch.nn.Identity()
    x = torch.randn(2, 1, 64, 64)
    assert torch.allclose(encoder(x).pooled, whole(x), atol=1e-6)


def test_monai_is_asked_for_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    with pytest.raises(MissingExtra, match=r"hilum\[monai\]"):
        monai_encoder("resnet10", view={"size": 32})
    with pytest.raises(HilumError, match="did you mean .*resnet10"):
        monai_encoder("resnet1", view={"size": 32})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("timm/vit_tiny_patch16_225", {}, "did you mean 'vit_tiny_patch16_224'"),
        ("timm/vit_tiny_patch16_224", {"depht": 3}, "depht"),
        ("timm/vit_tiny_patch16_224", {"pooling": "median"}, "pooling"),
        ("timm/vit_tiny_patch16_224", {"num_heads": 5}, "divisible"),
        ("timm/resnet18", {"positions": "sincos-fixed"}, "vision transformers"),
        ("torchvision/resnet18", {}, "family"),
    ],
)
def test_wrong_requests_say_what_is_wrong(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(HilumError) as caught:
        build(name, view={"size": 32, "channels": 3}, **options)
    assert said in str(caught.value)


def test_the_factory_takes_size_and_channels_from_the_view_and_options_over_it() -> None:
    small = {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 4}
    encoder = timm_encoder("timm/vit_tiny_patch16_224", view={"size": [16, 32], "channels": 1}, **small)
    assert encoder.grid == (2, 4) and encoder.spec.in_channels == 1 and len(encoder.spec.mean) == 1
    over = timm_encoder("vit_tiny_patch16_224", view={"size": 32, "channels": 3}, img_size=24, in_channels=2, **small)
    assert over.grid == (3, 3) and over.spec.in_channels == 2
    again = build(**over.made_with)
    assert again.grid == over.grid and again.spec == over.spec
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in over.state_dict().items()}
