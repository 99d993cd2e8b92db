"""NIfTI in and out: the affine rules of the standard, limits, and round trips through SimpleITK and nibabel."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from fake.volumes import AXIAL, oblique, places, slices
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow, Limits
from hilum.data.index import index_archive
from hilum.data.isolation import read_file
from hilum.data.study import Study
from hilum.medical.nifti import NiftiIntake
from hilum.medical.volumes.export import write_nifti
from hilum.medical.volumes.verb import volumes
from hilum.medical.volumes.volume import Volume, open_volume, volumes_of

pytestmark = pytest.mark.filterwarnings("ignore")
PROBES = np.array([[0, 0, 0], [4, 6, 5], [1, 2, 3], [4, 0, 2], [0, 6, 4]])  # (i, j, k)


def study_of(root: Path, **options: Any) -> Study:
    (root.parent / "id.key").write_bytes(bytes(range(32)))
    out = root.parent / f"{root.name}-study"
    index_archive(root, out, workers=0, progress=False, id_key=root.parent / "id.key", **options)
    return Study(out)


def opened(study: Study, **options: Any) -> list[Volume]:
    return [open_volume(study, row["volume_id"], **options) for row in volumes_of(study).to_pylist()]


def read(path: Path, **limits: Any) -> IndexRow:
    return read_file(path, [NiftiIntake()], Limits(**limits))[0]


def array(shape: tuple[int, ...] = (5, 7, 6), dtype: Any = np.int16) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save(path: Path, data: np.ndarray, affine: Any = None, **codes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine)
    image.set_sform(affine, codes.get("sform", 1))
    image.set_qform(affine, codes.get("qform", 1))
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return path


@pytest.mark.parametrize("axes", [AXIAL, oblique(), oblique(2.0, 0.1, -1.2)])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_simpleitk_finds_our_voxels_where_we_do(tmp_path: Path, axes: Any, name: str) -> None:
    slices(tmp_path / "a", places(axes=axes), axes=axes)
    (volume,) = opened(study_of(tmp_path / "a"))
    theirs = SimpleITK.ReadImage(str(write_nifti(volume, tmp_path / name)))
    values = SimpleITK.GetArrayFromImage(theirs)
    np.testing.assert_array_equal(values, volume.values())
    for ijk in PROBES:
        place = theirs.TransformIndexToPhysicalPoint([int(n) for n in ijk])  # LPS
        np.testing.assert_allclose(volume.world(ijk), place, atol=1e-4)
    header = nibabel.load(tmp_path / name).header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    data = nibabel.load(tmp_path / name).dataobj
    assert (data.slope, data.inter) == (2.0, -1024.0) and header.get_data_dtype() == np.uint16
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-4)
    text = b"".join(header[k].tobytes() for k in ("descrip", "aux_file", "intent_name", "db_name"))
    assert text.strip(b"\0") == b"hilum"


def test_a_tilted_volume_has_its_shear_in_the_sform_alone(tmp_path: Path) -> None:
    where = places(shear=(0, 0.67, 0))
    slices(tmp_path / "a", where)
    (volume,) = opened(study_of(tmp_path / "a"))
    image = nibabel.load(write_nifti(volume, tmp_path / "v.nii.gz"))
    assert int(image.header["qform_code"]) == 0 and int(image.header["sform_code"]) == 1
    for ijk in PROBES:
        np.testing.assert_allclose((image.affine @ [*ijk, 1])[:3] * (-1, -1, 1), volume.world(ijk), atol=1e-5)
    with pytest.raises(RuntimeError, match="orthonormal|orthogonal"):
        SimpleITK.ReadImage(str(tmp_path / "v.nii.gz"))  # it says so, rather than straighten it
    write_nifti(volume, tmp_path / "b" / "v.nii.gz")
    (back,) = opened(study_of(tmp_path / "b"))
    np.testing.assert_array_equal(back.values(), volume.values())
    np.testing.assert_allclose(back.affine_lps, volume.affine_lps, atol=1e-5)
    np.testing.assert_allclose(back.spacing_mm, volume.spacing_mm, atol=1e-5)


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, 1, -1), (-1, -1, -1)])
def test_we_find_simpleitk_voxels_where_it_does(tmp_path: Path, flip: Any) -> None:
    row, column = np.array(oblique()[:3]), np.array(oblique()[3:])
    direction = np.stack([row, column, np.cross(row, column)], axis=1) * flip
    image = SimpleITK.GetImageFromArray(array((6, 7, 5)))
    image.SetSpacing([0.5, 0.8, 2.5])
    image.SetOrigin([-30.0, 40.0, 12.5])
    image.SetDirection(direction.ravel().tolist())
    (tmp_path / "a").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "a" / "v.nii.gz"))
    (volume,) = opened(study_of(tmp_path / "a"))
    assert volume.problems in ((), ("instance_order",)) and np.linalg.det(volume.affine_lps[:3, :3]) > 0
    for ijk in PROBES:
        place = image.TransformIndexToPhysicalPoint([int(n) for n in ijk])
        mine = np.rint(volume.index(place)).astype(int)
        np.testing.assert_allclose(volume.world(mine), place, atol=1e-4)
        assert volume.stored[tuple(mine[::-1])] == image.GetPixel([int(n) for n in ijk])
    np.testing.assert_allclose(volume.spacing_mm, [2.5, 0.8, 0.5], atol=1e-5)


@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    shear=st.floats(-0.5, 0.5),
    flip=st.sampled_from([-1, 1]),
)
@settings(max_examples=25)
def test_any_affine_comes_back(tmp_path_factory: Any, angles: Any, spacing: Any, shear: float, flip: int) -> None:
    row, column = np.array(oblique(*angles)[:3]), np.array(oblique(*angles)[3:])
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row, column, flip * np.cross(row, column) + shear * row], axis=1) * spacing
    affine[:3, 3] = 10, -200, 33
    path = save(tmp_path_factory.mktemp("n") / "v.nii", array(), affine, qform=0)
    header = nibabel.load(path).header
    from hilum.medical.volumes.assemble import assemble

    row_ = {
        **read(path).columns,
        "sample_id": "a",
        "series_id": None,
        "group_id": "g",
        "study_id": None,
        "modality": None,
    }
    (found,) = assemble([row_])
    ours = np.reshape(found["affine_lps"], (4, 4))
    theirs = np.diag([-1, -1, 1, 1]) @ header.get_sform()
    if np.linalg.det(theirs) < 0:  # slices are ordered along the normal
        turn = np.eye(4)
        turn[2, 2:] = -1, 5
        theirs = theirs @ turn
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert found["usable"]


def test_affine_rules(tmp_path: Path) -> None:
    one, other = np.diag([1.0, 2, 3, 1]), np.diag([1.0, 2, 3, 1])
    other[:3, 3] = 4, 0, 0

    def row_of(name: str, s: int, q: int, **change: Any) -> IndexRow:
        image = nibabel.Nifti1Image(array(), None)
        image.set_sform(one, s)
        image.set_qform(other, q)
        image.header.set_xyzt_units(change.pop("unit", "mm"), "sec")
        for key, value in change.items():
            image.header[key] = value
        nibabel.save(image, tmp_path / name)
        return read(tmp_path / name)

    both = row_of("both.nii", 1, 1)
    assert both.problems == ["affine_disagreement:4 mm"] and both.columns["positions"][:3] == [0, 0, 0]
    assert row_of("s.nii", 2, 0).problems == []
    only_q = row_of("q.nii", 0, 1)
    assert only_q.problems == [] and only_q.columns["positions"][:3] == [-4, 0, 0]  # RAS to LPS
    none = row_of("none.nii", 0, 0)
    assert none.problems == ["affine_from_pixdim"] and none.columns["spacing_mm"] == [2, 1]
    metres = row_of("metres.nii", 1, 0, unit="meter")
    assert metres.columns["spacing_mm"] == [2000, 1000] and metres.problems == ["converted:spatial_unit"]
    assert "assumed:spatial_unit" in row_of("unknown.nii", 1, 0, unit="unknown").problems
    raw = bytearray((tmp_path / "both.nii").read_bytes())
    raw[312:328] = bytes(16)  # srow_z
    (tmp_path / "flat.nii").write_bytes(raw)
    flat = read(tmp_path / "flat.nii")
    assert "bad_value:sform" in flat.problems and flat.columns["positions"][:3] == [-4, 0, 0]


def test_without_an_orientation_a_volume_is_refused_until_told(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(array(), None)
    image.header["pixdim"][1:4] = 1, 2, 3
    (tmp_path / "a").mkdir()
    nibabel.save(image, tmp_path / "a" / "v.nii.gz")
    study = study_of(tmp_path / "a")
    (row,) = volumes_of(study).to_pylist()
    assert not row["usable"] and "affine_from_pixdim" in row["problems"]
    with pytest.raises(HilumError, match="pixdim_affine"):
        open_volume(study, row["volume_id"])
    assert open_volume(study, row["volume_id"], options={"pixdim_affine"}).spacing_mm == (3, 2, 1)


def test_scaling_types_and_time(tmp_path: Path) -> None:
    data = array((5, 7, 6, 3))
    image = nibabel.Nifti1Image(data, np.diag([2.0, 3, 4, 1]))
    image.header.set_slope_inter(0.5, -10)
    (tmp_path / "a").mkdir()
    nibabel.save(image, tmp_path / "a" / "t.nii.gz")
    study = study_of(tmp_path / "a")
    row = study.row(0)
    assert (row["frames"], row["rows"], row["columns"], row["frames_axis"]) == (18, 7, 5, "time,depth")
    assert row["min"] == data.min() * 0.5 - 10 and row["max"] == data.max() * 0.5 - 10
    (volume,) = volumes_of(study).to_pylist()
    assert not volume["usable"] and volume["problems"][0] == "four_d:temporal=3"
    found = volumes(study.path, out=tmp_path / "out", option=["split_4d"])
    assert found.written == 3 and found.exit_code == 0
    files = sorted(p for p in (tmp_path / "out").glob("*.nii.gz"))
    theirs = {f: nibabel.load(f).get_fdata() for f in files}
    for t in range(3):
        assert any(np.array_equal(v, data[..., t] * 0.5 - 10) for v in theirs.values())
    for dtype in (np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64):
        stored = array(dtype=dtype)
        big = nibabel.Nifti1Image(stored, np.eye(4), nibabel.Nifti1Header(endianness=">"), dtype=dtype)
        nibabel.save(big, tmp_path / "big.nii")
        pixels = NiftiIntake().open(tmp_path / "big.nii", {})
        np.testing.assert_array_equal(pixels.stored, stored.T)
        assert pixels.stored.dtype == dtype
    two = nibabel.Nifti2Image(array(), np.eye(4))
    nibabel.save(two, tmp_path / "two.nii")
    np.testing.assert_array_equal(NiftiIntake().open(tmp_path / "two.nii", {}).stored, array().T)


@pytest.mark.parametrize(
    ("shape", "axis", "problem"),
    [
        ((5, 7, 6, 1, 3), "component,depth", "four_d:component=3"),  # a displacement field
        ((5, 7, 6, 2, 3), "component,time,depth", "four_d:temporal,component=6"),
        ((5, 7, 6, 1, 2, 2), "component,depth", "four_d:component=4"),
        ((5, 7, 1, 1, 3), "component", "four_d:component=3"),
        ((5, 7, 6, 1, 1), "depth", ""),
    ],
)
def test_vectors_are_no_time(tmp_path: Path, shape: tuple[int, ...], axis: str, problem: str) -> None:
    """NIfTI-1: the fourth dimension is time, the fifth holds the values of a voxel."""
    data = array(shape)
    image = nibabel.Nifti1Image(data, np.diag([2.0, 3, 4, 1]))
    image.header.set_intent("vector")
    (tmp_path / "a").mkdir()
    nibabel.save(image, tmp_path / "a" / "v.nii")
    study = study_of(tmp_path / "a")
    assert study.row(0)["frames_axis"] == axis
    (volume,) = volumes_of(study).to_pylist()
    assert volume["problems"] == ([problem] if problem else []) and volume["usable"] == (not problem)
    options = ["split_4d"] if problem else None
    assert volumes(study.path, out=tmp_path / "out", option=options).failed == 0
    written = [nibabel.load(p).get_fdata() for p in (tmp_path / "out").glob("*.nii.gz")]
    wanted = np.moveaxis(data.reshape(*data.shape[:3], -1, order="F"), -1, 0).astype(float)
    assert len(written) == len(wanted)
    assert all(any(np.array_equal(w, t) for t in written) for w in wanted)


def test_not_a_number_counts_for_nothing(tmp_path: Path) -> None:
    data = array(dtype=np.float32)
    data[0, 0, 0] = np.nan
    row = read(save(tmp_path / "a" / "v.nii.gz", data))
    assert row.problems == [] and row.columns["min"] == 1  # left out like padding
    (volume,) = opened(study_of(tmp_path / "a"))
    assert volume.valid is not None and (~volume.valid).sum() == 1


def _damaged(path: Path, kind: str) -> Path:
    save(path.with_name("good.nii"), array())
    raw = bytearray(path.with_name("good.nii").read_bytes())
    path.with_name("good.nii").unlink()
    if kind == "huge":
        raw[42:48] = struct.pack("<3h", 32767, 32767, 32767)
    elif kind == "negative":
        raw[42:44] = struct.pack("<h", -4)
    elif kind == "complex":
        raw[70:74] = struct.pack("<2h", 32, 64)
    elif kind == "colour":
        raw[70:74] = struct.pack("<2h", 128, 24)
    elif kind == "type":
        raw[70:72] = struct.pack("<h", 9)
    elif kind == "offset":
        raw[108:112] = struct.pack("<f", 1e12)
    elif kind == "inside":  # voxels would be read out of the header
        raw[108:112] = struct.pack("<f", 0)
    path.write_bytes(bytes(raw[:-7]) if kind == "cut" else bytes(raw))
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("huge", "resource_limit"),
        ("negative", "inconsistent_attributes"),
        ("complex", "unsupported_pixel_type"),
        ("colour", "unsupported_photometric"),
        ("type", "parse_error"),
        ("offset", "resource_limit"),
        ("inside", "inconsistent_attributes"),
        ("cut", "truncated_pixels"),
    ],
)
def test_faulty_files_are_refused_before_memory_is_asked_for(tmp_path: Path, kind: str, reason: str) -> None:
    plain = _damaged(tmp_path / "v.nii", kind)
    packed = tmp_path / "w.nii.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    tracemalloc.start()
    rows = [read(plain), read(packed)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(r.status, r.reason) for r in rows] == [("quarantined", reason)] * 2
    assert peak < 8 << 20


def test_compressed_faults_and_litter(tmp_path: Path) -> None:
    whole = gzip.compress(save(tmp_path / "v.nii", array((40, 40, 40))).read_bytes())
    for name, data, reason in (
        ("cut.nii.gz", whole[: len(whole) // 2], "truncated_pixels"),
        ("end.nii.gz", whole[:-30] + b"\0" * 30, "truncated_pixels"),
        ("sum.nii.gz", whole[:-8] + b"\1" * 8, "parse_error"),
        ("._v.nii.gz", b"\x00\x05\x16\x07" + b"\0" * 80, "not_dicom"),
    ):
        (tmp_path / name).write_bytes(data)
        row = read(tmp_path / name)
        assert (row.status, row.reason) == ("quarantined", reason), name
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        file.write((tmp_path / "v.nii").read_bytes()[:352] + b"\0" * 128000)
    (tmp_path / "bomb.nii.gz").write_bytes(buffer.getvalue())
    assert read(tmp_path / "bomb.nii.gz", inflate_ratio=20).reason == "resource_limit"
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"hello" * 200))
    assert NiftiIntake().claims(tmp_path / "text.gz", (tmp_path / "text.gz").read_bytes()) == 0
