"""Samples to one batch of plain tensors; what does not fit the others is named, not dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hilum.core.errors import HilumError
from hilum.core.types import BadSample, Batch, Ragged, Sample, Tokenizer, View

_WIDER = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64}


def collate(samples: Sequence[Sample | BadSample], *, tokenizers: Mapping[str, Tokenizer] | None = None) -> Batch:
    """A batch of the good samples, with the others in ``bad``; ``size + len(bad)`` is the number given.

    Views of equal shape stack. Images (C,H,W) and volumes (C,D,H,W) of different size pack into a Ragged
    ((sum of pixels, C), ``grid`` (B,2) or (B,3)), rows (N,...) of different length into a Ragged without grid.
    Different dtypes meet in one that holds both, grey beside colour becomes colour. Text is tokenised by
    ``tokenizers[view]``. Targets stack; ``valid`` is False where one is NaN (floats) or negative (whole numbers), which
    then reads 0. A sample whose views or targets differ in kind from those of most others is bad.
    """
    bad = [s for s in samples if isinstance(s, BadSample)]
    good = [s for s in samples if isinstance(s, Sample)]
    kinds = [_kind(s) for s in good]
    usual = Counter(kinds).most_common(1)[0][0] if kinds else None
    message = "its views or targets differ in kind from the other samples'"
    bad += [
        BadSample(s.meta.sample_id, "inconsistent", message) for s, k in zip(good, kinds, strict=True) if k != usual
    ]
    good = [s for s, k in zip(good, kinds, strict=True) if k == usual]
    batch = Batch({}, meta=[s.meta for s in good], bad=bad)
    for name in good[0].views if good else ():
        values = [s.views[name] for s in good]
        if isinstance(values[0], Tensor):
            batch.views[name] = _join(values)
        else:
            batch.views[name], batch.valid[name] = _tokens(name, values, tokenizers or {})
    for name in good[0].targets if good else ():
        batch.targets[name], batch.valid[name] = _target(torch.stack([s.targets[name] for s in good]))
    return batch


def _kind(sample: Sample) -> tuple[Any, ...]:
    """What samples of one batch must share: names, dimensions, widths."""
    views = [(n, _view_kind(v)) for n, v in sorted(sample.views.items())]
    targets = [(n, tuple(t.shape), t.dtype) for n, t in sorted(sample.targets.items())]
    return (*views, *targets)


def _view_kind(view: Any) -> tuple[Any, ...]:
    if not isinstance(view, Tensor):
        return ("text", len(view) if isinstance(view, list) else None)
    if view.ndim in (3, 4):
        return ("image", view.ndim, view.shape[0] if view.shape[0] not in (1, 3) else 1)
    return ("rows", view.ndim, tuple(view.shape[1:]))


def _join(values: list[Tensor]) -> View:
    if len({v.dtype for v in values}) > 1:
        wide = [v.to(_WIDER.get(v.dtype, v.dtype)) for v in values]
        common = wide[0].dtype
        for value in wide[1:]:
            common = torch.promote_types(common, value.dtype)
        values = [v.to(common) for v in wide]
    image = values[0].ndim in (3, 4)
    if image and len({v.shape[0] for v in values}) > 1:
        values = [v if v.shape[0] == 3 else v.expand(3, *v.shape[1:]) for v in values]
    if len({v.shape for v in values}) == 1:
        return torch.stack(values)
    if not image:
        return Ragged.of(values)
    return Ragged.of([v.flatten(1).T for v in values], grid=[tuple(v.shape[1:]) for v in values])


def _tokens(name: str, values: list[Any], tokenizers: Mapping[str, Tokenizer]) -> tuple[Tensor, Tensor]:
    """Ids and validity, (B,S) of strings or (B,M,S) of lists of M strings."""
    if name not in tokenizers:
        raise HilumError(f"the text view {name!r} has no tokenizer", fix="name the encoder whose tokenizer reads it")
    several = isinstance(values[0], list)
    ids, valid, _ = tokenizers[name]([t for v in values for t in v] if several else values)
    return (
        (ids.view(len(values), -1, ids.shape[-1]), valid.view(len(values), -1, ids.shape[-1]))
        if several
        else (ids, valid)
    )


def _target(target: Tensor) -> tuple[Tensor, Tensor]:
    if target.dtype == torch.bool:
        return target, torch.ones_like(target)
    valid = ~target.isnan() if target.is_floating_point() else target >= 0
    return target.masked_fill(~valid, 0), valid
