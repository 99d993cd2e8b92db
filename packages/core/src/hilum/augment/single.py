"""One image at a time, without recipe, study or loader: numpy, PIL or torch in, a tensor and what was drawn out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hilum.augment.augmenter import pixels_of, resolve_backend
from hilum.augment.draw import Draw
from hilum.augment.policy import Policy
from hilum.core.errors import HilumError
from hilum.core.types import Meta, SampleKey, Window

_MODES: Final = ("L", "I", "F", "RGB", "I;16", "I;16L", "I;16B", "I;16N")
_POLICY: Final = ("size", "channels", "mean", "std", "lateral")


def augment(
    image: Any,
    config: Mapping[str, Any],
    *,
    size: int | Sequence[int],
    seed: int = 0,
    epoch: int = 0,
    sample: int = 0,
    view: int = 0,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    channels: int | None = None,
    window: Window | tuple[float, float] | None = None,
    stats: Mapping[str, float | None] | None = None,
    train: bool = True,
    lateral: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, dict[str, Any]]:
    """(image (channels, *size) float32, its parameters for :func:`replay`, which JSON can hold).

    ``image``: numpy (H, W) or (H, W, C), PIL, or torch (C, H, W), of 1 or 3 channels. ``config`` is a recipe's ``augment``
    section (:mod:`hilum.augment.ops`). ``seed``, ``epoch``, ``sample`` and ``view`` key the draw: equal ones give equal
    images. ``window``: which values are black and white, by default 0..255 of uint8 and 0..1 of floating point;
    ``stats`` may hold ``mean`` (where contrast turns) and ``background`` (the border). ``mean`` and ``std`` normalise.
    """
    stored = stored_of(image)
    policy = Policy(
        config, size=size, channels=channels or len(stored), mean=mean, std=std, train=train, lateral=lateral
    )
    draw = policy.draw(SampleKey(seed, epoch, sample), source_size=stored.shape[1:], view=view, stats=stats)
    told = None if window is None else window if isinstance(window, Window) else Window(*window)
    params = {
        "augment": dict(config),
        "train": train,
        **{name: getattr(policy, name) for name in _POLICY},
        "window": None if told is None else asdict(told),
        "draw": draw.to_json(),
    }
    return _applied(stored, draw, policy, told, backend), params


def replay(image: Any, params: Mapping[str, Any], *, backend: str = "auto") -> Tensor:
    """The image that :func:`augment` made with these parameters, byte for byte with the same back-end; of another image
    of the same size the same view."""
    try:
        draw = Draw.from_json(params["draw"])
        about = {name: params[name] for name in _POLICY}
        policy = Policy(params["augment"], train=params["train"], **about)
        window = None if params["window"] is None else Window(**params["window"])
    except (KeyError, TypeError) as error:
        raise HilumError(f"these are no parameters of augment ({error})", where="params") from None
    return _applied(stored_of(image), draw, policy, window, backend)


def stored_of(image: Any) -> Tensor:
    """Any image as (C, H, W) in its own type."""
    if isinstance(image, Tensor):
        if image.dim() == 3 and 0 not in image.shape:
            return image
        raise HilumError(f"a tensor of shape {tuple(image.shape)} is no image", where="image", fix="(C, H, W)")
    mode = getattr(image, "mode", "")  # of PIL
    if mode and mode not in _MODES:
        raise HilumError(f"values of the mode {mode} are no brightness", where="image", fix='image.convert("RGB")')
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or 0 in array.shape or array.shape[2] not in (1, 3):
        raise HilumError(
            f"an array of shape {array.shape} is no image", where="image", fix="(H, W), (H, W, 1) or (H, W, 3)"
        )
    if array.dtype.kind not in "uif":
        raise HilumError(f"values of type {array.dtype} are no pixels", where="image", fix="integers or floating point")
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy()).permute(2, 0, 1)


def _applied(stored: Tensor, draw: Draw, policy: Policy, window: Window | None, backend: str) -> Tensor:
    chosen = resolve_backend(backend, cpu=stored.device.type == "cpu")
    about = {} if window is None else {"window": window}
    batch = pixels_of(chosen)([stored], [draw], [Meta("0", "", extra={"image": about})], policy, view="image")
    only: Tensor = batch[0]
    return only
