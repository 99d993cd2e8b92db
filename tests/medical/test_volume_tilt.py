"""A tilted stack keeps its shear, and ``resample`` puts it on an orthogonal grid: values stay where they were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fake.volumes import AXIAL, SHAPE, SPACING, START, headers, normal_of, oblique, places, plane, slices, world
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.data.index import index_archive
from hilum.data.study import Study
from hilum.medical.dicom.intake import DicomIntake
from hilum.medical.nifti import NiftiIntake
from hilum.medical.volumes.assemble import assemble
from hilum.medical.volumes.volume import Volume, open_volume, volumes_of

pytestmark = pytest.mark.filterwarnings("ignore")

RAMP = np.array([3.0, 20.0, -11.0])  # of stored values, a mm LPS


def index(root: Path, *, intakes: Any = (DicomIntake(),), **options: Any) -> Study:
    out, key = root.parent / f"{root.name}-study", root.parent / "id.key"
    key.write_bytes(bytes(range(32)))
    index_archive(root, out, workers=0, id_key=key, progress=False, intakes=list(intakes), **options)
    return Study(out)


def ramp(where: list[NDArray[np.float64]], axes: Any) -> Any:
    """Pixels of slice k: ``RAMP . place + 5000``, rounded as stored values are."""
    j, i = np.indices(SHAPE)

    def pixels(k: int) -> NDArray[np.uint16]:
        at = np.stack([world(where[k], jj, ii, axes) for jj, ii in zip(j.ravel(), i.ravel(), strict=True)])
        return np.rint(at @ RAMP + 5000).astype(np.uint16).reshape(SHAPE)

    return pixels


def is_orthogonal(affine: Any) -> bool:
    columns = np.reshape(affine, (4, 4))[:3, :3]
    unit = columns / np.linalg.norm(columns, axis=0)
    return bool(np.allclose(unit.T @ unit, np.eye(3), atol=1e-6))


def holds_the_ramp(volume: Volume) -> None:
    k, j, i = np.indices(volume.shape)
    expected = 2 * (volume.world(np.stack([i, j, k], -1)) @ RAMP + 5000) - 1024
    assert volume.valid is not None and volume.valid.any() and not volume.valid.all()
    np.testing.assert_allclose(volume.values()[volume.valid], expected[volume.valid], atol=1.1)  # half a stored step


@pytest.mark.parametrize(
    ("axes", "shear"),
    [
        (AXIAL, (0, 0.6698729810778, 0)),  # 15 degrees
        (AXIAL, (0.3, -0.9, 0)),
        (oblique(), (0.2, -0.1, 0.3)),
    ],
)
@pytest.mark.parametrize("depths", [range(6), (0, 1, 2.6, 3.6, 5.2, 6.2)])
def test_values_of_a_ramp_stay_where_they_were(tmp_path: Path, axes: Any, shear: Any, depths: Any) -> None:
    """Regular, and irregular too: then both steps are linear, and so exact on a ramp."""
    steps = places(2, axes=axes, shear=shear)
    where = [np.array(START) + d * (steps[1] - steps[0]) for d in depths]
    slices(tmp_path / "a", where, axes=axes, pixels=ramp(where, axes))
    (row,) = volumes_of(index(tmp_path / "a", volumes=["resample"])).to_pylist()
    irregular = depths != range(6)
    told = [p.partition(":")[0] for p in row["problems"]]
    assert row["usable"] and "resample:tilt" in row["problems"] and "gantry_tilt" in told
    assert ("irregular_spacing" in told) == irregular
    assert is_orthogonal(row["affine_lps"])
    step = np.reshape(row["affine_lps"], (4, 4))[:3, 2]
    np.testing.assert_allclose(step, normal_of(axes) * row["spacing_mm"][0], atol=1e-6)
    volume = open_volume(Study(tmp_path / "a-study"), row["volume_id"])
    assert list(volume.shape) == row["shape_kji"]
    holds_the_ramp(volume)
    assert volume.line == (1.0, 0.0)


def test_a_ramp_of_floats_is_exact(tmp_path: Path) -> None:
    """Nothing is rounded on the way in: a sheared NIfTI file of float64, its ramp in RAS mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.5, 0, 0.31], [0, 0.8, -0.77], [0, 0, 2.5]])
    affine[:3, 3] = -30, -40, 12.5
    i, j, k = np.indices((5, 7, 6))
    data = (np.stack([i, j, k], -1) @ affine[:3, :3].T + affine[:3, 3]) @ RAMP + 0.25
    (tmp_path / "a").mkdir()
    image = nibabel.Nifti1Image(data, affine)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(tmp_path / "a" / "v.nii")
    study = index(tmp_path / "a", volumes=["resample"], intakes=[NiftiIntake()])
    (row,) = volumes_of(study).to_pylist()
    volume = open_volume(study, row["volume_id"])
    assert "resample:tilt" in row["problems"] and is_orthogonal(volume.affine_lps) and volume.valid is not None
    k, j, i = np.indices(volume.shape)
    ras = volume.world(np.stack([i, j, k], -1)) * (-1, -1, 1)
    expected = ras @ RAMP + 0.25
    np.testing.assert_allclose(volume.values()[volume.valid], expected[volume.valid], atol=1e-3)  # of some 900
    assert volume.valid[0].sum() == 35 and (volume.valid[1:].sum(axis=(1, 2)) == 24).all()  # 6 x 4: one less each way


