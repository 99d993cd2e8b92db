"""What a DICOM archive throws at a reader, row by row (2): modality values, bits, colour, overlays, padding."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from fake.dicom import dataset, fragmented, item, own, phantom, quarantined, row, table, write
from numpy.typing import NDArray
from pydicom.sequence import Sequence

from hilum.core.types import Limits, Pixels
from hilum.medical.dicom.decode import decode, open_image
from hilum.medical.dicom.header import read_header
from hilum.medical.dicom.real_world import philips_scale, real_world_maps

pytestmark = pytest.mark.filterwarnings("ignore")
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


def values(pixels: Pixels) -> NDArray[np.float64]:
    """Modality values before polarity."""
    found: NDArray[np.float64] = pixels.stored * pixels.slope + pixels.intercept
    return -found if pixels.inverted else found


# -- modality values ----------------------------------------------------------------------------------------------------


def test_modality_lut_sequence_is_applied(tmp_path: Path) -> None:
    """Input first..first+n-1 gives the entries, below and above it the ends (PS3.3 C.11.1.1)."""
    stored = np.array([[0, 9, 10, 11], [12, 13, 14, 60000]], np.uint16)
    lut = table(10, np.array([500, 100, 65535, 7]), 16)
    lut.ModalityLUTType = "OD"
    about = decode(write(tmp_path / "a.dcm", stored, ModalityLUTSequence=Sequence([lut])))
    np.testing.assert_array_equal(values(about)[0], [[500, 500, 500, 100], [65535, 7, 7, 7]])
    assert about.unit == "OD"


def test_rescale_per_slice(tmp_path: Path) -> None:
    """PET: every slice its own slope; equal quantities must come out equal."""
    activity = np.array([[0.0, 100.0], [2500.0, 5000.0]])
    found = []
    for at, slope in enumerate((0.5, 2.0, 4.0)):
        stored = (activity / slope).astype(np.int16)
        file = write(
            tmp_path / f"{at}.dcm", stored, sop_class="1.2.840.10008.5.1.4.1.1.128", Modality="PT", Units="BQML",
            RescaleSlope=slope, RescaleIntercept=0, instance=at + 1,
        )  # fmt: skip
        found.append(decode(file))
        assert row(file).columns["max"] == 5000.0 and row(file).columns["unit"] == "BQML"
    for pixels in found:
        np.testing.assert_array_equal(values(pixels)[0], activity)


def test_rescale_per_frame_of_an_enhanced_file(tmp_path: Path) -> None:
    stack = np.stack([phantom(1), phantom(2), phantom(3)])
    lines = [(1.0, -1024.0), (0.5, -512.0), (2.0, 10.0)]
    frames = [
        item(PixelValueTransformationSequence=Sequence([item(RescaleSlope=s, RescaleIntercept=i, RescaleType="HU")]))
        for s, i in lines
    ]
    file = write(
        tmp_path / "a.dcm", stack, frames=3, sop_class=ENHANCED_CT, PerFrameFunctionalGroupsSequence=Sequence(frames)
    )
    expected = np.stack([f * s + i for f, (s, i) in zip(stack.astype(float), lines, strict=True)])
    np.testing.assert_array_equal(values(decode(file)), expected)
    about = row(file)
    assert (about.columns["min"], about.columns["max"]) == (expected.min(), expected.max())
    assert about.columns["unit"] == "HU"


def test_rescale_private_scale_is_kept_and_not_applied(tmp_path: Path) -> None:
    data = dataset(phantom(), RescaleSlope=2, RescaleIntercept=-3)
    block = data.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0D, "FL", 1.5)
    block.add_new(0x0E, "FL", 0.25)
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(values(decode(tmp_path / "a.dcm"))[0], phantom() * 2.0 - 3)
    assert philips_scale(read_header(tmp_path / "a.dcm", Limits())) == (0.25, 1.5)
    assert philips_scale(read_header(write(tmp_path / "b.dcm", phantom()), Limits())) is None


def test_real_world_value_maps_are_exposed_and_not_applied(tmp_path: Path) -> None:
    line = item(
        RealWorldValueFirstValueMapped=0, RealWorldValueLastValueMapped=2000, RealWorldValueSlope=0.5,
        RealWorldValueIntercept=-10.0, MeasurementUnitsCodeSequence=Sequence([item(CodeValue="mm2/s")]),
    )  # fmt: skip
    curve = item(
        RealWorldValueFirstValueMapped=1, RealWorldValueLastValueMapped=3, RealWorldValueLUTData=[1.5, 2.5, 9.0],
        MeasurementUnitsCodeSequence=Sequence([item(CodeValue="DOE JANE")]),
    )  # fmt: skip
    shared = item(RealWorldValueMappingSequence=Sequence([line]))
    file = write(
        tmp_path / "a.dcm", phantom(), RealWorldValueMappingSequence=Sequence([curve]),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )  # fmt: skip
    first, second = real_world_maps(read_header(file, Limits()))
    assert (first.unit, second.unit) == ("mm2/s", None)  # free text stays in the file
    np.testing.assert_array_equal(first(np.array([0, 100, 2000])), [-10.0, 40.0, 990.0])
    np.testing.assert_array_equal(second(np.array([1, 2, 3])), [1.5, 2.5, 9.0])
    assert np.isnan(first(np.array([2001]))).all() and np.isnan(second(np.array([0, 4]))).all()
    assert open_image(file, Limits()).real_world()[0] == first
    np.testing.assert_array_equal(values(decode(file))[0], phantom())


# -- bits ---------------------------------------------------------------------------------------------------------------


def test_bits_stored_signed_twelve_in_sixteen(tmp_path: Path) -> None:
    """-1 in 12 bits is 0x0FFF, whatever stands above it."""
    words = np.array([[0x0FFF, 0xFFFF], [0x7800, 0x0801]], np.uint16).view(np.int16)
    found = decode(write(tmp_path / "a.dcm", words, bits=12)).stored[0]
    np.testing.assert_array_equal(found, [[-1, -1], [-2048, -2047]])


def test_high_bit_fifteen_of_twelve_is_shifted(tmp_path: Path) -> None:
    words = (phantom().astype(np.uint16) << 4) | 0x5
    found = decode(write(tmp_path / "a.dcm", words, bits=12, HighBit=15)).stored[0]
    np.testing.assert_array_equal(found, phantom())


def test_pixel_representation_mismatch_is_reported_and_corrected(tmp_path: Path) -> None:
    """The stream is signed, the header unsigned: values are the stream's, of the header's bits."""
    data = pydicom.dcmread(own("J2K_pixelrep_mismatch.dcm"))
    assert "pixel_representation_mismatch" in row(own("J2K_pixelrep_mismatch.dcm")).problems
    frame = pydicom.encaps.get_frame(data.PixelData, 0, number_of_frames=1)
    raw = imagecodecs.jpeg2k_decode(frame).astype(np.int64)
    bits, signed = data.BitsStored, data.PixelRepresentation
    wrapped = raw & ((1 << bits) - 1)
    expected = np.where(wrapped >> (bits - 1) & signed, wrapped - (1 << bits), wrapped)
    np.testing.assert_array_equal(decode(own("J2K_pixelrep_mismatch.dcm")).stored[0], expected)


def test_a_codestream_of_more_bits_than_stated_is_refused_where_they_are_used(tmp_path: Path) -> None:
    wide = np.full((32, 48), 5000, np.uint16)
    stream = imagecodecs.jpegls_encode(wide)
    file = fragmented(tmp_path / "a.dcm", wide, [bytes(stream)], syntax="1.2.840.10008.1.2.4.80", bits=12)
    assert quarantined(file)[0] == "inconsistent_attributes"
    stream = imagecodecs.jpegls_encode(phantom(shape=(32, 48)))  # 16-bit stream, 12-bit values: harmless, noted
    file = fragmented(tmp_path / "b.dcm", wide, [bytes(stream)], syntax="1.2.840.10008.1.2.4.80", bits=12)
    assert row(file).status == "indexed" and "codestream_precision" in row(file).problems


# -- colour -------------------------------------------------------------------------------------------------------------


def test_planar_configuration_of_rle_is_by_plane_whatever_the_header_says(tmp_path: Path) -> None:
    rgb = np.random.default_rng(4).integers(0, 256, (6, 8, 3), np.uint8)
    segments = [imagecodecs.packbits_encode(np.ascontiguousarray(rgb[..., c]), axis=-1) for c in range(3)]
    segments = [bytes(s) + b"\0" * (len(s) % 2) for s in segments]
    starts = np.cumsum([64] + [len(s) for s in segments])[:3]
    header = struct.pack("<16I", 3, *starts, *[0] * 12)
    for planar in (0, 1):
        file = fragmented(
            tmp_path / "a.dcm", rgb, [header + b"".join(segments)], syntax="1.2.840.10008.1.2.5",
            photometric="RGB", PlanarConfiguration=planar,
        )  # fmt: skip
        np.testing.assert_array_equal(decode(file).stored[0], rgb)


def test_ybr_full_422_by_hand(tmp_path: Path) -> None:
    """Y0 Y1 Cb Cr for two pixels (PS3.3 C.7.6.3.1.2); RGB by the standard's inverse of its matrix."""
    y0, y1, cb, cr = 100, 150, 90, 200
    raw = bytes([y0, y1, cb, cr] * 4)
    file = write(
        tmp_path / "a.dcm",
        np.zeros((2, 4, 3), np.uint8),
        photometric="YBR_FULL_422",
        PixelData=raw,
        PlanarConfiguration=0,
    )

    def rgb(y: int) -> list[int]:
        red, blue = y + 1.402 * (cr - 128), y + 1.772 * (cb - 128)
        green = y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
        return [int(np.clip(round(v), 0, 255)) for v in (red, green, blue)]

    found = decode(file).stored[0].astype(int)
    assert np.abs(found - np.array([[rgb(y0), rgb(y1)] * 2] * 2)).max() <= 1


