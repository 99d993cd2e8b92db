"""What a DICOM archive throws at a reader, row by row (4): whole files, damage and attacks.

Each hostile file goes through the isolated readers, which measure what it costs.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from fake.dicom import dataset, fragmented, item, own, phantom, with_syntax, write
from fuzz.target import WatchedIntake
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence

from hilum.core.types import IndexRow, Limits
from hilum.data.isolation import Readers, read_file
from hilum.medical.dicom.codestream import inspect
from hilum.medical.dicom.decode import decode
from hilum.medical.dicom.header import read_header
from hilum.medical.dicom.intake import DicomIntake

pytestmark = pytest.mark.filterwarnings("ignore")
JPEG_LS = "1.2.840.10008.1.2.4.80"


def read(path: Path, *, headers_only: bool = False, **limits: Any) -> IndexRow:
    return read_file(path, [DicomIntake()], Limits(**limits), headers_only=headers_only)[0]


# -- headers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"])
@pytest.mark.parametrize("meta", [False, True])
def test_no_preamble_and_no_meta_information(tmp_path: Path, syntax: str, meta: bool) -> None:
    whole = write(tmp_path / "a.dcm", phantom(), syntax=syntax).read_bytes()
    length = struct.unpack("<I", whole[140:144])[0]
    (tmp_path / "a.dcm").write_bytes(whole[132:] if meta else whole[132 + 12 + length :])
    row = read(tmp_path / "a.dcm")
    assert row.status == "indexed" and "no_preamble" in row.problems
    assert ("guessed_transfer_syntax" in row.problems) is not meta
    assert row.columns["transfer_syntax"] == syntax
    np.testing.assert_array_equal(decode(tmp_path / "a.dcm").stored[0], phantom())


def test_an_encoding_other_than_the_named_one_is_seen(tmp_path: Path) -> None:
    """Implicit elements under the UID of the explicit syntax, and the other way round."""
    for inside, named in (("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"), ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")):
        file = with_syntax(write(tmp_path / "a.dcm", phantom(), syntax=inside), named)
        np.testing.assert_array_equal(decode(file).stored[0], phantom())


def patched(path: Path, tag: tuple[int, int], vr: bytes, value: bytes) -> Path:
    """Replace an element of an explicit file by one with any VR and bytes."""
    data = path.read_bytes()
    at = data.index(struct.pack("<HH", *tag))
    length = struct.unpack("<H", data[at + 6 : at + 8])[0]
    value += b" " * (len(value) % 2)
    long = vr in (b"UN", b"OB")
    head = (
        struct.pack("<HH", *tag) + vr + (struct.pack("<HI", 0, len(value)) if long else struct.pack("<H", len(value)))
    )
    path.write_bytes(data[:at] + head + value + data[at + 8 + length :])
    return path


@pytest.mark.parametrize(
    ("vr", "text", "slope"),
    [
        (b"DS", b"1,25", 1.25),
        (b"DS", b"1.2500000000000000000000", 1.25),  # longer than the 16 bytes of a DS
        (b"DS", b" 1.25 ", 1.25),
        (b"UN", b"1.25", 1.25),
        (b"LO", b"1.25", 1.25),
        (b"DS", b"1.25e0", 1.25),
    ],
)
def test_wrong_vrs_and_bad_numbers_cost_no_pixels(tmp_path: Path, vr: bytes, text: bytes, slope: float) -> None:
    file = write(tmp_path / "a.dcm", phantom(), RescaleSlope="7", RescaleIntercept="3")
    pixels = decode(patched(file, (0x28, 0x1053), vr, text))
    assert (pixels.slope, pixels.intercept) == (slope, 3.0)


def test_wrong_vrs_integers_with_a_point_and_positions_in_text(tmp_path: Path) -> None:
    stack = np.stack([phantom(1), phantom(2)])
    file = patched(write(tmp_path / "a.dcm", stack, frames=2), (0x28, 0x0008), b"IS", b"2.0")
    assert read(file).columns["frames"] == 2
    file = write(tmp_path / "b.dcm", phantom(), ImagePositionPatient=[1, 2, 3])
    row = read(patched(file, (0x20, 0x0032), b"LO", b"1\\2\\3"))
    assert row.status == "indexed" and row.columns["stored_sha256"]
    file = write(tmp_path / "c.dcm", phantom(), WindowCenter=40, WindowWidth=400)
    row = read(patched(file, (0x28, 0x1050), b"DS", b"forty"))
    assert row.status == "indexed" and "bad_value:WindowCenter" in row.problems and "forty" not in str(row)


def test_character_sets_names_are_never_read(tmp_path: Path) -> None:
    """Seven declared sets, one undeclared: pixels and identity survive, no name is parsed, none is repeated."""
    names = {
        "ISO_IR 100": "Müller^Jürgen",
        "ISO_IR 192": "Иванов^Пётр",
        "GB18030": "王^小东",
        "\\ISO 2022 IR 87": "山田^太郎",
        "\\ISO 2022 IR 149": "김^희중",
        "ISO_IR 144": "Люкceмбypг",
        "ISO_IR 126": "Διονυσιος",
        "ISO_IR 999": "Doe^Jane",
    }
    for charset, name in names.items():
        data = dataset(phantom(), SpecificCharacterSet=charset.split("\\") if charset != "ISO_IR 999" else "ISO_IR 100")
        data.PatientName = name
        data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        if charset == "ISO_IR 999":
            (tmp_path / "a.dcm").write_bytes((tmp_path / "a.dcm").read_bytes().replace(b"ISO_IR 100", b"ISO_IR 999"))
        header, row = read_header(tmp_path / "a.dcm", Limits()), read(tmp_path / "a.dcm")
        assert not any(e.VR == "PN" or e.tag == 0x00100010 for e in header.elements.values())
        assert row.status == "indexed" and row.identity["group"] == (None, "AB-0007")
        assert name not in str(row) and name.split("^")[0] not in str(row)


# -- truncation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "emri_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "rtdose_rle.dcm"]
)
def test_truncated_at_any_byte(tmp_path: Path, name: str) -> None:
    """Never indexed with other pixels than the whole file's: no zero padding, no silent drop."""
    found = get_testdata_file(name, download=False)
    if not found:
        pytest.skip(f"{name} is not installed (pydicom-data)")
    whole = Path(str(found)).read_bytes()
    good = read(Path(str(found))).columns["stored_sha256"]
    rng = np.random.default_rng(1)
    for size in [*rng.integers(1, len(whole), 40), *range(len(whole) - 12, len(whole))]:
        (tmp_path / "cut.dcm").write_bytes(whole[: int(size)])
        row = read(tmp_path / "cut.dcm")
        assert row.status == "quarantined" or row.columns["stored_sha256"] == good, size


