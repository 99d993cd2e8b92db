"""Where the frames of a file lie in the patient, and what else tells them apart: numbers only, of any kind of header."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from hilum.medical.dicom.header import Header
from hilum.medical.dicom.kinds import SEGMENTATION
from hilum.medical.dicom.layout import Layout

Numbers = list[float | None]
SEGMENTATIONS = (SEGMENTATION, "1.2.840.10008.5.1.4.1.1.66.7")  # segments by frame; one map of segment numbers
_MOST_FRAMES = 1 << 16  # with a place each; more are no volume
_FARTHEST = 1e6  # mm that a position may be from its origin
_UNIT, _SQUARE = 1e-2, 1e-2  # how far cosines may be from unit length and from a right angle

# Attribute -> key. The first of two attributes of one key that is there holds.
_PLAIN = {
    "InstanceNumber": "instance",
    "AcquisitionNumber": "acquisition",
    "TemporalPositionIdentifier": "temporal",
    "TemporalPositionIndex": "temporal",
    "FrameReferenceTime": "reference_ms",
    "TriggerTime": "trigger_ms",
    "NominalCardiacTriggerDelayTime": "trigger_ms",
    "NominalPercentageOfCardiacPhase": "cardiac",
    "DiffusionBValue": "b_value",
    "EchoNumbers": "echo",
    "EchoTime": "echo_ms",
    "InversionTime": "inversion_ms",
    "FlipAngle": "flip_deg",
    "KVP": "kvp",
    "SliceThickness": "thickness_mm",
}
# Functional group macro (PS3.3 C.7.6.16.2, C.8.13.5, C.8.15.3, C.8.20.3) -> its attributes and their keys.
_MACROS = {
    "FrameContentSequence": {"TemporalPositionIndex": "temporal", "FrameAcquisitionNumber": "acquisition"},
    "TemporalPositionSequence": {"TemporalPositionTimeOffset": "temporal_s"},
    "CardiacSynchronizationSequence": {
        "NominalCardiacTriggerDelayTime": "trigger_ms",
        "NominalPercentageOfCardiacPhase": "cardiac",
    },
    "MRDiffusionSequence": {"DiffusionBValue": "b_value"},
    "MREchoSequence": {"EffectiveEchoTime": "echo_ms"},
    "MRModifierSequence": {"InversionTimes": "inversion_ms"},
    "MRTimingAndRelatedParametersSequence": {"FlipAngle": "flip_deg"},
    "CTXRayDetailsSequence": {"KVP": "kvp"},
    "SegmentIdentificationSequence": {"ReferencedSegmentNumber": "segment"},
    "PixelMeasuresSequence": {"SliceThickness": "thickness_mm"},
    "PlanePositionSequence": {},
    "PlaneOrientationSequence": {},
    "MRImageFrameTypeSequence": {},
    "CTImageFrameTypeSequence": {},
}
# Vectors of nuclear medicine (PS3.3 C.8.4.8), one value a frame.
_VECTORS = {
    "EnergyWindowVector": "energy",
    "DetectorVector": "detector",
    "PhaseVector": "phase",
    "RotationVector": "rotation",
    "RRIntervalVector": "rr",
    "TimeSlotVector": "time_slot",
    "AngularViewVector": "view",
    "TimeSliceVector": "time_slice",
}
# Where makers keep the b-value instead (their conformance statements): group, creator, offset in its block.
_B_VALUES = (
    (0x0019, "SIEMENS MR HEADER", 0x0C),
    (0x0043, "GEMS_PARM_01", 0x39),
    (0x2001, "Philips Imaging DD 001", 0x03),
)
_GE_MARK = 10**9  # added to a b-value by newer software
_COMPONENTS = {"M": 0, "MAGNITUDE": 0, "P": 1, "PHASE": 1, "R": 2, "REAL": 2, "I": 3, "IMAGINARY": 3}
_DIXON = {"W": 1, "WATER": 1, "F": 2, "FAT": 2, "IP": 3, "IN_PHASE": 3, "OP": 4, "OPP_PHASE": 4, "OUT_PHASE": 4}


def geometry_of(header: Header, layout: Layout) -> dict[str, Any]:
    """``orientation``, ``positions`` and ``frame_keys`` of an image or segmentation (index columns, see the ledger).

    ``orientation``: row and column cosines in LPS (PS3.3 C.7.6.2.1.1), 6, or 6 a frame where they differ. ``positions``:
    mm LPS of the first pixel's centre, 3 a frame, None where unknown. ``frame_keys``: named numbers, one a frame or one
    for all. Columns that nothing is known of are absent. Bad values are noted on the header, never raised.
    """
    frames = layout.frames
    if frames > _MOST_FRAMES:
        header.note("geometry_of_too_many_frames")
        return {}
    keys: dict[str, Numbers] = {}
    groups = _functional(header, frames)
    if groups is None:
        axes, places = _plain(header, frames, keys)
    else:
        axes, places = _grouped(header, groups, keys)
    if (reference := header.identifier("FrameOfReferenceUID")) is not None and any(p is not None for p in places):
        keys["frame_of_reference"] = [_told_apart(reference)]
    columns: dict[str, Any] = {}
    if any(a is not None for a in axes):
        same = all(a == axes[0] for a in axes)
        columns["orientation"] = [v for a in (axes[:1] if same else axes) for v in (a or [None] * 6)]
    if any(p is not None for p in places):
        columns["positions"] = [v for p in places for v in (p or [None] * 3)]
    known = {name: _short(values) for name, values in keys.items() if any(v is not None for v in values)}
    if known:
        columns["frame_keys"] = [{"name": name, "values": known[name]} for name in sorted(known)]
    return columns


def _told_apart(uid: str) -> float:
    """A number that tells UIDs of one series apart, of too few bits to be traced back."""
    return float(int.from_bytes(hashlib.sha256(uid.encode()).digest()[:3], "big"))


def references_of(header: Header) -> list[str]:
    """SeriesInstanceUIDs that a segmentation (PS3.3 C.12.6 Common Instance Reference) or a structure set (C.8.8.5)
    marks; identifiers, to be keyed and dropped."""
    found = [header.value("SeriesInstanceUID", data=item) for item in _items(header, "ReferencedSeriesSequence")]
    for frame in _items(header, "ReferencedFrameOfReferenceSequence"):
        for study in _items(header, "RTReferencedStudySequence", frame):
            series = _items(header, "RTReferencedSeriesSequence", study)
            found += [header.value("SeriesInstanceUID", data=item) for item in series]
    return sorted({text for uid in found if (text := str(uid or "").strip(" \0"))})


def _items(header: Header, keyword: str, data: Dataset | None = None) -> list[Dataset]:
    if not header.has(keyword, data=data):
        return []
    found = header.value(keyword, data=data)
    return list(found) if isinstance(found, Items) else []


def _short(values: Numbers) -> Numbers:
    return values[:1] if all(v == values[0] for v in values) else values


def _plain(header: Header, frames: int, keys: dict[str, Numbers]) -> tuple[list[Any], list[Any]]:
    """Of a header without functional groups: one plane, or planes stacked by an offset vector (RT dose) or a slice
    vector (nuclear medicine)."""
    _take(header, None, _PLAIN, keys)
    _take_gradient(header, None, keys)
    if "b_value" not in keys and header.code("Modality") == "MR" and (b_value := _makers_b_value(header)) is not None:
        keys["b_value"] = [b_value]
    _take_type(header, header.value("ImageType"), keys)
    axes, place = _axes(header, None), _place(header, None)
    if frames == 1:
        return [axes], [place]
    for keyword, name in _VECTORS.items():
        if header.has(keyword) and len(vector := header.numbers(keyword)) == frames:
            keys[name] = [*vector]
    for detector in _items(header, "DetectorInformationSequence")[:1]:
        axes, place = axes or _axes(header, detector), place or _place(header, detector)
    offsets = _offsets(header, frames, axes, place)
    if axes is None or place is None or offsets is None:
        return [axes], [None]
    normal = _cross(axes)
    return [axes], [[p + o * n for p, n in zip(place, normal, strict=True)] for o in offsets]


def _offsets(header: Header, frames: int, axes: list[float] | None, place: list[float] | None) -> list[float] | None:
    """mm along the normal from the stated position, one a frame."""
    grid = header.numbers("GridFrameOffsetVector")  # PS3.3 C.8.8.3.2: relative where it starts with 0, else along z
    if len(grid) == frames and axes is not None and place is not None:
        if grid[0] == 0:
            return grid
        return (
            [g - place[2] for g in grid] if abs(grid[0] - place[2]) < 1e-3 and abs(_cross(axes)[2] - 1) < 1e-6 else None
        )
    slices, step = header.numbers("SliceVector"), header.number("SpacingBetweenSlices")
    if len(slices) == frames and step:  # PS3.3 C.8.4.15: the sign of the spacing is the direction of stacking
        return [(s - 1) * step for s in slices]
    return None


def _functional(header: Header, frames: int) -> list[dict[str, Dataset]] | None:
    """Macros that hold for each frame: its own over the shared ones (PS3.3 C.7.6.16)."""
    shared = _items(header, "SharedFunctionalGroupsSequence")[:1]
    own = _items(header, "PerFrameFunctionalGroupsSequence")[:frames]
    if not shared and not own:
        return None
    common = _macros(header, shared[0]) if shared else {}
    return [{**common, **_macros(header, item)} for item in own] + [common] * (frames - len(own))


def _macros(header: Header, item: Dataset) -> dict[str, Dataset]:
    return {name: found[0] for name in _MACROS if (found := _items(header, name, item))}


def _grouped(
    header: Header, groups: Sequence[Mapping[str, Dataset]], keys: dict[str, Numbers]
) -> tuple[list[Any], list[Any]]:
    frames, axes, places = len(groups), [], []
    stacks = [_stack(header, macros.get("FrameContentSequence")) for macros in groups]
    names = sorted({s for s in stacks if s})  # free text: only its order leaves
    if len(names) > 1:
        keys["stack"] = [float(names.index(s)) if s else None for s in stacks]
    spacings = []
    for at, macros in enumerate(groups):
        mine: dict[str, Numbers] = {}
        for name, attributes in _MACROS.items():
            if name in macros and attributes:
                _take(header, macros[name], attributes, mine)
        if "MRDiffusionSequence" in macros:
            for item in _items(header, "DiffusionGradientDirectionSequence", macros["MRDiffusionSequence"])[:1]:
                _take_gradient(header, item, mine)
        for name in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence"):
            if name in macros:
                _take_type(header, header.value("FrameType", data=macros[name]), mine)
        for name, values in mine.items():
            keys.setdefault(name, [None] * frames)[at] = values[0]
        axes.append(_axes(header, macros["PlaneOrientationSequence"]) if "PlaneOrientationSequence" in macros else None)
        places.append(_place(header, macros["PlanePositionSequence"]) if "PlanePositionSequence" in macros else None)
        spacings.append(header.numbers("PixelSpacing", data=macros.get("PixelMeasuresSequence", Dataset())))
    if any(s != spacings[0] for s in spacings) and all(len(s) == 2 and min(s) > 0 and max(s) < 1e4 for s in spacings):
        keys["row_spacing"], keys["column_spacing"] = [s[0] for s in spacings], [s[1] for s in spacings]
    _take(header, None, {"InstanceNumber": "instance"}, keys)
    if "localizer" not in keys:
        _take_type(header, header.value("ImageType"), keys)
    return axes, places


def _stack(header: Header, content: Dataset | None) -> str:
    return str(header.value("StackID", data=content) or "") if content is not None else ""


def _take(header: Header, data: Dataset | None, attributes: Mapping[str, str], keys: dict[str, Numbers]) -> None:
    for keyword, name in attributes.items():
        if name not in keys:
            values = _finite(header.numbers(keyword, data=data))
            if values:
                keys[name] = [values[0]]


def _take_gradient(header: Header, data: Dataset | None, keys: dict[str, Numbers]) -> None:
    values = _finite(header.numbers("DiffusionGradientOrientation", data=data))
    if len(values) == 3:
        keys |= {f"gradient_{axis}": [value] for axis, value in zip("xyz", values, strict=True)}


def _makers_b_value(header: Header) -> float | None:
    value: Any
    groups = {tag >> 16 for tag in header.elements}
    for group, creator, offset in _B_VALUES:
        value = header.private(group, creator, offset) if group in groups else None
        if isinstance(value, bytes):  # of unknown VR: a number in text, or a float
            text = struct.unpack("<f", value)[0] if len(value) == 4 and group == 0x2001 else value.decode("latin-1")
            value = text if isinstance(text, float) else text.split("\\")
        first = value[0] if hasattr(value, "__getitem__") and not isinstance(value, str) and len(value) else value
        try:
            number = float(str(first).strip(" \0"))
        except ValueError:
            continue
        if math.isfinite(number) and number >= 0:
            return number % _GE_MARK if number >= _GE_MARK else number
    return None


def _take_type(header: Header, value: Any, keys: dict[str, Numbers]) -> None:
    """Terms of ImageType (PS3.3 C.7.6.1.1.2, C.8.13.3) that part images of one position; what is not listed is dropped."""
    words = [str(w).strip().upper() for w in value] if hasattr(value, "append") else []
    for word in ("LOCALIZER", "MOSAIC"):
        if word in words:
            keys[word.lower()] = [1.0]
    if header.code("Modality") == "MR":
        for name, terms in (("component", _COMPONENTS), ("dixon", _DIXON)):
            found = next((terms[w] for w in words[2:] if w in terms), None)
            if found is not None:
                keys[name] = [float(found)]


def _finite(values: Iterable[float]) -> list[float]:
    return [v for v in values if math.isfinite(v)]


def _place(header: Header, data: Dataset | None) -> list[float] | None:
    place = _exactly(header, "ImagePositionPatient", 3, data)
    if place is not None and max(map(abs, place)) > _FARTHEST:
        header.note("bad_value:ImagePositionPatient")
        return None
    return place


def _axes(header: Header, data: Dataset | None) -> list[float] | None:
    """Six cosines that are two directions at a right angle, or None."""
    values = _exactly(header, "ImageOrientationPatient", 6, data)
    if values is None:
        return None
    row, column = values[:3], values[3:]
    lengths = [math.hypot(*row), math.hypot(*column)]
    if max(abs(v - 1) for v in lengths) > _UNIT or abs(sum(map(float.__mul__, row, column))) > _SQUARE:
        header.note("bad_value:ImageOrientationPatient")
        return None
    return values


def _exactly(header: Header, keyword: str, count: int, data: Dataset | None) -> list[float] | None:
    values = header.numbers(keyword, data=data)
    if not values and not header.has(keyword, data=data):
        return None
    if len(values) == count and all(map(math.isfinite, values)):
        return values
    header.note(f"bad_value:{keyword}")
    return None


def _cross(axes: Sequence[float]) -> list[float]:
    """Row x column: the direction that slices are stacked along, of unit length."""
    (a, b, c), (d, e, f) = axes[:3], axes[3:]
    normal = [b * f - c * e, c * d - a * f, a * e - b * d]
    length = math.hypot(*normal)
    return [n / length for n in normal]
