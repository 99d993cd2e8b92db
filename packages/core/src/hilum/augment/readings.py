"""Measured maps (depth, disparity, flow, normals) on a view's grid: only valid readings enter an average.

What is measured is never clamped; a pixel without a reading is 0 and says so in the returned mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilum.augment.draw import Draw
from hilum.augment.sampling import sample
from hilum.core.errors import HilumError, nearest
from hilum.core.types import ViewGeometry

Drawn: TypeAlias = "Draw | ViewGeometry | Mapping[str, Any]"
Array = NDArray[np.float64]

MIN_VALID: Final = 0.5  # as nearest does: half a pixel beyond the last reading there is none
_ROUNDING: Final = 1e-6


def geometry_of(drawn: Drawn, where: str = "") -> ViewGeometry:
    """The geometry of a draw, a stored draw or a view, with its matrix; :class:`HilumError` where it has none."""
    if isinstance(drawn, ViewGeometry):
        geometry = drawn
    else:
        geometry = (drawn if isinstance(drawn, Draw) else Draw.from_json(drawn)).geometry()
    if geometry.matrix is None:
        raise HilumError("this view's geometry was not recorded", where=where)
    d = len(geometry.size)
    if geometry.matrix.shape != (d + 1, d + 1) or not np.isfinite(geometry.matrix).all():
        raise HilumError(f"no finite ({d + 1}, {d + 1}) matrix: {geometry.matrix.tolist()}", where=where)
    return geometry


def matrix_of(drawn: Drawn, where: str = "") -> Array:
    """(d+1, d+1), output pixel centres -> source pixel centres."""
    return np.asarray(geometry_of(drawn, where).matrix, np.float64)


def sample_of(op: str, drawn: Drawn) -> str:
    """What an error names: the op, and the sample where the draw knows it."""
    key: Any = drawn.get("key") if isinstance(drawn, Mapping) else getattr(drawn, "key", None)
    number = key[2] if isinstance(key, Sequence) else getattr(key, "sample", None)
    return op if number is None else f"{op}, sample {number:08x}"


def check_size(stored: Tensor, geometry: ViewGeometry, where: str) -> None:
    """A target has the pixels of the image that the geometry was drawn for."""
    if tuple(stored.shape[1:]) != tuple(geometry.source_size):
        raise HilumError(
            f"a target of shape {tuple(stored.shape)} belongs to an image of {tuple(geometry.source_size)}",
            where=where,
            fix="store it on the image's grid",
        )


def check_how(how: str, known: Sequence[str], where: str, what: str = "interpolation") -> None:
    """``how`` is one of the ``known`` ways."""
    if how not in known:
        raise HilumError(f"unknown {what} {how!r}", where=where, fix=nearest(how, known) or " or ".join(known))


def check_channels(stored: Tensor, channels: int, what: str, where: str) -> None:
    """(channels, H, W)."""
    if stored.dim() != 3 or len(stored) != channels:
        raise HilumError(f"{what} of shape {tuple(stored.shape)}, not ({channels}, H, W)", where=where)


def read(
    stored: Tensor,
    drawn: Drawn,
    valid: Tensor,
    *,
    how: str,
    where: str,
    min_valid: float = MIN_VALID,
) -> tuple[Tensor, Tensor]:
    """(C, *source) and ``valid`` (C or 1, *source) bool -> values (C, *size) float32, and where there are any, bool.

    ``nearest`` takes floor(u + 0.5). ``linear`` is sum w v x / sum w v over what the image's own filter and read weigh
    (normalised convolution, Knutsson and Westin 1993); a pixel counts where valid readings have at least ``min_valid``
    of the weight. Outside the image nothing is valid.
    """
    check_how(how, ("nearest", "linear"), where)
    geometry = geometry_of(drawn, where)
    check_size(stored, geometry, where)
    if tuple(valid.shape[1:]) != tuple(stored.shape[1:]) or len(valid) not in (1, len(stored)):
        raise HilumError(f"valid of shape {tuple(valid.shape)} for {tuple(stored.shape)}", where=where)
    if not 0.0 < min_valid <= 1.0:
        raise HilumError(f"min_valid is {min_valid}", where=where, fix="above 0, at most 1")
    valid = valid.bool()
    held = torch.where(valid, stored.to(torch.float32), 0.0)  # 0 times an invalid NaN would be NaN
    at = matrix_of(geometry), geometry.size
    if how == "nearest":
        return sample(held, *at, nearest=True), sample(valid.to(torch.uint8), *at, nearest=True).bool()
    weight = sample(valid.to(torch.float32), *at)
    known = weight >= min_valid - _ROUNDING
    return torch.where(known, sample(held, *at) / torch.where(known, weight, 1.0), 0.0), known
