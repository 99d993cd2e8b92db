"""Any other timm network behind the encoder contract: EfficientNet, ResNet, ConvNeXt, Swin ... (timm, Apache-2.0)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import group_parameters
from torch import Tensor, nn

from hilum.core.encoder import refuse
from hilum.core.errors import HilumError, Unsupported
from hilum.core.types import EncoderSpec, FeatureMap, Features
from hilum.encoders.weights import LoadReport


def channels_first(x: Tensor, channels: int, *, last: bool) -> Tensor:
    """A feature map (B, C, *grid), or (B, *grid, C) where ``last``, as (B, C, *grid)."""
    x = x.movedim(-1, 1) if last else x
    if x.shape[1] != channels:
        raise HilumError(f"a feature map of {channels} channels was expected, got {tuple(x.shape)}")
    return x


class TimmNet(nn.Module):
    """A timm network without its classifier; tokens are its last feature map, flattened row by row.

    Networks that return a sequence (mixers, EVA, distilled ViTs) keep their prefix tokens apart. ``layers`` counts the
    stages that timm lists in ``feature_info``. State-dict keys are timm's under ``net.``.
    """

    def __init__(
        self,
        net: Any,
        *,
        checkpointing: bool = False,
        in_channels: int = 3,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        licence: str = "Apache-2.0",
    ) -> None:
        super().__init__()
        self.made_with: dict[str, Any] = {}
        self.report: LoadReport | None = None
        self.net = net
        if checkpointing:
            try:
                net.set_grad_checkpointing(True)
            except (AssertionError, AttributeError) as error:
                raise Unsupported(f"timm cannot checkpoint {type(net).__name__}", fix="checkpointing: false") from error
        stages = net.feature_info if isinstance(net.feature_info, list) else net.feature_info.get_dicts()
        self.channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"
        self.spec = EncoderSpec(
            embed_dim=net.num_features,
            pooled_dim=net.head_hidden_size,
            in_channels=in_channels,
            mean=tuple(mean),
            std=tuple(std),
            layer_dims=tuple(stage["num_chs"] for stage in stages),
            num_prefix=getattr(net, "num_prefix_tokens", 0),
            licence=licence,
            supports=frozenset({"checkpointing", "export"})
            | ({"layers"} if hasattr(net, "forward_intermediates") else set()),
        )

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
        """Images (B, C, H, W) to features; only ``layers`` is supported of the options."""
        refuse(self, valid=valid, keep=keep, fill=fill, context=context, layers=layers, taps=taps, stop=stop)
        if x.ndim != 4 or x.shape[1] != self.spec.in_channels:
            raise HilumError(
                f"this encoder takes images (B, {self.spec.in_channels}, H, W), got {tuple(x.shape)}",
                fix="set the view's channels in the recipe",
            )
        y, maps = (self.net.forward_features(x), []) if not layers else self._with_layers(x, layers)
        pooled = self.net.forward_head(y, pre_logits=True).flatten(1)
        if y.ndim == 3:
            n = self.spec.num_prefix
            return Features(tokens=y[:, n:], pooled=pooled, grid=self._sequence_grid(y), prefix=y[:, :n], layers=maps)
        grid_map = channels_first(y, self.spec.embed_dim, last=self.channels_last)
        return Features(
            tokens=grid_map.flatten(2).transpose(1, 2), pooled=pooled, grid=tuple(grid_map.shape[2:]), layers=maps
        )

    def _with_layers(self, x: Tensor, layers: Sequence[int]) -> tuple[Tensor, list[FeatureMap]]:
        """The last feature map and the asked-for stages, in the asked order, from one pass."""
        total = len(self.spec.layer_dims)
        wanted = [i + total if i < 0 else i for i in layers]
        if not all(0 <= i < total for i in wanted):
            raise HilumError(f"layers {list(layers)} are not all among the {total} stages", fix=f"0 to {total - 1}")
        run = sorted({*wanted, total - 1})  # the last stage is asked for too: some networks stop at the deepest one
        y, found = self.net.forward_intermediates(x, indices=run)
        return y, [_flat(found[run.index(i)]) for i in wanted]

    def _sequence_grid(self, y_BNE: Tensor) -> tuple[int, ...] | None:
        embedding = getattr(self.net, "patch_embed", None) or getattr(self.net, "stem", None)
        grid = getattr(embedding, "grid_size", None)
        return tuple(grid) if grid and math.prod(grid) == y_BNE.shape[1] - self.spec.num_prefix else None

    # --- what optimisers ask ---

    @property
    def num_layers(self) -> int:
        """One less than the depth of the last group, so that what stands after it has depth ``num_layers + 1``."""
        return max(self._depths().values()) - 1

    def depth_of(self, name: str) -> int:
        """timm's own depth of a parameter, 0 at the input; ``name`` relative to this module."""
        return self._depths().get(name.removeprefix("net."), max(self._depths().values()))

    def _depths(self) -> Mapping[str, int]:
        if not hasattr(self, "_depth_table"):
            if not hasattr(self.net, "group_matcher"):
                raise Unsupported(
                    f"timm lists no layer order for {type(self.net).__name__}", fix="drop optim.layer_decay"
                )
            matcher = self.net.group_matcher(coarse=False)
            self._depth_table: dict[str, int] = {
                name: int(depth) for name, depth in group_parameters(self.net, matcher, reverse=True).items()
            }
        return self._depth_table

    def no_weight_decay(self) -> frozenset[str]:
        """Parameters that must not decay although they have more than one dimension."""
        own = self.net.no_weight_decay() if hasattr(self.net, "no_weight_decay") else ()
        return frozenset(f"net.{name}" for name in own)

    def load_notes(self) -> Mapping[str, Any]:
        """What a loader must know to resize: nothing here has a position table."""
        return {}


def _flat(stage: Tensor) -> FeatureMap:
    """(B, C, H, W) as a :class:`FeatureMap`."""
    return FeatureMap(stage.flatten(2).transpose(1, 2), tuple(stage.shape[2:]))
