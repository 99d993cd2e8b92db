"""De-identified copies: nothing of the patient left, pixels the same, references consistent."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from fake.deid import KEY, OVERLAY, copies, run, stored_digest, table, the_copy
from fake.dicom import dataset, phantom, uid, write
from pydicom import dcmread, dcmwrite
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from hilum.core.errors import HilumError
from hilum.medical.deid.archive import deidentify
from hilum.medical.deid.profile import Options


def test_the_nine_places_where_other_tools_leave_names(tmp_path: Path) -> None:
    """Section 0.11's canaries: each is another name, none may be in the copy, in any case or encoding."""
    image = dataset(
        phantom(), bits=12, PatientName="Canaryone^Anna", PatientID="CANARY-ID-2", InstitutionName="Canarythree"
    )
    image.add(DataElement(0x00091010, "UN", b"Canaryfour^Bertha"))
    image.add(DataElement(0x00090010, "LO", "ACME 1.1"))
    inner = Dataset()
    inner.PatientName, inner.PerformingPhysicianName = "Canaryfive^Clara", "Canarysix^Dora"
    inner.add(DataElement(0x00110010, "LO", "ACME SQ"))
    private = Dataset()
    private.PatientName = "Canaryseven^Emma"
    image.add(DataElement(0x00110010, "LO", "ACME SQ"))
    image.add(DataElement(0x00111001, "SQ", Sequence([private])))
    image.ReferencedImageSequence = Sequence([inner])
    image.add(DataElement(OVERLAY << 16 | 0x0022, "LO", "Canaryeight"))
    image.add(DataElement(OVERLAY << 16 | 0x3000, "OW", b"Canarynine!!"))
    image.add(DataElement(0x00081195, "UI", "1.2.826.0.1.3680043.99.7777"))
    words = np.frombuffer(image.PixelData, "<u2").reshape(24, 32).copy()
    words[3:9, 5:20] |= 1 << 12  # an overlay in an unused bit
    image.PixelData = words.tobytes()
    image.file_meta.SourceApplicationEntityTitle = "CANARYTEN"
    image.preamble = b"Canaryeleven".ljust(128, b"\0")
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    image.save_as(root / "Canarytwelve.dcm", enforce_file_format=True)
    copy = the_copy(root, out)
    written = copies(out)[0]
    raw = written.read_bytes()
    assert b"canary" not in raw.lower()
    assert "canary".encode("utf-16-le") not in raw.lower() and b"3680043.99.7777" not in raw
    assert raw[:128] == bytes(128)
    assert not any("canary" in str(p).casefold() for p in out.rglob("*"))
    assert not np.any(np.frombuffer(copy.PixelData, "<u2") >> 12)
    assert stored_digest(written) == stored_digest(root / "Canarytwelve.dcm")
    report = Path(f"{out}.private/report.json").read_text() + Path(f"{out}.private/report.csv").read_text()
    assert "canary" not in report.casefold() and "Doe" not in report


def test_a_hundred_planted_identifiers_over_all_text_and_binary_vrs(tmp_path: Path) -> None:
    """Every text VR, listed in the table or not, at the root and nested, private, unknown: none is in the copy."""
    from pydicom.datadict import DicomDictionary

    image = dataset(phantom())
    planted = []
    rng = np.random.default_rng(5)
    vrs = {"PN": 10, "LO": 24, "SH": 18, "ST": 10, "LT": 10, "UT": 6, "UC": 2, "CS": 16, "AE": 4, "UR": 1}
    tags = {vr: [t for t, d in DicomDictionary.items() if d[0] == vr and t >> 16 not in (0, 2, 4)] for vr in vrs}
    nested = Dataset()
    for vr, count in vrs.items():
        for n, at in enumerate(rng.permutation(len(tags[vr]))[:count]):
            word = f"QZ{vr}{n:02d}VX"
            tag = tags[vr][at]
            if tag in (0x00080005, 0x00280004, 0x00080008):
                continue
            planted.append(word)
            (nested if n % 2 else image).add(DataElement(tag, vr, word if vr != "UR" else f"http://{word}"))
    image.RequestAttributesSequence = Sequence([nested])
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "QZCODE1VX", "99QZVX", "QZMEANVX"
    image.AnatomicRegionSequence = Sequence([code, nested])
    for n, (vr, value) in enumerate([("UN", b"QZUN01VX"), ("OB", b"QZOB01VX"), ("LT", "QZLT99VX")]):
        image.add(DataElement(0x00990010 + 0, "LO", "QZCREATORVX"))
        image.add(DataElement(0x00991001 + n, vr, value))
    image.add(DataElement(0x00E10010, "LO", "QZEVENVX"))  # an even group that no dictionary knows
    root, out = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    image.save_as(root / "a.dcm", enforce_file_format=True)
    assert len(planted) + 8 >= 100
    assert re.findall(rb"QZ\w+VX", (root / "a.dcm").read_bytes())
    the_copy(root, out)
    assert re.findall(rb"QZ\w*VX", copies(out)[0].read_bytes(), re.IGNORECASE) == []


