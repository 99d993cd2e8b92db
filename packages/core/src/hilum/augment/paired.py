"""What follows an image's geometry: masks, boxes, keypoints.

Sources are those of the image the geometry was drawn for; outputs live on its output grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hilum.augment.draw import Draw
from hilum.augment.reference import rows_of
from hilum.augment.sampling import sample
from hilum.core.errors import HilumError
from hilum.core.types import Ragged, ViewGeometry
from hilum.parts import geometry as geo


def masks(
    stored: Ragged | Tensor | Sequence[Tensor],
    draws: Sequence[Draw | Mapping[str, Any]],
    *,
    ignore_index: int = 255,
) -> Tensor:
    """Label maps through their images' draws: (B, C, *size) in the stored dtype, nearest, ``ignore_index`` outside."""
    out = []
    for mask, drawn in zip(rows_of(stored), draws, strict=True):
        draw = drawn if isinstance(drawn, Draw) else Draw.from_json(drawn)
        if tuple(mask.shape[1:]) != draw.source_size:
            raise HilumError(f"a mask of {tuple(mask.shape[1:])} pixels belongs to an image of {draw.source_size}")
        if mask.dtype.is_floating_point:
            raise HilumError(f"masks hold labels, not {mask.dtype}")
        out.append(sample(mask, draw.matrix, draw.size, border=ignore_index, nearest=True))
    return torch.stack(out)


def boxes(
    source: ArrayLike, geometry: ViewGeometry, *, min_visible: float = 0.2
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes (N, 4) as (y0, x0, y1, x1) in edge coordinates -> those of the output, clipped, and which of them are kept:
    at least ``min_visible`` of the moved box's area lies inside."""
    moved = geo.map_boxes(geo.invert(_matrix(geometry)), source)
    clipped, visible = geo.clip_boxes(moved, geometry.size)
    return clipped, visible >= max(min_visible, 1e-12)


def keypoints(
    source: ArrayLike, geometry: ViewGeometry, *, swaps: Iterable[tuple[int, int]] = ()
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Points (N, 2) as (y, x) at pixel centres -> those of the output, and which lie inside the image.

    ``swaps``: rows that exchange their meaning (left eye, right eye) when the image is mirrored left-right.
    """
    points = geo.map_points(geo.invert(_matrix(geometry)), source)
    if 1 in geometry.flips:
        for left, right in swaps:
            points[[left, right]] = points[[right, left]]
    inside = np.logical_and.reduce((points >= -0.5) & (points <= np.array(geometry.size) - 0.5), -1)
    return points, np.asarray(inside, np.bool_)


def _matrix(geometry: ViewGeometry) -> NDArray[np.float64]:
    if geometry.matrix is None:
        raise HilumError("this view's geometry was not recorded")
    return geometry.matrix
