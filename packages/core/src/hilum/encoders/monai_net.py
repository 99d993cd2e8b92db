"""Convolutional encoders of MONAI for images and volumes (MONAI, Apache-2.0), its keys under ``net.``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hilum.core.encoder import refuse
from hilum.core.errors import HilumError, MissingExtra, Unsupported, nearest
from hilum.core.types import EncoderSpec, FeatureMap, Features
from hilum.encoders.weights import LoadReport

NAMES = (
    *(f"resnet{n}" for n in (10, 18, 34, 50, 101, 152, 200)),
    *(f"densenet{n}" for n in (121, 169, 201, 264)),
    "segresnet",
)
LEVEL = re.compile(r"(?:^|\.)(?:layer|denseblock|transition|down_layers\.)(\d+)")


class MonaiNet(nn.Module):
    """``resnet*``, ``densenet*`` or the encoder of ``segresnet`` on (B, C, H, W) or (B, C, D, H, W).

    ``layers`` counts resolution levels, 0 the finest. Further options go to MONAI's constructor.
    """

    def __init__(self, name: str, *, spatial_dims: int = 3, in_channels: int = 1, **options: Any) -> None:
        super().__init__()
        self.made_with: dict[str, Any] = {}
        self.report: LoadReport | None = None
        if name not in NAMES:
            raise HilumError(
                f"there is no encoder monai/{name}", fix=nearest(name, NAMES) or "one of " + " ".join(NAMES)
            )
        if spatial_dims not in (2, 3):
            raise HilumError(f"spatial_dims is 2 or 3, not {spatial_dims}", where=f"monai/{name}")
        self.family = name.rstrip("0123456789")
        self.net = _construct(name, self.family, spatial_dims, in_channels, options)
        dims = self._level_dims()
        self.spec = EncoderSpec(
            embed_dim=dims[-1],
            pooled_dim=dims[-1],
            kind="volume" if spatial_dims == 3 else "image",
            in_channels=in_channels,
            mean=(0.5,) * in_channels,
            std=(0.5,) * in_channels,
            layer_dims=dims,
            licence="Apache-2.0",
            supports=frozenset({"layers", "export"}),
        )
        self.spatial_dims = spatial_dims

    def forward(
        self,
        x: Tensor,
        *,
        valid: Tensor | None = None,
        keep: Tensor | None = None,
        fill: Tensor | None = None,
        context: Any = None,
        layers: Sequence[int] = (),
        taps: Sequence[str] = (),
        stop: int | None = None,
    ) -> Features:
        """Only ``layers`` is supported of the options."""
        refuse(self, valid=valid, keep=keep, fill=fill, context=context, taps=taps, stop=stop)
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.spec.in_channels:
            axes = "D, H, W" if self.spatial_dims == 3 else "H, W"
            raise HilumError(f"this encoder takes (B, {self.spec.in_channels}, {axes}), got {tuple(x.shape)}")
        levels = self._levels(x)
        if not all(-len(levels) <= i < len(levels) for i in layers):
            raise HilumError(f"layers {list(layers)} are not all among the {len(levels)} levels")
        maps = [FeatureMap(m.flatten(2).transpose(1, 2), tuple(m.shape[2:])) for m in levels]
        tokens = maps[-1].tokens
        return Features(tokens=tokens, pooled=tokens.mean(1), grid=maps[-1].grid, layers=[maps[i] for i in layers])

    def _levels(self, x: Tensor) -> list[Tensor]:
        net: Any = self.net
        levels: list[Tensor] = []
        if self.family == "resnet":
            x = net.act(net.bn1(net.conv1(x)))
            x = x if net.no_max_pool else net.maxpool(x)
            levels = [x := stage(x) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]
        elif self.family == "densenet":
            for name, module in net.features.named_children():
                x = module(x)
                if name.startswith("denseblock"):
                    levels.append(x)
            levels[-1] = F.relu(x)  # after the last norm, as MONAI's classifier sees it
        else:
            _, levels = net.encode(x)
        return levels

    def _level_dims(self) -> tuple[int, ...]:
        net = self.net
        if self.family == "resnet":
            last = [list(stage[-1].children()) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]
            return tuple([c for c in children if hasattr(c, "out_channels")][-1].out_channels for children in last)
        if self.family == "densenet":
            norms = [m.norm for n, m in net.features.named_children() if n.startswith("transition")]
            return (*(norm.num_features for norm in norms), net.features.norm5.num_features)
        return tuple(net.init_filters * 2**i for i in range(len(net.down_layers)))

    @property
    def num_layers(self) -> int:
        """Number of levels; what stands after the last has depth ``num_layers + 1``."""
        return len(self.spec.layer_dims)

    def depth_of(self, name: str) -> int:
        """0 for the stem, k + 1 for level k, ``num_layers + 1`` for the rest."""
        found = LEVEL.search(name)
        if found:
            return int(found[1]) + (1 if "down_layers" in name else 0)
        return self.num_layers + 1 if "norm5" in name else 0

    def load_notes(self) -> Mapping[str, Any]:
        """What a loader must know to resize: nothing here has a position table."""
        return {}


def _construct(name: str, family: str, spatial_dims: int, in_channels: int, options: Mapping[str, Any]) -> Any:
    try:
        from monai.networks import nets
    except ImportError as error:
        raise MissingExtra("monai", extra="monai", wanted_by=f"encoder monai/{name}") from error
    try:
        if family == "resnet":
            return getattr(nets, name)(
                spatial_dims=spatial_dims, n_input_channels=in_channels, feed_forward=False, **options
            )
        if family == "densenet":
            net = getattr(nets, name)(spatial_dims=spatial_dims, in_channels=in_channels, out_channels=1, **options)
            del net.class_layers
            return net
        net = nets.SegResNet(spatial_dims=spatial_dims, in_channels=in_channels, **options)
    except TypeError as error:
        raise Unsupported(f"MONAI did not take these options: {error}", where=f"monai/{name}") from error
    for part in ("up_layers", "up_samples", "conv_final"):
        delattr(net, part)
    return net
