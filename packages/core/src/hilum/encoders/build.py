"""Encoders by registered name: ``timm/<model>`` and ``monai/<network>``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from hilum.core.errors import HilumError, MissingExtra, nearest
from hilum.encoders.weight_sources import timm_config
from hilum.encoders.weights import load_weights

if TYPE_CHECKING:
    from hilum.encoders.monai_net import MonaiNet
    from hilum.encoders.timm_cnn import TimmNet
    from hilum.encoders.timm_vit import TimmViT

Built: TypeAlias = "TimmViT | TimmNet | MonaiNet"
POOLING = {"cls": "token", "avg": "avg", "max": "max"}


def timm_encoder(
    name: str,
    *,
    view: Mapping[str, Any] | None = None,
    init: str = "scratch",
    img_size: int | tuple[int, int] | None = None,
    in_channels: int | None = None,
    positions: str = "learned",
    pooling: str = "auto",
    drop_path: float = 0.0,
    checkpointing: bool = False,
    mask_token: bool = False,
    **options: Any,
) -> Built:
    """A timm model by its timm name (with or without ``timm/``), without classifier, at the view's size and channels.

    ``pooling``: "cls"; "avg" (mean of patch tokens, then a new ``fc_norm`` instead of the final norm, arXiv 2210.12843;
    ``fc_norm=False`` keeps the final norm); "max" (of patch tokens, then ``fc_norm``); or "auto", the model's own. ``init`` as in
    :func:`~hilum.encoders.weights.load_weights`; its report is kept as ``encoder.report``. Further options go to timm
    (``depth``, ``embed_dim``, ``init_values``, ...). ``positions`` and ``mask_token`` are for plain ViTs.
    """
    timm = _timm(name)
    name = name.removeprefix("timm/")
    if not timm.is_model(name):
        raise HilumError(
            f"timm has no model {name!r}", fix=nearest(name, timm.list_models()) or "see timm.list_models()"
        )
    made_with: dict[str, Any] = {
        "name": f"timm/{name}",
        "img_size": img_size,
        "in_channels": in_channels,
        "positions": positions,
    }
    made_with |= {"pooling": pooling, "drop_path": drop_path, "mask_token": mask_token, **options}
    view = view or {}
    size = img_size if img_size is not None else view.get("size")
    channels = int(in_channels or view.get("channels") or 3)
    config = timm_config(name)
    kwargs = dict(options, num_classes=0, in_chans=channels)
    if drop_path:
        kwargs["drop_path_rate"] = drop_path
    if size is not None and config is not None and config.fixed_input_size:
        kwargs["img_size"] = tuple(size) if isinstance(size, list | tuple) else int(size)
    if pooling != "auto":
        if pooling not in POOLING:
            raise HilumError(f"unknown pooling {pooling!r}", fix="cls, avg, max or auto")
        kwargs["global_pool"] = POOLING[pooling]
    net = _create(timm, name, kwargs)
    mean = _per_channel(getattr(config, "mean", (0.5,)), channels)
    std = _per_channel(getattr(config, "std", (0.5,)), channels)
    encoder = _wrap(
        net,
        positions=positions,
        mask_token=mask_token,
        checkpointing=checkpointing,
        channels=channels,
        mean=mean,
        std=std,
    )
    encoder.made_with = {**made_with, "img_size": size, "in_channels": channels}
    if init != "scratch":
        load_weights(encoder, init)
    return encoder


def monai_encoder(
    name: str,
    *,
    view: Mapping[str, Any] | None = None,
    init: str = "scratch",
    spatial_dims: int | None = None,
    in_channels: int | None = None,
    **options: Any,
) -> Built:
    """A MONAI encoder by name (with or without ``monai/``); dimensions and channels come from the view."""
    from hilum.encoders.monai_net import MonaiNet

    view = view or {}
    size = view.get("size")
    dims = spatial_dims or (len(size) if isinstance(size, list | tuple) else 3 if view.get("kind") == "volume" else 2)
    channels = int(in_channels or view.get("channels") or 1)
    encoder = MonaiNet(name.removeprefix("monai/"), spatial_dims=dims, in_channels=channels, **options)
    encoder.made_with = {
        "name": f"monai/{name.removeprefix('monai/')}", "spatial_dims": dims, "in_channels": channels, **options
    }  # fmt: skip
    if init != "scratch":
        load_weights(encoder, init)
    return encoder


def build(name: str, *, view: Mapping[str, Any] | None = None, init: str = "scratch", **options: Any) -> Built:
    """The encoder of a full registered name, ``timm/...`` or ``monai/...``."""
    if name.startswith("timm/"):
        return timm_encoder(name, view=view, init=init, **options)
    if name.startswith("monai/"):
        return monai_encoder(name, view=view, init=init, **options)
    raise HilumError(f"{name!r} names no encoder family", fix="timm/<model> or monai/<network>")


def _timm(name: str) -> Any:
    try:
        import timm
        import timm.models
    except ImportError as error:
        raise MissingExtra("timm", extra="all", wanted_by=f"encoder {name}") from error
    return timm.models


def _create(timm_models: Any, name: str, kwargs: dict[str, Any]) -> Any:
    """timm's own constructor; options it does not know become an error that names them."""
    import timm

    try:
        return timm.create_model(name, **kwargs)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise HilumError(
            f"timm could not build this model: {str(error).splitlines()[0]}",
            where=f"timm/{name} with {kwargs}",
            fix="check the encoder's options and the view's size",
        ) from error


def _wrap(
    net: Any,
    *,
    positions: str,
    mask_token: bool,
    checkpointing: bool,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Built:
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    plain = isinstance(net, VisionTransformer) and type(net)._pos_embed is VisionTransformer._pos_embed
    if plain and type(net.patch_embed) is PatchEmbed and net.global_pool:
        from hilum.encoders.timm_vit import TimmViT

        return TimmViT(net, positions=positions, mask_token=mask_token, checkpointing=checkpointing, mean=mean, std=std)
    if positions != "learned" or mask_token:
        raise HilumError("positions and mask_token are options of plain vision transformers", where=type(net).__name__)
    from hilum.encoders.timm_cnn import TimmNet

    return TimmNet(net, checkpointing=checkpointing, in_channels=channels, mean=mean, std=std)


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A configuration's mean or std for another number of channels: their average, repeated."""
    values = tuple(float(v) for v in values)
    if len(values) == channels:
        return values
    return (float(torch.tensor(values, dtype=torch.float64).mean()),) * channels
