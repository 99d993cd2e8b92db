"""Which groups go where: exact sizes, balanced labels, an order that depends on nothing but seed and names.

Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, *On the stratification of multi-label data*), with the
part sizes kept exactly: the rarest label is dealt first, each of its groups to the part that still lacks most of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

FRACTIONS: Final = (0.75, 0.5, 0.25, 0.2, 0.1, 0.05, 0.02, 0.01)  # prefixes of the rank that are stratified exactly


def count_of(fraction: float, n: int) -> int:
    """ceil(f n), free of the float error that makes 0.07 * 100 a little more than 7."""
    return math.ceil(round(fraction * n, 9))


def keyed_order(names: Sequence[str], *, seed: int, purpose: str) -> NDArray[np.int64]:
    """A random order of ``names`` keyed by (seed, purpose, name): the same on any platform and from any input order."""
    keys = [hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest() for name in names]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def deal(labels: NDArray[np.bool_], sizes: Sequence[int], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Parts (n,) of exactly ``sizes`` members each, for units with ``labels`` (n,L); ``order`` breaks every tie."""
    n = len(labels)
    assert sum(sizes) == n, (sizes, n)
    part = np.full(n, -1, np.int64)
    room = np.array(sizes, np.float64)
    lacks = np.outer(room / max(n, 1), labels.sum(0))  # (parts, labels): positives a part should still get
    left = labels.sum(0)
    held = [np.flatnonzero(row) for row in labels]
    while left.any():
        rarest = int(np.argmin(np.where(left > 0, left, n + 1)))
        for unit in order[labels[order, rarest] & (part[order] < 0)]:
            choice = int(np.lexsort((-room, -lacks[:, rarest], room <= 0))[0])
            part[unit] = choice
            room[choice] -= 1
            lacks[choice, held[unit]] -= 1
            left[held[unit]] -= 1
    rest = order[part[order] < 0]
    part[rest] = np.repeat(np.arange(len(room)), room.astype(np.int64))
    return part


def nested_rank(labels: NDArray[np.bool_], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ranks (n,) whose prefixes are nested and stratified: each of ``FRACTIONS`` is dealt out of the next larger."""
    n = len(labels)
    members, tail = np.array(order), []
    for size in sorted({count_of(f, n) for f in FRACTIONS}, reverse=True):
        if 0 < size < len(members):
            part = deal(labels[members], (size, len(members) - size), np.arange(len(members)))
            tail.append(members[part == 1])
            members = members[part == 0]
    rank = np.empty(n, np.int64)
    rank[np.concatenate([members, *reversed(tail)])] = np.arange(n)
    return rank