def test_uids_are_mapped_the_same_in_every_file_and_reference(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    write(root / "a.dcm", phantom(1), instance=1, FrameOfReferenceUID=uid(9, 9))
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", uid(1, 1, 1)
    write(
        root / "b.dcm", phantom(2), instance=2, FrameOfReferenceUID=uid(9, 9), SourceImageSequence=Sequence([reference])
    )
    assert run(root, out).counts == {"found": 2, "written": 2, "held": 0, "refused": 0, "failed": 0}
    one, two = (dcmread(p) for p in copies(out))
    if "SourceImageSequence" in one:
        one, two = two, one
    assert (
        two.SourceImageSequence[0].ReferencedSOPInstanceUID
        == one.SOPInstanceUID
        == one.file_meta.MediaStorageSOPInstanceUID
    )
    assert two.SourceImageSequence[0].ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.1.1" == one.SOPClassUID
    assert one.FrameOfReferenceUID == two.FrameOfReferenceUID != uid(9, 9)
    assert re.fullmatch(r"2\.25\.\d{1,39}", one.SOPInstanceUID) and one.StudyInstanceUID == two.StudyInstanceUID
    assert one.PatientID == two.PatientID == one.PatientName == KEY.group(None, "AB-0007")[:16].upper()
    with_uids = tmp_path / "uids"
    run(root, with_uids, retain=("uids",))
    assert {dcmread(p).SOPInstanceUID for p in copies(with_uids)} == {uid(1, 1, 1), uid(1, 1, 2)}


def test_dates_shift_by_whole_days_of_the_patient(tmp_path: Path) -> None:
    root = tmp_path / "in"
    first = {"StudyDate": "20200229", "StudyTime": "101500", "AcquisitionDateTime": "20200229101501.5+0100"}
    write(root / "a.dcm", phantom(1), study=1, PatientBirthDate="19470312", **first)
    write(root / "b.dcm", phantom(2), study=2, StudyDate="20200310", StudyTime="120000", ContentDate="2020.03.11")
    write(root / "c.dcm", phantom(3), study=3, patient="OTHER-9", StudyDate="20200310")
    run(root, tmp_path / "out", retain=("dates-shifted",))
    files = [dcmread(p) for p in copies(tmp_path / "out")]
    date = lambda text: np.datetime64(f"{text[:4]}-{text[4:6]}-{text[6:8]}")
    mine = sorted(
        (f for f in files if f.PatientID == KEY.group(None, "AB-0007")[:16].upper()), key=lambda f: f.StudyDate
    )
    assert len(mine) == 2
    offset = date(mine[0].StudyDate) - np.datetime64("2020-02-29")
    assert np.timedelta64(-3650, "D") <= offset <= np.timedelta64(-1, "D")
    assert date(mine[1].StudyDate) - np.datetime64("2020-03-10") == offset
    assert date(mine[1].ContentDate) - np.datetime64("2020-03-11") == offset
    assert mine[0].StudyTime == "101500" and str(mine[0].AcquisitionDateTime)[8:] == "101501.5+0100"
    assert date(str(mine[0].AcquisitionDateTime)) - np.datetime64("2020-02-29") == offset
    assert not mine[0].PatientBirthDate and mine[0].LongitudinalTemporalInformationModified == "MODIFIED"
    other = next(f for f in files if f not in mine)
    assert date(other.StudyDate) - np.datetime64("2020-03-10") != offset
    assert [c.CodeValue for c in other.DeidentificationMethodCodeSequence] == ["113100", "113107"]


@pytest.mark.parametrize("nobody", ["", "ANONYMOUS", "000000", "UNKNOWN", None])
def test_who_is_not_known_before_is_not_known_afterwards(tmp_path: Path, nobody: str | None) -> None:
    """A pseudonym for an absent PatientID would make one known patient of a study, which splits then rely on."""
    from hilum.data.study import Study
    from hilum.verbs.intake import index

    root, out, key = tmp_path / "in", tmp_path / "out", tmp_path / "key"
    key.write_bytes(KEY.secret)
    for study, instance in ((1, 1), (1, 2), (2, 1)):
        about = {"StudyDate": "20200229", "StudyTime": "101500"}
        write(root / f"{study}{instance}.dcm", phantom(), study=study, instance=instance, patient=nobody, **about)
    write(root / "known.dcm", phantom(9), study=3, patient="AB-0007", StudyDate="20200229")
    result = run(root, out, retain=("dates-shifted",))
    assert result.counts["written"] == 4, result.reasons
    files = [dcmread(p) for p in copies(out)]
    unknown = [f for f in files if f.get("PatientID") != KEY.group(None, "AB-0007")[:16].upper()]
    assert len(unknown) == 3 and not any(f.get("PatientID") for f in unknown)
    days = {str(f.StudyInstanceUID): set[str]() for f in unknown}
    for file in unknown:
        assert file.StudyDate < "20200229" and file.StudyTime == "101500"
        days[str(file.StudyInstanceUID)].add(file.StudyDate)
    assert sorted(len(dates) for dates in days.values()) == [1, 1] and len(set.union(*days.values())) == 2
    assert len({f.SOPInstanceUID for f in files}) == 4 and len({str(f.PatientName) for f in unknown}) == 2
    for folder, name in ((root, "before"), (out, "after")):
        index(folder, out=tmp_path / name, id_key=key, workers=1)
        rows = Study(tmp_path / name).index.to_pylist()
        assert sorted(r["group_known"] for r in rows) == [False, False, False, True], name
        assert len({r["group_id"] for r in rows}) == len({r["study_id"] for r in rows}) == 3, name


def test_files_of_no_study_and_no_patient_stay_apart(tmp_path: Path) -> None:
    for n in (1, 2):
        write(tmp_path / "in" / f"{n}.dcm", phantom(n), instance=n, patient=None, StudyInstanceUID=None)
    run(tmp_path / "in", tmp_path / "out")
    names = [str(dcmread(p).PatientName) for p in copies(tmp_path / "out")]
    assert len(set(names)) == 2 and len(list((tmp_path / "out").iterdir())) == 2


def test_options_keep_what_they_name_and_say_so(tmp_path: Path) -> None:
    root = tmp_path / "in"
    about = {
        "PatientSex": "F", "PatientAge": "093Y", "StationName": "ROOM-THREE", "DeviceSerialNumber": "SN-48213",
        "SeriesDescription": "Chest PA erect", "StudyDescription": "Chest for Dr Wagner", "StudyDate": "20200229",
        "InstitutionName": "Hospital am Ring",
    }  # fmt: skip
    write(root / "a.dcm", phantom(), **about)
    plain = the_copy(root, tmp_path / "plain")
    assert not plain.PatientSex and not plain.StudyDate and not plain.get("InstitutionName")
    assert not any(plain.get(k) for k in ("PatientAge", "StationName", "SeriesDescription", "StudyDescription"))
    assert plain.PatientIdentityRemoved == "YES" and plain.LongitudinalTemporalInformationModified == "REMOVED"
    assert [c.CodeValue for c in plain.DeidentificationMethodCodeSequence] == ["113100"]
    kept = the_copy(root, tmp_path / "kept", retain=("device", "patient", "descriptors", "dates", "institution"))
    assert kept.PatientSex == "F" and kept.PatientAge == "090Y" and kept.StudyDate == "20200229"
    assert kept.StationName == "ROOM-THREE" and kept.DeviceSerialNumber == "SN-48213"
    assert kept.SeriesDescription == "Chest PA erect" and not kept.get("StudyDescription")
    assert kept.InstitutionName == "Hospital am Ring" and kept.LongitudinalTemporalInformationModified == "UNMODIFIED"
    codes = {c.CodeValue for c in kept.DeidentificationMethodCodeSequence}
    assert codes == {"113100", "113105", "113106", "113108", "113109", "113112"}


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize("signed", [False, True])
def test_values_survive_and_hidden_bits_do_not(tmp_path: Path, syntax: str, signed: bool) -> None:
    values = phantom(bits=11).astype(np.int16 if signed else np.uint16)
    values[0, :4] = (-3, -2, -1, 0) if signed else (0, 1, 2, 3)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    words = (values.view("u2") & 0x0FFF) | np.uint16(0x5000)
    path = tmp_path / "in" / "a.dcm"
    path.parent.mkdir()
    image = dataset(
        words.view(values.dtype), bits=12, syntax=ImplicitVRLittleEndian if syntax == RLELossless else syntax
    )
    if syntax == RLELossless:
        image.compress(RLELossless, generate_instance_uid=False)
    dcmwrite(path, image, enforce_file_format=True)
    copy = the_copy(path.parent, tmp_path / "out")
    written = copies(tmp_path / "out")[0]
    assert copy.file_meta.TransferSyntaxUID == syntax
    if syntax != RLELossless:
        assert np.array_equal(np.frombuffer(copy.PixelData, f"{order}{values.dtype.str[1:]}").reshape(24, 32), values)
    assert stored_digest(written) == stored_digest(path)
    lines = table(Path(f"{tmp_path / 'out'}.private/report.csv"))
    assert lines[0]["bits_cleared"] == "True"


def test_private_attributes_on_a_keep_list_stay(tmp_path: Path) -> None:
    from hilum.medical.deid.profile import private_list

    table = tmp_path / "keep.csv"
    table.write_text("creator,group,element\nSIEMENS MR HEADER,0019,0C\n")
    image = dataset(phantom())
    block = image.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "1000")
    block.add_new(0x0D, "LO", "Doe Jane")
    root = tmp_path / "in"
    root.mkdir()
    image.save_as(root / "a.dcm", enforce_file_format=True)
    result = deidentify(root, tmp_path / "out", key=KEY, options=Options(private=private_list(table)), workers=0)
    copy = dcmread(copies(tmp_path / "out")[0])
    assert result.counts["written"] == 1
    assert copy.private_block(0x0019, "SIEMENS MR HEADER")[0x0C].value == 1000
    assert (0x0019, 0x100D) not in copy
    assert "113111" in {c.CodeValue for c in copy.DeidentificationMethodCodeSequence}
    table.write_text("creator,group,element\nX,0018,0C\n")
    with pytest.raises(HilumError, match="line 2"):
        private_list(table)