def test_truncated_the_missing_delimiter_costs_nothing_and_is_named(tmp_path: Path) -> None:
    image = phantom(shape=(32, 48))
    file = fragmented(tmp_path / "a.dcm", image, [bytes(imagecodecs.jpegls_encode(image))], syntax=JPEG_LS)
    whole = file.read_bytes()
    assert whole.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0") and "missing_delimiter" not in read(file).problems
    file.write_bytes(whole[:-8])
    row = read(file)
    assert row.status == "indexed" and "missing_delimiter" in row.problems
    np.testing.assert_array_equal(decode(file).stored[0], image)


def test_truncated_fragments_that_no_table_describes(tmp_path: Path) -> None:
    """Frames of several fragments, found by the marker that ends a stream; the Basic Offset Table where there is one."""
    images = [phantom(n, (32, 48)) for n in range(3)]
    encoded = [bytes(imagecodecs.jpegls_encode(i)) for i in images]
    pieces = [p for s in encoded for p in (s[:100], s[100:])]
    assert all(len(p) % 2 == 0 for p in pieces[::2])
    file = fragmented(tmp_path / "a.dcm", np.stack(images), pieces, syntax=JPEG_LS, frames=3)
    np.testing.assert_array_equal(decode(file).stored, np.stack(images))
    np.testing.assert_array_equal(decode(file, frames=range(2, 3)).stored[0], images[2])
    data = pydicom.dcmread(file)
    data.PixelData = pydicom.encaps.encapsulate(
        [s + b"\0" * (len(s) % 2) for s in encoded], fragments_per_frame=2, has_bot=True
    )
    data.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(decode(tmp_path / "b.dcm").stored, np.stack(images))
    starts, lengths, value = (
        pydicom.encaps.encapsulate_extended(encoded)[1:] + pydicom.encaps.encapsulate_extended(encoded)[:1]
    )
    data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = value, starts, lengths
    data.save_as(tmp_path / "c.dcm")
    np.testing.assert_array_equal(decode(tmp_path / "c.dcm").stored, np.stack(images))
    data.ExtendedOffsetTable = struct.pack("<3Q", 0, 1 << 40, 1 << 41)
    data.save_as(tmp_path / "d.dcm")
    assert read(tmp_path / "d.dcm").reason == "inconsistent_attributes"


