"""``predictions.parquet`` (FORMATS 11): what a model said of every sample, beside what is true of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.evaluation.metrics import Array


@dataclass(slots=True)
class Predictions:
    """One row a sample (and fold and seed): ``targets`` and ``scores`` (N,F), targets 1, 0, -1 uncertain, NaN unknown.

    ``split`` (N,) names the split of every row; ``fold`` (N,) is -1 where there are no folds.
    """

    sample_id: NDArray[np.str_]
    group_id: NDArray[np.str_]
    split: NDArray[np.str_]
    names: tuple[str, ...]
    targets: Array
    scores: Array
    fold: NDArray[np.int32]
    seed: NDArray[np.int64]

    @staticmethod
    def of(
        *,
        sample_id: Sequence[str],
        group_id: Sequence[str],
        split: str | Sequence[str],
        names: Sequence[str],
        targets: Any,
        scores: Any,
        fold: int | Sequence[int] = -1,
        seed: int | Sequence[int] = 0,
    ) -> Predictions:
        """Checks shapes and that no sample stands twice for one fold and seed."""
        n, f = len(sample_id), len(names)
        y, s = (np.asarray(x, dtype=np.float64) for x in (targets, scores))
        if y.shape != (n, f) or s.shape != (n, f) or len(group_id) != n:
            raise HilumError(
                f"{n} samples, {len(group_id)} groups, {f} findings, targets {y.shape} and scores {s.shape} do not fit"
            )
        made = Predictions(
            np.asarray(sample_id, dtype=np.str_),
            np.asarray(group_id, dtype=np.str_),
            np.broadcast_to(np.asarray(split, dtype=np.str_), (n,)).copy(),
            tuple(names),
            y,
            s,
            np.broadcast_to(np.asarray(fold, dtype=np.int32), (n,)).copy(),
            np.broadcast_to(np.asarray(seed, dtype=np.int64), (n,)).copy(),
        )
        keys = Counter(zip(made.sample_id.tolist(), made.fold.tolist(), made.seed.tolist(), strict=True))
        if len(keys) != n:
            sample, in_fold, with_seed = keys.most_common(1)[0][0]
            raise HilumError(f"sample {sample} is predicted more than once for fold {in_fold}, seed {with_seed}")
        return made

    def __len__(self) -> int:
        return len(self.sample_id)

    def rows(self, keep: Any) -> Predictions:
        """The rows picked by a mask, positions or a slice."""
        at = np.arange(len(self))[keep]
        columns = (self.sample_id[at], self.group_id[at], self.split[at], self.names, self.targets[at], self.scores[at])
        return Predictions(*columns, self.fold[at], self.seed[at])

    def of_split(self, split: str) -> Predictions:
        """The rows of one split; an empty split is an error that names what there is."""
        chosen = self.rows(self.split == split)
        if not len(chosen):
            raise HilumError(
                f"no predictions for the split {split!r}", fix=f"there are: {', '.join(np.unique(self.split))}"
            )
        return chosen

    def repeats(self) -> tuple[Predictions, Array]:
        """(rows of the first seed in order of sample and fold, scores (S,N,F) of every seed on these rows).

        Raises where seeds cover different samples or disagree on a target.
        """
        parts = []
        for seed in np.unique(self.seed):
            part = self.rows(self.seed == seed)
            parts.append(part.rows(np.lexsort((part.fold, part.sample_id))))
        first = parts[0]
        for part in parts[1:]:
            first.same_samples(part)
        return first, np.stack([p.scores for p in parts])

    def same_samples(self, other: Predictions) -> None:
        """Raises unless both hold the same samples, folds, groups, findings and targets in the same order."""
        if self.names != other.names:
            raise HilumError(f"different findings: {', '.join(self.names)} against {', '.join(other.names)}")
        a, b = ({*zip(p.sample_id.tolist(), p.fold.tolist(), strict=True)} for p in (self, other))
        if a != b or len(self) != len(other):
            raise HilumError(
                f"the two sets of predictions cover different samples: {len(a - b)} only in the first, "
                f"{len(b - a)} only in the second",
                fix="a paired comparison needs the same rows: evaluate both runs on the same split of the same study",
            )
        same_group = bool((self.group_id == other.group_id).all())
        if not same_group or not np.array_equal(self.targets, other.targets, equal_nan=True):
            raise HilumError(
                f"the two sets of predictions disagree on {'targets' if same_group else 'groups'} of the same samples",
                fix="index and labels changed between the runs: evaluate both again",
            )

    def write(self, path: Path | str) -> Path:
        """Writes the Parquet table in place of an older one, never half of it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {"sample_id": self.sample_id, "group_id": self.group_id, "split": self.split}
        columns |= {f"target.{name}": self.targets[:, f].astype(np.float32) for f, name in enumerate(self.names)}
        columns |= {f"score.{name}": self.scores[:, f] for f, name in enumerate(self.names)}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        pq.write_table(pa.table(columns | {"fold": self.fold, "seed": self.seed}), partial)
        partial.replace(path)
        return path

    @staticmethod
    def read(path: Path | str) -> Predictions:
        """Raises :class:`HilumError` where columns of FORMATS 11 are missing."""
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except (OSError, ValueError) as error:
            raise HilumError(
                f"predictions could not be read: {error}", where=str(path), fix="run hilum evaluate RUN first"
            ) from error
        names = [c.removeprefix("target.") for c in table.column_names if c.startswith("target.")]
        needed = ["sample_id", "group_id", "split", "fold", "seed", *(f"score.{n}" for n in names)]
        if not names or (missing := [c for c in needed if c not in table.column_names]):
            what = "target.<finding>" if not names else ", ".join(missing)
            raise HilumError(f"not a predictions table: {what} is missing", where=str(path))

        def column(name: str) -> Any:
            return table[name].to_numpy(zero_copy_only=False)

        return Predictions.of(
            sample_id=table["sample_id"].to_pylist(),
            group_id=table["group_id"].to_pylist(),
            split=table["split"].to_pylist(),
            names=names,
            targets=np.stack([column(f"target.{n}") for n in names], 1),
            scores=np.stack([column(f"score.{n}") for n in names], 1),
            fold=column("fold"),
            seed=column("seed"),
        )
