"""Our walk over elements against pydicom's parser: the same values, or both refuse."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fake.dicom import phantom, write
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence

from hilum.core.types import Limits
from hilum.data.ledger import Rejected
from hilum.medical.dicom.header import Header, quiet, read_header
from hilum.medical.dicom.tags import KEYWORDS, TAGS, VRS

pytestmark = pytest.mark.filterwarnings("ignore")


def shipped() -> list[Path]:
    """Every DICOM file that pydicom and pydicom-data carry here."""
    folders = [Path(str(get_testdata_file("CT_small.dcm", download=False))).parent]
    other = get_testdata_file("liver.dcm", download=False)
    folders += [Path(str(other)).parent] if other else []
    return sorted(f for folder in folders for f in folder.rglob("*") if f.is_file() and f.suffix in (".dcm", ""))


def peer(path: Path) -> pydicom.Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True, force=True)


def plain(value: Any) -> Any:
    """Comparable, with text as both sides pad it."""
    if isinstance(value, Sequence):
        return [{e.tag: plain(e.value) for e in item if not e.tag.is_private} for item in value]
    if hasattr(value, "append") or isinstance(value, tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value
    if isinstance(value, str):
        return value.rstrip(" \0")
    return value


def agree(header: Header, other: pydicom.Dataset, name: str) -> int:
    """How many elements were compared."""
    compared = 0
    for keyword in KEYWORDS:
        tag = TAGS[keyword]
        assert (tag in header.elements) == (tag in other), (name, keyword)
        if tag not in other or keyword == "SpecificCharacterSet":
            continue
        try:
            expected = other[tag].value
        except Exception:
            header.value(keyword)  # ours notes it and goes on
            continue
        expected = None if expected is None or expected == "" else expected
        assert plain(header.value(keyword)) == plain(expected), (name, keyword)
        compared += 1
        if VRS[tag] in ("US", "DS", "IS", "FD", "FL"):
            many = expected if hasattr(expected, "append") else [expected]
            if all(isinstance(v, int | float) for v in many):
                assert header.numbers(keyword) == [float(v) for v in many], (name, keyword)
    return compared


def test_values_equal_pydicoms_in_every_file_it_carries() -> None:
    compared = files = 0
    for path in shipped():
        try:
            with quiet():
                header = read_header(path, Limits())
        except Rejected as error:
            assert error.reason in ("not_dicom", "parse_error", "truncated_pixels"), (path.name, error.reason)
            continue
        with quiet():
            compared += agree(header, peer(path), path.name)
        files += 1
    assert files > 80 and compared > 20 * files


def test_mutants_agree_or_are_refused(tmp_path: Path) -> None:
    """Where a mutant is accepted and whole, pydicom reads the same values from it."""
    rng = np.random.default_rng(7)
    seeds = ["MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "rtdose.dcm", "emri_small_RLE.dcm"]
    same = refused = 0
    for name in seeds:
        found = get_testdata_file(name, download=False)
        if not found:
            continue
        whole = Path(str(found)).read_bytes()[:6000]
        for _ in range(60):
            damaged = bytearray(whole)
            for at in rng.integers(132, len(whole), 3):
                damaged[at] ^= 1 << rng.integers(8)
            file = tmp_path / "a.dcm"
            file.write_bytes(damaged)
            try:
                with quiet():
                    header = read_header(file, Limits())
            except Rejected:
                refused += 1
                continue
            if header.cut:
                refused += 1
                continue
            try:
                with quiet():
                    other = peer(file)
            except Exception:
                continue
            if header.pixels is None:  # both ran off the end: what lies behind the damage is anybody's guess
                continue
            for keyword in ("Rows", "Columns", "BitsStored", "RescaleSlope", "SOPInstanceUID", "NumberOfFrames"):
                tag = TAGS[keyword]
                assert (tag in header.elements) == (tag in other), (name, keyword)
                if tag in other:
                    try:
                        expected = other[tag].value
                    except Exception:
                        continue
                    with quiet():
                        expected = None if expected is None or expected == "" else expected
                        assert plain(header.value(keyword)) == plain(expected), (name, keyword)
            same += 1
    assert same > 150 and refused > 10


def test_a_length_past_the_end_is_not_read(tmp_path: Path) -> None:
    """A private element of 3 GB in a file of a few kB: refused, and nothing like it asked for."""
    import tracemalloc

    head = write(tmp_path / "a.dcm", phantom()).read_bytes()
    at = head.index(b"\x10\x00\x20\x00LO")
    huge = b"\x09\x00\x01\x10UN\0\0" + struct.pack("<I", 3 << 30)
    (tmp_path / "a.dcm").write_bytes(head[:at] + huge + head[at:])
    tracemalloc.start()
    header = read_header(tmp_path / "a.dcm", Limits())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert header.cut and header.pixels is None and peak < 1 << 20


@pytest.mark.parametrize("defined", [False, True])
@pytest.mark.parametrize("place", [b"\x09\x00\x01\x10", b"\x40\x00\x75\x02"])
def test_nesting_deeper_than_the_limit_is_refused_by_counting(tmp_path: Path, defined: bool, place: bytes) -> None:
    """Undefined lengths anywhere, stated lengths where the sequence would be parsed later."""
    import sys

    depth, inner = 200, b""
    tag = b"\x28\x00\x10\x30" if defined else place  # VOILUTSequence is wanted, so its insides are looked at
    for _ in range(depth):
        if defined:
            item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inner)) + inner
            inner = tag + b"SQ\0\0" + struct.pack("<I", len(item)) + item
        else:
            inner = tag + b"SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner
            inner += b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    head = write(tmp_path / "a.dcm", phantom()).read_bytes()
    at = head.index(b"\xe0\x7f\x10\x00") if defined else head.index(b"\x10\x00\x20\x00LO")
    (tmp_path / "a.dcm").write_bytes(head[:at] + inner + head[at:])
    limit = sys.getrecursionlimit()
    with pytest.raises(Rejected) as caught:
        read_header(tmp_path / "a.dcm", Limits(depth=32))
    assert caught.value.reason == "resource_limit" and "32" in caught.value.what
    assert sys.getrecursionlimit() == limit
    assert read_header(tmp_path / "a.dcm", Limits(depth=300)).pixels is not None


def test_an_element_without_a_vr_in_an_explicit_file_is_stepped_over(tmp_path: Path) -> None:
    head = write(tmp_path / "a.dcm", phantom()).read_bytes()
    at = head.index(b"\x28\x00\x02\x00US")
    (tmp_path / "a.dcm").write_bytes(head[:at] + b"\x20\x00\x00\x40\x04\0\0\0abcd" + head[at:])
    header = read_header(tmp_path / "a.dcm", Limits())
    assert (header.integer("Rows"), header.integer("Columns")) == phantom().shape


def test_identifiers_are_decoded_by_the_files_character_set(tmp_path: Path) -> None:
    """Values of plain ASCII take a short road; others must give what pydicom gives."""
    cases = [
        ("ISO_IR 100", "Jürgen-7"),
        ("ISO_IR 192", "Ж-7"),
        ("GB18030", "王-7"),
        ("\\ISO 2022 IR 87", "山-7"),
        ("ISO_IR 144", "Ж-7"),
        ("\\ISO 2022 IR 149", "김-7"),
        ("", "AB-7"),
    ]
    for charset, text in cases:
        file = write(tmp_path / "a.dcm", phantom(), patient=text, SpecificCharacterSet=charset.split("\\"))
        with quiet():
            assert read_header(file, Limits()).identifier("PatientID") == pydicom.dcmread(file).PatientID == text
    file = write(tmp_path / "a.dcm", phantom(), patient="XY-7", SpecificCharacterSet="ISO_IR 13")
    file.write_bytes(file.read_bytes().replace(b"XY-7", b"\xd4\xcf-7"))
    with quiet():
        assert read_header(file, Limits()).identifier("PatientID") == pydicom.dcmread(file).PatientID == "ﾔﾏ-7"
