"""Packing and padding are inverse; masks and means equal loops; normalisation is inverse to itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.core.errors import HilumError
from hilum.core.types import Ragged
from hilum.parts.normalise import denormalise, normalise
from hilum.parts.ragged import block_diagonal_mask, images, pack_images, pad, segment_mean, segments, unpad

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=6)


def ragged(lengths):
    data = torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(len(lengths)))
    return Ragged(data, torch.tensor(lengths))


@given(LENGTHS)
@settings(max_examples=40)
def test_pad_then_unpad_is_the_identity(lengths):
    packed = ragged(lengths)
    padded, valid = pad(packed, value=-7.0)
    assert padded.shape == (len(lengths), max(lengths), 3)
    for row, original, ok in zip(padded, packed.rows(), valid):
        assert torch.equal(row[ok], original)
        assert (row[~ok] == -7.0).all()
    assert unpad(padded, valid) == packed


@given(LENGTHS)
@settings(max_examples=30)
def test_block_diagonal_mask_and_means_equal_loops(lengths):
    packed = ragged(lengths)
    owner = [b for b, n in enumerate(lengths) for _ in range(n)]
    assert segments(packed.lengths).tolist() == owner
    expected = [[i == j for j in owner] for i in owner]
    assert block_diagonal_mask(packed.lengths).tolist() == expected
    for mean, row in zip(segment_mean(packed), packed.rows()):
        assert torch.allclose(mean, row.mean(0) if len(row) else torch.zeros(3), atol=1e-6)


def test_gradient_flows_through_pad_and_mean():
    packed = ragged([2, 0, 3])
    packed.data.requires_grad_()
    (pad(packed)[0].sum() + segment_mean(packed).sum()).backward()
    assert torch.allclose(packed.data.grad[:, 0], 1 + torch.tensor([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3]))


def test_means_of_half_precision_are_summed_in_float32():
    long = Ragged(torch.ones(4096, 1, dtype=torch.bfloat16), torch.tensor([4096]))
    mean = segment_mean(long)
    assert mean.dtype == torch.bfloat16
    assert mean.item() == 1.0
    assert segment_mean(Ragged(torch.tensor([[1], [2]]), torch.tensor([2]))).item() == 1.5


def test_images_pack_and_come_back():
    originals = [torch.randint(0, 4096, (2, h, w), dtype=torch.int16) for h, w in ((3, 5), (4, 4), (1, 7))]
    packed = pack_images(originals)
    assert packed.data.shape == (15 + 16 + 7, 2)
    assert packed.grid.tolist() == [[3, 5], [4, 4], [1, 7]]
    assert all(torch.equal(a, b) for a, b in zip(images(packed), originals))
    with pytest.raises(HilumError, match="channels"):
        pack_images([torch.zeros(1, 2, 2), torch.zeros(3, 2, 2)])
    with pytest.raises(HilumError, match="grid"):
        images(ragged([1, 2]))


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_normalise_by_channel_and_back(shape):
    x, mean, std = torch.rand(shape), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    y = normalise(x, mean, std)
    for c in range(3):
        assert torch.allclose(y[:, c], (x[:, c] - mean[c]) / std[c])
    assert torch.allclose(denormalise(y, mean, std), x, atol=1e-6)
    video = torch.rand(2, 6, 3, 4, 4)
    assert torch.equal(normalise(video, mean, std, channel_dim=2)[:, 1], normalise(video[:, 1], mean, std))


def test_normalise_scalars_integers_and_errors():
    x = torch.tensor([[10, 20]], dtype=torch.int16)
    assert normalise(x, 10.0, 5.0).tolist() == [[0.0, 2.0]]
    with pytest.raises(HilumError, match="above 0"):
        normalise(x, 0.0, 0.0)
    with pytest.raises(HilumError, match="3 means"):
        normalise(torch.zeros(1, 2, 4, 4), (1.0, 2.0, 3.0), (1.0,))
