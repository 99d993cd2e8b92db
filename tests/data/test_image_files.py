"""Image files: exact values, all depths, faults with their reasons, nothing of EXIF."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hilum.core.types import IndexRow, Limits
from hilum.data.image_files import ImageFilesIntake
from hilum.data.isolation import read_file

INTAKE = ImageFilesIntake()
GREY8 = np.random.default_rng(0).integers(0, 200, (12, 16), dtype=np.uint8)
GREY16 = np.random.default_rng(1).integers(300, 60000, (12, 16), dtype=np.uint16)
RGB = np.random.default_rng(2).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def read(path: Path, **limits: Any) -> IndexRow:
    return read_file(path, [INTAKE], Limits(**limits))[0]


def sha(values: Any, dtype: str) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, dtype).tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("a.png", GREY8), ("a.tif", GREY8), ("b.png", GREY16), ("b.tif", GREY16), ("c.png", RGB), ("c.tif", RGB)],
)
def test_lossless_files_keep_every_value(tmp_path: Path, name: str, pixels: Any) -> None:
    Image.fromarray(pixels).save(tmp_path / name)
    row, opened = read(tmp_path / name), INTAKE.open(tmp_path / name, {})
    assert row.status == "indexed" and (row.columns["rows"], row.columns["columns"], row.columns["frames"]) == (
        12,
        16,
        1,
    )
    np.testing.assert_array_equal(opened.stored, pixels[None])
    assert opened.stored.dtype == pixels.dtype and row.columns["bits_stored"] == 8 * pixels.dtype.itemsize
    assert row.columns["stored_sha256"] == sha(pixels, "<i4")
    assert row.columns["modality_sha256"] == (None if pixels.ndim == 3 else sha(pixels, "<f4"))
    assert (row.columns["min"], row.columns["max"]) == (pixels.min(), pixels.max())
    np.testing.assert_allclose([row.columns["mean"], row.columns["std"]], [pixels.mean(), pixels.std()], rtol=1e-12)
    assert row.columns["photometric"] == ("RGB" if pixels.ndim == 3 else "MONOCHROME2")


def test_windows_are_the_full_range_of_8_bits_and_percentiles_of_16(tmp_path: Path) -> None:
    Image.fromarray(GREY8).save(tmp_path / "a.png")
    Image.fromarray(GREY16).save(tmp_path / "b.png")
    full = INTAKE.open(tmp_path / "a.png", {}).window
    assert full is not None and (full.lo, full.hi, full.source) == (0, 255, "range full")
    ordered = np.sort(GREY16.ravel())
    expected = [ordered[int(np.ceil(q * ordered.size)) - 1] for q in (0.005, 0.995)]
    row, window = read(tmp_path / "b.png"), INTAKE.open(tmp_path / "b.png", {}).window
    assert window is not None and [window.lo, window.hi] == expected == [row.columns["lo"], row.columns["hi"]]
    assert INTAKE.open(tmp_path / "b.png", row.columns).window == window


def test_jpeg_equals_pillow_and_the_row_says_who_decoded(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", quality=90)
    np.testing.assert_array_equal(
        INTAKE.open(tmp_path / "a.jpg", {}).stored[0], np.asarray(Image.open(tmp_path / "a.jpg"))
    )
    assert read(tmp_path / "a.jpg").columns["codec"] == "pillow"


def test_palettes_bits_alpha_and_pages(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / "p.png")
    row = read(tmp_path / "p.png")
    assert row.columns["stored_sha256"] == sha(np.asarray(palette), "<i4")  # before the palette
    np.testing.assert_array_equal(INTAKE.open(tmp_path / "p.png", {}).stored[0], np.asarray(palette.convert("RGB")))
    Image.fromarray(GREY8 > 99).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(INTAKE.open(tmp_path / "bits.png", {}).stored[0], (GREY8 > 99) * np.uint8(255))
    opaque, holes = (np.dstack([RGB, np.full((12, 16), a, np.uint8)]) for a in (255, 7))
    for name, values in (("opaque.png", opaque), ("holes.png", holes)):
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(INTAKE.open(tmp_path / name, {}).stored[0], RGB)
    assert read(tmp_path / "opaque.png").problems == [] and read(tmp_path / "holes.png").problems == ["alpha_ignored"]
    pages = [Image.fromarray(GREY16 + n) for n in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert read(tmp_path / "pages.tif").columns["frames"] == 3
    np.testing.assert_array_equal(
        INTAKE.open(tmp_path / "pages.tif", {}).stored, np.stack([GREY16 + n for n in range(3)])
    )


def test_exif_is_never_copied_and_orientation_is_reported(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "Canary patient Doe", 6
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=exif)
    row, opened = read(tmp_path / "a.jpg"), INTAKE.open(tmp_path / "a.jpg", {})
    assert row.problems == ["exif_orientation"] and opened.stored.shape == (1, 12, 16, 3)
    assert "Canary" not in str(row) + str(opened)


def png_start(width: int, height: int, depth: int, colour: int) -> bytes:
    """A PNG that says its size and brings a few bytes of pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def test_faults_have_their_reasons(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(np.random.default_rng(0).integers(0, 65535, (99, 99), dtype=np.uint16)).save(tmp_path / "a.png")
    cases = {
        "cut.jpg": ((tmp_path / "a.jpg").read_bytes()[:-200], "truncated_pixels"),
        "cut.png": ((tmp_path / "a.png").read_bytes()[:9000], "truncated_pixels"),
        "bomb.png": (png_start(60000, 60000, 8, 0), "resource_limit"),
        "colour16.png": (png_start(4, 4, 16, 2), "codec_error"),
        "header.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "parse_error"),
        "text.jpg": (b"this is not a picture", "not_dicom"),
        "empty.png": (b"", "empty_file"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        row = read(tmp_path / name)
        assert (row.status, row.reason) == ("quarantined", reason), name
    assert read(tmp_path / "a.png", max_pixels=9000).reason == "resource_limit"
    Image.fromarray(np.full((9, 9), 5, np.uint8)).save(tmp_path / "flat.png")
    assert read(tmp_path / "flat.png").problems == ["constant_values"]