def test_comments_in_compressed_frames_go(tmp_path: Path) -> None:
    import imagecodecs
    from pydicom.encaps import generate_frames
    from pydicom.uid import JPEGBaseline8Bit

    values = (phantom(bits=8) & 0xFF).astype(np.uint8)
    stream = imagecodecs.jpeg_encode(values, level=95)
    stream = stream[:2] + b"\xff\xfe\x00\x12Qadirova^Nodir\0\0" + stream[2:]
    path = write(tmp_path / "in" / "a.dcm", values, syntax=JPEGBaseline8Bit, fragments=[stream])
    copy = the_copy(path.parent, tmp_path / "out")
    assert b"Qadirova" in path.read_bytes() and b"Qadirova" not in copies(tmp_path / "out")[0].read_bytes()
    assert stored_digest(copies(tmp_path / "out")[0]) == stored_digest(path)
    assert next(generate_frames(copy.PixelData, number_of_frames=1))[:2] == b"\xff\xd8"


def test_a_copy_can_be_de_identified_again(tmp_path: Path) -> None:
    root = tmp_path / "in"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113040", "DCM", "lossy compression"
    local = Dataset()
    local.CodeValue, local.CodingSchemeDesignator, local.CodeMeaning = "K77", "99KLINIK", "Thorax Dr. Brandt"
    write(
        root / "a.dcm",
        phantom(),
        DerivationCodeSequence=Sequence([code]),
        ProcedureCodeSequence=Sequence([local]),
        ClinicalTrialSponsorName="Brandt Stiftung",
    )
    first = the_copy(root, tmp_path / "one")
    again = the_copy(tmp_path / "one", tmp_path / "two")
    for copy in (first, again):
        assert copy.DerivationCodeSequence[0].CodeMeaning == "Lossy Compression"
        assert copy.DerivationCodeSequence[0].CodeValue == "113040"
        assert copy.ClinicalTrialSponsorName == "REMOVED" and len(copy.DeidentificationMethodCodeSequence) == 1
        kept = copy.get("ProcedureCodeSequence")
        assert not kept or kept[0].CodeMeaning == "REMOVED"
    assert first.PatientID != again.PatientID and first.SOPInstanceUID != again.SOPInstanceUID


