"""From a view's grid back onto its source: predictions of one view or of several, averaged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hilum.augment.readings import Drawn, check_how, geometry_of, matrix_of, sample_of
from hilum.augment.sampling import sample
from hilum.augment.sides import exchange, mirrored
from hilum.core.errors import HilumError
from hilum.parts import geometry as geo


def onto_source(
    prediction: Tensor, drawn: Drawn, *, how: str = "linear", swaps: Iterable[tuple[int, int]] = ()
) -> tuple[Tensor, Tensor]:
    """A view's prediction (C, h, w) -> (C, *source) float32 on the source's grid, and what share of each pixel the view
    saw (1, *source) float32 in [0, 1].

    The prediction may be coarser or finer than the view (logits of a network with a stride): it covers the same extent.
    ``linear`` goes through the minification filter where the view was enlarged; ``nearest`` takes labels, in their own
    dtype. Flips, quarter turns and whole-pixel crops come back exactly. ``swaps``: channels that exchange their meaning
    (left lung, right lung) when the view was mirrored left-right. Unseen pixels are 0.
    """
    where = sample_of("onto_source", drawn)
    check_how(how, ("nearest", "linear"), where)
    geometry = geometry_of(drawn, where)
    d = len(geometry.size)
    if prediction.dim() != d + 1 or 0 in prediction.shape:
        raise HilumError(
            f"a prediction of shape {tuple(prediction.shape)} for a view of {tuple(geometry.size)}",
            where=where,
            fix="(C, h, w) of one view",
        )
    if mirrored(matrix_of(geometry)):
        prediction = exchange(prediction, swaps)
    grid = prediction.shape[1:]
    matrix = geo.invert(geo.compose(matrix_of(geometry), geo.crop_resize(grid, (0.0,) * d, geometry.size)))
    if how == "nearest":
        inside = sample(prediction.new_ones((1, *grid), dtype=torch.uint8), matrix, geometry.source_size, nearest=True)
        read = sample(prediction, matrix, geometry.source_size, nearest=True)
        return read, inside.to(torch.float32)
    seen = sample(prediction.new_ones((1, *grid), dtype=torch.float32), matrix, geometry.source_size)
    read = sample(prediction, matrix, geometry.source_size)
    known = seen > 1e-6
    return torch.where(known, read / torch.where(known, seen, 1.0), 0.0), torch.where(known, seen, 0.0)


def average(
    predictions: Sequence[Tensor], draws: Sequence[Drawn], *, swaps: Iterable[tuple[int, int]] = ()
) -> tuple[Tensor, Tensor]:
    """Predictions (C, h_v, w_v) of several views of one source -> their mean (C, *source) float32 on its grid, each pixel
    weighted by what its view saw of it, and the sum of these weights (1, *source); pixels that no view saw are 0.

    Average probabilities or physical values. Labels cannot be averaged: turn them into one channel a class first.
    """
    if not len(predictions) == len(draws) > 0:
        raise HilumError(f"{len(predictions)} predictions and {len(draws)} draws", where="average")
    swaps = tuple(swaps)
    sources = {tuple(geometry_of(drawn, "average").source_size) for drawn in draws}
    if len(sources) > 1 or len({len(p) for p in predictions}) > 1:
        shapes = [tuple(p.shape) for p in predictions]
        raise HilumError(
            f"views of sources of {sorted(sources)} pixels, predictions of {shapes}",
            where=sample_of("average", draws[0]),
            fix="average views of one image only, with the same channels",
        )
    for prediction, drawn in zip(predictions, draws, strict=True):
        if not prediction.dtype.is_floating_point:
            raise HilumError(
                f"labels ({prediction.dtype}) cannot be averaged", where=sample_of("average", drawn), fix="one-hot"
            )
    source, like = next(iter(sources)), predictions[0]
    total = torch.zeros((len(like), *source), dtype=torch.float64, device=like.device)
    weight = torch.zeros((1, *source), dtype=torch.float64, device=like.device)
    for prediction, drawn in zip(predictions, draws, strict=True):
        value, seen = onto_source(prediction, drawn, swaps=swaps)
        total, weight = total + value.double() * seen, weight + seen  # in float64 equal views average to one
    known = weight > 0
    mean = torch.where(known, total / torch.where(known, weight, 1.0), 0.0)
    return mean.to(torch.float32), weight.to(torch.float32)
