"""Masks against a reference written with numpy, counts, restoration, keyed noise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.core.errors import HilumError
from hilum.core.types import SampleKey
from hilum.parts import masking as m
from hilum.parts.rng import Stream, pixel_noise


def reference(noise, ratio):
    """arXiv 2210.12843, "Masking", in plain numpy."""
    keeps, restores, masks = [], [], []
    for row in noise:
        keep = int(len(row) * (1 - ratio))
        shuffled = np.lexsort((np.arange(len(row)), row))
        restore = np.empty(len(row), int)
        restore[shuffled] = np.arange(len(row))
        mask = np.ones(len(row))
        mask[shuffled[:keep]] = 0
        keeps.append(shuffled[:keep])
        restores.append(restore)
        masks.append(mask)
    return np.stack(keeps), np.stack(restores), np.stack(masks)


@pytest.mark.parametrize("ratio", [0.9, 0.75, 0.5, 0.0])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_reference(ratio, ties):
    noise = torch.rand(5, 196, generator=torch.Generator().manual_seed(1))
    noise = (noise * 8).floor() if ties else noise
    masking = m.random_masking(noise, m.keep_count(196, ratio))
    for ours, theirs in zip(masking, reference(noise.numpy(), ratio)):
        assert np.array_equal(ours.numpy(), theirs)


def test_ninety_percent_of_196():
    assert m.keep_count(196, 0.9) == 19
    assert m.keep_count(196, 0.75) == 49
    ids_keep, ids_restore, mask = m.random_masking(torch.rand(7, 196), 19)
    assert ids_keep.shape == (7, 19)
    assert (mask.sum(1) == 177).all()
    assert (mask.gather(1, ids_keep) == 0).all()
    ordered = torch.arange(196).expand(7, -1)
    shuffled = torch.argsort(ids_restore, 1)
    assert torch.equal(shuffled.gather(1, ids_restore), ordered)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5])
def test_impossible_ratio(ratio):
    with pytest.raises(HilumError, match="ratio"):
        m.keep_count(196, ratio)
    with pytest.raises(HilumError, match="none"):
        m.keep_count(4, 0.9)


def test_keyed_masks_do_not_depend_on_the_batch():
    keys = [SampleKey(0, 0, s) for s in range(6)]
    together = m.random_masking(pixel_noise(keys, "mask", (49,)), 10)
    alone = [m.random_masking(pixel_noise([key], "mask", (49,)), 10) for key in reversed(keys)]
    assert torch.equal(together.mask, torch.cat([a.mask for a in reversed(alone)]))
    assert len({tuple(row.tolist()) for row in together.ids_keep}) == 6


def test_gather_then_restore_puts_tokens_back():
    x = torch.randn(3, 12, 5)
    ids_keep, ids_restore, mask = m.random_masking(torch.rand(3, 12), 4)
    kept = m.gather_tokens(x, ids_keep)
    assert all(torch.equal(kept[b, i], x[b, ids_keep[b, i]]) for b in range(3) for i in range(4))
    token = torch.full((1, 1, 5), 9.0)
    full = m.restore_tokens(kept, token, ids_restore)
    assert torch.equal(full, torch.where(mask.bool().unsqueeze(-1), token, x))


def test_restore_sends_gradient_to_tokens_and_mask_token():
    kept, token = torch.randn(2, 3, 4, requires_grad=True), torch.zeros(1, 1, 4, requires_grad=True)
    ids_restore = m.random_masking(torch.rand(2, 8), 3).ids_restore
    m.restore_tokens(kept, token, ids_restore).sum().backward()
    assert torch.equal(kept.grad, torch.ones(2, 3, 4))
    assert torch.equal(token.grad, torch.full((1, 1, 4), 10.0))  # 2 images x 5 removed


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 14), st.floats(0, 1))
@settings(max_examples=40)
def test_block_masks_have_the_exact_count(sample, h, w, share):
    masked = int(share * h * w)
    mask = m.block_mask(Stream(SampleKey(0, 0, sample)), (h, w), masked)
    assert mask.shape == (h, w)
    assert mask.sum() == masked
    assert np.array_equal(mask, m.block_mask(Stream(SampleKey(0, 0, sample)), (h, w), masked))


def test_block_masks_are_blocky_and_cover_every_patch():
    masks = np.stack([m.block_mask(Stream(SampleKey(0, 0, s)), (14, 14), 78) for s in range(100)])
    alike = (masks[:, :, 1:] == masks[:, :, :-1]).mean()
    share = 78 / 196
    assert alike > 1 - share * (1 - share)  # independent patches differ from their neighbour twice as often
    assert masks.any(0).all()
    with pytest.raises(HilumError):
        m.block_mask(Stream(SampleKey(0, 0, 0)), (4, 4), 17)
