"""Images that stand in two places: exact copies by hash of their stored values, near copies by what they show.

A near copy (re-exported, re-compressed, brightened) has a 256-bit difference hash within ``MAX_DISTANCE`` bits and a
normalised cross-correlation above ``MIN_NCC`` on 64 x 64 high-passed images. The high pass removes what all images of
one projection share, so two patients' radiographs do not correlate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.data.reduce import area_average

SIDE: Final = 64  # thumbnail side
MAX_DISTANCE: Final = (
    24  # of 256 bits; noise, JPEG and brightness move at most about 15, two patients at least about 30
)
MIN_NCC: Final = 0.97
_BLOCK: Final = (512, 4096)  # hash pairs at a time: the XOR block stays in the cache
_BLUR: Final = 9  # box of the high pass, thumbnail pixels
_DEAD_ZONE: Final = 0.04  # of the thumbnail's standard deviation: noise on a flat background sets no bit


@dataclass(frozen=True, slots=True)
class NearCopy:
    """Positions of two thumbnails that show the same picture."""

    first: int
    second: int
    distance: int
    ncc: float


def thumbnail(image: NDArray[Any]) -> NDArray[np.uint8]:
    """(64,64) uint8 of an image (H,W) or (H,W,C): channel mean, area average, stretched to its own range."""
    grey = np.asarray(image, np.float64)
    grey = grey.mean(-1) if grey.ndim == 3 else grey
    repeats = [-(-SIDE // n) for n in grey.shape]  # an image below 64 pixels is enlarged before it is averaged
    grey = area_average(grey.repeat(repeats[0], 0).repeat(repeats[1], 1), (SIDE, SIDE))
    lo, hi = grey.min(), grey.max()
    stretched: NDArray[np.uint8] = np.round((grey - lo) * (255.0 / max(hi - lo, 1e-12))).astype(np.uint8)
    return stretched


def thumbnails_of(cache: Any, rows: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """(m,) rows that a built cache holds and (m,64,64) their thumbnails, brighter meaning more as in ``Pixels``."""
    held = np.array([r for r in rows if r in cache], np.int64)
    out = np.empty((len(held), SIDE, SIDE), np.uint8)
    for at, row in enumerate(held):
        image = cache.get(int(row))
        stored = image.stored.numpy().astype(np.float32).mean(0)
        out[at] = thumbnail(stored if image.slope >= 0 else -stored)
    return held, out


def difference_hash(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(n,64,64) to (n,4): the 256 signs of the horizontal differences of a 17 x 16 thumbnail."""
    rows, columns = _averaging(SIDE, 16), _averaging(SIDE, 17)
    words = np.empty((len(thumbnails), 4), np.uint64)
    for start in range(0, len(thumbnails), 4096):
        part = thumbnails[start : start + 4096].astype(np.float32)
        small = rows @ part @ columns.T
        floor = _DEAD_ZONE * small.std((1, 2), keepdims=True)
        bits = np.packbits((np.diff(small, axis=2) > floor).reshape(len(part), 256), axis=1)
        words[start : start + len(part)] = bits.view("<u8")
    return words


