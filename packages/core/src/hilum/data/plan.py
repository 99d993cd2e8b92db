"""Which samples make up each global step: a function of seed, epoch and the samples, never of ranks or workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.core.types import Request, SampleKey
from hilum.parts.rng import permutation

Rows = Sequence[int] | NDArray[np.int64]


class Shuffle:
    """Every row once an epoch, in an order keyed by (seed, epoch); the order of ``rows`` does not matter.

    ``sample_ids`` stand beside ``rows``. ``drop_last`` leaves out the last step of an epoch where it would be smaller;
    other samples are left out in other epochs.
    """

    def __init__(
        self, rows: Rows, sample_ids: Sequence[str], *, batch_size: int, seed: int = 0, drop_last: bool = False
    ) -> None:
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        order = sorted(range(len(rows)), key=sample_ids.__getitem__)
        self.rows = np.asarray(rows, np.int64)[order]
        self.sample_ids = [sample_ids[i] for i in order]
        if batch_size < 1 or len(self.rows) != len(self.sample_ids):
            raise HilumError(f"{len(rows)} rows, {len(sample_ids)} ids and batches of {batch_size} make no plan")
        if not self.steps_per_epoch():
            raise HilumError(
                f"{len(self.rows)} samples make no step of {batch_size}", fix="a smaller batch.size, or more samples"
            )

    def order(self, epoch: int) -> NDArray[np.int64]:
        return permutation(len(self.rows), seed=self.seed, epoch=epoch)

    def steps_per_epoch(self, epoch: int = 0) -> int:
        whole, rest = divmod(len(self.rows), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def samples_per_epoch(self, epoch: int = 0) -> int:
        """Requests of a whole epoch over all ranks."""
        return min(len(self.rows), self.steps_per_epoch(epoch) * self.batch_size)

    def steps(self, epoch: int, *, start: int = 0) -> Iterator[dict[str, list[Request]]]:
        """The global steps of an epoch from ``start`` on; none depends on those before it."""
        order = self.order(epoch)
        for step in range(start, self.steps_per_epoch(epoch)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size].tolist()
            yield {"main": [self._request(i, epoch) for i in chosen]}

    def sizes(self, epoch: int) -> list[int]:
        """Samples of each global step."""
        total = self.samples_per_epoch(epoch)
        return [min(self.batch_size, total - at) for at in range(0, total, self.batch_size)]

    def _request(self, i: int, epoch: int) -> Request:
        return Request(int(self.rows[i]), SampleKey.of(self.seed, epoch, self.sample_ids[i]))

    def state_dict(self) -> dict[str, Any]:
        """What must be equal for a run to go on where it stopped (its position is the loop's)."""
        digest = hashlib.sha256("\n".join(sorted(self.sample_ids)).encode()).hexdigest()
        settings = {"batch_size": self.batch_size, "seed": self.seed, "drop_last": self.drop_last}
        return {"plan": type(self).__name__, **settings, "samples": len(self.rows), "digest": digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = self.state_dict()
        differ = [f"{k}: {state.get(k)} then, {own[k]} now" for k in own if state.get(k) != own[k]]
        if differ:
            raise HilumError(
                "the run cannot go on with other samples or batches than it started with",
                where="; ".join(differ),
                fix="resume with the study, split and settings of the run's config.yaml",
            )


class Sequential(Shuffle):
    """Every row once, in the order given: evaluation."""

    def __init__(self, rows: Rows, sample_ids: Sequence[str], *, batch_size: int, seed: int = 0) -> None:
        super().__init__(rows, sample_ids, batch_size=batch_size, seed=seed)
        place = {s: i for i, s in enumerate(self.sample_ids)}
        self._given = np.array([place[s] for s in sample_ids], np.int64)

    def order(self, epoch: int) -> NDArray[np.int64]:
        return self._given
