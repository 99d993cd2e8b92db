"""Tiny image files of every kind that published sets hold; no two have the same pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from fake.dicom import write as write_dicom
from PIL import Image

AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])


def grey(root: Path, path: str, rng: np.random.Generator, *, bits: int = 8) -> str:
    """PNG or JPEG by its name, 24 x 20."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    dtype = np.uint8 if bits == 8 else np.uint16
    Image.fromarray(rng.integers(0, 1 << bits, (24, 20), dtype=dtype)).save(file)
    return path


def dicom(root: Path, path: str, rng: np.random.Generator, **options: Any) -> str:
    """12-bit DX; ``patient`` None where its header names nobody."""
    pixels = rng.integers(0, 4096, (24, 20), dtype=np.uint16)
    number = int(rng.integers(1, 1 << 30))
    write_dicom(root / path, pixels, **{"bits": 12, "study": number, "instance": number, **options})
    return path


def volume(root: Path, path: str, rng: np.random.Generator, *, shape: tuple[int, ...] = (8, 7, 4)) -> str:
    _save(root / path, rng.integers(-1000, 1000, shape).astype(np.int16))
    return path


def mask(root: Path, path: str, rng: np.random.Generator, *, values: tuple[int, ...] = (0, 1)) -> str:
    _save(root / path, rng.choice(values, (8, 7, 4)).astype(np.uint8))
    return path


def _save(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(values, AFFINE).to_filename(file)
