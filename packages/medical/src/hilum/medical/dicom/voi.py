"""The window: what part of the modality values the file asks to be displayed, and how (PS3.3 C.11.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydicom.dataset import Dataset

from hilum.core.errors import HilumError
from hilum.core.types import Window
from hilum.data.ledger import Rejected
from hilum.medical.dicom.header import Header
from hilum.medical.dicom.layout import GREY, PALETTE, Layout
from hilum.medical.dicom.lut import Modality, table_of
from hilum.medical.dicom.terms import EXPLANATIONS

PRESETS: dict[str, tuple[float, float]] = {
    "abdomen": (50.0, 400.0),
    "angio": (300.0, 600.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "liver": (30.0, 150.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "soft_tissue": (50.0, 400.0),
    "spine": (50.0, 250.0),
    "stroke": (40.0, 40.0),
    "subdural": (75.0, 215.0),
    "temporal_bone": (600.0, 2800.0),
}
"""Centre and width in HU, of CT alone. Values as radiologists teach them (Radiopaedia, "Windowing (CT)", of whose ranges
the middle is taken; CT angiography: 300/600 as vendors' consoles have it)."""


def window_of(
    header: Header, layout: Layout, modality: Modality, *, voi: str | int = "auto", frame: int = 0
) -> tuple[Window | None, str]:
    """(window on modality values, function): the file's own, or None where it has none.

    ``voi``: ``auto`` (VOI LUT Sequence, else the first window), an index, an explanation such as ``LUNG``, one of
    PRESETS where the values are HU, or ``none``. Indexes count the windows, then the VOI LUTs; an explanation may be a
    window's or a VOI LUT's. ``frame`` is the one whose functional group is asked (PS3.3 C.7.6.16.2.10). The function is
    ``linear``, ``linear_exact``, ``sigmoid``, ``lut`` or ``none``.
    """
    if layout.photometric not in GREY or voi == "none":
        return None, "none"
    item = header.functional(frame, "FrameVOILUTSequence")
    tables = (header.value("VOILUTSequence", data=item) if item is not None else None) or []
    if not tables and (item is None or not header.has("WindowCenter", data=item)):
        tables = header.value("VOILUTSequence") or []
    centres, widths = (header.numbers(k, data=item, gaps=True) for k in ("WindowCenter", "WindowWidth"))
    count = min(len(centres), len(widths))
    names = _explanations(header, "WindowCenterWidthExplanation", item, count)
    names += [_explanations(header, "LUTExplanation", table, 1)[0] for table in tables]
    preset = isinstance(voi, str) and voi.lower() in PRESETS
    if not names and not preset:
        return None, "none"
    first = next((i for i in range(count) if _finite(centres[i], widths[i])), 0)
    at = _choose(voi, names, count if tables else first)
    if at is None:
        return _preset(str(voi).lower(), modality), "linear"
    if at >= count:
        try:
            table = table_of(header, tables[at - count], modality.span(layout.span))
        except Rejected:  # of the display alone: its values are what they are
            header.note("bad_window")
            if voi != "auto" or not count:
                return None, "none"
            at = first
        else:
            entries = tuple((table.values / ((1 << table.bits) - 1)).tolist())
            source = f"voi lut {at - count}" + (f" ({names[at]})" if names[at] else "")
            return Window(float(table.first), float(table.first + len(entries) - 1), "table", entries, source), "lut"
    function = str(header.value("VOILUTFunction", data=item) or "LINEAR").strip(" \0").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        header.note("unknown_voi_function")
        function = "LINEAR"
    centre, width = centres[at], widths[at]
    if not _finite(centre, width) or not (width >= 1 if function == "LINEAR" else width > 0):
        header.note("bad_window")
        return None, "none"
    source = f"window {at}" + (f" ({names[at]})" if names[at] else "")
    return window(centre, width, function, source=source), function.lower()


def _finite(centre: float, width: float) -> bool:
    return math.isfinite(centre) and math.isfinite(width)


def differs_by_frame(header: Header, frames: int) -> bool:
    """Whether functional groups state several windows: one image has one, that of the first frame asked for."""
    if frames < 2 or not header.has("PerFrameFunctionalGroupsSequence"):
        return False
    first: list[Any] | None = None
    for frame in range(frames):
        item = header.functional(frame, "FrameVOILUTSequence")
        found: list[Any] = []
        if item is not None:
            found = [header.numbers(k, data=item) for k in ("WindowCenter", "WindowWidth")]
            found += [header.value("LUTData", data=t) for t in header.value("VOILUTSequence", data=item) or []]
        first = found if first is None else first
        if found != first:
            return True
    return False


def _preset(name: str, modality: Modality) -> Window:
    if modality.unit != "HU":
        raise HilumError(f"the window {name!r} is in HU, and the values of this image are not", fix="voi: auto")
    centre, width = PRESETS[name]
    return window(centre, width, source=f"preset {name}")


def window(centre: float, width: float, function: str = "LINEAR", *, source: str = "") -> Window:
    """DICOM centre and width as bounds. LINEAR: PS3.3 C.11.2.1.2.1; LINEAR_EXACT, SIGMOID: C.11.2.1.3."""
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    lo, hi = centre - width / 2, centre + width / 2
    if hi <= lo:  # LINEAR of width 1 is a step, at or below which everything is black
        hi = lo + max(abs(lo), 1.0) * 2.0**-16
    return Window(lo, hi, "sigmoid" if function == "SIGMOID" else "linear", source=source)


def fallback(
    layout: Layout, modality: Modality, statistics: Mapping[str, Any], *, wide_palette: bool = False
) -> Window:
    """Where the file has no window: the full range of 8 bits and of colour, else the 0.5 to 99.5 percentile range."""
    plain = modality.line == (1.0, 0.0) and layout.kind == "u"
    if plain and (layout.stored <= 8 or layout.photometric not in GREY):
        bits = layout.stored if layout.photometric != PALETTE else 16 if wide_palette else 8
        return Window(0.0, float((1 << bits) - 1), source="range full")
    low, high = statistics.get("p005"), statistics.get("p995")
    low, high = (0.0, 1.0) if low is None or high is None else (float(low), float(high))
    return Window(low, high if high > low else low + 1.0, source="range p0.5-p99.5")


def mirrored(window: Window) -> Window:
    """The window of negated values that displays the inverse: 1 - window(x) at -x."""
    table = tuple(1.0 - v for v in reversed(window.table))
    return Window(-window.hi, -window.lo, window.kind, table, window.source)


def _choose(voi: str | int, names: list[str], first: int) -> int | None:
    """Which of the file's windows; None for a preset. The file's own window of that name goes first."""
    if voi == "auto":
        return first
    if isinstance(voi, str) and not voi.isdigit():
        name = voi.upper().replace("_", " ")
        if name in names:
            return names.index(name)
        if voi.lower() in PRESETS:
            return None
        raise HilumError(
            f"the file has no window named {voi!r}", fix=f"an index, voi: auto, or one of {', '.join(PRESETS)}"
        )
    if int(voi) >= len(names) or int(voi) < 0:
        raise HilumError(f"the file has {len(names)} windows, none with the index {voi}", fix="voi: auto")
    return int(voi)


def _explanations(header: Header, keyword: str, item: Dataset | None, count: int) -> list[str]:
    value = header.value(keyword, data=item)
    texts = [value] if isinstance(value, str) else list(value) if hasattr(value, "append") else []
    names = [t if (t := str(text).strip(" \0").upper()) in EXPLANATIONS else "" for text in texts]
    return (names + [""] * count)[:count]
