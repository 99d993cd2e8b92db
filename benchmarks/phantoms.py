"""Synthetic 12-bit radiographs written as DICOM, and studies of them: what the data benchmarks read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    generate_uid,
)

from hilum.data.index import index_archive
from hilum.data.study import Study

SYNTAXES: Mapping[str, UID] = {
    "uncompressed": ExplicitVRLittleEndian,
    "jpeg2000": JPEG2000Lossless,
    "jpeg_lossless": JPEGLosslessSV1,
    "jpeg_ls": JPEGLSLossless,
}


def phantom(rows: int, columns: int, seed: int) -> np.ndarray:
    """uint16 (rows, columns) in 12 bits: smooth shapes, ribs and quantum noise of some 8 grey levels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j].astype(np.float32)
    lungs = sum(np.exp(-(((x - c) / 0.3) ** 2) - ((y + 0.1) / 0.6) ** 2) for c in (-0.45, 0.45))
    ribs = np.sin(y * rng.uniform(18, 24) + 3 * np.abs(x)) * lungs
    level = 1700 + 300 * rng.random() + 1300 * lungs + 180 * ribs
    noisy = level + rng.standard_normal((rows, columns), np.float32) * 8
    return noisy.round().clip(0, 4095).astype(np.uint16)


def write_dicom(path: Path, pixels: np.ndarray, syntax: UID, *, patient: str) -> None:
    """One DX file, compressed as its transfer syntax says."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.PatientID, data.PatientName, data.Modality = patient, patient, "DX"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = 1, 0, "US"
    data.WindowCenter, data.WindowWidth, data.ImagerPixelSpacing = 2200, 2600, [0.15, 0.15]
    data.PixelData = pixels.astype("<u2").tobytes()
    if syntax == JPEGLosslessSV1:
        import imagecodecs

        data.PixelData = encapsulate([imagecodecs.ljpeg_encode(pixels, bitspersample=12)])
        data["PixelData"].VR = "OB"
        data.file_meta.TransferSyntaxUID = syntax
    elif syntax != ExplicitVRLittleEndian:
        data.compress(syntax, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def study_of(folder: Path, *, size: tuple[int, int], count: int, syntaxes: Mapping[str, UID] = SYNTAXES) -> Study:
    """``count`` different files a syntax, one patient each, indexed; ``syntaxes`` name the files' folders."""
    for number, (name, syntax) in enumerate(syntaxes.items()):
        for i in range(count):
            patient = f"P{number}{i:04d}"
            write_dicom(
                folder / "dicom" / name / f"{i}.dcm", phantom(*size, number * count + i), syntax, patient=patient
            )
    result = index_archive(folder / "dicom", folder / "study", progress=False)
    study = Study(folder / "study")
    if len(study.rows(None)) != count * len(syntaxes):
        raise SystemExit(f"the synthetic files were not all indexed: {result.counts}")
    return study
