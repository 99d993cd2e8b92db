"""The reference back-end: one closed form for values, and results that know nothing of their batch."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from hilum.augment import reference
from hilum.augment.policy import Policy
from hilum.augment.sampling import sample
from hilum.core.errors import HilumError
from hilum.core.types import Meta, Ragged, SampleKey, Window

MEAN, STD = (0.5056,), (0.252,)
EVERYTHING = {
    "resized_crop": [0.4, 1.0],
    "hflip": 0.5,
    "affine": {"rotate": 15, "scale": [0.8, 1.1], "p": 0.7},
    "rand": {"n": 2},
    "blur": {"range": [0.1, 1.0], "p": 0.5},
    "window": {"shift": 0.05, "width": 0.1},
    "brightness": 0.2,
    "contrast": 0.2,
    "gamma": 0.2,
    "noise": 0.03,
}


def policy(config: dict, *, size=24, channels: int = 3, train: bool = True) -> Policy:
    return Policy(config, size=size, channels=channels, mean=MEAN, std=STD, train=train)


def meta(i: int = 0, *, window: Window | None = Window(0, 4095), slope=1.0, intercept=0.0, **more) -> Meta:
    extra = {"window": window, "slope": slope, "intercept": intercept, **more}
    return Meta(f"{i * 2654435761 % 2**32:08x}", "g", key=SampleKey(5, 1, i), extra={"image": extra})


def image(height: int, width: int, *, seed: int = 0, channels: int = 1, dtype=torch.uint16) -> torch.Tensor:
    values = torch.rand((channels, height, width), generator=torch.Generator().manual_seed(seed))
    return (values * (255 if dtype == torch.uint8 else 4095)).to(dtype)


def cohort(n: int) -> tuple[list[torch.Tensor], list[Meta]]:
    images = [image(40 + 3 * (i % 7), 61 - 2 * (i % 5), seed=i) for i in range(n)]
    return images, [meta(i, stats={"mean": 1500.0 + i}) for i in range(n)]


def run(p: Policy, images, metas, *, view: int = 0) -> torch.Tensor:
    drawn = [
        p.draw(m.key, source_size=x.shape[1:], view=view, stats=m.extra["image"].get("stats"))
        for x, m in zip(images, metas, strict=True)
    ]
    return reference.apply(images, drawn, metas, p)


def ragged(images: list[torch.Tensor]) -> Ragged:
    rows = [x.permute(1, 2, 0).reshape(-1, len(x)) for x in images]
    return Ragged.of([r.view(torch.int16) for r in rows], grid=[x.shape[1:] for x in images])


def test_a_sample_does_not_know_its_batch() -> None:
    """64 keyed samples in batches of 64, 7 and 1 and in another order: the same bytes each."""
    p, (images, metas) = policy(EVERYTHING), cohort(64)
    whole = run(p, images, metas)
    assert whole.shape == (64, 3, 24, 24) and whole.dtype == torch.float32 and torch.isfinite(whole).all()
    assert len({row.numpy().tobytes() for row in whole}) == 64
    for size in (7, 1):
        parts = [run(p, images[i : i + size], metas[i : i + size]) for i in range(0, 64, size)]
        assert torch.equal(torch.cat(parts), whole)
    order = np.random.default_rng(0).permutation(64)
    assert torch.equal(run(p, [images[i] for i in order], [metas[i] for i in order]), whole[torch.from_numpy(order)])


def test_threads_and_packing_do_not_matter() -> None:
    p, (images, metas) = policy(EVERYTHING, size=224), cohort(4)
    images = [x.view(torch.int16) for x in images]  # 4095 fits
    whole = run(p, images, metas)
    drawn = [p.draw(m.key, source_size=x.shape[1:], stats=m.extra["image"]["stats"]) for x, m in zip(images, metas)]
    assert torch.equal(reference.apply(ragged(images), drawn, metas, p), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert torch.equal(run(p, images, metas), whole)
    finally:
        torch.set_num_threads(threads)


def test_a_replayed_draw_gives_identical_bytes() -> None:
    p, (images, metas) = policy(EVERYTHING), cohort(6)
    drawn = [p.draw(m.key, source_size=x.shape[1:], stats=m.extra["image"]["stats"]) for x, m in zip(images, metas)]
    stored = json.loads(json.dumps([d.to_json() for d in drawn]))
    assert torch.equal(reference.apply(images, drawn, metas, p), reference.apply(images, stored, metas, p))


def test_views_differ() -> None:
    p, (images, metas) = policy(EVERYTHING), cohort(3)
    first, second = run(p, images, metas), run(p, images, metas, view=1)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32])
def test_neutral_parameters_normalise_and_cast_and_nothing_else(dtype: torch.dtype) -> None:
    neutral = {
        "resized_crop": {"area": [1.0, 1.0], "aspect": [1.0, 1.0]},
        "rotate": [0, 0],
        "affine": {"rotate": [0, 0], "translate": [0, 0], "scale": [1, 1], "shear": [0, 0]},
        "rand": {"n": 2, "p": 0.0},
        "blur": [0, 0],
        "window": {"shift": [0, 0], "width": [1, 1]},
        "brightness": [1, 1],
        "contrast": [1, 1],
        "gamma": [1, 1],
        "noise": [0, 0],
    }
    stored = image(32, 32, dtype=dtype)
    m = meta(window=Window(100, 3000), slope=1.5, intercept=-20.0, stats={"mean": 7.0})
    want = ((stored.float() * 1.5 - 20 - 100) / (3000 - 100)).clamp(0, 1)
    want = ((want - torch.tensor(MEAN)) / torch.tensor(STD)).expand(3, 32, 32)
    assert torch.equal(run(policy(neutral, size=32), [stored], [m])[0], want)
    assert torch.equal(run(policy({"fit": "squash"}, size=32, train=False), [stored], [m])[0], want)


def shown(y: torch.Tensor) -> torch.Tensor:
    return y * STD[0] + MEAN[0]


def test_the_window_comes_after_sampling() -> None:
    """Half-way between -1000 and 3000 lies 1000: windowed first, the pixel would be grey, sampled first it is white."""
    stored = torch.tensor([[-1000, 3000], [-1000, 3000]], dtype=torch.int16)[None]
    y = shown(run(policy({"fit": "squash"}, size=(2, 1), train=False), [stored], [meta(window=Window(0, 500))]))
    np.testing.assert_allclose(y, torch.ones_like(y))


def test_the_window_is_an_augmentation_of_modality_values() -> None:
    x = torch.linspace(0, 1000, 64).reshape(1, 8, 8)
    config = {"window": {"shift": [0.1, 0.1], "width": [1.5, 1.5]}, "fit": "squash"}
    for kind in ("linear", "sigmoid"):
        y = shown(run(policy(config, size=8), [x], [meta(window=Window(200, 600, kind))]))[0, 0]
        centre, width = 440.0, 600.0
        z = (x[0] - centre) / width
        want = (z + 0.5).clamp(0, 1) if kind == "linear" else 1 / (1 + torch.exp(-4 * z))
        np.testing.assert_allclose(y, want, atol=1e-6, rtol=0)
    table = tuple(float(v) for v in np.linspace(0, 1, 401) ** 2)
    y = shown(run(policy(config, size=8), [x], [meta(window=Window(200, 600, "table", table))]))[0, 0]
    want = ((x[0] - 400 - 40.1) / 1.5 + 200).clamp(0, 400).div(400) ** 2
    np.testing.assert_allclose(y, want, atol=0.006, rtol=0)


def test_brightness_contrast_gamma_follow_their_formulas_in_order() -> None:
    x = torch.linspace(0, 1, 64).reshape(1, 8, 8)
    m = meta(window=Window(0, 1), stats={"mean": 0.3})
    config = {"brightness": [1.3, 1.3], "contrast": [0.7, 0.7], "gamma": [1.6, 1.6], "fit": "squash"}
    y = shown(run(policy(config, size=8), [x], [m]))[0, 0]
    want = (((1.3 * x[0] - 0.3) * 0.7 + 0.3).clamp(min=0) ** 1.6).clamp(0, 1)
    np.testing.assert_allclose(y, want, atol=1e-6, rtol=0)
    order = ["gamma", "contrast", "brightness"]
    y = shown(run(policy({**config, "order": order}, size=8), [x], [m]))[0, 0]
    np.testing.assert_allclose(y, (1.3 * ((x[0] ** 1.6 - 0.3) * 0.7 + 0.3)).clamp(0, 1), atol=1e-6, rtol=0)


def test_contrast_turns_about_the_stored_mean_as_displayed_whatever_the_crop() -> None:
    x = image(40, 40)
    m = meta(window=Window(1000, 3000), slope=2.0, intercept=-500.0, stats={"mean": 1400.0})
    crop = {"resized_crop": [0.1, 0.2], "hflip": 0.5}
    plain = shown(run(policy(crop), [x], [m]))
    turned = shown(run(policy({**crop, "contrast": [0.5, 0.5]}), [x], [m]))
    np.testing.assert_allclose(turned, (plain - 0.2) * 0.5 + 0.2, atol=1e-6, rtol=0)
    unknown = shown(
        run(
            policy({**crop, "contrast": [0.5, 0.5]}),
            [x],
            [meta(window=Window(1000, 3000), slope=2.0, intercept=-500.0)],
        )
    )
    np.testing.assert_allclose(unknown, (plain - 0.5) * 0.5 + 0.5, atol=1e-6, rtol=0)


def test_slope_and_intercept_commute_with_sampling() -> None:
    stored = image(50, 40)
    config = {"resized_crop": [0.4, 0.9], "rotate": [5, 25], "blur": 1.0, "border": 800.0}
    y = run(policy(config), [stored], [meta(window=Window(-500, 5000), slope=-1.5, intercept=4000.0)])
    modality = stored.float() * -1.5 + 4000
    np.testing.assert_allclose(y, run(policy(config), [modality], [meta(window=Window(-500, 5000))]), atol=1e-5, rtol=0)


def test_outside_is_the_stored_background_or_black_or_as_told() -> None:
    stored = torch.full((1, 10, 30), 2000, dtype=torch.uint16)
    corner = lambda config, m: float(
        shown(run(policy({"fit": "pad", **config}, size=30, train=False), [stored], [m]))[0, 0, 0, 0]
    )
    window = Window(1000, 3000)
    assert corner({}, meta(window=window)) == pytest.approx(0, abs=1e-6)
    assert corner({}, meta(window=Window(1000, 3000, "sigmoid"))) < 1e-3
    assert corner({}, meta(window=window, stats={"background": 1500.0})) == pytest.approx(0.25, abs=1e-6)
    assert corner({"border": 2600}, meta(window=window, stats={"background": 1500.0})) == pytest.approx(0.8, abs=1e-6)
    assert corner({"border": "reflect"}, meta(window=window)) == pytest.approx(0.5, abs=1e-6)
    assert corner({"border": 2600, "interpolation": "nearest"}, meta(window=window)) == pytest.approx(0.8, abs=1e-6)
    inverted = meta(window=Window(-3000, -1000), slope=-1.0)  # MONOCHROME1 folded in: larger is brighter
    assert corner({}, inverted) == pytest.approx(0, abs=1e-6)


def test_noise_has_its_deviation_belongs_to_output_pixels_and_is_clipped() -> None:
    flat = torch.full((1, 64, 64), 0.5)
    config = {"noise": [0.05, 0.05], "fit": "squash"}
    fields = [
        shown(run(policy(config, size=64, channels=1), [flat], [meta(i, window=Window(0, 1))]))[0, 0] - 0.5
        for i in range(4)
    ]
    values = torch.stack(fields).numpy().ravel() / 0.05
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(fields[0].ravel(), fields[1].ravel())[0, 1]) < 0.06
    # another source, another crop, the same key: the same field
    other = run(
        policy({**config, "hflip": 1.0, "border": "border"}, size=64, channels=1),
        [torch.full((1, 90, 70), 0.5)],
        [meta(0, window=Window(0, 1))],
    )
    np.testing.assert_allclose(shown(other)[0, 0] - 0.5, fields[0], atol=1e-6, rtol=0)
    loud = shown(run(policy({"noise": [2.0, 2.0], "fit": "squash"}, size=64), [flat], [meta(window=Window(0, 1))]))
    assert float(loud.min()) > -1e-6 and float(loud.max()) < 1 + 1e-6
    assert torch.equal(loud[0, 0], loud[0, 2])  # one channel of noise, copied


def test_channels_are_replicated_or_weighed_into_grey() -> None:
    colour = image(20, 20, channels=3, dtype=torch.uint8)
    kept = shown(run(policy({"fit": "squash"}, size=20, train=False), [colour], [meta(window=None)]))[0]
    np.testing.assert_allclose(kept, colour / 255.0, atol=1e-6, rtol=0)
    grey = shown(run(policy({"fit": "squash"}, size=20, channels=1, train=False), [colour], [meta(window=None)]))[0, 0]
    want = (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255
    np.testing.assert_allclose(grey, want, atol=1e-6, rtol=0)
    with pytest.raises(HilumError, match="2 channels cannot become 3"):
        run(policy({}, train=False), [image(5, 5, channels=2)], [meta()])


def test_images_without_a_window_are_read_by_type_or_refused() -> None:
    p = policy({"fit": "squash"}, size=12, train=False)
    x = image(12, 12)
    by_range = run(p, [x], [meta(window=None, stats={"p005": 10.0, "p995": 4000.0, "lo": 0.0, "hi": 4095.0})])
    assert torch.equal(by_range, run(p, [x], [meta(window=Window(10, 4000))]))
    as_mapping = run(p, [x], [meta(window={"lo": 10, "hi": 4000, "kind": "linear"})])
    assert torch.equal(by_range, as_mapping)
    with pytest.raises(HilumError, match="black and white") as caught:
        run(p, [x], [meta(window=None)])
    assert "sample 00000000" in caught.value.where


def test_mismatches_are_named() -> None:
    p = policy({})
    d = p.draw(SampleKey(0, 0, 0), source_size=(10, 12))
    with pytest.raises(HilumError, match="does not fit its draw"):
        reference.apply([image(12, 10)], [d], [meta()], p)
    with pytest.raises(HilumError, match="1 images, 2 draws"):
        reference.apply([image(10, 12)], [d, d], [meta()], p)
    with pytest.raises(HilumError, match="no rescaling"):
        reference.apply([image(10, 12)], [d], [meta(slope=0.0)], p)
    with pytest.raises(HilumError, match="need their sizes"):
        reference.apply(Ragged.of([torch.zeros(120, 1)]), [d], [meta()], p)


def test_geometry_is_the_public_sampler() -> None:
    """apply = window and normalise of what the oracle samples through the drawn matrix."""
    p, (images, metas) = policy({"resized_crop": [0.3, 1.0], "rotate": 20, "blur": 1.5}, channels=1), cohort(5)
    for x, m in zip(images, metas, strict=True):
        d = p.draw(m.key, source_size=x.shape[1:])
        want = (sample(x, d.matrix, d.size, border=0.0, sigma=d.sigma) / 4095).clamp(0, 1)
        np.testing.assert_allclose(shown(reference.apply([x], [d], [m], p))[0], want, atol=1e-6, rtol=0)
    assert math.isfinite(float(want.sum()))


def test_a_flat_image_stays_flat_through_geometry_and_blur() -> None:
    config = {
        "resized_crop": [0.1, 1.0],
        "affine": {"rotate": 40, "scale": [0.5, 1.5], "shear": 10},
        "blur": [0.0, 3.0],
    }
    p = policy({**config, "border": "reflect"})
    for i, size in enumerate([(1, 1), (1, 90), (37, 200), (400, 31), (700, 900)]):
        flat = torch.full((1, *size), 1234, dtype=torch.uint16)
        np.testing.assert_allclose(shown(run(p, [flat], [meta(i)])), 1234 / 4095, atol=1e-6, rtol=0)
