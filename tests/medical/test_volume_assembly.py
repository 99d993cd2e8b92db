"""Series to volumes: order by position, what is wrong with a series is measured, refused, and resolved only by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fake.dicom import write
from fake.volumes import AXIAL, SPACING, START, headers, normal_of, oblique, places, plane, slices, world

from hilum.core.errors import HilumError
from hilum.data.index import index_archive
from hilum.data.study import Study
from hilum.medical.dicom.intake import DicomIntake
from hilum.medical.volumes.assemble import assemble
from hilum.medical.volumes.volume import open_volume, volumes_of

pytestmark = pytest.mark.filterwarnings("ignore")

SCOUT = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def index(root: Path, **options: Any) -> Study:
    out = root.parent / f"{root.name}-study"
    index_archive(root, out, workers=0, id_key=key(root.parent), progress=False, intakes=[DicomIntake()], **options)
    return Study(out)


def key(folder: Path) -> Path:
    file = folder / "id.key"
    file.write_bytes(bytes(range(32)))
    return file


def rows_of(study: Study) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = volumes_of(study).to_pylist()
    return rows


def codes(row: dict[str, Any]) -> list[str]:
    return [p.partition(":")[0] for p in row["problems"]]


def probe(study: Study, row: dict[str, Any], where: list[Any], axes: Any = AXIAL) -> None:
    """Five voxels are found by their stored value, and lie where PS3.3 C.7.6.2.1.1 says."""
    volume = open_volume(study, row["volume_id"])
    for k, j, i in ((0, 0, 0), (1, 6, 4), (3, 2, 1), (5, 0, 4), (4, 6, 0)):
        at = np.argwhere(volume.stored == 1000 * k + 20 * j + i)
        assert len(at) == 1
        np.testing.assert_allclose(volume.world(at[0][::-1]), world(where[k], j, i, axes), atol=2e-5)


@pytest.mark.parametrize(
    ("axes", "shear"),
    [(AXIAL, (0, 0, 0)), (oblique(), (0, 0, 0)), (AXIAL, (0, 0.6698729810778, 0)), (oblique(), (0.2, -0.1, 0.3))],
)
def test_order_is_by_position_and_probes_are_exact(tmp_path: Path, axes: Any, shear: Any) -> None:
    where = places(axes=axes, shear=shear)
    slices(tmp_path / "a", where, axes=axes, numbers=[3, 1, 6, 2, 5, 4])
    study = index(tmp_path / "a")
    (row,) = rows_of(study)
    assert row["usable"] and row["regular"] and "instance_order" in codes(row)
    assert row["shape_kji"] == [6, 7, 5] and row["frames"] == 6 and row["split_key"] == ""
    names = [study.file(study.index.column("sample_id").to_pylist().index(s))[0].name for s in row["sample_ids"]]
    assert names == [f"1-{k:03d}.dcm" for k in range(6)]
    probe(study, row, where, axes)
    beside = np.array(shear) - normal_of(axes) * (np.array(shear) @ normal_of(axes))
    along = 2.5 + np.array(shear) @ normal_of(axes)
    np.testing.assert_allclose(row["spacing_mm"], [along, *SPACING], atol=1e-6)
    angle = np.degrees(np.arctan2(np.linalg.norm(beside), along))
    assert row["tilt_deg"] == pytest.approx(angle, abs=1e-4)
    assert ("gantry_tilt" in codes(row)) == bool(np.any(shear))
    # the product of the spacings is the volume of a voxel, sheared or not
    assert np.linalg.det(np.reshape(row["affine_lps"], (4, 4))) == pytest.approx(np.prod(row["spacing_mm"]), rel=1e-6)


def test_fifteen_degrees_of_tilt(tmp_path: Path) -> None:
    rows = headers(slices(tmp_path, places(shear=(0, 2.5 * np.tan(np.radians(15)), 0))))
    (row,) = assemble(rows)
    assert row["tilt_deg"] == pytest.approx(15, abs=1e-4) and row["problems"] == ["gantry_tilt:15"] and row["usable"]


def test_instance_numbers_that_run_down_are_no_problem(tmp_path: Path) -> None:
    (row,) = assemble(headers(slices(tmp_path, places(), numbers=[6, 5, 4, 3, 2, 1])))
    assert row["problems"] == []


def test_gaps_are_refused_then_left_invalid(tmp_path: Path) -> None:
    where = places(8)
    slices(tmp_path / "a", [p for k, p in enumerate(where) if k not in (2, 5, 6)])
    study = index(tmp_path / "a")
    (row,) = rows_of(study)
    assert not row["usable"] and not row["regular"] and row["problems"] == ["gap:3 missing, step 2.5 mm"]
    with pytest.raises(HilumError, match="gap:3 missing.*\n.*allow_gaps"):
        open_volume(study, row["volume_id"])
    with pytest.raises(HilumError, match="gap"):
        open_volume(study, row["volume_id"], options={"resample", "split_4d"})
    volume = open_volume(study, row["volume_id"], options={"allow_gaps"})
    assert volume.shape == (8, 7, 5) and "allow_gaps:3 planes invalid" in volume.problems
    assert volume.valid is not None
    np.testing.assert_array_equal(volume.valid.all(axis=(1, 2)), [k not in (2, 5, 6) for k in range(8)])
    np.testing.assert_allclose(volume.world([0, 0, 7]), where[7], atol=1e-6)
    np.testing.assert_array_equal(volume.stored[7], plane(4))
    assert volume.provenance["options"] == "allow_gaps"


def test_irregular_slices_are_refused_then_interpolated(tmp_path: Path) -> None:
    z = [0.0, 2.5, 6.5, 9.0, 13.0, 15.5]  # 2.5 and 4 mm
    slices(tmp_path / "a", [np.array(START) + (0, 0, d) for d in z])
    study = index(tmp_path / "a")
    (row,) = rows_of(study)
    assert not row["usable"] and row["problems"] == ["irregular_spacing:2.5 to 4 mm"]
    for wrong in ((), ("allow_gaps",), ("split_4d",)):
        with pytest.raises(HilumError, match="irregular_spacing"):
            open_volume(study, row["volume_id"], options=wrong)
    volume = open_volume(study, row["volume_id"], options={"resample"})
    assert "resample:step 2.5 mm" in volume.problems and volume.shape == (7, 7, 5)
    depth = np.arange(7) * 2.5
    for j, i in ((0, 0), (6, 4), (3, 1)):
        column = np.array([plane(k)[j, i] * 2.0 - 1024 for k in range(6)])
        np.testing.assert_allclose(volume.values()[:, j, i], np.interp(depth, z, column), rtol=1e-6)
    np.testing.assert_allclose(volume.world([0, 0, 3]), np.array(START) + (0, 0, 7.5), atol=1e-6)


def test_slices_beside_the_line_are_no_grid(tmp_path: Path) -> None:
    where = places()
    where[3] = where[3] + (0, 1.5, 0)
    (row,) = assemble(headers(slices(tmp_path, where)), frozenset({"allow_gaps", "resample", "split_4d"}))
    assert not row["usable"] and codes(row) == ["irregular_position"]


def test_two_b_values(tmp_path: Path) -> None:
    where = places()
    slices(tmp_path / "a", where, own=lambda k: {"DiffusionBValue": 0.0}, Modality="MR", numbers=range(1, 7))
    slices(
        tmp_path / "a", where, first=6, own=lambda k: {"DiffusionBValue": 1000.0}, Modality="MR",
        pixels=lambda k: plane(k) + 500, numbers=range(7, 13),
    )  # fmt: skip
    study = index(tmp_path / "a")
    (row,) = rows_of(study)
    assert not row["usable"] and row["problems"] == ["four_d:b_value=2"] and row["frames"] == 12
    with pytest.raises(HilumError, match="four_d.*\n.*split_4d"):
        open_volume(study, row["volume_id"])
    parts = assemble(study.index.to_pylist(), frozenset({"split_4d"}))
    assert [p["split_key"] for p in sorted(parts, key=lambda p: p["split_key"])] == ["b_value=0", "b_value=1000"]
    assert all(p["usable"] and p["frames"] == 6 and "split_4d:2 volumes" in p["problems"] for p in parts)
    assert all(p["volume_id"].startswith(row["series_id"] + "-") for p in parts)
    for part in parts:
        volume = open_volume(study, part["volume_id"], options={"split_4d"})
        shift = 500 if "1000" in part["split_key"] else 0
        np.testing.assert_array_equal(volume.stored, [plane(k) + shift for k in range(6)])
    told = index(tmp_path / "a", volumes=["split_4d"])  # recorded in study.json
    assert sorted(r["volume_id"] for r in rows_of(told)) == sorted(p["volume_id"] for p in parts)
    assert open_volume(told, parts[0]["volume_id"]).shape == (6, 7, 5)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (lambda k, t: {"EchoTime": [4.5, 9.0, 13.5][t]}, "echo_ms=3"),
        (lambda k, t: {"AcquisitionNumber": t + 1, "TemporalPositionIdentifier": t + 1}, "temporal=3"),
        (lambda k, t: {"AcquisitionNumber": t + 1}, "acquisition=3"),
        (lambda k, t: {"TriggerTime": 30.0 * t + 0.1 * k}, "trigger_ms by rank=3"),
        (lambda k, t: {"EchoNumbers": t // 2, "DiffusionBValue": 100.0 * (t % 2)}, "b_value,echo=3"),
        (lambda k, t: {"ImageType": ["ORIGINAL", "PRIMARY", "MPR"[t], "ND"]}, "component=3"),
        (
            lambda k, t: {
                "DiffusionBValue": 700.0,
                "DiffusionGradientOrientation": [[1, 0, 0], [0, 1, 0], [0, 0, 1]][t],
            },
            "gradient=3",
        ),
    ],
)
def test_the_smallest_set_of_keys_splits(tmp_path: Path, own: Any, expected: str) -> None:
    files = []
    for t in range(3):
        files += slices(tmp_path, places(), first=6 * t, own=lambda k, t=t: own(k, t), Modality="MR")
    rows = headers(files)
    (row,) = assemble(rows)
    assert (row["usable"], row["problems"]) == (False, [f"four_d:{expected}"])
    parts = assemble(rows, frozenset({"split_4d"}))
    assert len(parts) == 3 and all(p["usable"] and p["frames"] == 6 for p in parts)
    assert len({p["volume_id"] for p in parts}) == 3


@pytest.mark.parametrize(
    ("group", "creator", "offset", "vr", "values", "expected"),
    [
        (0x0019, "SIEMENS MR HEADER", 0x0C, "IS", [0, 800], [0, 800]),
        (0x0019, "SIEMENS MR HEADER", 0x0C, "UN", [b"0 ", b"800 "], [0, 800]),
        (0x0043, "GEMS_PARM_01", 0x39, "IS", [[1000000000, 8, 0], [1000000800, 8, 0]], [0, 800]),
        (0x2001, "Philips Imaging DD 001", 0x03, "FL", [0.0, 800.0], [0, 800]),
    ],
)
def test_b_values_that_makers_keep_to_themselves(
    tmp_path: Path, group: int, creator: str, offset: int, vr: str, values: list[Any], expected: list[float]
) -> None:
    for n, value in enumerate(values):
        (file,) = slices(tmp_path, places(1), first=n, Modality="MR")
        data = pydicom.dcmread(file)
        data.private_block(group, creator, create=True).add_new(offset, vr, value)
        data.save_as(file)
    keys = [{k["name"]: k["values"] for k in row["frame_keys"]} for row in headers(sorted(tmp_path.glob("*.dcm")))]
    assert [k["b_value"] for k in keys] == [[e] for e in expected]


def test_a_cut_time_series_keeps_its_whole_volumes(tmp_path: Path) -> None:
    files = []
    for t in range(3):
        files += slices(
            tmp_path, places(6 - 2 * (t == 2)), first=6 * t, own=lambda k, t=t: {"TemporalPositionIdentifier": t}
        )
    parts = assemble(headers(files), frozenset({"split_4d"}))
    assert sorted(p["frames"] for p in parts) == [4, 6, 6]


def test_ties_that_nothing_explains_are_refused(tmp_path: Path) -> None:
    files = slices(tmp_path, places()) + slices(tmp_path, places()[2:4], first=6)
    (row,) = assemble(headers(files), frozenset({"allow_gaps", "resample", "split_4d"}))
    assert not row["usable"] and row["problems"] == ["duplicate_position:2"]


def test_localisers_sizes_and_orientations_part_a_series(tmp_path: Path) -> None:
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    files = slices(tmp_path, places())
    files += slices(
        tmp_path,
        places(1, axes=sagittal),
        axes=sagittal,
        first=6,
        own=lambda k: {"ImageType": SCOUT},
    )
    files += slices(tmp_path, places(3, axes=sagittal), axes=sagittal, first=10)
    files += slices(tmp_path, places(2), first=20, pixels=lambda k: plane(k, (9, 9)))
    found = assemble(headers(files))
    assert [(r["frames"], r["usable"]) for r in sorted(found, key=lambda r: r["frames"])] == [
        (1, True),
        (2, True),
        (3, True),
        (6, True),
    ]
    scout = min(found, key=lambda r: r["frames"])
    assert {"localizer", "single_slice"} <= set(codes(scout)) and "localizer=1" in scout["split_key"]
    main = max(found, key=lambda r: r["frames"])
    assert main["problems"] == ["mixed_orientation:2", "mixed_size:2"]
    assert main["split_key"] == "localizer=0 size=7x5 orientation=1,0,0,0,1,0"


def test_missing_geometry_and_colour(tmp_path: Path) -> None:
    none = headers([write(tmp_path / f"{n}.dcm", plane(n), instance=n) for n in range(3)])
    (row,) = assemble(none)
    assert (row["usable"], row["problems"], row["affine_lps"]) == (False, ["missing_geometry:3"], None)
    (one,) = assemble(none[:1])
    assert (one["usable"], one["problems"]) == (True, [])
    bad = headers(slices(tmp_path, places(), own=lambda k: {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}))
    assert all("bad_value:ImageOrientationPatient" in r["problems"] for r in bad)
    assert codes(assemble(bad)[0]) == ["missing_geometry"]


def test_grouping_is_by_uid_not_by_folder(tmp_path: Path) -> None:
    """Two patients in one folder, one series in two folders, a re-sent slice, other pixels under one UID."""
    root = tmp_path / "a"
    slices(root / "one", places()[:3], series=1)
    slices(root / "two", places()[3:], series=1, first=3, pixels=lambda k: plane(k + 3), numbers=[4, 5, 6])
    slices(root / "one", places(), series=2, study=2, patient="P2", pixels=lambda k: plane(k) + 1)
    (root / "again.dcm").write_bytes((root / "one" / "1-001.dcm").read_bytes())
    slices(root / "three", places(), series=3, study=3, patient="P3", pixels=lambda k: plane(k) + 2)
    slices(root / "conflict", places()[2:3], series=3, study=3, patient="P3", first=2, pixels=lambda k: plane(9))
    study = index(root)
    found = {r["group_id"]: r for r in rows_of(study)}
    assert len(found) == 3
    sane = [r for r in found.values() if r["usable"]]
    assert [(r["frames"], r["problems"]) for r in sane] == [(6, []), (6, [])]
    (torn,) = (r for r in found.values() if not r["usable"])
    assert torn["frames"] == 5 and "uid_conflict:2" in torn["problems"] and "gap" in codes(torn)
    with pytest.raises(HilumError, match="uid_conflict"):
        open_volume(study, torn["volume_id"], options={"allow_gaps"})


def test_one_series_uid_under_two_patients_is_refused(tmp_path: Path) -> None:
    rows = headers(slices(tmp_path, places()))
    for row in rows[3:]:
        row["group_id"] = "other"
    found = assemble(rows, frozenset({"allow_gaps", "resample", "split_4d"}))
    assert [(r["frames"], r["usable"], codes(r)) for r in found] == [(3, False, ["mixed_patients"])] * 2


def test_equal_pixels_at_two_places_are_both_slices(tmp_path: Path) -> None:
    same = plane(9)
    slices(tmp_path / "a", places(), pixels=lambda k: same if k in (2, 4) else plane(k))
    study = index(tmp_path / "a")
    assert study.index.column("duplicate_of").null_count == 5  # one of them is a copy of pixels
    (row,) = rows_of(study)
    assert row["frames"] == 6 and row["usable"] and row["problems"] == []


def test_mosaics_are_no_slices(tmp_path: Path) -> None:
    rows = headers(slices(tmp_path, places(), own=lambda k: {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}))
    (row,) = assemble(rows, frozenset({"allow_gaps", "resample", "split_4d"}))
    assert not row["usable"] and row["problems"] == ["mosaic:6"]


def test_a_series_without_patient_ids_is_one_volume(tmp_path: Path) -> None:
    slices(tmp_path / "a", places(), patient=None, StudyInstanceUID=None)
    study = index(tmp_path / "a")
    (row,) = rows_of(study)
    assert row["usable"] and row["frames"] == 6 and row["group_id"].startswith("unknown-")


def placed(depths: Any) -> list[Any]:
    return [(START[0], START[1], float(z)) for z in depths]


def test_small_differences_that_add_up_are_irregular(tmp_path: Path) -> None:
    """1.00 and 1.015 mm are one distance slice by slice; half a volume of each is 0.37 mm off a regular grid."""
    depths = np.concatenate([np.arange(100) * 1.0, 99 + np.arange(1, 101) * 1.015])
    (one,) = headers(slices(tmp_path / "a", placed(depths[:1])))
    one["frame_keys"] = []
    rows = [one | {"sample_id": f"{k:03d}", "positions": list(p)} for k, p in enumerate(placed(depths))]
    (row,) = assemble(rows)
    assert not row["usable"] and "irregular_spacing" in codes(row)
    rounded = [p | {"positions": [*p["positions"][:2], round(0.625 * k, 2)]} for k, p in enumerate(rows)]
    (row,) = assemble(rounded)  # of two decimals is not
    assert row["usable"] and row["problems"] == []


@pytest.mark.parametrize("values", [[0, 0, 0, 1000, 1000, 1000], [0, 1000, 0, 1000, 0, 1000]])
def test_contrasts_are_never_mixed_where_slices_lost_their_partners(tmp_path: Path, values: list[int]) -> None:
    mr = {"Modality": "MR", "sop_class": "1.2.840.10008.5.1.4.1.1.4"}
    rows = headers(slices(tmp_path / "a", places(), own=lambda k: {"DiffusionBValue": float(values[k])}, **mr))
    (row,) = assemble(rows)
    assert not row["usable"] and row["problems"] == ["four_d:b_value=2"]
    parts = assemble(rows, frozenset({"split_4d"}))
    assert sorted((p["split_key"], p["frames"]) for p in parts) == [("b_value=0", 3), ("b_value=1000", 3)]
    counted = headers(slices(tmp_path / "b", places(), own=lambda k: {"TemporalPositionIdentifier": k + 1}))
    (row,) = assemble(counted)  # a counter of slices is no contrast
    assert row["usable"] and row["problems"] == []


def test_parts_of_a_four_d_series_are_of_one_contrast_and_say_what_they_lack(tmp_path: Path) -> None:
    """Of b = 500 the last slices are lost, of b = 1000 the first: the gradient tells positions apart, and mixes them."""
    mr: dict[str, Any] = {"Modality": "MR", "sop_class": "1.2.840.10008.5.1.4.1.1.4"}
    along = {"DiffusionGradientOrientation": [1.0, 0.0, 0.0]}
    files = slices(tmp_path / "a", places(), own=lambda k: {"DiffusionBValue": 0.0}, **mr)
    files += slices(tmp_path / "a", places()[:3], first=6, own=lambda k: {"DiffusionBValue": 500.0, **along}, **mr)
    files += slices(tmp_path / "a", places()[3:], first=9, own=lambda k: {"DiffusionBValue": 1e3, **along}, **mr)
    parts = assemble(headers(files), frozenset({"split_4d"}))
    assert sorted((p["frames"], p["usable"], "lost_slices:3" in p["problems"]) for p in parts) == [
        (3, False, True), (3, False, True), (6, True, False),
    ]  # fmt: skip
    assert all(p["usable"] for p in assemble(headers(files), frozenset({"split_4d", "allow_gaps"})))


def test_a_slice_that_was_set_aside_leaves_its_volume_open(tmp_path: Path) -> None:
    """The last slice is cut short: nothing in the positions of the others shows that it is missing."""
    files = slices(tmp_path / "a", places())
    files[-1].write_bytes(files[-1].read_bytes()[:-30])
    files = slices(tmp_path / "a", places(), series=2, own=lambda k: {"ImagePositionPatient": None} if k == 5 else {})
    study = index(tmp_path / "a")
    deep = [row for row in rows_of(study) if row["frames"] == 5]
    assert [(row["usable"], row["problems"]) for row in deep] == [(False, ["lost_slices:1"])] * 2
    for row in deep:
        with pytest.raises(HilumError, match="lost_slices") as caught:
            open_volume(study, row["volume_id"])
        assert "allow_gaps" in caught.value.fix
        assert open_volume(study, row["volume_id"], options=["allow_gaps"]).shape[0] == 5


def test_frames_of_reference_part_a_series(tmp_path: Path) -> None:
    """Positions of different origins make no grid; slices that do not say theirs go with the only one there is."""
    other = "1.2.826.0.1.3680043.8.498.10"
    torn = headers(slices(tmp_path / "torn", places(), own=lambda k: {"FrameOfReferenceUID": other} if k > 2 else {}))
    found = assemble(torn)
    assert [(r["frames"], r["usable"], r["problems"]) for r in found] == [(3, True, ["mixed_frame_of_reference:2"])] * 2
    assert {r["split_key"] for r in found} == {"frame_of_reference=1", "frame_of_reference=2"}
    assert len({s for r in found for s in r["sample_ids"]}) == 6
    some = headers(slices(tmp_path / "some", places(), own=lambda k: {"FrameOfReferenceUID": None} if k > 2 else {}))
    (one,) = assemble(some)
    assert (one["frames"], one["usable"], one["problems"], one["split_key"]) == (6, True, [], "")
    assert other not in str(torn)
