"""What follows an image: masks, keypoints, boxes stay with the pixels they belong to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hilum.augment import depth, paired, sides, vectors
from hilum.augment.policy import Policy
from hilum.augment.sampling import sample
from hilum.core.errors import HilumError
from hilum.core.types import Meta, SampleKey, ViewGeometry

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
    points, _ = paired.keypoints(source, upside, swaps=[(0, 1)])  # a mirror as well
    np.testing.assert_array_equal(points[:2], [[14, 17], [14, 2]])
    turn = mirror @ np.array([[-1.0, 0, 19], [0, 1, 0], [0, 0, 1]])
    turned = ViewGeometry(size=(20, 20), source_size=(20, 20), matrix=turn, flips=(0, 1))
    points, _ = paired.keypoints(source, turned, swaps=[(0, 1)])
    np.testing.assert_array_equal(points[:2], [[14, 17], [14, 2]])  # where they went, as themselves
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


def test_masks_by_vote_are_the_argmax_of_linear_one_hot() -> None:
    rng = np.random.default_rng(4)
    labels = torch.from_numpy(rng.choice([0, 3, 7, 255], (18, 14)).repeat(4, 0).repeat(5, 1))[None]
    for dtype in (torch.uint8, torch.uint16, torch.int64):
        drawn = draws(12, (72, 70), size=48)
        out = paired.masks([labels.to(dtype)] * 12, drawn, how="vote")
        assert out.dtype == dtype and set(out.long().unique().tolist()) <= {0, 3, 7, 255}
        for mask, d in zip(out.long(), drawn, strict=True):
            share = sample(torch.stack([(labels[0] == v).double() for v in (0, 3, 7)]), d.matrix, d.size)
            share = torch.cat((share, 1 - share.sum(0, keepdim=True)))
            top = share.topk(2, 0)
            sure = top.values[0] - top.values[1] > 1e-4
            assert sure.float().mean() > 0.9
            assert torch.equal(torch.tensor([0, 3, 7, 255])[top.indices[0]][sure], mask[0][sure])


def test_a_vote_copies_exactly_where_nearest_does_and_is_an_area_majority_on_reduction() -> None:
    labels = torch.from_numpy(np.random.default_rng(5).integers(0, 4, (1, 32, 32))).to(torch.uint8)
    mirror = ViewGeometry((32, 32), (32, 32), np.array([[1.0, 0, 0], [0, -1, 31], [0, 0, 1]]), (1,))
    assert torch.equal(paired.mask(labels, mirror, how="vote"), labels.flip(-1))
    half = ViewGeometry((16, 16), (32, 32), np.array([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]))
    blocks = labels[0].view(16, 2, 16, 2).permute(0, 2, 1, 3).reshape(16, 16, 4)
    counts = torch.stack([(blocks == v).sum(-1) for v in range(4)])
    assert torch.equal(paired.mask(labels, half, how="vote")[0].long(), counts.argmax(0))  # the smallest label on a tie


def test_a_delta_is_found_where_its_keypoint_went_in_a_reduced_image() -> None:
    """A level's block may hold the delta off its centre, by (f - 1) / 2 source pixels an axis: below 0.5 output pixels
    along the source's axes, so below 0.71 along turned ones."""
    rng, distances = np.random.default_rng(6), []
    for d in draws(220, (330, 410), size=64):
        at = rng.integers(20, [310, 390])
        image = torch.zeros(1, 330, 410)
        image[0, at[0], at[1]] = 1.0
        points, inside = paired.keypoints(at[None].astype(float), d)
        if not (np.abs(points[0] - 31.5) < 28).all():
            continue
        view = sample(image, d.matrix, d.size)[0].double().numpy()
        q = np.stack(np.meshgrid(np.arange(64), np.arange(64), indexing="ij"), -1)
        assert inside[0]
        distances.append(np.abs((view[..., None] * q).sum((0, 1)) / view.sum() - points[0]).max())
    assert len(distances) > 100 and max(distances) < 0.71
    assert np.quantile(distances, 0.95) < 0.5 and np.median(distances) < 0.3


