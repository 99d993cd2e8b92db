"""Places that no table names: beside the values of pixels, in a VR of the file's own choice, in what only looks like a
number, a date, an age or a registered UID."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake.deid import KEY, copies, run, stored_digest, table, the_copy
from fake.dicom import dataset, fragmented, own, phantom, write
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from hilum.core.errors import HilumError
from hilum.medical.deid.profile import Options
from hilum.medical.deid.pseudonyms import Pseudonyms, capped_age, registered
from hilum.medical.deid.searching import Needles
from hilum.medical.deid.vocabulary import listed

HIDDEN = b"Qzcanary^Jane   "
_LONG = (b"OB", b"OW", b"UN", b"OL", b"OF", b"OD", b"OV", b"UT", b"UC", b"UR")


def element(tag: int, vr: bytes, value: bytes = HIDDEN) -> bytes:
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    return head + (b"\0\0" + struct.pack("<I", len(value)) if vr in _LONG else struct.pack("<H", len(value))) + value


def with_element(path: Path, raw: bytes, *, behind: bool = False) -> Path:
    """An image whose bytes also hold an element, in front of the pixels or behind them."""
    write(path, phantom(bits=16))
    whole = path.read_bytes()
    at = len(whole) if behind else whole.rindex(b"\xe0\x7f\x10\x00")
    path.write_bytes(whole[:at] + raw + whole[at:])
    return path


@pytest.mark.parametrize(
    ("tag", "vr"),
    [
        (0x7FE00001, b"OV"), (0x7FE00001, b"LT"), (0x00283006, b"OB"), (0x00660016, b"OF"), (0x00280120, b"UN"),
        (0x00280120, b"US"), (0x00181210, b"OL"), (0x00181210, b"US"), (0x00181210, b"FD"), (0x00080070, b"OV"),
    ],
)  # fmt: skip
def test_text_in_places_of_numbers_goes(tmp_path: Path, tag: int, vr: bytes) -> None:
    path = with_element(tmp_path / "in" / "a.dcm", element(tag, vr))
    the_copy(path.parent, tmp_path / "out")
    assert b"Qzcanary" in path.read_bytes() and b"Qzcanary" not in copies(tmp_path / "out")[0].read_bytes()


def test_a_lookup_table_that_climbs_through_the_letters_stays(tmp_path: Path) -> None:
    path = with_element(tmp_path / "in" / "a.dcm", element(0x00283006, b"OW", bytes(range(0x30, 0x70))))
    assert the_copy(path.parent, tmp_path / "out").LUTData == bytes(range(0x30, 0x70))


def test_what_lies_behind_the_values_goes(tmp_path: Path) -> None:
    """Bytes after the last value, and a nested image's own pixels; the values stay."""
    image = dataset(phantom(bits=16))
    inner = Dataset()
    inner.add(DataElement(0x7FE00008, "OF", HIDDEN))
    image.SourceImageSequence = Sequence([inner])
    image.PixelData += HIDDEN
    (tmp_path / "in").mkdir()
    image.save_as(tmp_path / "in" / "a.dcm", enforce_file_format=True)
    copy = the_copy(tmp_path / "in", tmp_path / "out")
    assert copy.PixelData == phantom(bits=16).tobytes()
    assert b"Qzcanary" not in copies(tmp_path / "out")[0].read_bytes()
    assert table(Path(f"{tmp_path / 'out'}.private/report.csv"))[0]["excess_removed"] == "True"


def test_pixels_that_were_not_looked_at_are_not_written(tmp_path: Path) -> None:
    """An element that stands twice: readers differ on which one counts."""
    twice = element(0x7FE00010, b"OW", phantom(3, bits=16).tobytes())
    path = with_element(tmp_path / "in" / "a.dcm", twice, behind=True)
    assert run(path.parent, tmp_path / "out").counts["failed"] == 1 and not copies(tmp_path / "out")


