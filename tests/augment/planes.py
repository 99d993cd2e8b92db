"""A camera, planes before it and random draws, for tests of what follows an image."""

from __future__ import annotations

import numpy as np
import torch

from hilum.augment.draw import Draw
from hilum.augment.policy import Policy
from hilum.core.types import SampleKey

SOURCE = (120, 160)
K = np.array([[150.0, 0, 81.3], [0, 140.0, 57.9], [0, 0, 1]])
GEOMETRY = {
    "resized_crop": {"area": [0.3, 1.0], "aspect": [1, 1]},
    "hflip": 0.5,
    "affine": {"rotate": 30, "scale": [0.8, 1.5]},
}


def draws(
    n: int, size: int | tuple[int, int] = 96, config: dict | None = None, source: tuple[int, int] = SOURCE
) -> list[Draw]:
    p = Policy(config or GEOMETRY, size=size, channels=1, mean=0.0, std=1.0, train=True)
    return [p.draw(SampleKey(11, 0, i), source_size=source) for i in range(n)]


def rays(K: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) points at z = 1 seen by the pixels."""
    y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in size), indexing="ij")
    return np.stack((x, y, np.ones_like(x)), -1) @ np.linalg.inv(K).T


def plane(rng: np.random.Generator, K: np.ndarray = K, size: tuple[int, int] = SOURCE):
    """A tilted plane n X = d before the camera, and its z (1, H, W)."""
    n = np.array([*rng.uniform(-0.35, 0.35, 2), -1.0])
    n /= np.linalg.norm(n)
    d = -rng.uniform(0.8, 2.0)
    return n, d, torch.from_numpy(d / (rays(K, size) @ n))[None].float()
