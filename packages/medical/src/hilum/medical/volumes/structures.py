"""Structure sets (PS3.3 A.19, C.8.8.6): closed planar contours filled on the slices that they were drawn on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.core.types import Limits
from hilum.medical.dicom.header import quiet
from hilum.medical.volumes.labels import Label
from hilum.medical.volumes.volume import Volume

Real = NDArray[np.float64]
_BETWEEN = 0.1  # of a slice distance: a contour this near to a slice is on it
_FARTHEST = 1e6  # voxels from the first one that a contour may reach
_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_TYPES = """ORGAN PTV CTV GTV TREATED_VOLUME IRRAD_VOLUME OAR BOLUS AVOIDANCE EXTERNAL SUPPORT FIXATION CAVITY CONTRAST_AGENT
    DOSE_REGION CONTROL BRACHY_CHANNEL BRACHY_ACCESSORY BRACHY_SRC_APP REGISTRATION ISOCENTER MARKER FIDUCIAL
    DOSE_MEASUREMENT"""  # PS3.3 C.8.8.8.1, RT ROI Interpreted Type


def read_structures(path: Path, volume: Volume, limits: Limits) -> list[Label]:
    """Structures in order of their ROI numbers, as masks (K,J,I) bool.

    A voxel belongs to a structure where an odd number of its contours on that slice surround the voxel's centre, so that
    a contour inside another is a hole, and so is a keyhole. Contours that lie between slices, or across them, are an
    error: filling them would invent a surface. Points, open lines and contours that are written twice are counted and left
    out: the second of two equal ones would erase the first.
    """
    data = _dataset(path, limits)
    types = {_number(o): _type(o) for o in _items(data, "RTROIObservationsSequence")}
    masks: dict[int, NDArray[np.bool_]] = {}
    left_out, drawn = Counter[int](), set()
    for roi in _items(data, "ROIContourSequence"):
        number = _number(roi)
        if number is None:
            raise HilumError("the structure set is damaged: ReferencedROINumber")
        mask = masks.setdefault(number, np.zeros(volume.shape, bool))  # of several items with one number as well
        for kind, points in _contours(roi):
            if kind not in _AREAS or len(points) < 3 or (number, points.tobytes()) in drawn:
                left_out[number] += 1
                continue
            drawn.add((number, points.tobytes()))
            k, polygon = _on_slice(points, volume, number)
            mask[k] ^= inside(polygon, volume.shape[1:])
    return [Label(n, types.get(n), mask, left_out[n]) for n, mask in sorted(masks.items())]


def inside(polygon: Real, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(J,I) pixels whose centre (i, j) lies in a closed polygon (n,2) of (i, j), by the even-odd rule.

    A centre on the boundary belongs to the side of larger i and j, so that polygons that share an edge share no pixel.
    """
    rows, columns = shape
    crossings = np.zeros((rows, columns + 1), np.int32)
    for edge in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        # From its lower end, whichever way the polygon runs: an edge that two share crosses at the same numbers.
        (x0, y0), (x1, y1) = sorted(edge, key=lambda point: float(point[1]))
        first, last = max(0, int(np.ceil(y0))), min(rows - 1, int(np.ceil(y1)) - 1)
        if first > last:
            continue
        j = np.arange(first, last + 1)
        x = x0 + (j - y0) / (y1 - y0) * (x1 - x0)  # a share of at most 1 first: a nearly level edge has no finite slope
        crossings[j, np.clip(np.ceil(x), 0, columns).astype(np.int64)] += 1
    odd: NDArray[np.bool_] = np.cumsum(crossings[:, :columns], axis=1) % 2 == 1
    return odd


def _dataset(path: Path, limits: Limits) -> Any:
    """Numbers and codes of the file; names are not kept."""
    import pydicom

    if path.stat().st_size > limits.max_bytes:
        raise HilumError("the structure set is larger than the limit")
    wanted = ["ROIContourSequence", "RTROIObservationsSequence"]
    with quiet():
        try:
            return pydicom.dcmread(path, specific_tags=wanted, force=True)
        except Exception as error:
            raise HilumError(f"the structure set cannot be parsed ({type(error).__name__})") from None


def _items(data: Any, keyword: str) -> Sequence[Any]:
    try:
        return data.get(keyword) or ()
    except Exception:
        raise HilumError(f"the structure set is damaged: {keyword}") from None


def _number(item: Any) -> int | None:
    """ROI number of an item, None where it has none; what stands there instead is not quoted."""
    try:
        return int(item.ReferencedROINumber)
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


def _type(observation: Any) -> str | None:
    text = str(observation.get("RTROIInterpretedType") or "").strip().upper()
    return text if text in _TYPES.split() else None


def _contours(roi: Any) -> Iterator[tuple[str, Real]]:
    for contour in _items(roi, "ContourSequence"):
        try:
            points = np.array([float(v) for v in contour.get("ContourData") or ()], np.float64).reshape(-1, 3)
        except (TypeError, ValueError, OverflowError):
            raise HilumError("the structure set is damaged: ContourData") from None
        yield str(contour.get("ContourGeometricType") or ""), points


def _on_slice(points: Real, volume: Volume, number: int) -> tuple[int, Real]:
    """(k, polygon of (i, j)) of a contour."""
    if not np.isfinite(points).all():
        raise HilumError("the structure set is damaged: ContourData")
    ijk = volume.index(points)
    if np.abs(ijk).max() > _FARTHEST:
        raise HilumError(f"structure {number} has a contour beyond the volume")
    k = np.rint(ijk[:, 2].mean())
    off = float(np.abs(ijk[:, 2] - k).max())
    if off > _BETWEEN:
        raise HilumError(
            f"structure {number} has a contour {off:.2g} slices off the nearest slice",
            fix="use the images that it was drawn on",
        )
    if not 0 <= k < volume.shape[0]:
        raise HilumError(f"structure {number} has a contour beyond the slices of the volume")
    return int(k), ijk[:, :2]
