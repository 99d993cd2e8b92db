"""Loading weights into encoders: by name, with positions and input channels fitted, and a report of what went where."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hilum.core.adapter import state_sha256
from hilum.core.errors import HilumError
from hilum.core.types import EncoderSpec
from hilum.encoders.exported import describe, load_exported, save_exported
from hilum.encoders.weight_sources import Weights, read_weights
from hilum.parts.positions import resize_positions

__all__ = ["LoadReport", "describe", "load_exported", "load_weights", "save_exported"]

ENOUGH = 0.6  # share of an encoder's parameters that a checkpoint must fill
Fitted = tuple[Tensor, bool]  # a tensor of the wanted shape, and whether it had to be changed


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Names of the encoder's tensors (``unexpected``: of the checkpoint's) by what became of them."""

    matched: tuple[str, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    source: str
    sha256: str | None = None

    def __str__(self) -> str:
        lines = [f"weights from {self.source}" + (f" (sha256 {self.sha256[:12]})" if self.sha256 else "")]
        for kind in ("matched", "resized", "missing", "unexpected"):
            names: tuple[str, ...] = getattr(self, kind)
            examples = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"  {kind:<10} {len(names):>5}" + (f"  {examples}" if names else ""))
        return "\n".join(lines)


class Loadable(Protocol):
    """An encoder that remembers what was loaded."""

    spec: EncoderSpec
    report: LoadReport | None

    def load_notes(self) -> Mapping[str, Any]: ...


def load_weights(encoder: nn.Module, init: str, *, allow_partial: bool = False) -> LoadReport:
    """Fill ``encoder`` from ``init`` and note source, hash, licence and normalisation in its ``spec``.

    ``init``: "scratch" | a file (.safetensors, or .pt .pth .bin .ckpt holding tensors and plain values; ``FILE#part``
    for one of several networks) | a folder of exported modules | a run (``RUN``, ``RUN#name``) | ``pretrained`` or a
    timm name with tag (needs the network) | ``package:efficientnet-lite0``.

    Position tables are resized bicubically, the first convolution is summed (or spread) over input channels, classifier
    keys are left aside. Raises where shapes differ otherwise, or where fewer than 60 % of the encoder's parameters are
    filled; ``allow_partial`` reports instead.
    """
    state = encoder.state_dict()
    keep = cast("Loadable", encoder)
    if init == "scratch":
        keep.report = LoadReport((), (), tuple(state), (), "random initialisation")
        return keep.report
    weights = read_weights(init, encoder=encoder)
    named, unexpected = _by_order(weights, state) if weights.ordered else _by_name(weights.tensors, state)
    notes = keep.load_notes()
    fitted = {name: fit(name, tensor, state[name], notes=notes, card=weights.card) for name, tensor in named.items()}
    wrong = [n for n, f in fitted.items() if f is None]
    good = {n: f for n, f in fitted.items() if f is not None}
    report = LoadReport(
        matched=tuple(n for n, (_, changed) in good.items() if not changed),
        resized=tuple(n for n, (_, changed) in good.items() if changed),
        missing=tuple(n for n in state if n not in good),
        unexpected=tuple(unexpected),
        source=weights.source,
        sha256=weights.sha256 or _sha256_of(weights.tensors),
    )
    if not allow_partial:
        _refuse_wrong_shapes(wrong, named, state, report)
        _refuse_too_few(encoder, good, report)
    with torch.no_grad():
        for name, (tensor, _) in good.items():
            state[name].copy_(tensor)
    keep.report, keep.spec = report, _spec_with(keep.spec, weights, report)
    return report


def fit(
    name: str, tensor: Tensor, wanted: Tensor, *, notes: Mapping[str, Any], card: Mapping[str, Any]
) -> Fitted | None:
    """``tensor`` in the shape of ``wanted``, or None where there is no sound way."""
    if name == notes.get("positions") and tensor.ndim == 3 and tensor.shape[2] == wanted.shape[2]:
        return fit_positions(tensor, notes, grid=(card.get("input") or {}).get("grid"))
    if tensor.shape == wanted.shape:
        return tensor, False
    if tensor.ndim >= 4 and tensor.ndim == wanted.ndim:
        return fit_channels(tensor, wanted)
    return None


def fit_positions(table: Tensor, notes: Mapping[str, Any], *, grid: Sequence[int] | None) -> Fitted | None:
    """A position table for the grid in ``notes``; its own ``grid`` is taken to be square where no card tells it."""
    prefix, new = int(notes["prefix"]), tuple(notes["grid"])
    side = math.isqrt(max(table.shape[1] - prefix, 0))
    same = grid is None and table.shape[1] == prefix + math.prod(new)
    old = new if same else tuple(grid or (side, side))
    if prefix + math.prod(old) != table.shape[1]:
        return None
    return resize_positions(table, old_grid=old, new_grid=new, prefix=prefix), old != new


