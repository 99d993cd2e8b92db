"""Projecting a chest onto a detector: every coronal plane is magnified, sheared, bent and added up.

A point source throws each plane y = const onto the detector as a similarity whose magnification is source distance
over (source distance - distance of the plane to the detector). Small turns of the patient move the planes against
each other: a turn about the long axis shifts plane y sideways by y tan(yaw), a lean shifts it up or down; this is
the shear-warp factorisation (Lacroute and Levoy, SIGGRAPH 1994), exact to first order in the angles. Habitus,
organ shape, heart size and inspiration bend the planes. All of it is one sampling position per plane and pixel,
so that the volume is interpolated once; positions are smooth, hence computed on a coarse lattice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from .anatomy import Chest, Volume

LATTICE = 33
AIR_GAP_MM = {"PA": 25.0, "AP": 45.0}  # from the skin to the detector; a cassette lies behind a mattress
Waves = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """A patient's body. ``scale`` (y, z, x) habitus; ``waves`` (2, 3, 4, 4) millimetres of the first cosines along
    y, z, x by which z and x are displaced; ``heart`` linear size of the heart, 1 as in the CT."""

    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    waves: Waves | None = None
    heart: float = 1.0


@dataclass(frozen=True)
class Pose:
    """How a patient stands in one exposure. Degrees; ``shift_mm`` (z, x); ``breath_mm`` how far the diaphragm stands
    below the CT's (deep inspiration, as in CT, is 0); ``source_mm`` from focus to detector."""

    view: Literal["PA", "AP"] = "PA"
    yaw: float = 0.0
    lean: float = 0.0
    roll: float = 0.0
    shift_mm: tuple[float, float] = (0.0, 0.0)
    breath_mm: float = 0.0
    source_mm: float = 1800.0


def smoothstep(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def linear(coarse: int, fine: int) -> NDArray[np.float32]:
    """(fine, coarse) matrix that interpolates linearly between ``coarse`` points, ends on ends."""
    place = np.linspace(0, coarse - 1, fine)
    return np.asarray(np.clip(1 - np.abs(place[:, None] - np.arange(coarse)), 0, 1), np.float32)


def depth_at(chest: Chest, *points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Millimetres under the chest wall at points (y, z, x), 0 outside the cavity."""
    scale = zip(points, chest.spacing_mm, chest.origin, strict=True)
    voxels = [np.asarray(p / s + o, np.float32) for p, s, o in scale]
    return ndimage.map_coordinates(chest.depth_mm, voxels, np.float64, order=1)  # type: ignore[no-any-return]


def bend(
    chest: Chest, shape: Shape, pose: Pose, y: NDArray[np.float64], z: NDArray[np.float64], x: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where in the CT (z, x in mm) the tissue at (y, z, x) of this patient comes from."""
    if shape.waves is not None:
        extents = [float(np.abs(axis).max()) for axis in chest.axes_mm]
        bases = [
            np.stack([np.cos(np.pi * n * (a / e + 1) / 2) for n in range(count)])
            for a, e, count in zip((y, z, x), extents, shape.waves.shape[1:], strict=True)
        ]
        along_x = np.tensordot(shape.waves, bases[2], 1)  # (2, 3, 4, points)
        along_zx = (along_x * bases[1]).sum(2)
        dz, dx = (along_zx * bases[0]).sum(1)
        z, x = z + dz, x + dx
    # Breathing: nothing moves in the upper half of the lungs, all of the abdomen moves alike.
    z = z - pose.breath_mm * smoothstep(z / 90)
    # The heart grows about its lower right corner (it rests on the diaphragm and grows to the left), fading out
    # towards the chest wall and away from the heart along the beam.
    (cy, cz, cx), (ry, rz, rx) = chest.heart_mm
    anchor_z, anchor_x = cz + 0.35 * rz, cx - 0.55 * rx
    distance = np.hypot((z - cz) / rz, (x - cx) / rx)
    weight = (1 - smoothstep((distance - 1.0) / 1.1)) * (1 - smoothstep((np.abs(y - cy) - 0.8 * ry) / 30))
    weight = weight * smoothstep(depth_at(chest, y, z, x) / 32)
    pull = (1 - 1 / shape.heart) * weight
    return z - pull * (z - anchor_z), x - pull * (x - anchor_x)


def sampling(chest: Chest, shape: Shape, pose: Pose, size: tuple[int, int], pixel_mm: float) -> torch.Tensor:
    """Positions (K, LATTICE, LATTICE, 2) in the volume, last axis (x, z) in [-1, 1], for detector points spread
    evenly from the first pixel centre to the last."""
    high, wide = ((n - 1) / 2 * pixel_mm for n in size)
    roll = np.deg2rad(pose.roll)
    v, u = np.meshgrid(np.linspace(-high, high, LATTICE), np.linspace(-wide, wide, LATTICE), indexing="ij")
    v, u = np.cos(roll) * v - np.sin(roll) * u, np.sin(roll) * v + np.cos(roll) * u
    y = chest.axes_mm[0].astype(np.float64)
    deep = y * shape.scale[0]
    skin = deep.min() if pose.view == "PA" else deep.max()  # PA: the chest faces the detector
    magnification = pose.source_mm / (pose.source_mm - np.abs(deep - skin) - AIR_GAP_MM[pose.view])
    z = (v / magnification + np.tan(np.deg2rad(pose.lean)) * deep - pose.shift_mm[0]) / shape.scale[1]
    x = (u / magnification + np.tan(np.deg2rad(pose.yaw)) * deep - pose.shift_mm[1]) / shape.scale[2]
    z, x = bend(chest, shape, pose, np.broadcast_to(y, z.shape), z, x)
    (_, sz, sx), (_, oz, ox), (_, nz, nx) = chest.spacing_mm, chest.origin, chest.density.shape
    positions = np.stack([2 * (x / sx + ox) / (nx - 1) - 1, 2 * (z / sz + oz) / (nz - 1) - 1], axis=-1)
    return torch.from_numpy(positions.astype(np.float32))


def project(volume: Volume, positions: torch.Tensor, size: tuple[int, int], *, step_mm: float) -> NDArray[np.float32]:
    """Line integrals (H, W) of ``volume`` (K, Z, X) along the beam, in millimetres of water where it is a density.

    ``step_mm`` is the distance of the planes. Beyond the volume its outermost voxels continue: what a radiograph
    cuts off is tissue, not air.
    """
    total = torch.zeros(size)
    source = torch.from_numpy(np.ascontiguousarray(volume))[:, None]
    down = torch.from_numpy(linear(LATTICE, size[0]))
    # Columns of (x, z) pairs are spread together: one matrix product a group of planes.
    across = torch.kron(torch.from_numpy(linear(LATTICE, size[1])).T.contiguous(), torch.eye(2))
    for k in range(0, len(source), 4):  # a few planes at a time stay in the cache
        coarse = positions[k : k + 4].flatten(2)
        grid = (torch.matmul(down, coarse) @ across).reshape(-1, *size, 2)
        total += functional.grid_sample(source[k : k + 4], grid, padding_mode="border", align_corners=True)[:, 0].sum(0)
    return (total * step_mm).numpy()
