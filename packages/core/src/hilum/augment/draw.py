"""What was drawn for one sample: small, JSON-able, and enough to repeat the result byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.core.types import SampleKey, ViewGeometry


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Parameters of one view of one sample; a skipped op stands as its neutral parameter.

    ``matrix`` (3, 3) float64 maps output pixel centres (y, x) to source pixel centres. ``sigma`` is the blur in output
    pixels, ``noise`` a standard deviation in window units. ``pivot`` (contrast) and ``fill`` (constant border) are
    modality values, None where none is stored: contrast then turns about mid-grey, and the border is black.
    ``window_shift`` is a fraction of the window's width, ``window_width`` a factor.
    """

    matrix: NDArray[np.float64]
    size: tuple[int, int]
    source_size: tuple[int, int]
    view: int = 0
    key: SampleKey | None = None
    flips: tuple[int, ...] = ()  # mirrored axes of (y, x)
    brightness: float = 1.0
    contrast: float = 1.0
    gamma: float = 1.0
    sigma: float = 0.0
    noise: float = 0.0
    window_shift: float = 0.0
    window_width: float = 1.0
    pivot: float | None = None
    fill: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and None; float64 survives JSON exactly."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        key = self.key and [self.key.run_seed, self.key.epoch, self.key.sample]
        lists = {name: list(out[name]) for name in ("size", "source_size", "flips")}
        return out | lists | {"matrix": self.matrix.tolist(), "key": key}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Draw:
        """The inverse of :meth:`to_json`; :class:`HilumError` where fields are missing or unknown."""
        known = {f.name for f in fields(Draw)}
        if odd := set(values) ^ known:
            raise HilumError(f"this is not a stored draw: fields {sorted(odd)} are missing or unknown")
        tuples = {name: tuple(values[name]) for name in ("size", "source_size", "flips")}
        key = None if values["key"] is None else SampleKey(*values["key"])
        return Draw(**{**values, **tuples, "key": key, "matrix": np.asarray(values["matrix"], np.float64)})

    def geometry(self) -> ViewGeometry:
        """How the output came from its source."""
        return ViewGeometry(size=self.size, source_size=self.source_size, matrix=self.matrix.copy(), flips=self.flips)