def test_palette_is_expanded_by_hand_and_its_indexes_are_no_intensity(tmp_path: Path) -> None:
    stored = np.array([[0, 1], [2, 3]], np.uint8)
    red, green, blue = ([10, 20, 30, 40], [1, 2, 3, 4], [255, 0, 255, 0])
    options = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, entries in (("Red", red), ("Green", green), ("Blue", blue))
        for part, value in (("Descriptor", [4, 0, 8]), ("Data", bytes(entries)))
    }
    file = write(tmp_path / "a.dcm", stored, photometric="PALETTE COLOR", **options)
    np.testing.assert_array_equal(decode(file).stored[0], np.stack([red, green, blue], -1).reshape(2, 2, 3))
    about = row(file)
    assert about.columns["modality_sha256"] is None and about.columns["max"] == 255


def test_palette_in_segments(tmp_path: Path) -> None:
    """Discrete (0) and linear (1) segments (PS3.3 C.7.9.2): 2 entries as they are, then a ramp of 4 to 100."""
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    data = np.array([0, 2, 7, 20, 1, 4, 100], "<u2").tobytes()
    options = {
        f"{start}{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for start, part, value in (("", "Descriptor", [6, 0, 16]), ("Segmented", "Data", data))
    }
    found = decode(write(tmp_path / "a.dcm", stored, photometric="PALETTE COLOR", **options)).stored[0]
    np.testing.assert_array_equal(found[..., 0].ravel(), [7, 20, 40, 60, 80, 100])
    np.testing.assert_array_equal(found[..., 0], found[..., 2])


