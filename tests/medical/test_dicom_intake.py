"""Faulty and hostile DICOM: each ends with the stable reason that FORMATS names, before memory is asked for."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fake.dicom import dataset, phantom, write
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, RLELossless

from hilum.core.types import IndexRow, Limits
from hilum.data.isolation import read_file
from hilum.medical.dicom import codecs
from hilum.medical.dicom.codestream import inspect
from hilum.medical.dicom.decode import decode
from hilum.medical.dicom.intake import DicomIntake

pytestmark = pytest.mark.filterwarnings("ignore")


def read(path: Path, **limits: Any) -> IndexRow:
    return read_file(path, [DicomIntake()], Limits(**limits))[0]


def own(name: str) -> Path:
    """A file that pydicom carries."""
    return Path(str(get_testdata_file(name, download=False)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Rows": None}, "missing_attribute"),
        ({"BitsStored": None}, "missing_attribute"),
        ({"PixelData": None}, "missing_attribute"),
        ({"PhotometricInterpretation": None}, "missing_attribute"),
        ({"PhotometricInterpretation": "ARGB"}, "unsupported_photometric"),
        ({"BitsStored": 17}, "inconsistent_attributes"),
        ({"BitsAllocated": 12}, "inconsistent_attributes"),
        ({"SamplesPerPixel": 3}, "inconsistent_attributes"),
        ({"PixelRepresentation": 2}, "inconsistent_attributes"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "inconsistent_attributes"),
        ({"Rows": 48}, "truncated_pixels"),
        ({"NumberOfFrames": 2}, "truncated_pixels"),
        ({"NumberOfFrames": -2}, "inconsistent_attributes"),
        ({"Rows": 65535, "Columns": 65535, "NumberOfFrames": 1000}, "resource_limit"),
        ({"PixelData": None, "SOPClassUID": None}, "missing_attribute"),
    ],
)
def test_faulty_attributes(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    row = read(write(tmp_path / "a.dcm", phantom(), **change))
    assert (row.status, row.reason) == ("quarantined", reason)
    assert row.message and row.identity["group"] == (None, "AB-0007")  # found in tables although it cannot be used
    named = {"missing_attribute": [k for k, v in change.items() if v is None]}.get(reason, [])
    assert not named or any(k in row.message for k in named)


def test_more_frames_than_fragments_is_a_reason_not_a_stop_iteration(tmp_path: Path) -> None:
    data = pydicom.dcmread(own("MR_small_RLE.dcm"))
    data.NumberOfFrames = 3
    data.save_as(tmp_path / "a.dcm")
    with pytest.raises(StopIteration):
        data.pixel_array  # noqa: B018  what a data loader would take for the end of the epoch
    row = read(tmp_path / "a.dcm")
    assert (row.reason, row.message) == ("truncated_pixels", "1 of 3 frames are there")


def test_excess_frames_are_kept_or_named(tmp_path: Path) -> None:
    stack = np.stack([phantom(1), phantom(2)])
    unstated = write(tmp_path / "a.dcm", stack)
    assert read(unstated).problems == ["frames_from_data"]
    np.testing.assert_array_equal(decode(unstated).stored, stack)
    stated = write(tmp_path / "b.dcm", stack, frames=1)
    assert read(stated).problems == ["excess_frames:1"]
    np.testing.assert_array_equal(decode(stated).stored, stack[:1])
    tiny = write(tmp_path / "c.dcm", np.array([[7]], np.uint8))  # its pad byte is no second frame
    assert read(tiny).columns["frames"] == 1 and "excess" not in str(read(tiny).problems)


def test_cut_at_any_byte_never_indexes_wrong_pixels(tmp_path: Path) -> None:
    for name in ("MR_small_RLE.dcm", "CT_small.dcm", "MR_small_jp2klossless.dcm", "image_dfl.dcm"):
        whole = own(name).read_bytes()
        good = read(own(name)).columns["stored_sha256"]
        for size in np.linspace(0, len(whole) - 1, 25).astype(int):
            (tmp_path / "cut.dcm").write_bytes(whole[:size])
            row = read(tmp_path / "cut.dcm")
            assert row.status == "quarantined" or row.columns["stored_sha256"] == good, (name, size)


def test_random_damage_never_escapes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in (
        "MR_small_RLE.dcm",
        "CT_small.dcm",
        "MR_small_jp2klossless.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "rtdose_rle.dcm",
    ):
        whole = bytearray(own(name).read_bytes()[:40000])
        for _ in range(30):
            damaged = bytearray(whole)
            for at in rng.integers(132, len(whole), 12):
                damaged[at] = rng.integers(256)
            (tmp_path / "a.dcm").write_bytes(damaged)
            row = read(tmp_path / "a.dcm", max_pixels=1 << 22, max_bytes=1 << 24)
            assert row.status in ("indexed", "skipped", "quarantined") and (row.status != "quarantined" or row.reason)


def test_bombs_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    import tracemalloc

    data = dataset(None, Rows=65535, Columns=65535, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
    for keyword, value in (("BitsAllocated", 16), ("BitsStored", 16), ("HighBit", 15), ("PixelRepresentation", 0)):
        setattr(data, keyword, value)
    data.NumberOfFrames = 1000
    data.file_meta.TransferSyntaxUID = RLELossless
    data.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
    data["PixelData"].VR = "OB"
    data.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    head = own("image_dfl.dcm").read_bytes()
    start = 132 + 12 + struct.unpack("<I", head[140:144])[0]
    engine = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = engine.compress(b"\x08\x00\x70\x00LO\x08\x00" + b"A" * (1 << 27)) + engine.flush()
    (tmp_path / "deflate.dcm").write_bytes(head[:start] + bomb)
    tracemalloc.start()
    rows = [read(tmp_path / n, max_bytes=1 << 26) for n in ("rle.dcm", "deflate.dcm")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [r.reason for r in rows] == ["resource_limit"] * 2 and peak < 1 << 28


def test_deeply_nested_sequences(tmp_path: Path) -> None:
    inner = b""
    for _ in range(4000):  # undefined lengths, so a reader must descend
        inner = b"\x09\x00\x01\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner
    head = write(tmp_path / "a.dcm", phantom()).read_bytes()
    at = head.index(b"\x10\x00\x10\x00PN")
    (tmp_path / "a.dcm").write_bytes(head[:at] + inner + head[at:])
    assert read(tmp_path / "a.dcm").reason == "resource_limit"


def test_stream_of_another_size_is_refused_before_decoding(tmp_path: Path) -> None:
    data = pydicom.dcmread(own("MR_small_jp2klossless.dcm"))
    data.Rows = data.Columns = 32
    data.save_as(tmp_path / "a.dcm")
    assert read(tmp_path / "a.dcm").reason == "inconsistent_attributes"
    frame = pydicom.encaps.get_frame(data.PixelData, 0, number_of_frames=1)
    stream = inspect(frame)
    assert stream is not None and (stream.rows, stream.columns, stream.samples, stream.precision, stream.signed) == (
        64,
        64,
        1,
        16,
        True,
    )


def test_sizes_of_jpeg_streams() -> None:
    for name, expected in (
        ("SC_rgb_jpeg_dcmtk.dcm", (100, 100, 3, 8)),
        ("JPGExtended.dcm", (1024, 256, 1, 12)),
        ("JPEGLSNearLossless_16.dcm", (50, 10, 1, 16)),
    ):
        data = pydicom.dcmread(own(name))
        stream = inspect(pydicom.encaps.get_frame(data.PixelData, 0, number_of_frames=1))
        assert stream is not None and (stream.rows, stream.columns, stream.samples, stream.precision) == expected
    assert inspect(b"") is inspect(b"\xff\xd8\xff") is inspect(b"no stream at all") is None


def test_preambles(tmp_path: Path) -> None:
    good = write(tmp_path / "a.dcm", phantom()).read_bytes()
    cases = {
        b"MZ\x90": "unsafe_preamble",
        b"\x7fELF": "unsafe_preamble",
        b"#!/bin/sh\n": "unsafe_preamble",
        b"II*\0": "",
        b"MM\0*": "",
    }
    for start, reason in cases.items():
        (tmp_path / "a.dcm").write_bytes(start + good[len(start) :])
        assert read(tmp_path / "a.dcm").reason == reason
    bare = good[132 + 12 + struct.unpack("<I", good[140:144])[0] :]  # neither preamble nor meta information
    (tmp_path / "a.dcm").write_bytes(bare)
    row = read(tmp_path / "a.dcm")
    assert row.status == "indexed" and sorted(row.problems) == ["guessed_transfer_syntax", "no_preamble"]
    np.testing.assert_array_equal(decode(tmp_path / "a.dcm").stored[0], phantom())


def test_unknown_and_missing_codecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = read(write(tmp_path / "a.dcm", phantom(), syntax=MPEG2MPML, fragments=[b"\0\0\1\xb3"]))
    assert row.reason == "unsupported_transfer_syntax" and "MPEG2" in row.message
    with monkeypatch.context() as bare:
        bare.setattr(codecs.Codec, "version", property(lambda self: None))
        codecs.installed.cache_clear()
        row, lines = read(own("MR_small_jp2klossless.dcm")), codecs.inventory()
    codecs.installed.cache_clear()
    assert row.reason == "unsupported_transfer_syntax" and "pip install pylibjpeg-openjpeg" in row.message
    assert lines[JPEG2000Lossless.name] == "missing: pip install pylibjpeg-openjpeg"
    assert codecs.inventory()[JPEG2000Lossless.name].startswith("openjpeg 2.")


def test_second_codec_is_asked_where_the_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from hilum.medical.dicom import stored

    by = stored.Stored._by

    def failing(self: Any, codec: codecs.Codec, *frame: Any) -> Any:
        if codec.name == "pyjpegls":
            raise RuntimeError("Doe^Jane")
        return by(self, codec, *frame)

    expected = decode(own("MR_small_jpeg_ls_lossless.dcm"))
    monkeypatch.setattr(stored.Stored, "_by", failing)
    other = decode(own("MR_small_jpeg_ls_lossless.dcm"))
    np.testing.assert_array_equal(other.stored, expected.stored)
    assert (expected.provenance["codec"], other.provenance["codec"]) == ("pyjpegls", "gdcm")
    monkeypatch.setattr(stored.Stored, "_by", lambda *a: (_ for _ in ()).throw(RuntimeError("Doe^Jane")))
    row = read(own("MR_small_jpeg_ls_lossless.dcm"))
    assert row.reason == "codec_error" and "Doe" not in row.message and "gdcm: RuntimeError" in row.message


def test_objects_that_are_no_images_are_skipped() -> None:
    kinds = {"reportsi.dcm": "sr", "rtplan.dcm": "rtplan", "rtstruct.dcm": "rtstruct", "waveform_ecg.dcm": "waveform"}
    for name, kind in kinds.items():
        row = read(own(name))
        assert (row.status, row.reason) == ("skipped", f"non_image:{kind}")
    row = read(own("liver_1frame.dcm"))
    assert (row.status, row.columns["role"]) == ("indexed", "label")
    folder = own("reportsi.dcm").parent / "dicomdirtests" / "DICOMDIR"
    assert read(folder).reason == "non_image:dicomdir"


def test_only_listed_codes_leave_the_header(tmp_path: Path) -> None:
    names = {"BodyPartExamined": "DOE JANE", "ViewPosition": "JANE", "ImageLaterality": "J", "Modality": "DOE"}
    row = read(
        write(tmp_path / "a.dcm", phantom(), **names, WindowCenter=9, WindowWidth=9, WindowCenterWidthExplanation="DOE")
    )
    assert all(row.columns[c] is None for c in ("body_part", "view", "laterality", "modality"))
    assert "DOE" not in str(row.columns) and "unlisted:BodyPartExamined" in row.problems
    row = read(write(tmp_path / "b.dcm", phantom(), BodyPartExamined="chest ", ViewPosition="AP", ImageLaterality="R"))
    assert [row.columns[c] for c in ("body_part", "view", "laterality", "modality")] == ["CHEST", "AP", "R", "DX"]


def test_a_patients_name_is_never_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hilum.medical.dicom import header

    file = write(tmp_path / "a.dcm", phantom())
    parsed = header.read_header(file, Limits())
    assert "PatientName" not in parsed.data and "PatientID" in parsed.data
    assert not any(e.VR == "PN" for e in parsed.data)


def test_spacing_is_known_or_none(tmp_path: Path) -> None:
    for options, expected in (
        ({}, [0.5, 0.25]),
        ({"PixelSpacing": None}, None),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0.2, 0.1]}, [0.2, 0.1]),
        ({"PixelSpacing": [0, 0]}, None),
    ):
        assert read(write(tmp_path / "a.dcm", phantom(), **options)).columns["spacing_mm"] == expected
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([Dataset()])
    shared.PixelMeasuresSequence[0].PixelSpacing = [3, 2]
    file = write(tmp_path / "a.dcm", phantom(), PixelSpacing=None, SharedFunctionalGroupsSequence=Sequence([shared]))
    assert read(file).columns["spacing_mm"] == [3.0, 2.0] and decode(file).spacing_mm == (3.0, 2.0)


def test_constant_and_non_finite_values_are_named(tmp_path: Path) -> None:
    assert "constant_values" in read(write(tmp_path / "a.dcm", np.full((8, 8), 7, np.uint16))).problems
    values = np.ones((4, 4), "<f4")
    values[0, :2], values[1, 1] = np.nan, 3
    data = dataset(np.zeros((4, 4), np.uint16), BitsAllocated=32, PixelData=None, BitsStored=None, HighBit=None)
    data.FloatPixelData = values.tobytes()
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    row = read(tmp_path / "b.dcm")
    assert "non_finite:2" in row.problems and (row.columns["min"], row.columns["max"]) == (1.0, 3.0)


def test_every_file_of_pydicom_ends_with_a_known_reason() -> None:
    folder = own("MR_small.dcm").parent
    rows = {f.name: read(f) for f in sorted(folder.glob("*")) if f.is_file()}
    assert len(rows) > 80
    faults = {
        n: r.reason
        for n, r in rows.items()
        if r.status == "quarantined" and r.reason not in ("not_dicom", "empty_file", "unsupported_container")
    }
    assert faults == {
        "JPEG2000-embedded-sequence-delimiter.dcm": "inconsistent_attributes",
        "MR_truncated.dcm": "truncated_pixels",
        "UN_sequence.dcm": "missing_attribute",
        "badVR.dcm": "inconsistent_attributes",
        "empty_charset_LEI.dcm": "missing_attribute",
        "meta_missing_tsyntax.dcm": "missing_attribute",
        "nested_priv_SQ.dcm": "missing_attribute",
        "no_meta_group_length.dcm": "missing_attribute",
        "priv_SQ.dcm": "missing_attribute",
    }


def test_transfer_syntaxes_have_names_for_the_doctor() -> None:
    names = DicomIntake().syntaxes()
    assert names["1.2.840.10008.1.2.1"] == "Explicit VR Little Endian" and "RLE" in names["1.2.840.10008.1.2.5"]
    assert len(set(names.values())) == len(names) > 15