# -- directories, objects without pixels --------------------------------------------------------------------------------


def dicomdir(folder: Path, references: list[list[str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    records = [item(DirectoryRecordType="IMAGE", ReferencedFileID=r) for r in references]
    data = dataset(None, sop_class="1.2.840.10008.1.3.10", DirectoryRecordSequence=Sequence(records))
    data.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder / "DICOMDIR"


def test_dicomdir_well_formed_is_skipped(tmp_path: Path) -> None:
    write(tmp_path / "cd" / "IMAGES" / "IM1", phantom())
    write(tmp_path / "cd" / "images2" / "im2", phantom())
    file = dicomdir(tmp_path / "cd", [["IMAGES", "IM1"], ["IMAGES2", "IM2"]])  # case is not told apart on a CD
    assert (read(file).status, read(file).reason) == ("skipped", "non_image:dicomdir")
    shipped = own("CT_small.dcm").parent / "dicomdirtests" / "DICOMDIR"
    assert read(shipped).status == "skipped"


def test_dicomdir_references_that_leave_the_folder_are_unsafe(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.dcm", phantom())
    (tmp_path / "cd").mkdir()
    (tmp_path / "cd" / "LINK").symlink_to(tmp_path)
    (tmp_path / "cd" / "FILE").symlink_to(secret)
    for reference in (
        ["..", "secret.dcm"], ["", "etc", "passwd"], ["/etc/passwd"], ["IMAGES", "..", "..", "x"], ["C:", "x"],
        ["LINK", "secret.dcm"], ["FILE"], ["a/../../secret.dcm"],
    ):  # fmt: skip
        row = read(dicomdir(tmp_path / "cd", [reference]))
        assert (row.status, row.reason) == ("quarantined", "unsafe_reference"), reference
        assert "secret" not in row.message and "passwd" not in row.message


def test_dicomdir_dangling_references_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "IM1", phantom())
    row = read(dicomdir(tmp_path, [["IM1"], ["DOEJANE"], ["GONE", "IM2"]]))
    assert (row.reason, row.message) == ("missing_reference", "2 of the 3 files that it names are not there")
    assert "DOEJANE" not in str(row)
    copy = (tmp_path / "DICOMDIR").rename(tmp_path / "17-member")  # of an archive: its files are elsewhere
    assert read(copy).reason == "non_image:dicomdir"
    copy = dicomdir(tmp_path, [["..", "IM1"]]).rename(tmp_path / "18-member")
    assert read(copy).reason == "unsafe_reference"


def test_objects_without_pixels_are_skipped_whatever_they_lack(tmp_path: Path) -> None:
    kinds = {
        "1.2.840.10008.5.1.4.1.1.88.11": "sr",
        "1.2.840.10008.5.1.4.1.1.88.59": "ko",
        "1.2.840.10008.5.1.4.1.1.11.1": "pr",
        "1.2.840.10008.5.1.4.1.1.104.1": "pdf",
        "1.2.840.10008.5.1.4.1.1.481.3": "rtstruct",
        "1.2.840.10008.5.1.4.1.1.481.5": "rtplan",
        "1.2.840.10008.5.1.4.1.1.9.1.1": "waveform",
        "1.2.840.10008.5.1.4.1.1.66": "raw_data",
        "1.2.840.10008.5.1.4.38.1": "hanging_protocol",
    }
    for sop_class, kind in kinds.items():
        for headers_only in (False, True):
            row = read(write(tmp_path / "a.dcm", None, sop_class=sop_class), headers_only=headers_only)
            assert (row.status, row.reason) == ("skipped", f"non_image:{kind}")


def test_polyglots(tmp_path: Path) -> None:
    good = write(tmp_path / "a.dcm", phantom()).read_bytes()
    starts = {
        b"MZ\x90\0": "unsafe_preamble", b"\x7fELF\2": "unsafe_preamble", b"#!/bin/sh\n": "unsafe_preamble",
        b"\xfe\xed\xfa\xcf": "unsafe_preamble", b"\xcf\xfa\xed\xfe": "unsafe_preamble", b"\xca\xfe\xba\xbe": "unsafe_preamble",
        b"II*\0": "", b"MM\0*": "", b"II+\0": "",
    }  # fmt: skip
    for start, reason in starts.items():
        (tmp_path / "a.dcm").write_bytes(start + good[len(start) :])
        assert read(tmp_path / "a.dcm").reason == reason, start


# -- bombs --------------------------------------------------------------------------------------------------------------


def sized(folder: Path, rows: int, columns: int, frames: int, syntax: str, streams: list[bytes]) -> Path:
    """A compressed file that claims any size."""
    return fragmented(
        folder, np.zeros((2, 2), np.uint16), streams, syntax=syntax, Rows=rows, Columns=columns, NumberOfFrames=frames
    )


def bombs(folder: Path) -> dict[str, Path]:
    """Small files that ask for much."""
    files = {}
    rle, j2k, jpeg = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.50"
    files["rows x columns x frames"] = write(
        folder / "size.dcm", phantom(), Rows=65535, Columns=65535, NumberOfFrames=1000
    )
    files["rle frames"] = sized(folder / "rle.dcm", 65535, 65535, 1000, rle, [b"\0" * 64])
    files["rle within the limit"] = sized(
        folder / "rle2.dcm", 16000, 16000, 1, rle, [struct.pack("<16I", 2, 64, 66, *[0] * 13) + b"\x81\0\x81\0"]
    )
    stream = bytearray(imagecodecs.jpeg2k_encode(phantom(), level=0))
    at = stream.index(b"\xff\x4f\xff\x51") + 8
    struct.pack_into(">4I", stream, at, 60000, 60000, 0, 0)
    files["j2k siz"] = sized(folder / "j2k.dcm", *phantom().shape, 1, j2k, [bytes(stream)])
    struct.pack_into(">4I", stream, at, 20000, 20000, 0, 0)
    struct.pack_into(">4I", stream, at + 16, 20000, 20000, 0, 0)
    files["j2k siz and header"] = sized(folder / "j2k2.dcm", 20000, 20000, 1, j2k, [bytes(stream)])
    files["j2k hidden"] = sized(folder / "j2k3.dcm", *phantom().shape, 1, j2k, [b"\0" * 5000 + bytes(stream)])
    frame = bytearray(imagecodecs.jpeg_encode((phantom() >> 4).astype(np.uint8)))
    at = frame.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", frame, at, 65500, 65500)
    files["jpeg sof"] = fragmented(folder / "jpeg.dcm", (phantom() >> 4).astype(np.uint8), [bytes(frame)], syntax=jpeg)
    files["jpeg sof and header"] = fragmented(
        folder / "jpeg2.dcm", np.zeros((2, 2), np.uint8), [bytes(frame)], syntax=jpeg, Rows=65500, Columns=65500
    )
    xl = bytearray(imagecodecs.jpegxl_encode(np.zeros((8, 8), np.uint8), lossless=True))
    files["jpeg xl"] = fragmented(
        folder / "xl.dcm", np.zeros((16, 16), np.uint8), [bytes(xl)], syntax="1.2.840.10008.1.2.4.110"
    )
    plain = write(folder / "deflate.dcm", phantom(), syntax="1.2.840.10008.1.2.1").read_bytes()
    meta = plain[: 132 + 12 + struct.unpack("<I", plain[140:144])[0]]
    engine = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = b"".join(engine.compress(b"\0" * (1 << 24)) for _ in range(18)) + engine.flush()
    (folder / "deflate.dcm").write_bytes(meta + body)
    files["deflate"] = with_syntax(folder / "deflate.dcm", "1.2.840.10008.1.2.1.99")
    head = write(folder / "nest.dcm", phantom()).read_bytes()
    at = head.index(b"\x10\x00\x20\x00LO")
    nest = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 200_000
    (folder / "nest.dcm").write_bytes(head[:at] + nest + head[at:])
    files["nested sequences"] = folder / "nest.dcm"
    huge = b"\x09\x00\x01\x10UN\0\0" + struct.pack("<I", 0xFFFFFFF0)
    (folder / "huge.dcm").write_bytes(head[:at] + huge + head[at:])
    files["a private element of 4 GB"] = folder / "huge.dcm"
    long = b"\x10\x00\x20\x00UN\0\0" + struct.pack("<I", 48 << 20) + b"A" * (48 << 20)
    (folder / "long.dcm").write_bytes(head[:at] + long + head[at:])
    files["an identifier of 48 MB"] = folder / "long.dcm"
    at = head.index(b"\xe0\x7f\x10\x00")
    pieces = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * 1_300_000
    (folder / "pieces.dcm").write_bytes(head[:at] + pieces)
    files["fragments"] = with_syntax(folder / "pieces.dcm", rle)
    files["frames of one pixel"] = write(
        folder / "dots.dcm",
        np.zeros((2, 2), np.uint8),
        Rows=1,
        Columns=1,
        NumberOfFrames=2_000_000,
        PixelData=b"\0" * 2_000_000,
    )
    return files


@pytest.mark.slow
def test_bombs_cost_less_than_ten_seconds_and_512_mb(tmp_path: Path) -> None:
    files = bombs(tmp_path)
    names, paths = list(files), list(files.values())
    limits, seen = Limits(seconds=10), {}
    for at, rows in Readers([WatchedIntake()], workers=2, limits=limits).read(paths):
        assert len(rows) == 1 and names[at] not in seen
        seen[names[at]] = rows[0]
    assert set(seen) == set(names)
    reasons = {name: row.reason for name, row in seen.items()}
    assert reasons == {
        "rows x columns x frames": "resource_limit",
        "rle frames": "resource_limit",
        "rle within the limit": "resource_limit",
        "j2k siz": "inconsistent_attributes",
        "j2k siz and header": "resource_limit",
        "j2k hidden": "codec_error",
        "jpeg sof": "inconsistent_attributes",
        "jpeg sof and header": "resource_limit",
        "jpeg xl": "inconsistent_attributes",
        "deflate": "resource_limit",
        "nested sequences": "resource_limit",
        "a private element of 4 GB": "truncated_pixels",
        "an identifier of 48 MB": "resource_limit",
        "fragments": "resource_limit",
        "frames of one pixel": "resource_limit",
    }
    for name, row in seen.items():
        about = dict(p.split(":", 1) for p in row.problems if p.startswith(("seconds:", "kilobytes:")))
        assert float(about["seconds"]) < 10 and float(about["kilobytes"]) < 512 << 10, (name, about)


def test_size_of_a_jpeg_xl_stream_is_read_before_it_is_decoded() -> None:
    for shape in ((8, 8), (16, 8), (300, 700), (255, 340), (512, 512), (1000, 3)):
        stream = inspect(bytes(imagecodecs.jpegxl_encode(np.zeros(shape, np.uint8), lossless=True)))
        assert stream is not None and (stream.rows, stream.columns) == shape


def test_jp2_boxes_around_a_stream_are_taken_off(tmp_path: Path) -> None:
    """PS3.5 forbids them, writers add them; a box of length zero must not be walked for ever."""
    image = phantom(shape=(32, 48))
    stream = bytes(imagecodecs.jpeg2k_encode(image, level=0, codecformat="jp2"))
    assert stream[4:8] == b"jP  "
    file = fragmented(tmp_path / "a.dcm", image, [stream], syntax="1.2.840.10008.1.2.4.90")
    np.testing.assert_array_equal(decode(file).stored[0], image)
    broken = stream[:12] + b"\0\0\0\0" + stream[16:]
    file = fragmented(tmp_path / "b.dcm", image, [broken], syntax="1.2.840.10008.1.2.4.90")
    np.testing.assert_array_equal(decode(file).stored[0], image)
