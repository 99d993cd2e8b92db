"""Heads: closed forms, links, masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hilum.core.errors import HilumError
from hilum.core.head import check_head
from hilum.core.types import Features
from hilum.heads.attentive import AttentiveHead
from hilum.heads.linear import LinearHead

NAMES = ("effusion", "nodule", "fracture")


def features(n: int = 4, tokens: int = 6, dim: int = 16, seed: int = 0) -> Features:
    g = torch.Generator().manual_seed(seed)
    return Features(
        tokens=torch.randn(n, tokens, dim, generator=g), pooled=torch.randn(n, dim, generator=g), grid=(2, 3)
    )


@pytest.mark.parametrize("head", [LinearHead(16, NAMES), AttentiveHead(16, NAMES, heads=4)])
def test_contract(head: LinearHead | AttentiveHead) -> None:
    check_head(head)
    out = head(features())
    assert out.names == NAMES and out.logits.shape == (4, 3)
    assert torch.allclose(out.scores, 1 / (1 + (-out.logits).exp()))


@pytest.mark.parametrize("kind", [LinearHead, AttentiveHead])
def test_links_follow_the_task(kind: type) -> None:
    multiclass = kind(16, NAMES, "multiclass")(features())
    assert torch.allclose(multiclass.scores, multiclass.logits.exp() / multiclass.logits.exp().sum(1, keepdim=True))
    binary = kind(16, ("malignant",), "binary")(features())
    assert binary.scores.shape == (4, 1) and torch.allclose(binary.scores, binary.logits.sigmoid())
    for task, names in (("binary", NAMES), ("multiclass", ("a",)), ("multilabel", ()), ("segment", NAMES)):
        with pytest.raises(HilumError):
            kind(16, names, task)


def test_linear_is_linear_with_card_28s_initialisation() -> None:
    torch.manual_seed(0)
    head, f = LinearHead(512, [f"f{i}" for i in range(64)]), features(dim=512)
    weight = head.linear.weight
    assert not head.linear.bias.any() and weight.abs().max() <= 4e-5
    assert abs(weight.std() / (2e-5 * 0.8796) - 1) < 0.02  # standard deviation of a normal cut at two sigma
    assert torch.allclose(head(f).logits, f.pooled @ weight.T, atol=1e-7)
    normed = LinearHead(16, NAMES, batch_norm=True).train()
    g = features(n=32)
    hand = (g.pooled - g.pooled.mean(0)) / (g.pooled.var(0, unbiased=False) + 1e-6).sqrt()
    assert torch.allclose(normed(g).logits, hand @ normed.linear.weight.T, atol=1e-6)


def by_hand(head: AttentiveHead, tokens: Tensor) -> Tensor:
    """One image, head by head, in plain loops over the definition."""
    x, d = head.norm(tokens), tokens.shape[1] // head.heads
    q = head.q(head.query)[0, 0]
    k, v = head.kv(x).chunk(2, -1)
    rows = []
    for h in range(head.heads):
        part = slice(h * d, (h + 1) * d)
        weights = torch.softmax(k[:, part] @ q[part] / d**0.5, 0)
        rows.append(weights @ v[:, part])
    return head.linear(head.out_norm(head.proj(torch.cat(rows))))


def test_attentive_pooling_equals_its_definition_and_respects_masks() -> None:
    torch.manual_seed(0)
    head, f = AttentiveHead(16, NAMES, heads=4, init_std=0.5), features()
    out = head(f)
    for b in range(4):
        assert torch.allclose(out.logits[b], by_hand(head, f.tokens[b]), atol=1e-5)
    assert out.maps["attention"].shape == (4, 2, 3)
    assert torch.allclose(out.maps["attention"].flatten(1).sum(1), torch.ones(4), atol=1e-6)
    f.valid = torch.ones(4, 6, dtype=torch.bool)
    f.valid[1, 4:] = False
    masked = head(f)
    assert torch.allclose(masked.logits[1], by_hand(head, f.tokens[1, :4]), atol=1e-5)
    assert torch.allclose(masked.logits[0], out.logits[0], atol=1e-6)
    assert not masked.maps["attention"][1].flatten()[4:].any()
    f.tokens[1, 4:] = float("nan")
    f.valid[3] = False
    f.tokens[1, 4:] = 1e6
    still = head(f)
    assert torch.equal(still.logits[1], masked.logits[1]) and still.logits.isfinite().all()


def test_attentive_pooling_does_not_care_for_order() -> None:
    torch.manual_seed(0)
    head, f = AttentiveHead(16, NAMES, heads=2, init_std=0.5), features()
    order = torch.randperm(6)
    shuffled = Features(tokens=f.tokens[:, order], pooled=f.pooled, grid=None)
    assert torch.allclose(head(shuffled).logits, head(f).logits, atol=1e-5)
    assert torch.allclose(head(shuffled).maps["attention"], head(f).maps["attention"].flatten(1)[:, order], atol=1e-6)
    with pytest.raises(HilumError, match="heads do not divide"):
        AttentiveHead(16, NAMES, heads=3)
