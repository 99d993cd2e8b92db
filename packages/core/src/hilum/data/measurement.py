"""Hashes and statistics of an image, frame chunk by frame chunk, so memory does not grow with the number of frames."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_SLICE = 1 << 16  # values counted at a time: they and the bins stay in the processor's cache
_SAMPLES = 1 << 20  # values kept a chunk where no exact histogram is possible


class Measurement:
    """Accumulates what the index records of pixels (FORMATS 5).

    Statistics are over modality values ``stored * slope + intercept`` that are valid and finite, before polarity.
    Integers of up to 16 bits with one slope go through a histogram: percentiles are exact (the smallest value with at
    least that share of pixels at or below it). Others keep a regular sample for percentiles.
    """

    hashes: ClassVar[bool] = True  # off only where what hashing costs is measured

    def __init__(self, *, slope: float = 1.0, intercept: float = 0.0, modality: bool = True) -> None:
        self.slope, self.intercept = slope, intercept
        self._stored = hashlib.sha256()
        self._modality = hashlib.sha256() if modality and self.hashes else None
        self._counts: NDArray[np.int64] | None = None
        self._first = 0  # stored value of histogram bin 0
        self._samples: list[Array] = []
        self._sums = np.zeros(3)  # n, sum, sum of squares
        self._range = [np.inf, -np.inf]
        self._border: float | None = None
        self.non_finite = 0

    def add(
        self,
        stored: Array,
        *,
        values: Array | None = None,
        shown: Array | None = None,
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """A chunk (F,H,W) or (F,H,W,C). ``values`` are modality values where they are not one line of ``stored``,
        ``shown`` what is measured in place of ``stored`` (RGB of a palette); ``valid`` (F,H,W) is False on padding."""
        if self.hashes:
            self._stored.update(hashable(stored))
        if self._modality is not None:
            line = self._line(stored) if values is None else values
            self._modality.update(np.ascontiguousarray(line, "<f4").data.cast("B"))
        measured = values if values is not None else stored if shown is None else shown
        if self._border is None:
            ring = float(np.median(self._ring(measured[0], None if valid is None else valid[0])))
            self._border = ring * self.slope + self.intercept if values is None else ring
        if valid is not None:
            measured = measured[valid]
        if values is None and measured.dtype.kind in "iub" and measured.dtype.itemsize <= 2:
            self._count(measured)
        else:
            self._sample(measured, line=values is None)

    def _line(self, stored: Array) -> Array:
        """Modality values rounded once to float32; few distinct integers are converted once each."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return stored.astype("<f4")
        if stored.dtype.kind in "iub" and stored.dtype.itemsize <= 2:
            words = np.arange(1 << (8 * stored.dtype.itemsize)).astype(f"u{stored.dtype.itemsize}")
            line = words.view(stored.dtype).astype(np.float64) * self.slope + self.intercept
            known: Array = line.astype("<f4")[stored.view(words.dtype)]
            return known
        wide: Array = stored.astype(np.float64) * self.slope + self.intercept
        return wide

    def _ring(self, frame: Array, valid: NDArray[np.bool_] | None) -> Array:
        ring = np.ones(frame.shape[:2], bool)
        ring[1:-1, 1:-1] = False
        if valid is not None and (ring & valid).any():
            ring &= valid
        edge: Array = frame[ring].astype(np.float64)
        return edge[np.isfinite(edge)] if np.isfinite(edge).any() else np.zeros(1)

    def _count(self, stored: Array) -> None:
        bits = 8 * stored.dtype.itemsize
        words = stored.ravel().view(f"u{stored.dtype.itemsize}")
        if stored.dtype.kind == "i":  # flipping the sign bit orders signed values like unsigned ones
            self._first, words = -(1 << (bits - 1)), words ^ np.array(1 << (bits - 1), words.dtype)
        if self._counts is None:
            self._counts = np.zeros(1 << bits, np.int64)
        most = int(words.max()) + 1 if words.size else 0
        for start in range(0, words.size, _SLICE):
            self._counts[:most] += np.bincount(words[start : start + _SLICE], minlength=most)

    def _sample(self, measured: Array, *, line: bool) -> None:
        values = measured.ravel().astype(np.float64)
        if line:
            values = values * self.slope + self.intercept
        finite = np.isfinite(values)
        if not finite.all():
            self.non_finite += int((~finite).sum())
            values = values[finite]
        if values.size:
            self._sums += (values.size, values.sum(), np.square(values).sum())
            self._range = [min(self._range[0], values.min()), max(self._range[1], values.max())]
            self._samples.append(values[:: max(1, -(-values.size // _SAMPLES))])

    @property
    def stored_sha256(self) -> str | None:
        return self._stored.hexdigest() if self.hashes else None

    @property
    def modality_sha256(self) -> str | None:
        return self._modality.hexdigest() if self._modality is not None else None

    def statistics(self, *, background: float | None = None) -> dict[str, float | None]:
        """``min max mean std p005 p995 background``; None where no pixel is valid.

        ``background`` is the padding's modality value where the file declares one, else the median of the outermost
        pixels of the first frame.
        """
        if self._counts is not None:
            values = (np.flatnonzero(self._counts) + self._first) * self.slope + self.intercept
            weights = self._counts[self._counts > 0]
            if self.slope < 0:
                values, weights = values[::-1], weights[::-1]
        else:
            values = np.sort(np.concatenate(self._samples)) if self._samples else np.empty(0)
            weights = np.ones(len(values), np.int64)
        if not len(values):
            return dict.fromkeys(("min", "max", "mean", "std", "p005", "p995", "background"))
        share = np.cumsum(weights) / weights.sum()
        low, high = (float(values[np.searchsorted(share, q)]) for q in (0.005, 0.995))
        if self._counts is not None:
            mean = float((values * weights).sum() / weights.sum())
            spread = float(np.sqrt((np.square(values - mean) * weights).sum() / weights.sum()))
            least, most = float(values[0]), float(values[-1])
        else:
            n, total, squares = self._sums
            mean = float(total / n)
            spread = float(np.sqrt(max(squares / n - mean * mean, 0.0)))
            least, most = (float(v) for v in self._range)
            spread = spread if least < most else 0.0  # sums of large equal values round
        if background is None:
            background = self._border
        return {
            "min": least,
            "max": most,
            "mean": mean,
            "std": spread,
            "p005": low,
            "p995": high,
            "background": background,
        }


def hashable(stored: Array) -> memoryview:
    """Little-endian int32 in C order; 64-bit integers and floats, which that would change, in their own type."""
    if stored.dtype.kind == "f" or stored.dtype.itemsize == 8:
        kind = stored.dtype.newbyteorder("<")
    else:
        kind = np.dtype("<i4")
    return np.ascontiguousarray(stored.astype(kind, copy=False)).data.cast("B")
