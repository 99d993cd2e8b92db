"""Depth, disparity and cameras under a draw, against planes and points whose place is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from augment.planes import GEOMETRY, SOURCE, K, draws, plane, rays

from hilum.augment import coordinates, depth
from hilum.augment.draw import Draw
from hilum.augment.sampling import sample
from hilum.core.errors import HilumError
from hilum.core.types import ViewGeometry
from hilum.parts import geometry as geo


@pytest.mark.parametrize(("how", "error"), [("inverse", 1e-6), ("linear", 2e-5), ("nearest", 4e-3)])
def test_a_plane_stays_on_the_plane_under_the_returned_intrinsics(how: str, error: float) -> None:
    rng, seen = np.random.default_rng(0), 0
    for drawn in draws(20, config={**GEOMETRY, "resized_crop": [0.3, 1.0], "shear": 10}):
        n, d, z = plane(rng)
        warped = depth.metric(z, drawn, how=how)[0].double().numpy()
        points = warped[..., None] * rays(coordinates.intrinsics(K, drawn), drawn.size)
        # a pixel beside the edge averages what is there, on one side of it
        u = geo.map_points(drawn.matrix, np.stack(np.meshgrid(*map(np.arange, drawn.size), indexing="ij"), -1))
        inner = ((u > 5) & (u < np.array(SOURCE) - 6)).all(-1)
        assert (warped[inner] > 0).all()
        assert np.abs(points[inner] @ n / d - 1).max() < error
        outside = ((u < -1) | (u > np.array(SOURCE))).any(-1)
        assert (warped[outside] == 0).all() or how != "nearest"
        seen += int(inner.sum())
    assert seen > 20 * 96 * 96 / 4


def test_nearest_depth_holds_stored_readings_only() -> None:
    z = torch.from_numpy(np.random.default_rng(1).integers(1, 60000, (1, *SOURCE))).to(torch.uint16)
    for drawn in draws(4):
        out = depth.metric(z, drawn, unit=0.001)
        assert out.dtype == torch.float32
        assert set((out * 1000).round().long().unique().tolist()) <= {0, *z.long().unique().tolist()}


def test_holes_do_not_pull_their_neighbours_down() -> None:
    z = torch.full((1, *SOURCE), 4.25)
    rng = np.random.default_rng(2)
    hole = torch.from_numpy(rng.random(SOURCE) < 0.3)[None]
    bad = torch.tensor([0.0, float("nan"), float("inf"), -1.0])[torch.from_numpy(rng.integers(0, 4, SOURCE))][None]
    z = torch.where(hole, bad, z)
    for how in ("linear", "inverse"):
        for drawn in draws(3):
            out = depth.metric(z, drawn, how=how)
            assert torch.isfinite(out).all()
            there = out > 0
            torch.testing.assert_close(out[there], torch.full_like(out[there], 4.25), rtol=2e-6, atol=0)
            assert there.float().mean() > 0.3
    strict = depth.metric(z, drawn, how="linear", min_valid=1.0)
    assert 0 < (strict > 0).sum() < there.sum()


def test_physical_values_are_not_clamped() -> None:
    far = torch.full((1, 8, 8), 3.0e5)
    drawn = Draw(matrix=geo.identity(2), size=(8, 8), source_size=(8, 8))
    assert torch.equal(depth.metric(far, drawn), far)
    assert torch.equal(depth.disparity(far, drawn, how="linear"), far)


def test_one_camera_for_all_sees_what_is_enlarged_nearer() -> None:
    n, d, z = plane(np.random.default_rng(3))
    for drawn in draws(10):
        s = depth.zoom(drawn)
        truth = 1.0 / np.sqrt(abs(np.linalg.det(drawn.matrix[:2, :2])))
        assert s == pytest.approx(truth)
        torch.testing.assert_close(depth.canonical(z, drawn), depth.metric(z, drawn) / truth)
        # the upright camera of the view has its focal length s times as long, divided by s it is the source's again
        square = np.array([[150.0, 0, 80], [0, 150, 60], [0, 0, 1]])
        upright, _ = coordinates.upright(coordinates.intrinsics(square, drawn))
        np.testing.assert_allclose(np.diag(upright)[:2] / s, [150, 150], rtol=1e-12)
    half = Draw(matrix=geo.crop_resize((60, 80), (0, 0), SOURCE), size=(60, 80), source_size=SOURCE)
    torch.testing.assert_close(depth.canonical(z, half, how="inverse"), 2.0 * depth.metric(z, half, how="inverse"))
    squashed = Draw(matrix=geo.crop_resize((60, 60), (0, 0), SOURCE), size=(60, 60), source_size=SOURCE)
    with pytest.raises(HilumError, match="one focal length"):
        depth.canonical(z, squashed)


def test_full_and_upright_camera_see_the_same_pixels() -> None:
    rng = np.random.default_rng(4)
    for drawn in draws(30, config={**GEOMETRY, "vflip": 0.5, "shear": 20, "resized_crop": [0.3, 1.0]}):
        full = coordinates.intrinsics(K, drawn)
        X = rng.normal(size=(50, 3)) + [0, 0, 5]
        source = (X @ K.T)[:, :2] / X[:, 2:]
        view = (X @ full.T)[:, :2] / X[:, 2:]
        moved = geo.map_points(geo.invert(drawn.matrix), source[:, ::-1])[:, ::-1]
        np.testing.assert_allclose(view, moved, atol=1e-9)
        upright, turn = coordinates.upright(full)
        np.testing.assert_allclose(upright @ turn, full, atol=1e-9)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        assert upright[0, 0] > 0 and upright[1, 1] > 0 and (upright[1, 0] == 0) and turn[2].tolist() == [0, 0, 1]
        assert np.sign(np.linalg.det(turn)) == (-1) ** len(drawn.flips)
    with pytest.raises(HilumError, match="no intrinsics"):
        coordinates.intrinsics(np.eye(4), drawn)
    with pytest.raises(HilumError, match="no intrinsics"):
        coordinates.intrinsics(np.zeros((3, 3)), drawn)


STEREO = {"resized_crop": [0.3, 1.0], "hflip": 0.5, "vflip": 0.5}


def test_disparity_is_the_distance_between_where_both_eyes_see_a_point() -> None:
    rng, swapped = np.random.default_rng(5), 0
    for drawn in draws(40, config=STEREO):
        left = np.stack((rng.uniform(20, 100, 30), rng.uniform(40, 120, 30)), -1)
        d = rng.uniform(1, 30, 30)
        right = left - np.stack((np.zeros(30), d), -1)
        forward = geo.invert(drawn.matrix)
        one, two = (geo.map_points(forward, p) for p in (left, right))
        np.testing.assert_allclose(one[:, 0], two[:, 0], atol=1e-9)
        if depth.eyes_swap(drawn):
            one, two, swapped = two, one, swapped + 1
        stored = torch.full((1, *SOURCE), 10.0)
        out = depth.disparity(stored, drawn)
        scale = float(out[out > 0].unique())
        np.testing.assert_allclose(one[:, 1] - two[:, 1], d * scale / 10, rtol=1e-6)
    assert 5 < swapped < 35


def test_disparity_gives_the_unchanged_depth_of_the_returned_camera() -> None:
    _, _, z = plane(np.random.default_rng(6))
    baseline = 0.12
    for drawn in draws(6, config=STEREO):
        d = depth.disparity(K[0, 0] * baseline / z, drawn)
        upright, _ = coordinates.upright(coordinates.intrinsics(K, drawn))
        there = d > 0
        torch.testing.assert_close(
            (upright[0, 0] * baseline / d)[there], depth.metric(z, drawn)[there], rtol=1e-5, atol=0
        )


def test_stereo_refuses_what_leaves_the_rows() -> None:
    stored = torch.ones(1, *SOURCE)
    turned = draws(1, config={"rotate": [5, 6]})[0]
    with pytest.raises(HilumError, match="rotation turns disparity") as caught:
        depth.disparity(stored, turned)
    assert "sample 00000000" in str(caught.value)
    with pytest.raises(HilumError, match="rotation turns disparity"):
        depth.eyes_swap(turned)
    slanted = draws(1, config={"shear": [5, 6]})[0]  # rows stay rows: allowed
    assert depth.disparity(stored, slanted).max() == pytest.approx(96 / 160)


def test_bad_depth_is_refused_with_op_and_sample() -> None:
    (drawn,) = draws(1)
    z = torch.ones(1, *SOURCE)
    for bad, message in (
        (lambda: depth.metric(z[:, 1:], drawn), "belongs to an image"),
        (lambda: depth.metric(z.expand(2, -1, -1), drawn), "not \\(1, H, W\\)"),
        (lambda: depth.metric(z, drawn, how="cubic"), "unknown interpolation"),
        (lambda: depth.disparity(z, drawn, how="inverse"), "unknown interpolation"),
        (lambda: depth.metric(z, drawn, unit=float("nan")), "metres"),
        (lambda: depth.metric(z, drawn, how="linear", min_valid=0.0), "min_valid"),
    ):
        with pytest.raises(HilumError, match=message) as caught:
            bad()
        assert "sample 00000000" in str(caught.value)
    with pytest.raises(HilumError, match="not recorded"):
        depth.metric(z, ViewGeometry(size=SOURCE, source_size=SOURCE))


def test_a_stored_draw_and_a_geometry_do_as_well() -> None:
    z = torch.rand(1, *SOURCE) + 1
    (drawn,) = draws(1)
    truth = depth.metric(z, drawn)
    assert torch.equal(depth.metric(z, drawn.to_json()), truth)
    assert torch.equal(depth.metric(z, drawn.geometry()), truth)


# --- headers -----------------------------------------------------------------------------------------------


def oblique(rng: np.random.Generator) -> np.ndarray:
    """A header with turned axes and unequal spacing, (i, j, k) -> LPS mm."""
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    header = np.eye(4)
    header[:3, :3], header[:3, 3] = turn * [0.7, 0.7, 3.0], rng.normal(size=3) * 100
    return header


def test_a_landmark_keeps_its_place_in_millimetres() -> None:
    rng = np.random.default_rng(7)
    for _ in range(20):
        header = oblique(rng)
        linear = geo.in_millimetres(geo.rotation(rng.uniform(-1, 1), 3, plane=(1, 2)), (3.0, 0.7, 0.7))
        matrix = geo.compose(
            geo.flip((30, 60, 50), 1),
            geo.about_centre(linear, (30, 60, 50)),
            geo.crop_resize((16, 40, 40), rng.uniform(0, 8, 3), rng.uniform(15, 25, 3)),
        )
        landmark = rng.uniform(5, 20, (9, 3))  # (z, y, x)
        moved = geo.map_points(geo.invert(matrix), landmark)
        out = coordinates.affine(header, matrix)
        np.testing.assert_allclose(
            geo.map_points(out, moved[:, ::-1]), geo.map_points(header, landmark[:, ::-1]), atol=1e-9
        )


def test_a_header_of_a_resampled_volume_points_at_its_brightest_voxel() -> None:
    header, rng = oblique(np.random.default_rng(8)), np.random.default_rng(9)
    matrix = geo.compose(geo.flip((20, 24, 28), 2), geo.crop_resize((20, 24, 28), (2.0, 3.0, 1.0), (10, 18, 22)))
    volume = torch.zeros(1, 20, 24, 28)
    at = rng.integers(6, 10, 3)
    volume[(0, *at.tolist())] = 1.0
    view = sample(volume, matrix, (20, 24, 28))[0].double().numpy()
    q = np.stack(np.meshgrid(*map(np.arange, view.shape), indexing="ij"), -1)
    centre = (view[..., None] * q).sum((0, 1, 2)) / view.sum()
    place = geo.map_points(coordinates.affine(header, matrix), centre[::-1])
    truth = geo.map_points(header, at[::-1].astype(float))
    assert np.linalg.norm(place - truth) < 0.5 * 0.7


def test_a_slice_moves_within_its_plane_and_a_view_takes_camera_and_header_along() -> None:
    header, (drawn,) = oblique(np.random.default_rng(10)), draws(1)
    out = coordinates.affine(header, drawn.matrix)
    y, x = 31.0, 17.0
    sy, sx = geo.map_points(drawn.matrix, [y, x])
    for k in (0, 7):
        np.testing.assert_allclose(geo.map_points(out, [x, y, k]), geo.map_points(header, [sx, sy, k]), atol=1e-9)
    before = ViewGeometry(SOURCE, SOURCE, K=K, affine=header, unit="m", spacing_mm=(0.7, 0.7))
    after = coordinates.moved(before, drawn)
    np.testing.assert_array_equal(after.K, coordinates.intrinsics(K, drawn))
    np.testing.assert_array_equal(after.affine, out)
    assert (after.size, after.unit, after.flips) == (drawn.size, "m", drawn.flips)
    with pytest.raises(HilumError, match="no finite affine"):
        coordinates.affine(header[:3], drawn.matrix)
