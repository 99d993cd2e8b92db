"""Checks and services around the encoder contract (the Protocol itself is in ``core.types``)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from hilum.core.errors import ContractError, HilumError, Unsupported
from hilum.core.types import EncoderSpec, Site

FORWARD_ARGUMENTS = ("valid", "keep", "fill", "context", "layers", "taps", "stop")
NAMES = {"attn": ("attn", "attention"), "ffn": ("mlp",), "q": ("query",), "k": ("key",), "v": ("value",)}
SUPPORTS = frozenset({*FORWARD_ARGUMENTS, "checkpointing", "export"})


def refuse(encoder: Any, **asked: Any) -> None:
    """Raise :class:`Unsupported` for every optional argument that was given and is not in ``encoder.spec.supports``."""
    for name, value in asked.items():
        given = value is not None and not (isinstance(value, tuple | list) and len(value) == 0)
        if given and name not in encoder.spec.supports:
            raise Unsupported(
                f"{type(encoder).__name__} does not support {name}=",
                fix=f"use an encoder that does; this one supports {sorted(encoder.spec.supports) or 'none of the options'}",
            )


def check_encoder(candidate: Any, *, where: str = "") -> None:
    """Raise :class:`ContractError` naming everything that is missing of the encoder contract."""
    gaps = [] if isinstance(candidate, nn.Module) else ["must be a torch.nn.Module"]
    spec = getattr(candidate, "spec", None)
    if not isinstance(spec, EncoderSpec):
        gaps.append("attribute spec: hilum.core.types.EncoderSpec")
    else:
        if not spec.licence or spec.licence == "unknown":
            gaps.append("spec.licence (state the licence of code and weights)")
        if foreign := spec.supports - SUPPORTS:
            gaps.append(f"spec.supports knows no {sorted(foreign)}, only {sorted(SUPPORTS)}")
    forward = getattr(candidate, "forward", None)
    if not callable(forward) or getattr(type(candidate), "forward", None) is nn.Module.forward:
        gaps.append("method forward(x, *, " + ", ".join(FORWARD_ARGUMENTS) + ") -> Features")
    else:
        known = inspect.signature(forward).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        gaps += [f"forward must accept {a}=" for a in FORWARD_ARGUMENTS if a not in known and not takes_any]
    if gaps:
        raise ContractError(f"{type(candidate).__name__} is not an encoder", gaps, where=where)


def sites(module: nn.Module, role: str) -> Iterator[Site]:
    """Places of one role ("ffn" "attn" "q" "k" "v" "o" "block") in a module.

    A module tells its own through a method ``sites(role)``; known families are recognised by structure: timm-style
    blocks (``attn.qkv`` fused, ``attn.proj``, ``mlp``) and BERT-style attention (``query``, ``key``, ``value``).
    """
    own = getattr(module, "sites", None)
    if callable(own):
        yield from own(role)
        return
    if role not in ("ffn", "attn", "q", "k", "v", "o", "block"):
        raise HilumError(f"unknown site role {role!r}", fix="one of ffn attn q k v o block")
    for path, parent in module.named_modules():
        for name, child in parent.named_children():
            where = f"{path}.{name}" if path else name
            yield from _recognise(role, where, parent, name, child)


def _recognise(role: str, path: str, parent: nn.Module, name: str, child: nn.Module) -> Iterator[Site]:
    if role in ("q", "k", "v") and name == "qkv" and isinstance(child, nn.Linear):
        third, index = child.out_features // 3, "qkv".index(role)
        yield Site(path, parent, name, child, slice(index * third, (index + 1) * third))
    elif (
        name in NAMES.get(role, ())
        or (role == "block" and hasattr(child, "attn") and hasattr(child, "mlp"))
        or (role == "o" and name == "proj" and hasattr(parent, "qkv"))
    ):
        yield Site(path, parent, name, child)
