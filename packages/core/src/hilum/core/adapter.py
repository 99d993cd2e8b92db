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
BASE = "base_sha256"  # of a delta's tensors: the one that names the base
METHODS = ("attach", "trainable", "merged", "merge", "delta", "load")


class Adapter(nn.Module):
    """Base of every adapter.

    ``attach(module)`` inserts it and raises where nothing matched; ``scale`` 0 is off, so the adapted network with
    scale 0 is the reference policy; ``merged()`` is a context in which the base computes the adapted function without
    the adapter; ``merge()`` makes that permanent; ``delta()`` is what is shipped, with the base's hash.
    """

    slot: Slot = "blocks"
    scale: float = 1.0
    base: tuple[nn.Module, ...] = ()  # the adapted network; in a tuple, so that it is no submodule

    @property
    def base_sha256(self) -> str | None:
        """Hash of the base as it stands (loading a checkpoint replaces what it was built with); None before attach."""
        return state_sha256(self.base[0]) if self.base else None

    def attach(self, module: nn.Module) -> nn.Module:
        """Insert into ``module``, freeze it, remember it as ``base``, and return it."""
        raise ContractError(f"{type(self).__name__} is not an adapter", ["method attach(module)"])

    def trainable(self) -> Iterator[nn.Parameter]:
        """The adapter's own parameters."""
        yield from self.parameters()

    def merged(self) -> AbstractContextManager[None]:
        raise HilumError(f"{type(self).__name__} cannot be merged into its base")

    def merge(self) -> None:
        raise HilumError(f"{type(self).__name__} cannot be merged into its base")

    def delta(self) -> dict[str, Tensor]:
        """Own tensors by name, on the CPU, and ``base_sha256`` (32,) uint8: the base they change."""
        own = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        digest = self.base_sha256
        return own if digest is None else {**own, BASE: torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)}

    def load(self, delta: Mapping[str, Tensor], *, base_sha256: str | None = None) -> None:
        """Load a delta; refuse one of another base (``base_sha256``, where the delta does not say), kind or size."""
        told, here, name = base_sha256 or delta_base(delta), self.base_sha256, type(self).__name__
        if told is None:
            raise HilumError(
                f"this delta of a {name} does not say its base", fix="give what the adapter's delta() made"
            )
        if told != here:
            where = f"delta: {told[:12]}, base here: {here[:12] if here else 'none: attach the adapter first'}"
            fix = "load the base it was trained on (its card names it)"
            raise HilumError("this adapter was trained on other base weights", where=where, fix=fix)
        tensors, own = {k: v for k, v in delta.items() if k != BASE}, self.state_dict()
        fix = "build the adapter with the options of the one that was saved (rank, roles, tokens, ...)"
        if lost := sorted(own.keys() ^ tensors.keys()):
            counts = (
                f"{len(own.keys() - tensors.keys())} tensors are lacking, {len(tensors.keys() - own.keys())} unknown"
            )
            raise HilumError(f"this delta is not of this {name}: {counts}", where=", ".join(lost[:4]), fix=fix)
        if wrong := [k for k in own if own[k].shape != tensors[k].shape]:
            shapes = f"{tuple(tensors[wrong[0]].shape)} in the delta, {tuple(own[wrong[0]].shape)} here"
            raise HilumError(f"this delta has other shapes than this {name}", where=f"{wrong[0]}: {shapes}", fix=fix)
        self.load_state_dict(tensors)


def delta_base(delta: Mapping[str, Tensor]) -> str | None:
    """The hash of the base that a delta names."""
    return bytes(delta[BASE].tolist()).hex() if BASE in delta else None


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
