"""Small DICOM files with chosen faults, written for tests. Every name in them is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.8.498."


def uid(*parts: int) -> str:
    return ROOT + ".".join(map(str, parts))


def dataset(
    pixels: NDArray[Any] | None,
    *,
    patient: str | None = "AB-0007",
    issuer: str | None = None,
    study: int = 1,
    series: int = 1,
    instance: int = 1,
    photometric: str = "MONOCHROME2",
    bits: int | None = None,
    syntax: str = ExplicitVRLittleEndian,
    sop_class: str = DigitalXRayImageStorageForPresentation,
    frames: int | None = None,
    fragments: list[bytes] | None = None,
    **attributes: Any,
) -> FileDataset:
    """``pixels`` (H,W), (F,H,W) with ``frames``, or (H,W,3) for colour; integers. An attribute of None is removed."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid(study, series, instance)
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop_class, uid(study, series, instance)
    data.StudyInstanceUID, data.SeriesInstanceUID = uid(study), uid(study, series)
    data.Modality, data.BodyPartExamined, data.ViewPosition = "DX", "CHEST", "PA"
    data.PatientName, data.PatientID, data.AccessionNumber = "Doe^Jane", patient, f"ACC{study}"
    if issuer is not None:
        data.IssuerOfPatientID = issuer
    if pixels is not None:
        colour = photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
        shape = pixels.shape[:-1] if colour else pixels.shape
        data.Rows, data.Columns = shape[-2:]
        data.SamplesPerPixel = 3 if colour else 1
        if colour:
            data.PlanarConfiguration = 0
        if frames is not None:
            data.NumberOfFrames = frames
        data.PhotometricInterpretation = photometric
        data.BitsAllocated = 8 * pixels.dtype.itemsize
        data.BitsStored = bits or data.BitsAllocated
        data.HighBit = data.BitsStored - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.PixelSpacing = [0.5, 0.25]
        order = ">" if syntax == "1.2.840.10008.1.2.2" else "<"
        raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        data.PixelData = (
            encapsulate(fragments, has_bot=False) if fragments is not None else raw + b"\0" * (len(raw) % 2)
        )
        data["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 or fragments is not None else "OW"
    for name, value in attributes.items():
        if value is None:
            if name in data:
                delattr(data, name)
        else:
            setattr(data, name, value)
    return data


def write(path: Path, pixels: NDArray[Any] | None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset(pixels, **options).save_as(path, enforce_file_format=True)
    return path


def table(first: int, entries: NDArray[Any], bits: int, *, signed: bool = False) -> Dataset:
    """An item of a Modality or VOI LUT Sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if not signed else "SS", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def phantom(seed: int = 0, shape: tuple[int, int] = (24, 32), bits: int = 12) -> NDArray[np.uint16]:
    """A smooth image with noise over most of the range."""
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.linspace(0, 0.5, shape[0]), np.linspace(0, 0.4, shape[1]))
    values = (ramp + rng.uniform(0, 0.1, shape)) * ((1 << bits) - 1)
    return values.astype(np.uint16)
