"""The decode path against pydicom's own functions, hand-written formulas and mirrored twins."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fake.dicom import dataset, phantom, table, write
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space

from hilum.core.types import Limits, Pixels
from hilum.data.ledger import Rejected
from hilum.medical.dicom.decode import decode
from hilum.medical.dicom.intake import DicomIntake

pytestmark = pytest.mark.filterwarnings("ignore")
MONOCHROME = """CT_small.dcm MR_small.dcm MR_small_RLE.dcm MR_small_bigendian.dcm MR_small_expb.dcm
    MR_small_implicit.dcm
    MR_small_jp2klossless.dcm MR_small_jpeg_ls_lossless.dcm MR_small_padded.dcm 693_J2KI.dcm
    J2K_pixelrep_mismatch.dcm JPEG2000.dcm JPEGLSNearLossless_08.dcm JPEGLSNearLossless_16.dcm
    image_dfl.dcm rtdose.dcm rtdose_rle.dcm rtdose_expb.dcm examples_overlay.dcm liver_1frame.dcm
    liver_expb_1frame.dcm"""
PACKAGE = """693_J2KR.dcm 693_UNCI.dcm JPEG-LL.dcm JPGLosslessP14SV1_1s_1f_8b.dcm MR-SIEMENS-DICOM-WithOverlays.dcm
    MR2_UNCR.dcm RG3_UNCR.dcm bad_sequence.dcm emri_small.dcm emri_small_RLE.dcm
    emri_small_big_endian.dcm emri_small_jpeg_2k_lossless.dcm emri_small_jpeg_ls_lossless.dcm
    explicit_VR-UN.dcm liver.dcm mlut_18.dcm"""
COLOUR = """SC_rgb_rle.dcm SC_rgb_rle_16bit_2frame.dcm SC_rgb_small_odd.dcm SC_rgb_small_odd_big_endian.dcm
    SC_ybr_full_422_uncompressed.dcm ExplVR_BigEnd.dcm SC_rgb_jls_lossy_line.dcm
    SC_rgb_jls_lossy_sample.dcm SC_rgb_jpeg_gdcm.dcm examples_jpeg2k.dcm GDCMJ2K_TextGBR.dcm
    SC_rgb_gdcm_KY.dcm examples_rgb_color.dcm"""
JPEG_COLOUR = (
    "SC_rgb_dcmtk_+eb+cr.dcm SC_rgb_dcmtk_+eb+cy+np.dcm SC_rgb_jpeg_dcmtk.dcm SC_rgb_small_odd_jpeg.dcm SC_rgb_jpeg.dcm"
)


def real(name: str) -> Path:
    """A file of pydicom or of the package pydicom-data."""
    try:
        found = get_testdata_file(name, download=False)
    except Exception:
        found = None
    if not found:
        pytest.skip(f"{name} is not installed (pydicom-data)")
    return Path(str(found))


def modality(pixels: Pixels) -> NDArray[np.float64]:
    """Modality values before polarity."""
    values: NDArray[np.float64] = pixels.stored * pixels.slope + pixels.intercept
    return -values if pixels.inverted else values


def display(pixels: Pixels) -> NDArray[np.float64]:
    """[0, 1] as types.Window defines it."""
    x, window = pixels.stored * pixels.slope + pixels.intercept, pixels.window
    assert window is not None
    if window.kind == "table":
        at = np.clip(np.rint(x).astype(int) - int(window.lo), 0, len(window.table) - 1)
        return np.asarray(window.table)[at]
    if window.kind == "sigmoid":
        return 1 / (1 + np.exp(-4 * (x - (window.lo + window.hi) / 2) / (window.hi - window.lo)))
    return np.clip((x - window.lo) / (window.hi - window.lo), 0, 1)


@pytest.mark.parametrize("name", f"{MONOCHROME} {PACKAGE}".split())
def test_modality_values_equal_pydicoms(name: str) -> None:
    path = real(name)
    reference = pydicom.dcmread(path)
    expected = apply_modality_lut(reference.pixel_array, reference)
    if reference.get("Modality") == "RTDOSE":  # which pydicom leaves to the reader, PS3.3 C.8.8.3
        expected = expected * float(reference.DoseGridScaling)
    found = modality(decode(path))
    assert found.shape == ((1, *expected.shape) if expected.ndim == 2 else expected.shape)
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-12)


@pytest.mark.parametrize("name", f"{COLOUR} {JPEG_COLOUR}".split())
def test_colour_is_rgb_as_pydicom_gives_it(name: str) -> None:
    path = real(name)
    reference = pydicom.dcmread(path)
    if name in JPEG_COLOUR.split():  # lossy: the same codec must be asked
        reference.pixel_array_options(decoding_plugin="pillow")
    expected = reference.pixel_array
    pixels = decode(path)
    assert pixels.stored.shape[-1] == 3
    np.testing.assert_array_equal(pixels.stored.reshape(expected.shape), expected)
    assert pixels.window is not None
    assert (pixels.window.lo, pixels.window.hi) == (0, np.iinfo(expected.dtype).max)


@pytest.mark.parametrize(
    "name", ["OBXXXX1A.dcm", "OBXXXX1A_rle_2frame.dcm", "examples_palette.dcm", "gdcm-US-ALOKA-16.dcm"]
)
def test_palettes_are_expanded(name: str) -> None:
    path = real(name)
    reference = pydicom.dcmread(path)
    expected = apply_color_lut(reference.pixel_array, reference)[..., :3] >> 8  # 16-bit entries that hold 8 bits
    found = decode(path).stored
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_big_endian_palette_equals_its_little_endian_twin() -> None:
    twins = [decode(real(n)).stored for n in ("OBXXXX1A.dcm", "OBXXXX1A_expb.dcm")]
    np.testing.assert_array_equal(*twins)


def test_twelve_bit_jpeg_is_decoded() -> None:
    pixels = decode(real("JPGExtended.dcm"))
    assert pixels.provenance["codec"] == "imagecodecs"
    lossless = pydicom.dcmread(real("JPEG-LL.dcm")).pixel_array.astype(int)  # the same picture without loss
    difference = np.abs(pixels.stored[0].astype(int) - lossless)
    assert difference.mean() < 3 and np.corrcoef(pixels.stored[0].ravel(), lossless.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "693_UNCI.dcm", "RG3_UNCR.dcm", "examples_overlay.dcm", "vlut_04.dcm"]
)
def test_display_equals_pydicoms_window(name: str) -> None:
    path = real(name)
    reference = pydicom.dcmread(path)
    values = apply_modality_lut(reference.pixel_array, reference)
    shown = apply_voi_lut(values, reference).astype(float)
    if "VOILUTSequence" in reference:
        expected = shown / (2 ** reference.VOILUTSequence[0].LUTDescriptor[2] - 1)
    else:
        ends = np.array([-(2 ** (reference.BitsStored - 1)), 2 ** (reference.BitsStored - 1) - 1])
        ends = ends if reference.PixelRepresentation else np.array([0, 2**reference.BitsStored - 1])
        low, high = ends * float(reference.get("RescaleSlope", 1)) + float(reference.get("RescaleIntercept", 0))
        expected = (shown - low) / (high - low)
    if reference.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    np.testing.assert_allclose(display(decode(path))[0], expected, atol=1e-9)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "lut", "modality lut"])
@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_twin_displays_identically(tmp_path: Path, function: str, signed: bool) -> None:
    """A file and its negative, windows mirrored by hand, give the same display values."""
    top, low = 4095, -2048 if signed else 0
    stored = (phantom().astype(np.int32) + low).astype(np.int16 if signed else np.uint16)
    mirror = top + 2 * low  # x -> mirror - x keeps the range
    twin = (mirror - stored.astype(np.int32)).astype(stored.dtype)
    one: dict[str, Any] = {"bits": 12}
    other: dict[str, Any] = {"bits": 12, "photometric": "MONOCHROME1"}
    curve = np.round(4095 * np.linspace(0, 1, 4096) ** 1.7).astype(np.uint16)
    if function == "lut":
        one["VOILUTSequence"] = [table(low, curve, 12, signed=signed)]
        other["VOILUTSequence"] = [table(mirror - top - low, (4095 - curve)[::-1], 12, signed=signed)]
    elif function == "modality lut":
        one |= {
            "ModalityLUTSequence": [table(low, curve, 12, signed=signed)],
            "WindowCenter": 2000.5,
            "WindowWidth": 3000,
        }
        reverse = table(mirror - top - low, (4095 - curve)[::-1], 12, signed=signed)
        other |= {"ModalityLUTSequence": [reverse], "WindowCenter": 4095 - 2000.5 + 1, "WindowWidth": 3000}
    else:
        centre, width = low + 1900.0, 2500.0
        one |= {"WindowCenter": centre, "WindowWidth": width, "VOILUTFunction": function}
        shift = 1 if function == "LINEAR" else 0  # LINEAR's window lies half a step off its centre
        other |= {"WindowCenter": mirror - centre + shift, "WindowWidth": width, "VOILUTFunction": function}
    first = decode(write(tmp_path / "one.dcm", stored, **one))
    second = decode(write(tmp_path / "two.dcm", twin, **other))
    assert second.inverted and not first.inverted
    assert display(first).std() > 0.1
    if function.startswith("LINEAR"):
        np.testing.assert_array_equal(display(first), display(second))
    else:  # 1 - v of a table entry, and exp, round once
        np.testing.assert_allclose(display(first), display(second), rtol=0, atol=3e-16)
    order = np.argsort(display(second).ravel())
    brighter = (second.stored * second.slope + second.intercept).ravel()[order]
    assert (np.diff(brighter[np.unique(display(second).ravel()[order], return_index=True)[1]]) > 0).all()


def test_window_functions_at_hand_computed_points(tmp_path: Path) -> None:
    stored = np.array([[0, 999, 1000, 1001], [1250, 1500, 2000, 4095]], np.uint16)
    x = stored.astype(float)
    formulas = {
        "LINEAR": np.where(x <= 1499.5 - 499.5, 0, np.where(x > 1499.5 + 499.5, 1, (x - 1499.5) / 999 + 0.5)),
        "LINEAR_EXACT": np.where(x <= 1000, 0, np.where(x > 2000, 1, (x - 1500) / 1000 + 0.5)),
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - 1500) / 1000)),
        " linear_exact ": np.clip((x - 1000) / 1000, 0, 1),  # padded, lower case
    }
    for function, expected in formulas.items():
        file = write(tmp_path / "a.dcm", stored, bits=12, WindowCenter=1500, WindowWidth=1000)
        data = pydicom.dcmread(file)
        data.add_new("VOILUTFunction", "CS", function)
        data.save_as(file)
        pixels = decode(file)
        np.testing.assert_allclose(display(pixels)[0], expected, atol=1e-12)
        assert pixels.provenance["voi_lut"] == function.strip().lower()


def test_window_of_width_one_is_a_step(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.dcm", np.array([[3998, 3999], [4000, 4001]], np.uint16), WindowCenter=4000, WindowWidth=1
    )
    np.testing.assert_array_equal(display(decode(file))[0], [[0, 0], [1, 1]])
    float32 = np.float32(4000) - np.float32(decode(file).window.lo)  # type: ignore[union-attr]
    assert float32 / np.float32(decode(file).window.hi - decode(file).window.lo) >= 1  # type: ignore[union-attr]


def test_missing_window_is_the_percentile_range_without_padding(tmp_path: Path) -> None:
    stored = phantom(shape=(64, 64)).astype(np.int16)
    stored[:16] = -2000
    pixels = decode(write(tmp_path / "a.dcm", stored, PixelPaddingValue=-2000))
    assert pixels.valid is not None
    np.testing.assert_array_equal(pixels.valid[0], stored != -2000)
    inside = np.sort(stored[16:].ravel())
    low, high = (
        inside[int(np.ceil(q * inside.size)) - 1] for q in (0.005, 0.995)
    )  # smallest value with that share below
    assert (pixels.window.lo, pixels.window.hi) == (low, high)  # type: ignore[union-attr]
    assert decode(tmp_path / "a.dcm", row={"p005": 1.0, "p995": 9.0}).window.hi == 9.0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("photometric", "shape", "inverts", "contradicts"),
    [
        ("MONOCHROME2", None, False, False),
        ("MONOCHROME2", "IDENTITY", False, False),
        ("MONOCHROME1", None, True, False),
        ("MONOCHROME1", "INVERSE", True, False),
        ("MONOCHROME2", "INVERSE", True, True),
        ("MONOCHROME1", "IDENTITY", True, True),
    ],
)
def test_polarity_is_one_inversion(
    tmp_path: Path, photometric: str, shape: str | None, inverts: bool, contradicts: bool
) -> None:
    options: dict[str, Any] = {} if shape is None else {"PresentationLUTShape": shape}
    file = write(tmp_path / "a.dcm", phantom(), photometric=photometric, WindowCenter=2000, WindowWidth=4000, **options)
    pixels, row = decode(file), DicomIntake().read(file, Limits())[0]
    assert pixels.inverted is inverts and row.columns["inverted"] is inverts
    assert ("polarity_contradiction" in row.problems) is contradicts
    plain = np.clip((phantom() - 0.0) / 3999, 0, 1)
    np.testing.assert_allclose(display(pixels)[0], 1 - plain if inverts else plain, atol=1e-9)


@pytest.mark.parametrize(
    ("bits", "high", "signed"), [(12, 11, False), (12, 11, True), (12, 15, False), (12, 15, True), (10, 12, True)]
)
def test_unused_bits_are_removed_and_sign_applied(tmp_path: Path, bits: int, high: int, signed: bool) -> None:
    rng = np.random.default_rng(bits + high)
    low = -(1 << (bits - 1)) if signed else 0
    truth = rng.integers(low, low + (1 << bits), (16, 16))
    shift = high + 1 - bits
    garbage = rng.integers(0, 1 << 16, truth.shape) & ~(((1 << bits) - 1) << shift)  # overlays, or anything else
    words = ((truth & ((1 << bits) - 1)) << shift) | garbage
    pixels = words.astype(np.uint16).view(np.int16 if signed else np.uint16)
    found = decode(write(tmp_path / "a.dcm", pixels, bits=bits, HighBit=high)).stored[0]
    np.testing.assert_array_equal(found, truth)


def test_a_high_bit_that_the_words_contradict_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.dcm", phantom(bits=12), bits=12, HighBit=15)  # values lie in the lower 12 bits
    with pytest.raises(Rejected) as caught:
        decode(file)
    assert caught.value.reason == "inconsistent_attributes"


def test_rescale_per_frame(tmp_path: Path) -> None:
    path = real("eCT_Supplemental.dcm")
    data = pydicom.dcmread(path)
    lines = []
    for at, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        item = frame.PixelValueTransformationSequence[0] if "PixelValueTransformationSequence" in frame else None
        if item is None:
            item = pydicom.Dataset()
            item.RescaleType = "HU"
            frame.PixelValueTransformationSequence = [item]
        item.RescaleSlope, item.RescaleIntercept = 1 + at, -1000 - 10 * at
        lines.append((float(item.RescaleSlope), float(item.RescaleIntercept)))
    data.save_as(tmp_path / "a.dcm")
    pixels = decode(tmp_path / "a.dcm")
    raw = data.pixel_array.astype(float)
    expected = np.stack([frame * slope + offset for frame, (slope, offset) in zip(raw, lines, strict=True)])
    np.testing.assert_allclose(modality(pixels), expected, rtol=1e-6)
    np.testing.assert_array_equal(modality(decode(tmp_path / "a.dcm", frames=range(1, 2)))[0], modality(pixels)[1])


def test_some_frames_equal_those_of_all() -> None:
    for name in ("emri_small.dcm", "emri_small_RLE.dcm", "liver.dcm", "rtdose.dcm"):
        whole = decode(real(name)).stored
        for which in (range(1, 3), range(0, len(whole), 2), range(len(whole) - 1, len(whole))):
            np.testing.assert_array_equal(
                decode(real(name), frames=which).stored, whole[which.start : which.stop : which.step]
            )


def test_float_pixels_are_read_as_they_are(tmp_path: Path) -> None:
    for dtype, name in (("<f4", "FloatPixelData"), ("<f8", "DoubleFloatPixelData")):
        values = np.linspace(-3.5, 4.25, 24).reshape(4, 6).astype(dtype)
        data = dataset(np.zeros((4, 6), np.uint16), BitsAllocated=8 * values.dtype.itemsize)
        for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            del data[keyword]
        data.add_new(name, "OF" if dtype == "<f4" else "OD", values.tobytes())
        data.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
        pixels, row = decode(tmp_path / f"{name}.dcm"), DicomIntake().read(tmp_path / f"{name}.dcm", Limits())[0]
        np.testing.assert_array_equal(pixels.stored[0], values)
        assert (row.columns["min"], row.columns["max"]) == (-3.5, 4.25)


def test_planar_configuration_and_ybr(tmp_path: Path) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1))
    file = write(tmp_path / "planes.dcm", rgb, photometric="RGB", PlanarConfiguration=1, PixelData=planes.tobytes())
    np.testing.assert_array_equal(decode(file).stored[0], rgb)
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    file = write(tmp_path / "ybr.dcm", ybr, photometric="YBR_FULL")
    found = decode(file).stored[0].astype(int)
    assert np.abs(found - rgb.astype(int)).max() <= 2  # the round trip rounds twice
    row = DicomIntake().read(file, Limits())[0]
    assert row.columns["stored_sha256"] == hashlib.sha256(ybr.astype("<i4").tobytes()).hexdigest()  # before YBR to RGB
    assert row.columns["modality_sha256"] is None


def test_hashes_and_statistics_by_hand(tmp_path: Path) -> None:
    stored = np.random.default_rng(5).integers(-1000, 2000, (20, 30)).astype(np.int16)
    stored[0, 0] = -1024
    file = write(
        tmp_path / "a.dcm", stored, bits=16, RescaleSlope="0.5", RescaleIntercept="-3", PixelPaddingValue=-1024
    )
    columns = DicomIntake().read(file, Limits())[0].columns
    values = (stored * 0.5 - 3).astype(np.float64)
    inside = values[stored != -1024]
    assert columns["stored_sha256"] == hashlib.sha256(stored.astype("<i4").tobytes()).hexdigest()
    assert columns["modality_sha256"] == hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    assert (columns["min"], columns["max"]) == (inside.min(), inside.max())
    np.testing.assert_allclose([columns["mean"], columns["std"]], [inside.mean(), inside.std()], rtol=1e-12)
    assert columns["background"] == -1024 * 0.5 - 3
    assert (columns["rows"], columns["columns"], columns["frames"], columns["spacing_mm"]) == (20, 30, 1, [0.5, 0.25])


def test_equal_pixels_hash_equally_whatever_the_syntax() -> None:
    names = [
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ]
    rows = [DicomIntake().read(real(n), Limits())[0].columns for n in names]
    assert len({r["stored_sha256"] for r in rows}) == len({r["modality_sha256"] for r in rows}) == 1
    assert [r["codec"] for r in rows] == ["native", "rle", "native", "openjpeg", "pyjpegls"]
    assert all(r["codec_version"] for r in rows)


def test_decimal_commas_and_long_numbers_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.dcm", phantom(), RescaleSlope="1.0", RescaleIntercept="100")
    raw = file.read_bytes()
    at = raw.index(b"\x28\x00\x53\x10DS\x04\x001.0 ")
    file.write_bytes(raw[:at] + b"\x28\x00\x53\x10DS\x04\x001,25" + raw[at + 12 :])
    pixels = decode(file)
    assert (pixels.slope, pixels.intercept) == (1.25, 100.0)


@pytest.mark.parametrize(
    ("syntax", "codec"), [("1.2.840.10008.1.2.4.201", "openjpeg"), ("1.2.840.10008.1.2.4.110", "imagecodecs")]
)
def test_new_syntaxes_are_lossless(tmp_path: Path, syntax: str, codec: str) -> None:
    """HTJ2K and JPEG XL, grey and (JPEG XL) colour, encoded by imagecodecs."""
    import imagecodecs

    encode = imagecodecs.htj2k_encode if codec == "openjpeg" else lambda x: imagecodecs.jpegxl_encode(x, lossless=True)
    pictures = [
        (phantom(1, (32, 48)), "MONOCHROME2"),
        (np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8), "RGB"),
    ]
    for pixels, photometric in pictures[: 1 if codec == "openjpeg" else 2]:
        stream = encode(pixels)
        known = "1.2.840.10008.1.2.4.201"  # pydicom does not write JPEG XL; the UIDs are of one length
        file = write(
            tmp_path / "a.dcm",
            pixels,
            photometric=photometric,
            syntax=known,
            fragments=[stream + b"\0" * (len(stream) % 2)],
        )
        file.write_bytes(file.read_bytes().replace(known.encode(), syntax.encode()))
        found = decode(file)
        np.testing.assert_array_equal(found.stored[0], pixels)
        assert found.provenance["codec"] == codec
