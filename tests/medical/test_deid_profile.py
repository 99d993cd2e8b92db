"""The action table: as another package has it, and as the standard's rules resolve it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from pydicom.datadict import tag_for_keyword

from hilum.core.errors import HilumError
from hilum.medical.deid.profile import Options, Profile, names_of


def action(keyword: str, vr: str, *retain: str) -> str:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return Profile.load(Options(frozenset(retain))).action(tag, vr, keyword)


def their_table(edition: str) -> dict[int, str]:
    """Tag -> basic code, of the package dicom-anonymizer."""
    pytest.importorskip("dicomanonymizer", reason="the package dicom-anonymizer is not installed")
    module: Any = importlib.import_module(f"dicomanonymizer.dicom_anonymization_databases.dicomfields_{edition}")
    names = [n for n in dir(module) if n.endswith("_TAGS") and n != "ALL_TAGS"]
    codes = {n: n.removesuffix("_TAGS").replace("U_STAR", "U*").replace("_", "/") for n in names}
    return {tag[0] << 16 | tag[1]: codes[n] for n in names for tag in getattr(module, n) if len(tag) == 2}


def test_the_basic_profile_is_the_one_another_package_has() -> None:
    theirs = their_table("2026c")
    ours = {tag: row.basic for tag, row in Profile.load().rows.items()}
    assert len(ours) == 652
    assert {tag: (ours.get(tag), theirs.get(tag)) for tag in ours | theirs if ours.get(tag) != theirs.get(tag)} == {}


def test_what_changed_since_an_older_edition_is_known() -> None:
    """2023 to 2026c: nothing left the table, PatientID may no longer be removed to nothing only."""
    theirs = their_table("2023")
    ours = {tag: row.basic for tag, row in Profile.load().rows.items()}
    assert {tag for tag in theirs if tag not in ours} == set()
    assert {f"{tag:08X}": (theirs[tag], ours[tag]) for tag in theirs if theirs[tag] != ours[tag]} == {
        "00100020": ("Z", "Z/D")
    }


def test_every_time_of_the_table_can_be_shifted() -> None:
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    rows = Profile.load().rows
    times = [r for t, r in rows.items() if dictionary_has_tag(t) and dictionary_VR(t) == "DT"]
    assert len(times) > 40
    assert [r.keyword for r in times if r.options.get("dates") != "K" or r.options.get("dates_shifted") != "C"] == [
        "GPSTimeStamp"
    ]


@pytest.mark.parametrize(
    ("keyword", "vr", "expected"),
    [
        ("PatientName", "PN", "empty"),  # Z
        ("StudyDate", "DA", "empty"),  # Z
        ("SOPInstanceUID", "UI", "uid"),  # U
        ("StudyDescription", "LO", "remove"),  # X
        ("ClinicalTrialProtocolID", "LO", "dummy"),  # D
        ("AcquisitionDate", "DA", "empty"),  # X/Z, Type 2C of contrast and XA modules
        ("AcquisitionTime", "TM", "empty"),
        ("InstitutionName", "LO", "remove"),  # X/Z/D, Type 3 at the root of every image
        ("ContentDate", "DA", "dummy"),  # Z/D, Type 1 of enhanced images
        ("ReferencedImageSequence", "SQ", "items"),  # X/Z/U*
        ("RequestAttributesSequence", "SQ", "remove"),  # X
        ("Rows", "US", "number"),  # not in the table
        ("SOPClassUID", "UI", "uid"),
        ("Manufacturer", "LO", "clean"),
        ("ImageType", "CS", "terms"),
        ("PhysicianApprovingInterpretation", "PN", "remove"),
    ],
)
def test_codes_are_resolved_by_type(keyword: str, vr: str, expected: str) -> None:
    assert action(keyword, vr) == expected


def test_options_override_only_what_they_name() -> None:
    assert action("StudyDate", "DA", "dates") == "keep" and action("StudyDate", "DA", "dates-shifted") == "clean"
    assert action("PatientBirthDate", "DA", "dates") == "empty"  # never retained as a date
    assert action("SOPInstanceUID", "UI", "uids") == "keep" and action("DeviceUID", "UI", "device") == "keep"
    assert (
        action("DeviceSerialNumber", "LO", "device") == "keep" and action("DeviceSerialNumber", "LO", "uids") != "keep"
    )
    assert action("PatientSex", "CS", "patient") == "keep" and action("PatientName", "PN", "patient") == "empty"
    assert action("StudyDescription", "LO", "descriptors") == "clean"


def test_wrong_options_are_told() -> None:
    with pytest.raises(HilumError, match="'date'"):
        Options(names_of(["date"]))
    with pytest.raises(HilumError, match="both full and shifted"):
        Options(names_of(["dates,dates-shifted"]))
    with pytest.raises(HilumError, match="not in the DICOM dictionary"):
        Options(keep=frozenset({"PatientShoeSize"}))


def test_a_value_is_judged_by_the_vr_it_was_read_with() -> None:
    """Explicit files may give any attribute any VR: text in the place of numbers is text."""
    assert action("Rows", "LO") == "clean" and action("LUTData", "LO") == "clean" and action("LUTData", "OW") == "bulk"
    assert action("PixelPaddingValue", "US or SS") == "number" and action("Rows", "UN") == "remove"
    assert action("SOPClassUID", "PN") == "remove" and action("PatientSex", "LT", "patient") == "empty"
