"""The plain torch back-end, and the oracle for the fast ones: stored pixels in, network input out.

Order (docs/augmentation.md): geometry and filter on stored values > slope and intercept > window > [0, 1] > brightness, contrast,
gamma in the policy's order > output-pixel noise > clip > channels > normalise > float32. Interpolating stored values
and then applying slope and intercept is interpolating modality values, since taps weigh 1 in sum. Samples are treated
one by one, so that a result cannot depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hilum.augment.draw import Draw
from hilum.augment.policy import Policy
from hilum.augment.sampling import Border, sample
from hilum.core.errors import HilumError
from hilum.core.types import Meta, Ragged, Window
from hilum.parts.normalise import normalise
from hilum.parts.rng import Stream
from hilum.parts.window import apply_window

__all__ = ["apply", "rows_of", "sample"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, for colour files among single-channel images


@torch.no_grad()
def apply(
    images: Ragged | Tensor | Sequence[Tensor],
    draws: Sequence[Draw | Mapping[str, Any]],
    metas: Sequence[Meta],
    policy: Policy,
    *,
    view: str = "image",
) -> Tensor:
    """Stored images -> (B, channels, *size) float32, normalised, on the images' device.

    ``images``: a :class:`Ragged` with grid (B, 2) and data (sum H*W, C), a dense (B, C, H, W), or a list of (C, H, W).
    ``draws`` as drawn or as JSON. ``metas[b].extra[view]`` may hold ``slope``, ``intercept``, ``window`` and ``stats``;
    uint8 without a window is read as 0..255, floating point as 0..1, other images without a window by the range in
    ``stats``.
    """
    if not len(images) == len(draws) == len(metas):
        raise HilumError(f"{len(images)} images, {len(draws)} draws, {len(metas)} metas", where=f"view {view!r}")
    rows = list(rows_of(images))
    device = rows[0].device if rows else None
    out = torch.empty((len(rows), policy.channels, *policy.size), dtype=torch.float32, device=device)
    for b, (image, draw, meta) in enumerate(zip(rows, draws, metas, strict=True)):
        drawn = draw if isinstance(draw, Draw) else Draw.from_json(draw)
        out[b] = _one(image, drawn, meta, policy, view)
    return out


def rows_of(images: Ragged | Tensor | Sequence[Tensor]) -> Iterator[Tensor]:
    """The images one by one as (C, H, W), without copying."""
    if not isinstance(images, Ragged):
        yield from images
        return
    if images.grid is None:
        raise HilumError("packed images need their sizes", fix="Ragged.of(rows, grid=[(H, W), ...])")
    for row, (height, width) in zip(images.rows(), images.grid.tolist(), strict=True):
        yield row.view(height, width, -1).permute(2, 0, 1)


def view_extra(meta: Meta, view: str) -> Mapping[str, Any]:
    """``meta.extra`` of a view; ``image/1`` falls back to ``image``."""
    extra: Mapping[str, Any] = meta.extra.get(view) or meta.extra.get(view.partition("/")[0]) or {}
    return extra


def _one(image: Tensor, draw: Draw, meta: Meta, policy: Policy, view: str) -> Tensor:
    where = f"sample {meta.sample_id}, view {view!r}"
    if image.dim() != 3 or tuple(image.shape[1:]) != draw.source_size:
        fix = f"the draw was made for {draw.source_size}"
        raise HilumError(f"an image of shape {tuple(image.shape)} does not fit its draw", where=where, fix=fix)
    if len(image) not in (1, policy.channels) and (len(image), policy.channels) != (3, 1):
        raise HilumError(f"{len(image)} channels cannot become {policy.channels}", where=where)
    extra = view_extra(meta, view)
    slope, intercept = float(extra.get("slope", 1.0)), float(extra.get("intercept", 0.0))
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        raise HilumError(f"slope {slope} and intercept {intercept} are no rescaling", where=where)
    window = window_of(image.dtype, extra, where)
    border: Border = policy.border if policy.border in ("border", "reflect") else 0.0  # type: ignore[assignment]
    if not isinstance(border, str):
        border = ((black_of(window) if draw.fill is None else draw.fill) - intercept) / slope
    nearest = policy.interpolation == "nearest"
    if nearest and not isinstance(border, str):
        image = image.to(torch.float32)  # the border value need not fit the stored type
    x = sample(image, draw.matrix, draw.size, border=border, nearest=nearest, sigma=draw.sigma).float()
    if policy.channels == 1 and len(x) == 3:
        x = (x * x.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
    x = windowed(x if (slope, intercept) == (1.0, 0.0) else x * slope + intercept, window, draw)
    for name in policy.pointwise:
        x = _pointwise(x, name, window, draw)
    if draw.noise:
        x = x + draw.noise * _normal(draw, tuple(x.shape), x.device)
    x = x.clamp_(0.0, 1.0).expand(policy.channels, -1, -1)
    return normalise(x, policy.mean, policy.std, channel_dim=0)


def _pointwise(x: Tensor, name: str, window: Window, draw: Draw) -> Tensor:
    """x m; (x - pivot) c + pivot about the stored mean as displayed; x^g on the window's range. Neutral: untouched."""
    value: float = getattr(draw, name)
    if value == 1.0:
        return x
    if name == "brightness":
        return x.mul(value)
    if name == "gamma":
        return x.clamp(min=0.0).pow(value)
    pivot = 0.5
    if draw.pivot is not None:
        pivot = float(windowed(torch.tensor([draw.pivot], dtype=torch.float64), window, draw))
    return x.sub(pivot).mul_(value).add_(pivot)


