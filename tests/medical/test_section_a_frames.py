"""What a DICOM archive throws at a reader, row by row (3): several frames, long films, floats, segmentations, makers."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from fake.dicom import dataset, item, own, phantom, row, with_syntax, write
from pydicom.sequence import Sequence
from pydicom.uid import ParametricMapStorage, SegmentationStorage

from hilum.core.errors import HilumError
from hilum.core.types import Limits
from hilum.data.ledger import Rejected
from hilum.medical.dicom.decode import decode

pytestmark = pytest.mark.filterwarnings("ignore")


# -- multi-frame --------------------------------------------------------------------------------------------------------


def enhanced(path: Path, indexes: list[tuple[int, ...]], pointers: list[str], **options: Any) -> Path:
    """An enhanced file whose frames have the given dimension indexes."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    frames = []
    for index in indexes:
        place = item(ImagePositionPatient=[0.0, 0.0, 2.5 * index[-1]])
        frames.append(
            item(
                FrameContentSequence=Sequence([item(DimensionIndexValues=list(index))]),
                PlanePositionSequence=Sequence([place]),
                PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
            )
        )
    dimensions = [item(DimensionIndexPointer=Tag(tag_for_keyword(p) or 0)) for p in pointers]
    stack = np.stack([phantom(n, (8, 8)) for n in range(len(indexes))])
    return write(
        path, stack, frames=len(indexes), sop_class="1.2.840.10008.5.1.4.1.1.4.1", Modality="MR",
        DimensionIndexSequence=Sequence(dimensions), PerFrameFunctionalGroupsSequence=Sequence(frames), **options,
    )  # fmt: skip


def test_multi_frame_axes_are_named(tmp_path: Path) -> None:
    place, b_value = "ImagePositionPatient", "DiffusionBValue"
    cases = [
        ([(1, 1), (1, 2), (2, 1), (2, 2)], [b_value, place], "b_value,depth"),
        ([(1, 1), (1, 2), (1, 3)], [b_value, place], "depth"),
        ([(1, 1), (2, 1)], ["TemporalPositionIndex", place], "time"),
        ([(1, 1), (2, 1)], ["StackID", "InStackPositionNumber"], "stack"),
        ([(1, 1), (2, 1)], ["EffectiveEchoTime", place], "echo"),
    ]
    for indexes, pointers, axis in cases:
        assert row(enhanced(tmp_path / "a.dcm", indexes, pointers)).columns["frames_axis"] == axis
    stack = np.stack([phantom(n) for n in range(3)])
    assert row(write(tmp_path / "b.dcm", stack, frames=3, FrameTime=40)).columns["frames_axis"] == "time"
    assert row(write(tmp_path / "c.dcm", stack, frames=3, Modality="US")).columns["frames_axis"] == "time"
    assert row(write(tmp_path / "d.dcm", stack, frames=3, Modality="OT")).columns["frames_axis"] == "unknown"
    assert row(write(tmp_path / "e.dcm", stack[0])).columns["frames_axis"] is None
    tomosynthesis = write(
        tmp_path / "f.dcm", stack, frames=3, sop_class="1.2.840.10008.5.1.4.1.1.13.1.3", Modality="MG"
    )
    assert row(tomosynthesis).columns["frames_axis"] == "depth"
    nuclear = write(
        tmp_path / "g.dcm", np.concatenate([stack, stack[:1]]), frames=4, sop_class="1.2.840.10008.5.1.4.1.1.20",
        Modality="NM", FrameIncrementPointer=[0x00540010, 0x00540070, 0x00540080], EnergyWindowVector=[1, 1, 1, 1],
        TimeSlotVector=[1, 1, 2, 2], SliceVector=[1, 2, 1, 2],
    )  # fmt: skip
    assert row(nuclear).columns["frames_axis"] == "time,depth"
    assert row(own("rtdose.dcm")).columns["frames_axis"] == "depth"


