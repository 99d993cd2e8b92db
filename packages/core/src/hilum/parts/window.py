"""Windows: how modality values become display values in [0, 1] (see :class:`hilum.core.types.Window`).

Source: DICOM PS3.3 C.11.2.1 (linear, sigmoid, VOI look-up table).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilum.core.errors import HilumError, nearest
from hilum.core.types import Window

KINDS = ("linear", "sigmoid", "table")


@overload
def apply_window(x: Tensor, window: Window | Sequence[Window] | None = None, **fields: Any) -> Tensor: ...
@overload
def apply_window(
    x: NDArray[Any], window: Window | Sequence[Window] | None = None, **fields: Any
) -> NDArray[np.floating[Any]]: ...
def apply_window(x: Any, window: Window | Sequence[Window] | None = None, **fields: Any) -> Any:
    """Values of any shape and dtype -> [0, 1], float64 if ``x`` is, else float32; NaN stays NaN.

    ``window``: one for all of ``x``, or one for each ``x[b]``. Instead of it, ``lo``, ``hi`` (numbers or arrays that
    broadcast against ``x``), ``kind`` and ``table``. ``hi == lo`` is DICOM's window of width 1: a step just above
    ``lo``. ``hi < lo`` displays inverted.
    """
    if isinstance(x, np.ndarray):
        values = np.ascontiguousarray(x, np.float64 if x.dtype == np.float64 else np.float32)
        return apply_window(torch.from_numpy(values), window, **fields).numpy()
    if not x.is_floating_point() or x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if isinstance(window, Window):
        return _apply(x, window.lo, window.hi, window.kind, window.table)
    if window is None:
        return _apply(x, **fields)
    if len(window) != len(x):
        raise HilumError(f"{len(window)} windows for {len(x)} images")
    if {w.kind for w in window} <= {"linear"}:
        shape = (-1, *[1] * (x.dim() - 1))
        lo, hi = (x.new_tensor([getattr(w, f) for w in window]).reshape(shape) for f in ("lo", "hi"))
        return _apply(x, lo, hi)
    return torch.stack([apply_window(row, w) for row, w in zip(x, window, strict=True)])


def _apply(x: Tensor, lo: Any, hi: Any, kind: str = "linear", table: Sequence[float] | Tensor = ()) -> Tensor:
    low = torch.as_tensor(lo, dtype=x.dtype, device=x.device)
    width = torch.as_tensor(hi, dtype=x.dtype, device=x.device) - low
    if kind == "table":
        entries = torch.as_tensor(table, dtype=x.dtype, device=x.device)
        if not len(entries):
            raise HilumError("a window of kind 'table' has an empty table")
        at = (x.round() - low).clamp(0, len(entries) - 1)
        return torch.where(at.isnan(), at, entries[at.nan_to_num().long()])
    if kind not in KINDS:
        raise HilumError(f"unknown window kind {kind!r}", fix=nearest(kind, KINDS) or f"one of {KINDS}")
    step = torch.where(x.isnan(), x, (x > low).to(x.dtype))
    safe = torch.where(width == 0, torch.ones_like(width), width)
    if kind == "linear":
        return torch.where(width == 0, step, ((x - low) / safe).clamp(0, 1))
    return torch.where(width == 0, step, torch.sigmoid(4.0 * (x - low - 0.5 * width) / safe))