def _segment(marker: int, content: bytes = HIDDEN) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _streams() -> dict[str, tuple[str, bytes, np.ndarray]]:
    import imagecodecs

    grey, deep = (phantom(bits=8) & 0xFF).astype(np.uint8), phantom()
    jpeg, jpegls = imagecodecs.jpeg_encode(grey, level=95), imagecodecs.jpegls_encode(deep)
    j2k = imagecodecs.jpeg2k_encode(deep, level=0, codecformat="j2k")
    jp2 = imagecodecs.jpeg2k_encode(deep, level=0, codecformat="jp2")
    tile = j2k.index(b"\xff\x90")
    size = struct.unpack_from(">I", j2k, tile + 6)[0]
    data, comment = j2k.index(b"\xff\x93", tile), _segment(0x64, b"\0\1" + HIDDEN)
    longer = struct.pack(">I", size + len(comment)) + j2k[tile + 10 : data] + comment + j2k[data:]
    box = jp2.index(b"jp2c") - 4
    packed = dataset(deep, bits=12, syntax=ImplicitVRLittleEndian)
    packed.compress(RLELossless, generate_instance_uid=False)
    rle = next(generate_frames(packed.PixelData, number_of_frames=1))
    first = {
        "thumbnail": _segment(0xE0),
        "colour": _segment(0xEE, b"Adobe\0\x64\0\0\0\0\0" + HIDDEN),
        "spiff": _segment(0xE8),
    }
    first |= {"filled comment": b"\xff" + _segment(0xFE)}
    made = {f"jpeg {n}": (JPEGBaseline8Bit, jpeg[:2] + s + jpeg[2:], grey) for n, s in first.items()}
    return made | {
        "jpeg tail": (JPEGBaseline8Bit, jpeg + HIDDEN, grey),
        "jpegls tail": (JPEGLSLossless, jpegls + HIDDEN, deep),
        "jpegls comment": (JPEGLSLossless, jpegls[:2] + _segment(0xFE) + jpegls[2:], deep),
        "j2k tail": (JPEG2000Lossless, j2k + HIDDEN, deep),
        "j2k comment": (JPEG2000Lossless, j2k[:tile] + comment + j2k[tile:], deep),
        "j2k tile": (JPEG2000Lossless, j2k[: tile + 6] + longer, deep),
        "jp2 box": (JPEG2000Lossless, jp2[:box] + struct.pack(">I", 24) + b"uuid" + HIDDEN + jp2[box:], deep),
        "rle tail": (RLELossless, rle + HIDDEN, deep),
        "rle header": (RLELossless, rle[:40] + HIDDEN + rle[56:], deep),
    }  # fmt: skip


def test_compressed_frames_keep_values_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for n, (name, (syntax, stream, values)) in enumerate(_streams().items()):
        bits = 8 if values.dtype == np.uint8 else 12
        fragmented(root / f"{name}.dcm", values, [stream], syntax=syntax, bits=bits, instance=n + 1)
    image = dataset(
        np.zeros((24, 32), np.uint8), frames=1, syntax=JPEGBaseline8Bit, instance=90,
        fragments=[_streams()["jpeg tail"][1], HIDDEN],
    )  # fmt: skip
    image.PixelData = image.PixelData[:4] + struct.pack("<I", 16) + HIDDEN + image.PixelData[8:]  # an offset table
    image.save_as(root / "offsets.dcm", enforce_file_format=True)
    result = run(root, tmp_path / "out")
    assert result.counts["written"] == result.counts["found"] == len(_streams()) + 1
    assert [p.name for p in copies(tmp_path / "out") if b"Qzcanary" in p.read_bytes()] == []
    digests = sorted(str(stored_digest(p)) for p in root.iterdir())
    assert sorted(str(stored_digest(p)) for p in copies(tmp_path / "out")) == digests and "None" not in digests


def test_an_odd_image_in_swapped_words_keeps_its_last_value(tmp_path: Path) -> None:
    source = own("SC_rgb_small_odd_big_endian.dcm")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(source.read_bytes())
    copy = the_copy(tmp_path / "in", tmp_path / "out", burned_in="flag")
    assert np.array_equal(copy.pixel_array, dcmread(source).pixel_array)


@pytest.mark.parametrize(
    ("retain", "tag", "vr", "value"),
    [
        ("dates", 0x00080022, b"DA", b"Qzcanary"),
        ("dates-shifted", 0x00080022, b"DA", b"2020022919470312"),
        ("dates-shifted", 0x00080022, b"DA", b"20200101-19470312 "),
        ("patient", 0x00101010, b"AS", b"Qzcanary"),
        ("patient", 0x00101020, b"DS", b"12.03.1947"),
        ("device", 0x00180060, b"DS", b"12.03.1947"),
    ],
)
def test_a_retained_value_is_of_the_kind_that_is_retained(
    tmp_path: Path, retain: str, tag: int, vr: bytes, value: bytes
) -> None:
    path = with_element(tmp_path / "in" / "a.dcm", element(tag, vr, value))
    the_copy(path.parent, tmp_path / "out", retain=(retain,))
    assert not re.search(rb"Qzcanary|1947", copies(tmp_path / "out")[0].read_bytes())


