"""What a DICOM archive throws at a reader, row by row (1): transfer syntaxes, codecs, polarity, windows.

Expected values are computed by hand or by another library. The table goes on in test_section_a_values.py,
test_section_a_frames.py and test_section_a_files.py; slice order, duplicates, gaps, tilt, localisers and orientation
stand in test_volume*.py, zip archives in tests/data, burned-in text and private tags in test_deid*.py.
"""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from fake.dicom import fragmented, item, own, phantom, quarantined, row, table, write
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from hilum.core.errors import HilumError
from hilum.core.types import Window
from hilum.medical.dicom import codecs
from hilum.medical.dicom.decode import decode

pytestmark = pytest.mark.filterwarnings("ignore")
CT = "1.2.840.10008.5.1.4.1.1.2"


# -- transfer syntaxes, codec choice ------------------------------------------------------------------------------------


def streams() -> list[tuple[str, str, bytes, int, int]]:
    """(syntax, codec that must decode it, stream of phantom(32, 48), bits, largest error): encoders are imagecodecs'."""
    image = phantom(shape=(32, 48))
    eight = (image >> 4).astype(np.uint8)
    return [
        ("1.2.840.10008.1.2.4.50", "pillow", imagecodecs.jpeg_encode(eight, level=98), 8, 4),
        ("1.2.840.10008.1.2.4.51", "imagecodecs", imagecodecs.jpeg_encode(image, level=98, bitspersample=12), 12, 40),
        ("1.2.840.10008.1.2.4.57", "gdcm", imagecodecs.ljpeg_encode(image, bitspersample=12), 12, 0),
        ("1.2.840.10008.1.2.4.70", "gdcm", imagecodecs.ljpeg_encode(image, bitspersample=12), 12, 0),
        ("1.2.840.10008.1.2.4.80", "pyjpegls", imagecodecs.jpegls_encode(image), 16, 0),
        ("1.2.840.10008.1.2.4.81", "pyjpegls", imagecodecs.jpegls_encode(image, level=2), 16, 2),
        ("1.2.840.10008.1.2.4.90", "openjpeg", imagecodecs.jpeg2k_encode(image, level=0), 16, 0),
        ("1.2.840.10008.1.2.4.91", "openjpeg", imagecodecs.jpeg2k_encode(image, level=0), 16, 0),
        ("1.2.840.10008.1.2.4.201", "openjpeg", imagecodecs.htj2k_encode(image), 16, 0),
        ("1.2.840.10008.1.2.4.202", "openjpeg", imagecodecs.htj2k_encode(image), 16, 0),
        ("1.2.840.10008.1.2.4.203", "openjpeg", imagecodecs.htj2k_encode(image), 16, 0),
        ("1.2.840.10008.1.2.4.110", "imagecodecs", imagecodecs.jpegxl_encode(image, lossless=True), 16, 0),
        ("1.2.840.10008.1.2.4.112", "imagecodecs", imagecodecs.jpegxl_encode(image, lossless=True), 16, 0),
    ]


@pytest.mark.parametrize(("syntax", "codec", "stream", "bits", "error"), streams(), ids=lambda v: str(v)[-3:])
def test_transfer_syntaxes_compressed(
    tmp_path: Path, syntax: str, codec: str, stream: bytes, bits: int, error: int
) -> None:
    image = phantom(shape=(32, 48))
    pixels = (image >> 4).astype(np.uint8) if bits == 8 else image
    file = fragmented(tmp_path / "a.dcm", pixels, [bytes(stream)], syntax=syntax, bits=bits)
    found, about = decode(file), row(file)
    assert np.abs(found.stored[0].astype(int) - pixels).max() <= error
    assert about.status == "indexed" and about.columns["transfer_syntax"] == syntax
    assert found.provenance["codec"] == about.columns["codec"] == codec
    assert found.provenance["codec_version"] == about.columns["codec_version"] == _version(codec)


def _version(codec: str) -> str | None:
    known = {c.name: c for order in codecs.ORDER.values() for c in order}
    return known[codec].version


def test_transfer_syntaxes_uncompressed(tmp_path: Path) -> None:
    """Implicit, explicit, big endian, deflated, and GE's private one (big-endian pixels under a little-endian header)."""
    from fuzz.seeds import deflated, renamed

    image = phantom()
    files = [
        write(tmp_path / "implicit.dcm", image, syntax=ImplicitVRLittleEndian),
        write(tmp_path / "explicit.dcm", image),
        deflated(tmp_path / "deflated.dcm", image),
        renamed(tmp_path / "ge.dcm", image, ImplicitVRLittleEndian, "1.2.840.113619.5.2"),
    ]
    for file in files:
        np.testing.assert_array_equal(decode(file).stored[0], image)
        about = row(file)
        assert (about.status, about.columns["codec"]) == ("indexed", "native")
    assert row(files[3]).columns["transfer_syntax"] == "1.2.840.113619.5.2"
    twins = [decode(own(n)).stored for n in ("MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm")]
    np.testing.assert_array_equal(twins[0], twins[1])
    np.testing.assert_array_equal(twins[0], twins[2])


