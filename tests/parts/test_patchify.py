"""Patch order written out by loops; the round trip bit for bit."""

import pytest
import torch

from hilum.core.errors import HilumError
from hilum.parts.patchify import patch_grid, patchify, unpatchify


def test_order_is_row_column_channel():
    image = torch.rand(2, 3, 6, 4)
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    for row in range(3):
        for column in range(2):
            block = image[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected = torch.stack([block[:, c, i, j] for i in range(2) for j in range(2) for c in range(3)], 1)
            assert torch.equal(patches[:, row * 2 + column], expected)


@pytest.mark.parametrize(
    ("size", "p"), [((224, 224), 16), ((8, 8), 2), ((6, 10), (3, 5)), ((4, 6, 8), 2), ((4, 6, 8), (2, 3, 4))]
)
def test_round_trip_is_bit_exact(size, p):
    image = torch.randn(2, 3, *size) * torch.tensor([1.0, 1e3, 1e-3]).reshape(1, 3, *[1] * len(size))
    patches = patchify(image, p)
    assert torch.equal(unpatchify(patches, p, 3, patch_grid(size, p)), image)
    if len(set(size)) == 1:
        assert torch.equal(unpatchify(patches, p, 3), image)


def test_a_volume_of_one_slice_is_an_image():
    image = torch.rand(1, 2, 4, 4)
    assert torch.equal(patchify(image.unsqueeze(2), (1, 2, 2)), patchify(image, 2))


def test_what_does_not_fit_is_refused():
    with pytest.raises(HilumError, match="does not split"):
        patchify(torch.zeros(1, 1, 10, 10), 4)
    with pytest.raises(HilumError, match="no grid"):
        unpatchify(torch.zeros(1, 6, 4), 2, 1)
    with pytest.raises(HilumError, match="axes"):
        patchify(torch.zeros(1, 1, 4, 4), (2, 2, 2))