def test_a_box_hull_is_within_one_pixel_of_its_mask_in_a_thousand_rotated_crops() -> None:
    """Right angles stay right angles here, so that a corner's tip is never thinner than the raster shows within 1 px."""
    config = {"resized_crop": {"area": [0.5, 1.0], "aspect": [1, 1]}, "hflip": 0.5, "vflip": 0.5, "rotate": 180}
    p = Policy(config, size=96, channels=1, mean=0.0, std=1.0, train=True)
    rng, distances, i = np.random.default_rng(7), [], 0
    while len(distances) < 1000:
        d, i = p.draw(SampleKey(5, 0, i), source_size=(64, 64)), i + 1
        low = rng.integers(16, 40, 2)
        high = low + rng.integers(3, 14, 2)
        (box,), (kept,) = paired.boxes([[*low, *high]], d, min_visible=1.0 - 1e-9)
        if not kept:
            continue
        image = torch.zeros(1, 64, 64, dtype=torch.uint8)
        image[0, low[0] : high[0], low[1] : high[1]] = 1
        warped = paired.mask(image, d, ignore_index=0)[0].numpy()
        rows, columns = np.flatnonzero(warped.any(1)), np.flatnonzero(warped.any(0))
        distances.append(np.abs([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1] - box).max())
    assert max(distances) <= 1.0


def metas(n: int, size: tuple[int, int], **extra: float) -> list[Meta]:
    K = np.array([[50.0, 0, 30], [0, 60, 20], [0, 0, 1]])
    return [
        Meta(f"s{i}", "g", geometry={"image": ViewGeometry(size, size, K=K)}, extra={"depth": extra}) for i in range(n)
    ]


def test_every_registered_view_follows_its_image() -> None:
    drawn, meta = draws(3, (40, 50), size=32), metas(3, (40, 50), slope=0.001)
    z = torch.from_numpy(np.random.default_rng(8).integers(500, 900, (3, 1, 40, 50))).to(torch.uint16)
    got, valid = paired.follow("depth/1", z, drawn, meta, {})
    assert valid is not None and got.shape == valid.shape == (3, 1, 32, 32) and torch.equal(valid, got > 0)
    assert torch.equal(got, torch.stack([depth.metric(row, d, unit=0.001) for row, d in zip(z, drawn)]))
    flow = torch.randn(3, 2, 40, 50)
    got, valid = paired.follow("flow", flow, [d.to_json() for d in drawn], meta, {"interpolation": "nearest"})
    assert valid is not None and valid.shape == (3, 1, 32, 32)
    assert torch.equal(got[1], vectors.flow(flow[1], drawn[1], how="nearest")[0])
    normal = torch.randn(3, 3, 40, 50)
    got, _ = paired.follow("normals", normal, drawn, meta, {})
    assert torch.equal(got[2], vectors.normals(normal[2], drawn[2], K=meta[2].geometry["image"].K)[0])
    labels = torch.from_numpy(np.random.default_rng(9).integers(0, 3, (3, 1, 40, 50))).to(torch.uint8)
    got, valid = paired.follow("mask", labels, drawn, meta, {"ignore_index": 9, "swaps": [(1, 2)]})
    plain = paired.masks(labels, drawn, ignore_index=9)
    assert valid is None
    for one, other, d in zip(got, plain, drawn):
        assert torch.equal(one, sides.exchange_values(other, [(1, 2)]) if 1 in d.flips else other)
    p = Policy({"hflip": 0.5}, size=(40, 50), channels=1, mean=0.0, std=1.0, train=True)
    straight = [p.draw(SampleKey(1, 0, i), source_size=(40, 50)) for i in range(3)]
    got, valid = paired.follow("disparity", torch.full((3, 1, 40, 50), 4.0), straight, meta, {})
    assert valid is not None and valid.all() and (got == 4.0).all()


def test_a_view_that_cannot_follow_names_itself_and_its_sample() -> None:
    drawn, meta = draws(2, (40, 50), size=32), metas(2, (40, 50))
    sheared = [d for d in draws(9, (40, 50)) if abs(d.matrix[0, 1]) > 1e-3][:2]
    z = torch.ones(2, 1, 40, 50)
    for bad, message in (
        (lambda: paired.follow("depth", z[:, :, 1:], drawn, meta, {}), "belongs to an image"),
        (lambda: paired.follow("depth", z, drawn, meta, {"camera": "mine"}), "unknown camera 'mine'"),
        (lambda: paired.follow("depth", z, drawn, metas(2, (40, 50), intercept=3.0), {}), "intercept"),
        (lambda: paired.follow("depth", z, sheared, meta, {"camera": "canonical"}), "one focal length"),
        (lambda: paired.follow("disparity", z, sheared, meta, {}), "rotation turns disparity"),
        (lambda: paired.follow("mask", z, drawn, meta, {}), "masks hold labels"),
        (lambda: paired.follow("mask", z.byte(), drawn, meta, {"ignore_index": -1}), "does not fit"),
        (lambda: paired.follow("mask", z.byte(), drawn, meta, {"interpolation": "linear"}), "unknown interpolation"),
    ):
        with pytest.raises(HilumError, match=message) as caught:
            bad()
        assert "sample s" in str(caught.value) and "view '" in str(caught.value)
