"""From stored to modality values: rescale or Modality LUT, per frame where the file says so; palettes to RGB."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, convert_color_space

from hilum.data.ledger import Rejected
from hilum.medical.dicom.header import Header
from hilum.medical.dicom.kinds import DOSE
from hilum.medical.dicom.layout import GREY, PALETTE, Layout

Array = NDArray[Any]
_RESCALES = (
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "PixelValueTransformationSequence",
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
)


@dataclass(frozen=True)
class Table:
    """A lookup table (PS3.3 C.11.1.1.1): input ``first`` gives ``values[0]``; inputs outside give the nearest end."""

    first: int
    values: Array
    bits: int

    def __call__(self, x: Array) -> Array:
        return self.values[np.clip(np.rint(x).astype(np.int64) - self.first, 0, len(self.values) - 1)]


@dataclass(frozen=True)
class Modality:
    """``stored * slope + intercept`` of each frame, or ``table(stored)``."""

    slopes: NDArray[np.float64]  # (1,) where all frames share it, else (F,)
    intercepts: NDArray[np.float64]
    table: Table | None = None
    unit: str | None = None

    @property
    def line(self) -> tuple[float, float] | None:
        """Slope and intercept where one line holds for all frames."""
        return (
            (float(self.slopes[0]), float(self.intercepts[0])) if self.table is None and len(self.slopes) == 1 else None
        )

    def span(self, stored: tuple[float, float]) -> tuple[float, float]:
        """Least and greatest value that stored ones between two may become."""
        if self.table is not None:
            return float(self.table.values.min()), float(self.table.values.max())
        ends = [end * self.slopes + self.intercepts for end in stored]
        return float(np.min(ends)), float(np.max(ends))

    def values(self, stored: Array, frames: range) -> Array | None:
        """Modality values of ``frames`` where they are not one line of ``stored``: table output, or float32."""
        if self.table is not None:
            return self.table(stored)
        if self.line is not None:
            return None
        shape = (-1,) + (1,) * (stored.ndim - 1)
        line: Array = stored * self.slopes[frames].reshape(shape) + self.intercepts[frames].reshape(shape)
        return line.astype(np.float32)


def modality_of(header: Header, layout: Layout) -> Modality:
    """Of grey images; anything else is left as it is."""
    one, zero = np.ones(1), np.zeros(1)
    if layout.photometric not in GREY:
        return Modality(one, zero)
    if header.code("Modality") == "RTDOSE" or header.sop_class == DOSE:
        return _dose(header)
    sequence = header.value("ModalityLUTSequence")
    _check_read(header)
    if sequence:
        table = table_of(header, sequence[0], layout.span)
        return Modality(one, zero, table, header.code("ModalityLUTType", data=sequence[0]))
    frames = range(layout.frames if header.has("PerFrameFunctionalGroupsSequence") else 1)
    items = [header.functional(f, "PixelValueTransformationSequence") for f in frames]
    there = [item is not None for item in items]
    if any(there) and not all(there):  # PS3.3 C.7.6.16: a functional group is of all frames, shared or each its own
        raise Rejected("inconsistent_attributes", "some of its frames have a rescale, others have none")
    lines = [_line(header, item) for item in (items if any(there) else [None])]
    _check_read(header)
    if not all(map(_sound, set(lines))):
        raise Rejected("inconsistent_attributes", "RescaleSlope is zero, or the rescale is not finite")
    if len(set(lines)) == 1:
        lines = lines[:1]
    slopes, intercepts = (np.array(values, np.float64) for values in zip(*lines, strict=True))
    return Modality(slopes, intercepts, unit=_unit(header, items[0] if items else None))


def _check_read(header: Header) -> None:
    """A rescale that is there and cannot be read is no identity: its image has no values."""
    for keyword in _RESCALES:
        if f"bad_value:{keyword}" in header.problems:
            raise Rejected("inconsistent_attributes", f"{keyword} cannot be read")


def _dose(header: Header) -> Modality:
    """A dose has DoseGridScaling where images have a rescale (PS3.3 C.8.8.3)."""
    scale = header.number("DoseGridScaling")
    if scale is None or not _sound((scale, 0.0)):
        raise Rejected("missing_attribute", "a dose without DoseGridScaling has no values")
    return Modality(np.array([scale]), np.zeros(1), unit=header.code("DoseUnits"))


def _sound(line: tuple[float, float]) -> bool:
    return all(map(math.isfinite, line)) and line[0] != 0


def _line(header: Header, item: Dataset | None) -> tuple[float, float]:
    slope, intercept = (header.number(k, data=item) for k in ("RescaleSlope", "RescaleIntercept"))
    if (slope is None) != (intercept is None):
        header.note("incomplete_rescale")
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def _unit(header: Header, item: Dataset | None) -> str | None:
    kind = header.code("RescaleType", data=item) or header.code("Units")
    if kind is None and header.code("Modality") == "CT" and "LOCALIZER" not in str(header.value("ImageType") or ""):
        kind = "HU" if header.has("RescaleIntercept") or item is not None else None
    return kind


def table_of(header: Header, item: Dataset, domain: tuple[float, float]) -> Table:
    """A LUT item. 8-bit tables come as bytes or as words; entries beyond the stated depth raise the depth.

    ``domain``: least and greatest value that can be looked up.
    """
    return _table(header, "LUTDescriptor", "LUTData", item, domain)


def _first(word: int, domain: tuple[float, float]) -> int:
    """The first input of a table, which is US or SS: as writers choose the VR by the wrong attribute, the reading that
    can be looked up holds; where both or none can, the signed one if there are negative values (PS3.3 C.11.2.1.1)."""
    low, high = domain
    signed = word - 0x10000 if word > 0x7FFF else word
    within = [low <= value <= high for value in (word, signed)]
    return (word if within[0] else signed) if within[0] != within[1] else signed if low < 0 else word


def _table(header: Header, descriptor: str, data: str, item: Dataset | None, domain: tuple[float, float]) -> Table:
    described = header.shorts(descriptor, data=item, signed=False)
    if len(described) != 3:
        raise Rejected("inconsistent_attributes", f"{descriptor} is not three numbers")
    count, first, bits = described[0] or 1 << 16, _first(described[1], domain), described[2]
    raw = header.value(data, data=item)
    if isinstance(raw, bytes):
        kind = "u1" if len(raw) < 2 * count else "<u2" if header.little_endian else ">u2"
        entries = np.frombuffer(raw, kind, len(raw) // np.dtype(kind).itemsize)
    else:
        entries = np.array([int(v) & 0xFFFF for v in np.atleast_1d(np.asarray([] if raw is None else raw))])
    if len(entries) < count:
        raise Rejected("inconsistent_attributes", f"{data} is shorter than its descriptor says")
    entries = entries[:count].astype(np.uint16)
    return Table(first, entries, max(bits, int(entries.max()).bit_length(), 1))


def to_rgb(header: Header, stored: Array, layout: Layout) -> Array:
    """(F,H,W,3) of palette or colour stored values (PS3.3 C.7.6.3.1.2, C.7.9)."""
    try:
        if layout.photometric == PALETTE:
            return _palette(header, stored)
        if layout.photometric in ("YBR_FULL", "YBR_FULL_422"):
            # By frame it works in place, and stored values are still to be hashed.
            rgb: Array = convert_color_space(stored.copy(), "YBR_FULL", "RGB", per_frame=True)
            return rgb
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        raise Rejected("inconsistent_attributes", "its palette is incomplete") from None
    return stored


def _palette(header: Header, stored: Array) -> Array:
    """Entries of 16 bits that hold 8 (in both bytes, or in the upper one) become 8 bits; nothing is lost."""
    names = [f"{c}PaletteColorLookupTable" for c in ("Red", "Green", "Blue")]
    domain = (float(np.iinfo(stored.dtype).min), float(np.iinfo(stored.dtype).max))
    if header.has("RedPaletteColorLookupTableData"):
        tables = [_table(header, f"{name}Descriptor", f"{name}Data", None, domain) for name in names]
    else:  # segmented: expanded by looking up every input once
        count, first, bits = header.shorts(f"{names[0]}Descriptor", signed=False)
        first = _first(first, domain)
        expanded = apply_color_lut(np.arange(first, first + (count or 1 << 16)), header.data)
        tables = [Table(first, expanded[:, at].astype(np.uint16), bits) for at in range(3)]
    used = np.concatenate([table.values for table in tables])
    rgb = np.stack([table(stored) for table in tables], axis=-1)
    low, high = used & 0xFF, used >> 8
    if high.any() and (not low.any() or (low == high).all()):
        return (rgb >> 8).astype(np.uint8)
    return rgb if high.any() else rgb.astype(np.uint8)
