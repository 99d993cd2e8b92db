"""One small file a transfer syntax and object type: pydicom's own where it has one, generated where it has none."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from fake.dicom import dataset, fragmented, phantom, table, with_syntax, write
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    KeyObjectSelectionDocumentStorage,
    SegmentationStorage,
    TwelveLeadECGWaveformStorage,
)

LARGEST = 50_000
SHIPPED = """MR_small.dcm MR_small_implicit.dcm MR_small_bigendian.dcm MR_small_RLE.dcm MR_small_jp2klossless.dcm
    MR_small_jpeg_ls_lossless.dcm CT_small.dcm JPEGLSNearLossless_16.dcm SC_rgb_jpeg_dcmtk.dcm
    SC_rgb_small_odd_big_endian.dcm SC_rgb_rle_16bit_2frame.dcm SC_ybr_full_422_uncompressed.dcm rtdose_rle.dcm
    rtdose.dcm rtplan.dcm rtstruct.dcm reportsi.dcm test-SR.dcm liver_1frame.dcm JPGExtended.dcm
    examples_palette.dcm no_meta.dcm ExplVR_BigEndNoMeta.dcm GDCMJ2K_TextGBR.dcm nested_priv_SQ.dcm"""

_JPEG = "1.2.840.10008.1.2.4"
TWINS = {  # a syntax -> the seed of a narrower one, whose stream is valid in both
    "57": "made-02.dcm",  # any predictor, the first one (.70) among them
    "91": "made-03.dcm",  # reversible (.90) or not
    "112": "made-jpegxl.dcm",  # lossless (.110) or not
    "202": "made-00.dcm",  # lossless (.201) in the progression RPCL, which is the encoder's
    "203": "made-00.dcm",  # lossless (.201) or not
}


def write_seeds(folder: Path) -> list[Path]:
    """Files of at most LARGEST bytes, alike on every machine."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED.split():
        found = Path(str(get_testdata_file(name, download=False)))
        if found.stat().st_size <= LARGEST:
            (folder / name).write_bytes(found.read_bytes())
    directory = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent / "dicomdirtests" / "DICOMDIR"
    (folder / "DICOMDIR").write_bytes(directory.read_bytes())
    for number, (pixels, options) in enumerate(_generated()):
        write(folder / f"made-{number:02d}.dcm", pixels, **options)
    deflated(folder / "made-deflated.dcm", phantom())
    renamed(folder / "made-ge.dcm", phantom(), ImplicitVRLittleEndian, "1.2.840.113619.5.2")
    small = phantom(shape=(32, 48))
    grey = (small >> 4).astype(np.uint8)
    fragmented(folder / "made-jpegxl.dcm", small, [_encoded("jpegxl", small)], syntax=f"{_JPEG}.110")
    fragmented(folder / "made-111.dcm", grey, [_encoded("recompressed", grey)], syntax=f"{_JPEG}.111")
    for tail, twin in TWINS.items():
        (folder / f"made-{tail}.dcm").write_bytes((folder / twin).read_bytes())
        with_syntax(folder / f"made-{tail}.dcm", f"{_JPEG}.{tail}")
    return sorted(f for f in folder.iterdir() if f.stat().st_size <= LARGEST)


def _encoded(codec: str, pixels: Any) -> bytes:
    import imagecodecs

    if codec == "jpegxl":
        return bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))
    if codec == "recompressed":
        return bytes(imagecodecs.jpegxl_encode_jpeg(imagecodecs.jpeg_encode(pixels, level=95)))
    if codec == "htj2k":
        return bytes(imagecodecs.htj2k_encode(pixels))
    if codec == "jpeg12":
        return bytes(imagecodecs.jpeg_encode(pixels, level=95, bitspersample=12))
    if codec == "ljpeg":
        return bytes(imagecodecs.ljpeg_encode(pixels, bitspersample=12))
    return bytes(imagecodecs.jpeg2k_encode(pixels, level=0))


def _generated() -> list[tuple[Any, dict[str, Any]]]:
    small = phantom(shape=(32, 48))
    colour = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    bits = np.packbits(np.random.default_rng(1).integers(0, 2, (3, 5, 7), np.uint8).ravel(), bitorder="little")
    seg = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "Rows": 5, "Columns": 7, "NumberOfFrames": 3}
    reference = Dataset()
    reference.SeriesInstanceUID = "1.2.3.4"
    return [
        (small, {"syntax": "1.2.840.10008.1.2.4.201", "fragments": [_even(_encoded("htj2k", small))]}),
        (small, {"syntax": JPEGExtended12Bit, "bits": 12, "fragments": [_even(_encoded("jpeg12", small))]}),
        (small, {"syntax": JPEGLosslessSV1, "bits": 12, "fragments": [_even(_encoded("ljpeg", small))]}),
        (small, {"syntax": JPEG2000Lossless, "bits": 16, "fragments": [_even(_encoded("jpeg2k", small))]}),
        (colour, {"photometric": "YBR_FULL"}),
        (colour, {"photometric": "RGB", "PlanarConfiguration": 1}),
        (np.zeros((14, 1), np.uint8), {**seg, "sop_class": SegmentationStorage, "PixelData": bits.tobytes() + b"\0",
                                       "ReferencedSeriesSequence": [reference]}),
        (small, {"ModalityLUTSequence": [table(0, np.arange(4096), 16)], "VOILUTSequence": [table(0, np.arange(4096), 12)]}),
        (None, {"sop_class": EncapsulatedPDFStorage, "EncapsulatedDocument": b"%PDF-1.4\n%%EOF\n"}),
        (None, {"sop_class": KeyObjectSelectionDocumentStorage}),
        (None, {"sop_class": TwelveLeadECGWaveformStorage, "WaveformSequence": [reference]}),
        (None, {"sop_class": GrayscaleSoftcopyPresentationStateStorage}),
        (np.stack([small] * 4), {"frames": 4, "FrameTime": 40}),
    ]  # fmt: skip


def _even(stream: bytes) -> bytes:
    return stream + b"\0" * (len(stream) % 2)


def deflated(path: Path, pixels: Any) -> Path:
    """A file in the deflated syntax (PS3.5 A.5)."""
    plain = write(path, pixels, syntax=ExplicitVRLittleEndian).read_bytes()
    start = 132 + 12 + int.from_bytes(plain[140:144], "little")
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = engine.compress(plain[start:]) + engine.flush()
    head = dataset(pixels, syntax=DeflatedExplicitVRLittleEndian)
    head.save_as(path, enforce_file_format=True)
    whole = path.read_bytes()
    meta = whole[: 132 + 12 + int.from_bytes(whole[140:144], "little")]
    path.write_bytes(meta + body + b"\0" * (len(body) % 2))
    return path


def renamed(path: Path, pixels: Any, syntax: str, name: str, *, swap: bool = True) -> Path:
    """GE's private syntax: an implicit little-endian header before big-endian pixels."""
    data = dataset(pixels, syntax=syntax)
    if swap:
        data.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    data.save_as(path, enforce_file_format=True)
    return with_syntax(path, name)
