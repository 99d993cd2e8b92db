"""Geometry against independent oracles: grid_sample in float64, a brute-force tap loop, block means, exact copies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hilum.augment.sampling import discrete_gaussian, sample
from hilum.core.errors import HilumError
from hilum.parts import geometry as geo


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def random_matrix(rng: np.random.Generator, out: tuple[int, int], src: tuple[int, int]) -> np.ndarray:
    linear = geo.compose(
        geo.rotation(rng.uniform(-3, 3)), geo.scaling(rng.uniform(0.6, 1.8, 2)), geo.shear(0.3 * rng.normal())
    )
    moved = geo.translation(rng.uniform(-6, 6, 2))
    return geo.compose(moved, geo.about_centre(linear, out, src))


def grid_of(matrix: np.ndarray, out: tuple[int, int], src: tuple[int, int]) -> torch.Tensor:
    q = np.stack(np.meshgrid(np.arange(out[0]), np.arange(out[1]), indexing="ij"), -1)
    u = q @ matrix[:2, :2].T + matrix[:2, 2]
    normal = (2 * u + 1) / np.array(src) - 1
    return torch.from_numpy(np.ascontiguousarray(normal[..., ::-1]))[None]


@pytest.mark.parametrize("border", ["zeros", "border", "reflection"])
def test_a_random_affine_map_equals_grid_sample(border: str) -> None:
    rng = np.random.default_rng(1)
    for trial in range(40):
        src, out = tuple(rng.integers(5, 70, 2)), tuple(rng.integers(4, 60, 2))
        image = noise(2, *src, seed=trial)
        matrix = random_matrix(rng, out, src)
        if trial % 4 == 0:  # axis-aligned maps take another road
            matrix[0, 1] = matrix[1, 0] = 0.0
        want = F.grid_sample(image.double()[None], grid_of(matrix, out, src), padding_mode=border, align_corners=False)[
            0
        ]
        ours = {"zeros": 0.0, "border": "border", "reflection": "reflect"}[border]
        got = sample(image, matrix, out, border=ours, minify=False)
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got.double(), want, atol=1e-5, rtol=0)


def test_an_outside_tap_contributes_the_constant() -> None:
    rng = np.random.default_rng(2)
    for trial in range(10):
        image = noise(1, 30, 41, seed=trial)
        matrix = random_matrix(rng, (33, 27), (30, 41))
        shifted = F.grid_sample(image.double()[None] - 7.5, grid_of(matrix, (33, 27), (30, 41)), align_corners=False)[0]
        np.testing.assert_allclose(
            sample(image, matrix, (33, 27), border=7.5, minify=False).double(), shifted + 7.5, atol=7.5e-5, rtol=0
        )


def brute_force(image: np.ndarray, matrix: np.ndarray, out: tuple[int, int], v: float) -> np.ndarray:
    """n_y x n_x taps spread evenly over each output pixel, each read linearly: the definition, in loops."""
    n = [min(8, math.ceil(np.linalg.norm(matrix[:2, a]) - 1e-9)) for a in (0, 1)]
    height, width = image.shape
    result = np.zeros(out)
    for p in range(out[0]):
        for q in range(out[1]):
            for i in range(n[0]):
                for j in range(n[1]):
                    at = np.array([p + (i + 0.5) / n[0] - 0.5, q + (j + 0.5) / n[1] - 0.5, 1.0])
                    y, x = matrix[:2] @ at
                    for dy in (0, 1):
                        for dx in (0, 1):
                            r, c = math.floor(y) + dy, math.floor(x) + dx
                            weight = (1 - abs(y - r)) * (1 - abs(x - c))
                            inside = 0 <= r < height and 0 <= c < width
                            result[p, q] += weight * (image[r, c] if inside else v)
    return result / (n[0] * n[1])


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_minification_averages_box_taps(angle: float) -> None:
    image = noise(1, 61, 47)
    linear = geo.compose(geo.rotation(angle), np.diag([4.3, 2.2]))
    matrix = geo.about_centre(linear, (9, 14), (61, 47))
    got = sample(image, matrix, (9, 14), border=0.25)[0]
    np.testing.assert_allclose(got, brute_force(image[0].double().numpy(), matrix, (9, 14), 0.25), atol=2e-6)


@pytest.mark.parametrize("factor", [2, 5, 8, 16, 24])
def test_whole_factors_are_block_means_however_large(factor: int) -> None:
    image = noise(3, 6 * factor, 4 * factor)
    got = sample(image, geo.crop_resize((6, 4), (0, 0), (6 * factor, 4 * factor)), (6, 4))
    np.testing.assert_allclose(got, F.avg_pool2d(image, factor), atol=2e-6, rtol=0)


def test_large_scales_do_not_alias() -> None:
    """A rotated view at scale 20 of white noise has the variance of a mean over some 400 pixels, not over 64."""
    matrix = geo.about_centre(20.0 * geo.rotation(0.5), (24, 24), (700, 700))
    view = sample(noise(1, 700, 700), matrix, (24, 24), border="reflect")
    assert float(view.std()) < 1.3 * math.sqrt(1 / 12) / 20


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32])
def test_flips_turns_and_whole_crops_are_exact_copies(dtype: torch.dtype) -> None:
    image = (noise(1, 37, 52) * 200 - (100 if dtype.is_signed else 0)).to(dtype)
    plain = image.float()
    src = (37, 52)

    def same(matrix: np.ndarray, want: torch.Tensor) -> None:
        size = tuple(want.shape[1:])
        assert torch.equal(sample(image, matrix, size), want)
        nearest = sample(image, matrix, size, nearest=True)
        assert nearest.dtype == dtype and torch.equal(nearest.float(), want)

    same(geo.identity(2), plain)
    same(geo.flip(src, 0), plain.flip(1))
    same(geo.flip(src, 1), plain.flip(2))
    same(geo.crop_resize((20, 30), (5, 7), (20, 30)), plain[:, 5:25, 7:37])
    for turns in range(4):
        out = src if turns % 2 == 0 else src[::-1]
        same(geo.about_centre(geo.rotation(turns * math.pi / 2), out, src), plain.rot90(turns, (1, 2)))
    chain = geo.compose(geo.crop_resize((20, 30), (5, 7), (20, 30)), geo.flip((20, 30), 1), geo.flip((20, 30), 0))
    same(chain, plain[:, 5:25, 7:37].flip(1, 2))
    same(geo.crop_resize((41, 60), (-2, -3), (41, 60)), F.pad(plain, (3, 5, 2, 2)))


def test_borders_of_exact_copies() -> None:
    image = torch.arange(12, dtype=torch.uint8).view(1, 3, 4)
    matrix = geo.crop_resize((3, 10), (0, -3), (3, 10))
    row = lambda border: sample(image, matrix, (3, 10), border=border)[0, 0].tolist()
    assert row(9.0) == [9, 9, 9, 0, 1, 2, 3, 9, 9, 9]
    assert row("border") == [0, 0, 0, 0, 1, 2, 3, 3, 3, 3]
    assert row("reflect") == [2, 1, 0, 0, 1, 2, 3, 3, 2, 1]


def test_nearest_is_floor_of_u_plus_one_half() -> None:
    image = torch.arange(16, dtype=torch.int64).view(1, 1, 16)
    half = sample(image, geo.crop_resize((1, 8), (0, 0), (1, 16)), (1, 8), nearest=True)
    assert half.flatten().tolist() == [1, 3, 5, 7, 9, 11, 13, 15]  # u = 0.5, 2.5, ...: ties go up, not to even
    rng = np.random.default_rng(3)
    labels = torch.from_numpy(rng.integers(0, 250, (1, 23, 31)).astype(np.uint8))
    matrix = random_matrix(rng, (19, 17), (23, 31))
    got = sample(labels, matrix, (19, 17), border=255, nearest=True)[0].numpy()
    for p in range(19):
        for q in range(17):
            y, x = np.floor(matrix[:2] @ [p, q, 1] + 0.5).astype(int)
            inside = 0 <= y < 23 and 0 <= x < 31
            assert got[p, q] == (labels[0, y, x] if inside else 255)


def test_composed_geometry_interpolates_once() -> None:
    y = torch.arange(128.0)
    image = torch.sin(2 * math.pi * 0.2 * y)[:, None].expand(128, 128)[None].contiguous()
    there, back = (geo.about_centre(geo.rotation(a), (128, 128)) for a in (0.2, -0.2))
    inner = (slice(None), slice(32, 96), slice(32, 96))
    once = sample(image, geo.compose(there, back), (128, 128), border="reflect")
    twice = sample(sample(image, there, (128, 128), border="reflect"), back, (128, 128), border="reflect")
    assert abs(float(once[inner].std() / image[inner].std()) - 1) < 1e-5
    assert float(twice[inner].std() / image[inner].std()) < 0.95


def test_a_view_from_far_away_is_border_and_costs_little() -> None:
    image = noise(1, 16, 16)
    matrix = geo.about_centre(geo.compose(geo.rotation(0.3), np.diag([1e3, 1e3])), (8, 8), (16, 16))
    assert torch.isfinite(sample(image, matrix, (8, 8), border=0.5)).all()
    away = geo.compose(geo.translation([1e7, 1e7]), geo.about_centre(geo.rotation(0.3), (8, 8), (16, 16)))
    assert torch.equal(sample(image, away, (8, 8), border=0.5), torch.full((1, 8, 8), 0.5))


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.35, 0.5, 0.8, 1.0, 2.0, 3.0, 7.0, 24.0])
def test_the_blur_kernel_has_the_variance_asked_for(sigma: float) -> None:
    kernel = discrete_gaussian(sigma**2)
    k = np.arange(len(kernel)) - len(kernel) // 2
    assert abs(kernel.sum() - 1) < 1e-12 and (kernel >= -1e-15).all()
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-15)
    assert abs(math.sqrt((kernel * k**2).sum()) / sigma - 1) < 0.002


def moments(image: torch.Tensor) -> np.ndarray:
    """Covariance (2, 2) of a blob in output pixels."""
    p = image[0].double().numpy()
    p = p / p.sum()
    q = np.stack(np.meshgrid(*map(np.arange, p.shape), indexing="ij"), -1)
    centre = (p[..., None] * q).sum((0, 1))
    d = q - centre
    return np.einsum("yx,yxi,yxj->ij", p, d, d)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("chain", ["plain", "crop", "turned", "turned crop", "sheared"])
def test_blur_adds_its_variance_in_output_pixels(sigma: float, chain: str) -> None:
    linear = {
        "plain": np.eye(2),
        "crop": np.diag([2.3, 1.9]),
        "turned": geo.rotation(0.5),
        "turned crop": geo.compose(np.diag([2.3, 1.8]), geo.rotation(-0.4)),
        "sheared": geo.compose(geo.shear(0.2), 1.7 * geo.rotation(0.3)),
    }[chain]
    y = np.arange(161) - 80.0
    blob = torch.from_numpy(np.exp(-(y[:, None] ** 2 + y[None] ** 2) / (2 * 6.0**2))).float()[None]
    matrix = geo.about_centre(linear, (81, 81), (161, 161))
    added = moments(sample(blob, matrix, (81, 81), sigma=sigma)) - moments(sample(blob, matrix, (81, 81)))
    tolerance = 0.1 * sigma**2 + 2e-4  # 5 % of sigma is 10 % of its square
    np.testing.assert_allclose(added, sigma**2 * np.eye(2), atol=tolerance)


def test_blur_sees_the_border() -> None:
    """Blurring a flat image changes nothing under edge and reflected borders, and mixes a constant in."""
    flat = torch.full((1, 40, 40), 3.0)
    for matrix in (geo.identity(2), geo.about_centre(geo.rotation(0.3), (40, 40))):
        for border in ("border", "reflect"):
            np.testing.assert_allclose(
                sample(flat, matrix, (40, 40), border=border, sigma=2.0), flat, atol=1e-5, rtol=0
            )
    edge = sample(flat, geo.identity(2), (40, 40), border=1.0, sigma=2.0)[0]
    assert 1.9 < edge[20, 0] < 2.3 and abs(edge[20, 20] - 3) < 1e-5


def test_bad_input_is_named() -> None:
    with pytest.raises(HilumError, match=r"\(C, H, W\)"):
        sample(noise(4, 4), geo.identity(2), (4, 4))
    with pytest.raises(HilumError, match="finite"):
        sample(noise(1, 4, 4), geo.identity(2) * math.nan, (4, 4))
    with pytest.raises(HilumError, match="does not fit"):
        sample(torch.zeros(1, 4, 4, dtype=torch.uint8), geo.translation([9, 9]), (4, 4), border=-100, nearest=True)
