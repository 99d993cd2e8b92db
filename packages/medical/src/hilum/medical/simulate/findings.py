"""The five findings, each put into the volume where disease would be and projected with everything else.

A nodule is soft tissue in aerated lung; an effusion is water in the dependent part of a pleural space, rising
towards the wall; a pneumothorax is air between the chest wall and a lung edge, most at the apex; a consolidation
fills the air of one lobe; cardiomegaly enlarges the heart (a bend of the volume, :class:`.projection.Shape`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .anatomy import LUNGS, Chest, Mask, Volume
from .chance import generator
from .projection import linear

FINDINGS = ("nodule", "effusion", "cardiomegaly", "pneumothorax", "consolidation")
PREVALENCE: Mapping[str, float] = dict.fromkeys(FINDINGS, 0.3)
Point = tuple[float, float, float]
SIDES = ("right", "left")
FLUID = 1.03


@dataclass(frozen=True)
class Finding:
    """``size_mm``: diameter (nodule, consolidation), height of the fluid, width of the air at the apex; for
    cardiomegaly the heart's linear growth in percent. ``strength``: density reached, 1 = water (for a pneumothorax:
    how sharp the lung's edge stands out). ``centres_mm`` (y, z, x) of each nodule or of the consolidation. ``salt``
    keys its texture."""

    name: str
    side: str = ""
    lobe: str = ""
    size_mm: float = 0.0
    strength: float = 1.0
    centres_mm: tuple[Point, ...] = ()
    salt: str = ""

    @property
    def zone(self) -> str:
        """Third of the lung in which the (first) centre lies."""
        height = self.centres_mm[0][1] if self.centres_mm else 0.0
        return "upper" if height < -32 else "middle" if height < 25 else "lower"


def _place(chest: Chest, where: Mask, rng: np.random.Generator, *, count: int = 1) -> tuple[Point, ...]:
    voxels = np.stack(np.unravel_index(rng.choice(np.flatnonzero(where), count), where.shape), axis=-1)
    return tuple(
        tuple(float(axis.ravel()[i]) for axis, i in zip(chest.axes_mm, voxel, strict=True))  # type: ignore[misc]
        for voxel in voxels
    )


def draw_finding(name: str, chest: Chest, rng: np.random.Generator, *, salt: str) -> Finding:
    """A finding of random side, size, place and subtlety."""
    side = str(rng.choice(SIDES))
    if name == "nodule":
        diameter, count = float(rng.uniform(22, 38)), int(rng.integers(1, 6))
        where = chest.lung[side] & (chest.window[side] > 0.45) & (chest.depth_mm > 0.3 * diameter)
        return Finding(
            name, side, "", diameter, float(rng.uniform(1.3, 2.6)), _place(chest, where, rng, count=count), salt
        )
    if name == "consolidation":
        lobe = str(rng.choice(LUNGS[side]))
        where = chest.mask([lobe]) & (chest.window[side] > 0.45)
        return Finding(
            name,
            side,
            lobe,
            float(rng.uniform(85, 150)),
            float(rng.uniform(0.8, 1.0)),
            _place(chest, where, rng),
            salt,
        )
    if name == "effusion":
        return Finding(name, side, "", float(rng.uniform(40, 105)), FLUID, salt=salt)
    if name == "pneumothorax":
        return Finding(name, side, "", float(rng.uniform(30, 66)), float(rng.uniform(0.4, 0.7)), salt=salt)
    return Finding(name, size_mm=float(rng.uniform(26, 52)), salt=salt)


def _reach(chest: Chest, finding: Finding) -> NDArray[np.float32]:
    """Distance in mm of every voxel from the finding's nearest centre."""
    nearest = np.full(chest.density.shape, np.inf, np.float32)
    for centre in finding.centres_mm:
        dy, dz, dx = (axis - c for axis, c in zip(chest.axes_mm, centre, strict=True))
        np.minimum(nearest, dy**2 + dz**2 + dx**2, out=nearest)
    return np.sqrt(nearest)


