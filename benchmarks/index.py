"""`hilum index` against the loops it replaces: headers alone, whole images, and a large archive in flat memory.

Headers: the index (2 workers, isolation, hashing of identifiers, Parquet) against `pydicom.dcmread(stop_before_pixels=
True)` over the same files in one process. Images: what a worker does to a file (decode, statistics, with and without
SHA-256 of stored and modality values) against MONAI's `LoadImage`, alone and followed by the same statistics with numpy;
one process and one thread on both sides. All files are in the page cache.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from claims import arguments, claim, claim_ratio, cores, interleaved, ratios, tell, versions

HEADERS, QUICK_HEADERS = 10_000, 6_000
IMAGES, QUICK_IMAGES = 12, 4
SIDE = 2048
ARCHIVE = 100_000
KEY = bytes(range(32))


def header(number: int, *, side: int, series: int) -> Any:
    """A data set with the hundred elements that a CT scanner writes; every name in it is made up."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    root = "1.2.826.0.1.3680043.8.498."
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"{root}{series}.{number}"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{root}{series // 2 + 1}.0", f"{root}{series}"
    for name in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "PatientBirthDate"):
        setattr(data, name, "20200102")
    for name in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"):
        setattr(data, name, "101112.000000")
    for name in (
        *("StudyDescription", "SeriesDescription", "InstitutionName", "InstitutionAddress", "StationName"),
        *("ManufacturerModelName", "InstitutionalDepartmentName", "ProtocolName", "SoftwareVersions", "PatientAddress"),
        *("DeviceSerialNumber", "RequestedProcedureDescription", "PatientComments", "ImageComments", "MilitaryRank"),
        *("AdmissionID", "StudyComments", "PerformedProcedureStepDescription", "PerformedStationName"),
    ):
        setattr(data, name, f"made up {name}"[:16])
    for name in ("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "PatientName"):
        setattr(data, name, "Made^Up")
    data.Modality, data.Manufacturer, data.BodyPartExamined, data.PatientPosition = "CT", "SIEMENS", "CHEST", "HFS"
    data.AccessionNumber, data.PatientID, data.IssuerOfPatientID = f"A{series // 2}", f"P{series // 4}", "site"
    data.PatientSex, data.PatientAge, data.PatientWeight, data.PatientSize = "F", "050Y", "70", "1.7"
    for name, value in {
        "SliceThickness": 1.0, "KVP": 120, "DataCollectionDiameter": 500, "ReconstructionDiameter": 360,
        "DistanceSourceToDetector": 1040, "DistanceSourceToPatient": 570, "GantryDetectorTilt": 0, "TableHeight": 150,
        "ExposureTime": 500, "XRayTubeCurrent": 200, "Exposure": 100, "GeneratorPower": 24, "FocalSpots": 1.2,
        "SeriesNumber": series, "AcquisitionNumber": 1, "InstanceNumber": number, "SliceLocation": float(number),
        "RescaleIntercept": -1024, "RescaleSlope": 1, "WindowCenter": [40, -600], "WindowWidth": [400, 1500],
        "TableSpeed": 30, "TableFeedPerRotation": 15, "SpiralPitchFactor": 0.9, "CTDIvol": 5.5,
    }.items():  # fmt: skip
        setattr(data, name, value)
    data.ConvolutionKernel, data.FilterType, data.RotationDirection, data.ScanOptions = "B60f", "0", "CW", "SPIRAL"
    data.WindowCenterWidthExplanation, data.RescaleType = ["SOFT", "LUNG"], "HU"
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = f"{root}{series}.9", ""
    data.ImagePositionPatient, data.ImageOrientationPatient = [-180, -180, float(number)], [1, 0, 0, 0, 1, 0]
    for keyword in ("ReferencedStudySequence", "RequestAttributesSequence", "ProcedureCodeSequence"):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "CT01", "99MADE", "made up"
        setattr(data, keyword, [item])
    data.SamplesPerPixel, data.PhotometricInterpretation, data.Rows, data.Columns = 1, "MONOCHROME2", side, side
    data.PixelSpacing, data.BitsAllocated, data.BitsStored, data.HighBit = [0.7, 0.7], 16, 12, 11
    data.PixelRepresentation = 0
    values = np.random.default_rng(number).normal(1000, 120, (side, side))
    values += np.add.outer(np.linspace(0, 1500, side), np.linspace(0, 500, side))
    data.PixelData = values.clip(0, 4095).astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    return data


def archive(folder: Path, count: int, *, side: int, slices: int = 100) -> Path:
    """``count`` files in folders of one series each, by pydicom once and then by rewriting what differs."""
    for series in range(-(-count // slices)):
        place = folder / f"{series:05}"
        place.mkdir(parents=True)
        for number in range(min(slices, count - series * slices)):
            header(number + 1, side=side, series=series + 1).save_as(
                place / f"{number:04}.dcm", enforce_file_format=True
            )
    return folder


def copies(some: Path, folder: Path, count: int) -> Path:
    """``count`` distinct files: others with UIDs and pixels changed, since writing each by pydicom takes minutes."""
    made = [file.read_bytes() for file in sorted(some.rglob("*.dcm"))]
    for number in range(count):
        place = folder / f"{number // 100:05}"
        if number % 100 == 0:
            place.mkdir(parents=True)
        root = b"1.2.826.0.1.368%04d.8.498." % (number // len(made))
        data = made[number % len(made)].replace(b"1.2.826.0.1.3680043.8.498.", root)
        (place / f"{number % 100:04}.dcm").write_bytes(data[:-4] + number.to_bytes(4, "little"))
    return folder


def index(root: Path, out: Path, **options: Any) -> int:
    """A study made afresh; the number of indexed files."""
    from hilum.data.index import index_archive

    shutil.rmtree(out, ignore_errors=True)
    return int(index_archive(root, out, workers=2, progress=False, **options).counts["indexed"])


def headers(folder: Path, count: int) -> None:
    import pydicom

    root = copies(archive(folder / "few headers", 500, side=16), folder / "headers", count)
    files = sorted(root.rglob("*.dcm"))

    def loop() -> None:
        for file in files:
            pydicom.dcmread(file, stop_before_pixels=True)

    def ours() -> None:
        assert index(root, folder / "study", headers_only=True) == count

    ours()  # imports of both, and the fork server
    loop()
    taken = interleaved({"pydicom": loop, "index": ours})
    rates = {name: count / float(np.median(seconds)) for name, seconds in taken.items()}
    mean = len(pydicom.dcmread(files[0], stop_before_pixels=True))
    tell(
        f"{count} files of {mean} elements: index {rates['index']:.0f} files/s, dcmread {rates['pydicom']:.0f} files/s"
    )
    claim_ratio("index_headers", ratios(taken["pydicom"], taken["index"]), "x dcmread", 1.5)


def images(folder: Path, count: int) -> None:
    import torch
    from monai.transforms import LoadImage

    from hilum.core.types import Limits
    from hilum.data.measurement import Measurement
    from hilum.medical.dicom.intake import DicomIntake

    torch.set_num_threads(1)
    files = sorted(archive(folder / "images", count, side=SIDE).rglob("*.dcm"))
    load, intake, limits = LoadImage(image_only=True), DicomIntake(), Limits()

    def loaded() -> None:
        for file in files:
            load(file)

    def loaded_and_measured() -> None:
        for file in files:
            values = np.asarray(load(file))
            low, high = np.percentile(values, (0.5, 99.5))
            ring = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
            values.min(), values.max(), values.mean(), values.std(), low, high, np.median(ring)

    def read(*, hashes: bool) -> None:
        Measurement.hashes = hashes
        for file in files:
            [row] = intake.read(file, limits)
            assert row.status == "indexed" and (row.columns["stored_sha256"] is not None) == hashes
        Measurement.hashes = True

    sides = {
        "load": loaded,
        "load and measure": loaded_and_measured,
        "read": lambda: read(hashes=False),
        "read and hash": lambda: read(hashes=True),
    }
    for side in sides.values():
        side()
    taken = interleaved(sides)
    tell(f"{count} files of {SIDE} x {SIDE}, 12 bits, uncompressed; {versions('monai', 'pydicom')}")
    tell(", ".join(f"{name} {1000 * float(np.median(s)) / count:.0f} ms" for name, s in taken.items()) + " an image")
    claim_ratio("index_statistics", ratios(taken["load and measure"], taken["read"]), "x LoadImage + numpy", 5.0)
    claim_ratio("index_hashes", ratios(taken["load"], taken["read and hash"]), "x LoadImage", 1.5)


def memory(folder: Path, count: int) -> None:
    """The parent's peak over what it has after its imports, in a process of its own; and the rate."""
    root = copies(archive(folder / "some", 1000, side=16), folder / "large", count)
    began = time.monotonic()
    command = [sys.executable, __file__, "--memory", str(root), str(folder / "large study")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    above, seconds = (float(word) for word in done.stdout.split())
    tell(f"{count} files: {seconds:.0f} s with 2 workers, {above:.0f} MiB above the empty process")
    tell(f"the process and its start took {time.monotonic() - began:.0f} s")
    claim("index_memory", above / 1024, f"GiB above the empty process, {count} files", 1.0, below=True)


def remember(root: Path, out: Path) -> None:
    """In a process of its own: print MiB above the start, and seconds."""
    import pydicom  # noqa: F401

    import hilum.data.index
    import hilum.medical.dicom.intake  # noqa: F401

    empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    index(root, out, headers_only=True)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - empty) / 1024, time.monotonic() - began)


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "--memory":
        remember(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    options = arguments(__doc__)
    tell(f"{cores()} cores; {versions('pydicom', 'pyarrow', 'numpy')}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "id.key").write_bytes(KEY)
        (folder / "id.key").chmod(0o600)
        os.environ["HILUM_ID_KEY"] = str(folder / "id.key")
        headers(folder, QUICK_HEADERS if options.quick else HEADERS)
        images(folder, QUICK_IMAGES if options.quick else IMAGES)
        if not options.quick:
            memory(folder, ARCHIVE)


if __name__ == "__main__":
    main()
