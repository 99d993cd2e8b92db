"""Any header over any kind of pixels, written with pydicom, comes back exactly."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake.dicom import dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hilum.core.types import Limits
from hilum.medical.dicom.decode import decode
from hilum.medical.dicom.intake import DicomIntake
from hilum.medical.dicom.stored import Stored

pytestmark = pytest.mark.filterwarnings("ignore")
SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "deflated")


@st.composite
def images(draw: st.DrawFn) -> dict[str, Any]:
    """A description of a file; pixels come from a seed, so that examples stay small to print."""
    kind = draw(st.sampled_from(("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8")))
    colour = draw(st.booleans()) and kind in ("u1", "u2")
    allocated = 8 * int(kind[1])
    stored = allocated if kind[0] == "f" or colour else draw(st.integers(max(1, allocated // 2), allocated))
    high = stored - 1 if kind[0] == "f" else draw(st.integers(stored - 1, allocated - 1))
    return {
        "kind": kind,
        "stored": stored,
        "high": high,
        "shape": draw(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))),
        "colour": colour,
        "planar": int(colour and draw(st.booleans())),
        "syntax": draw(st.sampled_from(SYNTAXES)),
        "garbage": draw(st.booleans()),
        "slope": draw(st.sampled_from((1.0, 0.25, -2.0))),
        "seed": draw(st.integers(0, 1 << 16)),
    }


def build(path: Path, about: dict[str, Any]) -> NDArray[Any]:
    """Write the file; returns the stored values that it holds."""
    rng, kind = np.random.default_rng(about["seed"]), np.dtype(about["kind"])
    shape = about["shape"] + ((3,) if about["colour"] else ())
    if kind.kind == "f":
        truth = words = rng.normal(size=shape).astype(kind)
    else:
        low = -(1 << (about["stored"] - 1)) if kind.kind == "i" else 0
        truth = rng.integers(low, low + (1 << about["stored"]), shape, dtype=np.int64)
        # Both ends are there, so that a wrong HighBit could not pass for a low one.
        truth.flat[0], truth.flat[-1] = low, low + (1 << about["stored"]) - 1
        shift, mask = about["high"] + 1 - about["stored"], (1 << about["stored"]) - 1
        raw = (truth & mask) << shift
        if about["garbage"]:
            raw |= rng.integers(0, 1 << 8 * kind.itemsize, shape, dtype=np.int64) & ~(mask << shift)
        elif shift == 0 and kind.kind == "i":
            raw = truth
        words = raw.astype(np.uint64).astype(f"u{kind.itemsize}").view(kind)
        truth = truth.astype(kind)
    syntax = "1.2.840.10008.1.2.1" if about["syntax"] == "deflated" else about["syntax"]
    lying = words.transpose(0, 3, 1, 2) if about["planar"] else words
    order = ">" if syntax == "1.2.840.10008.1.2.2" else "<"
    raw_bytes = np.ascontiguousarray(lying).astype(kind.newbyteorder(order)).tobytes()
    raw_bytes += b"\0" * (len(raw_bytes) % 2)
    data = dataset(
        words.reshape(shape), frames=about["shape"][0], syntax=syntax, bits=about["stored"], HighBit=about["high"],
        photometric="RGB" if about["colour"] else "MONOCHROME2", RescaleSlope=about["slope"], RescaleIntercept=-7,
    )  # fmt: skip
    data.PixelRepresentation = int(kind.kind == "i")
    if about["colour"]:
        data.PlanarConfiguration = about["planar"]
    if kind.kind == "f":
        for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            del data[keyword]
        setattr(data, "FloatPixelData" if kind.itemsize == 4 else "DoubleFloatPixelData", raw_bytes)
    else:
        data.PixelData = raw_bytes
        data["PixelData"].VR = "OB" if kind.itemsize == 1 else "OW"
    data.save_as(path, enforce_file_format=True)
    if about["syntax"] == "deflated":
        _deflate(path)
    return truth


def _deflate(path: Path) -> None:
    import zlib

    from fake.dicom import with_syntax

    whole = path.read_bytes()
    start = 132 + 12 + int.from_bytes(whole[140:144], "little")
    engine = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(whole[:start] + engine.compress(whole[start:]) + engine.flush())
    with_syntax(path, "1.2.840.10008.1.2.1.99")


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(about=images())
def test_any_header_over_any_pixels_round_trips(tmp_path: Path, about: dict[str, Any]) -> None:
    file = tmp_path / "a.dcm"
    truth = build(file, about)
    found = decode(file)
    np.testing.assert_array_equal(found.stored, truth)
    assert found.stored.dtype == truth.dtype
    last = range(about["shape"][0] - 1, about["shape"][0])
    np.testing.assert_array_equal(decode(file, frames=last).stored, truth[-1:])
    columns = DicomIntake().read(file, Limits())[0].columns
    kind = truth.dtype.newbyteorder("<") if truth.dtype.kind == "f" else np.dtype("<i4")
    assert columns["stored_sha256"] == hashlib.sha256(np.ascontiguousarray(truth.astype(kind)).tobytes()).hexdigest()
    if not about["colour"]:
        line = (truth.astype(np.float64) * about["slope"] - 7).astype("<f4")
        assert columns["modality_sha256"] == hashlib.sha256(line.tobytes()).hexdigest()
        assert (columns["min"], columns["max"]) == (
            (truth.astype(np.float64) * about["slope"] - 7).min(),
            (truth.astype(np.float64) * about["slope"] - 7).max(),
        )


def test_bytes_in_big_endian_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit pixels as OW in the big-endian syntax: pairs are exchanged, and an odd frame begins within one.

    Only the pairs of the frames that are asked for are read.
    """
    sizes, read = [], Stored._read
    monkeypatch.setattr(Stored, "_read", lambda self, a, b: sizes.append(b - a) or read(self, a, b))
    truth = np.random.default_rng(0).integers(0, 256, (3, 3, 5), np.uint8)
    plain = truth.tobytes() + b"\0"
    swapped = np.frombuffer(plain, ">u2").astype("<u2").tobytes()
    data = dataset(truth, frames=3, syntax="1.2.840.10008.1.2.2", PixelData=swapped)
    data["PixelData"].VR = "OW"
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert (tmp_path / "a.dcm").read_bytes().endswith(swapped)
    np.testing.assert_array_equal(decode(tmp_path / "a.dcm").stored, truth)
    sizes.clear()
    np.testing.assert_array_equal(decode(tmp_path / "a.dcm", frames=range(1, 2)).stored, truth[1:2])
    assert set(sizes) == {16}  # bytes 14 to 29, of which 15 to 29 are the frame
    np.testing.assert_array_equal(decode(tmp_path / "a.dcm", frames=range(1, 3)).stored, truth[1:])
