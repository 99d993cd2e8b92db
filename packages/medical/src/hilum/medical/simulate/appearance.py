"""From line integrals to the picture a workstation would show: noise, equalisation, tone, collimation, marker."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Plane = NDArray[np.float32]
WATER_PER_MM = 0.019  # linear attenuation of water near 65 keV
MARKERS = {  # lead letters, 5 x 7
    "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
}


@dataclass(frozen=True)
class Exposure:
    """``level`` and ``spread`` of the brightness, ``flatten`` and ``sharpen`` of the processing, ``gamma``, detected
    photons a pixel through air, fractions of the field that the collimator hides (top, bottom, left, right), the
    letter of the marker and where it stands."""

    level: float
    spread: float
    flatten: float
    sharpen: float
    gamma: float
    photons: float
    collimator: tuple[float, float, float, float]
    marker: str
    marker_at: tuple[float, float]
    salt: int


def draw_exposure(rng: np.random.Generator) -> Exposure:
    closed = bool(rng.random() < 0.35)
    margins = tuple(float(v) for v in rng.uniform(0, 0.06, 4) * closed)
    marker = str(rng.choice(["L", "R", ""], p=[0.5, 0.25, 0.25]))
    return Exposure(
        level=float(rng.uniform(0.44, 0.56)),
        spread=float(rng.uniform(0.19, 0.26)),
        flatten=float(rng.uniform(0.55, 0.8)),
        sharpen=float(rng.uniform(1.0, 1.6)),
        gamma=float(np.exp(rng.normal(0, 0.1))),
        photons=float(np.exp(rng.uniform(np.log(2e4), np.log(2e5)))),
        collimator=margins,  # type: ignore[arg-type]
        marker=marker,
        marker_at=(float(rng.uniform(0.05, 0.12)), float(rng.uniform(0.05, 0.12))),
        salt=int(rng.integers(1 << 32)),
    )


def _stamp(image: Plane, exposure: Exposure) -> None:
    """A lead letter in the upper corner of its own side; the patient's right is on the left of the picture."""
    scale = max(1, round(min(image.shape) / 160))
    letter = np.kron(
        np.array([[c == "1" for c in row] for row in MARKERS[exposure.marker]]), np.ones((scale, scale), bool)
    )
    top = int(exposure.marker_at[0] * image.shape[0])
    left = int(exposure.marker_at[1] * image.shape[1])
    if exposure.marker == "L":
        left = image.shape[1] - left - letter.shape[1]
    image[top : top + letter.shape[0], left : left + letter.shape[1]][letter] = 1.0


def develop(water_mm: Plane, exposure: Exposure, *, pixel_mm: float) -> Plane:
    """Brightness (H, W) in [0, 1], dense tissue bright, of line integrals ``water_mm`` (H, W).

    Mean and spread of the field are set to the exposure's own numbers, as automatic exposure control and processing
    do: what is in the chest cannot be read off them.
    """
    rng = np.random.default_rng(np.random.Philox(key=exposure.salt))
    log = WATER_PER_MM * water_mm
    # Quantum noise: the variance of log counts is one over the counts, most behind the mediastinum.
    log = log + rng.standard_normal(log.shape, dtype=np.float32) * np.sqrt(np.exp(log) / exposure.photons)
    broad = ndimage.gaussian_filter(log, 22 / pixel_mm, mode="nearest", truncate=2.5)
    fine = ndimage.gaussian_filter(log, 1.8 / pixel_mm, mode="nearest")
    image = exposure.flatten * broad + (fine - broad) + exposure.sharpen * (log - fine)
    image = (image - image.mean()) / image.std()
    # The film's S-shaped curve keeps detail at both ends.
    image = 1 / (1 + np.exp(-(image * 4 * exposure.spread + 4 * (exposure.level - 0.5))))
    image = (image**exposure.gamma).astype(np.float32)
    if exposure.marker:
        _stamp(image, exposure)
    (rows, columns), hidden = image.shape, exposure.collimator
    top, bottom, left, right = (round(m * n) for m, n in zip(hidden, (rows, rows, columns, columns), strict=True))
    shade: Plane = np.zeros_like(image)
    shade[top : rows - bottom, left : columns - right] = image[top : rows - bottom, left : columns - right]
    return shade
