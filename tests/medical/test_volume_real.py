"""Real series: the same order, places and values as SimpleITK and highdicom find."""

from __future__ import annotations

import shutil
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.data import get_testdata_file

from hilum.data.index import index_archive
from hilum.data.study import Study
from hilum.medical.volumes.export import write_nifti
from hilum.medical.volumes.volume import open_volume, volumes_of

pytestmark = pytest.mark.filterwarnings("ignore")


def study_of(root: Path, out: Path) -> Study:
    out.mkdir()
    (out / "id.key").write_bytes(bytes(range(32)))
    index_archive(root, out / "study", workers=0, progress=False, id_key=out / "id.key")
    return Study(out / "study")


def own(name: str) -> Path:
    """A file that pydicom carries."""
    found = get_testdata_file(name, download=False)
    if found is None:
        pytest.skip(f"{name} comes with the package pydicom-data, which is not installed")
    return Path(str(found))


def test_a_real_ct_series_is_ordered_as_simpleitk_does(tmp_path: Path) -> None:
    root = Path(pydicom.data.__file__).parent / "test_files" / "dicomdirtests" / "98892001" / "CT5N"
    if not root.is_dir():
        pytest.skip("this pydicom carries no dicomdirtests")
    study = study_of(root, tmp_path / "s")
    (row,) = volumes_of(study).to_pylist()
    volume = open_volume(study, row["volume_id"])
    reader = SimpleITK.ImageSeriesReader
    files = reader.GetGDCMSeriesFileNames(str(root))
    names = [Path(study.file(study.index.column("sample_id").to_pylist().index(s))[0]).name for s in row["sample_ids"]]
    assert names == [Path(f).name for f in files] and len(names) == 5
    theirs = SimpleITK.ReadImage(files)
    np.testing.assert_array_equal(volume.values(), SimpleITK.GetArrayFromImage(theirs))
    np.testing.assert_allclose(volume.spacing_mm[::-1], theirs.GetSpacing(), rtol=1e-6)
    for ijk in ((0, 0, 0), (15, 3, 4), (7, 15, 2)):
        np.testing.assert_allclose(volume.world(ijk), theirs.TransformIndexToPhysicalPoint(ijk), atol=1e-5)


def test_a_real_enhanced_ct_equals_highdicom(tmp_path: Path) -> None:
    file = own("eCT_Supplemental.dcm")
    (tmp_path / "a").mkdir()
    shutil.copy(file, tmp_path / "a")
    study = study_of(tmp_path / "a", tmp_path / "s")
    (row,) = volumes_of(study).to_pylist()
    volume = open_volume(study, row["volume_id"])
    theirs = highdicom.Image.from_dataset(pydicom.dcmread(file)).get_volume(dtype=np.float64)
    for voxel in ((0, 0, 0), (511, 300, 1), (77, 200, 0)):
        k, j, i = np.rint(theirs.map_reference_to_indices(volume.world(voxel)[None])[0]).astype(int)
        np.testing.assert_allclose(
            theirs.map_indices_to_reference(np.array([[k, j, i]]))[0], volume.world(voxel), atol=1e-3
        )
        assert theirs.array[k, j, i] == volume.values()[voxel[::-1]]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["ct_256x256x133.nii.gz", "totalseg_labels_256x256x133.nii.gz"])
def test_a_real_nifti_goes_in_and_out_unchanged(tmp_path: Path, real_data: Path, name: str) -> None:
    source = real_data / "medical" / "lidc0001" / name
    if not source.is_file():
        pytest.skip("HILUM_TEST_DATA holds no medical/lidc0001")
    (tmp_path / "a").mkdir()
    shutil.copy(source, tmp_path / "a")
    study = study_of(tmp_path / "a", tmp_path / "s")
    (row,) = volumes_of(study).to_pylist()
    assert row["usable"] and row["shape_kji"] == [133, 256, 256] and study.row(0)["group_known"] is False
    volume = open_volume(study, row["volume_id"])
    written = SimpleITK.ReadImage(str(write_nifti(volume, tmp_path / "out.nii.gz")))
    theirs = SimpleITK.ReadImage(str(source))
    for ijk in np.random.default_rng(0).integers(0, (256, 256, 133), (200, 3)).tolist():
        place = theirs.TransformIndexToPhysicalPoint(ijk)
        mine = np.rint(volume.index(place)).astype(int)
        np.testing.assert_allclose(volume.world(mine), place, atol=1e-3)
        k, j, i = mine[::-1]
        value = volume.stored[k, j, i] * volume.slopes[k] + volume.intercepts[k]
        assert value == theirs.GetPixel(ijk) == written.GetPixel(written.TransformPhysicalPointToIndex(place))