def windowed(x: Tensor, window: Window, draw: Draw) -> Tensor:
    """The window, moved by ``shift`` of its width and widened by a factor about its centre, on modality values.

    A table is moved by moving the values the other way.
    """
    if draw.window_shift == 0.0 and draw.window_width == 1.0:
        return apply_window(x, window)
    if window.kind == "table":
        width = float(len(window.table))
        centre = window.lo + (width - 1.0) / 2.0
        return apply_window((x - centre - draw.window_shift * width) / draw.window_width + centre, window)
    width, centre = window.hi - window.lo, (window.lo + window.hi) / 2.0 + draw.window_shift * (window.hi - window.lo)
    half = width * draw.window_width / 2.0
    return apply_window(x, lo=centre - half, hi=centre + half, kind=window.kind)


def window_of(dtype: torch.dtype, extra: Mapping[str, Any], where: str) -> Window:
    given = extra.get("window")
    if given is not None:
        return given if isinstance(given, Window) else Window(**given)
    if dtype == torch.uint8 and float(extra.get("slope", 1.0)) == 1.0 and float(extra.get("intercept", 0.0)) == 0.0:
        return Window(0.0, 255.0, source="uint8")
    if dtype.is_floating_point:
        return Window(0.0, 1.0, source="floating point")
    stats = extra.get("stats") or {}
    for lo, hi in (("p005", "p995"), ("lo", "hi")):
        if stats.get(lo) is not None and stats.get(hi) is not None:
            return Window(float(stats[lo]), float(stats[hi]), source=f"range {lo}-{hi}")
    raise HilumError(f"nothing says which {dtype} values are black and white", where=where, fix="a window or its stats")


def black_of(window: Window) -> float:
    """A modality value that the window shows black."""
    return window.lo - 2.0 * (window.hi - window.lo) if window.kind == "sigmoid" else window.lo


def _normal(draw: Draw, shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal noise indexed by output pixel: Box-Muller on neighbouring uniforms."""
    if draw.key is None:
        raise HilumError("noise needs the sample's key", fix="draw with a key")
    count = math.prod(shape)
    uniform = Stream(draw.key, view=draw.view).pixels("noise", (count + count % 2,), device=device).view(-1, 2)
    radius, angle = (-2.0 * torch.log1p(-uniform[:, 0])).sqrt(), 2.0 * math.pi * uniform[:, 1]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten()[:count].view(shape)