def _roughness(chest: Chest, finding: Finding, scale_mm: float) -> NDArray[np.float32]:
    """Smooth noise of unit variance over the volume, drawn on a grid of ``scale_mm``."""
    counts = [
        max(2, int(np.ceil(n * s / scale_mm)) + 1) for n, s in zip(chest.density.shape, chest.spacing_mm, strict=True)
    ]
    coarse = generator(finding.salt, finding.name, "roughness").standard_normal(counts, dtype=np.float32)
    noise = coarse
    for axis, count in enumerate(chest.density.shape):
        noise = np.moveaxis(np.tensordot(linear(counts[axis], count), noise, (1, axis)), 0, axis)
    return np.asarray(noise / noise.std(), np.float32)


def _blend(density: Volume, weight: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]] | float) -> None:
    density += weight * (target - density)


def _nodule(density: Volume, chest: Chest, finding: Finding) -> Mask:
    radius = finding.size_mm / 2 * (1 + 0.08 * _roughness(chest, finding, 9))
    weight = np.clip((radius - _reach(chest, finding)) / 3 + 0.5, 0, 1)
    _blend(density, weight, finding.strength)
    return weight > 0.5


def _consolidation(density: Volume, chest: Chest, finding: Finding) -> Mask:
    noise = _roughness(chest, finding, 22)
    weight = np.clip((finding.size_mm / 2 * (1 + 0.22 * noise) - _reach(chest, finding)) / 14 + 0.5, 0, 1)
    weight *= chest.mask([finding.lobe])
    # Airways and spared lobules stay aerated: the filling is patchy, and what was dense stays denser.
    _blend(density, weight, (finding.strength * np.clip(1 + 0.25 * noise, 0.3, 1.3) + 0.4 * density).clip(max=FLUID))
    return weight > 0.5


def _effusion(density: Volume, chest: Chest, finding: Finding) -> Mask:
    lung, z = chest.lung[finding.side], chest.axes_mm[1]
    bottom = float(z.ravel()[np.flatnonzero(lung.any(axis=(0, 2)))[-1]])
    # Surface tension and recoil draw the fluid up along the wall, all around: the upper edge is a curve that fades.
    rise = 0.7 * finding.size_mm * np.exp(-chest.depth_mm.astype(np.float32) / 18)
    weight = np.clip((z - (bottom - 0.85 * finding.size_mm - rise)) / 16 + 0.5, 0, 1) * lung
    _blend(density, weight, finding.strength)
    return weight > 0.5


def _pneumothorax(density: Volume, chest: Chest, finding: Finding) -> Mask:
    lung, z = chest.lung[finding.side], chest.axes_mm[1]
    rows = z.ravel()[np.flatnonzero(lung.any(axis=(0, 2)))]
    down = np.clip((z - rows[0]) / (rows[-1] - rows[0]), 0, 1)
    edge = finding.size_mm * (1 - 0.8 * down) - chest.depth_mm  # > 0: in the air
    air = lung & (edge > 0)
    rest = lung & ~air
    squeezed = 1 + air.sum() / max(int(rest.sum()), 1)  # the same tissue in less space
    density[rest] = np.minimum(density[rest] * squeezed, np.maximum(density[rest], 0.9))
    density[air] = 0.002
    density[lung & (np.abs(edge) <= 1.5)] += finding.strength  # visceral pleura, seen edge-on
    return np.asarray(air)


INSERT = {"nodule": _nodule, "consolidation": _consolidation, "effusion": _effusion, "pneumothorax": _pneumothorax}
# Collapse and filling first, so that a nodule in a lung with fluid is still there.
ORDER = ("consolidation", "pneumothorax", "nodule", "effusion")


def insert(density: Volume, chest: Chest, findings: Mapping[str, Finding]) -> tuple[Volume, dict[str, Mask]]:
    """``density`` (K, Z, X) with the findings in it, as a new array, and where each of them lies."""
    changed, masks = density.copy(), {}
    for name in ORDER:
        if name in findings:
            masks[name] = INSERT[name](changed, chest, findings[name])
    if "cardiomegaly" in findings:
        masks["cardiomegaly"] = chest.mask(["heart"])
    return changed, masks
