"""``hilum volumes``: what it writes, its table, and what it says of wrong use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from fake.volumes import enhanced, places, plane, slices

from hilum.core.cli import main
from hilum.core.errors import HilumError
from hilum.data.index import index_archive
from hilum.data.study import Study
from hilum.medical.volumes.verb import COLUMNS, volumes
from hilum.medical.volumes.volume import volumes_of


def study_of(root: Path, **options: Any) -> Study:
    (root.parent / "id.key").write_bytes(bytes(range(32)))
    out = root.parent / f"{root.name}-study"
    index_archive(root, out, workers=0, progress=False, id_key=root.parent / "id.key", **options)
    return Study(out)


def test_the_verb_writes_what_is_usable_and_says_why_not(tmp_path: Path) -> None:
    slices(tmp_path / "a", places())
    slices(
        tmp_path / "a",
        [p for k, p in enumerate(places()) if k != 2],
        series=2,
        study=2,
        patient="P2",
        pixels=lambda k: plane(k) + 7,
    )
    enhanced(
        tmp_path / "a" / "e.dcm", places(), lines=[(k + 1, 0) for k in range(6)], order=range(6), series=3, patient="P3"
    )
    study = study_of(tmp_path / "a")
    found = volumes(study.path, out=tmp_path / "out")
    assert (found.written, found.left_out, found.exit_code) == (2, 1, 0)
    lines = [dict(zip(COLUMNS, line)) for line in found.lines]
    (gap,) = (line for line in lines if line["status"] == "left_out")
    assert gap["reason"] == "gap:1 missing, step 2.5 mm" and gap["file"] == ""
    for line in lines:
        if line["file"]:
            image = nibabel.load(tmp_path / "out" / line["file"])
            np.testing.assert_allclose(image.affine[:3, 3], [30, 40, 12.5], atol=1e-5)
    assert (tmp_path / "out" / "volumes.csv").read_text().count("\n") == 4
    more = volumes(study.path, out=tmp_path / "more", option=["allow_gaps"], volume=[gap["volume_id"]])
    assert more.written == 1
    first = (tmp_path / "more" / f"{gap['volume_id']}.nii.gz").read_bytes()
    volumes(study.path, out=tmp_path / "more", option=["allow_gaps"], volume=[gap["volume_id"]])
    assert (tmp_path / "more" / f"{gap['volume_id']}.nii.gz").read_bytes() == first  # no time stamp
    assert nibabel.load(tmp_path / "more" / f"{gap['volume_id']}.nii.gz").shape == (5, 7, 6)


@pytest.mark.parametrize(
    ("more", "where", "fix"),
    [
        (["--option", "allow_gap"], "--option", "did you mean 'allow_gaps'?"),
        (["--option", "x"], "--option", "allow_gaps, resample, split_4d, pixdim_affine"),
        (["--volume", "none"], "{at}/a-study", "volume_id of volumes.csv"),
        (["--out", "{at}/file"], "{at}/file", "another --out"),
        (["--out", "{at}/file/out"], "{at}/file/out", "another --out"),
        (["--out", "{at}/tables"], "{at}/tables/volumes.csv", "another --out"),
    ],
)
def test_wrong_use_is_told_with_its_place_and_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], where: str, fix: str
) -> None:
    slices(tmp_path / "a", places())
    study = study_of(tmp_path / "a")
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "volumes.csv").write_text("a,b\n1,2\n")
    command = ["volumes", str(study.path), "--out", str(tmp_path / "out"), *(m.format(at=tmp_path) for m in more)]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert where.format(at=tmp_path) in told and fix in told and "Traceback" not in told
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_a_folder_never_holds_volumes_that_its_table_does_not_tell_of(tmp_path: Path) -> None:
    """Those of other options would lie beside the table as if they had been made by what it says."""
    slices(tmp_path / "a", [p for k, p in enumerate(places()) if k != 2])
    slices(tmp_path / "a", places(), series=2, study=2, first=20, patient="P2")
    study, out = study_of(tmp_path / "a"), tmp_path / "out"
    assert volumes(study.path, out=out, option=["allow_gaps"]).written == 2
    assert volumes(study.path, out=out, option=["allow_gaps"]).written == 2  # the same again is no conflict
    before = (out / "volumes.csv").read_bytes()
    with pytest.raises(HilumError, match="other options") as told:
        volumes(study.path, out=out)
    assert told.value.where == str(out) and (out / "volumes.csv").read_bytes() == before
    one, other = (row["volume_id"] for row in volumes_of(study).to_pylist())
    for volume in (one, other):  # one by one: the table goes on telling of all
        volumes(study.path, out=tmp_path / "single", option=["allow_gaps"], volume=[volume])
    table = (tmp_path / "single" / "volumes.csv").read_text().splitlines()
    assert sorted(line.split(",")[0] for line in table[1:]) == sorted([one, other])


def test_slices_of_several_frames_of_reference_are_no_volume(tmp_path: Path) -> None:
    """Their positions are measured from different origins, so their order and distances mean nothing."""
    other = "1.2.826.0.1.3680043.8.498.10"
    slices(tmp_path / "a", places(), own=lambda k: {"FrameOfReferenceUID": other} if k > 2 else {})
    slices(tmp_path / "a", places(), series=2, study=2, first=20, patient="P2",
           own=lambda k: {"FrameOfReferenceUID": None} if k > 2 else {}, pixels=lambda k: plane(k) + 1)  # fmt: skip
    study = study_of(tmp_path / "a")
    found = volumes(study.path, out=tmp_path / "out")
    lines = [dict(zip(COLUMNS, line, strict=True)) for line in found.lines]
    whole = [line for line in lines if line["status"] == "written" and line["slices"] == "6"]
    assert len(whole) == 1 and not whole[0]["problems"]  # of the series that names one origin
    torn = [line for line in lines if line["group_id"] != whole[0]["group_id"]]
    for line in torn:  # taken apart, or set aside
        assert line["slices"] == "3" or "frames of reference" in line["reason"], line
    assert torn and other not in str(found.lines)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == sum(line["status"] == "written" for line in lines)
