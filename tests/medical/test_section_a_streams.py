"""What a DICOM archive throws at a reader, row by row (5): compressed streams that their headers describe wrongly."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from fake.dicom import fragmented, phantom, quarantined, row, write
from numpy.typing import NDArray
from pydicom.encaps import encapsulate_extended

from hilum.medical.dicom.decode import decode
from hilum.medical.dicom.encapsulated import fragments_of, frames_of

pytestmark = pytest.mark.filterwarnings("ignore")
JPEG, JPEG_12, LOSSLESS = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 70))
JPEG_LS, JPEG_2000, HTJ2K, JPEG_XL = (f"1.2.840.10008.1.2.4.{n}" for n in (80, 90, 201, 110))
RLE = "1.2.840.10008.1.2.5"
SHAPE = (32, 48)


def rle(image: NDArray[Any]) -> bytes:
    """PS3.5 Annex G: a segment a byte plane, the most significant one first."""
    planes = image.astype(image.dtype.newbyteorder(">")).view(np.uint8).reshape(*image.shape, -1)
    segments = [
        bytes(imagecodecs.packbits_encode(np.ascontiguousarray(planes[..., i]), axis=-1))
        for i in range(planes.shape[-1])
    ]
    segments = [s + b"\0" * (len(s) % 2) for s in segments]
    starts = np.cumsum([64, *map(len, segments)])[:-1]
    return struct.pack("<16I", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def j2k(image: NDArray[Any]) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k"))


ENCODERS = {
    JPEG_LS: lambda image: bytes(imagecodecs.jpegls_encode(image)),
    JPEG_2000: j2k,
    JPEG_XL: lambda image: bytes(imagecodecs.jpegxl_encode(image, lossless=True)),
    RLE: rle,
}


# -- frames -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", ENCODERS)
@pytest.mark.parametrize("cut", [False, True])
def test_frames_that_no_header_and_no_table_counts_are_found(tmp_path: Path, syntax: str, cut: bool) -> None:
    """Without NumberOfFrames every stream is a frame, in one fragment or several; with it, the stated ones are."""
    images = np.stack([phantom(n, SHAPE) for n in range(3)])
    streams = [ENCODERS[syntax](image) for image in images]
    pieces = [p for s in streams for p in (s[:200], s[200:])] if cut else streams
    for stated, count, problem in ((None, 3, "frames_from_data"), (1, 1, "excess_frames:2"), (2, 2, "excess_frames:1")):
        file = fragmented(tmp_path / "a.dcm", images, pieces, syntax=syntax, frames=stated)
        np.testing.assert_array_equal(decode(file).stored, images[:count])
        assert row(file).problems == [problem]
    file = fragmented(tmp_path / "a.dcm", images, pieces, syntax=syntax, frames=3)
    np.testing.assert_array_equal(decode(file).stored, images)
    assert row(file).problems == []


def test_two_bytes_that_open_a_jpeg_xl_stream_by_chance_open_no_frame(tmp_path: Path) -> None:
    first = b"\xff\x0a\x4f\x40\x21\x10" + bytes(10)
    items = [b"", first, b"\xff\x0a\x99\x12" + bytes(12), first]
    raw = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(i)) + i for i in items)
    (tmp_path / "a").write_bytes(raw + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    with (tmp_path / "a").open("rb") as file:
        fragments = fragments_of(file, 0, len(raw) + 8)
        found = frames_of(file, fragments, 1)
    assert [len(frame) for frame in found] == [2, 1]


def test_extended_offsets_that_name_a_frame_twice_are_refused(tmp_path: Path) -> None:
    images = np.stack([phantom(n, SHAPE) for n in range(2)])
    file = fragmented(tmp_path / "a.dcm", images, [ENCODERS[JPEG_LS](i) for i in images], syntax=JPEG_LS, frames=2)
    data = pydicom.dcmread(file)
    value, _, lengths = encapsulate_extended([ENCODERS[JPEG_LS](i) for i in images])
    size = struct.unpack("<2Q", lengths)[0]
    data.PixelData, data.ExtendedOffsetTable = value, struct.pack("<2Q", 0, 0)
    data.ExtendedOffsetTableLengths = struct.pack("<2Q", size, size)
    data.save_as(file)
    assert quarantined(file)[0] == "inconsistent_attributes"


# -- ends ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
@pytest.mark.parametrize(("syntax", "bits"), [(JPEG, 8), (JPEG_12, 12), (LOSSLESS, 12), (LOSSLESS, 8)])
def test_truncated_inside_of_a_stream_nothing_is_made_up(tmp_path: Path, syntax: str, bits: int, share: float) -> None:
    """The fragment is whole, the JPEG in it is not: gdcm and imagecodecs would fill the rest of the picture."""
    image = phantom(shape=SHAPE) if bits == 12 else (phantom(shape=SHAPE) >> 4).astype(np.uint8)
    encode = imagecodecs.ljpeg_encode if syntax == LOSSLESS else imagecodecs.jpeg_encode
    options = {"bitspersample": bits} if bits == 12 or syntax == LOSSLESS else {}
    stream = bytes(encode(image, **options))
    assert row(fragmented(tmp_path / "a.dcm", image, [stream], syntax=syntax, bits=bits)).status == "indexed"
    file = fragmented(tmp_path / "a.dcm", image, [stream[: int(share * len(stream))]], syntax=syntax, bits=bits)
    assert quarantined(file)[0] == "truncated_pixels"


@pytest.mark.parametrize("syntax", [JPEG, LOSSLESS, JPEG_LS])
def test_truncated_a_jpeg_without_its_end_marker_alone_is_read(tmp_path: Path, syntax: str) -> None:
    """Its pixels do not depend on what follows; those of a stream that lacks a byte more do."""
    image = phantom(1, SHAPE) if syntax != JPEG else (phantom(1, SHAPE) >> 4).astype(np.uint8)
    encoders = {JPEG: imagecodecs.jpeg_encode, LOSSLESS: imagecodecs.ljpeg_encode, JPEG_LS: imagecodecs.jpegls_encode}
    stream = bytes(encoders[syntax](image))
    assert stream.endswith(b"\xff\xd9") and stream[-3] not in (0, 0xFF)
    whole = decode(fragmented(tmp_path / "a.dcm", image, [stream], syntax=syntax)).stored
    for lost in (1, 2):
        file = fragmented(tmp_path / "a.dcm", image, [stream[:-lost]], syntax=syntax)
        np.testing.assert_array_equal(decode(file).stored, whole)
        assert row(file).problems == ["missing_delimiter"]
    for lost in range(3, 12):
        file = fragmented(tmp_path / "a.dcm", image, [stream[:-lost]], syntax=syntax)
        assert quarantined(file)[0] == "truncated_pixels"


@pytest.mark.parametrize("encode", [j2k, lambda image: bytes(imagecodecs.htj2k_encode(image))], ids=["j2k", "htj2k"])
def test_a_jpeg_2000_stream_without_its_end_marker_alone_is_read(tmp_path: Path, encode: Any) -> None:
    """Its tile parts say how long they are; one that is shorter than that is refused."""
    image = phantom(shape=SHAPE)
    syntax, stream = JPEG_2000 if encode is j2k else HTJ2K, encode(image)
    assert stream.endswith(b"\xff\xd9")
    file = fragmented(tmp_path / "a.dcm", image, [stream[:-2]], syntax=syntax)
    np.testing.assert_array_equal(decode(file).stored[0], image)
    for lost in (3, 4, 40):
        assert quarantined(fragmented(tmp_path / "a.dcm", image, [stream[:-lost]], syntax=syntax))[0] == "codec_error"


# -- bits and sign ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "allocated"), [(7, 8), (4, 8), (8, 32), (12, 32)])
def test_jpeg_lossless_of_any_bits_comes_back(tmp_path: Path, stored: int, allocated: int) -> None:
    """gdcm would end the process for these."""
    kind = np.dtype(f"u{allocated // 8}")
    image = (phantom(shape=SHAPE) >> (12 - stored)).astype(kind)
    stream = bytes(imagecodecs.ljpeg_encode(image.astype(np.uint8 if stored <= 8 else np.uint16), bitspersample=stored))
    file = fragmented(tmp_path / "a.dcm", image, [stream], syntax=LOSSLESS, bits=stored)
    np.testing.assert_array_equal(decode(file).stored[0], image)


def test_negative_values_in_a_stream_without_a_sign(tmp_path: Path) -> None:
    """Cut to BitsStored or sign-extended, they are the same values; a stream of fewer bits than stored is reported."""
    image = phantom(shape=SHAPE).astype(np.int16) - 2048
    for words in (image.view(np.uint16), image.view(np.uint16) & 0x0FFF):
        file = fragmented(tmp_path / "a.dcm", image, [ENCODERS[JPEG_LS](words)], syntax=JPEG_LS, bits=12)
        np.testing.assert_array_equal(decode(file).stored[0], image)
        assert "codestream_precision" in row(file).problems
    stream = bytes(imagecodecs.ljpeg_encode(phantom(shape=SHAPE), bitspersample=12))
    file = fragmented(tmp_path / "b.dcm", image, [stream], syntax=LOSSLESS, bits=16)
    assert "codestream_precision" in row(file).problems


# -- colour -------------------------------------------------------------------------------------------------------------


def rgb(number: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    return np.stack([np.clip(5 * y + 9 * number, 0, 255), 4 * x, np.clip(255 - 3 * y - 2 * x, 0, 255)], -1).astype(
        np.uint8
    )


@pytest.mark.parametrize("stated", ["RGB", "YBR_FULL_422"])
@pytest.mark.parametrize("planar", [0, 1])
def test_subsampled_jpeg_is_never_rgb_whatever_the_header_says(tmp_path: Path, stated: str, planar: int) -> None:
    """No JFIF, no Adobe marker: that chrominance is subsampled is all that tells the colour model."""
    images = np.stack([rgb(n) for n in range(3)])
    streams = []
    for image in images:
        stream = bytes(imagecodecs.jpeg8_encode(image, level=98, colorspace="rgb", subsampling="422"))
        assert stream[2:4] == b"\xff\xe0"
        streams.append(stream[:2] + stream[4 + struct.unpack(">H", stream[4:6])[0] :])
    file = fragmented(
        tmp_path / "a.dcm", images, streams, syntax=JPEG, photometric=stated, frames=3, PlanarConfiguration=planar
    )
    found = decode(file).stored
    assert np.abs(found.astype(int) - images).mean() < 2
    np.testing.assert_array_equal(decode(file, frames=range(2, 3)).stored[0], found[2])
    assert ("photometric_mismatch" in row(file).problems) is (stated == "RGB")


def test_eight_bit_jpeg_under_the_name_of_twelve_keeps_the_colours_of_its_header(tmp_path: Path) -> None:
    image = rgb(0)
    stream = bytes(imagecodecs.jpeg8_encode(image, level=98, colorspace="rgb", outcolorspace="rgb", subsampling="444"))
    at = stream.index(b"\xff\xee")  # Adobe's marker would say that it is RGB
    stream = stream[:at] + stream[at + 2 + struct.unpack(">H", stream[at + 2 : at + 4])[0] :]
    frame = stream.index(b"\xff\xc0")
    scan = stream.index(b"\xff\xda")
    plain = bytearray(stream)
    for n in range(3):  # components are 1, 2, 3 and not R, G, B
        plain[frame + 10 + 3 * n] = plain[scan + 5 + 2 * n] = n + 1
    found = [
        decode(fragmented(tmp_path / "a.dcm", image, [bytes(plain)], syntax=syntax, photometric="RGB")).stored[0]
        for syntax in (JPEG, JPEG_12)
    ]
    np.testing.assert_array_equal(*found)
    assert np.abs(found[1].astype(int) - image).mean() < 2


def test_jpeg_xl_in_its_own_colours(tmp_path: Path) -> None:
    """XYB is what a lossy JPEG XL stream has inside; elsewhere it is none that is known."""
    stream = bytes(imagecodecs.jpegxl_encode(rgb(0), level=98))
    file = fragmented(tmp_path / "a.dcm", rgb(0), [stream], syntax=JPEG_XL[:-1] + "2", photometric="XYB")
    assert np.abs(decode(file).stored[0].astype(int) - rgb(0)).mean() < 2
    assert quarantined(write(tmp_path / "b.dcm", rgb(0), photometric="XYB"))[0] == "unsupported_photometric"


@pytest.mark.parametrize("syntax", [JPEG_LS, JPEG_2000, JPEG_XL])
def test_planar_configuration_of_a_stream_is_its_own(tmp_path: Path, syntax: str) -> None:
    for planar in (0, 1):
        file = fragmented(
            tmp_path / "a.dcm", rgb(0), [ENCODERS[syntax](rgb(0))], syntax=syntax, photometric="RGB",
            PlanarConfiguration=planar,
        )  # fmt: skip
        np.testing.assert_array_equal(decode(file).stored[0], rgb(0))
