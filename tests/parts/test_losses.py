"""Losses and targets: loops, invariances, exact means over parts of a batch."""

import math

import pytest
import torch
import torch.nn.functional as F

from hilum.core.types import Term
from hilum.parts import losses
from hilum.parts.patchify import patchify
from hilum.parts.targets import pixel_targets

nan = float("nan")


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def mask():
    return (torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) < 0.7).float()


def test_masked_mse_is_the_cards_formula(mask):
    pred, target = rand(3, 10, 6), rand(3, 10, 6, seed=2)
    total = sum(mask[b, p] * sum((pred[b, p] - target[b, p]) ** 2) / 6 for b in range(3) for p in range(10))
    term = losses.masked_mse(pred, target, mask)
    assert torch.allclose(term.sum, total)
    assert term.count == mask.sum()
    assert torch.allclose(term.mean, total / mask.sum())


def test_visible_patches_cannot_change_loss_or_gradient(mask):
    target = rand(3, 10, 6, seed=2)
    pred = rand(3, 10, 6).requires_grad_()
    spoilt = pred.detach().clone()
    spoilt[mask == 0] = torch.tensor([nan, math.inf, 1e30, -7.0, 0.0, 1.0])
    spoilt.requires_grad_()
    clean, dirty = losses.masked_mse(pred, target, mask), losses.masked_mse(spoilt, target, mask)
    assert torch.equal(clean.sum, dirty.sum)
    clean.mean.backward()
    dirty.mean.backward()
    assert torch.equal(pred.grad, spoilt.grad)
    assert (pred.grad[mask == 0] == 0).all()


def test_feature_mse_over_valid_rows():
    pred, target, valid = rand(4, 5, 3), rand(4, 5, 3, seed=2), torch.rand(4, 5) > 0.5
    assert torch.allclose(losses.feature_mse(pred, target, valid).mean, F.mse_loss(pred[valid], target[valid]))
    assert torch.allclose(losses.feature_mse(pred, target).mean, F.mse_loss(pred, target))
    assert losses.feature_mse(pred, target, valid.float()).count == valid.sum()


def test_binary_cross_entropy_counts_known_labels_only():
    logits = rand(6, 4).requires_grad_()
    target = (rand(6, 4, seed=3) > 0).float()
    valid = rand(6, 4, seed=4) > -0.5
    weight = torch.tensor([1.0, 2.0, 0.5, 9.0])
    target = target.masked_fill(~valid, nan)
    term = losses.binary_cross_entropy(logits, target, valid, pos_weight=weight)
    p = torch.sigmoid(logits)
    each = -(weight * target * p.log() + (1 - target) * (1 - p).log())
    assert torch.allclose(term.sum, each[valid].sum())
    assert term.count == valid.sum()
    term.mean.backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[~valid] == 0).all()
    plain = losses.binary_cross_entropy(logits, target.nan_to_num())
    assert torch.allclose(plain.mean, F.binary_cross_entropy_with_logits(logits, target.nan_to_num()))


def test_cross_entropy_equals_torch_with_class_weights_and_ignored_rows():
    logits, target = rand(8, 5), torch.tensor([0, 1, 4, -100, 2, 2, -1, 3])
    valid, weight = target >= 0, torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0])
    theirs = F.cross_entropy(logits[valid], target[valid], weight=weight)
    assert torch.allclose(losses.cross_entropy(logits, target, valid, class_weight=weight).mean, theirs)
    plain = losses.cross_entropy(logits, target, valid)
    assert torch.allclose(plain.mean, F.cross_entropy(logits[valid], target[valid]))
    assert plain.count == 6


def test_token_cross_entropy_weighs_tokens():
    logits, ids = rand(2, 6, 11).requires_grad_(), torch.randint(0, 11, (2, 6))
    weight = torch.tensor([[1.0, 0.0, 0.25, 1.0, 0.0, 2.0]] * 2)
    ids[:, 1] = -100
    term = losses.token_cross_entropy(logits, ids, weight)
    nll = [-(logits[b, s].log_softmax(0)[ids[b, s]]) * weight[b, s] for b in range(2) for s in (0, 2, 3, 5)]
    assert torch.allclose(term.sum, sum(nll))
    assert term.count == weight.sum()
    term.sum.backward()
    assert (logits.grad[weight == 0] == 0).all()


def test_sums_and_counts_add_up_over_micro_batches(mask):
    """The reason for Term: unequal parts give exactly the mean of the whole."""
    pred, target = rand(3, 10, 6).double(), rand(3, 10, 6, seed=2).double()
    whole = losses.masked_mse(pred, target, mask)
    parts = [losses.masked_mse(pred[s], target[s], mask[s]) for s in (slice(0, 1), slice(1, 3))]
    joined = Term(sum(p.sum for p in parts), sum(p.count for p in parts))
    assert torch.allclose(joined.mean, whole.mean, rtol=1e-6)


def test_half_precision_is_summed_in_float32(mask):
    pred, target = rand(3, 10, 6).bfloat16(), rand(3, 10, 6, seed=2).bfloat16()
    term = losses.masked_mse(pred, target, mask)
    assert term.sum.dtype == torch.float32
    assert torch.equal(term.sum, losses.masked_mse(pred.float(), target.float(), mask).sum)


def test_nothing_valid_gives_zero_not_nan():
    term = losses.binary_cross_entropy(rand(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    assert term.mean == 0


def test_pixel_targets():
    image = rand(2, 3, 8, 8)
    assert torch.equal(pixel_targets(image, 4), patchify(image, 4))
    target = pixel_targets(image, 4, normalise=True)
    patch = image[1, :, 4:8, 0:4].permute(1, 2, 0).flatten()
    mean = patch.sum() / 48
    variance = ((patch - mean) ** 2).sum() / 47
    assert torch.allclose(target[1, 2], (patch - mean) / (variance + 1e-6).sqrt(), atol=1e-6)


def test_normalised_targets_ignore_a_constant_and_a_gain_of_each_patch():
    image = rand(2, 3, 8, 8).double()
    offset = torch.tensor([[5.0, -3.0], [0.5, 100.0]]).double().repeat_interleave(4, 0).repeat_interleave(4, 1)
    base = pixel_targets(image, 4, normalise=True)
    assert torch.allclose(pixel_targets(image + offset, 4, normalise=True), base, atol=1e-4)
    assert torch.allclose(pixel_targets(image * 4, 4, normalise=True), base, atol=1e-4)
    whole = torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 7]).expand(1, 1, 8, 8)
    shifted = pixel_targets(whole + 64, 4, normalise=True)  # exactly representable: bit-identical
    assert torch.equal(shifted, pixel_targets(whole, 4, normalise=True))
    assert (pixel_targets(torch.ones(1, 1, 4, 4), 4, normalise=True) == 0).all()
