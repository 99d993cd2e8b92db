"""Segmentations and structure sets on the grid of the volume that they mark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from fake.volumes import AXIAL, START, item, oblique, places, slices
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from hilum.core.errors import HilumError
from hilum.data.index import index_archive
from hilum.data.study import Study
from hilum.medical.volumes.labels import label_map, labels_of, open_label
from hilum.medical.volumes.structures import inside
from hilum.medical.volumes.verb import volumes
from hilum.medical.volumes.volume import Volume, open_volume, volumes_of

pytestmark = pytest.mark.filterwarnings("ignore")
SECRET = "Smith lesion"


def study_of(root: Path) -> Study:
    (root.parent / "id.key").write_bytes(bytes(range(32)))
    index_archive(root, root.parent / "study", workers=0, progress=False, id_key=root.parent / "id.key")
    return Study(root.parent / "study")


def opened(study: Study) -> tuple[Volume, int]:
    """The volume, and the row of its one label."""
    (row,) = (r for r in volumes_of(study).to_pylist() if r["frames"] == 6)
    (label,) = labels_of(study, row["series_id"])
    return open_volume(study, row["volume_id"]), label


def segments(count: int) -> list[Any]:
    return [
        highdicom.seg.SegmentDescription(
            segment_number=n + 1,
            segment_label=SECRET,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Neoplasm,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for n in range(count)
    ]


def segmentation(path: Path, files: list[Path], pixels: np.ndarray, kind: str, count: int, **options: Any) -> Any:
    sources = [pydicom.dcmread(f) for f in files]
    for source in sources:
        source.PatientBirthDate = source.PatientSex = source.StudyDate = source.StudyTime = source.StudyID = ""
        source.ReferringPhysicianName = ""
    made = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=segments(count),
        series_instance_uid="1.2.826.0.1.3680043.8.498.77",
        series_number=9,
        sop_instance_uid="1.2.826.0.1.3680043.8.498.78",
        instance_number=1,
        manufacturer="M",
        manufacturer_model_name="N",
        software_versions="1",
        device_serial_number="2",
        **options,
    )
    made.save_as(path)
    return made


@pytest.mark.parametrize("axes", [AXIAL, oblique()])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segments_lie_where_highdicom_puts_them(tmp_path: Path, axes: Any, kind: str) -> None:
    files = slices(tmp_path / "a", places(axes=axes), axes=axes, numbers=[3, 1, 6, 2, 5, 4])
    rng = np.random.default_rng(1)
    if kind == "LABELMAP":
        pixels = rng.integers(0, 4, (6, 7, 5)).astype(np.uint8)
        truth = {n: pixels == n for n in (1, 2, 3)}
    elif kind == "BINARY":
        pixels = (rng.random((6, 7, 5, 3)) < 0.3).astype(np.uint8)
        pixels[..., 1] = 0
        truth = {n + 1: pixels[..., n] > 0 for n in range(3)}
    else:
        pixels = np.where(rng.random((6, 7, 5, 1)) < 0.5, rng.random((6, 7, 5, 1)), 0).astype(np.float32)
        truth = {1: pixels[..., 0]}
    made = segmentation(tmp_path / "a" / "seg.dcm", files, pixels, kind, len(truth))
    study = study_of(tmp_path / "a")
    volume, row = opened(study)
    about = study.row(row)
    assert (about["status"], about["role"]) == ("indexed", "label")
    found = open_label(study, row, volume)
    assert [label.number for label in found] == list(truth)
    for label in found:
        assert label.code in ("49755003", None) and label.mask.shape == volume.shape
        if kind == "FRACTIONAL":
            np.testing.assert_allclose(label.mask, truth[1], atol=0.5 / 255 + 1e-6)
        else:
            np.testing.assert_array_equal(label.mask, truth[label.number])
    whole = label_map(found)
    assert (whole is None) == (kind != "LABELMAP")  # overlaps and shares have no one number a voxel
    assert SECRET not in str(study.index.to_pylist())
    if kind == "BINARY":
        theirs = made.get_volume(combine_segments=False)  # highdicom's own reading of the same object
        for voxel in np.argwhere(truth[1])[:5]:
            place = volume.world(voxel[::-1])
            k, j, i = np.rint(theirs.map_reference_to_indices(place[None])[0]).astype(int)
            assert theirs.array[k, j, i, 0] == 1


def test_a_segmentation_turned_against_its_volume_still_fits(tmp_path: Path) -> None:
    """As some converters write it: rows and columns run the other way, slices lie across."""
    files = slices(tmp_path / "a", places())
    study = study_of(tmp_path / "a")
    (row,) = volumes_of(study).to_pylist()
    volume = open_volume(study, row["volume_id"])
    mask = np.random.default_rng(2).random(volume.shape) < 0.4
    turned = highdicom.Volume(
        array=np.ascontiguousarray(mask.transpose(2, 0, 1)[::-1, :, ::-1]).astype(np.uint8),
        affine=_turned_affine(volume, mask.shape),
        coordinate_system="PATIENT",
        frame_of_reference_uid="1.2.826.0.1.3680043.8.498.9",
    )
    segmentation(tmp_path / "a" / "seg.dcm", files, turned, "BINARY", 1)
    study = study_of(tmp_path / "a")
    volume, at = opened(study)
    (label,) = open_label(study, at, volume)
    np.testing.assert_array_equal(label.mask, mask)


def _turned_affine(volume: Volume, shape: tuple[int, ...]) -> np.ndarray:
    """Of the array indices (I-1-i, k, J-1-j)."""
    affine = np.eye(4)
    a = volume.affine_lps
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = -a[:3, 0], a[:3, 2], -a[:3, 1]
    affine[:3, 3] = volume.world([shape[2] - 1, shape[1] - 1, 0])
    return affine


def test_another_grid_is_refused(tmp_path: Path) -> None:
    files = slices(tmp_path / "a", places())
    segmentation(tmp_path / "a" / "seg.dcm", files, np.ones((6, 7, 5), np.uint8), "BINARY", 1)
    volume, row = opened(study_of(tmp_path / "a"))
    from dataclasses import replace

    shifted, finer, shorter = (volume.affine_lps.copy() for _ in range(3))
    shifted[0, 3] += 0.2
    finer[0, 0] *= 1.1
    study = Study(tmp_path / "study")
    for affine in (shifted, finer):
        with pytest.raises(HilumError, match="another grid"):
            open_label(study, row, replace(volume, affine_lps=affine))
    with pytest.raises(HilumError, match="outside of the volume"):
        open_label(study, row, replace(volume, stored=volume.stored[:4], affine_lps=shorter))
    with pytest.raises(HilumError, match="no segmentation"):
        open_label(study, 0, volume)


def structure_set(path: Path, rois: list[list[tuple[str, Any]]], series: str) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.88"
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.89"
    data.Modality, data.PatientID = "RTSTRUCT", "AB-0007"
    data.ReferencedFrameOfReferenceSequence = [
        item(RTReferencedStudySequence=item(RTReferencedSeriesSequence=item(SeriesInstanceUID=series)))
    ]
    data.StructureSetROISequence = [item(ROINumber=n + 1, ROIName=SECRET) for n in range(len(rois))]
    data.RTROIObservationsSequence = [
        item(ReferencedROINumber=n + 1, RTROIInterpretedType=["GTV", SECRET][n % 2]) for n in range(len(rois))
    ]
    data.ROIContourSequence = []
    for n, contours in enumerate(rois):
        roi = Dataset()
        roi.ReferencedROINumber = n + 1
        roi.ContourSequence = [
            item(ContourGeometricType=kind, NumberOfContourPoints=len(points), ContourData=np.ravel(points).tolist())
            for kind, points in contours
        ]
        data.ROIContourSequence.append(roi)
    data.save_as(path, enforce_file_format=True)
    return path


def square(volume_axes: Any, k: int, i0: float, i1: float, j0: float, j1: float, off: float = 0) -> np.ndarray:
    """Corners in LPS mm of a rectangle in pixel indices of slice k."""
    row, column = np.array(volume_axes[:3]), np.array(volume_axes[3:])
    start = np.array(START) + (k * 2.5 + off) * np.cross(row, column)
    corners = [(i0, j0), (i1, j0), (i1, j1), (i0, j1)]
    return np.array([start + i * 0.5 * row + j * 0.8 * column for i, j in corners])


@pytest.mark.parametrize("axes", [AXIAL, oblique()])
def test_contours_are_filled_by_the_even_odd_rule(tmp_path: Path, axes: Any) -> None:
    slices(tmp_path / "a", places(axes=axes), axes=axes)
    hole = [
        ("CLOSED_PLANAR", square(axes, 2, -0.5, 4.5, 0.5, 5.5)),
        ("CLOSED_PLANAR", square(axes, 2, 0.5, 2.5, 1.5, 3.5)),
    ]
    other = [("CLOSED_PLANAR", square(axes, 4, 0.5, 3.5, 0.5, 2.5)), ("POINT", square(axes, 4, 0, 0, 0, 0)[:1])]
    structure_set(tmp_path / "a" / "rt.dcm", [hole, other], "1.2.826.0.1.3680043.8.498.1.1")
    study = study_of(tmp_path / "a")
    volume, row = opened(study)
    assert study.row(row)["reason"] == "non_image:rtstruct"
    first, second = open_label(study, row, volume)
    expected = np.zeros(volume.shape, bool)
    expected[2, 1:6, 0:5] = True
    expected[2, 2:4, 1:3] = False
    np.testing.assert_array_equal(first.mask, expected)
    assert (first.code, second.code, second.left_out) == ("GTV", None, 1)
    assert second.mask.sum() == 6 and second.mask[4, 1:3, 1:4].all()
    assert SECRET not in str(study.index.to_pylist()) and "Smith" not in repr((first, second))
    found = volumes(study.path, out=tmp_path / "out")
    (name,) = (line[8] for line in found.lines if line[5] == "label_written")
    image = nibabel.load(tmp_path / "out" / name)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, expected + 2 * second.mask)
    np.testing.assert_allclose(image.affine, volume.affine_ras, atol=1e-4)
    assert name.startswith(volume.volume_id + "_")


def test_contours_between_and_beyond_slices_are_refused(tmp_path: Path) -> None:
    slices(tmp_path / "a", places())
    for off, k, message in ((1.25, 2, "off the nearest slice"), (0, 9, "beyond the slices"), (0.2, 2, "")):
        contour = [("CLOSED_PLANAR", square(AXIAL, k, 0.5, 3.5, 0.5, 2.5, off))]
        structure_set(tmp_path / "a" / "rt.dcm", [contour], "1.2.826.0.1.3680043.8.498.1.1")
        study = study_of(tmp_path / "a")
        volume, row = opened(study)
        if message:
            with pytest.raises(HilumError, match=message):
                open_label(study, row, volume)
            assert any(line[5] == "label_left_out" for line in volumes(study.path, out=tmp_path / "out").lines)
        else:  # 0.08 of a slice distance
            assert open_label(study, row, volume)[0].mask[2].sum() == 6


points = st.lists(st.tuples(st.floats(-2, 12), st.floats(-2, 12)), min_size=3, max_size=9)


@given(points)
@example([(0.0, 0.0), (0.0, 0.0), (1.0, 2.2250738585e-313)])  # an edge without a finite slope
@settings(max_examples=30)
def test_filling_equals_a_second_implementation(corners: list[tuple[float, float]]) -> None:
    """Crossings of a ray from each centre, counted one by one."""
    polygon = np.array(corners)
    expected = np.zeros((9, 11), bool)
    for j in range(9):
        for i in range(11):
            odd = False
            for one, other in zip(corners, [*corners[1:], corners[0]]):
                (x0, y0), (x1, y1) = (one, other) if one[1] <= other[1] else (other, one)
                if y0 <= j < y1 and x0 + (j - y0) / (y1 - y0) * (x1 - x0) <= i:
                    odd = not odd
            expected[j, i] = odd
    np.testing.assert_array_equal(inside(polygon, (9, 11)), expected)


def test_neighbours_share_no_pixel_and_a_disc_has_its_area() -> None:
    left, right = np.array([(0, 0), (4, 1), (4, 9), (0, 8)]), np.array([(4, 1), (9, 0), (9, 8), (4, 9)])
    both = inside(left, (10, 10)).astype(int) + inside(right, (10, 10))
    assert both.max() == 1
    turn = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    disc = np.stack([100 + 60 * np.cos(turn), 90 + 40 * np.sin(turn)], axis=1)
    assert inside(disc, (200, 200)).sum() == pytest.approx(np.pi * 60 * 40, rel=0.005)


@pytest.mark.parametrize("fault", ["no number", "no number of an observation", "no whole number", "far away"])
def test_a_damaged_structure_set_is_left_out_and_the_run_goes_on(tmp_path: Path, fault: str) -> None:
    slices(tmp_path / "a", places())
    contour = square(AXIAL, 2, 0.5, 3.5, 0.5, 2.5)
    if fault == "far away":
        contour = contour * [1e300, 1, 1]
    file = structure_set(tmp_path / "a" / "rt.dcm", [[("CLOSED_PLANAR", contour)]], "1.2.826.0.1.3680043.8.498.1.1")
    data = pydicom.dcmread(file)
    if fault == "no number":
        del data.ROIContourSequence[0].ReferencedROINumber
    if fault == "no number of an observation":
        del data.RTROIObservationsSequence[0].ReferencedROINumber
    data.save_as(file)
    if fault == "no whole number":
        file.write_bytes(file.read_bytes().replace(b"\x06\x30\x84\x00IS\x02\x001 ", b"\x06\x30\x84\x00IS\x02\x00Dx"))
    found = volumes(study_of(tmp_path / "a").path, out=tmp_path / "out")
    told = [(line[5], line[6]) for line in found.lines]
    assert found.exit_code == 0 and told[0] == ("written", "")
    if fault == "no number of an observation":
        assert told[1:] == [("label_written", "")]  # its type is unknown, no more
    else:
        assert [status for status, _ in told[1:]] == ["label_left_out"] and "Dx" not in told[1][1]


def test_a_file_that_went_away_fails_its_volume_alone(tmp_path: Path) -> None:
    files = slices(tmp_path / "a", places())
    slices(tmp_path / "a", places(), series=2, patient="P2", pixels=lambda k: np.full((7, 5), k + 1, np.uint16))
    study = study_of(tmp_path / "a")
    files[2].unlink()
    found = volumes(study.path, out=tmp_path / "out")
    assert (found.written, found.failed, found.exit_code) == (1, 1, 3)
    assert all("1-002" not in " ".join(line) for line in found.lines)


def test_more_than_the_whole_of_a_fraction_is_refused(tmp_path: Path) -> None:
    files = slices(tmp_path / "a", places())
    made = segmentation(tmp_path / "a" / "seg.dcm", files, np.ones((6, 7, 5), np.uint8), "FRACTIONAL", 1)
    made.MaximumFractionalValue = 10  # stored are 255
    made.save_as(tmp_path / "a" / "seg.dcm")
    volume, row = opened(study_of(tmp_path / "a"))
    with pytest.raises(HilumError, match="MaximumFractionalValue"):
        open_label(Study(tmp_path / "study"), row, volume)


def test_a_contour_that_is_written_twice_does_not_erase_itself(tmp_path: Path) -> None:
    """Nor do two items of one structure overwrite each other."""
    slices(tmp_path / "a", places())
    one = ("CLOSED_PLANAR", square(AXIAL, 2, 0.5, 3.5, 0.5, 2.5))
    two = ("CLOSED_PLANAR", square(AXIAL, 4, 0.5, 3.5, 0.5, 2.5))
    file = structure_set(tmp_path / "a" / "rt.dcm", [[one, one], [two]], "1.2.826.0.1.3680043.8.498.1.1")
    data = pydicom.dcmread(file)
    data.ROIContourSequence[1].ReferencedROINumber = 1
    data.save_as(file)
    volume, row = opened(study_of(tmp_path / "a"))
    (label,) = open_label(Study(tmp_path / "study"), row, volume)
    expected = np.zeros(volume.shape, bool)
    expected[2, 1:3, 1:4] = expected[4, 1:3, 1:4] = True
    np.testing.assert_array_equal(label.mask, expected)
    assert label.left_out == 1