@pytest.mark.parametrize("headers_only", [False, True])
def test_transfer_syntaxes_that_nothing_decodes_are_named(tmp_path: Path, headers_only: bool) -> None:
    cases = {
        "1.2.840.10008.1.2.4.100": "video",
        "1.2.840.10008.1.2.4.102": "video",
        "1.2.840.10008.1.2.4.107": "video",
        "1.2.840.10008.1.2.4.94": "on a server",
        "1.2.3.4.5": "private or unknown",
    }
    for syntax, named in cases.items():
        file = fragmented(tmp_path / "a.dcm", phantom(), [b"\0\0\1\xb3"], syntax=syntax)
        reason, message = quarantined(file, headers_only=headers_only)
        assert reason == "unsupported_transfer_syntax" and named in message, syntax
        assert syntax != "1.2.3.4.5" or "1.2.3.4.5" not in message


def test_transfer_syntaxes_a_missing_codec_is_named_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = {
        "1.2.840.10008.1.2.4.110": "imagecodecs",
        "1.2.840.10008.1.2.4.51": "imagecodecs",
        "1.2.840.10008.1.2.4.80": "pyjpegls",
        "1.2.840.10008.1.2.4.90": "pylibjpeg-openjpeg",
        "1.2.840.10008.1.2.4.201": "pylibjpeg-openjpeg",
        "1.2.840.10008.1.2.4.70": "python-gdcm",
    }
    monkeypatch.setattr(codecs.Codec, "version", property(lambda self: None))
    codecs.installed.cache_clear()
    try:
        for syntax, package in packages.items():
            file = fragmented(tmp_path / "a.dcm", phantom(), [b"\xff\xd8"], syntax=syntax)
            reason, message = quarantined(file, headers_only=True)
            assert reason == "unsupported_transfer_syntax" and f"pip install {package}" in message
    finally:
        codecs.installed.cache_clear()


def test_codec_choice_does_not_follow_pydicoms_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """pydicom tries its plug-ins in its own order; a lossy file must not change with what else is installed."""
    before = decode(own("JPEGLSNearLossless_16.dcm"))
    from pydicom.pixels.decoders import JPEGLSNearLosslessDecoder

    monkeypatch.setattr(
        JPEGLSNearLosslessDecoder, "_available", dict(reversed(JPEGLSNearLosslessDecoder._available.items()))
    )
    after = decode(own("JPEGLSNearLossless_16.dcm"))
    np.testing.assert_array_equal(before.stored, after.stored)
    assert before.provenance == after.provenance and after.provenance["codec"] == "pyjpegls"


# -- polarity, windows --------------------------------------------------------------------------------------------------


def test_monochrome1_larger_is_brighter_once(tmp_path: Path) -> None:
    """4095 - x of a 12-bit image displays as x: by hand, whoever opens it, with and without a window."""
    image = phantom()
    for options in ({}, {"WindowCenter": 2048, "WindowWidth": 4096}):
        plain = decode(write(tmp_path / "a.dcm", image, bits=12, **options))
        negative = decode(
            write(tmp_path / "b.dcm", (4095 - image).astype(np.uint16), bits=12, photometric="MONOCHROME1", **options)
        )
        one = plain.stored * plain.slope + plain.intercept
        other = negative.stored * negative.slope + negative.intercept
        np.testing.assert_array_equal(np.argsort(one.ravel(), kind="stable"), np.argsort(other.ravel(), kind="stable"))
        np.testing.assert_array_equal(other, one - 4095)


def test_voi_windows_by_index_explanation_and_preset(tmp_path: Path) -> None:
    stored = (np.arange(-1024, 3072, 16, dtype=np.int16)).reshape(16, 16)
    file = write(
        tmp_path / "a.dcm", stored, sop_class=CT, Modality="CT", RescaleSlope=1, RescaleIntercept=0, RescaleType="HU",
        WindowCenter=[40, 300], WindowWidth=[400, 1500], WindowCenterWidthExplanation=["LUNG", "BONE"],
    )  # fmt: skip

    def bounds(voi: str | int) -> tuple[float, float, str]:
        window = decode(file, voi=voi).window
        assert window is not None
        return window.lo, window.hi, window.source

    assert bounds("auto") == (40 - 0.5 - 399 / 2, 40 - 0.5 + 399 / 2, "window 0 (LUNG)")
    assert bounds(1) == bounds("bone") == (300 - 0.5 - 1499 / 2, 300 - 0.5 + 1499 / 2, "window 1 (BONE)")
    assert bounds("lung")[2] == "window 0 (LUNG)"  # the file's own window of that name goes before a preset
    assert bounds("brain") == (40 - 0.5 - 79 / 2, 40 - 0.5 + 79 / 2, "preset brain")
    assert bounds("mediastinum") == (50 - 0.5 - 349 / 2, 50 - 0.5 + 349 / 2, "preset mediastinum")
    assert decode(file, voi="abdomen").provenance["window"] == "preset abdomen"
    with pytest.raises(HilumError, match="3"):
        decode(file, voi=3)
    other = write(tmp_path / "b.dcm", phantom())  # a radiograph: its values are no HU
    with pytest.raises(HilumError, match="HU"):
        decode(other, voi="brain")