def test_a_segmentation_is_an_image_and_a_video_is_not(tmp_path: Path) -> None:
    from pydicom.uid import MPEG2MPML

    mask = np.zeros((2, 16, 16), np.uint8)
    mask[:, 4:9, 4:9] = 1
    kinds = {
        "sop_class": "1.2.840.10008.5.1.4.1.1.66.4",
        "frames": 2,
        "Modality": "SEG",
        "SegmentationType": "FRACTIONAL",
    }
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, "Tumour of Mrs Ostrowska"
    write(tmp_path / "in" / "seg.dcm", mask, SegmentSequence=Sequence([segment]), **kinds)
    write(tmp_path / "in" / "film.dcm", mask[0], syntax=MPEG2MPML, fragments=[b"\0\0\1\xb3" + bytes(60)], instance=2)
    result = run(tmp_path / "in", tmp_path / "out")
    assert result.counts == {"found": 2, "written": 1, "held": 0, "refused": 0, "failed": 1}
    copy = dcmread(copies(tmp_path / "out")[0])
    assert copy.SegmentSequence[0].SegmentLabel == "REMOVED"  # Type 1
    assert np.array_equal(copy.pixel_array, mask)
    reasons = {line["status"]: line["reason"] for line in table(result.report.with_suffix(".csv"))}
    assert reasons == {"written": "", "failed": "unsupported_transfer_syntax"}