def test_palette_in_segments_that_copy_earlier_ones(tmp_path: Path) -> None:
    """Where a copy starts is stated in bytes (PS3.3 C.7.9.2.3): 8 is the fifth 16-bit word, the ramp."""
    words = [0, 2, 7, 20, 1, 4, 100, 0, 1, 10, 2, 1, 8, 0]  # 7 20, 40 60 80 100, 10, and the ramp again: from 10 to 100
    expected = [7, 20, 40, 60, 80, 100, 10, 32, 55, 78, 100]
    octets = [0, 2, 7, 20, 1, 4, 100, 0, 1, 10, 2, 1, 4, 0, 0, 0]
    for bits, data in ((16, np.array(words, "<u2").tobytes()), (8, bytes(octets))):
        options = {
            f"{start}{name}PaletteColorLookupTable{part}": value
            for name in ("Red", "Green", "Blue")
            for start, part, value in (("", "Descriptor", [11, 0, bits]), ("Segmented", "Data", data))
        }
        stored = np.arange(11, dtype=np.uint8).reshape(1, 11)
        found = decode(write(tmp_path / "a.dcm", stored, photometric="PALETTE COLOR", **options)).stored[0]
        np.testing.assert_array_equal(found[0, :, 1], expected)


@pytest.mark.parametrize(
    "words",
    [[0, 1, 5, *[1, 65535, 9, 2, 65535, 0, 0] * 4000], [0, 1, 5, *[2, 65535, 0, 0] * 9000], [1, 4, 9], [7, 1, 2]],
)
def test_palette_bombs_in_segments_end_at_once(tmp_path: Path, words: list[int]) -> None:
    """Ramps and copies of copies could make 10^9 entries; a table has at most 65536, and ends where it is full."""
    data = np.array(words, "<u2").tobytes()
    options = {
        f"{start}{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for start, part, value in (("", "Descriptor", [0, 0, 16]), ("Segmented", "Data", data))
    }
    file = write(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), photometric="PALETTE COLOR", **options)
    started = time.monotonic()
    about = row(file)
    assert time.monotonic() - started < 2
    assert about.status == "indexed" if len(words) == 28003 else about.reason == "inconsistent_attributes"


