"""Launches: a batch becomes one table, one transfer and one kernel (one more where a sample needs a level).

A level is made where the fused kernel would read more than 64 source pixels for an output pixel and channel: blocks of
4 x 4 and more, and seven-tap kernels on any block. Reading each source pixel once, and each level pixel some 16 or 64
times, is then less work than reading whole blocks anew for every tap; up to 64 reads, which caches serve, a second pass
over memory would cost more than it saves. ``shrink`` averages up to 8 x 8 pixels a pass; larger blocks are means of means.
Levels of bytes are sums in uint16, exact and half as long as float32. Nothing is cut short.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hilum.augment.draw import Draw
from hilum.augment.policy import Policy
from hilum.augment.reference import rows_of
from hilum.augment.triton import table
from hilum.core.errors import HilumError
from hilum.core.types import Meta, Ragged

try:
    import triton
    import triton.language as tl

    from hilum.augment.triton import kernels
except ImportError as error:
    raise HilumError(f"the Triton back-end needs triton ({error})", fix="pip install triton, on Linux") from error

OUTPUTS: Final = (torch.float32, torch.float16, torch.bfloat16)
BORDERS: Final = {"border": 1, "reflect": 2}  # else 0, a constant
TILE: Final = (8, 32)  # output pixels of a program: rows of a cache line or more, columns near each other
_TYPES: Final = {
    torch.uint8: tl.uint8,
    torch.uint16: tl.uint16,
    torch.int16: tl.int16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
}


@torch.no_grad()
def apply(
    images: Ragged | Tensor | Sequence[Tensor],
    draws: Sequence[Draw | Mapping[str, Any]],
    metas: Sequence[Meta],
    policy: Policy,
    *,
    view: str = "image",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """:func:`hilum.augment.reference.apply` in one kernel: (B, channels, *size) in ``dtype``, channels last.

    Images (C, H, W) of uint8, uint16, int16, float16 or float32 with any strides, on one CUDA device (on the CPU under
    ``TRITON_INTERPRET=1``). ``dtype``: float32, float16 or bfloat16, rounded to nearest even once. A batch of several
    stored types or channel counts takes a launch for each.
    """
    if not len(images) == len(draws) == len(metas):
        raise HilumError(f"{len(images)} images, {len(draws)} draws, {len(metas)} metas", where=f"view {view!r}")
    if dtype not in OUTPUTS:
        raise HilumError(f"{dtype} is not written by the Triton back-end", fix="float32, float16 or bfloat16")
    rows = list(rows_of(images))
    device = rows[0].device if rows else torch.device("cpu")
    out = torch.empty(
        (len(rows), policy.channels, *policy.size), dtype=dtype, device=device, memory_format=torch.channels_last
    )
    if math.prod(out.shape[1:]) >= 1 << 31:
        raise HilumError(f"an output of shape {tuple(out.shape[1:])} has 2^31 elements or more", where=f"view {view!r}")
    interpreted = not isinstance(kernels.fuse, triton.JITFunction)
    if rows and (device.type != "cuda") != interpreted:
        fix = "another back-end" if not interpreted else "unset TRITON_INTERPRET"
        raise HilumError(f"the Triton back-end does not run on {device} here", where=f"view {view!r}", fix=fix)
    if stray := [x.device for x in rows if x.device != device]:
        raise HilumError(f"images lie on {device} and {stray[0]}", where=f"view {view!r}", fix="move the whole batch")
    samples = [
        table.checked(b, image, draw, meta, policy, view)
        for b, (image, draw, meta) in enumerate(zip(rows, draws, metas, strict=True))
    ]
    kind = lambda s: (str(s.image.dtype), len(s.image))
    with torch.cuda.device(out.device if out.is_cuda else -1):  # kernels go to the current device
        for _, group in itertools.groupby(sorted(samples, key=kind), kind):
            _launch(list(group), out, policy, _tile if interpreted else lambda height, width: TILE)
    return out


def _tile(height: int, width: int) -> tuple[int, int]:
    """The interpreter pays by the program as much as by the pixel: as large as the picture asks for."""
    th = min(64, triton.next_power_of_2(height))
    return th, min(4096 // th, triton.next_power_of_2(width))


def _launch(
    samples: list[table.Sample], out: Tensor, policy: Policy, tile: Callable[[int, int], tuple[int, int]]
) -> None:
    channels, summed = len(samples[0].image), table.sums(samples)
    passes = [p for s in samples for p in s.read.passes]
    sizes = [-(-math.prod(p.size) * channels * (2 if summed else 4) // 16) * 16 for p in passes]
    scratch = torch.empty(sum(sizes), dtype=torch.uint8, device=out.device)
    for p, at in zip(passes, itertools.accumulate(sizes, initial=scratch.data_ptr()), strict=False):
        p.at = at
    steps = [[s for s in samples if len(s.read.passes) > k] for k in range(max(len(s.read.passes) for s in samples))]
    shrinks = [table.shrink_rows(group, k) for k, group in enumerate(steps)]
    fused, norm = table.fuse_rows(samples, policy, summed=summed)
    ends = np.cumsum([len(words) for words in (*shrinks, fused)])
    told = torch.from_numpy(np.concatenate([*shrinks, fused]))
    if out.is_cuda:
        told = told.pin_memory().to(out.device, non_blocking=True)
    source, border = _TYPES[samples[0].image.dtype], BORDERS.get(str(policy.border), 0)
    levels = (tl.uint16 if summed else tl.float32) if steps else None
    cp = triton.next_power_of_2(channels)
    for k, (group, end) in enumerate(zip(steps, ends, strict=False)):
        windows = [s.read.passes[k].size for s in group]
        th, tw = tile(*map(max, zip(*windows, strict=True)))
        tiles = max(-(-h // th) * -(-w // tw) for h, w in windows)
        read = (source, border) if k == 0 else (tl.float32, 1)
        words = told[end - len(shrinks[k]) : end]
        kernels.shrink[(tiles * len(group),)](words, tiles, *read, levels, channels, cp, th, tw)
    height, width = policy.size
    th, tw = tile(height, width)
    nearest = policy.interpolation == "nearest"
    kernels.fuse[(-(-height // th) * -(-width // tw) * len(samples),)](
        told[len(told) - len(fused) :],
        norm,
        out,
        height,
        width,
        SOURCE=source,
        BORDER=border,
        NEAREST=nearest,
        LEVELS=levels,
        CURVES=any(s.window.kind == "table" for s in samples),
        CHANNELS=channels,
        CP=cp,
        OUT_CHANNELS=policy.channels,
        OUT_CP=triton.next_power_of_2(policy.channels),
        FIRST=table.AT[policy.pointwise[0]],
        SECOND=table.AT[policy.pointwise[1]],
        THIRD=table.AT[policy.pointwise[2]],
        FOURS=width % 4 == 0 and tw % 4 == 0,
        TH=th,
        TW=tw,
        enable_fp_fusion=not nearest,  # a nearest read at a tie must round as the host does
    )
