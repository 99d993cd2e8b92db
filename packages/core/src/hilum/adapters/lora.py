"""Low-rank updates of frozen linear projections, addressed by role, also inside fused qkv.

y = W x + b + scale (alpha / r) B A drop(x), A (r, d_in) Kaiming-uniform, B (d_out, r) zeros (Hu et al. 2022,
arXiv 2106.09685, equation 3; arXiv 2304.13639, module B).
"""

from __future__ import annotations

import fnmatch
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hilum.core.adapter import Adapter
from hilum.core.encoder import sites
from hilum.core.errors import HilumError, Unsupported, nearest
from hilum.core.types import Site

ROLES = ("q", "k", "v", "o", "ffn")
log = logging.getLogger(__name__)


class LowRank(nn.Module):
    """(alpha / r) B A drop(x) for x (..., d_in)."""

    def __init__(self, d_in: int, d_out: int, *, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, d_in))
        self.B = nn.Parameter(torch.zeros(d_out, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.factor, self.dropout = alpha / rank, dropout

    def forward(self, x: Tensor) -> Tensor:
        reduced = F.linear(F.dropout(x.to(self.A.dtype), self.dropout, self.training), self.A)
        return (F.linear(reduced, self.B) * self.factor).to(x.dtype)

    def weight(self) -> Tensor:
        """(d_out, d_in): what merging adds."""
        return self.B @ self.A * self.factor


@dataclass(frozen=True)
class Link:
    """One update of a projection: whose it is, and which output rows it changes."""

    adapter: LoRA
    update: LowRank
    rows: slice


class AdaptedLinear(nn.Linear):
    """A linear layer that keeps its parameter objects and state-dict keys, and adds the updates of its ``links``.

    Links are not registered: the updates belong to the adapter alone, so the base exports as it always did.
    """

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.links: list[Link] = []
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        for link in self.links:
            if link.adapter.scale != 0 and not link.adapter.is_merged:
                change = link.update(x) * link.adapter.scale
                y = y + F.pad(change, (link.rows.start, self.out_features - link.rows.stop))
        return y


class LoRA(Adapter):
    """LoRA on the projections of ``roles`` (of q k v o ffn) whose path matches the glob ``match``.

    ``alpha`` None means ``rank``, a factor of 1. Attaching freezes the base and raises where nothing matched.
    """

    slot = "blocks"

    def __init__(
        self,
        *,
        roles: Sequence[str] = ("q", "v"),
        rank: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        match: str = "*",
    ) -> None:
        super().__init__()
        for role in roles:
            if role not in ROLES:
                raise HilumError(
                    f"LoRA knows no role {role!r}", fix=nearest(role, ROLES) or "one of " + " ".join(ROLES)
                )
        if rank < 1 or not roles:
            raise HilumError(f"LoRA needs a rank of at least 1 and a role, got rank {rank} and roles {list(roles)}")
        self.roles, self.rank, self.alpha, self.dropout = tuple(roles), rank, alpha or float(rank), dropout
        self.match, self.scale, self.is_merged = match, 1.0, False
        self.updates = nn.ModuleDict()
        self.layers: list[tuple[nn.Module, str, AdaptedLinear]] = []  # (parent, name, layer), not registered

    def attach(self, module: nn.Module) -> nn.Module:
        """Replace the matching projections of ``module`` in place; returns ``module``."""
        if self.layers:
            raise HilumError("this adapter is attached already", fix="make one adapter for each network")
        found = [(role, site) for role in self.roles for site in self._linear_sites(module, role)]
        if not found:
            raise HilumError(
                f"LoRA found no projection of the roles {list(self.roles)} that matches {self.match!r}",
                where=type(module).__name__,
                fix="check roles and match; convolutional encoders have no such projections",
            )
        module.requires_grad_(False)
        self.base = (module,)
        for role, site in found:
            self._adapt(role, site)
        log.info("%s", self.summary())
        return module

    def _linear_sites(self, module: nn.Module, role: str) -> Iterator[Site]:
        for site in sites(module, role):
            inner = site.module.named_modules() if role == "ffn" else [("", site.module)]
            for name, layer in inner:
                path = f"{site.path}.{name}" if name else site.path
                if not isinstance(layer, nn.Linear) or not fnmatch.fnmatchcase(path, self.match):
                    continue
                if type(layer) not in (nn.Linear, AdaptedLinear):
                    raise Unsupported(f"LoRA cannot adapt a {type(layer).__name__}", where=path)
                parent = site.module.get_submodule(name.rpartition(".")[0]) if name else site.parent
                yield Site(path, parent, name.rpartition(".")[2] or site.name, layer, site.rows)

    def _adapt(self, role: str, site: Site) -> None:
        current = getattr(site.parent, site.name)  # an earlier role may have replaced a fused projection
        layer = current if isinstance(current, AdaptedLinear) else AdaptedLinear(current)
        rows = site.rows or slice(0, layer.out_features)
        update = LowRank(
            layer.in_features, rows.stop - rows.start, rank=self.rank, alpha=self.alpha, dropout=self.dropout
        ).to(layer.weight.device)
        self.updates[f"{site.path.replace('.', '/')}:{role}"] = update
        layer.links.append(Link(self, update, rows))
        setattr(site.parent, site.name, layer)
        if all(known is not layer for _, _, known in self.layers):
            self.layers.append((site.parent, site.name, layer))

    def summary(self) -> str:
        """What is adapted, and how many parameters that takes."""
        names = [name.replace("/", ".") for name in self.updates]
        count = sum(p.numel() for p in self.trainable())
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        return f"LoRA rank {self.rank} on {len(names)} projections ({shown}): {count:,} parameters"

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, the base's own weights compute the adapted function; afterwards they are as before, bit for bit."""
        if self.is_merged:
            yield
            return
        saved = [layer.weight.detach().clone() for _, _, layer in self.layers]
        self._add_to_weights()
        self.is_merged = True
        try:
            yield
        finally:
            self.is_merged = False
            with torch.no_grad():
                for weight, (_, _, layer) in zip(saved, self.layers, strict=True):
                    layer.weight.copy_(weight)

    def merge(self) -> None:
        """Add the updates to the base's weights for good and leave its plain layers behind."""
        if self.is_merged:
            raise HilumError("this adapter is merged already", fix="leave merged() first")
        self._add_to_weights()
        for parent, name, layer in self.layers:
            layer.links = [link for link in layer.links if link.adapter is not self]
            if not layer.links:
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
                plain.weight, plain.bias = layer.weight, layer.bias
                setattr(parent, name, plain.train(layer.training))
        self.layers = []

    @torch.no_grad()
    def _add_to_weights(self) -> None:
        for _, _, layer in self.layers:
            for link in layer.links:
                if link.adapter is self:
                    target = layer.weight[link.rows]
                    wide = torch.promote_types(target.dtype, torch.float32)  # half-precision bases add up in float32
                    target.copy_(target.to(wide) + link.update.weight().to(wide) * self.scale)
