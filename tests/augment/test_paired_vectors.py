"""Flow and normals under a draw: known motions and planes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from augment.planes import GEOMETRY, SOURCE, K, draws, plane, rays

from hilum.augment import coordinates, depth, vectors
from hilum.augment.sampling import sample
from hilum.core.errors import HilumError
from hilum.parts import geometry as geo

ALL = {**GEOMETRY, "resized_crop": [0.4, 1.0], "vflip": 0.3, "shear": 15}


def motion(rng: np.random.Generator) -> np.ndarray:
    """A small affine motion p -> M p over (y, x)."""
    m = np.eye(3)
    m[:2, :2] += rng.normal(size=(2, 2)) * 0.04
    m[:2, 2] = rng.normal(size=2) * 3
    return m


def field(m: np.ndarray, size: tuple[int, int] = SOURCE) -> torch.Tensor:
    """(2, H, W) (dx, dy) of a motion."""
    p = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in size), indexing="ij"), -1)
    return torch.from_numpy((geo.map_points(m, p) - p)[..., ::-1].copy()).movedim(-1, 0).float()


def inner(drawn, margin: float = 6.0) -> np.ndarray:
    u = geo.map_points(drawn.matrix, np.stack(np.meshgrid(*map(np.arange, drawn.size), indexing="ij"), -1))
    return ((u > margin) & (u < np.array(drawn.source_size) - 1 - margin)).all(-1)


def test_flow_of_an_affine_motion_is_the_conjugated_motion() -> None:
    rng = np.random.default_rng(0)
    for drawn, other in zip(draws(15, config=ALL), draws(30, config=ALL)[15:], strict=True):
        m = motion(rng)
        for to in (None, other):
            out, valid = vectors.flow(field(m), drawn, to=to)
            truth = field(geo.invert((to or drawn).matrix) @ m @ drawn.matrix, drawn.size)
            where = torch.from_numpy(inner(drawn))
            assert valid[0][where].all()
            assert (out - truth).abs()[:, where].max() < 2e-5
        assert (out[:, ~valid[0]] == 0).all()


def test_flow_leads_from_a_warped_frame_to_the_warped_next_one() -> None:
    rng = np.random.default_rng(1)
    y, x = torch.meshgrid(torch.arange(120.0), torch.arange(160.0), indexing="ij")
    checked, errors, still = 0, [], []
    for drawn in draws(10, config={"resized_crop": [0.4, 0.7], "hflip": 0.5, "vflip": 0.5, "rotate": 30}):
        m = motion(rng)

        def frame(p: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.sin(p[..., 0] / 7 + 0.3) * np.cos(p[..., 1] / 9))[None].float()

        p = np.stack((y.numpy(), x.numpy()), -1).astype(float)
        first, second = frame(p), frame(geo.map_points(np.linalg.inv(m), p))  # second(M p) = first(p)
        a, b = (sample(f, drawn.matrix, drawn.size)[0] for f in (first, second))
        f, _ = vectors.flow(field(m), drawn)
        q = torch.stack(torch.meshgrid(*(torch.arange(96.0),) * 2, indexing="ij"))
        at = q.flip(0) + f  # (x, y)
        grid = ((at.movedim(0, -1) + 0.5) * 2 / 96 - 1)[None]
        back = torch.nn.functional.grid_sample(b[None, None], grid, align_corners=False)[0, 0]
        use = torch.from_numpy(inner(drawn, 16)) & ((at > 1) & (at < 94)).all(0)
        errors.append(float((back - a).abs()[use].max()))
        still.append(float((b - a).abs()[use].max()))
        checked += int(use.sum())
    assert checked > 20000 and max(errors) < 0.02 < 0.2 < np.mean(still)


def test_mirrors_negate_their_component_exactly() -> None:
    stored = torch.randn(2, 6, 9)
    normal = torch.nn.functional.normalize(torch.randn(3, 6, 9), dim=0)
    for axis, component in ((1, 0), (0, 1)):
        drawn = draws(1, config={})[0].geometry()
        drawn.size = drawn.source_size = (6, 9)
        drawn.matrix, drawn.flips = geo.flip((6, 9), axis), (axis,)
        sign = torch.ones(3, 1, 1)
        sign[component] = -1
        out, valid = vectors.flow(stored, drawn)
        assert torch.equal(out, stored.flip(axis + 1) * sign[:2]) and valid.all()
        out, valid = vectors.normals(normal, drawn)
        torch.testing.assert_close(out, normal.flip(axis + 1) * sign)


def test_a_turned_arrow_points_where_the_picture_turned_it() -> None:
    """Counter-clockwise as displayed by a quarter: what pointed right points up."""
    stored = torch.zeros(2, 8, 8)
    stored[0] = 2.0
    drawn = draws(1, config={})[0].geometry()
    drawn.size = drawn.source_size = (8, 8)
    drawn.matrix = geo.about_centre(geo.rotation(np.pi / 2), (8, 8))
    out, _ = vectors.flow(stored, drawn)
    assert torch.equal(out[0], torch.zeros(8, 8)) and torch.equal(out[1], torch.full((8, 8), -2.0))


def test_unknown_flow_enters_no_average() -> None:
    rng = np.random.default_rng(2)
    hole = torch.from_numpy(rng.random(SOURCE) < 0.25)
    stored = torch.full((2, *SOURCE), 3.0)
    stored[0, hole] = 1.7e9
    stored[1, torch.from_numpy(rng.random(SOURCE) < 0.05)] = float("nan")
    given = torch.from_numpy(rng.random(SOURCE) < 0.95)[None]
    stored[:, ~given[0]] = -77.0
    (drawn,) = draws(1)
    for how in ("nearest", "linear"):
        out, valid = vectors.flow(stored, drawn, valid=given, how=how)
        known = out[:, valid[0]]
        torch.testing.assert_close(known, known[:, :1].expand_as(known), rtol=1e-5, atol=1e-5)
        assert 0.3 < valid.float().mean() < 1 and (out[:, ~valid[0]] == 0).all()


@pytest.mark.parametrize("canonical", [False, True])
def test_normals_are_those_of_the_warped_depth(canonical: bool) -> None:
    rng = np.random.default_rng(3)
    camera = np.array([[150.0, 0, 81.3], [0, 150.0, 57.9], [0, 0, 1]]) if canonical else K
    for drawn in draws(8, config=GEOMETRY if canonical else ALL):
        n, _, z = plane(rng, camera)
        stored = torch.from_numpy(n).float()[:, None, None].expand(3, *SOURCE)
        out, valid = vectors.normals(stored, drawn, K=camera, canonical=canonical)
        act = depth.canonical if canonical else depth.metric
        warped = act(z, drawn, how="inverse")[0].double().numpy()
        upright, _ = coordinates.upright(coordinates.intrinsics(camera, drawn))
        if canonical:
            upright[0, 0], upright[1, 1] = 150.0, 150.0
            upright[0, 1] = 0.0
        points = warped[..., None] * rays(upright, drawn.size)
        across = np.cross(points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1])
        across /= np.maximum(np.linalg.norm(across, axis=-1, keepdims=True), 1e-30)
        across *= np.sign((across * points[1:-1, 1:-1]).sum(-1, keepdims=True)) * -1  # towards the camera
        use = inner(drawn)[1:-1, 1:-1]
        got = out.movedim(0, -1).double().numpy()[1:-1, 1:-1]
        assert valid[0].numpy()[1:-1, 1:-1][use].all() and use.sum() > 1000
        assert np.degrees(np.arccos(np.clip((got * across).sum(-1)[use], -1, 1))).max() < 0.15


def test_normals_stay_of_length_one_and_missing_ones_stay_missing() -> None:
    rng = np.random.default_rng(4)
    stored = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(3, *SOURCE))).float(), dim=0)
    stored[:, :, :40] = 0.0
    stored[1, 60:70] = float("nan")
    for drawn in draws(4):
        out, valid = vectors.normals(stored, drawn)
        length = out.norm(dim=0)
        torch.testing.assert_close(length[valid[0]], torch.ones_like(length[valid[0]]))
        assert (length[~valid[0]] == 0).all() and 0.1 < valid.float().mean() < 0.95


def test_bad_vectors_are_refused_with_op_and_sample() -> None:
    (drawn,) = draws(1)
    with pytest.raises(HilumError, match="not \\(2, H, W\\)") as caught:
        vectors.flow(torch.zeros(3, *SOURCE), drawn)
    assert "flow, sample 00000000" in str(caught.value)
    with pytest.raises(HilumError, match="belongs to an image"):
        vectors.normals(torch.zeros(3, 5, 5), drawn)
    with pytest.raises(HilumError, match="valid of shape"):
        vectors.flow(torch.zeros(2, *SOURCE), drawn, valid=torch.ones(1, 120, 1))
    with pytest.raises(HilumError, match="frames of"):
        vectors.flow(torch.zeros(2, *SOURCE), drawn, to=draws(1, source=(50, 50))[0])