def test_multi_frame_order_is_the_files_and_said_where_it_is_not_spatial(tmp_path: Path) -> None:
    straight = enhanced(tmp_path / "a.dcm", [(1, 1), (1, 2), (1, 3)], ["StackID", "ImagePositionPatient"])
    crooked = enhanced(tmp_path / "b.dcm", [(1, 2), (1, 1), (1, 3)], ["StackID", "ImagePositionPatient"])
    assert "frames_out_of_order" not in row(straight).problems
    assert "frames_out_of_order" in row(crooked).problems
    np.testing.assert_array_equal(decode(crooked).stored, decode(straight).stored)  # as in the file, both


def test_multi_frame_colour_keeps_time_first(tmp_path: Path) -> None:
    film = np.random.default_rng(2).integers(0, 256, (5, 6, 8, 3), np.uint8)
    file = write(tmp_path / "a.dcm", film, photometric="RGB", frames=5, Modality="US", FrameTime=33)
    assert decode(file).stored.shape == (5, 6, 8, 3)
    np.testing.assert_array_equal(decode(file, frames=range(4, 1, -2)).stored, film[4:1:-2])


@pytest.mark.slow
def test_huge_cine_is_read_frame_by_frame(tmp_path: Path) -> None:
    """3,000 frames of 128 x 128, uncompressed and RLE: one frame costs one frame."""
    frames, side = 3000, 128
    one = np.random.default_rng(0).integers(0, 4096, (side, side)).astype(np.uint16)
    head = dataset(one, frames=frames, PixelData=b"", Modality="XA", FrameTime=33)
    head.save_as(tmp_path / "head.dcm", enforce_file_format=True)
    prefix = (tmp_path / "head.dcm").read_bytes()
    assert prefix.endswith(b"\xe0\x7f\x10\x00OW\0\0\0\0\0\0")
    with (tmp_path / "native.dcm").open("wb") as out:
        out.write(prefix[:-4] + struct.pack("<I", frames * one.nbytes))
        for number in range(frames):
            out.write((one + np.uint16(number)).tobytes())
    stream = pydicom.dcmread(own("MR_small_RLE.dcm"))  # any RLE stream, 3,000 times
    piece = pydicom.encaps.get_frame(stream.PixelData, 0, number_of_frames=1)
    stream.NumberOfFrames = frames
    stream.PixelData = pydicom.encaps.encapsulate([b"\0\0"])
    stream.save_as(tmp_path / "rle-head.dcm", enforce_file_format=True)
    prefix = (tmp_path / "rle-head.dcm").read_bytes()
    at = prefix.index(b"\xe0\x7f\x10\x00")
    with (tmp_path / "rle.dcm").open("wb") as out:
        out.write(prefix[:at] + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\0\0\0\0")
        for _ in range(frames):
            out.write(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(piece)) + piece)
        out.write(b"\xfe\xff\xdd\xe0\0\0\0\0")
    program = """if True:
        import resource, sys
        from hilum.core.types import Limits
        from hilum.medical.dicom.decode import decode
        from hilum.medical.dicom.intake import DicomIntake
        decode(sys.argv[3])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = decode(sys.argv[1], frames=range(2900, 2901), row={"p005": 0, "p995": 1}).stored
        other = decode(sys.argv[2], frames=range(2900, 2901)).stored
        lazy = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        DicomIntake().read_header(__import__("pathlib").Path(sys.argv[1]), Limits())
        row = DicomIntake().read(__import__("pathlib").Path(sys.argv[1]), Limits())[0]
        whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(int(found[0, 0, 0]), other.shape[0], lazy, whole, row.status, row.columns["frames"])
    """
    files = [str(tmp_path / n) for n in ("native.dcm", "rle.dcm")] + [str(own("MR_small_RLE.dcm"))]
    done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
    first, count, lazy, whole, status, found = done.stdout.split()
    assert int(first) == (int(one[0, 0]) + 2900) & 0xFFFF
    assert (int(count), status, int(found)) == (1, "indexed", frames)
    assert int(lazy) < 16_000 and int(whole) < 250_000  # kB; the file has 98 MB, as floats 400
    with pytest.raises(Rejected) as caught:  # the frame budget
        decode(tmp_path / "native.dcm", limits=Limits(max_pixels=1 << 24))
    assert caught.value.reason == "resource_limit" and "frames=" in caught.value.what
    with pytest.raises(HilumError, match="3000 frames"):
        decode(tmp_path / "native.dcm", frames=range(2999, 3001))


