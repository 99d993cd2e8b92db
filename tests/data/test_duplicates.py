"""Near copies are found and different pictures are not; exact copies make groups one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake.studies import sample_id, write_study
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.data.duplicates import (
    MIN_NCC,
    Sets,
    difference_hash,
    exact_copies,
    high_pass,
    near_copies,
    thumbnail,
)


def picture(seed: int, side: int = 320) -> np.ndarray:
    """A smooth anatomy-like picture: what all share (a bright frame, two dark fields) and what only one has."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    common = 120 - 60 * np.exp(-(((x - 0.3) / 0.15) ** 2 + ((y - 0.5) / 0.3) ** 2))
    common -= 60 * np.exp(-(((x - 0.7) / 0.15) ** 2 + ((y - 0.5) / 0.3) ** 2))
    own = np.zeros((side, side))
    for _ in range(40):
        cy, cx, r = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.02, 0.06)
        own += rng.uniform(-60, 60) * np.exp(-(((x - cx) / r) ** 2 + ((y - cy) / r) ** 2))
    return np.clip(common + own + rng.normal(0, 1, (side, side)), 0, 255)


def block_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What coarse quantisation of 8 x 8 cosine blocks does to a picture, as JPEG does."""
    n = np.arange(8)
    basis = np.sqrt(np.where(n == 0, 1, 2) / 8)[:, None] * np.cos(np.pi * (2 * n[None] + 1) * n[:, None] / 16)
    blocks = image.reshape(image.shape[0] // 8, 8, image.shape[1] // 8, 8).swapaxes(1, 2)
    step = 8.0 + 3.0 * (n[:, None] + n[None])
    quantised = np.round(basis @ blocks @ basis.T / step) * step
    return (basis.T @ quantised @ basis).swapaxes(1, 2).reshape(image.shape)


COPIES = {
    "brighter": lambda image, rng: 0.8 * image + 30,
    "noise": lambda image, rng: image + rng.normal(0, 4, image.shape),
    "blocks": block_noise,
    "smaller": lambda image, rng: image.reshape(160, 2, 160, 2).mean((1, 3)),
    "16 bit": lambda image, rng: np.round(image * 257).astype(np.uint16),
}


@pytest.mark.parametrize("kind", COPIES)
def test_every_planted_copy_is_found_and_nothing_else(kind: str) -> None:
    rng = np.random.default_rng(5)
    originals = [picture(s) for s in range(24)]
    copies = [COPIES[kind](image, rng) for image in originals[:12]]
    thumbnails = np.stack([thumbnail(i) for i in [*originals, *copies]])
    parts = [0] * 24 + [2] * 12
    found = near_copies(thumbnails, parts)
    assert {(p.first, p.second) for p in found} == {(i, 24 + i) for i in range(12)}
    assert all(p.ncc > MIN_NCC and p.distance <= 24 for p in found)


def test_only_pairs_across_parts_count() -> None:
    thumbnails = np.stack([thumbnail(picture(0))] * 4)
    assert near_copies(thumbnails, [1, 1, 1, 1]) == []
    assert near_copies(thumbnails, [1, 1, -1, -1]) == []
    assert {(p.first, p.second) for p in near_copies(thumbnails, [1, 2, 1, -1])} == {(0, 1), (2, 1)}


def test_flat_pictures_match_nothing() -> None:
    flat = np.full((2, 64, 64), 40, np.uint8)
    assert not high_pass(flat).any()
    assert near_copies(flat, [0, 1]) == []


def test_blocked_search_equals_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 255, (40, 64, 64)).astype(np.uint8)
    thumbnails[20:] = np.clip(thumbnails[:20].astype(int) + rng.integers(-3, 4, (20, 64, 64)), 0, 255)
    parts = np.array([0] * 20 + [1] * 20)
    bits = np.unpackbits(difference_hash(thumbnails).view(np.uint8), axis=1).astype(int)
    distance = np.abs(bits[:20, None] - bits[None, 20:]).sum(2)
    ncc = high_pass(thumbnails[:20]) @ high_pass(thumbnails[20:]).T
    expected = {(int(i), int(j) + 20) for i, j in np.argwhere((distance <= 24) & (ncc > MIN_NCC))}
    monkeypatch.setattr("hilum.data.duplicates._BLOCK", (7, 5))
    assert {(p.first, p.second) for p in near_copies(thumbnails, parts)} == expected
    assert len(expected) == 20


def test_colour_and_tiny_pictures_have_thumbnails() -> None:
    colour = np.stack([picture(1)] * 3, -1)
    np.testing.assert_array_equal(thumbnail(colour), thumbnail(picture(1)))
    assert thumbnail(np.arange(12.0).reshape(3, 4)).shape == (64, 64)


def test_real_radiographs_are_told_apart(real_data: Path) -> None:
    from PIL import Image

    files = sorted((real_data / "medical" / "cxr_kermany" / "images").iterdir())[:60]
    images = [np.asarray(Image.open(f).convert("L"), float) for f in files]
    rng = np.random.default_rng(0)
    changed = [np.clip(0.9 * i + 12 + rng.normal(0, 3, i.shape), 0, 255) for i in images[:20]]
    found = near_copies(np.stack([thumbnail(i) for i in [*images, *changed]]), [0] * 60 + [1] * 20)
    assert {(p.first, p.second) for p in found} == {(i, 60 + i) for i in range(20)}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=15))
def test_sets_are_the_connected_components(pairs: list[tuple[int, int]]) -> None:
    sets = Sets(10)
    for a, b in pairs:
        sets.join(a, b)
    reach = np.eye(10, dtype=bool)
    for a, b in pairs:
        reach[a, b] = reach[b, a] = True
    for _ in range(4):
        reach = reach @ reach
    assert {tuple(m.tolist()) for m in sets.all()} == {tuple(np.flatnonzero(r).tolist()) for r in reach}
    assert sets.roots().tolist() == [int(np.flatnonzero(r)[0]) for r in reach]


def test_exact_copies_by_hash_shape_and_mark(tmp_path: Path) -> None:
    study = write_study(
        tmp_path,
        list("abcdefgh"),
        stored_sha256=["1", "1", "2", "2", "3", "4", "5", "5"],
        rows=[8, 8, 8, 9, 8, 8, 8, 8],
        max=[1.0] * 6 + [0.0] * 2,  # g and h are black
        duplicate_of=[None, sample_id("img00000"), None, None, None, sample_id("img00004"), None, None],
        status=["indexed"] * 8,
    )
    assert [m.tolist() for m in exact_copies(study)] == [[0, 1], [4, 5]]
