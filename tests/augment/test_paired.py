"""What follows an image: masks, keypoints, boxes stay with the pixels they belong to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hilum.augment import paired
from hilum.augment.policy import Policy
from hilum.augment.sampling import sample
from hilum.core.errors import HilumError
from hilum.core.types import SampleKey, ViewGeometry

GEOMETRY = {
    "resized_crop": [0.4, 1.0],
    "hflip": 0.5,
    "vflip": 0.2,
    "affine": {"rotate": 30, "translate": 0.1, "scale": [0.8, 1.3], "shear": 10},
}


def draws(n: int, source: tuple[int, int], size: int = 96):
    p = Policy(GEOMETRY, size=size, channels=1, mean=0.0, std=1.0, train=True)
    return [p.draw(SampleKey(3, 0, i), source_size=source) for i in range(n)]


def test_a_delta_is_found_where_its_keypoint_went() -> None:
    rng, seen = np.random.default_rng(0), 0
    for d in draws(150, (80, 110)):
        at = rng.integers(4, [76, 106])
        image = torch.zeros(1, 80, 110)
        image[0, at[0], at[1]] = 1.0
        points, inside = paired.keypoints(at[None].astype(float), d.geometry())
        if not (np.abs(points[0] - 47.5) < 44).all():
            continue
        assert inside[0]
        view = sample(image, d.matrix, d.size)[0].double().numpy()
        q = np.stack(np.meshgrid(np.arange(96), np.arange(96), indexing="ij"), -1)
        centre = (view[..., None] * q).sum((0, 1)) / view.sum()
        assert np.abs(centre - points[0]).max() < 0.5
        seen += 1
    assert seen > 60


def test_a_box_hull_is_the_hull_of_its_warped_mask() -> None:
    rng, distances = np.random.default_rng(1), []
    for d in draws(1000, (60, 70)):
        y, x = np.sort(rng.integers(15, 46, 2)), np.sort(rng.integers(18, 53, 2))
        if min(np.diff(y)[0], np.diff(x)[0]) < 3:
            continue
        image = torch.zeros(1, 60, 70, dtype=torch.uint8)
        image[0, y[0] : y[1], x[0] : x[1]] = 1
        (box,), (kept,) = paired.boxes([[y[0], x[0], y[1], x[1]]], d.geometry(), min_visible=1.0 - 1e-9)
        if not kept:  # cut by the image's edge: the hull of what is left is another matter
            continue
        warped = sample(image, d.matrix, d.size, nearest=True)[0].numpy()
        rows, columns = np.flatnonzero(warped.any(1)), np.flatnonzero(warped.any(0))
        hull = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
        distances.append(np.abs(hull - box).max())
    assert len(distances) > 500
    # the tip of a sheared corner can be thinner than the raster it is drawn on
    assert np.quantile(distances, 0.995) < 1.0 and max(distances) < 1.1


def test_boxes_are_clipped_and_dropped_by_what_stays_visible() -> None:
    geometry = ViewGeometry(size=(10, 10), source_size=(20, 20), matrix=np.array([[1.0, 0, 10], [0, 1, 10], [0, 0, 1]]))
    source = [[8, 8, 12, 12], [9, 9, 13, 13], [0, 0, 5, 5], [12, 12, 14, 16]]
    moved, kept = paired.boxes(source, geometry, min_visible=0.3)
    assert kept.tolist() == [False, True, False, True]
    np.testing.assert_array_equal(moved[1], [0, 0, 3, 3])
    np.testing.assert_array_equal(moved[3], [2, 2, 4, 6])


def test_left_and_right_keypoints_exchange_under_a_mirror_only() -> None:
    mirror = np.array([[1.0, 0, 0], [0, -1, 19], [0, 0, 1]])
    source = [[5.0, 2.0], [5.0, 17.0], [9.0, 9.0]]
    flipped = ViewGeometry(size=(20, 20), source_size=(20, 20), matrix=mirror, flips=(1,))
    points, inside = paired.keypoints(source, flipped, swaps=[(0, 1)])
    np.testing.assert_array_equal(points, [[5, 2], [5, 17], [9, 10]])
    assert inside.all()
    upside = ViewGeometry(
        size=(20, 20),
        source_size=(20, 20),
        matrix=np.diag([-1.0, 1, 1]) + [[0, 0, 19], [0, 0, 0], [0, 0, 0]],
        flips=(0,),
    )
    points, _ = paired.keypoints(source, upside, swaps=[(0, 1)])
    np.testing.assert_array_equal(points[:2], [[14, 2], [14, 17]])
    with pytest.raises(HilumError, match="not recorded"):
        paired.keypoints(source, ViewGeometry(size=(2, 2), source_size=(2, 2)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.uint16])
def test_masks_keep_their_label_set_and_follow_the_image(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(2)
    labels = torch.from_numpy(rng.choice([0, 3, 7], (9, 7)).repeat(8, 0).repeat(9, 1))[None]
    drawn = draws(20, (72, 63), size=48)
    out = paired.masks([labels.to(dtype)] * 20, drawn)
    assert out.shape == (20, 1, 48, 48) and out.dtype == dtype
    assert set(out.long().unique().tolist()) <= {0, 3, 7, 255}
    for mask, d in zip(out.long(), drawn, strict=True):
        soft = sample(torch.stack([(labels[0] == v).float() for v in (0, 3, 7)]), d.matrix, d.size)
        sure = soft.max(0)
        firm = sure.values > 0.999
        assert torch.equal(torch.tensor([0, 3, 7])[sure.indices][firm], mask[0][firm])
        outside = soft.sum(0) < 1e-6
        assert (mask[0][outside] == 255).all()


def test_a_mask_of_another_size_or_kind_is_refused() -> None:
    d = draws(1, (20, 30))
    with pytest.raises(HilumError, match="belongs to an image"):
        paired.masks([torch.zeros(1, 30, 20, dtype=torch.uint8)], d)
    with pytest.raises(HilumError, match="masks hold labels"):
        paired.masks([torch.zeros(1, 20, 30)], d)
    with pytest.raises(HilumError, match="does not fit"):
        paired.masks([torch.zeros(1, 20, 30, dtype=torch.uint8)], [d[0]], ignore_index=-100)