def test_ages_dates_uids_and_words() -> None:
    shown = {
        "095Y": "090Y",
        "95Y": "090Y",
        "95y ": "090Y",
        "0095Y": "090Y",
        "1100M": "090Y",
        "042Y": "042Y",
        "7D": "007D",
    }
    assert {text: capped_age(text) for text in shown} == shown
    assert [capped_age(text) for text in ("95", "born 1947", "", "9 5Y")] == [None] * 4
    assert registered("1.2.840.10008.5.1.4.1.1.2") and registered("1.2.840.10008.5.1.4.1.1.999.7")
    assert not any(registered(f"1.2.840.10008.{end}") for end in ("Doe", "19470312.1", "5.1.4.1.1.2.20200229101501"))
    moved = Pseudonyms.of(KEY, None, "AB-0007", None).shifted
    assert moved("20200229101501.5+0100") and moved("2020.02.29")
    assert [moved(t) for t in ("20200229-19470312", "2020022919470312", "20200229 555-0199")] == [None] * 3
    assert listed("T1 AX 3 MM") and not listed("12/03/47") and not listed("CT 06 12 34 56 78")


@pytest.mark.parametrize("keyword", ["PatientName", "PatientBirthDate", "AccessionNumber", "ReferringPhysicianName"])
def test_what_names_a_patient_cannot_be_kept(keyword: str) -> None:
    with pytest.raises(HilumError, match="names the patient"):
        Options(keep=frozenset({keyword}))


def test_numbers_by_chance_are_no_identifiers() -> None:
    """A six-digit PatientID stands in one of thirty thousand mapped UIDs, and in positions; in a text it is one."""
    needles = Needles()
    needles.add_identifier("123456")
    for harmless in ("2.25.9912345699", "-250.123456\\3"):
        assert needles.in_bytes(harmless.encode()) == needles.in_text([harmless]) == 0
    for telling in ("no. 123456!", "00123456", "1.2.3.123456.7"):
        assert needles.in_bytes(telling.encode()) == needles.in_text([telling]) == 1
    needles.add_uid("1.2.3.44")
    assert [needles.in_bytes(t) for t in (b"\0001.2.3.44\0", b"9.1.2.3.44.5", b"1.2.3.445", b"11.2.3.44")] == [
        1,
        1,
        0,
        0,
    ]


def test_a_journal_that_was_cut_anywhere_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.dcm", phantom())
    out, journal = tmp_path / "out", tmp_path / "out.private" / "journal.csv"
    run(tmp_path / "in", out)
    whole = journal.read_bytes()
    for cut in range(len(whole) - 150, len(whole), 17):
        journal.write_bytes(whole[:cut])
        assert run(tmp_path / "in", out).counts["written"] == 1
    assert len(copies(out)) == 1


def test_a_changed_file_leaves_no_earlier_copy(tmp_path: Path) -> None:
    path, out = tmp_path / "in" / "a.dcm", tmp_path / "out"
    write(path, phantom())
    run(path.parent, out)
    before = copies(out)
    write(path, phantom(2), patient="CORRECTED-1")
    os.utime(path, ns=(7, 7))
    run(path.parent, out)
    assert len(copies(out)) == 1 and copies(out) != before
    path.unlink()
    write(path.with_name("b.dcm"), phantom(3), instance=3)
    assert json.loads(run(path.parent, out).report.read_text())["copies_of_vanished_files"] == 1


@pytest.mark.parametrize(
    "place", [lambda at: at / "in" / "a.dcm", lambda at: at / "out" / "r.json", lambda at: at / "r.csv"]
)
def test_a_report_replaces_no_image(tmp_path: Path, place: Callable[[Path], Path]) -> None:
    before = write(tmp_path / "in" / "a.dcm", phantom()).read_bytes()
    with pytest.raises(HilumError, match="report"):
        run(tmp_path / "in", tmp_path / "out", report=place(tmp_path))
    assert (tmp_path / "in" / "a.dcm").read_bytes() == before


def test_a_name_that_looks_like_the_escape_of_another_is_its_own_file(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for n, name in enumerate((b"a\xff.dcm", b"a\\xff.dcm")):
        write(tmp_path / "t.dcm", phantom(n), instance=n + 1)
        (tmp_path / "t.dcm").rename(root / os.fsdecode(name))
    assert run(root, tmp_path / "out").counts["found"] == 2 == len(copies(tmp_path / "out"))
