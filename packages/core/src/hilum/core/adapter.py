"""Adapters change a frozen network by few parameters, and can be switched off, merged and shipped alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hilum.core.errors import ContractError, HilumError

Slot = Literal["input", "embedding", "blocks", "pooled"]
METHODS = ("attach", "trainable", "merged", "merge", "delta", "load")


class Adapter(nn.Module):
    """Base of every adapter.

    ``attach(module)`` inserts it and raises where nothing matched; ``scale`` 0 is off, so the adapted network with
    scale 0 is the reference policy; ``merged()`` is a context in which the base computes the adapted function without
    the adapter; ``merge()`` makes that permanent; ``delta()`` is what is shipped, with the base's hash.
    """

    slot: Slot = "blocks"
    scale: float = 1.0
    base_sha256: str | None = None

    def attach(self, module: nn.Module) -> nn.Module:
        """Insert into ``module`` and return it."""
        raise ContractError(f"{type(self).__name__} is not an adapter", ["method attach(module)"])

    def trainable(self) -> Iterator[nn.Parameter]:
        """The adapter's own parameters."""
        yield from self.parameters()

    def merged(self) -> AbstractContextManager[None]:
        raise HilumError(f"{type(self).__name__} cannot be merged into its base")

    def merge(self) -> None:
        raise HilumError(f"{type(self).__name__} cannot be merged into its base")

    def delta(self) -> dict[str, Tensor]:
        """Own tensors by name, on the CPU."""
        return {k: v.detach().cpu() for k, v in self.state_dict().items()}

    def load(self, delta: Mapping[str, Tensor], *, base_sha256: str | None = None) -> None:
        """Load a delta; refuse one made for another base."""
        if base_sha256 is not None and self.base_sha256 is not None and base_sha256 != self.base_sha256:
            where = f"delta: {base_sha256[:12]}, base here: {self.base_sha256[:12]}"
            fix = "load the base it was trained on (its card names it)"
            raise HilumError("this adapter was trained on other base weights", where=where, fix=fix)
        try:
            self.load_state_dict(dict(delta))
        except RuntimeError as error:
            raise HilumError(f"this delta is not of this {type(self).__name__}: {error}") from error


def state_sha256(module: nn.Module) -> str:
    """SHA-256 over the sorted names, dtypes, shapes and bytes of a module's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):  # a module's extra state
            digest.update(f"{name} {tensor!r}\n".encode())
            continue
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def check_adapter(candidate: Any, *, where: str = "") -> None:
    """Raise :class:`ContractError` naming everything that is missing of the adapter contract."""
    gaps = [] if isinstance(candidate, nn.Module) else ["must be a torch.nn.Module"]
    if getattr(candidate, "slot", None) not in ("input", "embedding", "blocks", "pooled"):
        gaps.append('attribute slot: "input" | "embedding" | "blocks" | "pooled"')
    scale = getattr(candidate, "scale", None)
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        gaps.append("attribute scale: float (0 = off)")
    absent = [n for n in METHODS if not callable(getattr(candidate, n, None))]
    gaps += [f"method {n} (subclass hilum.core.adapter.Adapter to inherit it)" for n in absent]
    if not gaps and isinstance(candidate, Adapter) and type(candidate).attach is Adapter.attach:
        gaps.append("method attach(module)")
    if gaps:
        raise ContractError(f"{type(candidate).__name__} is not an adapter", gaps, where=where)
