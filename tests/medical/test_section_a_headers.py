"""What a DICOM archive throws at a reader, row by row (6): values that contradict each other, or cannot be read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake.dicom import dataset, item, phantom, quarantined, row, table, with_syntax, write
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from hilum.core.errors import HilumError
from hilum.core.types import Limits, Pixels
from hilum.medical.dicom import stored as stored_values
from hilum.medical.dicom import tags
from hilum.medical.dicom.decode import decode
from hilum.medical.dicom.intake import DicomIntake

pytestmark = pytest.mark.filterwarnings("ignore")
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
DX, CAPTURE, DOSE = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("1.1", "7", "481.2"))
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"


def values(pixels: Pixels) -> NDArray[np.float64]:
    """Modality values before polarity."""
    found: NDArray[np.float64] = pixels.stored * pixels.slope + pixels.intercept
    return -found if pixels.inverted else found


def shown(pixels: Pixels) -> NDArray[np.float64]:
    """[0, 1] by a table."""
    assert pixels.window is not None and pixels.window.kind == "table"
    at = np.rint(pixels.stored * pixels.slope + pixels.intercept).astype(int) - int(pixels.window.lo)
    return np.asarray(pixels.window.table)[np.clip(at, 0, len(pixels.window.table) - 1)]


def with_element(path: Path, tag: tuple[int, int], vr: bytes, value: bytes) -> Path:
    """Put an element with any VR and bytes in front of the pixels."""
    whole = path.read_bytes()
    at = whole.index(struct.pack("<HH", 0x7FE0, 0x0010) + b"O")
    value += b" " * (len(value) % 2)
    long = struct.pack("<HI", 0, len(value)) if vr in (b"OB", b"UN", b"SQ") else struct.pack("<H", len(value))
    path.write_bytes(whole[:at] + struct.pack("<HH", *tag) + vr + long + value + whole[at:])
    return path


# -- padding ------------------------------------------------------------------------------------------------------------


def test_padding_frames_without_anything_else_are_outside_of_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of frames is decoded at a time; a file of padding alone is measured as it is."""
    stack = np.stack([np.full((8, 8), -2000), np.arange(64).reshape(8, 8), np.full((8, 8), -2000)]).astype(np.int16)
    file = write(tmp_path / "a.dcm", stack, frames=3, PixelPaddingValue=-2000)
    alone = write(tmp_path / "b.dcm", stack[::2], frames=2, PixelPaddingValue=-2000)
    for most in (1, 1 << 23):
        monkeypatch.setattr(stored_values, "_CHUNK", most)
        columns = row(file).columns
        assert (columns["min"], columns["max"], columns["mean"]) == (0, 63, 31.5)
        about = row(alone)
        assert (about.columns["min"], about.columns["max"]) == (-2000, -2000) and "constant_values" in about.problems


def test_padding_in_bits_that_are_not_stored_is_reported(tmp_path: Path) -> None:
    image = phantom()
    image[0] = 63536  # 12 bits are stored: 2096 is left
    file = write(tmp_path / "a.dcm", image, bits=12, PixelPaddingValue=63536)
    assert "bad_value:PixelPaddingValue" in row(file).problems and decode(file).valid is None
    file = with_element(write(tmp_path / "b.dcm", phantom()), (0x0028, 0x0120), b"DS", b"nan")
    assert row(file).status == "indexed" and "bad_value:PixelPaddingValue" in row(file).problems


# -- rescale ------------------------------------------------------------------------------------------------------------


def test_bad_numbers_a_rescale_that_cannot_be_read_is_no_identity(tmp_path: Path) -> None:
    """Where values are quantities the file is set aside; a capture or a digital X-ray has its stored values."""
    for sop_class, status in ((CT, "quarantined"), (ENHANCED_CT, "quarantined"), (DX, "indexed"), (CAPTURE, "indexed")):
        plain = write(tmp_path / "a.dcm", phantom(), sop_class=sop_class, Modality="OT")
        file = with_element(plain, (0x0028, 0x1053), b"DS", b"JANE")
        about = row(file)
        assert about.status == status and "bad_value:RescaleSlope" in about.problems and "JANE" not in str(about)
        if status == "indexed":
            np.testing.assert_array_equal(values(decode(file))[0], phantom())
        else:
            assert (about.reason, "RescaleSlope" in about.message) == ("inconsistent_attributes", True)


