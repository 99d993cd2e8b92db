"""Groups: layer decay as timm's and to 1e-12, no decay of vectors, rules as data; LARS by formula."""

import fnmatch

import pytest
import timm
import timm.optim
import torch
from torch import nn

from hilum.core.errors import HilumError
from hilum.parts.optimiser import build_optimizer, param_groups, scaled_lr, vit_depth


@pytest.fixture(scope="module")
def vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=32, global_pool="avg", num_classes=3)


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.net = net
        self.head = nn.Linear(192, 2)


def by_name(groups):
    return {name: group for group in groups for name in group["names"]}


def test_layer_decay_factors_to_1e_12_whatever_the_prefix(vit):
    groups = by_name(param_groups(Wrapped(vit), lr=1e-3, weight_decay=0.05, layer_decay=0.55, num_layers=12))
    for k in range(12):
        assert abs(groups[f"encoder.net.blocks.{k}.attn.qkv.weight"]["lr_scale"] - 0.55 ** (12 - k)) < 1e-12
    for name in ("patch_embed.proj.weight", "cls_token", "pos_embed"):
        assert abs(groups[f"encoder.net.{name}"]["lr_scale"] - 0.55**13) < 1e-12
    for name in ("head.weight", "encoder.net.fc_norm.weight", "encoder.net.head.bias"):
        assert groups[name]["lr_scale"] == 1.0
        assert groups[name]["lr"] == groups[name]["initial_lr"] == 1e-3
    assert abs(groups["encoder.net.blocks.0.mlp.fc1.weight"]["lr"] - 1e-3 * 0.55**12) < 1e-15


def test_equals_timm(vit):
    ours = by_name(param_groups(vit, lr=1.0, weight_decay=0.05, layer_decay=0.75, num_layers=12))
    theirs = timm.optim.param_groups_layer_decay(
        vit, 0.05, no_weight_decay_list=["pos_embed", "cls_token"], layer_decay=0.75
    )
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in theirs for p in g["params"]}
    for name, parameter in vit.named_parameters():
        group = ours[name]
        assert (group["lr_scale"], group["weight_decay"]) == pytest.approx(found[id(parameter)], abs=1e-12)


def test_vectors_tokens_and_positions_never_decay(vit):
    groups = param_groups(vit, lr=1e-3, weight_decay=0.05)
    assert sum(len(g["params"]) for g in groups) == len(list(vit.parameters()))
    for group in groups:
        for name, parameter in zip(group["names"], group["params"]):
            exempt = parameter.ndim <= 1 or name in ("cls_token", "pos_embed")
            assert group["weight_decay"] == (0.0 if exempt else 0.05)
            assert group["lr_scale"] == 1.0


def test_depths():
    assert vit_depth("decoder.decoder_blocks.3.norm1.weight", 12) == 13
    assert vit_depth("decoder.decoder_pos_embed", 12) == 13
    assert vit_depth("module.encoder.net.blocks.11.mlp.fc2.bias", 12) == 12
    assert vit_depth("reg_token", 12) == 0
    assert vit_depth("norm.weight", 12) == 13
    with pytest.raises(HilumError, match="block 12"):
        vit_depth("blocks.12.norm1.weight", 12)


def test_rules_in_order(vit):
    net = Wrapped(vit)
    rules = [
        {"match": "head.*", "lr": "x5", "weight_decay": 0.2, "clip": 0.1},
        {"match": "encoder.net.blocks.*", "depth_decay": 0.5},
        {"match": "encoder.net.blocks.3.*", "lr": 0.004},
        {"match": "encoder.net.pos_embed", "weight_decay": 0.01},
        {"match": "*patch_embed*", "freeze": True},
    ]
    groups = by_name(param_groups(net, lr=1e-3, weight_decay=0.05, rules=rules, num_layers=12))
    head, bias = groups["head.weight"], groups["head.bias"]
    assert (head["lr_scale"], head["weight_decay"], head["clip"]) == (5.0, 0.2, 0.1)
    assert (bias["lr_scale"], bias["weight_decay"], bias["clip"]) == (5.0, 0.0, 0.1)
    assert groups["encoder.net.blocks.5.norm1.weight"]["lr_scale"] == 0.5**7
    assert groups["encoder.net.blocks.3.norm1.weight"]["lr"] == pytest.approx(0.004 * 0.5**9, rel=1e-12)
    assert (
        groups["encoder.net.norm.weight" if "encoder.net.norm.weight" in groups else "encoder.net.fc_norm.weight"][
            "lr_scale"
        ]
        == 1.0
    )
    assert groups["encoder.net.pos_embed"]["weight_decay"] == 0.01
    assert not fnmatch.filter(groups, "*patch_embed*")
    assert not any(p.requires_grad for p in vit.patch_embed.parameters())
    for parameter in vit.patch_embed.parameters():
        parameter.requires_grad_(True)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"match": "haed.*", "lr": "x5"}, "matches no parameter"),
        ({"match": "*", "lrr": 1}, "unknown key"),
        ({"match": "*", "lr": "fast"}, "neither"),
    ],
)
def test_bad_rules_are_named(rule, says):
    with pytest.raises(HilumError, match=says):
        param_groups(nn.Linear(2, 2), lr=1.0, rules=[rule])


