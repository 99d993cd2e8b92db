"""Small DICOM files with chosen faults, written for tests. Every name in them is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from hilum.core.types import IndexRow, Limits
from hilum.data.ledger import Rejected

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
    encoding = {"is_implicit_VR": syntax == ImplicitVRLittleEndian, "is_little_endian": syntax != ExplicitVRBigEndian}
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128, **encoding)
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
        order = ">" if syntax == ExplicitVRBigEndian else "<"
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


def item(**attributes: Any) -> Dataset:
    """An item of a sequence."""
    found = Dataset()
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


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


def fragmented(path: Path, pixels: NDArray[Any], streams: list[bytes], *, syntax: str, **options: Any) -> Path:
    """A compressed file in any syntax, those that pydicom does not write included."""
    known = "1.2.840.10008.1.2.4.70"
    even = [stream + b"\0" * (len(stream) % 2) for stream in streams]
    write(path, pixels, syntax=known, fragments=even, **options)
    return with_syntax(path, syntax)


def with_syntax(path: Path, syntax: str) -> Path:
    """The same file under another transfer syntax, in its meta information alone."""
    whole = path.read_bytes()
    at = whole.index(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(whole[at + 6 : at + 8], "little")
    name = syntax.encode() + b"\0" * (len(syntax) % 2)
    size = int.from_bytes(whole[140:144], "little") + len(name) - length
    whole = whole[: at + 6] + len(name).to_bytes(2, "little") + name + whole[at + 8 + length :]
    path.write_bytes(whole[:140] + size.to_bytes(4, "little") + whole[144:])
    return path


def own(name: str) -> Path:
    """A file that pydicom carries."""
    return Path(str(get_testdata_file(name, download=False)))


def row(path: Path, *, headers_only: bool = False) -> IndexRow:
    """What the intake says of a file."""
    from hilum.medical.dicom.intake import DicomIntake

    intake = DicomIntake()
    return (intake.read_header if headers_only else intake.read)(path, Limits())[0]


def quarantined(path: Path, *, headers_only: bool = False) -> tuple[str, str]:
    """Reason and message of a file that must be refused."""
    try:
        found = row(path, headers_only=headers_only)
    except Rejected as error:
        return error.reason, error.what
    assert found.status == "quarantined"
    return found.reason, found.message
