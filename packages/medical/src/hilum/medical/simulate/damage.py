"""Files that are broken on purpose, and copies: what an archive of radiographs holds beside radiographs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .chance import Name, accession, cohort_mark, generator, uid
from .vendors import EXPLICIT, IMPLICIT, RLE

if TYPE_CHECKING:
    from pydicom import FileDataset

KINDS = ("truncated", "missing_frames", "empty", "not_dicom", "duplicate")


def _readable(path: Path, names: Sequence[Name]) -> FileDataset:
    """The file with pixels in the clear and an identity of its own within its study."""
    from pydicom import dcmread

    data = dcmread(path)
    if data.file_meta.TransferSyntaxUID not in (EXPLICIT, IMPLICIT):
        data.decompress(generate_instance_uid=False)
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid(*names, "image")
    data.SeriesInstanceUID = uid(*names, "series")
    return data


def damage(kind: str, source: Path, target: Path, *, seed: int, number: int) -> None:
    """Write ``target`` from the good file ``source``, damaged in the way ``kind`` names.

    ``truncated``: half of the pixel data. ``missing_frames``: a compressed file that claims more frames than it
    holds (a reader that iterates over frames ends with StopIteration). ``empty``: no byte. ``not_dicom``: text
    under a DICOM name. ``duplicate``: the same bytes under another name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind == "empty":
        target.write_bytes(b"")
    elif kind == "not_dicom":
        target.write_text("SIMULATED: this file is a note that somebody left in the archive.\n" * 8)
    elif kind == "duplicate":
        shutil.copyfile(source, target)
    else:
        data = _readable(source, (seed, "damage", number))
        if kind == "truncated":
            data.PixelData = data.PixelData[: len(data.PixelData) // 4 * 2]
        else:
            data.compress(RLE, generate_instance_uid=False)
            data.NumberOfFrames = 3
        data.save_as(target, enforce_file_format=True)


def copy_near(source: Path, target: Path, *, seed: int, number: int) -> tuple[str, str, str]:
    """The picture of ``source`` filed under another patient with a trace of noise: a near duplicate.

    Returns (study UID, SOP instance UID, patient id).
    """
    data = _readable(source, (seed, "copy", number))
    noise = generator(seed, "copy", number, "noise").integers(-2, 3, (int(data.Rows), int(data.Columns)))
    top = (1 << int(data.BitsStored)) - 1
    data.PixelData = np.clip(data.pixel_array.astype(np.int32) + noise, 0, top).astype("<u2").tobytes()
    data.PatientID, data.PatientName = f"SIMCOPY{cohort_mark(seed)}{number:05d}", f"SIMULATED^COPY{number:03d}"
    data.AccessionNumber = accession(seed, f"SIMCOPY{number:06d}")
    data.StudyInstanceUID = uid(seed, "copy", number, "study")
    target.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(target, enforce_file_format=True)
    return str(data.StudyInstanceUID), str(data.SOPInstanceUID), str(data.PatientID)
