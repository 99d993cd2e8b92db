"""Scales beside the modality one: Real World Value Maps and Philips' private scale. Known, never applied by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from hilum.medical.dicom.header import Header
from hilum.medical.dicom.terms import UCUM

_PHILIPS = "Philips MR Imaging DD 001"
_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")


@dataclass(frozen=True)
class RealWorldMap:
    """Stored value -> quantity in ``unit`` (a listed UCUM code, else None), for ``first`` to ``last`` (PS3.3 C.7.6.16.2.11).

    A line (``slope``, ``intercept``) or a ``table`` whose entry 0 belongs to ``first``.
    """

    first: float
    last: float
    slope: float | None
    intercept: float | None
    table: tuple[float, ...]
    unit: str | None

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Quantities of stored values, NaN outside the mapped range."""
        inside = (stored >= self.first) & (stored <= self.last)
        if self.table:
            at = np.clip(np.asarray(stored, np.int64) - int(self.first), 0, len(self.table) - 1)
            values: NDArray[np.float64] = np.asarray(self.table, np.float64)[at]
        else:
            values = np.asarray(stored, np.float64) * (self.slope or 0.0) + (self.intercept or 0.0)
        return np.where(inside, values, np.nan)


def real_world_maps(header: Header, frame: int = 0) -> list[RealWorldMap]:
    """Maps that hold for a frame: its own functional group's, the shared ones, and those of the whole image."""
    items: list[Dataset] = []
    for name, at in zip(_GROUPS, (frame, 0), strict=True):
        groups = header.value(name)
        if groups is not None and at < len(groups):
            items += list(header.value("RealWorldValueMappingSequence", data=groups[at]) or [])
    items += list(header.value("RealWorldValueMappingSequence") or [])
    return [found for item in items if (found := _map(header, item)) is not None]


def _map(header: Header, item: Dataset) -> RealWorldMap | None:
    ends = []
    for which in ("First", "Last"):
        value = header.number(f"RealWorldValue{which}ValueMapped", data=item)
        if value is None:
            value = header.number(f"DoubleFloatRealWorldValue{which}ValueMapped", data=item)
        ends.append(value)
    slope, intercept = (header.number(f"RealWorldValue{k}", data=item) for k in ("Slope", "Intercept"))
    table = tuple(header.numbers("RealWorldValueLUTData", data=item))
    first, last = ends
    if first is None or last is None or (not table and (slope is None or intercept is None)):
        header.note("incomplete:RealWorldValueMappingSequence")
        return None
    codes = header.value("MeasurementUnitsCodeSequence", data=item)
    code = str(header.value("CodeValue", data=codes[0]) or "").strip(" \0") if codes else ""
    return RealWorldMap(first, last, slope, intercept, table, code if code in UCUM else None)


def philips_scale(header: Header, frame: int = 0) -> tuple[float, float] | None:
    """Philips' scale slope SS and intercept SI, (2005,xx0E) and (2005,xx0D): the floating point value of the scanner
    is (stored * RescaleSlope + RescaleIntercept) / (RescaleSlope * SS). Information; None where it is absent."""
    places: list[Dataset | None] = [None]
    groups = header.value(_GROUPS[0])
    if groups is not None and frame < len(groups):
        inner = header.private(0x2005, "Philips MR Imaging DD 005", 0x0F, data=groups[frame])
        places = [*(inner or []), None]
    for place in places:
        found = [header.private(0x2005, _PHILIPS, offset, data=place) for offset in (0x0E, 0x0D)]
        try:
            slope, intercept = float(found[0]), float(found[1] or 0.0)
        except (TypeError, ValueError):
            continue
        return slope, intercept
    return None
