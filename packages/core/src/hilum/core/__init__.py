"""The thin core: contracts, the one loop, recipes, the command line.

Public verbs are attributes resolved on first use: ``from hilum.core import pretrain``.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from hilum.core.registry import registry

    verbs = registry.entries("verb")
    if name in verbs:
        return verbs[name].load()
    raise AttributeError(f"module 'hilum.core' has no attribute {name!r}")