def test_every_pixel_of_every_slice_is_kept(tmp_path: Path) -> None:
    """Slices moved by whole pixels: two rows up and one column right a slice. None is cut, and nothing else counts."""
    shear = (SPACING[1], -2 * SPACING[0], 0)
    slices(tmp_path / "a", places(4, shear=shear), own=lambda k: {"RescaleSlope": 1, "RescaleIntercept": 10 * k})
    study = index(tmp_path / "a")
    (row,) = volumes_of(study).to_pylist()
    volume = open_volume(study, row["volume_id"], options={"resample"})
    assert volume.shape == (4, 7 + 6, 5 + 3) and volume.valid is not None
    np.testing.assert_allclose(volume.world([0, 6, 0]), np.array(START), atol=1e-6)
    for k in range(4):
        own = slice(6 - 2 * k, 13 - 2 * k), slice(k, k + 5)
        np.testing.assert_allclose(volume.values()[k][own], plane(k) + 10.0 * k)
        there = np.zeros((13, 8), bool)
        there[own] = True
        np.testing.assert_array_equal(volume.valid[k], there)
        assert (volume.values()[k][~there] == 1010 * k).all()  # its darkest


def test_half_a_pixel_of_shear_is_their_mean(tmp_path: Path) -> None:
    slices(tmp_path / "a", places(2, shear=(0, SPACING[0] / 2, 0)), own=lambda k: {"PixelPaddingValue": 1000 + 41})
    study = index(tmp_path / "a", volumes=["resample"])
    (row,) = volumes_of(study).to_pylist()
    volume = open_volume(study, row["volume_id"])
    assert volume.shape == (2, 8, 5) and volume.valid is not None
    expected = 2 * (plane(1)[:-1] / 2 + plane(1)[1:] / 2) - 1024
    np.testing.assert_allclose(volume.values()[1, 1:7], expected)
    # the ends lie outside one of the two, and padding (row 2, column 1) has a share in rows 2 and 3
    beside = np.zeros((8, 5), bool)
    beside[[0, 7]] = True
    beside[[2, 3], 1] = True
    np.testing.assert_array_equal(volume.valid[1], ~beside)


def test_without_the_option_nothing_changes(tmp_path: Path) -> None:
    shear = (0.2, 0.5, 0)
    files = slices(tmp_path / "a", places(shear=shear))
    (plain,), (other,) = assemble(headers(files)), assemble(headers(files), frozenset({"allow_gaps", "split_4d"}))
    assert plain == other and plain["shape_kji"] == [6, *SHAPE] and not is_orthogonal(plain["affine_lps"])
    study = index(tmp_path / "a")
    (row,) = volumes_of(study).to_pylist()
    volume = open_volume(study, row["volume_id"])
    assert volume.valid is None and volume.stored.dtype == np.uint16 and "resample:tilt" not in volume.problems
    np.testing.assert_array_equal(volume.stored, [plane(k) for k in range(6)])
    np.testing.assert_allclose(volume.affine_lps[:3, 2], (0.2, 0.5, 2.5), atol=1e-9)
    straight = headers(slices(tmp_path / "b", places()))
    assert assemble(straight, frozenset({"resample"})) == assemble(straight)


def test_a_gap_stays_a_gap(tmp_path: Path) -> None:
    where = [p for k, p in enumerate(places(6, shear=(0, 0.4, 0))) if k != 3]
    slices(tmp_path / "a", where, pixels=ramp(where, AXIAL))
    study = index(tmp_path / "a", volumes=["resample"])
    (row,) = volumes_of(study).to_pylist()
    assert not row["usable"]
    with pytest.raises(HilumError, match="gap:1 missing"):
        open_volume(study, row["volume_id"])
    volume = open_volume(study, row["volume_id"], options={"allow_gaps"})
    assert volume.valid is not None
    assert volume.valid.any(axis=(1, 2)).tolist() == [True, True, True, False, True, True]
    holds_the_ramp(volume)


def test_a_grid_beyond_any_image_is_refused(tmp_path: Path) -> None:
    """Slices a millimetre apart along the normal and sixty metres beside it: places of no scanner."""
    rows = headers(slices(tmp_path, places(3, step=1, shear=(0, 60_000.0, 0))))
    assert assemble(rows)[0]["usable"]
    (row,) = assemble(rows, frozenset({"resample"}))
    assert not row["usable"] and "resample:tilt" not in row["problems"]
    assert any(p.startswith("irregular_position") for p in row["problems"])
