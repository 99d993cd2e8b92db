"""Where a view's pixels lie: intrinsics and headers that stay true under a draw.

Matrices of :mod:`hilum.parts.geometry` count (y, x) or (z, y, x); cameras and headers count (x, y) or (i, j, k), x
along a row. Pixel centres are integers in both, as in OpenCV, DICOM and NIfTI.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hilum.augment.readings import Drawn, geometry_of, matrix_of, sample_of
from hilum.core.errors import HilumError
from hilum.core.types import ViewGeometry
from hilum.parts import geometry as geo

Array = NDArray[np.float64]


def intrinsics(K: ArrayLike, drawn: Drawn) -> Array:
    """K' = A_fwd K (3, 3): the camera of the view, in pixels (x, y, 1), of a source with intrinsics ``K``.

    Metric z and points in camera coordinates stay what they are: X = z K'^-1 (x, y, 1). Under rotation, shear or a
    mirror K' is a full matrix; :func:`upright` splits it. Hartley and Zisserman 2004, *Multiple View Geometry*, 6.1.
    """
    where = sample_of("intrinsics", drawn)
    out: Array = _xy(geo.invert(matrix_of(drawn, where))) @ _camera(K, where)
    return out


def upright(K: ArrayLike) -> tuple[Array, Array]:
    """K' (3, 3) = K_u R: upper triangular K_u with positive focal lengths, and the turn R about the optical axis.

    A camera that has turned by R and has intrinsics K_u sees the view: its coordinates are R X, z unchanged, and
    its ``world_to_camera`` is R's (4, 4) times the old one. R reflects (det -1) where the view is mirrored. With zooms
    that differ between the axes fx and fy do, and a shear leaves a skew (K_u[0, 1]).
    """
    K = _camera(K, "upright")
    a, b, c, d = K[0, 0], K[0, 1], K[1, 0], K[1, 1]
    fy = float(np.hypot(c, d))
    det = a * d - b * c
    sign = 1.0 if det > 0 else -1.0
    R, out = np.eye(3), np.eye(3)
    # of [a b; c d] = [fx s; 0 fy] R the second row gives R's own, the first row is orthogonal to it
    R[1, :2] = c / fy, d / fy
    R[0, :2] = sign * d / fy, -sign * c / fy
    out[0] = abs(det) / fy, (a * c + b * d) / fy, K[0, 2]
    out[1] = 0.0, fy, K[1, 2]
    return out, R


def affine(source: ArrayLike, matrix: ArrayLike) -> Array:
    """M_src A (4, 4): the header of a resampled volume, or slice, so that every output voxel keeps its place in mm.

    ``source`` (4, 4) maps (i, j, k) to LPS mm (or to any frame: it stays the same one). ``matrix``, output -> source:
    (4, 4) over (z, y, x) = (k, j, i), or (3, 3) over (y, x) = (j, i) within slices, whose k stays.
    """
    source, matrix = np.asarray(source, np.float64), np.asarray(matrix, np.float64)
    for name, m, sides in (("source", source, (4,)), ("matrix", matrix, (3, 4))):
        if m.ndim != 2 or m.shape[0] != m.shape[1] or len(m) not in sides or not np.isfinite(m).all():
            raise HilumError(f"{name} is no finite affine: {m.tolist()}", where="affine")
    whole = np.eye(4)
    if len(matrix) == 3:
        whole[np.ix_((1, 2, 3), (1, 2, 3))] = matrix
    else:
        whole = matrix
    order = [2, 1, 0, 3]
    out: Array = source @ whole[np.ix_(order, order)]
    return out


def moved(view: ViewGeometry, drawn: Drawn) -> ViewGeometry:
    """``view`` after a draw that reads its pixels: new size, matrix and flips; ``K`` and ``affine``, where it has them,
    those of the result. Unit and ``world_to_camera`` stay, K' being that of the camera which has not turned."""
    now = geometry_of(drawn, sample_of("geometry", drawn))
    return replace(
        view,
        size=now.size,
        source_size=now.source_size,
        matrix=now.matrix,
        flips=now.flips,
        K=None if view.K is None else intrinsics(view.K, drawn),
        affine=None if view.affine is None else affine(view.affine, matrix_of(now)),
    )


def _xy(matrix: Array) -> Array:
    out: Array = matrix[np.ix_((1, 0, 2), (1, 0, 2))]
    return out


def _camera(K: ArrayLike, where: str) -> Array:
    K = np.asarray(K, np.float64)
    if K.shape != (3, 3) or not np.isfinite(K).all() or K[2].tolist() != [0.0, 0.0, 1.0] or not np.linalg.det(K):
        raise HilumError(
            f"these are no intrinsics: {K.tolist()}", where=where, fix="finite (3, 3) with last row 0 0 1, invertible"
        )
    return K
