"""The algebra of image geometry: homogeneous float64 matrices from OUTPUT pixel centres to SOURCE pixel centres.

Conventions (docs/augmentation.md): pixel centres at integers 0 .. N-1, extent [-0.5, N-0.5], axis order (y, x) or (z, y, x), as in
``grid_sample(align_corners=False)``. *Edge coordinates* measure from the image's outer edge: centre + 0.5.

:func:`scaling`, :func:`rotation`, :func:`shear` return (d, d) linear parts, already output -> source, named by what
happens to the picture; :func:`about_centre` makes them (d+1, d+1) matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hilum.core.errors import HilumError

Matrix = NDArray[np.float64]


def identity(d: int) -> Matrix:
    """(d+1, d+1)."""
    return np.eye(d + 1)


def flip(size: Sequence[int], axis: int) -> Matrix:
    """u = N - 1 - q along one axis of an image of ``size``."""
    matrix = identity(len(size))
    axis %= len(size)
    matrix[axis, axis], matrix[axis, -1] = -1.0, size[axis] - 1.0
    return matrix


def crop_resize(out_size: Sequence[int], origin: ArrayLike, extent: ArrayLike) -> Matrix:
    """The box starting at edge coordinate ``origin`` and ``extent`` pixels long, resized to ``out_size``.

    u = (q + 0.5) * s + o - 0.5 with s = extent / out_size.
    """
    scale = np.asarray(extent, np.float64) / np.asarray(out_size, np.float64)
    matrix = np.diag([*scale.tolist(), 1.0])
    matrix[:-1, -1] = 0.5 * scale + np.asarray(origin, np.float64) - 0.5
    return matrix


def about_centre(linear: ArrayLike, out_size: Sequence[int], src_size: Sequence[int] | None = None) -> Matrix:
    """u = A (q - c_out) + c_src with c = (size - 1) / 2; ``src_size`` defaults to ``out_size``."""
    linear = np.asarray(linear, np.float64)
    c_out, c_src = ((np.asarray(size, np.float64) - 1.0) / 2.0 for size in (out_size, src_size or out_size))
    matrix = identity(len(out_size))
    matrix[:-1, :-1], matrix[:-1, -1] = linear, c_src - linear @ c_out
    return matrix


def rotation(angle: float, d: int = 2, *, plane: tuple[int, int] = (-2, -1)) -> Matrix:
    """(d, d): turns the picture by ``angle`` radians, counter-clockwise as displayed (y down, x right) in ``plane``.

    Multiples of a quarter turn are exact, so they stay bit-exact copies.
    """
    cos, sin = math.cos(angle), math.sin(angle)
    if min(abs(cos), abs(sin)) < 1e-15:
        cos, sin = float(round(cos)), float(round(sin))
    a, b = plane
    linear = np.eye(d)
    linear[a, a], linear[a, b], linear[b, a], linear[b, b] = cos, sin, -sin, cos
    return linear


def scaling(zoom: ArrayLike, d: int = 2) -> Matrix:
    """(d, d): enlarges the picture by ``zoom`` (one factor, or one an axis)."""
    factors = np.broadcast_to(np.asarray(zoom, np.float64), (d,))
    if not (factors > 0).all():
        raise HilumError(f"zoom must be above 0, got {factors.tolist()}", fix="use flip to mirror")
    return np.diag(1.0 / factors)


def shear(angle: float, d: int = 2, *, axis: int = -1, along: int = -2) -> Matrix:
    """(d, d): moves the picture along ``axis`` by tan(angle) per pixel of ``along``."""
    linear = np.eye(d)
    linear[axis, along] = -math.tan(angle)
    return linear


def translation(offset: ArrayLike) -> Matrix:
    """Moves the picture by ``offset`` pixels: u = q - offset."""
    offset = np.asarray(offset, np.float64)
    matrix = identity(len(offset))
    matrix[:-1, -1] = -offset
    return matrix


def in_millimetres(linear: ArrayLike, spacing_mm: ArrayLike) -> Matrix:
    """S^-1 R S: a linear part meant in millimetres, acting on pixels of anisotropic spacing."""
    spacing = np.asarray(spacing_mm, np.float64)
    return np.asarray(linear, np.float64) * spacing / spacing[:, None]


def compose(*matrices: ArrayLike) -> Matrix:
    """One map for a chain, given in the order in which the picture meets it: m1 @ m2 @ ... (interpolates once)."""
    out = np.asarray(matrices[0], np.float64)
    for matrix in matrices[1:]:
        out = out @ np.asarray(matrix, np.float64)
    return out


def invert(matrix: ArrayLike) -> Matrix:
    """Source -> output."""
    matrix = np.asarray(matrix, np.float64)
    try:
        inverse = np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        raise HilumError(
            "this geometry squeezes the image flat and has no inverse", where=str(matrix.tolist())
        ) from None
    inverse[..., -1, :] = matrix[..., -1, :]
    return inverse


def map_points(matrix: ArrayLike, points: ArrayLike) -> Matrix:
    """Points (..., d) in pixel-centre coordinates through a matrix. Keypoints of the source take ``invert(matrix)``."""
    matrix, points = np.asarray(matrix, np.float64), np.asarray(points, np.float64)
    mapped: Matrix = points @ matrix[:-1, :-1].T + matrix[:-1, -1]
    return mapped


def map_boxes(matrix: ArrayLike, boxes: ArrayLike) -> Matrix:
    """Boxes (..., 2d) as (lowest per axis, highest per axis) in edge coordinates: the hull of their mapped corners.

    Boxes of the source take ``invert(matrix)``.
    """
    boxes = np.asarray(boxes, np.float64)
    d = boxes.shape[-1] // 2
    corners = np.stack(
        [np.stack([boxes[..., i + d * high] for i, high in enumerate(pick)], -1) for pick in product((0, 1), repeat=d)]
    )
    mapped = map_points(matrix, corners - 0.5) + 0.5
    return np.concatenate([mapped.min(0), mapped.max(0)], -1)


def clip_boxes(boxes: ArrayLike, size: Sequence[int]) -> tuple[Matrix, Matrix]:
    """Boxes (..., 2d) clipped to an image, and the fraction (...) of each one's area that stays visible."""
    boxes = np.asarray(boxes, np.float64)
    d = len(size)
    clipped = np.clip(boxes, 0.0, np.tile(np.asarray(size, np.float64), 2))
    area, left = (np.prod(b[..., d:] - b[..., :d], -1) for b in (boxes, clipped))
    return clipped, np.divide(left, area, out=np.zeros_like(area), where=area > 0)


def scale_of(matrix: ArrayLike) -> float:
    """Source pixels per output pixel: |det|^(1/d), exact for rotation with one zoom. Above 1 the image shrinks."""
    linear = np.asarray(matrix, np.float64)[:-1, :-1]
    return float(abs(np.linalg.det(linear)) ** (1.0 / len(linear)))


def axis_scales(matrix: ArrayLike) -> Matrix:
    """(d,) source pixels walked by one step along each output axis."""
    scales: Matrix = np.linalg.norm(np.asarray(matrix, np.float64)[:-1, :-1], axis=0)
    return scales
