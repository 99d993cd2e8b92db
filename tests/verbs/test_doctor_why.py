"""``hilum doctor STUDY --why PATH``: labels, conflicts, what is no image, hostile names."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fake.archive import by_path
from fake.dicom import item, phantom, uid, write

from hilum.core.errors import HilumError
from hilum.data.study import Study
from hilum.verbs.intake import index
from hilum.verbs.why import explain

SR = "1.2.840.10008.5.1.4.1.1.88.33"


def test_why_tells_what_a_label_marks(tmp_path: Path) -> None:
    root, seg = tmp_path / "files", "1.2.840.10008.5.1.4.1.1.66.4"
    mask = (phantom() > 2000).astype(np.uint8)
    here = item(SeriesInstanceUID=uid(1, 1))
    place = item(RTReferencedStudySequence=[item(RTReferencedSeriesSequence=[here])])
    write(root / "image.dcm", phantom(), series=1)
    write(root / "seg.dcm", mask, series=2, sop_class=seg, Modality="SEG", frames=1, ReferencedSeriesSequence=[here])
    write(root / "lost.dcm", 1 - mask, series=2, instance=2, sop_class=seg, Modality="SEG", frames=1)
    structures = {"sop_class": "1.2.840.10008.5.1.4.1.1.481.3", "Modality": "RTSTRUCT"}
    write(root / "rt.dcm", None, series=3, ReferencedFrameOfReferenceSequence=[place], **structures)
    index(root, out=tmp_path / "study", workers=1)
    study = Study(tmp_path / "study")
    series = by_path(study.path)["image.dcm"]["series_id"]
    told = {name: dict(explain(study, f"{name}.dcm")) for name in ("image", "seg", "lost", "rt")}
    assert told["seg"]["use"] == told["rt"]["use"] == f"a label of series {series}"
    assert told["lost"]["use"] == "a label that names no series it marks"
    assert told["image"]["use"] == "a sample of 2-D views" and told["rt"]["status"] == "skipped: non_image:rtstruct"


def test_why_tells_the_other_side_of_a_conflict_and_nothing_of_patients_where_there_is_no_image(tmp_path: Path) -> None:
    root = tmp_path / "files"
    write(root / "one.dcm", phantom(1))
    write(root / "two.dcm", phantom(2))  # the same SOPInstanceUID
    write(root / "alone.dcm", phantom(3), study=2)
    write(root / "report.dcm", None, patient=None, study=3, sop_class=SR, Modality="SR")
    with zipfile.ZipFile(root / "cd.zip", "w") as packed:
        packed.write(root / "alone.dcm", "disc/IM1")
    index(root, out=tmp_path / "study", workers=1)
    study, rows = Study(tmp_path / "study"), by_path(tmp_path / "study")
    told = {name: explain(study, name) for name in ("one.dcm", "two.dcm", "alone.dcm", "report.dcm", "cd.zip")}
    for name, other in (("one.dcm", "two.dcm"), ("two.dcm", "one.dcm")):
        conflict = dict(told[name])["conflict"]
        assert rows[other]["sample_id"][:12] in conflict and rows["alone.dcm"]["sample_id"][:12] not in conflict
    assert "conflict" not in dict(told["alone.dcm"])
    for name in ("report.dcm", "cd.zip"):
        assert not any("train" in words or "--labels" in words for _, words in told[name]), name
    assert "ARCHIVE!MEMBER" in dict(told["cd.zip"])["use"] and "patient" not in dict(told["cd.zip"])
    (root / "alone.dcm").unlink()
    index(root, out=tmp_path / "study", workers=1)
    gone = dict(explain(Study(tmp_path / "study"), "alone.dcm"))
    assert gone["status"].endswith("vanished") and gone["to do"].startswith("nothing, if it was removed on purpose")


def test_a_hostile_name_is_explained_under_the_spelling_that_a_near_miss_shows(tmp_path: Path) -> None:
    root = tmp_path / "files"
    root.mkdir()
    for n, name in enumerate((b"line\nfeed.dcm", b"\xff\xfe.dcm", b"back\\x5cslash.dcm", "\u202eright.dcm".encode())):
        write(tmp_path / "t.dcm", phantom(n), study=n + 1)
        (tmp_path / "t.dcm").rename(root / os.fsdecode(name))
    write(root / "ward" / "plain.dcm", phantom(9), study=9)
    index(root, out=tmp_path / "study", workers=1)
    study = Study(tmp_path / "study")
    for asked in ("line\nfeed.dcms", "\udcff\udcfe.dcms", "back\\x5cslash.dcms", "\u202eright.dcms"):
        with pytest.raises(HilumError) as caught:
            explain(study, asked)
        shown = re.fullmatch(r"did you mean (\S+)\?", caught.value.fix)
        assert shown is not None and shown[1].isprintable(), caught.value.fix
        assert dict(explain(study, shown[1]))["status"] == "indexed"
    with pytest.raises(HilumError) as caught:
        explain(study, "ward/")
    assert caught.value.fix == "a folder of 1 files: name one of them"
