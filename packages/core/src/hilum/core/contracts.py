"""Checkers of the contracts that are no network: probes, experts and sources. Each lists everything that is missing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from hilum.core.errors import ContractError
from hilum.core.types import ExpertCard, LabelSpace

_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_probe(candidate: Any, *, where: str = "") -> None:
    """Raise :class:`ContractError` naming everything that is missing of the probe contract."""
    gaps = (
        [] if isinstance(getattr(candidate, "labelled", None), bool) else ["attribute labelled: bool (needs targets)"]
    )
    gaps += _method(candidate, "fit", ("x", "y", "groups"), "Probe")
    gaps += _method(candidate, "score", ("x", "y", "groups"), "a report or a number")
    gaps += _method(candidate, "summary", ("scored",), "Mapping[str, float]")
    _refuse(candidate, "a probe", gaps, where)


def check_expert(candidate: Any, *, where: str = "") -> None:
    """Raise :class:`ContractError` naming everything that is missing of the expert contract."""
    card, gaps = getattr(candidate, "card", None), []
    if not isinstance(card, ExpertCard):
        gaps.append("attribute card: hilum.core.types.ExpertCard")
    else:
        gaps += [f"card.{name} (say it in a few words)" for name in ("name", "does") if not getattr(card, name)]
        if not card.modality:
            gaps.append("card.modality: tuple of the modalities it reads, e.g. ('DX',)")
        if not card.licence or card.licence == "unknown":
            gaps.append("card.licence (state the licence of code and weights)")
    gaps += _method(candidate, "run", ("batch",), "list[ExpertResult]", keywords=tuple(getattr(card, "arguments", ())))
    _refuse(candidate, "an expert", gaps, where)


def check_source(candidate: Any, *, where: str = "") -> None:
    """Raise :class:`ContractError` naming everything that is missing of the source contract."""
    gaps = []
    if not hasattr(candidate, "labels") or not isinstance(candidate.labels, LabelSpace | None):
        gaps.append("attribute labels: hilum.core.types.LabelSpace or None")
    if not hasattr(candidate, "index") or callable(candidate.index):
        gaps.append("property index: the table its rows are of")
    gaps += _method(candidate, "__len__", (), "int")
    gaps += _method(candidate, "__getitem__", ("request",), "Sample")
    _refuse(candidate, "a source", gaps, where)


def _method(
    candidate: Any, name: str, wanted: tuple[str, ...], result: str, *, keywords: tuple[str, ...] = ()
) -> Iterator[str]:
    """The gap, if any, of a method that takes ``wanted`` first, by these names, and ``keywords`` somewhere."""
    told = f"method {name}({', '.join((*wanted, *keywords))}) -> {result}"
    method = getattr(candidate, name, None)
    if not callable(method):
        yield told
        return
    try:
        known = inspect.signature(method).parameters
    except (TypeError, ValueError):  # written in C
        yield told
        return
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    leading = [n for n, p in known.items() if p.kind not in _ANY][: len(wanted)]
    if tuple(leading) != wanted:
        yield f"{told}, not ({', '.join(known)})"
    elif lost := [k for k in keywords if k not in known and not takes_any]:
        yield f"{name} must accept {', '.join(f'{k}=' for k in lost)}"


def _refuse(candidate: Any, what: str, gaps: list[str], where: str) -> None:
    if gaps:
        raise ContractError(f"{type(candidate).__name__} is not {what}", gaps, where=where)
