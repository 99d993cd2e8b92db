"""A tree of files: nothing lost, hostile files, a second run, the command line, other tools, public files."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
from fake.deid import KEY, OVERLAY, copies, run, stored_digest, table, the_copy
from fake.dicom import dataset, phantom, write
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from hilum.core.errors import HilumError
from hilum.medical.deid.archive import deidentify
from hilum.medical.deid.profile import Options


def test_nothing_is_lost_and_a_second_run_adds_only_what_is_new(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    write(root / "a.dcm", phantom(1))
    write(root / "yes.dcm", phantom(2), instance=2, BurnedInAnnotation="YES")
    write(root / "sr.dcm", None, sop_class="1.2.840.10008.5.1.4.1.1.88.11", instance=3)
    (root / "note.txt").write_text("Jane Doe called")
    (root / "empty").touch()
    (root / "x.zip").write_bytes(b"PK\x03\x04rest")
    whole = (root / "a.dcm").read_bytes()
    (root / "cut.dcm").write_bytes(whole[: len(whole) - 500])
    result = run(root, out, workers=1)
    assert result.counts == {"found": 7, "written": 1, "held": 1, "refused": 3, "failed": 2}
    assert result.exit_code == 3
    lines = table(result.report.with_suffix(".csv"))
    assert sorted(line["reason"] for line in lines) == [
        "", "burned_in_text", "empty_file", "non_image:structured_report", "not_dicom", "truncated_pixels", "unsupported_container",
    ]  # fmt: skip
    assert stat.S_IMODE(Path(f"{out}.private").stat().st_mode) == 0o700
    before = {p: p.stat().st_mtime_ns for p in copies(out)}
    write(root / "later" / "b.dcm", phantom(4), patient="NEW-1", instance=4)
    again = run(root, out, workers=0)
    assert again.counts == {"found": 8, "written": 2, "held": 1, "refused": 3, "failed": 2}
    assert {p: t for p, t in ((p, p.stat().st_mtime_ns) for p in copies(out)) if p in before} == before
    with pytest.raises(HilumError, match="other settings"):
        run(root, out, retain=("uids",))
    for inside in (root / "out", tmp_path):
        with pytest.raises(HilumError, match="inside each other"):
            run(root, inside)


def test_an_identifier_that_is_still_there_stops_the_file(tmp_path: Path) -> None:
    """The user keeps an attribute that quotes the patient: the self-check finds it, no copy is left."""
    root, out = tmp_path / "in", tmp_path / "out"
    write(root / "a.dcm", phantom(), PatientName="Ostrowska^Halina", ManufacturerModelName="Unit of Ostrowska")
    result = deidentify(root, out, key=KEY, options=Options(keep=frozenset({"ManufacturerModelName"})), workers=0)
    assert result.counts["failed"] == 1 and copies(out) == []
    line = table(result.report.with_suffix(".csv"))[0]
    assert line["reason"] == "identifier_left" and "strowsk" not in result.report.with_suffix(".csv").read_text()


def test_another_tool_leaves_what_this_one_takes(tmp_path: Path) -> None:
    """dicom-anonymizer on the same file: what it leaves is known (preamble, overlay description, file meta)."""
    tool = pytest.importorskip("dicomanonymizer.simpledicomanonymizer", reason="dicom-anonymizer is not installed")
    image = dataset(
        phantom(), PatientName="Canaryone^Anna", StudyDescription="Canarytwo", InstitutionName="Canarythree"
    )
    image.add(DataElement(OVERLAY << 16 | 0x0022, "LO", "Canaryfour"))
    image.add(DataElement(0x00091010, "UN", b"Canaryfive"))
    image.AcquisitionDeviceProcessingCode = "Canarysix"
    image.preamble = b"Canaryseven".ljust(128, b"\0")
    image.file_meta.SourceApplicationEntityTitle = "CANARYEIGHT"
    root = tmp_path / "in"
    root.mkdir()
    image.save_as(root / "a.dcm", enforce_file_format=True)
    tool.anonymize_dicom_file(str(root / "a.dcm"), str(tmp_path / "theirs.dcm"))
    left = set(re.findall(rb"canary\w+", (tmp_path / "theirs.dcm").read_bytes().lower()))
    assert {b"canaryfour", b"canaryseven", b"canaryeight"} <= left and b"canaryone" not in left
    the_copy(root, tmp_path / "out")
    assert re.findall(rb"canary\w+", copies(tmp_path / "out")[0].read_bytes().lower()) == []


def test_hostile_files_cost_one_line_each(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    write(root / "good.dcm", phantom())
    write(root / "bomb.dcm", phantom(), instance=2, Rows=65535, Columns=65535, NumberOfFrames=1000)
    inner = Dataset()
    inner.PatientID = "X"
    for _ in range(60):
        outer = Dataset()
        outer.SourceImageSequence = Sequence([inner])
        inner = outer
    write(root / "deep.dcm", phantom(), instance=3, SourceImageSequence=Sequence([inner]))
    (root / "program.dcm").write_bytes(b"MZ" + (root / "good.dcm").read_bytes()[2:])
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to(root)
    result = run(root, out, workers=1)
    lines = table(result.report.with_suffix(".csv"))
    assert result.counts == {"found": 6, "written": 1, "held": 0, "refused": 1, "failed": 4}
    reasons = sorted(line["reason"] for line in lines)
    assert reasons == ["", "cycle", "resource_limit", "special_file", "truncated_pixels", "unsafe_preamble"] or reasons == [
        "", "cycle", "resource_limit", "resource_limit", "special_file", "unsafe_preamble",
    ]  # fmt: skip
    assert len(copies(out)) == 1


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hilum.core.cli import main

    write(tmp_path / "in" / "a.dcm", phantom(), StudyDate="20200229")
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    command = ["deid", str(tmp_path / "in"), str(tmp_path / "out"), "--id-key", str(key), "--workers", "0"]
    assert (
        main([*command, "--retain", "dates-shifted", "--retain", "device", "--report", str(tmp_path / "r.json")]) == 0
    )
    told = capsys.readouterr().out
    assert "found 1: 1 written" in told and "Doe" not in told
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["codes"][1][0] == "113107" and report["actions"]["PatientName"] == {"pseudonym": 1}
    assert main([*command, "--retain", "date-shifted"]) == 1
    assert "dates-shifted" in capsys.readouterr().err


LIST = "creator,group,element\nSIEMENS MR HEADER,0018,0C\n"


@pytest.mark.parametrize(
    ("words", "where", "fix"),
    [
        (["{at}/none", "{at}/o"], "{at}/none", "the folder that holds the files"),
        (["{at}/in/a.dcm", "{at}/o"], "{at}/in/a.dcm", "the folder that holds the files"),
        (["{at}/empty", "{at}/o"], "{at}/empty", "check the path"),
        (["{at}/in", "{at}/in/o"], "{at}/in/o", "a folder elsewhere"),
        (["{at}/in", "{at}/file"], "{at}/file", "a new folder"),
        (["{at}/in", "{at}/full"], "{at}/full", "a new folder"),
        (["{at}/in", "{at}/broken"], "{at}/broken", "a new folder"),
        (["{at}/in", "{at}/o", "--report", "{at}/file/r.json"], "{at}/file", "name"),
        (["{at}/in", "{at}/o", "--report", "{at}/in/r.json"], "--report", "elsewhere"),
        (["{at}/in", "{at}/o", "--report", "{at}/r.csv"], "--report", "r.json"),
        (["{at}/in", "{at}/o", "--report", "{at}/full"], "--report", "full.json"),
        (["{at}/in", "{at}/o", "--report", "{at}/list.json"], "--report", "another name"),
        (["{at}/in", "{at}/o", "--retain", "date-shifted"], "--retain", "dates-shifted"),
        (["{at}/in", "{at}/o", "--retain", "dates,dates-shifted"], "--retain", "one of the two"),
        (["{at}/in", "{at}/o", "--keep", "ManufacturerModelNam"], "--keep", "'ManufacturerModelName'"),
        (["{at}/in", "{at}/o", "--keep", "PatientName"], "--keep", "--retain"),
        (["{at}/in", "{at}/o", "--keep-private", "{at}/none.csv"], "--keep-private", "creator,group,element"),
        (["{at}/in", "{at}/o", "--keep-private", "{at}/in"], "--keep-private", "creator,group,element"),
        (["{at}/in", "{at}/o", "--keep-private", "{at}/file"], "--keep-private", "creator,group,element"),
        (["{at}/in", "{at}/o", "--keep-private", "{at}/list.csv"], "--keep-private", "creator,group,element"),
        (["{at}/in", "{at}/o", "--keep-private", "{at}/binary"], "UTF-8", "creator,group,element"),
        (["{at}/in", "{at}/o", "--workers", "-1"], "--workers", "--workers 2"),
        (["{at}/in", "{at}/o", "--id-key", "{at}/none"], "--id-key", "urandom"),
        (["{at}/in", "{at}/o", "--id-key", "{at}/file"], "--id-key", "urandom"),
    ],
)
def test_wrong_use_is_told_with_its_place_and_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], where: str, fix: str
) -> None:
    from hilum.core.cli import main

    image = write(tmp_path / "in" / "a.dcm", phantom()).read_bytes()
    for name, content in {
        "file": b"creator\n",
        "list.csv": LIST.encode(),
        "binary": b"\xff\xfe",
        "full/x": b"",
        "broken.private/settings.json": b'{"method": ',
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    assert main(["deid", "--workers", "0", *(word.format(at=tmp_path) for word in words)]) == 1
    told = capsys.readouterr().err
    assert where.format(at=tmp_path) in told and fix in told and "fix:" in told
    assert "Traceback" not in told and "Doe" not in told
    assert not list(tmp_path.rglob("*.dcm"))[1:] and (tmp_path / "in" / "a.dcm").read_bytes() == image
    assert (tmp_path / "file").read_bytes() == b"creator\n"


def test_a_folder_that_may_not_be_written_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.dcm", phantom())
    shut = tmp_path / "reports"
    monkeypatch.setattr("os.access", lambda place, mode: Path(place) != shut)
    with pytest.raises(HilumError, match="cannot be written: Permission denied") as told:
        run(tmp_path / "in", tmp_path / "o", report=shut / "r.json")
    assert told.value.where == str(shut) and not copies(tmp_path / "o")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_which_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    from hilum.core.cli import main
    from hilum.medical.deid.archive import Journal

    for n in range(4):
        write(tmp_path / "in" / f"{n}.dcm", phantom(n), instance=n + 1)
    add = Journal.add

    def stopped(self: Journal, *what: Any) -> None:
        add(self, *what)
        if len(self.lines) == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Journal, "add", stopped)
    command = ["deid", str(tmp_path / "in"), str(tmp_path / "o"), "--workers", "0"]
    assert main(command) == 128 + number
    assert "goes on where this one stopped" in capsys.readouterr().err
    before = {p: p.stat().st_mtime_ns for p in copies(tmp_path / "o")}
    monkeypatch.setattr(Journal, "add", add)
    assert main(command) == 0 and "found 4: 4 written" in capsys.readouterr().out
    assert sum(p.stat().st_mtime_ns == t for p, t in before.items()) >= 2  # not done again
    assert set(before) <= set(copies(tmp_path / "o")) and len(copies(tmp_path / "o")) == 4


def test_the_command_says_why_files_were_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hilum.core.cli import main

    write(tmp_path / "in" / "a.dcm", phantom())
    for n in (1, 2):
        write(tmp_path / "in" / f"yes{n}.dcm", phantom(n), instance=n + 1, BurnedInAnnotation="YES")
    (tmp_path / "in" / "note.txt").write_text("Jane")
    command = ["deid", str(tmp_path / "in"), str(tmp_path / "o"), "--workers", "0"]
    assert main([*command, "--report", str(tmp_path / "new" / "r.json")]) == 3  # its folder is made
    told = capsys.readouterr().out
    assert "found 4: 1 written, 2 held, 1 refused, 0 failed\n       2  burned_in_text\n       1  not_dicom\n" in told
    assert (tmp_path / "new" / "r.csv").is_file()
    assert main([*command, "--retain", "uids", "--burned-in", "flag"]) == 1
    told = capsys.readouterr().err
    assert "other settings (retain, burned_in)" in told and str(tmp_path / "o") in told
    assert "OUT.private/settings.json" in told


FILES = """CT_small MR_small MR_small_RLE MR_small_bigendian MR_small_jpeg_ls_lossless MR_small_jp2klossless JPGExtended
    693_J2KI image_dfl liver_1frame rtdose_1frame SC_rgb_small_odd examples_palette"""


@pytest.mark.integration
def test_public_files_keep_their_values_and_lose_their_identifiers(tmp_path: Path) -> None:
    """Files that come with pydicom, all kinds of transfer syntaxes; what to look for is read from them here, plainly."""
    import shutil

    import pydicom

    source = Path(pydicom.__file__).parent / "data" / "test_files"
    root, out = tmp_path / "in", tmp_path / "out"
    for name in FILES.split():
        (root / name).mkdir(parents=True)
        shutil.copy(source / f"{name}.dcm", root / name)
    result = run(root, out, burned_in="flag", workers=2)
    assert result.counts["written"] == len(FILES.split()) and result.exit_code == 0
    raw = b"\0".join(p.read_bytes() for p in copies(out))
    looked_for: set[str] = set()
    for path in root.rglob("*.dcm"):
        for element in dcmread(path).iterall():
            values = str(element.value).split("\\") if element.VR in ("PN", "UI", "DA") else []
            for value in values:
                if element.VR == "PN":
                    looked_for |= {w for w in re.split(r"[\^=\s]", value) if len(w) > 5}
                elif element.VR == "DA" or not value.startswith("1.2.840.10008"):
                    looked_for |= {value} if len(value) >= 8 else set()
    assert len(looked_for) > 40
    assert [text for text in looked_for if re.search(rf"(?<![\d.]){re.escape(text)}(?![\d.])".encode(), raw)] == []
    assert sorted(str(stored_digest(p)) for p in copies(out)) == sorted(
        str(stored_digest(p)) for p in root.rglob("*.dcm")
    )
