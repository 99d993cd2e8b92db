"""From stored to modality values: rescale or Modality LUT, per frame where the file says so; palettes to RGB."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import convert_color_space

from hilum.data.ledger import Rejected
from hilum.medical.dicom.header import Header
from hilum.medical.dicom.kinds import DOSE, unscaled
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
    if header.sop_class == DOSE or (header.code("Modality") == "RTDOSE" and _scaled(header)):
        return _dose(header)
    sequence = header.value("ModalityLUTSequence")
    fixed = unscaled(header.sop_class)
    if not fixed:
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
    if not fixed:
        _check_read(header)
    if not all(map(_sound, set(lines))):
        raise Rejected("inconsistent_attributes", "RescaleSlope is zero, or the rescale is not finite")
    if len(set(lines)) == 1:
        lines = lines[:1]
    slopes, intercepts = (np.array(values, np.float64) for values in zip(*lines, strict=True))
    return Modality(slopes, intercepts, unit=_unit(header, items[0] if items else None))


def _check_read(header: Header) -> None:
    """A rescale that is there and cannot be read is no identity: an image of quantities has no values then."""
    for keyword in _RESCALES:
        if f"bad_value:{keyword}" in header.problems:
            raise Rejected("inconsistent_attributes", f"{keyword} cannot be read")


def _scaled(header: Header) -> bool:
    """Whether Modality RTDOSE means a dose; a picture of one has it, too, as another class without the scaling."""
    return header.has("DoseGridScaling") or not header.sop_class


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
    if (slope is None) != (intercept is None) or (item is not None and slope is None):
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


def _first(word: int, count: int, domain: tuple[float, float]) -> int:
    """The first input of a table, which is US or SS: as writers choose the VR by the wrong attribute, the reading holds
    of which entries can be looked up; where both or none can, the signed one if there are negative values (PS3.3
    C.11.2.1.1)."""
    low, high = domain
    signed = word - 0x10000 if word > 0x7FFF else word
    within = [value <= high and low < value + count for value in (word, signed)]
    return (word if within[0] else signed) if within[0] != within[1] else signed if low < 0 else word


def _table(header: Header, descriptor: str, data: str, item: Dataset | None, domain: tuple[float, float]) -> Table:
    described = header.shorts(descriptor, data=item, signed=False)
    if len(described) != 3:
        raise Rejected("inconsistent_attributes", f"{descriptor} is not three numbers")
    count, bits = described[0] or 1 << 16, described[2]
    first = _first(described[1], count, domain)
    raw = header.value(data, data=item)
    entries = _entries(header, raw, wide=not isinstance(raw, bytes) or len(raw) >= 2 * count)
    if len(entries) < count:
        raise Rejected("inconsistent_attributes", f"{data} is shorter than its descriptor says")
    entries = entries[:count].astype(np.uint16)
    return Table(first, entries, max(bits, int(entries.max()).bit_length(), 1))


def _entries(header: Header, raw: Any, *, wide: bool) -> Array:
    """Of OB or OW, 8 or 16 bits each, or of US."""
    if isinstance(raw, bytes):
        kind = "u1" if not wide else "<u2" if header.little_endian else ">u2"
        return np.frombuffer(raw, kind, len(raw) // np.dtype(kind).itemsize)
    return np.array([int(v) & 0xFFFF for v in np.atleast_1d(np.asarray([] if raw is None else raw))])


def _expanded(data: list[int], count: int, *, wide: bool) -> Array:
    """Up to ``count`` entries of a segmented palette (PS3.3 C.7.9.2): values, ramps, and copies of earlier segments.

    Where a copy starts is counted in bytes, least significant part first. ValueError where a segment is none, or as many
    segments as no palette needs make nothing.
    """
    values: list[int] = []
    steps = 0

    def read(at: int, segments: int, *, copies: bool) -> None:
        nonlocal steps
        while segments and at + 1 < len(data) and len(values) < count:
            kind, length = data[at : at + 2]
            at, segments, steps = at + 2, segments - 1, steps + 1
            if kind == 0:
                values.extend(data[at : at + length])
                at += length
            elif kind == 1 and values and length:
                ramp = np.linspace(values[-1], data[at], length + 1)[1:]
                values.extend(np.around(ramp).astype(int).tolist())
                at += 1
            elif kind == 2 and values and copies:
                parts, bits = (2, 16) if wide else (4, 8)
                start = sum(part << bits * i for i, part in enumerate(data[at : at + parts]))
                read(start // 2 if wide else start, length, copies=False)
                at += parts
            else:
                raise ValueError
            if steps > 1 << 18:
                raise ValueError

    read(0, len(data), copies=True)
    if len(values) < count:
        raise ValueError
    return np.array(values[:count], np.uint16)


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
    else:
        count, first, bits = header.shorts(f"{names[0]}Descriptor", signed=False)
        count, wide = count or 1 << 16, bits > 8
        data = [_entries(header, header.value(f"Segmented{name}Data"), wide=wide).tolist() for name in names]
        first = _first(first, count, domain)
        tables = [Table(first, _expanded(each, count, wide=wide), bits) for each in data]
    used = np.concatenate([table.values for table in tables])
    rgb = np.stack([table(stored) for table in tables], axis=-1)
    low, high = used & 0xFF, used >> 8
    if high.any() and (not low.any() or (low == high).all()):
        return (rgb >> 8).astype(np.uint8)
    return rgb if high.any() else rgb.astype(np.uint8)
