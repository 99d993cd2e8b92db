"""What a split deals: groups, or sets of groups that share an exact picture, with their patient-level labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError, LeakError, nearest
from hilum.data.duplicates import Sets, exact_copies
from hilum.data.stratify import deal, keyed_order, nested_rank

_VALUES = 64  # distinct values above which an index column is no stratum


class Units:
    """Every indexed group stands in exactly one unit; units without an image that is served are part of no split.

    A unit is known if all its groups are. ``labels`` (n, L) are patient-level: for every finding whether any image is
    positive, and whether it was looked for and never found; for an index column, which values occur.
    """

    def __init__(
        self, study: Any, *, seed: int, stratify: str | Sequence[str], group_duplicates: bool, unknown: set[str]
    ) -> None:
        self.study, self.seed = study, seed
        status = np.asarray(study.column("status"), object)
        column = np.asarray(study.column("group_id"), object)
        indexed = np.flatnonzero((status == "indexed") & (column != None))  # noqa: E711 (elementwise)
        self.group_id: NDArray[Any] = np.array(sorted(set(column[indexed])), object)
        place = {g: i for i, g in enumerate(self.group_id)}
        sets = Sets(len(place))
        if group_duplicates:
            for rows in exact_copies(study):
                holders = [place[g] for g in column[rows] if g in place]
                for other in holders[1:]:
                    sets.join(holders[0], other)
        roots, self.unit_of = np.unique(sets.roots(), return_inverse=True)  # a unit is named after its first group
        self.names: list[str] = list(self.group_id[roots])
        n = len(self.names)
        self.rows = study.pictures
        self.unit_of_row = (
            self.unit_of[[place[g] for g in column[self.rows]]] if len(self.rows) else np.zeros(0, np.int64)
        )
        self.served = np.bincount(self.unit_of_row, minlength=n) > 0
        if not self.served.any():
            raise HilumError(
                "the index holds no image to split",
                where=str(study.path),
                fix="look at status and reason in index.parquet",
            )
        self.known = np.ones(n, bool)
        self.known[self.unit_of[[i for g, i in place.items() if g in unknown]]] = False
        self.stratified_by = self._strata(stratify)
        self.labels = self._labels()

    def _strata(self, stratify: str | Sequence[str]) -> list[str]:
        if isinstance(stratify, str) and stratify in ("auto", "none"):
            return list(self.study.label_names) if stratify == "auto" else []
        names = [stratify] if isinstance(stratify, str) else list(stratify)
        known = [*self.study.label_names, *self.study.columns]
        for name in names:
            if name not in known:
                raise HilumError(
                    f"cannot stratify by {name!r}: no label or index column has that name", fix=nearest(name, known)
                )
        return names

    def _labels(self) -> NDArray[np.bool_]:
        columns: list[NDArray[np.bool_]] = []
        findings = [n for n in self.stratified_by if n in self.study.label_names]
        matrix = self.study.label_matrix(findings, self.rows)
        for f in range(len(findings)):
            positive, negative = self._any(matrix[:, f] == 1), self._any(matrix[:, f] == 0)
            columns += [positive, negative & ~positive]
        for name in (n for n in self.stratified_by if n not in self.study.label_names):
            values = np.array([str(v) for v in self.study.column(name)], object)[self.rows]
            distinct = sorted(set(values))
            if len(distinct) > _VALUES:
                raise HilumError(
                    f"cannot stratify by {name!r}: it has {len(distinct)} values", fix=f"at most {_VALUES} make strata"
                )
            columns += [self._any(values == value) for value in distinct]
        told = {c.tobytes(): c for c in columns if c.any() and not c.all()}  # each distinction once
        return np.stack(list(told.values()), 1) if told else np.zeros((len(self.names), 0), bool)

    def _any(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        hit: NDArray[np.bool_] = np.bincount(self.unit_of_row[rows], minlength=len(self.names)) > 0
        return hit

    def start(self) -> NDArray[Any]:
        """Everything that is served in train."""
        return np.where(self.served, "train", "none").astype(object)

    def draw(self, part: NDArray[Any], wanted: Mapping[str, float]) -> NDArray[Any]:
        """Move fractions of the train units to other parts, stratified; units of unknown identity stay in train."""
        train = np.flatnonzero(part == "train")
        free = train[self.known[train]]
        sizes = [max(1, math.floor(f * len(train) + 0.5)) if f > 0 else 0 for f in wanted.values()]
        spare = len(train) - sum(sizes)
        if sum(sizes) > len(free) or spare < 1:
            asked = " and ".join(
                f"{name} {f:g} ({size})" for (name, f), size in zip(wanted.items(), sizes, strict=True)
            )
            raise HilumError(
                f"the split would leave a part empty: {asked} of {len(train)} groups, {len(free)} of known identity",
                fix="smaller fractions, more groups, or an index that knows whose images these are (group column)",
            )
        out = part.copy()
        sizes.append(len(free) - sum(sizes))
        names = np.array([*wanted, "train"], object)
        out[free] = names[deal(self.labels[free], sizes, self._order(free, "split"))]
        return out

    def adopt(self, official: Mapping[str, str], warnings: list[str]) -> NDArray[Any]:
        """Parts given for groups. What is not named is in no part; unknown identities are never held out."""
        given: list[set[str]] = [set() for _ in self.names]
        for group, unit in zip(self.group_id, self.unit_of, strict=True):
            given[unit].add(official.get(group, "none"))
        torn = [n for n, parts in zip(self.names, given, strict=True) if len(parts - {"none"}) > 1]
        if torn:
            raise LeakError(
                f"the official split tears apart {len(torn)} sets of groups that share exact pictures: "
                + ", ".join(torn[:5]),
                fix="mend the table or private/merges.csv",
            )
        part = np.array([max(parts - {"none"}, default="none") for parts in given], object)
        part[~self.served] = "none"
        held = ~self.known & np.isin(part, ("val", "test"))
        if held.any():
            warnings.append(f"{int(held.sum())} groups of unknown identity stood in val or test and are left out")
            part[held] = "none"
        return part

    def ranks(self, part: NDArray[Any]) -> NDArray[np.int64]:
        """(groups,) nested stratified ranks within train and within val, -1 elsewhere."""
        unit_rank = np.full(len(self.names), -1, np.int64)
        for name in ("train", "val"):
            own = np.flatnonzero(part == name)
            if len(own):
                unit_rank[own] = nested_rank(self.labels[own], self._order(own, "rank"))
        rank = np.full(len(self.group_id), -1, np.int64)
        for name in ("train", "val"):
            own = np.flatnonzero(part[self.unit_of] == name)
            rank[own[np.lexsort((own, unit_rank[self.unit_of[own]]))]] = np.arange(len(own))
        return rank

    def folds(self, part: NDArray[Any], k: int) -> NDArray[np.int64]:
        """(groups,) fold of every known unit outside the held-out test part, -1 elsewhere."""
        fold = np.full(len(self.names), -1, np.int64)
        if k:
            pool = np.flatnonzero(np.isin(part, ("train", "val")) & self.known)
            if not 2 <= k <= len(pool):
                raise HilumError(
                    f"{k} folds of {len(pool)} groups cannot be made", fix="2 <= folds <= groups with a known identity"
                )
            sizes = np.bincount(np.arange(len(pool)) % k, minlength=k).tolist()
            fold[pool] = deal(self.labels[pool], sizes, self._order(pool, "fold"))
        return fold[self.unit_of]

    def _order(self, units: NDArray[np.int64], purpose: str) -> NDArray[np.int64]:
        return keyed_order([self.names[u] for u in units], seed=self.seed, purpose=purpose)
