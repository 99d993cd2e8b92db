"""Fields of vectors through their image's draw: sampled as numbers, then turned with the picture.

Components are (x, y) and (x, y, z), x along a row, y down, as in .flo and KITTI files and in camera coordinates.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hilum.augment import depth, readings
from hilum.augment.coordinates import intrinsics, upright
from hilum.augment.readings import MIN_VALID, Drawn, check_channels, geometry_of, matrix_of, sample_of
from hilum.core.errors import HilumError
from hilum.parts import geometry as geo

UNKNOWN: Final = 1e9  # a component this large means "unknown" in .flo files (Baker et al. 2011, Middlebury)


def flow(
    stored: Tensor,
    drawn: Drawn,
    *,
    to: Drawn | None = None,
    valid: Tensor | None = None,
    how: str = "linear",
    min_valid: float = MIN_VALID,
) -> tuple[Tensor, Tensor]:
    """Optical flow (2, H, W), (dx, dy) in source pixels -> (2, h, w) float32 in output pixels, and valid (1, h, w).

    p + f(p) is where p goes in the next frame. With F the forward map of the next frame's draw ``to`` (by default the
    same one) and A this frame's matrix, q + f'(q) = F (A q + f(A q)): turned and scaled, mirrored components negated.
    ``valid`` (1, H, W): where flow is known; not finite or >= 1e9 never is. Unknown flow comes out 0.
    """
    where = sample_of("flow", drawn)
    check_channels(stored, 2, "flow", where)
    values = stored.to(torch.float32)
    known = (values.abs() < UNKNOWN).all(0, keepdim=True)  # NaN compares false
    if valid is not None and valid.shape != known.shape:
        raise HilumError(f"valid of shape {tuple(valid.shape)} for flow {tuple(stored.shape)}", where=where)
    known = known if valid is None else known & valid.to(known.device).bool()
    moved, seen = readings.read(values, drawn, known, how=how, where=where, min_valid=min_valid)
    here, there = geometry_of(drawn, where), geometry_of(drawn if to is None else to, where)
    if tuple(there.source_size) != tuple(here.source_size):
        raise HilumError(f"frames of {here.source_size} and {there.source_size} pixels", where=where)
    forward = geo.invert(matrix_of(there))
    out = torch.tensordot(_tensor(forward[1::-1, 1::-1], moved), moved, 1)
    if to is not None:  # F A q - q: what the view itself moves
        drift = forward @ matrix_of(here) - np.eye(3)
        q = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in here.size), indexing="ij")
        own = torch.stack([drift[a, 0] * q[0] + drift[a, 1] * q[1] + drift[a, 2] for a in (1, 0)])
        out = out + own.to(out)
    return torch.where(seen, out, 0.0), seen


def normals(
    stored: Tensor,
    drawn: Drawn,
    *,
    K: ArrayLike | None = None,
    canonical: bool = False,
    how: str = "linear",
    min_valid: float = MIN_VALID,
) -> tuple[Tensor, Tensor]:
    """Surface normals (3, H, W) in camera coordinates -> (3, h, w) float32 of length 1, and valid (1, h, w).

    They are those of the camera that stands :func:`~hilum.augment.coordinates.upright` before the view: n' = R n, with
    R from K' = K_u R. Who keeps the full K' keeps points and normals unturned. ``K`` (3, 3) of the source matters only
    where its pixels are not square and the draw turns or shears; None: square. ``canonical``: for depth of
    :func:`hilum.augment.depth.canonical`, whose scene is s times shallower: n' ~ (R n) (1, 1, s).
    Vectors that are 0 or not finite are none, and come out 0.
    """
    where = sample_of("normals", drawn)
    check_channels(stored, 3, "normals", where)
    values = stored.to(torch.float32)
    known = torch.isfinite(values).all(0, keepdim=True) & (values != 0).any(0, keepdim=True)
    moved, seen = readings.read(values, drawn, known, how=how, where=where, min_valid=min_valid)
    _, turn = upright(intrinsics(np.eye(3) if K is None else K, drawn))
    if canonical:
        turn = np.diag([1.0, 1.0, depth.zoom(drawn)]) @ turn
    out = torch.tensordot(_tensor(turn, moved), moved, 1)
    length = torch.linalg.vector_norm(out, dim=0, keepdim=True)
    seen = seen & (length > 0)  # opposite normals may average to nothing
    return torch.where(seen, out / torch.where(seen, length, 1.0), 0.0), seen


def _tensor(values: ArrayLike, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float64)).to(like)
