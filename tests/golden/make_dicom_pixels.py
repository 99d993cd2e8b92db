"""Writes dicom_pixels.json: SHA-256 of decoded values of the files that pydicom and pydicom-data carry.

The values come from elsewhere than hilum's decode path: pydicom's own ``pixel_array`` (raw) with plug-ins other than
ours where there are two, SimpleITK for 12-bit JPEG, and pydicom's ``apply_modality_lut``.
``python tests/golden/make_dicom_pixels.py`` makes it anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array
from pydicom.pixels.processing import apply_modality_lut

HERE = Path(__file__).with_name("dicom_pixels.json")
# A second opinion: the plug-in that hilum does not ask first.
PLUGINS = {
    "1.2.840.10008.1.2.5": "pydicom",
    "1.2.840.10008.1.2.4.50": "pillow",  # lossy: decoders differ by a grey level, so it must be the same one
    "1.2.840.10008.1.2.4.80": "gdcm",
    "1.2.840.10008.1.2.4.81": "gdcm",
    "1.2.840.10008.1.2.4.90": "gdcm",
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
}
BY_ITK = ("JPGExtended.dcm", "JPEG-lossy.dcm")  # 12-bit JPEG, which no plug-in of pydicom reads here
# Files whose values hilum gives otherwise than this path, and why.
REASONS: dict[str, str] = {}


def files() -> list[Path]:
    folders = {Path(str(get_testdata_file("CT_small.dcm", download=False))).parent}
    other = get_testdata_file("liver.dcm", download=False)
    folders |= {Path(str(other)).parent} if other else set()
    return sorted((f for folder in folders for f in folder.glob("*.dcm")), key=lambda f: f.name)


def stored(data: pydicom.Dataset, path: Path) -> np.ndarray[Any, Any]:
    syntax = str(data.file_meta.TransferSyntaxUID)
    options = {"decoding_plugin": PLUGINS[syntax]} if syntax in PLUGINS else {}
    if path.name in BY_ITK:
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    else:
        values = pixel_array(data, raw=True, **options)
    frames = int(data.get("NumberOfFrames", 1) or 1)
    return values.reshape(1, *values.shape) if frames == 1 else values


def digest(values: np.ndarray[Any, Any], kind: str) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, kind).tobytes()).hexdigest()


def entry(path: Path) -> dict[str, Any] | None:
    data = pydicom.dcmread(path)
    if "PixelData" not in data or "TransferSyntaxUID" not in data.file_meta:
        return None
    values = stored(data, path)
    bits, allocated = data.BitsStored, data.BitsAllocated
    if data.HighBit != bits - 1 or values.dtype.kind == "f":
        return None
    if allocated > 1 and bits < allocated:  # whatever else shares the words
        words = values.astype(np.int64) & ((1 << bits) - 1)
        values = np.where(words >> (bits - 1) & data.PixelRepresentation, words - (1 << bits), words)
    found: dict[str, Any] = {"shape": list(values.shape), "stored_sha256": digest(values, "<i4")}
    grey = data.PhotometricInterpretation.startswith("MONOCHROME") and data.get("Modality") != "SEG"
    if grey and "PerFrameFunctionalGroupsSequence" not in data:
        dose = data.get("DoseGridScaling") if data.get("Modality") == "RTDOSE" else None  # PS3.3 C.8.8.3
        shown = apply_modality_lut(values, data) if dose is None else values * float(dose)
        found["modality_sha256"] = digest(shown.astype(np.float64), "<f4")
    if path.name in REASONS:
        found["differs"] = REASONS[path.name]
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    table = {}
    for path in files():
        try:
            found = entry(path)
        except Exception as error:
            print(f"{path.name}: {type(error).__name__}")
            continue
        if found is not None:
            table[path.name] = found
    about = {"pydicom": pydicom.__version__, "files": table}
    HERE.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    print(f"{len(table)} files")


if __name__ == "__main__":
    main()
