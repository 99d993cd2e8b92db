"""The in-graph transform equals the evaluation path and, where there is a closed form, the closed form."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from hilum.core.types import Pixels, Window
from hilum.verbs.deployed import Preprocessing
from hilum.verbs.onnx_graph import InGraph

PLAIN = Preprocessing("image", (32, 32), 3, (0.5, 0.45, 0.4), (0.25, 0.2, 0.3), "squash", 0.0, "linear", None)
SIZES = [(32, 32), (33, 31), (17, 23), (2, 3), (128, 96), (64, 65), (41, 300), (500, 90), (29, 640)]


def clouds(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 1000.0, size).astype(np.float32)


def in_graph(p: Preprocessing, *images: np.ndarray, lo: float = -1500.0, hi: float = 1700.0) -> torch.Tensor:
    x = torch.from_numpy(np.stack(images))[:, None]
    n = len(images)
    return InGraph(p)(x, torch.full((n,), (lo + hi) / 2), torch.full((n,), hi - lo))


def normalised(shown: np.ndarray, p: Preprocessing) -> torch.Tensor:
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (p.mean, p.std))
    return torch.from_numpy(((shown.clip(0, 1) - mean) / std).astype(np.float32))[None]


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("border", ["background", -300.0, "border", "reflect"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_equals_the_evaluation_path(fit: str, border: str | float, interpolation: str) -> None:
    for (side, out), size in itertools.product(((None, (32, 32)), (64, (24, 40))), SIZES):
        p = replace(PLAIN, fit=fit, border=border, interpolation=interpolation, cache_side=side, size=out)
        x = clouds(size)
        expected = p.batch([Pixels(x[None], window=Window(-1500.0, 1700.0))]).views["image"]
        assert (in_graph(p, x) - expected).abs().max() < 5e-6, (side, out, size)


def test_an_image_of_the_output_size_is_only_windowed() -> None:
    x = clouds((32, 32))
    for fit in ("pad", "squash"):
        got = in_graph(replace(PLAIN, fit=fit), x)
        torch.testing.assert_close(got, normalised((x + 1500) / 3200, PLAIN), rtol=0, atol=2e-6)


def test_twice_the_size_is_the_mean_of_two_by_two() -> None:
    x = clouds((64, 64))
    mean = x.reshape(32, 2, 32, 2).mean((1, 3))
    torch.testing.assert_close(in_graph(PLAIN, x), normalised((mean + 1500) / 3200, PLAIN), rtol=0, atol=2e-6)


def test_the_cache_s_average_comes_first() -> None:
    x = clouds((96, 96))  # to 64 by area, pixel i covers [1.5 i, 1.5 i + 1.5), then two by two
    edges = np.arange(65) * 1.5
    shares = (np.clip(edges[1:, None] - np.arange(96), 0, 1) - np.clip(edges[:-1, None] - np.arange(96), 0, 1)) / 1.5
    reduced = (shares @ x @ shares.T).reshape(32, 2, 32, 2).mean((1, 3))
    got = in_graph(replace(PLAIN, cache_side=64), x)
    torch.testing.assert_close(got, normalised(((reduced + 1500) / 3200).astype(np.float32), PLAIN), rtol=0, atol=5e-6)


def test_padding_shows_the_median_of_the_outermost_pixels() -> None:
    x = clouds((16, 32))
    ring = np.concatenate([x[0], x[-1], x[1:-1, 0], x[1:-1, -1]])
    got = in_graph(replace(PLAIN, fit="pad", border="background"), x)
    shown = np.full((3, 7, 32), (np.median(ring) + 1500) / 3200, np.float32)
    torch.testing.assert_close(got[:, :, :7], normalised(shown, PLAIN), rtol=0, atol=2e-6)


def test_a_window_of_width_zero_is_a_step_and_a_negative_one_inverts() -> None:
    x = clouds((32, 32))
    torch.testing.assert_close(in_graph(PLAIN, x, lo=100.0, hi=100.0), normalised((x > 100).astype(np.float32), PLAIN))
    shown = (x - 1700) / -3200
    torch.testing.assert_close(in_graph(PLAIN, x, lo=1700.0, hi=-1500.0), normalised(shown, PLAIN), rtol=0, atol=2e-6)


def test_an_inverted_image_with_its_mirrored_window_is_the_negative() -> None:
    p = replace(PLAIN, mean=(0.5,) * 3, std=(0.25,) * 3, fit="pad", border="background", cache_side=64)
    x = clouds((90, 70))
    torch.testing.assert_close(in_graph(p, -x, lo=-1700.0, hi=1500.0), -in_graph(p, x), rtol=0, atol=5e-6)


def test_rows_do_not_depend_on_their_batch() -> None:
    p = replace(PLAIN, fit="pad", border="background", cache_side=64)
    images = [clouds((80, 130), seed) for seed in range(3)]
    together = in_graph(p, *images)
    for i, image in enumerate(images):
        torch.testing.assert_close(together[i : i + 1], in_graph(p, image), rtol=0, atol=1e-6)


def test_preprocessing_survives_json() -> None:
    p = replace(PLAIN, border="background", cache_side=64, size=(24, 40))
    assert Preprocessing.from_json(p.to_json()) == p
