"""The window: what part of the modality values the file asks to be displayed, and how (PS3.3 C.11.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hilum.core.errors import HilumError
from hilum.core.types import Window
from hilum.medical.dicom.header import Header
from hilum.medical.dicom.layout import GREY, PALETTE, Layout
from hilum.medical.dicom.lut import Modality, table_of
from hilum.medical.dicom.terms import EXPLANATIONS


def window_of(
    header: Header, layout: Layout, modality: Modality, *, voi: str | int = "auto"
) -> tuple[Window | None, str]:
    """(window on modality values, function): the file's own, or None where it has none.

    ``voi``: ``auto`` (VOI LUT Sequence, else the first window), an index, an explanation such as ``LUNG``, or ``none``.
    The function is ``linear``, ``linear_exact``, ``sigmoid``, ``lut`` or ``none``.
    """
    if layout.photometric not in GREY or voi == "none":
        return None, "none"
    item = header.functional(0, "FrameVOILUTSequence")
    sequence = header.value("VOILUTSequence")
    if sequence and voi == "auto":
        signed = layout.kind == "i" or bool(modality.line and min(modality.intercepts) < 0)
        table = table_of(header, sequence[0], signed=signed)
        entries = tuple((table.values / ((1 << table.bits) - 1)).tolist())
        return Window(float(table.first), float(table.first + len(entries) - 1), "table", entries, "voi lut 0"), "lut"
    centres, widths = (header.numbers(k, data=item) for k in ("WindowCenter", "WindowWidth"))
    if not centres or not widths:
        return None, "none"
    names = _explanations(header, len(centres))
    at = _choose(voi, names, min(len(centres), len(widths)))
    function = str(header.value("VOILUTFunction", data=item) or "LINEAR").strip(" \0").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        header.note("unknown_voi_function")
        function = "LINEAR"
    centre, width = centres[at], widths[at]
    if not (width >= 1 if function == "LINEAR" else width > 0):
        header.note("bad_window")
        return None, "none"
    source = f"window {at}" + (f" ({names[at]})" if names[at] else "")
    return window(centre, width, function, source=source), function.lower()


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


def _choose(voi: str | int, names: list[str], count: int) -> int:
    if voi == "auto":
        return 0
    if isinstance(voi, str) and not voi.isdigit():
        if voi.upper() in names:
            return names.index(voi.upper())
        raise HilumError(f"the file has no window named {voi!r}", fix="an index, or voi: auto")
    if int(voi) >= count:
        raise HilumError(f"the file has {count} windows, none with the index {voi}", fix="voi: auto")
    return int(voi)


def _explanations(header: Header, count: int) -> list[str]:
    value = header.value("WindowCenterWidthExplanation")
    texts = [value] if isinstance(value, str) else list(value or [])
    names = [t if (t := str(text).strip(" \0").upper()) in EXPLANATIONS else "" for text in texts]
    return (names + [""] * count)[:count]
