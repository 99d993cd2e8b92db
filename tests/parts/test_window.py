"""Windows against DICOM's text, in numpy and torch."""

import numpy as np
import pytest
import torch

from hilum.core.errors import HilumError
from hilum.core.types import Window
from hilum.parts.window import apply_window


def dicom_linear(x, centre, width):
    """PS3.3 C.11.2.1.2.1 with output 0 .. 1."""
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if x > centre - 0.5 + (width - 1) / 2:
        return 1.0
    return (x - (centre - 0.5)) / (width - 1) + 0.5


@pytest.mark.parametrize(("centre", "width"), [(40, 400), (2048, 4096), (0, 100), (5, 1)])
def test_linear_is_dicoms(centre, width):
    x = np.arange(-300, 300, 7, dtype=np.int16)
    window = Window(lo=centre - 0.5 - (width - 1) / 2, hi=centre - 0.5 + (width - 1) / 2)
    expected = [dicom_linear(float(v), centre, width) for v in x]
    out = apply_window(x, window)
    assert out.dtype == np.float32
    assert np.allclose(out, expected, atol=1e-6)
    assert np.array_equal(apply_window(torch.from_numpy(x), window).numpy(), out)


def test_sigmoid():
    x, window = np.linspace(-5, 9, 31), Window(lo=-1.0, hi=3.0, kind="sigmoid")
    out = apply_window(x, window)
    assert out.dtype == np.float64
    assert np.allclose(out, 1 / (1 + np.exp(-4 * (x - 1.0) / 4.0)))


def test_table_clips_at_both_ends_and_rounds():
    window = Window(lo=10, hi=13, kind="table", table=(0.0, 0.25, 0.5, 1.0))
    out = apply_window(torch.tensor([-3.0, 10.0, 10.8, 12.0, 12.4, 99.0, float("nan")]), window)
    assert out[:-1].tolist() == [0.0, 0.0, 0.25, 0.5, 0.5, 1.0]
    assert out[-1].isnan()


@pytest.mark.parametrize("kind", ["linear", "sigmoid"])
def test_nan_stays_inverted_window_inverts(kind):
    x = torch.tensor([0.0, 2.0, float("nan")])
    up, down = apply_window(x, Window(-1, 3, kind)), apply_window(x, Window(3, -1, kind))
    assert up[2].isnan()
    assert torch.allclose(up[:2] + down[:2], torch.ones(2))
    assert apply_window(x, Window(1, 1, kind))[:2].tolist() == [0.0, 1.0]


def test_one_window_an_image_and_arrays_of_bounds():
    x = torch.rand(3, 2, 4, 4) * 100
    windows = [Window(0, 50), Window(-10, 100), Window(30, 31)]
    rows = torch.stack([apply_window(row, w) for row, w in zip(x, windows)])
    assert torch.equal(apply_window(x, windows), rows)
    lo, hi = (torch.tensor([getattr(w, f) for w in windows]).reshape(3, 1, 1, 1) for f in ("lo", "hi"))
    assert torch.equal(apply_window(x, lo=lo, hi=hi), rows)
    mixed = [Window(0, 50), Window(0, 50, "sigmoid"), Window(0, 1, "table", (0.1, 0.9))]
    assert torch.equal(apply_window(x, mixed), torch.stack([apply_window(row, w) for row, w in zip(x, mixed)]))


def test_unsigned_non_native_and_read_only_arrays():
    x = np.array([[0, 65535], [1000, 40000]], dtype=">u2")
    x.flags.writeable = False
    assert np.allclose(apply_window(x[:, ::-1], Window(0, 65535)), x[:, ::-1] / 65535)


def test_errors():
    with pytest.raises(HilumError, match="linear"):
        apply_window(torch.zeros(2), lo=0, hi=1, kind="linaer")
    with pytest.raises(HilumError, match="empty"):
        apply_window(torch.zeros(2), Window(0, 1, "table"))
    with pytest.raises(HilumError, match="2 windows for 3"):
        apply_window(torch.zeros(3, 1), [Window(0, 1), Window(0, 1)])
