"""Area averaging against the integral it stands for."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.core.errors import HilumError
from hilum.core.types import Pixels
from hilum.data.image import reduce_pixels
from hilum.data.ledger import Rejected
from hilum.data.reduce import area_average, reduced_size, valid_average


def weights(n: int, m: int) -> list[dict[int, Fraction]]:
    """Share of every source pixel j under output pixel i: the overlap of [j, j+1) with [i n/m, (i+1) n/m)."""
    out = []
    for i in range(m):
        lo, hi = Fraction(i * n, m), Fraction((i + 1) * n, m)
        overlap = {j: min(hi, Fraction(j + 1)) - max(lo, Fraction(j)) for j in range(math.floor(lo), math.ceil(hi))}
        out.append({j: w / (hi - lo) for j, w in overlap.items() if w > 0})
    return out


def exact_mean(image: np.ndarray, size: tuple[int, int]) -> list[list[Fraction]]:
    down, across = weights(image.shape[0], size[0]), weights(image.shape[1], size[1])
    return [
        [sum((a * b * int(image[j, k]) for j, a in row.items() for k, b in col.items()), Fraction()) for col in across]
        for row in down
    ]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int]]:
    h, w = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    size = draw(st.integers(1, h)), draw(st.integers(1, w))
    kind = draw(st.sampled_from([np.uint8, np.int16, np.uint16, np.int32]))
    info = np.iinfo(kind)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return rng.integers(info.min, info.max, (h, w), endpoint=True).astype(kind), size


@settings(max_examples=60)
@given(cases())
def test_integers_are_the_exact_mean_rounded_half_up(case: tuple[np.ndarray, tuple[int, int]]) -> None:
    image, size = case
    expected = [[math.floor(v + Fraction(1, 2)) for v in row] for row in exact_mean(image, size)]
    reduced = area_average(image, size)
    assert reduced.dtype == image.dtype
    assert reduced.tolist() == expected


@settings(max_examples=40)
@given(cases())
def test_floats_agree_with_the_integral(case: tuple[np.ndarray, tuple[int, int]]) -> None:
    image, size = case
    cumulative = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    cumulative[1:, 1:] = image.astype(np.float64).cumsum(0).cumsum(1)
    y, x = (np.arange(m + 1) * (n / m) for m, n in zip(size, image.shape, strict=True))

    def integral(axis: np.ndarray, table: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(axis, np.arange(table.shape[0]), column) for column in table.T], 1)

    at_corners = integral(x, integral(y, cumulative).T).T
    area = (image.shape[0] / size[0]) * (image.shape[1] / size[1])
    expected = np.diff(np.diff(at_corners, axis=0), axis=1) / area
    scale = max(1.0, float(np.abs(image.astype(np.float64)).max())) * image.size
    np.testing.assert_allclose(area_average(image.astype(np.float64), size), expected, atol=1e-12 * scale)


def test_colour_channels_are_averaged_apart() -> None:
    image = np.random.default_rng(0).integers(0, 255, (11, 9, 3)).astype(np.uint8)
    expected = np.stack([area_average(image[..., c], (4, 5)) for c in range(3)], -1)
    np.testing.assert_array_equal(area_average(image, (4, 5)), expected)


def test_a_damaged_float_stays_where_it_is() -> None:
    image = np.ones((10, 10), np.float32)
    image[0, 0] = np.nan
    reduced = area_average(image, (3, 3))
    assert np.isnan(reduced[0, 0])
    assert np.isfinite(reduced).sum() == 8


def test_padding_has_no_weight() -> None:
    image = np.full((9, 9), 100, np.int16)
    valid = np.ones((9, 9), bool)
    valid[:, :4] = False
    image[:, :4] = -2000
    reduced, seen = area_average(image, (3, 3), valid=valid), valid_average(valid, (3, 3))
    assert reduced[:, 1:].tolist() == [[100, 100]] * 3
    assert reduced[:, 0].tolist() == [-2000] * 3
    assert seen.tolist() == [[False, True, True]] * 3


@pytest.mark.parametrize(
    ("rows", "columns", "side", "expected"),
    [(2048, 2500, 512, (512, 625)), (2500, 2048, 512, (625, 512)), (300, 200, 512, (300, 200)), (7, 5, 2, (3, 2))],
)
def test_short_side(rows: int, columns: int, side: int, expected: tuple[int, int]) -> None:
    assert reduced_size(rows, columns, side) == expected
    assert reduced_size(rows, columns, None) == (rows, columns)


def test_enlarging_is_refused() -> None:
    with pytest.raises(HilumError, match="cannot be area-averaged"):
        area_average(np.zeros((4, 4)), (5, 4))


def test_reduced_pixels_stay_physical() -> None:
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 4096, (1, 30, 45)).astype(np.uint16)
    image = reduce_pixels(Pixels(stored, -2.0, 50.0, spacing_mm=(0.1, 0.3), inverted=True), side=10)
    assert tuple(image.stored.shape) == (1, 10, 15)
    assert image.factor == (3.0, 3.0)
    assert image.spacing_mm == pytest.approx((0.3, 0.9))
    modality = image.stored[0].numpy().astype(float) * -2 + 50
    assert image.stats["min"] == modality.min() and image.stats["max"] == modality.max()
    assert image.stats["mean"] == pytest.approx(modality.mean())
    # Output pixel centres map to the centres of the areas they average.
    corner = image.geometry().matrix @ np.array([0.0, 14.0, 1.0])
    assert corner.tolist() == pytest.approx([1.0, 43.0, 1.0])


def test_statistics_leave_padding_out() -> None:
    stored = np.full((1, 8, 8), 7, np.int16)
    stored[0, :, :4] = -2000
    valid = np.ones((1, 8, 8), bool)
    valid[0, :, :4] = False
    image = reduce_pixels(Pixels(stored, valid=valid), side=4)
    assert image.stats["min"] == image.stats["background"] == 7.0
    assert image.valid is not None and image.valid.tolist() == [[False, False, True, True]] * 4


def test_several_frames_are_no_image() -> None:
    with pytest.raises(Rejected) as caught:
        reduce_pixels(Pixels(np.zeros((2, 8, 8), np.uint8)), side=4)
    assert caught.value.reason == "multi_frame"
