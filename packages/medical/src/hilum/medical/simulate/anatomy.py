"""The real chest behind every simulated radiograph: attenuation, organ groups and depth under the chest wall.

Made by ``tools/make_simulator_volume.py`` from the CT of LIDC-IDRI-0001 (CC BY 3.0, see NOTICE beside the file).
Arrays are (y, z, x) with axes to the patient's posterior, foot and left, so ``density[k]`` is a coronal slice as a
radiograph is read. Millimetres count from :attr:`Chest.origin`, the middle of the lungs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError

Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]

FILE = Path(__file__).with_name("chest.npz")
RIGHT_LUNG = ("right upper lobe", "right middle lobe", "right lower lobe")
LEFT_LUNG = ("left upper lobe", "left lower lobe")
LUNGS = {"right": RIGHT_LUNG, "left": LEFT_LUNG}
LOBES = RIGHT_LUNG + LEFT_LUNG


@dataclass(frozen=True)
class Chest:
    """``density`` attenuation relative to water at a chest tube's effective energy, ``group`` organ numbers named in
    ``groups``, ``depth_mm`` distance inward from the chest wall (0 outside the cavity), all (K, Z, X)."""

    density: Volume
    group: NDArray[np.uint8]
    depth_mm: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    groups: dict[str, int]

    def mask(self, names: Iterable[str]) -> Mask:
        return np.isin(self.group, [self.groups[name] for name in names])

    @cached_property
    def lung(self) -> dict[str, Mask]:
        return {side: self.mask(names) for side, names in LUNGS.items()}

    @cached_property
    def both_lungs(self) -> Mask:
        return self.lung["right"] | self.lung["left"]

    @cached_property
    def bone(self) -> Mask:
        return self.mask(["bone"])

    @cached_property
    def origin(self) -> tuple[float, float, float]:
        """Voxel coordinates of the middle of the lungs' bounding box."""
        y, z, x = (float(a.min() + a.max()) / 2 for a in np.nonzero(self.both_lungs))
        return y, z, x

    @cached_property
    def axes_mm(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Millimetres of the voxel centres along y (K,1,1), z (1,Z,1) and x (1,1,X)."""
        y, z, x = (
            ((np.arange(n) - o) * s).astype(np.float32)
            for n, o, s in zip(self.density.shape, self.origin, self.spacing_mm, strict=True)
        )
        return y[:, None, None], z[None, :, None], x[None, None, :]

    @cached_property
    def heart_mm(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centre and half-extent (y, z, x) of the heart."""
        low, high = (
            np.array(
                [
                    np.quantile(axis.ravel()[i], q)
                    for axis, i in zip(self.axes_mm, np.nonzero(self.mask(["heart"])), strict=True)
                ]
            )
            for q in (0.01, 0.99)
        )
        return (low + high) / 2, (high - low) / 2

    @cached_property
    def window(self) -> dict[str, NDArray[np.float32]]:
        """Fraction of the beam's path through the body that is lung of a side, (Z, X): where a finding can be seen."""
        body = np.maximum((self.group > 0).sum(0), 1)
        return {side: (mask.sum(0) / body).astype(np.float32) for side, mask in self.lung.items()}


def density_of(hu: NDArray[np.float32]) -> Volume:
    """Attenuation relative to water. Bone counts more than its HU says: at the 60 to 70 keV of a chest tube calcium
    attenuates about 1.6 times as much, relative to water, as in CT."""
    density = np.clip(1 + hu / 1000, 0, None) + 0.6 * np.clip(hu - 150, 0, None) / 1000
    return density.astype(np.float32)


@lru_cache(maxsize=1)
def load_chest(path: Path = FILE) -> Chest:
    """Read the volume once a process (arrays are read-only)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("code", "group", "depth", "spacing_mm", "groups")}
    except (OSError, KeyError, ValueError) as error:
        raise HilumError(
            f"the simulator's chest cannot be read: {error}",
            where=str(path.name),
            fix="python tools/make_simulator_volume.py",
        ) from error
    density = density_of(10 * arrays["code"].astype(np.float32) - 1024)
    for array in (density, arrays["group"], arrays["depth"]):
        array.setflags(write=False)
    spacing = tuple(float(s) for s in arrays["spacing_mm"])
    return Chest(density, arrays["group"], arrays["depth"], spacing, json.loads(arrays["groups"].tobytes()))  # type: ignore[arg-type]
