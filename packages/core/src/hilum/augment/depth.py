"""Depth and disparity through their image's draw: sampled without inventing surfaces, then given the right unit.

z is measured along the optical axis (not along the ray). Readings that are 0, negative or not finite are none; they
come out as 0, as does everything outside.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hilum.augment import readings
from hilum.augment.readings import MIN_VALID, Drawn, check_channels, check_how, matrix_of, sample_of
from hilum.core.errors import HilumError
from hilum.parts import geometry as geo

INTERPOLATIONS: Final = ("nearest", "linear", "inverse")
_SIMILAR: Final = 1e-3  # zooms along any two directions that differ by less than this part are one zoom


def metric(
    stored: Tensor, drawn: Drawn, *, unit: float = 1.0, how: str = "nearest", min_valid: float = MIN_VALID
) -> Tensor:
    """z (1, H, W) of any dtype, ``unit`` metres a stored unit -> (1, h, w) float32 metres, for the returned intrinsics.

    z is unchanged by the draw if the view is seen through K' (:func:`hilum.augment.coordinates.intrinsics`). ``how``:
    ``nearest`` invents nothing; ``linear`` averages valid readings (also across edges); ``inverse`` averages 1 / z,
    which is linear over the image of a plane, so that planes stay planes.
    """
    where = sample_of("depth", drawn)
    check_how(how, INTERPOLATIONS, where)
    check_channels(stored, 1, "depth", where)
    if not (math.isfinite(unit) and unit > 0):
        raise HilumError(f"one stored unit of depth is {unit} metres", where=where, fix="above 0")
    valid = _positive(stored)
    if how != "inverse":
        z, _ = readings.read(stored, drawn, valid, how=how, where=where, min_valid=min_valid)
        return z * unit
    inverse = torch.where(valid, stored.to(torch.float32), 1.0).reciprocal()
    near, known = readings.read(inverse, drawn, valid, how="linear", where=where, min_valid=min_valid)
    return torch.where(known, unit / torch.where(known, near, 1.0), 0.0)


def canonical(
    stored: Tensor, drawn: Drawn, *, unit: float = 1.0, how: str = "nearest", min_valid: float = MIN_VALID
) -> Tensor:
    """As :func:`metric`, for a network that takes every view as seen by one camera: z / zoom.

    What is shown s times as large stands s times as near: with the focal length kept, z becomes z / s (Yin et al. 2023,
    *Metric3D*, section 3.2, label transformation). s counts crop and resize together. :class:`HilumError` where the
    draw has no single zoom (shear, another aspect).
    """
    z = metric(stored, drawn, unit=unit, how=how, min_valid=min_valid)
    return z / zoom(drawn)


def zoom(drawn: Drawn) -> float:
    """Output pixels a source pixel, where the draw has one zoom in all directions; else :class:`HilumError`."""
    where = sample_of("depth", drawn)
    matrix = matrix_of(drawn, where)
    strengths = np.linalg.svd(matrix[:-1, :-1], compute_uv=False)
    if not strengths[-1] * (1.0 + _SIMILAR) >= strengths[0]:
        raise HilumError(
            f"no camera has one focal length here: a pixel becomes {1 / strengths[0]:.4g} x {1 / strengths[-1]:.4g}",
            where=where,
            fix="leave shear and aspect out, or keep metric z with the returned intrinsics",
        )
    return 1.0 / geo.scale_of(matrix)


def disparity(
    stored: Tensor, drawn: Drawn, *, unit: float = 1.0, how: str = "nearest", min_valid: float = MIN_VALID
) -> Tensor:
    """Disparity (1, H, W), ``unit`` source pixels a stored unit -> (1, h, w) float32 output pixels: times the zoom in x.

    Both eyes take the same draw. Where :func:`eyes_swap` says so the mirrored left image is the new right one, and this
    disparity, still positive, is the new right eye's. :class:`HilumError` under a draw that turns rows away from the
    epipolar lines.
    """
    where = sample_of("disparity", drawn)
    check_how(how, ("nearest", "linear"), where)
    check_channels(stored, 1, "disparity", where)
    d, _ = readings.read(stored, drawn, _positive(stored), how=how, where=where, min_valid=min_valid)
    return d * (unit * abs(_across(drawn, where)))


def eyes_swap(drawn: Drawn) -> bool:
    """Whether left and right image of a pair exchange their places: x runs backwards."""
    return _across(drawn, sample_of("stereo", drawn)) < 0.0


def _across(drawn: Drawn, where: str) -> float:
    """Output pixels in x that one source pixel in x becomes."""
    forward = geo.invert(matrix_of(drawn, where))
    if abs(forward[0, 1]) > 1e-9 * abs(forward[1, 1]):
        raise HilumError(
            "a rotation turns disparity away from the rows",
            where=where,
            fix="leave rotation and vertical shear out for stereo",
        )
    return float(forward[1, 1])


def _positive(stored: Tensor) -> Tensor:
    values = stored if stored.dtype.is_floating_point else stored.to(torch.float32)
    return torch.isfinite(values) & (values > 0)
