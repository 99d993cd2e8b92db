"""What follows an image's geometry: masks, boxes, keypoints, and every view that is registered in :data:`FOLLOWERS`.

Sources are those of the image the geometry was drawn for; outputs live on its output grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hilum.augment import depth, sides, vectors
from hilum.augment.readings import Drawn, check_how, check_size, geometry_of, matrix_of, sample_of
from hilum.augment.reference import rows_of, view_extra
from hilum.augment.sampling import sample
from hilum.core.errors import HilumError
from hilum.core.types import Meta, Ragged, ViewGeometry
from hilum.parts import geometry as geo

_ROUNDING: Final = 1e-6  # shares this near are equal

Images: TypeAlias = "Ragged | Tensor | Sequence[Tensor]"


def mask(stored: Tensor, drawn: Drawn, *, ignore_index: int = 255, how: str = "nearest") -> Tensor:
    """A label map (C, *source) of any integer dtype -> (C, *size) in that dtype, ``ignore_index`` outside.

    ``nearest`` takes floor(u + 0.5). ``vote`` takes the label with the largest share of what the image's own filter and
    linear read weigh (argmax of linear one-hot, the smallest label on a tie): thin things survive a reduction less
    often, contours are less ragged. No other label than those stored, and ``ignore_index``, can come out.
    """
    where = sample_of("mask", drawn)
    check_how(how, ("nearest", "vote"), where)
    geometry = geometry_of(drawn, where)
    check_size(stored, geometry, where)
    if stored.dtype.is_floating_point:
        raise HilumError(f"masks hold labels, not {stored.dtype}", where=where)
    at = matrix_of(geometry), geometry.size
    limits = (0, 1) if stored.dtype == torch.bool else (torch.iinfo(stored.dtype).min, torch.iinfo(stored.dtype).max)
    if not limits[0] <= ignore_index <= limits[1]:
        raise HilumError(f"ignore_index {ignore_index} does not fit into {stored.dtype}", where=where)
    if how == "nearest":
        return sample(stored, *at, border=ignore_index, nearest=True)
    labels = stored.to(torch.int64)
    ignored = 1.0 - sample((labels != ignore_index).to(torch.float32), *at)  # with what lies outside
    best, out = torch.full_like(ignored, -1.0), torch.full(ignored.shape, ignore_index, device=stored.device)
    for label in np.unique(labels.cpu().numpy()).tolist():
        if label == ignore_index:
            continue
        share = sample((labels == label).to(torch.float32), *at)
        wins = share > best + _ROUNDING  # the smaller label stays on a tie
        best, out = torch.where(wins, share, best), out.masked_fill(wins, label)
    return out.masked_fill(ignored > best + _ROUNDING, ignore_index).to(stored.dtype)


def masks(stored: Images, draws: Sequence[Drawn], *, ignore_index: int = 255, how: str = "nearest") -> Tensor:
    """:func:`mask` of every row of a batch: (B, C, *size)."""
    rows = zip(rows_of(stored), draws, strict=True)
    return torch.stack([mask(row, drawn, ignore_index=ignore_index, how=how) for row, drawn in rows])


def boxes(
    source: ArrayLike, geometry: Drawn, *, min_visible: float = 0.2
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes (N, 4) as (y0, x0, y1, x1) in edge coordinates -> those of the output, clipped, and which of them are kept:
    at least ``min_visible`` of the moved box's area lies inside. Boxes (N, 6) in a volume likewise."""
    there = geometry_of(geometry, sample_of("boxes", geometry))
    moved = geo.map_boxes(geo.invert(matrix_of(there)), source)
    clipped, visible = geo.clip_boxes(moved, there.size)
    return clipped, visible >= max(min_visible, 1e-12)


