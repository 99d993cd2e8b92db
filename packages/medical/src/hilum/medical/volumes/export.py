"""Volumes out: NIfTI files whose voxels have the world coordinates of the source."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.data.ledger import replacing
from hilum.medical.volumes.volume import Volume

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SQUARE = 1e-4  # cosine of axes that a quaternion can hold
_DESCRIPTION = b"hilum"


def write_nifti(volume: Volume, path: Path | str) -> Path:
    """Write NIfTI-1 (of sizes above 32767 NIfTI-2) whole or not at all; ``.nii.gz`` is compressed, without a time stamp.

    Integers stay as they are stored, beside slope and intercept; slices with their own are written as float32 modality
    values. sform and qform both hold the affine (code 1, scanner); where it is sheared (a gantry tilt) only sform can.
    No identifier is written.
    """
    line = volume.line
    if line is None or volume.stored.dtype.kind not in "iuf":
        return write_array(volume.values(), volume.affine_lps, path)
    return write_array(volume.stored, volume.affine_lps, path, line=line)


def write_array(
    array: NDArray[Any], affine_lps: NDArray[np.float64], path: Path | str, *, line: tuple[float, float] = (1.0, 0.0)
) -> Path:
    """Write (K,J,I) or (T,K,J,I) values as they are, with the slope and intercept that make them physical."""
    import nibabel

    path = Path(path)
    stored = array.astype(np.uint8) if array.dtype == bool else array
    if stored.dtype == np.float16:
        stored = stored.astype(np.float32)
    affine = _LPS @ affine_lps
    kind = nibabel.Nifti1Image if max(stored.shape) < 1 << 15 else nibabel.Nifti2Image  # its sizes are 16 bits
    image = kind(stored.T, affine, dtype=stored.dtype)
    image.set_sform(affine, 1)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() < _SQUARE:
        image.set_qform(affine, 1)
    else:
        image.set_qform(None, 0)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = _DESCRIPTION
    if line != (1.0, 0.0):
        image.header.set_slope_inter(*line)
    with replacing(path) as out:
        if path.name.endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=4, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(out)
    return path
