"""Decoded and displayed values against highdicom and SimpleITK, which share no code with the decode path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from fake.dicom import phantom, write
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from hilum.core.types import Pixels
from hilum.medical.dicom.decode import decode

pytestmark = pytest.mark.filterwarnings("ignore")
CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"


def shown(pixels: Pixels) -> NDArray[np.float64]:
    """[0, 1] by hilum's definition of a window."""
    x, window = pixels.stored * pixels.slope + pixels.intercept, pixels.window
    assert window is not None
    if window.kind == "sigmoid":
        return 1 / (1 + np.exp(-4 * (x - (window.lo + window.hi) / 2) / (window.hi - window.lo)))
    return np.clip((x - window.lo) / (window.hi - window.lo), 0, 1)


def theirs(path: Path, **options: Any) -> NDArray[np.float64]:
    image = highdicom.imread(path)
    frames: NDArray[np.float64] = image.get_frames(
        apply_real_world_transform=False, apply_modality_transform=True, **options
    )
    return frames


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_display_equals_highdicoms(tmp_path: Path, function: str, photometric: str) -> None:
    # highdicom 0.28 windows stored values, with LINEAR's half steps (PS3.3 C.11.2.1.2.1) in stored units: for another
    # slope than 1 that is not what the standard says of modality values.
    slope = 1 if function == "LINEAR" else 2
    file = write(
        tmp_path / "a.dcm", phantom(), sop_class=CT, Modality="CT", photometric=photometric, bits=12, RescaleSlope=slope,
        RescaleIntercept=-1024, WindowCenter=1000, WindowWidth=3000, VOILUTFunction=function,
    )  # fmt: skip
    expected = theirs(file, apply_voi_transform=True, apply_presentation_lut=True)
    found = shown(decode(file))
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-12)
    assert expected.std() > 0.05


def test_rescale_per_frame_equals_highdicoms(tmp_path: Path) -> None:
    frames = []
    for at in range(3):
        line, group = Dataset(), Dataset()
        line.RescaleSlope, line.RescaleIntercept, line.RescaleType = 0.5 + at, -1000 + at, "HU"
        group.PixelValueTransformationSequence = Sequence([line])
        frames.append(group)
    stack = np.stack([phantom(n) for n in range(3)])
    file = write(
        tmp_path / "a.dcm", stack, frames=3, sop_class=ENHANCED_CT, Modality="CT",
        PerFrameFunctionalGroupsSequence=Sequence(frames), SharedFunctionalGroupsSequence=Sequence([Dataset()]),
    )  # fmt: skip
    found = decode(file)
    np.testing.assert_array_equal(found.stored * found.slope + found.intercept, theirs(file))


def test_public_enhanced_ct_equals_highdicoms() -> None:
    path = get_testdata_file("eCT_Supplemental.dcm", download=False)
    if not path:
        pytest.skip("eCT_Supplemental.dcm is not installed (pydicom-data)")
    expected = theirs(Path(str(path)), apply_voi_transform=True, apply_presentation_lut=True)
    np.testing.assert_allclose(shown(decode(Path(str(path)))), expected, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "JPGExtended.dcm"]
)
def test_values_equal_simpleitks(name: str) -> None:
    sitk = pytest.importorskip(
        "SimpleITK", reason="SimpleITK is not installed: it is the other reader that values are compared with"
    )
    path = str(get_testdata_file(name, download=False))
    sitk.ProcessObject.GlobalWarningDisplayOff()
    expected = sitk.GetArrayFromImage(sitk.ReadImage(path)).astype(float)
    found = decode(path)
    np.testing.assert_array_equal(found.stored * found.slope + found.intercept, expected)