def keypoints(
    source: ArrayLike, geometry: Drawn, *, swaps: Iterable[tuple[int, int]] = ()
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Points (N, 2) as (y, x) at pixel centres -> those of the output, and which lie inside the image.

    ``swaps``: rows that exchange their meaning (left eye, right eye) when the image is mirrored left-right.
    """
    there = geometry_of(geometry, sample_of("keypoints", geometry))
    points = geo.map_points(geo.invert(matrix_of(there)), source)
    if sides.mirrored(matrix_of(there)):
        for left, right in swaps:
            points[[left, right]] = points[[right, left]]
    inside = np.logical_and.reduce((points >= -0.5) & (points <= np.array(there.size) - 0.5), -1)
    return points, np.asarray(inside, np.bool_)


# --- views of a batch --------------------------------------------------------------------------------------

Followed: TypeAlias = "tuple[Tensor, Tensor | None]"
Follower: TypeAlias = "Callable[[Tensor, Drawn, Mapping[str, Any], ViewGeometry | None, Mapping[str, Any]], Followed]"


def _mask(row: Tensor, drawn: Drawn, told: Mapping[str, Any], *_: Any) -> Followed:
    how = told.get("interpolation", "nearest")
    out = mask(row, drawn, ignore_index=int(told.get("ignore_index", 255)), how=how)
    swaps = told.get("swaps", ()) if sides.mirrored(matrix_of(drawn)) else ()
    return sides.exchange_values(out, swaps) if swaps else out, None


def _depth(row: Tensor, drawn: Drawn, told: Mapping[str, Any], _: Any, extra: Mapping[str, Any]) -> Followed:
    act = depth.canonical if _canonical(told, "depth", drawn) else depth.metric
    z = act(row, drawn, unit=_unit(extra, "depth", drawn), how=told.get("interpolation", "nearest"))
    return z, z > 0


def _disparity(row: Tensor, drawn: Drawn, told: Mapping[str, Any], _: Any, extra: Mapping[str, Any]) -> Followed:
    unit = _unit(extra, "disparity", drawn)
    d = depth.disparity(row, drawn, unit=unit, how=told.get("interpolation", "nearest"))
    return d, d > 0


def _flow(row: Tensor, drawn: Drawn, told: Mapping[str, Any], *_: Any) -> Followed:
    return vectors.flow(row, drawn, how=told.get("interpolation", "linear"))


def _normals(row: Tensor, drawn: Drawn, told: Mapping[str, Any], view: ViewGeometry | None, _: Any) -> Followed:
    how, canonical = told.get("interpolation", "linear"), _canonical(told, "normals", drawn)
    return vectors.normals(row, drawn, K=None if view is None else view.K, canonical=canonical, how=how)


FOLLOWERS: Final[Mapping[str, Follower]] = MappingProxyType(
    {"mask": _mask, "depth": _depth, "disparity": _disparity, "flow": _flow, "normals": _normals}
)


def follow(
    name: str,
    stored: Images,
    draws: Sequence[Drawn],
    metas: Sequence[Meta],
    told: Mapping[str, Any],
    *,
    image: str = "image",
) -> Followed:
    """A whole view called ``mask``, ``depth``, ``disparity``, ``flow`` or ``normals`` (or ``depth/1``) through the draws of
    its ``image``: (B, C, *size), and where it is known (B, C or 1, *size), None for masks.

    ``told`` is the view's section of the recipe: ``interpolation``; of masks ``ignore_index`` and ``swaps``, the pairs of
    labels that exchange in a mirrored view; of depth and normals ``camera``, ``returned`` (metric z, seen through K')
    or ``canonical``. ``metas[b].extra[name]["slope"]`` is what one stored unit of depth (metres) or disparity (pixels)
    is, ``metas[b].geometry[image].K`` the source's camera. Errors name view and sample.
    """
    act, views, known = FOLLOWERS[name.partition("/")[0]], [], []
    for row, drawn, meta in zip(rows_of(stored), draws, metas, strict=True):
        try:
            geometry = meta.geometry.get(image) or meta.geometry.get(image.partition("/")[0])
            view, valid = act(row, drawn, told, geometry, view_extra(meta, name))
        except HilumError as error:
            where = f"sample {meta.sample_id}, view {name!r}"
            raise HilumError(error.what, where=f"{where}: {error.where}".rstrip(": "), fix=error.fix) from error
        views.append(view)
        known.append(valid)
    if not views:
        raise HilumError(f"view {name!r} has no rows")
    masks_known = [k for k in known if k is not None]
    return torch.stack(views), torch.stack(masks_known) if masks_known else None


def _canonical(told: Mapping[str, Any], op: str, drawn: Drawn) -> bool:
    camera = told.get("camera", "returned")
    check_how(camera, ("returned", "canonical"), sample_of(op, drawn), "camera")
    return bool(camera == "canonical")


def _unit(extra: Mapping[str, Any], op: str, drawn: Drawn) -> float:
    if float(extra.get("intercept", 0.0)):
        raise HilumError(
            f"{op} stored with intercept {extra['intercept']}", where=sample_of(op, drawn), fix="0 is none"
        )
    return float(extra.get("slope", 1.0))
