"""Series of slices with chosen geometry and faults, written for tests. Every name in them is made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fake.dicom import dataset
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from hilum.core.types import Limits
from hilum.data.isolation import read_file
from hilum.medical.dicom.intake import DicomIntake

SHAPE = (7, 5)  # rows, columns
SPACING = (0.8, 0.5)  # between rows, between columns: not square
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
START = (-30.0, -40.0, 12.5)


def oblique(a: float = 0.3, b: float = -0.5, c: float = 0.7) -> tuple[float, ...]:
    """Row and column cosines of three turns (radians)."""
    turns = np.eye(3)
    for axis, angle in enumerate((a, b, c)):
        one, two = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[one, one] = turn[two, two] = np.cos(angle)
        turn[one, two], turn[two, one] = -np.sin(angle), np.sin(angle)
        turns = turn @ turns
    return (*turns[:, 0], *turns[:, 1])


def plane(k: int, shape: tuple[int, int] = SHAPE) -> NDArray[np.uint16]:
    """Stored values that tell which voxel each is: 1000 k + 20 j + i."""
    j, i = np.indices(shape)
    return (1000 * k + 20 * j + i).astype(np.uint16)


def normal_of(axes: Sequence[float]) -> NDArray[np.float64]:
    return np.cross(axes[:3], axes[3:])


def world(k_place: Sequence[float], j: int, i: int, axes: Sequence[float] = AXIAL) -> NDArray[np.float64]:
    """LPS mm of pixel (j, i) of a slice by PS3.3 equation C.7.6.2.1-1, written out."""
    row, column = np.array(axes[:3]), np.array(axes[3:])
    return np.array(k_place) + row * SPACING[1] * i + column * SPACING[0] * j


def places(
    count: int = 6, step: float = 2.5, axes: Sequence[float] = AXIAL, *, shear: Sequence[float] = (0, 0, 0)
) -> list[NDArray[np.float64]]:
    """Positions of slices along the normal, each ``shear`` mm further beside it."""
    return [np.array(START) + k * (step * normal_of(axes) + np.array(shear)) for k in range(count)]


def slices(
    folder: Path,
    where: Sequence[Sequence[float]],
    *,
    axes: Sequence[float] = AXIAL,
    numbers: Sequence[int] | None = None,
    first: int = 0,
    own: Callable[[int], dict[str, Any]] = lambda k: {},
    pixels: Callable[[int], NDArray[Any]] = plane,
    **options: Any,
) -> list[Path]:
    """One CT file a position; ``own(k)`` adds attributes, ``numbers`` are InstanceNumbers (default: as positions go)."""
    files = []
    folder.mkdir(parents=True, exist_ok=True)
    about = {"sop_class": CTImageStorage, "Modality": "CT", "BodyPartExamined": "HEAD", "ViewPosition": None}
    for k, place in enumerate(where):
        data = dataset(
            pixels(k),
            instance=first + k + 1,
            **{**about, **options},
            InstanceNumber=k + 1 if numbers is None else numbers[k],
            ImagePositionPatient=[f"{v:.9g}" for v in place],
            ImageOrientationPatient=[f"{v:.12f}"[:16] for v in axes],
            FrameOfReferenceUID="1.2.826.0.1.3680043.8.498.9",
            SliceThickness=2.5,
            RescaleSlope=2,
            RescaleIntercept=-1024,
        )
        data.PixelSpacing = list(SPACING)
        for name, value in own(k).items():
            setattr(data, name, value)
        files.append(folder / f"{options.get('series', 1)}-{first + k:03d}.dcm")
        data.save_as(files[-1], enforce_file_format=True)
    return files


def headers(files: list[Path]) -> list[dict[str, Any]]:
    """Index rows without a study, as an intake gets them."""
    rows = []
    for at, file in enumerate(files):
        row = read_file(file, [DicomIntake()], Limits(), headers_only=True)[0]
        about = {"sample_id": f"{at:03d}", "series_id": "series", "group_id": "group", "study_id": "study"}
        rows.append({**row.columns, **about, "problems": row.problems})
    return rows


def item(**attributes: Any) -> Dataset:
    made = Dataset()
    for name, value in attributes.items():
        setattr(made, name, Items([value]) if isinstance(value, Dataset) else value)
    return made


def enhanced(
    path: Path,
    where: Sequence[Sequence[float]],
    *,
    lines: Sequence[tuple[float, float]],
    order: Sequence[int],
    axes: Sequence[float] = AXIAL,
    own: Callable[[int], dict[str, Dataset]] = lambda k: {},
    **options: Any,
) -> Path:
    """An Enhanced CT: frames lie in the file as ``order`` says, each with its own rescale (slope, intercept)."""
    frames = np.stack([plane(k) for k in order])
    about = {"sop_class": EnhancedCTImageStorage, "Modality": "CT", "ViewPosition": None}
    data = dataset(frames, frames=len(order), **{**about, **options})
    del data.PixelSpacing
    data.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.9"
    data.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=item(ImageOrientationPatient=[f"{v:.12f}"[:16] for v in axes]),
            PixelMeasuresSequence=item(PixelSpacing=list(SPACING), SliceThickness=2.5),
        )
    ]
    data.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=item(ImagePositionPatient=[f"{v:.9g}" for v in where[k]]),
            PixelValueTransformationSequence=item(
                RescaleSlope=lines[k][0], RescaleIntercept=lines[k][1], RescaleType="HU"
            ),
            **own(k),
        )
        for k in order
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path