def test_all_frozen_is_an_error():
    with pytest.raises(HilumError, match="nothing is left"):
        param_groups(nn.Linear(2, 2), lr=1.0, rules=[{"match": "*", "freeze": True}])


def test_learning_rate_scaling():
    assert scaled_lr({"base_lr": 1.5e-4, "lr_per": 256}, 2048) == pytest.approx(1.2e-3)
    assert scaled_lr({"base_lr": 2.5e-4}, 1024) == pytest.approx(1e-3)
    assert scaled_lr({"lr": 3e-4}, 7) == 3e-4
    for bad in ({}, {"lr": 1, "base_lr": 1}):
        with pytest.raises(HilumError, match="either"):
            scaled_lr(bad, 256)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lars"])
def test_optimisers_move_with_group_rates_and_restore(name):
    torch.manual_seed(0)
    net = nn.Linear(3, 3)
    groups = param_groups(net, lr=0.1, weight_decay=0.01, rules=[{"match": "bias", "lr": "x2"}])
    optimizer = build_optimizer(groups, name, betas=(0.9, 0.95))
    assert sorted(g["lr"] for g in optimizer.param_groups) == [0.1, 0.2]
    before = [p.clone() for p in net.parameters()]
    net(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters()))
    state = optimizer.state_dict()
    twin = build_optimizer(param_groups(net, lr=0.1, weight_decay=0.01, rules=[{"match": "bias", "lr": "x2"}]), name)
    twin.load_state_dict(state)
    assert [g["lr"] for g in twin.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_adamw_is_the_textbook_step():
    w = nn.Parameter(torch.tensor([[2.0, -1.0]], dtype=torch.float64))
    module = nn.Module()
    module.w = w
    optimizer = build_optimizer(param_groups(module, lr=0.1, weight_decay=0.5), betas=(0.9, 0.95))
    w.grad = torch.tensor([[0.3, -4.0]], dtype=torch.float64)
    optimizer.step()  # first step: m_hat = g, v_hat = g^2
    expected = torch.tensor([[2.0, -1.0]], dtype=torch.float64) * (1 - 0.1 * 0.5)
    assert torch.allclose(w.detach(), expected - 0.1 * w.grad / (w.grad.abs() + 1e-8), atol=1e-12)


def test_lars_scales_matrices_by_trust_and_leaves_vectors():
    module = nn.Linear(3, 2).double()
    start = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer = build_optimizer(param_groups(module, lr=0.2, weight_decay=0.1), "lars", momentum=0.9)
    grads = {n: torch.randn_like(p) for n, p in module.named_parameters()}
    buffers = {n: torch.zeros_like(p) for n, p in module.named_parameters()}
    for _ in range(2):
        for n, p in module.named_parameters():
            p.grad = grads[n].clone()
        optimizer.step()
    for n, w in start.items():
        for _ in range(2):
            g = grads[n] + (0.1 * w if w.ndim > 1 else 0.0)
            g = 1e-3 * w.norm() / g.norm() * g if w.ndim > 1 else g
            buffers[n] = 0.9 * buffers[n] + g
            w = w - 0.2 * buffers[n]
        assert torch.allclose(dict(module.named_parameters())[n], w, atol=1e-12)
    w = nn.Parameter(torch.zeros(2, 2))  # zero weights still move
    fresh = build_optimizer([{"params": [w], "lr": 1.0, "weight_decay": 0.0}], "lars")
    w.grad = torch.ones(2, 2)
    fresh.step()
    assert torch.equal(w.detach(), -torch.ones(2, 2))


def test_unknown_optimiser():
    with pytest.raises(HilumError, match="adamw"):
        build_optimizer(param_groups(nn.Linear(1, 1), lr=1.0), "adamW2")
