"""The closed forms of level and kernel: variance, reach, levels, continuity, and what is left alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hilum.augment.filters import REACH, axis_filter, plan
from hilum.augment.policy import Policy
from hilum.core.errors import HilumError
from hilum.parts import geometry as geo

STEPS = [0.0, 0.3, 1.0, 1.2, 1.999, 2.0, 2.5, 3.0, 4.0, 7.9, 8.0, 100.0, 1e6]


def variance(kernel: np.ndarray) -> float:
    k = np.arange(len(kernel)) - len(kernel) // 2
    return float((kernel * k * k).sum())


def on_the_source(factor: int, kernel: np.ndarray, between: float = 1 / 6) -> float:
    """Variance of block, linear read and kernel."""
    return (factor**2 - 1) / 12 + factor**2 * (between + variance(kernel))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("sigma", [0.0, 1e-9, 0.1, 0.7, 1.0, 3.0, 40.0])
def test_every_kernel_is_short_symmetric_and_weighs_one(step: float, sigma: float) -> None:
    factor, kernel = found = axis_filter(step, sigma)
    assert factor & (factor - 1) == 0 and factor >= 1
    assert len(kernel) == 2 * found.reach + 1 <= 2 * REACH + 1
    assert abs(kernel.sum() - 1) < 1e-14 and (kernel >= 0).all() and np.array_equal(kernel, kernel[::-1])
    assert variance(kernel) <= 1 + 1e-5


@pytest.mark.parametrize("step", STEPS)
def test_without_blur_the_level_is_the_step_s_and_the_variance_r_squared_over_six(step: float) -> None:
    factor, kernel = axis_filter(step)
    r = max(1.0, step)
    assert factor <= r < 2 * factor
    assert math.isclose(on_the_source(factor, kernel), (factor**2 - 1) / 12 + r * r / 6, rel_tol=1e-12)
    nyquist = (kernel * (-1.0) ** np.arange(len(kernel))).sum()
    rho = r / factor
    t = (rho * rho - 1) / 6
    assert abs(abs(nyquist) - (1 - 2 * t)) < 1e-12 if len(kernel) > 1 else rho == 1


def test_nothing_is_left_to_do_at_powers_of_two_and_below_one() -> None:
    for step in (0.0, 0.2, 1.0, 1.0 + 1e-12, 2.0, 2.0 - 1e-10, 4.0, 2.0**20):
        factor, kernel = axis_filter(step)
        assert kernel.tolist() == [1.0] and factor == max(1, round(step))
    np.testing.assert_allclose(axis_filter(2.0 - 1e-7).kernel, [0.25, 0.5, 0.25], atol=1e-7)  # zero at Nyquist
    assert plan(geo.identity(3)) == ((1, np.ones(1)),) * 3
    assert axis_filter(9.0, minify=False) == (1, np.ones(1))


def test_kernels_change_continuously_with_the_step_between_levels() -> None:
    for low, high in ((1.0, 2.0), (2.0, 4.0), (8.0, 16.0)):
        steps = np.linspace(low, high * (1 - 1e-6), 400)
        kernels = [np.pad(k, 1 - len(k) // 2) for k in (axis_filter(s).kernel for s in steps)]
        assert np.abs(np.diff(kernels, axis=0)).max() < 3e-3


@pytest.mark.parametrize("step", [0.4, 1.0, 1.7, 2.0, 3.3, 11.0])
def test_blur_adds_exactly_its_variance(step: float) -> None:
    before = on_the_source(*axis_filter(step))
    levels = []
    for sigma in np.geomspace(0.1, 3.0, 60):
        factor, kernel = axis_filter(step, sigma)
        added = on_the_source(factor, kernel) - before
        assert abs(math.sqrt(added) / (sigma * step) - 1) < 2e-6
        levels.append(factor)
        smaller = on_the_source(factor // 2, np.array([0.5, 0.0, 0.5])) - before  # a variance of one pixel of the level
        assert factor == axis_filter(step).factor or smaller < (sigma * step) ** 2, "a finer level would have done"
    assert levels == sorted(levels)


@pytest.mark.parametrize("step", [1.0, 2.0, 3.0, -4.0])
@pytest.mark.parametrize("origin", [0.0, 0.5, 1.0, 7.3, -2.0])
def test_on_a_grid_the_reads_own_variance_is_counted_as_it_is(step: float, origin: float) -> None:
    def between(factor: int) -> float:
        p = ((origin + step * np.arange(64) + 0.5) / factor - 0.5) % 1.0
        return float((p * (1 - p)).mean())

    matrix = np.diag([step, 1.2, 1.0])
    matrix[0, 2] = origin
    factor, kernel = plan(matrix)[0]
    before = on_the_source(factor, kernel, between(factor))
    for sigma in (0.1, 0.6, 1.01, 1.5, 2.4):
        factor, kernel = plan(matrix, sigma)[0]
        added = on_the_source(factor, kernel, between(factor)) - before
        assert abs(math.sqrt(added) / (sigma * abs(step)) - 1) < 2e-6


def test_a_plan_follows_the_rows_of_the_matrix() -> None:
    matrix = np.eye(3)
    matrix[:2, :2] = geo.compose(np.diag([3.0, 1.5]), geo.rotation(0.3))
    for found, step in zip(plan(matrix, 0.4), (3.0, 1.5), strict=True):
        want = axis_filter(step, 0.4)
        assert found.factor == want.factor
        np.testing.assert_allclose(found.kernel, want.kernel, atol=1e-12)


@pytest.mark.parametrize(
    ("step", "sigma"), [(math.nan, 0.0), (-1.0, 0.0), (math.inf, 0.0), (1.0, -0.1), (1.0, math.nan)]
)
def test_impossible_filters_are_refused(step: float, sigma: float) -> None:
    with pytest.raises(HilumError, match="no filter for a step"):
        axis_filter(step, sigma)


def test_a_policy_tells_its_levels_and_kernels() -> None:
    p = Policy({"fit": "squash", "blur": [0.1, 1.0]}, size=(100, 50), channels=1, mean=0.5, std=0.5, train=True)
    lines = p.explain((250, 50)).splitlines()
    (plain,) = [line for line in lines if "no blur" in line]
    (blurred,) = [line for line in lines if "blur 1 " in line]
    w = (1.25**2 - 1) / 6 / 2
    assert f"y: step 2.5, level 2, kernel {w:.4g} {1 - 2 * w:.4g} {w:.4g}" in plain
    assert "x: step 1, level 1, kernel 1" in plain
    assert "y: step 2.5, level 4" in blurred and len(blurred.split("kernel")[1].split(";")[0].split()) == 7
    assert "level 2^floor(log2 step)" in p.explain() and "no blur" not in p.explain()
