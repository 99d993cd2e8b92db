"""Order, spacing and affine of random series as highdicom's geometry finds them, which shares no code with ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from highdicom.spatial import create_affine_matrix_from_attributes, get_volume_positions
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.medical.volumes.assemble import assemble


def rows(places: Any, axes: Any, spacing: tuple[float, float]) -> list[dict[str, Any]]:
    about = {"series_id": "s", "group_id": "g", "study_id": "t", "modality": "CT", "photometric": "MONOCHROME2"}
    plane = {"rows": 7, "columns": 5, "frames": 1, "spacing_mm": [*spacing], "orientation": [*axes], "frame_keys": []}
    return [
        {**about, **plane, "sample_id": f"{n:03d}", "problems": [], "positions": [*map(float, place)]}
        for n, place in enumerate(places)
    ]


@st.composite
def series(draw: st.DrawFn) -> tuple[Any, Any, Any, tuple[float, float], float]:
    """(positions in random order, row and column cosines, their number from one end, pixel spacing, slice spacing)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    axes = np.concatenate([turned[0], turned[1]])
    normal = np.cross(turned[0], turned[1])
    count, step = draw(st.integers(2, 40)), draw(st.floats(0.2, 20))
    order = rng.permutation(count)
    spacing = float(rng.uniform(0.1, 3)), float(rng.uniform(0.1, 3))
    return rng.uniform(-500, 500, 3) + step * order[:, None] * normal, axes, order, spacing, step


@given(series())
@settings(max_examples=60)
def test_order_spacing_and_affine(made: tuple[Any, Any, Any, tuple[float, float], float]) -> None:
    places, axes, order, spacing, step = made
    (volume,) = assemble(rows(places, axes, spacing))
    # Frames, then down, then right: the order in which our axes are (k, j, i) up to the direction of the normal.
    theirs, numbers = get_volume_positions(places, axes, rtol=0.01, index_convention="RD")
    assert theirs == pytest.approx(step, rel=1e-6) and volume["spacing_mm"][0] == pytest.approx(theirs, rel=1e-6)
    assert volume["usable"] and volume["regular"]
    mine = [int(name) for name in volume["sample_ids"]]
    assert mine in ([*np.argsort(numbers)], [*np.argsort(numbers)][::-1])
    affine = create_affine_matrix_from_attributes(places[mine[0]], axes, spacing, theirs, index_convention="RD")
    found = np.reshape(volume["affine_lps"], (4, 4))
    np.testing.assert_allclose(found[:, [0, 1, 3]], affine[:, [0, 1, 3]], atol=1e-6)
    np.testing.assert_allclose(np.abs(found[:, 2]), np.abs(affine[:, 2]), atol=1e-6)
    np.testing.assert_allclose(found[:3, 2] * (len(mine) - 1) + found[:3, 3], places[mine[-1]], atol=1e-6)
    assert np.linalg.det(found[:3, :3]) > 0


@given(series(), st.floats(0.57, 0.63), st.booleans())
@settings(max_examples=40)
def test_what_highdicom_takes_for_no_volume_is_unusable(
    made: tuple[Any, Any, Any, tuple[float, float], float], shift: float, lacking: bool
) -> None:
    places, axes, order, spacing, step = made
    normal = np.cross(axes[:3], axes[3:])
    if len(order) < 5:
        return
    if lacking:  # a slice from the middle
        kept = order != len(order) // 2
        places = places[kept]
    else:
        places = places + np.where(order == 2, shift * step, 0)[:, None] * normal
    assert get_volume_positions(places, axes, rtol=0.01) == (None, None)
    (volume,) = assemble(rows(places, axes, spacing))
    assert not volume["usable"]
    assert any(p.startswith("gap:1 missing" if lacking else "irregular_spacing") for p in volume["problems"])
    hinted, numbers = get_volume_positions(places, axes, rtol=0.01, allow_missing_positions=True)
    assert (numbers is not None) == lacking
    if lacking:
        (filled,) = assemble(rows(places, axes, spacing), frozenset({"allow_gaps"}))
        assert filled["spacing_mm"][0] == pytest.approx(hinted, rel=1e-6)
