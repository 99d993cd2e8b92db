"""Volumes from a study: per-frame rescale, per-slice slopes, padding, limits, axes turned without interpolation."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake.volumes import AXIAL, SPACING, enhanced, item, oblique, places, plane, slices, world

from hilum.core.errors import HilumError
from hilum.core.types import Limits
from hilum.data.index import index_archive
from hilum.data.study import Study
from hilum.medical.dicom.intake import DicomIntake
from hilum.medical.volumes.assemble import assemble
from hilum.medical.volumes.volume import Volume, open_volume, volumes_of

pytestmark = pytest.mark.filterwarnings("ignore")
LINES = [(1.0 + k, -10.0 * k) for k in range(6)]


def study_of(root: Path, **options: Any) -> Study:
    (root.parent / "id.key").write_bytes(bytes(range(32)))
    out = root.parent / "study"
    options = {"workers": 0, "progress": False, "id_key": root.parent / "id.key", **options}
    index_archive(root, out, **options)
    return Study(out)


def only(study: Study, **options: Any) -> Volume:
    (row,) = volumes_of(study).to_pylist()
    return open_volume(study, row["volume_id"], **options)


@pytest.mark.parametrize("axes", [AXIAL, oblique()])
def test_enhanced_frames_out_of_order_each_with_its_rescale(tmp_path: Path, axes: Any) -> None:
    where = places(axes=axes)
    file = enhanced(tmp_path / "a" / "e.dcm", where, lines=LINES, order=[2, 0, 1, 5, 4, 3], axes=axes)
    volume = only(study_of(tmp_path / "a"))
    assert volume.shape == (6, 7, 5) and volume.unit == "HU" and volume.line is None
    assert "instance_order" in volume.problems  # of frames in their file
    expected = np.stack([plane(k) * LINES[k][0] + LINES[k][1] for k in range(6)])
    np.testing.assert_array_equal(volume.values(), expected.astype(np.float32))
    for k, j, i in ((0, 0, 0), (1, 6, 4), (3, 2, 1), (5, 0, 4), (4, 6, 0)):
        np.testing.assert_allclose(volume.world([i, j, k]), world(where[k], j, i, axes), atol=2e-5)

    import highdicom
    import pydicom

    theirs = highdicom.Image.from_dataset(pydicom.dcmread(file)).get_volume(dtype=np.float64)
    ours = volume.world([0, 0, 0]), volume.world([4, 6, 5])
    for at in ours:  # the same place holds the same value
        k, j, i = np.rint(theirs.map_reference_to_indices(at[None])[0]).astype(int)
        mine = np.rint(volume.index(at)).astype(int)
        assert theirs.array[k, j, i] == pytest.approx(float(volume.values()[tuple(mine[::-1])]))


@pytest.mark.parametrize("shear", [(0, 0, 0), (0, 0.4, 0)])
def test_series_equals_highdicom_where_it_accepts(tmp_path: Path, shear: Any) -> None:
    import highdicom
    import pydicom

    axes = oblique()
    files = slices(tmp_path / "a", places(axes=axes, shear=shear), axes=axes, numbers=[3, 1, 6, 2, 5, 4])
    volume = only(study_of(tmp_path / "a"))
    series = [pydicom.dcmread(f) for f in files]
    if any(shear):
        with pytest.raises(ValueError, match="regular"):
            highdicom.get_volume_from_series(series)
        assert any(p.startswith("gantry_tilt") for p in volume.problems)
        return
    theirs = highdicom.get_volume_from_series(series)
    assert sorted(theirs.spatial_shape) == sorted(volume.shape)
    for voxel in ((0, 0, 0), (4, 6, 5), (2, 3, 1)):
        k, j, i = np.rint(theirs.map_reference_to_indices(volume.world(voxel)[None])[0]).astype(int)
        np.testing.assert_allclose(
            theirs.map_indices_to_reference(np.array([[k, j, i]]))[0], volume.world(voxel), atol=1e-4
        )
        assert theirs.array[k, j, i] == volume.values()[voxel[::-1]]


def test_slopes_differ_by_slice_and_padding_counts_for_nothing(tmp_path: Path) -> None:
    """As in PET; pixels of 1021 are declared padding, which one slice has."""
    own = lambda k: {"RescaleSlope": 0.5 * (k + 1), "RescaleIntercept": 0, "PixelPaddingValue": 1021}
    slices(tmp_path / "a", places(), own=own, Modality="PT")
    volume = only(study_of(tmp_path / "a"))
    assert volume.stored.dtype == np.uint16
    np.testing.assert_array_equal(volume.values(), [plane(k) * np.float32(0.5 * (k + 1)) for k in range(6)])
    assert volume.valid is not None and volume.valid.sum() == 6 * 35 - 1 and not volume.valid[1, 1, 1]
    turned = volume.oriented("SAR")  # slices no longer lie along k: values are rounded once
    assert turned.line == (1.0, 0.0) and turned.stored.dtype == np.float32


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAR", "PIR", "ILA"])
def test_turning_keeps_every_voxel_in_its_place(tmp_path: Path, codes: str) -> None:
    where = places(axes=oblique(), shear=(0.2, 0.1, 0))
    slices(tmp_path / "a", where, axes=oblique())
    volume = only(study_of(tmp_path / "a"))
    turned = volume.oriented(codes)
    directions = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
    taken = [directions[c] for c in codes]
    cosines = turned.affine_lps[:3, :3] / np.linalg.norm(turned.affine_lps[:3, :3], axis=0)
    total = sum(cosines[axis, n] * sign for n, (axis, sign) in enumerate(taken))
    assert total > 1.5  # each axis runs towards its direction, as near as obliquity allows
    rng = np.random.default_rng(0)
    for k, j, i in rng.integers(0, turned.shape, (12, 3)):
        mine = np.rint(volume.index(turned.world([i, j, k]))).astype(int)
        np.testing.assert_allclose(volume.world(mine), turned.world([i, j, k]), atol=1e-9)
        assert turned.stored[k, j, i] == volume.stored[tuple(mine[::-1])]
    assert sorted(turned.spacing_mm) == sorted(volume.spacing_mm)
    assert np.abs(np.linalg.det(turned.affine_lps)) == pytest.approx(np.prod(turned.spacing_mm))
    np.testing.assert_array_equal(turned.to_ras().stored, volume.to_ras().stored)
    with pytest.raises(HilumError, match="directions"):
        volume.oriented("LRS")


def test_members_of_a_zip_make_a_volume(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with zipfile.ZipFile(tmp_path / "a" / "study.zip", "w") as archive:
        for file in slices(tmp_path / "plain", places()):
            archive.write(file, f"series/{file.name}")
    volume = only(study_of(tmp_path / "a", workers=1))
    np.testing.assert_array_equal(volume.stored, [plane(k) for k in range(6)])


def test_limits_changes_and_names_are_checked(tmp_path: Path) -> None:
    files = slices(tmp_path / "a", places())
    study = study_of(tmp_path / "a")
    (row,) = volumes_of(study).to_pylist()
    with pytest.raises(HilumError, match="above the limit"):
        open_volume(study, row["volume_id"], limits=Limits(max_pixels=200))
    for wrong in ("nothing", row["series_id"] + "-00000000"):
        with pytest.raises(HilumError, match="no series|no volume"):
            open_volume(study, wrong)
    slices(tmp_path / "a", places(), pixels=lambda k: plane(k, (9, 5)))
    with pytest.raises(HilumError, match="index the archive again"):
        open_volume(study, row["volume_id"])
    files[2].unlink()
    with pytest.raises((HilumError, OSError)):
        open_volume(study, row["volume_id"])


def test_headers_only_gives_the_same_series(tmp_path: Path) -> None:
    slices(tmp_path / "a", places(), numbers=[3, 1, 6, 2, 5, 4])
    enhanced(tmp_path / "a" / "e.dcm", places(), lines=LINES, order=[2, 0, 1, 5, 4, 3], series=2, patient="P2")
    one = volumes_of(study_of(tmp_path / "a"))
    other = tmp_path / "other"
    index_archive(
        tmp_path / "a",
        other,
        workers=0,
        progress=False,
        headers_only=True,
        id_key=tmp_path / "id.key",
        intakes=[DicomIntake()],
    )
    assert volumes_of(Study(other)).equals(one)


def test_a_four_d_enhanced_file_splits_by_its_dimensions(tmp_path: Path) -> None:
    """Two time points of four positions in one file; stacks part it without an option."""
    order, four = list(range(8)), places(4)

    def own(k: int) -> dict[str, Any]:
        return {"FrameContentSequence": item(TemporalPositionIndex=k // 4 + 1)}

    enhanced(tmp_path / "a" / "e.dcm", four + four, lines=[(1, 0)] * 8, order=order, own=own)
    study = study_of(tmp_path / "a")
    (row,) = volumes_of(study).to_pylist()
    assert (row["usable"], row["problems"]) == (False, ["four_d:temporal=2"])
    parts = assemble(study.index.to_pylist(), frozenset({"split_4d"}))
    for part in parts:
        volume = open_volume(study, part["volume_id"], options=["split_4d"])
        late = 4 * (part["split_key"] == "temporal=2")
        np.testing.assert_array_equal(volume.stored, [plane(k + late) for k in range(4)])

    def stacked(k: int) -> dict[str, Any]:
        return {"FrameContentSequence": item(StackID="AB"[k // 4], InStackPositionNumber=k % 4 + 1)}

    enhanced(tmp_path / "b" / "a" / "e.dcm", four + four, lines=[(1, 0)] * 8, order=order, own=stacked)
    found = volumes_of(study_of(tmp_path / "b" / "a")).to_pylist()
    assert [(r["frames"], r["usable"]) for r in found] == [(4, True)] * 2
    assert sorted(r["split_key"] for r in found) == ["stack=0", "stack=1"]  # its text stays in the file


def test_nuclear_slices_and_dose_grids_are_placed(tmp_path: Path) -> None:
    """Frames stacked by a slice vector (either way) and by an offset vector."""
    from fake.dicom import dataset

    frames = np.stack([plane(k) for k in range(4)])
    for n, extra in enumerate(
        (
            {"SliceVector": [1, 2, 3, 4], "SpacingBetweenSlices": -3.0, "Modality": "NM"},
            {"GridFrameOffsetVector": [0.0, 2.0, 4.0, 6.0], "Modality": "RTDOSE", "DoseGridScaling": 1},
            {"GridFrameOffsetVector": [12.5, 14.5, 16.5, 18.5], "Modality": "RTDOSE", "DoseGridScaling": 1},
        )
    ):
        data = dataset(frames + n, frames=4, series=n + 1, patient=f"P{n}", ViewPosition=None, **extra)
        data.ImagePositionPatient, data.ImageOrientationPatient = [-30.0, -40.0, 12.5], list(AXIAL)
        data.PixelSpacing = list(SPACING)
        (tmp_path / "a").mkdir(exist_ok=True)
        data.save_as(tmp_path / "a" / f"{n}.dcm", enforce_file_format=True)
    study = study_of(tmp_path / "a")
    for row in volumes_of(study).to_pylist():
        volume = open_volume(study, row["volume_id"])
        first = volume.stored[0, 0, 0] == 3000
        step = -3.0 if first else 2.0  # mm from one frame to the next
        for k in range(4):
            place = volume.index([-30.0, -40.0, 12.5 + step * k])
            assert volume.stored[round(place[2]), 0, 0] // 1000 == k


def test_a_hole_between_irregular_slices_is_not_interpolated_across(tmp_path: Path) -> None:
    """Two stacks 94 mm apart: a gap as well, and the planes between them hold nothing."""
    where = [(0, 0, z) for z in (0, 2, 4.5, 6.5, 100, 102, 104.6)]
    slices(tmp_path / "a", where, pixels=lambda k: plane(0) + np.uint16(100 * k))
    study = study_of(tmp_path / "a")
    with pytest.raises(HilumError, match="gap:46 missing"):
        only(study, options=["resample"])
    volume = only(study, options=["resample", "allow_gaps"])
    assert volume.valid is not None and volume.shape[0] == 53
    assert volume.valid.all(axis=(1, 2)).nonzero()[0].tolist() == [0, 1, 2, 3, 50, 51, 52]
    assert not volume.valid[4:50].any()
    # depth 6 lies three quarters of the way from the slice at 4.5 to that at 6.5: stored 275, slope 2
    np.testing.assert_allclose(volume.values()[3], 2 * (plane(0) + 275.0) - 1024)


def test_an_oblique_resampled_volume_keeps_its_last_plane(tmp_path: Path) -> None:
    """Its last slice lies on the grid but for what a projection, or three decimals, leave."""
    axes = oblique()
    normal = np.cross(axes[:3], axes[3:])
    for n, depths in enumerate(((0, 2.5, 5, 6, 10, 12.5), (0, 0.7, 1.4, 1.6, 2.8, 3.5))):
        where = [np.round(np.array([-30.0, -40.0, 12.5]) + z * normal, 6 - 3 * n) for z in depths]
        slices(tmp_path / str(n) / "a", where, axes=axes, pixels=lambda k: plane(k) + np.uint16(1))
        volume = only(study_of(tmp_path / str(n) / "a"), options=["resample"])
        assert volume.shape[0] == 6 and volume.valid is None
        np.testing.assert_allclose(volume.values()[5], 2.0 * (plane(5) + 1) - 1024, atol=0.02 * 2000)  # of one step


def test_a_dose_is_scaled_by_its_own_attribute(tmp_path: Path) -> None:
    """RT Dose has DoseGridScaling where images have a rescale."""
    from fake.dicom import dataset

    where: dict[str, Any] = {"ImagePositionPatient": [-30.0, -40.0, 12.5], "ImageOrientationPatient": list(AXIAL)}
    about = {"Modality": "RTDOSE", "GridFrameOffsetVector": [0.0, 2.0, 4.0], "ViewPosition": None, **where}
    about["sop_class"] = "1.2.840.10008.5.1.4.1.1.481.2"
    frames = np.stack([plane(k) for k in range(3)])
    (tmp_path / "a").mkdir()
    for n, own in enumerate(({"DoseGridScaling": "0.0005", "DoseUnits": "GY"}, {})):
        data = dataset(frames + n, frames=3, series=n + 1, patient=f"P{n}", **about, **own)
        data.save_as(tmp_path / "a" / f"{n}.dcm", enforce_file_format=True)
    study = study_of(tmp_path / "a")
    (volume_id,) = volumes_of(study).column("volume_id").to_pylist()
    volume = open_volume(study, volume_id)
    assert volume.unit == "GY"
    np.testing.assert_allclose(volume.values(), frames * 0.0005, rtol=1e-6)
    rows = study.index.select(["status", "reason", "max", "unit"]).to_pylist()
    assert [(row["status"], row["reason"]) for row in rows] == [("indexed", ""), ("quarantined", "missing_attribute")]
    assert rows[0]["max"] == pytest.approx(frames.max() * 0.0005) and rows[0]["unit"] == "GY"
