"""Policies: what a recipe may say, what it is refused, and the laws its draws follow."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from hilum.augment.draw import Draw
from hilum.augment.policy import Policy
from hilum.core.errors import HilumError
from hilum.core.types import SampleKey
from hilum.parts import geometry as geo

MANY, SOME = 10_000, 2_000


def policy(config: dict, *, size=64, train: bool = True, lateral: bool = False) -> Policy:
    return Policy(config, size=size, channels=3, mean=0.5, std=0.25, train=train, lateral=lateral)


def draws(config: dict, source=(64, 64), *, n: int = SOME, **kwargs) -> list[Draw]:
    p = policy(config, **kwargs)
    return [p.draw(SampleKey(7, 3, 2654435761 * i % 2**32), source_size=source) for i in range(n)]


def assert_uniform(values, lo: float, hi: float) -> None:
    values = np.asarray(values)
    assert values.min() >= lo and values.max() <= hi
    assert stats.kstest(values, stats.uniform(lo, hi - lo).cdf).pvalue > 1e-3


def assert_rate(flags, p: float) -> None:
    assert stats.binomtest(int(np.sum(flags)), len(flags), p).pvalue > 1e-3


# --- laws ------------------------------------------------------------------------------------------------


def test_value_parameters_follow_their_ranges_and_are_independent() -> None:
    config = {
        "brightness": [0.6, 1.4],
        "contrast": 0.2,
        "gamma": [0.7, 1.5],
        "blur": [0.1, 3.0],
        "noise": 0.05,
        "window": {"shift": 0.1, "width": [0.8, 1.25]},
    }
    drawn = draws(config, n=MANY)
    columns = {
        "brightness": (0.6, 1.4),
        "contrast": (0.8, 1.2),
        "gamma": (0.7, 1.5),
        "sigma": (0.1, 3.0),
        "noise": (0.0, 0.05),
        "window_shift": (-0.1, 0.1),
        "window_width": (0.8, 1.25),
    }
    table = np.array([[getattr(d, name) for name in columns] for d in drawn])
    for column, (lo, hi) in zip(table.T, columns.values(), strict=True):
        assert_uniform(column, lo, hi)
    correlation = np.corrcoef(table.T) - np.eye(len(columns))
    assert np.abs(correlation).max() < 4.5 / math.sqrt(MANY)


def test_flips_happen_at_their_rate_and_independently() -> None:
    drawn = draws({"hflip": 0.5, "vflip": {"p": 0.2}, "fit": "squash"}, n=MANY)
    assert_rate([1 in d.flips for d in drawn], 0.5)
    assert_rate([0 in d.flips for d in drawn], 0.2)
    counts = np.histogram([len(d.flips) for d in drawn], bins=[0, 1, 2, 3])[0]
    assert stats.chisquare(counts, MANY * np.array([0.4, 0.5, 0.1])).pvalue > 1e-3
    for d in drawn[:50]:
        parts = [geo.flip((64, 64), axis) for axis in d.flips]
        np.testing.assert_array_equal(d.matrix, geo.compose(geo.identity(2), *parts))


def test_crops_have_uniform_area_and_place_and_log_uniform_aspect() -> None:
    drawn = draws({"resized_crop": [0.25, 0.5]}, source=(600, 600), size=(32, 48), n=MANY)
    extent = np.array([np.diag(d.matrix)[:2] * d.size for d in drawn])
    origin = np.array([d.matrix[:2, 2] + 0.5 - 0.5 * np.diag(d.matrix)[:2] for d in drawn])
    assert_uniform(extent.prod(1) / 600**2, 0.25 - 1e-9, 0.5 + 1e-9)
    assert_uniform(np.log(extent[:, 1] / extent[:, 0]), math.log(3 / 4) - 1e-9, math.log(4 / 3) + 1e-9)
    for axis in (0, 1):
        assert_uniform(origin[:, axis] / (600 - extent[:, axis]), -1e-9, 1 + 1e-9)


def test_crops_stay_inside_and_fall_back_to_the_centre() -> None:
    for source in ((512, 610), (610, 400), (100, 900)):
        for d in draws({"resized_crop": {"area": [0.5, 1.0]}}, source=source, n=300):
            box = geo.map_boxes(d.matrix, [0, 0, 64, 64])
            assert (box[:2] > -1e-9).all() and (box[2:] < np.array(source) + 1e-9).all()
    whole = draws({"resized_crop": [1.0, 1.0]}, source=(100, 900), n=1)[0]
    height, width = np.diag(whole.matrix)[:2] * 64
    assert (height, width) == pytest.approx((100, 100 * 4 / 3))
    assert geo.map_points(whole.matrix, [31.5, 31.5]) == pytest.approx([49.5, 449.5])


def test_rotation_is_uniform_and_gated() -> None:
    drawn = draws({"rotate": {"range": [-10, 20], "p": 0.3}}, n=MANY)
    angles = np.array([math.degrees(math.atan2(d.matrix[0, 1], d.matrix[0, 0])) for d in drawn])
    done = angles != 0
    assert_rate(done, 0.3)
    assert_uniform(angles[done], -10 - 1e-9, 20 + 1e-9)


def test_affine_parts_are_recovered_from_the_matrix() -> None:
    centre = np.array([31.5, 31.5])
    moved = np.array(
        [geo.map_points(geo.invert(d.matrix), centre) - centre for d in draws({"affine": {"translate": 0.1}})]
    )
    for axis in (0, 1):
        assert_uniform(moved[:, axis], -6.4 - 1e-9, 6.4 + 1e-9)
    zooms = [1 / geo.scale_of(d.matrix) for d in draws({"affine": {"scale": [0.9, 1.3], "rotate": 20}})]
    assert_uniform(zooms, 0.9 - 1e-9, 1.3 + 1e-9)
    shears = [math.degrees(math.atan(-d.matrix[1, 0])) for d in draws({"shear": 12})]
    assert_uniform(shears, -12 - 1e-9, 12 + 1e-9)


def test_an_area_range_beyond_one_draw_rejects_like_its_definition() -> None:
    """On a wide source some pairs do not fit; the kept ones follow the joint law conditioned on fitting."""
    drawn = draws({"resized_crop": [0.2, 1.0]}, source=(300, 500))
    area = np.array([np.prod(np.diag(d.matrix)[:2] * 64) for d in drawn]) / (300 * 500)
    rng = np.random.default_rng(0)
    a, r = rng.uniform(0.2, 1.0, 400_000), np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), 400_000))
    fits = (np.sqrt(a * 150_000 * r) <= 500) & (np.sqrt(a * 150_000 / r) <= 300)
    assert stats.ks_2samp(area, a[fits]).pvalue > 1e-3


RAND = {"rand": {"n": 1, "p": 1.0, "magnitude": 6, "std": 0.0}}


def test_rand_has_the_strength_of_m6() -> None:
    drawn = draws(RAND)
    kinds = {
        "rotate": [d for d in drawn if abs(d.matrix[0, 1] + d.matrix[1, 0]) < 1e-12 and d.matrix[0, 1]],
        "shear": [d for d in drawn if abs(d.matrix[0, 1]) + abs(d.matrix[1, 0]) == pytest.approx(0.18)],
        "translate": [d for d in drawn if np.array_equal(d.matrix[:2, :2], np.eye(2)) and d.matrix[:2, 2].any()],
        "brightness": [d for d in drawn if d.brightness != 1],
        "contrast": [d for d in drawn if d.contrast != 1],
        "gamma": [d for d in drawn if d.gamma != 1],
        "blur": [d for d in drawn if d.sigma],
    }
    counts = [len(found) for found in kinds.values()]
    assert sum(counts) == SOME and stats.chisquare(counts).pvalue > 1e-3
    signs = lambda values: assert_rate(np.array(values) > 0, 0.5)
    angles = [math.degrees(math.asin(d.matrix[0, 1])) for d in kinds["rotate"]]
    assert np.abs(angles) == pytest.approx(18.0)
    signs(angles)
    moved = np.array([d.matrix[:2, 2] for d in kinds["translate"]])
    assert np.abs(moved).sum(1) == pytest.approx(0.27 * 64)
    assert_rate(moved[:, 0] != 0, 0.5)
    for name in ("brightness", "contrast"):
        factors = np.array([getattr(d, name) for d in kinds[name]]) - 1
        assert np.abs(factors) == pytest.approx(0.54)
        signs(factors)
    exponents = np.log2([d.gamma for d in kinds["gamma"]])
    assert np.abs(exponents) == pytest.approx(0.6)
    assert [d.sigma for d in kinds["blur"]] == pytest.approx([0.1 + 1.9 * 0.6] * len(kinds["blur"]))


def test_rand_magnitude_spreads_normally_and_layers_fire_at_their_rate() -> None:
    drawn = draws({"rand": {"ops": ["rotate"], "n": 1, "std": 0.5}})
    angle = np.degrees([math.atan2(d.matrix[0, 1], d.matrix[0, 0]) for d in drawn])
    assert_rate(angle != 0, 0.5)
    magnitudes = np.abs(angle[angle != 0]) / 3
    assert stats.kstest(magnitudes, stats.norm(6, 0.5).cdf).pvalue > 1e-3
    twice = draws({"rand": {"ops": ["brightness"], "n": 2, "std": 0, "p": 1.0}})
    values = {round(d.brightness, 9) for d in twice}
    assert values == {round(1.54**2, 9), round(1.54 * 0.46, 9), round(0.46**2, 9)}  # layers multiply
    full = draws({"rand": {"ops": ["contrast"], "n": 1, "magnitude": 10, "std": 0, "p": 1.0}}, n=100)
    assert {round(d.contrast, 9) for d in full} == {0.1, 1.9}
    plain = draws({"rand": {"ops": ["contrast"], "n": 1, "magnitude": 5, "std": 0, "p": 1, "increasing": False}}, n=9)
    assert {round(d.contrast, 9) for d in plain} == {1.0}


def test_draws_depend_on_seed_epoch_sample_and_view_only() -> None:
    p = policy({"resized_crop": [0.5, 1.0], "rotate": 10, "brightness": 0.2})
    key = SampleKey(1, 2, 3)
    drawn = lambda k, view=0: p.draw(k, source_size=(90, 80), view=view).to_json()
    assert drawn(key) == drawn(SampleKey(1, 2, 3))
    others = [drawn(SampleKey(*k)) for k in ((2, 2, 3), (1, 3, 3), (1, 2, 4))] + [drawn(key, 1)]
    first = drawn(key)
    for other in others:
        assert other["brightness"] != first["brightness"] and other["matrix"] != first["matrix"]


def test_adding_an_op_changes_no_other_draw() -> None:
    config = {"resized_crop": [0.5, 1.0], "brightness": 0.2, "gamma": 0.1}
    more = {"hflip": 0.0, "noise": 0.1, "contrast": 0.3, "blur": 1.0, **config}
    for a, b in zip(draws(config, n=20), draws(more, n=20), strict=True):
        assert np.array_equal(a.matrix, b.matrix) and (a.brightness, a.gamma) == (b.brightness, b.gamma)


# --- geometry of whole images --------------------------------------------------------------------------------


def test_fits_show_what_they_promise() -> None:
    source = (300, 500)
    box = lambda how, **config: geo.map_boxes(
        policy({"fit": how, **config}, size=224, train=False).draw(None, source_size=source).matrix, [0, 0, 224, 224]
    )
    side = 300 * 224 / 256
    assert box("crop") == pytest.approx([150 - side / 2, 250 - side / 2, 150 + side / 2, 250 + side / 2])
    assert box("pad") == pytest.approx([-100, 0, 400, 500])
    assert box("squash") == pytest.approx([0, 0, 300, 500])
    assert box("auto") == pytest.approx(box("pad"))
    assert box("auto", resized_crop=[0.5, 1.0]) == pytest.approx(box("crop"))


def test_evaluation_ignores_chance() -> None:
    p = policy({"resized_crop": [0.5, 1], "hflip": 1.0, "brightness": [0.5, 0.6], "blur": 3.0, "noise": [0.1, 0.2]})
    a = p.eval().draw(SampleKey(0, 0, 1), source_size=(70, 90))
    b = p.eval().draw(None, source_size=(70, 90))
    assert np.array_equal(a.matrix, b.matrix)
    assert (a.flips, a.brightness, a.contrast, a.gamma, a.sigma, a.noise) == ((), 1.0, 1.0, 1.0, 0.0, 0.0)


def test_training_without_a_crop_starts_from_the_evaluation_geometry() -> None:
    p = policy({"hflip": 1.0})
    trained, fitted = p.draw(SampleKey(0, 0, 0), source_size=(70, 90)), p.eval().draw(None, source_size=(70, 90))
    np.testing.assert_allclose(trained.matrix, fitted.matrix @ geo.flip((64, 64), 1))


def test_a_skipped_crop_shows_the_evaluation_geometry() -> None:
    p = policy({"resized_crop": {"area": [0.5, 0.6], "p": 0.5}})
    fitted = p.eval().draw(None, source_size=(70, 90)).matrix
    matrices = [p.draw(SampleKey(0, 0, i), source_size=(70, 90)).matrix for i in range(400)]
    assert_rate([np.array_equal(m, fitted) for m in matrices], 0.5)


def plain(value: object) -> bool:
    return all(map(plain, value)) if type(value) is list else type(value) in (int, float, type(None))


def test_a_draw_survives_json_exactly() -> None:
    config = {"resized_crop": [0.5, 1.0], "hflip": 0.5, "rotate": 10, "rand": {"n": 2}, "noise": 0.1}
    p = policy(config)
    for i in range(50):
        d = p.draw(SampleKey(0, 0, i), source_size=(90, 80), stats={"mean": 0.1 + i, "background": float("nan")})
        assert all(map(plain, d.to_json().values()))
        back = Draw.from_json(json.loads(json.dumps(d.to_json())))
        assert back.to_json() == d.to_json() and np.array_equal(back.matrix, d.matrix)
        assert back.key == d.key and back.size == d.size and back.fill is None and back.pivot == 0.1 + i
    with pytest.raises(HilumError, match="missing or unknown"):
        Draw.from_json({"matrix": []})


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"brightnes": 0.1}, "did you mean 'brightness'"),
        ({"affine": {"rotat": 5}}, "did you mean 'rotate'"),
        ({"rand": {"magnitud": 5}}, "did you mean 'magnitude'"),
        ({"rand": {"ops": ["rotat"]}}, "did you mean 'rotate'"),
        ({"rand": {"ops": []}}, "a list out of"),
        ({"rand": {"n": -1}}, "whole number"),
        ({"rand": {"magnitude": 11}}, "0 to 10"),
        ({"resized_crop": [0.5, 1.2]}, "above 0 to 1"),
        ({"resized_crop": 0.5}, r"a range \[lo, hi\]"),
        ({"resized_crop": {"area": [0.5, 1], "aspct": [1, 1]}}, "did you mean 'aspect'"),
        ({"brightness": [1.4, 0.6]}, "lo <= hi"),
        ({"gamma": [0.0, 1.0]}, "above 0"),
        ({"brightness": "bright"}, "a range"),
        ({"blur": [-1, 1]}, "from 0"),
        ({"noise": float("nan")}, "a range"),
        ({"hflip": 1.5}, "0 to 1"),
        ({"rotate": {"range": 5, "p": 2}}, "0 to 1"),
        ({"affine": 10}, "a mapping"),
        ({"affine": {"p": 0.5}}, "at least one"),
        ({"shear": 90}, "-89 to 89"),
        ({"interpolation": "cubic"}, "linear, nearest"),
        ({"border": "black"}, "or a modality value"),
        ({"fit": "stretch"}, "auto, crop, pad, squash"),
        ({"hflip": 0.5, "hflip_with_sides": "yes"}, "true or false"),
        ({"hflip": 0.5, "rotate": 5, "order": ["hflip"]}, "every declared op"),
    ],
)
def test_a_wrong_recipe_is_told_what_and_how(config: dict, says: str) -> None:
    with pytest.raises(HilumError, match=says) as caught:
        policy(config)
    unknown = "augment.brightnes" if "brightnes" in config else None  # a key has a place in the recipe's file
    assert caught.value.where == (unknown or "the recipe's augment section") and caught.value.fix


@pytest.mark.parametrize(
    ("order", "fix"),
    [
        (["gamma", "blur"], "write blur before gamma"),
        (["noise", "rotate"], "write rotate before noise"),
        (["brightness", "window"], "write window before brightness"),
        (["noise", "contrast"], "write contrast before noise"),
    ],
)
def test_an_order_that_one_pass_cannot_express_is_refused(order: list[str], fix: str) -> None:
    config = dict.fromkeys(order, 0.1)
    policy(config)  # a mapping has no order, so the usual one holds
    with pytest.raises(HilumError) as caught:
        policy({**config, "order": order})
    assert caught.value.fix == fix


def test_the_order_of_keys_means_nothing_and_order_does() -> None:
    config = {"resized_crop": [0.3, 0.5], "rotate": [20, 30], "hflip": 1.0}
    a, b = (draws(c, source=(80, 100), n=3) for c in (config, dict(reversed(config.items()))))
    assert all(np.array_equal(x.matrix, y.matrix) for x, y in zip(a, b, strict=True))
    before = draws({**config, "order": ["rotate", "resized_crop", "hflip"]}, source=(80, 100), n=1)[0]
    angle = math.atan2(a[0].matrix[0, 1] / a[0].matrix[1, 1], 1)
    assert angle and not np.allclose(before.matrix, a[0].matrix)
    # turning the source about its own centre leaves the centre where the crop alone would see it
    crop = draws({"resized_crop": [0.3, 0.5]}, source=(80, 100), n=1)[0].matrix
    centre_in_crop = geo.map_points(geo.invert(geo.compose(crop, geo.flip((64, 64), 1))), [39.5, 49.5])
    assert geo.map_points(before.matrix, centre_in_crop) == pytest.approx([39.5, 49.5])


def test_a_left_right_flip_is_refused_for_labels_that_name_a_side() -> None:
    with pytest.raises(HilumError, match="left into right") as caught:
        policy({"hflip": 0.5}, lateral=True)
    assert "hflip_with_sides: true" in caught.value.fix
    policy({"hflip": 0}, lateral=True)
    with pytest.raises(HilumError, match="vflip would turn"):  # a mirror as well
        policy({"vflip": 0.5, "rotate": 10}, lateral=True)
    policy({"rotate": 180}, lateral=True)
    allowed = draws({"hflip": 1.0, "hflip_with_sides": True}, lateral=True, n=1)
    assert allowed[0].flips == (1,)


def test_bad_sizes_and_missing_keys_are_named() -> None:
    with pytest.raises(HilumError, match="output size"):
        policy({}, size=0)
    with pytest.raises(HilumError, match="std"):
        Policy({}, size=8, channels=3, mean=0.5, std=(1.0, 0.0, 1.0), train=True)
    with pytest.raises(HilumError, match="mean"):
        Policy({}, size=8, channels=3, mean=(0.5, 0.5), std=1.0, train=True)
    with pytest.raises(HilumError, match="no pixels"):
        policy({}).draw(SampleKey(0, 0, 0), source_size=(0, 5))
    with pytest.raises(HilumError, match="key"):
        policy({"rotate": 5}).draw(None, source_size=(5, 5))


def test_the_plan_explains_itself() -> None:
    p = policy({"resized_crop": [0.5, 1.0], "hflip": 0.5, "blur": [0.1, 1.0], "gamma": 0.2, "noise": 0.02})
    lines = {line.split()[0]: line for line in p.explain().splitlines()}
    assert "resized_crop area 0.5..1" in lines["G"] and "hflip p 0.5" in lines["G"] and "one matrix" in lines["G"]
    assert "blur 0.1..1" in lines["S"] and "gamma 0.8..1.2" in lines["P"] and "noise 0..0.02" in lines["N"]
    told = p.eval().explain()
    assert "fit crop" in told and "hflip" not in told and "gamma" not in told