def test_wrong_vrs_a_sequence_that_is_none(tmp_path: Path) -> None:
    file = with_element(write(tmp_path / "a.dcm", phantom(), sop_class=CT), (0x0028, 0x3000), b"LO", b"JANE DOE")
    reason, message = quarantined(file)
    assert reason == "inconsistent_attributes" and "ModalityLUTSequence" in message
    file = with_element(write(tmp_path / "b.dcm", phantom()), (0x0028, 0x3010), b"LO", b"JANE DOE")
    assert row(file).status == "indexed" and "bad_value:VOILUTSequence" in row(file).problems


MATTERS = """RescaleSlope RescaleIntercept ModalityLUTSequence SharedFunctionalGroupsSequence
    PerFrameFunctionalGroupsSequence SOPClassUID Rows Columns NumberOfFrames BitsAllocated BitsStored HighBit
    PixelRepresentation SamplesPerPixel PhotometricInterpretation PlanarConfiguration"""


def test_wrong_vrs_of_anything_that_values_do_not_depend_on_cost_no_pixels(tmp_path: Path) -> None:
    """Every element that is read, with a value of any kind: text, bytes, numbers, items, nothing."""
    name, empty = b"JANE DOE", struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    person = struct.pack("<HHI", 0xFFFE, 0xE000, 16) + struct.pack("<HH", 0x10, 0x10) + b"PN\x08\0" + name
    kinds = [(b"LO", name), (b"OB", name), (b"UN", name), (b"US", b"\x07\0"), (b"DS", b"1\\2\\3\\4\\5\\6\\7")]
    kinds += [(b"SQ", person), (b"SQ", empty * 3), (b"SQ", b""), (b"LO", b"")]
    plain = write(tmp_path / "a.dcm", phantom(), sop_class=CT, Modality="CT").read_bytes()
    for keyword in sorted(set(tags.KEYWORDS) - set(MATTERS.split())):
        tag = tags.TAGS[keyword]
        for vr, value in kinds:
            (tmp_path / "b.dcm").write_bytes(plain)
            about = row(with_element(tmp_path / "b.dcm", (tag >> 16, tag & 0xFFFF), vr, value))
            assert about.status == "indexed", (keyword, vr, about.message)
            assert "JANE" not in repr((about.columns, about.problems, about.message))


def test_wrong_vrs_a_binary_number_where_text_should_be(tmp_path: Path) -> None:
    file = write(tmp_path / "a.dcm", phantom(), sop_class=CT, RescaleIntercept=3)
    found = decode(with_element(file, (0x0028, 0x1053), b"FD", struct.pack("<d", 1.25)))
    assert (found.slope, found.intercept) == (1.25, 3.0)


def test_rescale_of_some_frames_alone_is_refused(tmp_path: Path) -> None:
    stack = np.stack([phantom(1), phantom(2)])
    line = Sequence([item(RescaleSlope=2, RescaleIntercept=-5)])
    groups = Sequence([item(PixelValueTransformationSequence=line), item()])
    file = write(tmp_path / "a.dcm", stack, frames=2, sop_class=ENHANCED_CT, PerFrameFunctionalGroupsSequence=groups)
    assert quarantined(file)[0] == "inconsistent_attributes"
    groups = Sequence([item(PixelValueTransformationSequence=Sequence([item()]))] * 2)  # and all of them say nothing
    file = write(tmp_path / "b.dcm", stack, frames=2, sop_class=ENHANCED_CT, PerFrameFunctionalGroupsSequence=groups)
    assert "incomplete_rescale" in row(file).problems


def test_rescale_of_a_dose_is_known_by_its_class(tmp_path: Path) -> None:
    stored = np.arange(12, dtype=np.uint32).reshape(3, 4)
    file = write(tmp_path / "a.dcm", stored, sop_class=DOSE, Modality="OT", DoseGridScaling=0.25, DoseUnits="GY")
    np.testing.assert_array_equal(values(decode(file))[0], stored / 4)
    picture = write(tmp_path / "b.dcm", phantom(), sop_class=CAPTURE, Modality="RTDOSE")
    np.testing.assert_array_equal(values(decode(picture))[0], phantom())


