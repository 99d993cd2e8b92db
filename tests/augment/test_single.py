"""One image without a recipe: any kind of image gives the loader's pixels, and parameters give them again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hilum.augment import reference
from hilum.augment.policy import Policy
from hilum.augment.single import augment, replay, stored_of
from hilum.core.errors import HilumError
from hilum.core.types import Meta, SampleKey, Window

CONFIG = {"resized_crop": [0.4, 1.0], "rotate": 20, "hflip": 0.5, "contrast": 0.3, "blur": [0.1, 1.5], "noise": 0.1}
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
RGB = RNG.integers(0, 256, (41, 29, 3), dtype=np.uint8)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_every_kind_of_image_gives_what_the_loader_gives(backend: str) -> None:
    for array in (GREY, RGB):
        stored = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
        policy = Policy(CONFIG, size=16, channels=len(stored), mean=0.5, std=0.25, train=True)
        draw = policy.draw(SampleKey(3, 1, 9), source_size=stored.shape[1:])
        expected = reference.apply([stored], [draw], [Meta("0", "")], policy)[0]
        about = {"size": 16, "seed": 3, "epoch": 1, "sample": 9, "mean": 0.5, "std": 0.25, "backend": backend}
        for image in (array, Image.fromarray(array), stored):
            made, params = augment(image, CONFIG, **about)
            np.testing.assert_allclose(made, expected, atol=5e-5)
            told = json.loads(json.dumps(params))
            assert torch.equal(replay(image, told, backend=backend), made)


def test_keys_choose_the_draw_and_another_image_is_seen_alike() -> None:
    one, params = augment(GREY, CONFIG, size=24, seed=1)
    assert not torch.equal(one, augment(GREY, CONFIG, size=24, seed=2)[0])
    assert torch.equal(one, augment(GREY, CONFIG, size=24, seed=1)[0])
    other = replay(255 - GREY, params | {"augment": {}, "draw": params["draw"] | {"noise": 0.0, "contrast": 1.0}})
    plain = replay(GREY, params | {"augment": {}, "draw": params["draw"] | {"noise": 0.0, "contrast": 1.0}})
    both = other + plain  # an image and its negative, but for what lies outside
    assert ((both - 1).abs() < 1e-5).float().mean() > 0.5 and both.max() < 1 + 1e-5


def test_evaluation_window_and_wide_values() -> None:
    hounsfield = RNG.integers(-1000, 1000, (8, 8)).astype(np.int16)
    made, params = augment(hounsfield, {"fit": "squash"}, size=8, window=(-160, 240), train=False)
    np.testing.assert_allclose(made[0], ((hounsfield + 160.0) / 400).clip(0, 1), atol=1e-6)
    assert torch.equal(replay(hounsfield, params), made)
    big = augment(hounsfield.astype(">i2"), {"fit": "squash"}, size=8, window=Window(-160, 240), train=False)[0]
    assert torch.equal(big, made)


def test_what_is_no_image_is_refused() -> None:
    for image in (np.zeros((2, 2, 2)), np.zeros((0, 3)), np.zeros(4), np.array([["a"]]), torch.zeros(3, 3)):
        with pytest.raises(HilumError) as told:
            augment(image, {}, size=4)
        assert told.value.where == "image" and told.value.fix
    with pytest.raises(HilumError, match="black and white"):
        augment(np.zeros((4, 4), np.uint16), {}, size=4)
    with pytest.raises(HilumError, match="mode P"):
        augment(Image.fromarray(GREY).convert("P"), {}, size=4)
    with pytest.raises(HilumError, match="3 channels cannot become 2"):
        augment(RGB, {}, size=4, channels=2)
    with pytest.raises(HilumError, match="no parameters"):
        replay(GREY, {"draw": augment(GREY, {}, size=4)[1]["draw"]})
    with pytest.raises(HilumError, match="name a side"):
        augment(GREY, {"hflip": 0.5}, size=4, lateral=True)
    assert stored_of(GREY).shape == (1, 37, 53)