# -- overlays, padding --------------------------------------------------------------------------------------------------


def test_overlays_in_60xx_and_in_unused_bits_are_never_in_values(tmp_path: Path) -> None:
    image = phantom()
    plane = np.random.default_rng(0).integers(0, 2, image.shape, np.uint16)
    data = dataset(image | plane << 12, bits=12)
    data.add_new(0x60000010, "US", image.shape[0])
    data.add_new(0x60000011, "US", image.shape[1])
    data.add_new(0x60000100, "US", 16)
    data.add_new(0x60000102, "US", 12)
    data.add_new(0x60020010, "US", image.shape[0])
    data.add_new(0x60023000, "OW", np.packbits(plane.astype(np.uint8).ravel(), bitorder="little").tobytes())
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    clean = write(tmp_path / "b.dcm", image, bits=12)
    np.testing.assert_array_equal(decode(tmp_path / "a.dcm").stored, decode(clean).stored)
    assert row(tmp_path / "a.dcm").columns["stored_sha256"] == row(clean).columns["stored_sha256"]


@pytest.mark.parametrize(("value", "limit"), [(-2000, None), (-2000, -1990), (-1990, -2000)])
def test_padding_is_outside_of_every_statistic(tmp_path: Path, value: int, limit: int | None) -> None:
    """A range may be stated in either order (PS3.3 C.7.5.1.1.2)."""
    stored = np.full((16, 16), -2000, np.int16)
    stored[0] = -1995 if limit is not None else -2000
    stored[4:12, 4:12] = np.arange(64, dtype=np.int16).reshape(8, 8) - 1024
    options = {"PixelPaddingValue": value} | ({} if limit is None else {"PixelPaddingRangeLimit": limit})
    file = write(tmp_path / "a.dcm", stored, RescaleSlope=1, RescaleIntercept=0, **options)
    columns, pixels = row(file).columns, decode(file)
    assert (columns["min"], columns["max"], columns["mean"]) == (-1024.0, -961.0, -1024 + 31.5)
    assert pixels.valid is not None and pixels.valid.sum() == 64