def test_constant_values_are_named_whatever_the_slope(tmp_path: Path) -> None:
    """1.1 has no exact double: the deviation of many equal values is not zero."""
    data = dataset(np.zeros((31, 33), np.uint16), BitsAllocated=32, PixelData=None, BitsStored=None, HighBit=None)
    data.FloatPixelData = np.full((31, 33), 1.1, "<f4").tobytes()
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert "constant_values" in row(tmp_path / "a.dcm").problems


def test_float_pixels_of_other_words_than_bits_allocated_says_are_refused(tmp_path: Path) -> None:
    for keyword, bits in (("FloatPixelData", 64), ("DoubleFloatPixelData", 32), ("FloatPixelData", 16)):
        data = dataset(np.zeros((4, 4), np.uint16), BitsAllocated=bits, PixelData=None, BitsStored=None, HighBit=None)
        setattr(data, keyword, np.ones((4, 4), "<f8").tobytes())
        data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        assert quarantined(tmp_path / "a.dcm")[0] == "inconsistent_attributes"


# -- tables -------------------------------------------------------------------------------------------------------------


def lut(first: int, entries: NDArray[Any], bits: int, vr: str, **attributes: Any) -> Dataset:
    found = item(**attributes)
    found.add_new("LUTDescriptor", vr, [len(entries), first, bits])
    found.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return found


def test_voi_lut_whose_first_input_has_the_wrong_sign(tmp_path: Path) -> None:
    """US or SS by what its writer thought: the reading that the image's values meet is taken."""
    image = (phantom() >> 4).astype(np.uint16)
    curve = np.arange(256) ** 2 // 255
    cases: list[tuple[NDArray[Any], int, int, str, int]] = [
        (image, 12, 40000 - 65536, "SS", 40000),  # modality values are positive, stored ones unsigned
        (image.astype(np.int16), 12, 40000, "US", 40000),  # stored ones signed
        (image, 12, 65436, "US", -100),
        (image, 8, 0, "US", 0),
    ]
    for stored, bits, first, vr, intercept in cases:
        options = {"RescaleSlope": 1, "RescaleIntercept": intercept, "bits": bits}
        file = write(tmp_path / "a.dcm", stored, VOILUTSequence=Sequence([lut(first, curve, 8, vr)]), **options)
        np.testing.assert_allclose(shown(decode(file))[0], curve[image] / 255)
    wide = lut(65536 - 512, np.arange(1024), 10, "US")  # begins below the 8 bits of the image, and covers them
    file = write(tmp_path / "a.dcm", image.astype(np.uint8), VOILUTSequence=Sequence([wide]))
    np.testing.assert_allclose(shown(decode(file))[0], (image + 512) / 1023)


def test_voi_lut_of_an_image_with_a_modality_lut(tmp_path: Path) -> None:
    """The output of a Modality LUT is unsigned, whatever the stored values are."""
    stored = np.array([[-2, -1], [0, 1]], np.int16)
    first = lut(-2, np.array([40000, 40001, 40002, 40003]), 16, "SS")
    second = lut(40000, np.array([0, 10, 100, 255]), 8, "US")
    file = write(tmp_path / "a.dcm", stored, ModalityLUTSequence=Sequence([first]), VOILUTSequence=Sequence([second]))
    np.testing.assert_allclose(shown(decode(file))[0], [[0, 10 / 255], [100 / 255, 1]])


def test_modality_lut_of_one_entry(tmp_path: Path) -> None:
    one = item()
    one.add_new("LUTDescriptor", "US", [1, 5, 16])
    one.add_new("LUTData", "US", 77)
    file = write(tmp_path / "a.dcm", phantom(), ModalityLUTSequence=Sequence([one]))
    np.testing.assert_array_equal(values(decode(file)), np.full((1, 24, 32), 77))


