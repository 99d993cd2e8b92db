"""How networks with adapters leave training."""

from __future__ import annotations

import copy

from torch import nn

from hilum.core.adapter import Adapter


def merged(adapters: nn.ModuleDict, **modules: nn.Module) -> dict[str, nn.Module]:
    """``modules`` with ``adapters`` merged into a copy of them; adapters that cannot be merged stand beside, by name."""
    if not len(adapters):
        return modules
    left, copies = copy.deepcopy((modules, dict(adapters.items())))
    for name, adapter in copies.items():
        if isinstance(adapter, Adapter) and type(adapter).merge is not Adapter.merge:
            adapter.merge()
        else:
            left[name] = adapter
    return left
