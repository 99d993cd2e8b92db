"""How much more a rare finding's positives count (arXiv 2308.07688, "Loss")."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hilum.core.errors import HilumError, nearest
from hilum.core.types import LabelSpace


def positive_weights(labels: LabelSpace, rule: str | Mapping[str, str | float]) -> Tensor | None:
    """(F,) weights w = (N - n) / n of the rows that training serves, N known and n positive; 1 where nothing is asked.

    A finding without any positive keeps 1: it has no positive term to weigh.
    """
    if rule == "none":
        return None
    rules = dict.fromkeys(labels.names, rule) if isinstance(rule, str) else rule
    unknown = set(rules) - set(labels.names)
    if unknown:
        name = sorted(unknown)[0]
        raise HilumError(
            f"pos_weight names {name!r}, which is no label", where="labels.pos_weight", fix=nearest(name, labels.names)
        )
    return torch.tensor([_positive_weight(labels, name, rules.get(name, "none")) for name in labels.names])


def _positive_weight(labels: LabelSpace, name: str, rule: str | float) -> float:
    if rule == "none":
        return 1.0
    if rule != "auto":
        try:
            return float(rule)
        except ValueError:
            raise HilumError(
                f"pos_weight {rule!r} is no number", where="labels.pos_weight", fix="auto, none or a number"
            ) from None
    if name not in labels.counts.get("train", {}):
        raise HilumError(
            f"the positives of {name!r} in train were not counted", where="labels.pos_weight", fix="pos_weight: none"
        )
    positive, negative, _ = labels.counts["train"][name]
    return negative / positive if positive else 1.0