def test_palette_whose_first_input_is_negative(tmp_path: Path) -> None:
    """-128 as a US: entry 128 is that of 0."""
    stored = np.array([[0, 1], [100, 127]], np.uint8)
    entries = np.random.default_rng(3).integers(0, 256, (3, 256), np.uint8)
    options = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, each in zip(("Red", "Green", "Blue"), entries, strict=True)
        for part, value in (("Descriptor", [256, 65536 - 128, 8]), ("Data", each.tobytes()))
    }
    found = decode(write(tmp_path / "a.dcm", stored, photometric="PALETTE COLOR", **options)).stored[0]
    np.testing.assert_array_equal(found, entries.T[stored.astype(int) + 128])


# -- windows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("centre", "width", "index", "bounds", "problems"),
    [
        (b"\\400", b"\\2000", 1, (-600, 1399), []),  # the first one is empty
        (b"40\\\\400", b"80\\\\2000", 0, (0, 79), []),
        (b"nan\\400", b"80\\2000", 1, (-600, 1399), []),
        (b"nan", b"80", None, None, ["bad_window"]),
        (b"1e999", b"80", None, None, ["bad_window"]),
    ],
)
def test_voi_windows_with_gaps_keep_their_index(
    tmp_path: Path, centre: bytes, width: bytes, index: int | None, bounds: tuple[int, int] | None, problems: list[str]
) -> None:
    file = write(tmp_path / "a.dcm", phantom())
    file = with_element(with_element(file, (0x0028, 0x1050), b"DS", centre), (0x0028, 0x1051), b"DS", width)
    window = decode(file).window
    assert window is not None and row(file).problems == problems
    assert window.source == ("range p0.5-p99.5" if index is None else f"window {index}")
    assert bounds is None or (window.lo, window.hi) == bounds
    if centre.count(b"\\") == 2:
        third = decode(file, voi=2).window
        assert third is not None and (third.lo, third.hi) == (-600, 1399)


