"""Geometry against independent oracles: grid_sample in float64, the definition in loops, block means, exact copies."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from scipy.special import ive

from hilum.augment.sampling import sample
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


def kernel_by_hand(step: float, sigma: float, between: float) -> tuple[int, list[float]]:
    """Level and kernel of one axis from the prose of docs/augmentation.md; ``between``: variance of a plain read."""
    f = 2 ** int(math.floor(math.log2(max(step, 1.0)) + 1e-9))
    t = max(0.0, (max(1.0, step / f) ** 2 - 1) / 6)
    if not sigma:
        w = t / (2 * (1 - t))
        return f, [w / (1 + 2 * w), 1 / (1 + 2 * w), w / (1 + 2 * w)]
    wanted = (sigma * step) ** 2 + (f * f - 1) / 12 + f * f * (between + t)
    while (wanted - (f * f - 1) / 12 - f * f / 6) / f**2 > 1:
        f *= 2
    t = (wanted - (f * f - 1) / 12 - f * f / 6) / f**2
    k = np.arange(-3, 4)
    gauss = lambda a: ive(abs(k), a) / ive(abs(k), a).sum()
    return f, gauss(brentq(lambda a: (gauss(a) * k * k).sum() - t, 1e-12, 1.2, xtol=1e-14)).tolist()


def by_definition(image: np.ndarray, matrix: np.ndarray, out: tuple[int, ...], border: float | str, sigma: float):
    """Every output pixel in loops: neighbours, kernel taps, blocks, pixels one by one."""
    d = image.ndim
    filters = [kernel_by_hand(math.dist(row, [0] * d), sigma, 1 / 6) for row in matrix[:d, :d]]
    blocks: dict[tuple[int, ...], float] = {}

    def pixel(at: tuple[int, ...]) -> float:
        if border not in ("border", "reflect"):
            return image[at] if all(0 <= i < n for i, n in zip(at, image.shape)) else border
        inside = []
        for i, n in zip(at, image.shape):
            while not 0 <= i < n:
                i = (0 if i < 0 else n - 1) if border == "border" else (-1 - i if i < 0 else 2 * n - 1 - i)
            inside.append(i)
        return image[tuple(inside)]

    def block(at: tuple[int, ...]) -> float:
        if at not in blocks:
            spans = [range(b * f, b * f + f) for b, (f, _) in zip(at, filters)]
            blocks[at] = sum(map(pixel, product(*spans))) / math.prod(map(len, spans))
        return blocks[at]

    result = np.zeros(out)
    for q in np.ndindex(*out):
        reads = []  # per axis: level pixel -> weight
        for row, (f, kernel) in zip(matrix, filters):
            u = (float(row[:d] @ q + row[d]) + 0.5) / f - 0.5
            weights: dict[int, float] = {}
            for side in (0, 1):
                near = math.floor(u) + side
                for k, weight in enumerate(kernel):
                    at = near + k - len(kernel) // 2
                    weights[at] = weights.get(at, 0.0) + weight * (1 - abs(u - near))
            reads.append([(at, weight) for at, weight in weights.items() if weight])
        for taps in product(*reads):
            result[q] += math.prod(weight for _, weight in taps) * block(tuple(at for at, _ in taps))
    return result


@pytest.mark.parametrize("sigma", [0.0, 0.6, 1.7])
@pytest.mark.parametrize("border", [0.25, "border", "reflect"])
def test_filters_and_blur_follow_their_definition(sigma: float, border: float | str) -> None:
    rng = np.random.default_rng(round(10 * sigma))
    for trial, (angle, zoom) in enumerate(product([0.0, 0.4], [(0.7, 0.9), (1.3, 1.9), (4.3, 2.2), (9.1, 1.1)])):
        src, out = tuple(rng.integers(1, 28, 2).tolist()), tuple(rng.integers(1, 6, 2).tolist())
        image = noise(1, *src, seed=trial)
        matrix = geo.about_centre(geo.compose(geo.rotation(angle), np.diag(zoom)), out, src)
        matrix[:2, 2] += rng.uniform(-2, 2, 2)
        got = sample(image, matrix, out, border=border, sigma=sigma)[0]
        want = by_definition(image[0].double().numpy(), matrix, out, border, sigma)
        np.testing.assert_allclose(got, want, atol=2e-6, err_msg=f"{src} {out} {zoom} {angle}")


@pytest.mark.parametrize("border", [0.25, "border", "reflect"])
def test_volumes_follow_the_same_definition(border: float | str) -> None:
    rng = np.random.default_rng(5)
    for trial, sigma in enumerate([0.0, 0.5]):
        image = noise(1, 6, 7, 5, seed=trial)
        turn = geo.compose(geo.rotation(0.3, 3, plane=(0, 2)), np.diag([1.2, 2.3, 0.8]))
        for linear in (turn, np.diag([1.2, 2.3, -0.8])):
            matrix = geo.about_centre(linear, (3, 2, 4), (6, 7, 5))
            matrix[:3, 3] += rng.uniform(-1, 1, 3)
            got = sample(image, matrix, (3, 2, 4), border=border, sigma=sigma)[0]
            want = by_definition(image[0].double().numpy(), matrix, (3, 2, 4), border, sigma)
            np.testing.assert_allclose(got, want, atol=2e-6)


def test_volumes_equal_grid_sample_and_turn_without_loss() -> None:
    image, src, out = noise(2, 9, 11, 7), (9, 11, 7), (8, 6, 10)
    linear = geo.compose(geo.rotation(0.4, 3, plane=(0, 1)), geo.rotation(-0.3, 3, plane=(1, 2)))
    matrix = geo.about_centre(linear, out, src)
    q = np.stack(np.meshgrid(*map(np.arange, out), indexing="ij"), -1)
    normal = (2 * (q @ matrix[:3, :3].T + matrix[:3, 3]) + 1) / np.array(src) - 1
    grid = torch.from_numpy(np.ascontiguousarray(normal[..., ::-1]))[None]
    want = F.grid_sample(image.double()[None], grid, align_corners=False)[0]
    np.testing.assert_allclose(sample(image, matrix, out), want, atol=1e-6, rtol=0)
    labels = (image * 1000).to(torch.uint16)
    quarter = geo.about_centre(geo.rotation(math.pi / 2, 3, plane=(0, 2)), (7, 11, 9), src)
    assert torch.equal(sample(labels, quarter, (7, 11, 9)), labels.float().rot90(1, (1, 3)))
    flipped = sample(labels, geo.compose(geo.flip(src, 0), geo.flip(src, 1)), src, nearest=True)
    assert flipped.dtype == torch.uint16 and torch.equal(flipped.float(), labels.float().flip(1, 2))


@pytest.mark.parametrize("factor", [2, 4, 8, 16, 64])
def test_powers_of_two_are_block_means_however_large(factor: int) -> None:
    image = noise(3, 6 * factor, 4 * factor)
    got = sample(image, geo.crop_resize((6, 4), (0, 0), (6 * factor, 4 * factor)), (6, 4))
    np.testing.assert_allclose(got, F.avg_pool2d(image, factor), atol=2e-6, rtol=0)


@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_enlarging_is_one_plain_read(angle: float) -> None:
    image = noise(1, 40, 52)
    matrix = geo.about_centre(geo.compose(geo.rotation(angle), np.diag([0.8, 0.9])), (31, 37), (40, 52))
    plain = F.grid_sample(image.double()[None], grid_of(matrix, (31, 37), (40, 52)), align_corners=False)[0]
    np.testing.assert_allclose(sample(image, matrix, (31, 37)), plain, atol=1e-6, rtol=0)


def test_positions_stay_exact_on_large_images() -> None:
    image = noise(1, 4096, 3)
    matrix = geo.about_centre(geo.compose(geo.rotation(1e-4), np.diag([0.99, 1.0])), (4096, 3), (4096, 3))
    want = F.grid_sample(image.double()[None], grid_of(matrix, (4096, 3), (4096, 3)), align_corners=False)[0]
    np.testing.assert_allclose(sample(image, matrix, (4096, 3)), want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.0, 0.4, 2.5])
def test_a_constant_image_stays_constant(sigma: float) -> None:
    flat = torch.full((1, 50, 37), 3.0)
    for linear in (np.diag([2.7, 1.4]), 3.3 * geo.rotation(0.7), 0.6 * geo.rotation(2.0), np.diag([700.0, 5.0])):
        matrix = geo.about_centre(linear, (21, 33), (50, 37))
        for border in (3.0, "border", "reflect"):
            np.testing.assert_allclose(sample(flat, matrix, (21, 33), border=border, sigma=sigma), 3.0, atol=2e-6)


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
    for linear in (np.diag([1e9, 1e7]), 1e8 * geo.rotation(0.3)):  # one pixel of the level is larger than the image
        matrix = geo.about_centre(linear, (8, 8), (16, 16))
        np.testing.assert_allclose(sample(image, matrix, (8, 8), border=0.5), 0.5, atol=1e-6)
        mirrored = sample(image, matrix, (8, 8), border="reflect")
        np.testing.assert_allclose(mirrored, torch.full((1, 8, 8), float(image.mean())), atol=1e-5)


def spread(step: float, sigma: float, offsets: np.ndarray) -> float:
    """Variance of one output pixel's weights on the source about its position, averaged over ``offsets``.

    Impulses are channels, so one call gives the weights themselves.
    """
    reach = 64 * math.ceil((step * (2 + 5 * sigma) + offsets.max()) / 64)
    impulses = torch.eye(2 * reach)[:, None]
    found = []
    for offset in offsets:
        matrix = np.array([[1, 0, 0], [0, step, reach + offset], [0, 0, 1]])
        weights = sample(impulses, matrix, (1, 1), border="border", sigma=sigma).flatten().double()
        found.append(float(weights @ (torch.arange(2 * reach).double() - reach - offset) ** 2))
    return float(np.mean(found))


@pytest.mark.parametrize("step", [0.6, 1.3, 1.95, 2.7, 5.3])
def test_blur_adds_the_variance_asked_for(step: float) -> None:
    for sigma in (0.1, 0.3, 0.7, 1.1, 1.7, 3.0):
        offsets = (np.arange(64) + 0.5) / 4  # all places between the pixels of levels up to 16
        added = spread(step, sigma, offsets) - spread(step, 0.0, offsets)
        assert abs(math.sqrt(added) / (sigma * step) - 1) < 1e-3, sigma


@pytest.mark.parametrize("origin", [0.0, 0.5, 0.3])
@pytest.mark.parametrize("step", [1.0, 2.0, 3.0])
def test_blur_adds_the_variance_asked_for_on_a_grid(step: float, origin: float) -> None:
    for sigma in (0.1, 0.5, 0.9, 1.02, 1.3, 2.2, 3.0):
        offsets = origin + step * np.arange(16)
        added = spread(step, sigma, offsets) - spread(step, 0.0, offsets)
        assert abs(math.sqrt(added) / (sigma * step) - 1) < 1e-3, sigma


@pytest.mark.parametrize("step", [1.0, 1.5, 1.99, 2.0, 3.1, 20.0])
def test_the_minification_filter_has_the_variance_of_its_closed_form(step: float) -> None:
    factor = 2 ** math.floor(math.log2(step))
    offsets = (np.arange(16 * factor) + 0.5) / 16
    assert abs(spread(step, 0.0, offsets) - (factor**2 - 1) / 12 - step**2 / 6) < 2e-3 * step**2


def moments(image: torch.Tensor) -> np.ndarray:
    """Covariance (2, 2) of a blob in output pixels."""
    p = image[0].double().numpy()
    p = p / p.sum()
    q = np.stack(np.meshgrid(*map(np.arange, p.shape), indexing="ij"), -1)
    centre = (p[..., None] * q).sum((0, 1))
    d = q - centre
    return np.einsum("yx,yxi,yxj->ij", p, d, d)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("chain", ["plain", "crop", "turned", "turned zoom"])
def test_blur_adds_its_variance_in_output_pixels(sigma: float, chain: str) -> None:
    linear = {
        "plain": np.eye(2),
        "crop": np.diag([2.3, 1.9]),
        "turned": geo.rotation(0.5),
        "turned zoom": 2.3 * geo.rotation(-0.4),
    }[chain]
    y = np.arange(161) - 80.0
    blob = torch.from_numpy(np.exp(-(y[:, None] ** 2 + y[None] ** 2) / (2 * 6.0**2))).float()[None]
    matrix = geo.about_centre(linear, (81, 81), (161, 161))
    added = moments(sample(blob, matrix, (81, 81), sigma=sigma)) - moments(sample(blob, matrix, (81, 81)))
    tolerance = 0.1 * sigma**2 + 2e-4  # 5 % of sigma is 10 % of its square
    np.testing.assert_allclose(added, sigma**2 * np.eye(2), atol=tolerance)


def test_under_shear_blur_is_exact_along_the_source_axes() -> None:
    """What an axis-aligned filter leaves out is the covariance between the axes."""
    linear = geo.compose(geo.shear(0.2), 1.7 * geo.rotation(0.3))
    y = np.arange(161) - 80.0
    blob = torch.from_numpy(np.exp(-(y[:, None] ** 2 + y[None] ** 2) / (2 * 6.0**2))).float()[None]
    matrix = geo.about_centre(linear, (81, 81), (161, 161))
    added = (
        linear
        @ (moments(sample(blob, matrix, (81, 81), sigma=2.0)) - moments(sample(blob, matrix, (81, 81))))
        @ linear.T
    )
    np.testing.assert_allclose(added, np.diag(np.diag(4.0 * linear @ linear.T)), atol=0.1)


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


def test_results_are_differentiable_in_the_image() -> None:
    image = noise(2, 13, 17).requires_grad_()
    for linear, sigma in ((2.3 * geo.rotation(0.4), 0.8), (np.diag([0.7, 1.6]), 0.0)):
        matrix = geo.about_centre(linear, (6, 8), (13, 17))
        seen = sample(image, matrix, (6, 8), sigma=sigma)
        other = noise(*seen.shape, seed=1)
        (gradient,) = torch.autograd.grad((seen * other).sum(), image)
        direction = noise(2, 13, 17, seed=2)  # linear in the image: the adjoint is the gradient
        forward = (sample(direction, matrix, (6, 8), sigma=sigma) * other).sum()
        assert abs(float((gradient * direction).sum() / forward) - 1) < 1e-5


def test_bad_input_is_named() -> None:
    with pytest.raises(HilumError, match=r"\(C, H, W\)"):
        sample(noise(4, 4), geo.identity(2), (4, 4))
    with pytest.raises(HilumError, match="finite"):
        sample(noise(1, 4, 4), geo.identity(2) * math.nan, (4, 4))
    with pytest.raises(HilumError, match="does not fit"):
        sample(torch.zeros(1, 4, 4, dtype=torch.uint8), geo.translation([9, 9]), (4, 4), border=-100, nearest=True)
