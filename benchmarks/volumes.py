"""Series to volumes: listing, ordering and reading, against SimpleITK on the same files in one process.

Listing: `hilum index --headers-only` with volume assembly, against `ImageSeriesReader.GetGDCMSeriesFileNames` once a
folder, which parses every header and orders by position. Ours also hashes identifiers, checks limits, measures gaps and
tilt, and writes Parquet. Reading: `open_volume` of each volume, against `ImageSeriesReader.Execute` on its files.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
from claims import arguments, claim_ratio, interleaved, ratios, spread, tell, versions
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from hilum.data.index import index_archive
from hilum.data.study import Study
from hilum.medical.volumes.assemble import assemble
from hilum.medical.volumes.volume import open_volume, volumes_of

ROOT = "1.2.826.0.1.3680043.8.498."


def write_series(folder: Path, series: int, count: int, side: int) -> None:
    """A CT series as scanners write it: some sixty attributes before the pixels, InstanceNumber against position."""
    rng = np.random.default_rng(series)
    for k in range(count):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = Dataset()
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"{ROOT}{series}.{k}"
        data.StudyInstanceUID = data.SeriesInstanceUID = f"{ROOT}{series}"
        data.Modality, data.PatientID, data.BodyPartExamined = "CT", f"P{series}", "CHEST"
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
            setattr(data, keyword, "20200101")
        for keyword in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"):
            setattr(data, keyword, "120000.000000")
        for keyword in ("Manufacturer", "InstitutionName", "StationName", "StudyDescription", "SeriesDescription"):
            setattr(data, keyword, "made up for a benchmark")
        for keyword in ("ManufacturerModelName", "ProtocolName", "ConvolutionKernel", "FilterType", "PatientPosition"):
            setattr(data, keyword, "MADE UP")
        for keyword in ("KVP", "SliceThickness", "DataCollectionDiameter", "ReconstructionDiameter"):
            setattr(data, keyword, "120")
        for keyword in ("DistanceSourceToDetector", "DistanceSourceToPatient", "GantryDetectorTilt", "TableHeight"):
            setattr(data, keyword, "0")
        for keyword in ("ExposureTime", "XRayTubeCurrent", "Exposure", "GeneratorPower", "SeriesNumber"):
            setattr(data, keyword, "100")
        data.FrameOfReferenceUID = f"{ROOT}{series}.9"
        data.InstanceNumber = count - k if series % 2 else k + 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [-200, -200, 1.25 * k], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceLocation = [0.8, 0.8], 1.25 * k
        data.Rows = data.Columns = side
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = rng.integers(0, 4096, (side, side)).astype("<u2").tobytes()
        data["PixelData"].VR = "OW"
        data.save_as(folder / f"{series}-{rng.integers(1 << 30):08x}-{k}.dcm", enforce_file_format=True)


def listing(folders: list[Path]) -> list[list[str]]:
    import SimpleITK

    return [list(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))) for folder in folders]


def read_theirs(files: list[str]) -> object:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(files)
    return SimpleITK.GetArrayViewFromImage(reader.Execute())


def index(folder: Path, out: Path, key: Path) -> None:
    index_archive(folder, out, workers=0, headers_only=True, progress=False, id_key=key)


def fresh(folder: Path, key: Path) -> None:
    with tempfile.TemporaryDirectory() as out:
        index(folder, Path(out), key)


def rows(count: int) -> list[dict]:
    """Index rows of one long series, in random order."""
    order = np.random.default_rng(0).permutation(count)
    about = {"series_id": "s", "group_id": "g", "study_id": "t", "modality": "CT", "photometric": "MONOCHROME2"}
    axes, keys = [1.0, 0, 0, 0, 1, 0], [{"name": "instance", "values": [1.0]}]
    plane = {
        "rows": 512,
        "columns": 512,
        "frames": 1,
        "spacing_mm": [0.8, 0.8],
        "orientation": axes,
        "frame_keys": keys,
    }
    return [{**about, **plane, "sample_id": f"{k:08d}", "problems": [], "positions": [0, 0, 0.5 * k]} for k in order]


def main() -> None:
    options = arguments(__doc__)
    warnings.simplefilter("ignore")
    series, count = (4, 100) if options.quick else (12, 300)
    with tempfile.TemporaryDirectory() as name:
        root, key = Path(name) / "archive", Path(name) / "id.key"
        key.write_bytes(bytes(32))
        key.chmod(0o600)
        folders = [root / str(number + 1) for number in range(series)]
        for number, folder in enumerate(folders):
            folder.mkdir(parents=True)
            write_series(folder, number + 1, count, 128 if options.quick else 256)
        index(root, Path(name) / "study", key)
        study = Study(Path(name) / "study")
        volumes = volumes_of(study).column("volume_id").to_pylist()
        files = listing(folders)
        assert sorted(map(len, files)) == [count] * series == [count] * len(volumes)
        lists = interleaved({"simpleitk": lambda: listing(folders), "hilum": lambda: fresh(root, key)})
        reads = interleaved(
            {
                "simpleitk": lambda: [read_theirs(f) for f in files],
                "hilum": lambda: [open_volume(study, v).stored.shape for v in volumes],
            }
        )
    tell(
        f"{series} series of {count} CT slices; {versions('SimpleITK', 'pydicom')}",
        f"listing: SimpleITK {spread(lists['simpleitk'])} s, hilum {spread(lists['hilum'])} s",
        f"reading: SimpleITK {spread(reads['simpleitk'])} s, hilum {spread(reads['hilum'])} s",
    )
    claim_ratio("volume_listing", ratios(lists["simpleitk"], lists["hilum"]), "x SimpleITK's series listing", 1.0)
    claim_ratio("volume_reading", ratios(reads["simpleitk"], reads["hilum"]), "x SimpleITK's series reader", 1.0)
    many = rows(2000 if options.quick else 20000)
    alone = interleaved({"assemble": lambda: assemble(many)})["assemble"]
    tell(f"assembly alone of one series of {len(many)} rows: {spread(alone)} s")


if __name__ == "__main__":
    main()