def test_voi_windows_missing_in_cr_are_the_percentile_range(tmp_path: Path) -> None:
    about = row(write(tmp_path / "a.dcm", phantom(), sop_class="1.2.840.10008.5.1.4.1.1.1", Modality="CR"))
    ordered = np.sort(phantom().ravel())
    low, high = (float(ordered[int(np.ceil(q * ordered.size)) - 1]) for q in (0.005, 0.995))
    assert (about.columns["lo"], about.columns["hi"], about.columns["window"]) == (low, high, "range p0.5-p99.5")


def test_voi_lut_function_from_the_functional_group(tmp_path: Path) -> None:
    """Enhanced files state function and window per frame; values at hand-computed points."""
    stored = np.array([[0, 1000], [1500, 2000]], np.uint16)
    window = item(WindowCenter=1500, WindowWidth=1000, VOILUTFunction="SIGMOID")
    shared = item(FrameVOILUTSequence=Sequence([window]))
    found = decode(write(tmp_path / "a.dcm", stored, SharedFunctionalGroupsSequence=Sequence([shared])))
    assert found.window is not None and found.window.kind == "sigmoid" and found.provenance["voi_lut"] == "sigmoid"
    x = found.stored[0]
    shown = 1 / (1 + np.exp(-4 * (x - (found.window.lo + found.window.hi) / 2) / (found.window.hi - found.window.lo)))
    np.testing.assert_allclose(shown, [[1 / (1 + np.exp(6)), 1 / (1 + np.exp(2))], [0.5, 1 / (1 + np.exp(-2))]])


def test_voi_windows_that_differ_by_frame_are_reported(tmp_path: Path) -> None:
    stack = np.stack([phantom(1), phantom(2)])
    frames = [item(FrameVOILUTSequence=Sequence([item(WindowCenter=c, WindowWidth=100)])) for c in (100, 900)]
    file = write(tmp_path / "a.dcm", stack, frames=2, PerFrameFunctionalGroupsSequence=Sequence(frames))
    assert "window_differs_by_frame" in row(file).problems
    first, second = decode(file).window, decode(file, frames=range(1, 2)).window
    assert first is not None and second is not None
    assert (first.lo, second.lo) == (100 - 0.5 - 99 / 2, 900 - 0.5 - 99 / 2)


def test_voi_lut_sequence_or_window_is_recorded(tmp_path: Path) -> None:
    curve = (np.arange(4096) ** 2 // 4096).astype(np.uint16)
    file = write(
        tmp_path / "a.dcm", phantom(), VOILUTSequence=[table(0, curve, 12)], WindowCenter=2000, WindowWidth=500
    )
    by_table, by_window = decode(file), decode(file, voi=0)
    assert (by_table.provenance["voi_lut"], by_table.provenance["window"]) == ("lut", "voi lut 0")
    assert (by_window.provenance["voi_lut"], by_window.provenance["window"]) == ("linear", "window 0")
    assert by_table.window is not None
    np.testing.assert_allclose(np.asarray(by_table.window.table)[phantom()], curve[phantom()] / 4095)
    about = row(file)
    assert about.columns["window"] == "voi lut 0" and about.columns["voi_lut"].startswith("lut ")


def test_voi_windows_are_chosen_by_index_and_explanation(tmp_path: Path) -> None:
    options = {
        "WindowCenter": [40, 400],
        "WindowWidth": [80, 2000],
        "WindowCenterWidthExplanation": ["BRAIN", "Doe Jane"],
    }
    file = write(tmp_path / "a.dcm", phantom(), **options)
    assert decode(file).window == Window(-0.0, 79.0, source="window 0 (BRAIN)")
    second = decode(file, voi=1).window
    assert second == decode(file, voi="1").window and second is not None
    assert (second.lo, second.hi, second.source) == (-600.0, 1399.0, "window 1")  # free text is not repeated
    assert decode(file, voi="brain").window == decode(file).window
    with pytest.raises(HilumError, match="2 windows"):
        decode(file, voi=2)
    with pytest.raises(HilumError, match="no window named"):
        decode(file, voi="DOE")
    assert decode(file, voi="none").window.source == "range p0.5-p99.5"  # type: ignore[union-attr]