def high_pass(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n,64,64) to (n,4096) rows of zero mean and unit length; a flat image becomes zeros and correlates with none."""
    x = torch.from_numpy(np.ascontiguousarray(thumbnails)).float()[:, None]
    padded = torch.nn.functional.pad(x, [_BLUR // 2] * 4, mode="replicate")
    rows = (x - torch.nn.functional.avg_pool2d(padded, _BLUR, 1)).flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    norm = rows.norm(dim=1, keepdim=True)
    unit: NDArray[np.float32] = torch.where(norm > 1e-3, rows / norm.clamp(min=1e-12), torch.zeros(())).numpy()
    return unit


def near_copies(
    thumbnails: NDArray[np.uint8],
    parts: Sequence[int] | NDArray[np.integer[Any]],
    *,
    max_distance: int = MAX_DISTANCE,
    min_ncc: float = MIN_NCC,
) -> list[NearCopy]:
    """Near copies between thumbnails (n,64,64) of different ``parts`` (n,) (splits); a negative part takes no part.

    Cost: n_a x n_b 256-bit comparisons for each pair of parts, in blocks; about 10 s for 10^9.
    """
    parts = np.asarray(parts)
    members = [np.flatnonzero(parts == part) for part in np.unique(parts[parts >= 0])]
    hashes = difference_hash(thumbnails)
    found: list[NearCopy] = []
    for index, a in enumerate(members):
        for b in members[index + 1 :]:
            for left, right, distance in _hash_candidates(hashes, a, b, max_distance):
                ncc = np.einsum("nd,nd->n", high_pass(thumbnails[left]), high_pass(thumbnails[right]))
                keep = np.flatnonzero(ncc > min_ncc)
                found += [NearCopy(int(left[k]), int(right[k]), int(distance[k]), float(ncc[k])) for k in keep]
    return sorted(found, key=lambda pair: -pair.ncc)


def _hash_candidates(
    hashes: NDArray[np.uint64], a: NDArray[np.int64], b: NDArray[np.int64], limit: int
) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16]]]:
    """Pairs within ``limit`` bits, a block of at most 4,096 pairs at a time."""
    for i in range(0, len(a), _BLOCK[0]):
        for j in range(0, len(b), _BLOCK[1]):
            left, right = a[i : i + _BLOCK[0]], b[j : j + _BLOCK[1]]
            distance = np.zeros((len(left), len(right)), np.uint16)
            for word in range(hashes.shape[1]):
                distance += np.bitwise_count(hashes[left, word][:, None] ^ hashes[right, word][None, :])
            near = np.argwhere(distance <= limit)
            for part in np.split(near, range(4096, len(near), 4096)):
                if len(part):
                    yield left[part[:, 0]], right[part[:, 1]], distance[part[:, 0], part[:, 1]]


def _averaging(n: int, m: int) -> NDArray[np.float32]:
    """(m,n) area-average weights of n source pixels for m outputs."""
    edges = np.arange(m + 1) * (n / m)
    lo, hi = np.maximum(edges[:-1, None], np.arange(n)), np.minimum(edges[1:, None], np.arange(n) + 1)
    weights: NDArray[np.float32] = (np.clip(hi - lo, 0, None) * (m / n)).astype(np.float32)
    return weights


def exact_copies(study: Any) -> list[NDArray[np.int64]]:
    """Index rows that hold the same picture: equal stored values and shape (or marked ``duplicate_of`` at index time).

    Constant images are left out: two black frames are no evidence of one patient. Images that were never hashed are an
    error, since nobody could tell on which sides of a split their copies stand.
    """
    hashes = study.column("stored_sha256")
    unhashed = sum(not hashes[row] for row in study.rows(None))
    if unhashed:
        raise HilumError(
            f"{unhashed} images of the index have no hash of their pixels: copies of them cannot be found",
            where=str(study.path),
            fix="hilum index ROOT --out STUDY without --headers-only",
        )
    table = study.index
    status = study.column("status")
    n = len(status)
    sets = Sets(n)
    low, high = (_floats(study, name, n) for name in ("min", "max"))
    shown = (np.asarray(status, object) == "indexed") & ~(low == high)
    columns = [list(study.column(c)) for c in ("stored_sha256", "rows", "columns", "frames")]
    first: dict[tuple[Any, ...], int] = {}
    by_id = {s: i for i, s in enumerate(study.column("sample_id"))}
    marked = list(study.column("duplicate_of")) if "duplicate_of" in table.column_names else [None] * n
    for row in np.flatnonzero(shown).tolist():
        if columns[0][row]:
            sets.join(row, first.setdefault(tuple(c[row] for c in columns), row))
        original = by_id.get(marked[row]) if marked[row] else None
        if original is not None:
            sets.join(row, original)
    return [members for members in sets.all() if len(members) > 1]


def _floats(study: Any, name: str, n: int) -> NDArray[np.float64]:
    if name not in study.index.column_names:
        return np.full(n, np.nan)
    return np.array([np.nan if v is None else v for v in study.column(name)], np.float64)


class Sets:
    """Disjoint sets of 0 .. n-1 that grow together (union-find with path halving); the lowest member names a set."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def find(self, x: int) -> int:
        parent = self.parent
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)

    def roots(self) -> NDArray[np.int64]:
        return np.array([self.find(x) for x in range(len(self.parent))], np.int64)

    def all(self) -> list[NDArray[np.int64]]:
        """Every set, members ascending, ordered by its lowest member."""
        roots = self.roots()
        order = np.argsort(roots, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(roots[order])) + 1) if len(order) else []