def fit_channels(kernel: Tensor, wanted: Tensor) -> Fitted | None:
    """A first convolution (O, C, ...) for another number of input channels.

    To one channel: the sum over C, so that a grey image gives what its copy on all channels gave. From one channel to
    C: spread evenly. Otherwise: repeated and scaled by C_old / C_new.
    """
    (old, new), rest = (kernel.shape[1], wanted.shape[1]), (0, *range(2, kernel.ndim))
    if any(kernel.shape[i] != wanted.shape[i] for i in rest) or not (old in (1, 3) or new == 1):
        return None
    kernel = kernel.float()
    if new == 1:
        return kernel.sum(1, keepdim=True), True
    repeated = (
        kernel.repeat_interleave(new, 1) if old == 1 else kernel.repeat(1, math.ceil(new / old), *[1] * len(rest[1:]))
    )
    return repeated[:, :new] * (old / new), True


def _by_name(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Checkpoint tensors under the encoder's names: the leading components to drop are those that match most."""
    targets = {name.removeprefix("net."): name for name in state} | {name: name for name in state}
    votes: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for depth in range(min(len(parts), 5)):
            if ".".join(parts[depth:]) in targets:
                votes["".join(f"{p}." for p in parts[:depth])] += 1
    if not votes:
        return {}, list(tensors)
    best = max(votes.values())
    prefixes = sorted((p for p, n in votes.items() if n == best), key=len)
    rivals = [p for p in prefixes if p.removesuffix("net.") != prefixes[0].removesuffix("net.")]
    if prefixes[0] and rivals:
        raise HilumError(
            f"several networks in this file fit: {', '.join(p.rstrip('.') for p in prefixes)}", where="init",
            fix=f"name one: FILE#{prefixes[0].rstrip('.')}",
        )  # fmt: skip
    named, unexpected = {}, []
    for key, tensor in tensors.items():
        target = targets.get(key.removeprefix(prefixes[0])) if key.startswith(prefixes[0]) else None
        if target is None:
            unexpected.append(key)
        else:
            named[target] = tensor
    return named, unexpected


def _by_order(weights: Weights, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors in their order, for checkpoints whose names are another library's; every shape must agree."""
    keys = list(weights.tensors)
    pairs = list(zip(keys, state, strict=False))
    if len(keys) < len(state) or any(
        weights.tensors[k].shape[:1] != state[n].shape[:1] or weights.tensors[k].ndim != state[n].ndim for k, n in pairs
    ):
        raise HilumError(
            f"{weights.source} is not the network of this encoder", where="init", fix="use the encoder they belong to"
        )
    return {name: weights.tensors[key] for key, name in pairs}, keys[len(state) :]


def _refuse_wrong_shapes(
    wrong: list[str], named: Mapping[str, Tensor], state: Mapping[str, Tensor], report: LoadReport
) -> None:
    if wrong:
        shapes = [f"{n}: {tuple(named[n].shape)} in the file, {tuple(state[n].shape)} here" for n in wrong[:3]]
        raise HilumError(
            f"{len(wrong)} tensors of {report.source} have another shape than this encoder's",
            where="; ".join(shapes),
            fix="use the encoder the weights were made for",
        )


def _refuse_too_few(encoder: nn.Module, good: Mapping[str, Fitted], report: LoadReport) -> None:
    parameters = [name for name, _ in encoder.named_parameters()]
    filled = sum(name in good for name in parameters)
    if filled < ENOUGH * len(parameters):
        raise HilumError(
            f"{report.source} fills only {filled} of this encoder's {len(parameters)} parameters\n{report}",
            where="init",
            fix="use the encoder the weights were made for, or load_weights(..., allow_partial=True)",
        )


def _spec_with(spec: EncoderSpec, weights: Weights, report: LoadReport) -> EncoderSpec:
    card = weights.card

    def values(name: str, otherwise: tuple[float, ...]) -> tuple[float, ...]:
        given = tuple(float(v) for v in card.get(name) or otherwise)
        return given if len(given) == len(otherwise) else (math.fsum(given) / len(given),) * len(otherwise)

    low, high = card.get("value_range") or spec.value_range
    return replace(
        spec,
        source=report.source,
        sha256=report.sha256,
        licence=str(card.get("licence") or "unstated (local file)"),
        mean=values("mean", spec.mean),
        std=values("std", spec.std),
        value_range=(float(low), float(high)),
    )


def _sha256_of(tensors: Mapping[str, Tensor]) -> str:
    holder = nn.Module()
    for index, tensor in enumerate(tensors.values()):
        holder.register_buffer(f"t{index}", tensor)
    return state_sha256(holder)
