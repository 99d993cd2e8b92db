"""One image as the cache keeps it: stored values, area-averaged, beside everything that makes them physical."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilum.core.errors import HilumError
from hilum.core.types import Intake, Pixels, ViewGeometry, Window
from hilum.data.archives import member_file
from hilum.data.ledger import Rejected
from hilum.data.reduce import area_average, reduced_size, valid_average
from hilum.parts.geometry import crop_resize
from hilum.parts.window import apply_window

STATISTICS: Final = ("min", "max", "mean", "std", "p005", "p995", "background")


@dataclass(slots=True)
class CachedImage:
    """``stored`` (C,H,W) in the stored dtype; modality values are ``stored * slope + intercept``, polarity folded in
    (:class:`~hilum.core.types.Pixels`). ``factor`` is source / cached size (row, column); ``spacing_mm`` that of the
    cached pixels; padding holds the darkest value. ``stats``: ``min max mean std p005 p995 background`` of the cached
    modality values that are valid (p005, p995: the 0.5 and 99.5 percentile; background: median of the outermost
    pixels)."""

    stored: Tensor
    slope: float = 1.0
    intercept: float = 0.0
    window: Window | None = None
    source_size: tuple[int, int] = (0, 0)
    spacing_mm: tuple[float, ...] | None = None
    unit: str | None = None
    inverted: bool = False
    valid: Tensor | None = None  # (H,W) bool, False on padding
    stats: dict[str, float] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        return int(self.stored.shape[-2]), int(self.stored.shape[-1])

    @property
    def factor(self) -> tuple[float, float]:
        return self.source_size[0] / self.size[0], self.source_size[1] / self.size[1]

    def shown(self) -> NDArray[np.uint8]:
        """As it displays in its window: (H,W), or (H,W,3) in colour."""
        values = self.stored.float() * self.slope + self.intercept
        if self.window is not None:
            values = apply_window(values, self.window)
        grey: NDArray[np.uint8] = (values.nan_to_num().clamp(0, 1) * 255).byte().numpy()
        return grey[0] if len(grey) == 1 else np.moveaxis(grey, 0, -1)

    def geometry(self) -> ViewGeometry:
        """Cached pixel centres to the file's pixel centres."""
        matrix = crop_resize(self.size, (0.0, 0.0), self.source_size)
        return ViewGeometry(self.size, self.source_size, matrix, spacing_mm=self.spacing_mm, unit=self.unit)


def reduce_pixels(pixels: Pixels, *, side: int | None) -> CachedImage:
    """Area-average one frame to ``side`` on the short side (None: full size)."""
    if len(pixels.stored) != 1:
        raise Rejected("multi_frame", f"an image view takes one frame, the file has {len(pixels.stored)}")
    stored = pixels.stored[0]
    rows, columns = stored.shape[:2]
    size = reduced_size(rows, columns, side)
    valid = pixels.valid[0] if pixels.valid is not None and not pixels.valid[0].all() else None
    small = area_average(stored, size, valid=valid)
    seen = None if valid is None else valid_average(valid, size)
    if seen is not None and seen.any():
        # Padding is no anatomy: stored 0 would display white in a MONOCHROME1 file.
        small = np.where(seen.reshape(*size, *(1,) * (small.ndim - 2)), small, _black(small[seen], pixels))
    planes = small[None] if small.ndim == 2 else np.moveaxis(small, -1, 0)
    spacing = pixels.spacing_mm
    if spacing is not None:
        spacing = (spacing[0] * (rows / size[0]), spacing[1] * (columns / size[1]))
    return CachedImage(
        torch.from_numpy(np.array(planes, order="C")),
        float(pixels.slope),
        float(pixels.intercept),
        pixels.window,
        (rows, columns),
        spacing,
        pixels.unit,
        bool(pixels.inverted),
        None if seen is None else torch.from_numpy(np.array(seen)),
        _statistics(small, seen, pixels.slope, pixels.intercept),
        dict(pixels.provenance),
    )


def _black(stored: NDArray[Any], pixels: Pixels) -> Any:
    """The stored value that displays darkest, in the dtype of the valid pixels ``stored``."""
    slope, intercept, window = pixels.slope, pixels.intercept, pixels.window
    ends = (float(stored.min()) * slope + intercept, float(stored.max()) * slope + intercept)
    value, downward = min(ends), True
    if window is not None and window.kind == "table":
        at = int(np.argmin(window.table))
        downward = at < len(window.table) - 1
        value = window.lo if at == 0 else window.lo + at
    elif window is not None:  # a sigmoid is black well below its lower bound
        value = min(value, window.lo - (2 * (window.hi - window.lo) if window.kind == "sigmoid" else 0))
    exact = (value - intercept) / slope
    if stored.dtype.kind not in "iu":
        return stored.dtype.type(exact)
    limits = np.iinfo(stored.dtype)
    whole = np.floor(exact) if downward == (slope > 0) else np.ceil(exact)
    return stored.dtype.type(int(np.clip(whole, limits.min, limits.max)))


def _statistics(
    image: NDArray[Any], valid: NDArray[np.bool_] | None, slope: float, intercept: float
) -> dict[str, float]:
    values = image.astype(np.float64) * slope + intercept
    ring = np.ones(image.shape[:2], bool)
    ring[1:-1, 1:-1] = False
    border = values[ring & valid] if valid is not None and (ring & valid).any() else values[ring]
    inside = values[valid] if valid is not None else values
    inside = inside[np.isfinite(inside)]
    if not inside.size:
        raise Rejected("no_valid_pixels", "no pixel of the image is valid")
    low, high = np.quantile(inside, (0.005, 0.995), method="inverted_cdf")
    numbers = (inside.min(), inside.max(), inside.mean(), inside.std(), low, high, np.median(border))
    return dict(zip(STATISTICS, map(float, numbers), strict=True))


def open_image(
    study: Any, row: int, *, side: int | None, intakes: Mapping[str, Intake], voi: str | int = "auto"
) -> CachedImage:
    """Read and reduce the file of an index row through the intake that indexed it.

    ``voi`` names a window other than the file's first one: only an intake with ``chooses_window`` can be asked for it.
    """
    about = study.row(row)
    intake = intakes.get(about.get("source") or "")
    if intake is None:
        raise Rejected("missing_reader", f"the reader {about.get('source')!r} that indexed this file is not installed")
    if voi != "auto" and not getattr(intake, "chooses_window", False):
        raise Rejected("no_such_window", f"files read by {intake.name!r} have one window")
    path, member = study.file(row)
    with member_file(path, member) as file:
        if file.is_file() and not file.stat().st_size:
            raise Rejected("empty_file", "the file is empty")
        asked: dict[str, Any] = {} if voi == "auto" else {"voi": voi}
        try:
            pixels = intake.open(file, {**about, "member": member}, **asked)
        except HilumError as error:
            if not asked or isinstance(error, Rejected):
                raise
            raise Rejected("no_such_window", error.what) from None
        return reduce_pixels(pixels, side=side)


def installed_intakes(intakes: Sequence[Intake] | None = None) -> dict[str, Intake]:
    """Intakes by name: those given, else every registered one."""
    if intakes is None:
        from hilum.core.registry import registry

        intakes = [kind() for kind in registry.all("intake").values()]
    return {intake.name: intake for intake in intakes}
