"""Six invented makers of radiography systems and how each writes a picture down.

They differ as real ones do: polarity, bits stored, modality rescale or none, window vectors with explanations,
SIGMOID, VOI LUT Sequence or nothing at all, transfer syntax, matrix, pixel spacing. Read through its own VOI,
every maker's file shows the same picture. The maker is drawn by patient and knows nothing of findings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset

Stored = NDArray[np.uint16]
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
RLE, JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
LUT_ENTRIES, LUT_BITS = 1024, 12


@dataclass(frozen=True)
class Vendor:
    """``shape`` rows and columns relative to the nominal size, ``field_mm`` height of the detector field; ``rescale``
    (slope, intercept) or None where the attributes are left out; ``suffix`` of its files."""

    name: str
    model: str
    modality: Literal["DX", "CR"]
    photometric: Literal["MONOCHROME1", "MONOCHROME2"]
    bits: int
    voi: Literal["none", "window", "windows", "exact", "sigmoid", "lut"]
    syntax: str
    rescale: tuple[float, float] | None = (1.0, 0.0)
    shape: tuple[float, float] = (1.0, 1.0)
    field_mm: float = 318.0
    suffix: str = ".dcm"

    def size(self, nominal: int) -> tuple[int, int]:
        """Rows and columns."""
        return round(nominal * self.shape[0]), round(nominal * self.shape[1])

    def pixel_mm(self, nominal: int) -> float:
        return self.field_mm / self.size(nominal)[0]


VENDORS = (
    Vendor("SIMULATED Aurora", "Flat 12", "DX", "MONOCHROME2", 12, "window", EXPLICIT),
    Vendor(
        "SIMULATED Borealis",
        "Raw 10",
        "DX",
        "MONOCHROME1",
        10,
        "none",
        RLE,
        shape=(1.06, 0.98),
        field_mm=330.0,
        suffix="",
    ),
    Vendor(
        "SIMULATED Cirrus", "Wave 14", "DX", "MONOCHROME2", 14, "windows", JPEG_2000, shape=(0.94, 0.94), field_mm=312.0
    ),
    Vendor("SIMULATED Dorado", "Table 16", "DX", "MONOCHROME1", 16, "lut", JPEG_LS, shape=(1.0, 1.04), field_mm=322.0),
    Vendor(
        "SIMULATED Eos",
        "Plate 12",
        "CR",
        "MONOCHROME2",
        12,
        "sigmoid",
        IMPLICIT,
        rescale=(0.25, -512.0),
        shape=(0.98, 1.0),
        suffix=".img",
    ),
    Vendor(
        "SIMULATED Fjord",
        "Deep 16",
        "DX",
        "MONOCHROME2",
        16,
        "exact",
        EXPLICIT,
        rescale=None,
        shape=(1.02, 1.02),
        field_mm=326.0,
    ),
)


def _linear(shown: NDArray[np.float64], centre: float, width: float) -> NDArray[np.float64]:
    """Values that LINEAR (PS3.3 C.11.2.1.2.1) shows as ``shown``."""
    return (shown - 0.5) * (width - 1) + centre - 0.5


def write_pixels(dataset: Dataset, brightness: NDArray[np.float32], vendor: Vendor, rng: np.random.Generator) -> Stored:
    """Put the image pixel, modality and VOI attributes of ``brightness`` (H, W) in [0, 1] into ``dataset``.

    Returns the stored values. Window centre and width vary from image to image with the (random) dose.
    """
    from pydicom import Dataset as NewDataset
    from pydicom.sequence import Sequence

    top = (1 << vendor.bits) - 1
    inverse = vendor.photometric == "MONOCHROME1"
    shown = np.clip(1 - brightness if inverse else brightness, 0, 1).astype(np.float64)
    slope, intercept = vendor.rescale or (1.0, 0.0)
    span = top * slope  # range of modality values
    width = float(round(rng.uniform(0.5, 0.8) * span))
    centre = float(round(intercept + rng.uniform(0.44, 0.56) * span))
    values: NDArray[np.float64]
    if vendor.voi == "none":
        low = rng.uniform(0.02, 0.12) * span
        values = low + shown * rng.uniform(0.7, 0.86) * span
    elif vendor.voi == "sigmoid":  # shown = 1 / (1 + exp(-4 (value - centre) / width)), PS3.3 C.11.2.1.3.1
        inside = np.clip(shown, 0.03, 0.97)
        width = float(round(0.45 * width))
        values = centre + width / 4 * np.log(inside / (1 - inside))
    elif vendor.voi == "exact":  # PS3.3 C.11.2.1.3.2
        values = (shown - 0.5) * width + centre
    elif vendor.voi == "lut":
        first, bend = int(rng.integers(200, 4000)), float(rng.uniform(0.7, 1.4))
        values = first + shown ** (1 / bend) * (LUT_ENTRIES - 1)
        dataset.VOILUTSequence = Sequence(
            [_lut(NewDataset(), first, bend * tilt, text) for text, tilt in (("NORMAL", 1.0), ("HARD", 1.5))]
        )
    else:
        values = _linear(shown, centre, width)
    if vendor.voi in ("window", "exact", "sigmoid"):
        dataset.WindowCenter, dataset.WindowWidth = _text(centre), _text(width)
    if vendor.voi == "windows":
        dataset.WindowCenter = [_text(centre)] * 3
        dataset.WindowWidth = [_text(width), _text(round(0.7 * width)), _text(round(1.4 * width))]
        dataset.WindowCenterWidthExplanation = ["NORMAL", "HARDER", "SOFTER"]
    if vendor.voi in ("sigmoid", "exact"):
        dataset.VOILUTFunction = "SIGMOID" if vendor.voi == "sigmoid" else "LINEAR_EXACT"
    if vendor.rescale:
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = _text(slope), _text(intercept), "US"

    stored = np.clip(np.rint((values - intercept) / slope), 0, top).astype(np.uint16)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = vendor.photometric
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, vendor.bits, vendor.bits - 1
    dataset.PixelRepresentation = 0
    if vendor.modality == "DX":
        dataset.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
        dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1 if not inverse else 1
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    return stored


def _lut(item: Any, first: int, bend: float, explanation: str) -> Any:
    table = np.rint(np.linspace(0, 1, LUT_ENTRIES) ** bend * ((1 << LUT_BITS) - 1)).astype("<u2")
    item.add_new(0x00283002, "US", [LUT_ENTRIES, first, LUT_BITS])
    item.LUTExplanation = explanation
    item.add_new(0x00283006, "OW", table.tobytes())
    return item


def _text(number: float) -> str:
    """A decimal string (VR DS) of at most 16 characters."""
    return f"{number:.10g}"
