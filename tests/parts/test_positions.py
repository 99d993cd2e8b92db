"""Sine-cosine tables by scalar formula; resizing against timm and on exact cases."""

import math

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from hilum.core.errors import HilumError
from hilum.parts.positions import resize_positions, sincos_2d, sincos_3d


def entry(dim, x, y, k):
    """MAE's table: k-th value at column x, row y; w first, then h, each sine then cosine."""
    half, quarter = dim // 2, dim // 4
    position, i = (x, k) if k < half else (y, k - half)
    angle = position / 10000 ** ((i % quarter) / quarter)
    return math.sin(angle) if i < quarter else math.cos(angle)


def test_sincos_2d_layout():
    table = sincos_2d(16, (3, 5), prefix=2)
    assert table.shape == (1, 17, 16)
    assert table.dtype == torch.float32
    assert (table[0, :2] == 0).all()
    expected = torch.tensor([[entry(16, x, y, k) for k in range(16)] for y in range(3) for x in range(5)])
    assert torch.allclose(table[0, 2:], expected, atol=1e-7)


def test_sincos_3d_repeats_the_rule_on_three_axes():
    table = sincos_3d(20, (2, 3, 4), prefix=0)[0]  # 6 values an axis, 2 left over
    assert table.shape == (24, 20)
    assert (table[:, 18:] == 0).all()
    rows = table.reshape(2, 3, 4, 20)
    for axis, start in ((2, 0), (1, 6), (0, 12)):
        moved = rows.movedim(axis, 0)[..., start : start + 6]
        assert (moved == moved[:, :1, :1]).all()
        angle = [p / 10000 ** (i / 3) for p in range(rows.shape[axis]) for i in range(3)]
        assert torch.allclose(moved[:, 0, 0, :3].flatten(), torch.tensor(angle).sin(), atol=1e-7)
        assert torch.allclose(moved[:, 0, 0, 3:].flatten(), torch.tensor(angle).cos(), atol=1e-7)


def test_widths_that_cannot_be_split_are_refused():
    with pytest.raises(HilumError, match="divisible by 4"):
        sincos_2d(18, (2, 2))
    with pytest.raises(HilumError, match="at least 6"):
        sincos_3d(4, (2, 2, 2))


@pytest.mark.parametrize(("old", "new"), [((14, 14), (28, 28)), ((14, 14), (7, 10)), ((4, 6), (8, 5))])
def test_resize_equals_timm_and_leaves_the_prefix(old, new):
    table = torch.randn(1, 2 + old[0] * old[1], 8)
    resized = resize_positions(table, old_grid=old, new_grid=new, prefix=2)
    assert resized.shape == (1, 2 + new[0] * new[1], 8)
    assert torch.equal(resized[:, :2], table[:, :2])
    theirs = resample_abs_pos_embed(table, new_size=list(new), old_size=list(old), num_prefix_tokens=2)
    assert torch.allclose(resized, theirs, atol=1e-6)


def test_same_grid_is_the_same_object():
    table = torch.randn(1, 197, 8)
    assert resize_positions(table, old_grid=(14, 14), new_grid=(14, 14), prefix=1) is table


def test_resize_keeps_constants_dtype_and_volumes():
    flat = torch.full((1, 1 + 8, 4), 0.5, dtype=torch.bfloat16)
    out = resize_positions(flat, old_grid=(2, 2, 2), new_grid=(3, 4, 5), prefix=1)
    assert out.shape == (1, 61, 4)
    assert out.dtype == torch.bfloat16
    assert (out == 0.5).all()
    with pytest.raises(HilumError, match="rows"):
        resize_positions(flat, old_grid=(3, 3), new_grid=(4, 4), prefix=1)