# -- other pixels -------------------------------------------------------------------------------------------------------


def test_float_and_double_pixels_of_a_parametric_map(tmp_path: Path) -> None:
    for dtype, keyword in (("<f4", "FloatPixelData"), ("<f8", "DoubleFloatPixelData")):
        truth = np.linspace(-1e-3, 2.5, 48).reshape(2, 4, 6).astype(dtype)
        data = dataset(np.zeros((2, 4, 6), np.uint16), frames=2, sop_class=ParametricMapStorage)
        data.BitsAllocated = 8 * truth.dtype.itemsize
        for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            del data[name]
        setattr(data, keyword, truth.tobytes())
        data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        np.testing.assert_array_equal(decode(tmp_path / "a.dcm").stored, truth)
        np.testing.assert_array_equal(decode(tmp_path / "a.dcm", frames=range(1, 2)).stored, truth[1:])
        assert row(tmp_path / "a.dcm").columns["role"] == "image"


def test_one_bit_segmentation_is_packed_across_frames_and_a_label(tmp_path: Path) -> None:
    """5 x 7 = 35 bits a frame: frame 1 begins in the middle of byte 4 (PS3.5 8.1.1)."""
    truth = np.random.default_rng(1).integers(0, 2, (4, 5, 7), np.uint8)
    packed = np.packbits(truth.ravel(), bitorder="little").tobytes()
    refers = [item(SeriesInstanceUID=u) for u in ("1.2.3.4", "1.2.3.5")]
    file = write(
        tmp_path / "a.dcm", np.zeros((5, 7), np.uint8), frames=4, sop_class=SegmentationStorage, Modality="SEG",
        BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=packed + b"\0" * (len(packed) % 2),
        ReferencedSeriesSequence=Sequence(refers),
    )  # fmt: skip
    np.testing.assert_array_equal(decode(file).stored, truth)
    for which in (range(1, 2), range(1, 4), range(3, 0, -2)):
        np.testing.assert_array_equal(decode(file, frames=which).stored, truth[list(which)])
    about = row(file)
    assert (about.status, about.columns["role"]) == ("indexed", "label")
    assert about.identity["refers_to"] == ["1.2.3.4", "1.2.3.5"] and about.columns["modality_sha256"] is None


def test_structure_sets_are_skipped_and_linked_as_labels() -> None:
    about = row(own("rtstruct.dcm"))
    assert (about.status, about.reason, about.columns["role"]) == ("skipped", "non_image:rtstruct", "label")
    data = pydicom.dcmread(own("rtstruct.dcm"), force=True)
    expected = [
        str(series.SeriesInstanceUID)
        for frame in data.ReferencedFrameOfReferenceSequence
        for study in frame.RTReferencedStudySequence
        for series in study.RTReferencedSeriesSequence
    ]
    assert about.identity["refers_to"] == sorted(set(expected)) and expected


def test_makers_are_listed_or_nothing(tmp_path: Path) -> None:
    texts = {
        "SIEMENS": "SIEMENS", "Siemens Healthineers": "SIEMENS", "GE MEDICAL SYSTEMS": "GE", "Philips Medical": "PHILIPS",
        "FUJI PHOTO FILM Co., ltd.": "FUJIFILM", "FUJIFILM Corporation": "FUJIFILM", "Eastman Kodak Company": "KODAK",
        "Doe, Jane": None, "": None, "Gemini": None,
    }  # fmt: skip
    for text, code in texts.items():
        assert row(write(tmp_path / "a.dcm", phantom(), Manufacturer=text)).columns["vendor"] == code


def test_with_syntax_rewrites_only_the_meta_information(tmp_path: Path) -> None:
    before = write(tmp_path / "a.dcm", phantom()).read_bytes()
    after = with_syntax(tmp_path / "a.dcm", "1.2.840.10008.1.2.4.110").read_bytes()
    assert before[-phantom().nbytes :] == after[-phantom().nbytes :]
    assert pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.110"
