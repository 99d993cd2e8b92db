"""Coordinate conventions against torch's own resampling, and the algebra's identities."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hilum.core.errors import HilumError
from hilum.parts import geometry as g


def sample(image, matrix, out_size):
    """Linear sampling by grid_sample(align_corners=False) at matrix @ q: an independent reading of the convention."""
    axes = np.meshgrid(*(np.arange(n) for n in out_size), indexing="ij")
    u = g.map_points(matrix, np.stack(axes, -1).astype(float))
    size = np.array(image.shape[1:])
    grid = torch.from_numpy(((2 * u + 1) / size - 1)[..., ::-1].copy())
    return F.grid_sample(image[None].double(), grid[None], padding_mode="border", align_corners=False)[0]


@pytest.fixture
def image():
    return torch.rand(2, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_flip(image, axis):
    flipped = sample(image, g.flip((8, 12), axis), (8, 12))
    assert torch.allclose(flipped, image.flip(1 + axis % 2), atol=1e-12)


def test_crop_resize_is_a_crop_at_scale_one_and_interpolate_otherwise(image):
    crop = sample(image, g.crop_resize((4, 5), (2, 3), (4, 5)), (4, 5))
    assert torch.allclose(crop, image[:, 2:6, 3:8], atol=1e-12)
    up = sample(image, g.crop_resize((16, 30), (0, 0), (8, 12)), (16, 30))
    assert torch.allclose(up, F.interpolate(image[None], size=(16, 30), mode="bilinear")[0], atol=1e-12)


@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_quarter_turns_are_exact_and_counter_clockwise(turns):
    square = torch.rand(1, 7, 7, dtype=torch.float64)
    matrix = g.about_centre(g.rotation(turns * math.pi / 2), (7, 7))
    assert np.array_equal(matrix, np.round(matrix))
    assert torch.allclose(sample(square, matrix, (7, 7)), torch.rot90(square, turns, (1, 2)), atol=1e-12)


def test_rotation_in_a_plane_of_a_volume():
    volume = torch.rand(1, 3, 5, 5, dtype=torch.float64)
    turned = sample(volume, g.about_centre(g.rotation(math.pi / 2, 3), (3, 5, 5)), (3, 5, 5))
    assert torch.allclose(turned, torch.rot90(volume, 1, (2, 3)), atol=1e-12)
    tilted = g.rotation(math.pi / 2, 3, plane=(0, 2))
    assert tilted[1].tolist() == [0, 1, 0]


def test_scaling_enlarges_shear_and_translation_move_the_picture():
    blob = torch.zeros(1, 21, 21, dtype=torch.float64)
    blob[0, 10, 13] = 1.0
    zoomed = sample(blob, g.about_centre(g.scaling(2.0), (21, 21)), (21, 21))
    assert divmod(int(zoomed.argmax()), 21) == (10, 16)
    moved = sample(blob, g.translation((2, -3)), (21, 21))
    assert divmod(int(moved.argmax()), 21) == (12, 10)
    low = blob.roll(4, 1)  # 4 pixels below the centre
    sheared = sample(low, g.about_centre(g.shear(math.atan(0.5)), (21, 21)), (21, 21))
    assert divmod(int(sheared.argmax()), 21) == (14, 15)
    with pytest.raises(HilumError):
        g.scaling(0.0)


def test_compose_runs_in_the_order_the_picture_meets(image):
    crop, mirror = g.crop_resize((6, 6), (1, 2), (6, 6)), g.flip((6, 6), 1)
    at_once = sample(image, g.compose(crop, mirror), (6, 6))
    assert torch.allclose(at_once, image[:, 1:7, 2:8].flip(2), atol=1e-12)


def test_there_and_back_is_the_identity():
    turn = [g.about_centre(g.rotation(a) @ g.scaling((z, 1.0)), (9, 9)) for a, z in ((0.2, 1.3), (-0.7, 0.6))]
    matrix = g.compose(*turn, g.crop_resize((5, 5), (1.5, 0.25), (6, 7)))
    assert np.allclose(g.compose(matrix, g.invert(matrix)), np.eye(3), atol=1e-12)
    rotation = g.compose(g.about_centre(g.rotation(0.2), (9, 9)), g.about_centre(g.rotation(-0.2), (9, 9)))
    assert np.allclose(rotation, g.identity(2), atol=1e-15)
    with pytest.raises(HilumError, match="flat"):
        g.invert(np.diag([1.0, 0.0, 1.0]))


def test_about_centre_maps_centre_to_centre():
    matrix = g.about_centre(g.rotation(0.3, 3) @ g.scaling(1.7, 3), (4, 6, 8), (10, 12, 14))
    assert np.allclose(g.map_points(matrix, (1.5, 2.5, 3.5)), (4.5, 5.5, 6.5), atol=1e-12)


def test_rotation_in_millimetres_keeps_physical_lengths():
    spacing = np.array([3.0, 0.7])
    linear = g.in_millimetres(g.rotation(0.4), spacing)
    step = np.random.default_rng(0).normal(size=(50, 2))
    assert np.allclose(np.linalg.norm(step @ linear.T * spacing, axis=1), np.linalg.norm(step * spacing, axis=1))


def test_boxes_are_the_hull_of_a_warped_mask():
    box = np.array([3.0, 5.0, 9.0, 17.0])  # rows 3..8, columns 5..16 in edge coordinates
    matrix = g.compose(g.about_centre(g.rotation(0.35), (24, 24)), g.flip((24, 24), 1))
    mask = torch.zeros(1, 24, 24, dtype=torch.float64)
    mask[0, 3:9, 5:17] = 1.0
    seen = sample(mask, matrix, (24, 24))[0] > 0.05
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    hull = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
    assert np.abs(g.map_boxes(g.invert(matrix), box) - np.array(hull, float)).max() <= 1.0
    assert g.map_boxes(g.flip((24, 24), 1), box).tolist() == [3.0, 24.0 - 17.0, 9.0, 24.0 - 5.0]
    assert g.map_boxes(g.identity(3), np.arange(12.0).reshape(2, 6)).tolist() == np.arange(12.0).reshape(2, 6).tolist()


def test_clipped_boxes_tell_what_stays_visible():
    boxes, visible = g.clip_boxes([[-2.0, 0.0, 2.0, 4.0], [10.0, 10.0, 12.0, 12.0], [1.0, 1.0, 1.0, 3.0]], (8, 8))
    assert visible.tolist() == [0.5, 0.0, 0.0]
    assert boxes[0].tolist() == [0.0, 0.0, 2.0, 4.0]


def test_scales():
    matrix = g.about_centre(g.rotation(1.1) @ g.scaling(0.25), (8, 8))
    assert math.isclose(g.scale_of(matrix), 4.0)
    assert np.allclose(g.axis_scales(g.crop_resize((10, 20), (0, 0), (30, 10))), [3.0, 0.5])