def test_voi_luts_are_chosen_by_index_and_explanation(tmp_path: Path) -> None:
    """Indexes count the windows, then the VOI LUTs; explanations are those of either, listed ones alone."""
    image = (phantom() >> 4).astype(np.uint8)
    curves = [np.arange(256), np.arange(256) ** 2 // 255, np.arange(256)[::-1]]
    names = ("NORMAL", "Harder", "Doe Jane")
    tables = [lut(0, c, 8, "US", LUTExplanation=n) for c, n in zip(curves, names, strict=True)]
    file = write(tmp_path / "a.dcm", image, VOILUTSequence=Sequence(tables), WindowCenter=50, WindowWidth=20)
    for choice, at, source in (
        ("auto", 0, "voi lut 0 (NORMAL)"),
        (1, 0, "voi lut 0 (NORMAL)"),
        ("2", 1, "voi lut 1 (HARDER)"),
        ("harder", 1, "voi lut 1 (HARDER)"),
        (3, 2, "voi lut 2"),
    ):
        found = decode(file, voi=choice)
        np.testing.assert_allclose(shown(found)[0], curves[at][image] / 255)
        assert (found.provenance["window"], found.provenance["voi_lut"]) == (source, "lut")
    window = decode(file, voi=0)
    assert (window.provenance["window"], window.provenance["voi_lut"]) == ("window 0", "linear")
    with pytest.raises(HilumError, match="4 windows"):
        decode(file, voi=4)
    with pytest.raises(HilumError, match="no window named"):
        decode(file, voi="Doe Jane")


def test_voi_luts_of_frames(tmp_path: Path) -> None:
    """Frame VOI LUT With LUT (PS3.3 C.7.6.16.2.10b): the frame's own table, not the window of another frame."""
    stack = np.stack([phantom(1), phantom(2)])
    curves = [np.arange(4096), np.arange(4096)[::-1]]
    groups = [item(FrameVOILUTSequence=Sequence([item(VOILUTSequence=Sequence([table(0, c, 12)]))])) for c in curves]
    file = write(tmp_path / "a.dcm", stack, frames=2, bits=12, PerFrameFunctionalGroupsSequence=Sequence(groups))
    assert "window_differs_by_frame" in row(file).problems
    for frame in range(2):
        found = decode(file, frames=range(frame, frame + 1))
        np.testing.assert_allclose(shown(found)[0], curves[frame][stack[frame]] / 4095)


@pytest.mark.parametrize("windows", [{}, {"WindowCenter": 50, "WindowWidth": 20}])
def test_bad_numbers_of_a_voi_lut_cost_no_pixels(tmp_path: Path, windows: dict[str, int]) -> None:
    """A table shorter than it says is a fault of the display: the next source is taken, and it is said."""
    short = item(LUTDescriptor=[256, 0, 8])
    short.add_new("LUTData", "OW", bytes(20))
    file = write(tmp_path / "a.dcm", phantom(), VOILUTSequence=Sequence([short]), **windows)
    about, found = row(file), decode(file)
    assert about.status == "indexed" and about.problems == ["bad_window"]
    np.testing.assert_array_equal(values(found)[0], phantom())
    assert found.provenance["window"] == ("window 0" if windows else "range p0.5-p99.5")


# -- pixels -------------------------------------------------------------------------------------------------------------


def test_planar_configuration_ybr_full_422_that_is_none_is_refused(tmp_path: Path) -> None:
    """Three bytes a pixel, colour by plane, or a column too many: two thirds of it would pass for a picture."""
    full = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    short = full.tobytes()[: 4 * 6 * 2]
    good = write(tmp_path / "a.dcm", full, photometric="YBR_FULL_422", PixelData=short)
    assert row(good).status == "indexed"
    for options in ({}, {"PixelData": short, "PlanarConfiguration": 1}):
        file = write(tmp_path / "a.dcm", full, photometric="YBR_FULL_422", **options)
        assert quarantined(file)[0] == "inconsistent_attributes"
    odd = write(tmp_path / "a.dcm", full[:, :5], photometric="YBR_FULL_422", PixelData=short[:40])
    assert quarantined(odd)[0] == "inconsistent_attributes"


def test_high_bit_that_sign_extended_words_contradict_is_refused(tmp_path: Path) -> None:
    """Negative values at the bottom of their words have ones above BitsStored, and are no values at the top."""
    low = phantom().astype(np.int16) - 2048
    assert quarantined(write(tmp_path / "a.dcm", low, bits=12, HighBit=15))[0] == "inconsistent_attributes"
    file = write(tmp_path / "b.dcm", low << 4, bits=12, HighBit=15)
    np.testing.assert_array_equal(decode(file).stored[0], low)


def test_segmentations_as_label_maps_have_no_modality_values(tmp_path: Path) -> None:
    about = row(write(tmp_path / "a.dcm", (phantom() >> 9).astype(np.uint8), sop_class=LABEL_MAP, Modality="SEG"))
    assert about.columns["role"] == "label" and about.columns["stored_sha256"]
    assert about.columns["modality_sha256"] is None


def test_deflated_files_of_nothing_are_no_bombs(tmp_path: Path) -> None:
    """Zeros deflate a thousand times; what is small when it is unpacked is read."""
    file = write(tmp_path / "a.dcm", np.zeros((4096, 4096), np.uint16))
    whole = file.read_bytes()
    start = 132 + 12 + int.from_bytes(whole[140:144], "little")
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = engine.compress(whole[start:]) + engine.flush()
    assert len(whole) > 1000 * len(packed)
    file.write_bytes(whole[:start] + packed)
    assert row(with_syntax(file, "1.2.840.10008.1.2.1.99")).status == "indexed"


def test_problems_of_a_series_are_named_once(tmp_path: Path) -> None:
    """Headers of one series are worked out together: the second file says what it would say alone."""
    files = []
    for number in (1, 2):
        file = write(tmp_path / f"{number}.dcm", phantom(), instance=number)
        whole = file.read_bytes()
        file.write_bytes(whole[132 + 12 + int.from_bytes(whole[140:144], "little") :])
        files.append(file)
    intake = DicomIntake()
    for file in files:
        assert intake.read_header(file, Limits())[0].problems == ["no_preamble", "guessed_transfer_syntax"]
