"""What successive frames of a file are: time, depth, b-value ... by what the header says varies along them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hilum.medical.dicom.header import Header

_TIME = frozenset({"US", "XA", "RF", "ES", "IVUS", "GM", "XC"})  # of these, several frames are a film
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_CLASSES = {
    f"{_STORAGE}13.1.3": "depth",  # breast tomosynthesis, reconstructed
    f"{_STORAGE}13.1.4": "angle",  # and its projections
    f"{_STORAGE}13.1.5": "angle",
    f"{_STORAGE}13.1.1": "depth",  # 3-D angiography
    f"{_STORAGE}13.1.2": "depth",
    f"{_STORAGE}77.1.6": "tile",  # whole slide
    f"{_STORAGE}481.2": "depth",  # dose grid
}
# Dimension Index Pointer, or an attribute of a frame's functional groups (PS3.3 C.7.6.17) -> axis
_POINTERS = {
    0x00200032: "depth",  # ImagePositionPatient
    0x00209057: "depth",  # InStackPositionNumber
    0x0040072A: "depth",  # ZOffsetInSlideCoordinateSystem
    0x00209056: "stack",  # StackID
    0x00189087: "b_value",  # DiffusionBValue
    0x00189089: "direction",  # DiffusionGradientOrientation
    0x00189075: "direction",  # DiffusionDirectionality
    0x00209128: "time",  # TemporalPositionIndex
    0x0020930D: "time",  # TemporalPositionTimeOffset
    0x00189074: "time",  # FrameAcquisitionDateTime
    0x00209153: "trigger",  # NominalCardiacTriggerDelayTime
    0x00209241: "trigger",  # NominalPercentageOfCardiacPhase
    0x00189082: "echo",  # EffectiveEchoTime
    0x00189079: "inversion",  # InversionTimes
    0x00181314: "flip",  # FlipAngle
    0x00180060: "energy",  # KVP
    0x00200062: "laterality",  # ImageLaterality
    0x0062000B: "segment",  # ReferencedSegmentNumber
    0x0048021E: "tile",  # ColumnPositionInTotalImagePixelMatrix
    0x0048021F: "tile",  # RowPositionInTotalImagePixelMatrix
    0x00181500: "angle",  # PositionerMotion, and the angles it makes
    0x00181510: "angle",
}
# Frame Increment Pointer (PS3.3 C.7.6.6, nuclear medicine C.8.4.8) -> the vector it names, axis
_VECTORS = {
    0x00540010: ("EnergyWindowVector", "energy"),
    0x00540020: ("DetectorVector", "detector"),
    0x00540030: ("PhaseVector", "phase"),
    0x00540050: ("RotationVector", "rotation"),
    0x00540060: ("RRIntervalVector", "rr"),
    0x00540070: ("TimeSlotVector", "time"),
    0x00540080: ("SliceVector", "depth"),
    0x00540090: ("AngularViewVector", "angle"),
    0x00540100: ("TimeSliceVector", "time"),
    0x00182001: ("PageNumberVector", "page"),
    0x00182005: ("SliceLocationVector", "depth"),
    0x00181065: ("FrameTimeVector", "time"),
    0x00181063: ("", "time"),  # FrameTime
    0x3004000C: ("GridFrameOffsetVector", "depth"),
}


def frames_axis(header: Header, frames: int) -> str | None:
    """``time depth b_value stack echo ...`` of successive frames, None of a single one, ``unknown`` where nothing says.

    Where several vary they stand in the order of the header's dimensions, joined by commas (``b_value,depth``: the last
    one runs fastest). Frames are never re-ordered; depth that goes back and forth is noted as ``frames_out_of_order``.
    """
    if frames <= 1:
        return None
    for found in (_dimensions(header, frames), _vectors(header, frames)):
        if found:
            return ",".join(found)
    by_class = _CLASSES.get(header.sop_class)
    if by_class:
        return by_class
    if header.has("GridFrameOffsetVector"):
        return "depth"
    if any(header.has(k) for k in ("FrameTime", "FrameTimeVector")):
        return "time"
    if len(set(_places(header, frames))) > 1:
        return "depth"
    return "time" if header.code("Modality") in _TIME else "unknown"


def _dimensions(header: Header, frames: int) -> list[str]:
    """Dimensions (PS3.3 C.7.6.17) whose index differs between frames."""
    dimensions, groups = (header.value(k) for k in ("DimensionIndexSequence", "PerFrameFunctionalGroupsSequence"))
    if not dimensions or not groups or len(groups) < frames:
        return []
    rows = []
    for frame in range(frames):
        content = header.functional(frame, "FrameContentSequence")
        values = header.numbers("DimensionIndexValues", data=content) if content is not None else []
        if len(values) != len(dimensions):
            return []
        rows.append(values)
    axes = []
    for at, item in enumerate(dimensions):
        pointer = header.value("DimensionIndexPointer", data=item)
        if len({row[at] for row in rows}) > 1:
            axes.append(_POINTERS.get(int(pointer), "other") if pointer is not None else "other")
    found = list(dict.fromkeys(axes))
    if found == ["depth"]:
        _order(header, frames)
    return found


def _vectors(header: Header, frames: int) -> list[str]:
    pointers = header.value("FrameIncrementPointer")
    if pointers is None:
        return []
    many = list(pointers) if hasattr(pointers, "append") else [pointers]
    found = []
    for pointer in many:
        keyword, axis = _VECTORS.get(_int(pointer), ("", ""))
        values = header.numbers(keyword) if keyword else []
        if axis and (not keyword or axis == "time" or len(many) == 1 or len(set(values[:frames])) > 1):
            found.append(axis)
    return list(dict.fromkeys(found))


def _int(pointer: Any) -> int:
    try:
        return int(pointer)
    except (TypeError, ValueError):
        return 0


def _places(header: Header, frames: int) -> list[tuple[float, ...]]:
    """ImagePositionPatient of each frame that has its own."""
    groups = header.value("PerFrameFunctionalGroupsSequence")
    if not groups:
        return []
    found = []
    for group in groups[:frames]:
        inner = header.value("PlanePositionSequence", data=group)
        values = header.numbers("ImagePositionPatient", data=inner[0]) if inner else []
        if len(values) == 3:
            found.append(tuple(values))
    return found


def _order(header: Header, frames: int) -> None:
    plane = header.functional(0, "PlaneOrientationSequence")
    cosines = header.numbers("ImageOrientationPatient", data=plane) if plane is not None else []
    places = _places(header, frames)
    if len(cosines) != 6 or len(places) != frames:
        return
    (a, b, c), (d, e, f) = cosines[:3], cosines[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    along = [sum(p * n for p, n in zip(place, normal, strict=True)) for place in places]
    steps = [y - x for x, y in pairwise(along)]
    if min(steps) < 0 < max(steps):
        header.note("frames_out_of_order")
