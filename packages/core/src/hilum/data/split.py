"""Which patients train, which validate, which test: disjoint by construction, stored, hashed, checked at every start.

The unit is the group (``group_id``). ``splits/NAME.parquet`` holds ``group_id split rank fold``, ``NAME.json`` how it
was made (FORMATS 7); its digest is the SHA-256 of the sorted lines ``group_id,split``, each ended by a newline.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hilum.core.checkpoint import file_sha256
from hilum.core.errors import HilumError, LeakError, nearest
from hilum.data.cache import ShardCache
from hilum.data.duplicates import SIDE, exact_copies, near_copies, thumbnails_of
from hilum.data.ledger import write_json, write_table
from hilum.data.official import official_parts
from hilum.data.stratify import count_of
from hilum.data.study import SEVERAL_FRAMES
from hilum.data.units import Units

PARTS: Final = ("train", "val", "test", "none")
NAMED: Final = 5  # groups named in a message
LOST: Final = 10  # findings named in a note
LISTED: Final = 1000  # near copies kept in the JSON
COLUMNS: Final = ("group_id", "split", "rank", "fold")
Rows = NDArray[np.int64]


@dataclass(slots=True)
class Split:
    """A group table (sorted by ``group_id``) and how it was made. ``warnings`` is for people: print it."""

    study: Any
    name: str
    group_id: NDArray[Any]
    split: NDArray[Any]
    rank: NDArray[np.int64]  # within train and within val; -1 elsewhere
    fold: NDArray[np.int64]  # -1: never held out
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return self.digest_of("group_id", "split")

    def digest_of(self, *columns: str) -> str:
        """SHA-256 of the sorted comma-separated lines of some columns."""
        lines = sorted(",".join(map(str, line)) for line in zip(*(getattr(self, c) for c in columns), strict=True))
        return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()

    @property
    def warnings(self) -> list[str]:
        return list(self.info.get("warnings", ()))

    @staticmethod
    def load(study: Any, name: str = "default") -> Split:
        """Read ``splits/NAME``. Call :meth:`check` before use."""
        folder = Path(study.path) / "splits"
        if not (folder / f"{name}.json").exists():
            known = sorted(p.stem for p in folder.glob("*.json"))
            hint = nearest(name, known) or f"known: {', '.join(known) or 'none'}"
            raise HilumError(
                f"there is no split {name!r} ({hint})", where=str(folder), fix=f"hilum split STUDY --name {name}"
            )
        try:
            info = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            table = pq.read_table(folder / f"{name}.parquet")
            group_id, split = (np.array(table[c].to_pylist(), object) for c in COLUMNS[:2])
            rank, fold = (np.array(table[c].to_pylist(), np.int64) for c in COLUMNS[2:])
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            raise HilumError(
                f"the split {name!r} cannot be read ({type(error).__name__})",
                where=str(folder),
                fix=f"delete {name}.json and {name}.parquet and run `hilum split` again with the same seed",
            ) from error
        return Split(study, name, group_id, split, rank, fold, info)

    def save(self, *, replace: bool = False) -> None:
        """Write both files, the JSON last. A different split of that name is never overwritten unless ``replace``."""
        folder = Path(self.study.path) / "splits"
        described = folder / f"{self.name}.json"
        if described.exists() and not replace and Split.load(self.study, self.name).info != self.info:
            raise HilumError(
                f"the study already has a different split {self.name!r}",
                where=str(described),
                fix="give another --name, or --replace it (runs made on it will refuse to resume)",
            )
        columns = {
            c: pa.array(list(getattr(self, c)), pa.string() if c in COLUMNS[:2] else pa.int64()) for c in COLUMNS
        }
        write_table(pa.table(columns), folder / f"{self.name}.parquet")
        write_json(self.info, described)

    # ---- what is in it --------------------------------------------------------------------------------------

    def groups(self, split: str, *, fraction: float = 1.0, fold: int | None = None) -> set[str]:
        """Group ids of one part. ``fraction`` f keeps the ceil(f n) lowest ranks of train.

        With ``fold`` = i, fold i is val, the other folds train and the test part stays what it is; in a split made
        without a test part fold i is test and the next fold val (cross-validation). Unknown identities only train.
        """
        if split not in PARTS:
            raise HilumError(
                f"a split has no part {split!r}", fix=nearest(split, PARTS) or f"one of {', '.join(PARTS)}"
            )
        if not 0 < fraction <= 1 or (fraction < 1 and split != "train"):
            raise HilumError(f"a label fraction in (0, 1] is taken of train, not {fraction:g} of {split}")
        part = self.split if fold is None else self._folded(fold)
        chosen = np.flatnonzero(part == split)
        if fraction < 1:
            # A fold's train mixes groups ranked in train and in val: compare ranks relative to their own part.
            relative = np.zeros(len(part))
            for name in ("train", "val"):
                own = self.split == name
                relative[own] = (self.rank[own] + 0.5) / max(int(own.sum()), 1)
            chosen = chosen[np.lexsort((chosen, relative[chosen]))[: count_of(fraction, len(chosen))]]
        return set(self.group_id[chosen])

    def _folded(self, fold: int) -> NDArray[Any]:
        k = int(self.fold.max(initial=-1)) + 1
        if not 0 <= fold < k:
            raise HilumError(
                f"the split {self.name!r} has {k} folds, number {fold} was asked for", fix="hilum split --folds K"
            )
        part = np.array(self.split)
        part[part == "val"] = "train"
        if (self.split == "test").any():
            part[self.fold == fold] = "val"
        else:
            part[self.fold == fold], part[self.fold == (fold + 1) % k] = "test", "val"
        return part

    def rows(
        self,
        split: str,
        *,
        fraction: float = 1.0,
        fold: int | None = None,
        among: Rows | None = None,
        labels: Sequence[str] | None = None,
    ) -> Rows:
        """Index rows of one part, ascending, within ``among`` (default: every picture of the study).

        A ``fraction`` that leaves a finding of ``labels`` (default: all) without positives or without negatives, though
        the whole part has some, is refused with the counts. An empty part is an error.
        """
        among = self.study.pictures if among is None else np.asarray(among, np.int64)
        group = np.asarray(self.study.column("group_id"), object)[among]
        inside = is_in(group, self.groups(split, fold=fold))
        if not inside.any():
            raise HilumError(
                f"the part {split!r} of the split {self.name!r} holds none of the {len(among)} images asked for",
                where=f"splits/{self.name}.parquet",
                fix="widen the recipe's `where`, or make a split in which this part is not empty",
            )
        if fraction < 1:
            kept = inside & is_in(group, self.groups(split, fraction=fraction, fold=fold))
            self._refuse_lost_findings(among[kept], among[inside], fraction, labels)
            inside = kept
        return np.sort(among[inside])

    def _refuse_lost_findings(self, kept: Rows, rows: Rows, fraction: float, labels: Sequence[str] | None) -> None:
        names = list(self.study.label_names if labels is None else labels)
        lost = [] if len(kept) else ["every image"]
        before, after = (self.study.label_matrix(names, r) for r in (rows, kept))
        for value, word in ((1, "positives"), (0, "negatives")):
            counts = zip(names, (before == value).sum(0), (after == value).sum(0), strict=True)
            lost += [f"{n} ({b} {word} in train, 0 left)" for n, b, a in counts if b and not a]
        if lost:
            raise HilumError(
                f"{fraction:g} of train, {len(kept)} of {len(rows)} images, loses {'; '.join(lost)}",
                fix="take a larger fraction, or leave these findings out of the recipe's labels",
            )

    def table(self) -> pa.Table:
        """One row a part: ``split groups images`` and, for every finding, ``positive.NAME`` (images) and
        ``positive_groups.NAME``."""
        served = self.study.pictures
        group = np.asarray(self.study.column("group_id"), object)[served]
        names = list(self.study.label_names)
        positive = self.study.label_matrix(names, served) == 1
        out = []
        for part in PARTS:
            members = set(self.group_id[self.split == part])
            inside = is_in(group, members)
            row: dict[str, Any] = {"split": part, "groups": len(members), "images": int(inside.sum())}
            for f, name in enumerate(names):
                hits = inside & positive[:, f]
                row |= {f"positive.{name}": int(hits.sum()), f"positive_groups.{name}": len(set(group[hits]))}
            out.append(row)
        return pa.Table.from_pylist(out)

    def empty_classes(self) -> list[str]:
        """A line for every part in which a finding has no positive or no negative: it can't be learnt or judged there."""
        served = self.study.pictures
        group = np.asarray(self.study.column("group_id"), object)[served]
        names = list(self.study.label_names)
        values = self.study.label_matrix(names, served)
        lines = []
        for part in PARTS[:3]:
            own = values[is_in(group, set(self.group_id[self.split == part]))]
            for value, word in ((1, "positive"), (0, "negative")):
                lost = [n for n, hits in zip(names, (own == value).sum(0), strict=True) if not hits] if len(own) else []
                if lost:
                    more = f" and {len(lost) - LOST} more" if len(lost) > LOST else ""
                    lines.append(f"{part} holds no {word} of {', '.join(lost[:LOST])}{more}")
        return lines

    # ---- whether it holds -----------------------------------------------------------------------------------

    def check(self, study: Any | None = None) -> None:
        """What every start asks of a stored split: it is the one that was hashed, the index is the one it was made for,
        no group stands twice, none of unknown identity is held out, and no picture stands in two parts.

        Raises LeakError naming groups by their hash, or HilumError.
        """
        study = self.study if study is None else study
        where, again = (
            f"splits/{self.name}.parquet",
            f"restore the file, or hilum split STUDY --name {self.name} --replace",
        )
        ids, times = np.unique(self.group_id, return_counts=True)
        if (times > 1).any():
            raise LeakError(f"{some(ids[times > 1])} more than once in the split", where=where, fix=again)
        if (self.info.get("digest"), self.info.get("table_digest")) != (self.digest, self.digest_of(*COLUMNS)):
            raise LeakError("the split was changed after it was made: its digest differs", where=where, fix=again)
        if self.info.get("index_digest") != study.digest:
            new = set(np.asarray(study.column("group_id"), object)[study.pictures]) - set(ids)
            raise HilumError(
                f"the split {self.name!r} was made for another state of the index ({len(new)} groups are new)",
                where=where,
                fix="make a split of this index under another --name; a run goes on only with the index it started on",
            )
        unknown = unknown_groups(study) & set(self.group_id[np.isin(self.split, ("val", "test")) | (self.fold >= 0)])
        if unknown:
            raise LeakError(f"{some(unknown)} of unknown identity and held out", where=where, fix=again)
        self.check_copies(study)

    def check_copies(self, study: Any) -> None:
        """LeakError where exact copies of one picture stand in two parts or two folds."""
        place = {g: (s, f) for g, s, f in zip(self.group_id, self.split, self.fold, strict=True) if s != "none"}
        group = np.asarray(study.column("group_id"), object)
        holders = [sorted({g for g in group[rows] if g in place}) for rows in exact_copies(study)]
        leaks = [groups for groups in holders if len({place[g] for g in groups}) > 1]
        if leaks:
            named = list(dict.fromkeys(map(tuple, leaks)))[:NAMED]  # two patients can share many pictures
            shown = "; ".join(" = ".join(f"{g} ({place[g][0]})" for g in groups) for groups in named)
            raise LeakError(
                f"{len(leaks)} pictures stand under several groups in more than one part or fold of the split: {shown}",
                where=f"splits/{self.name}.parquet",
                fix="hilum split --group-duplicates keeps such groups together, or mend private/merges.csv",
            )


def make_split(
    study: Any,
    *,
    val: float = 0.15,
    test: float = 0.2,
    seed: int = 0,
    name: str = "default",
    from_table: tuple[str | Path, str] | None = None,
    val_from_train: float | None = None,
    stratify: str | Sequence[str] = "auto",
    group_duplicates: bool = False,
    folds: int = 0,
    join: str | None = None,
    near: ShardCache | bool = True,
    replace: bool = False,
) -> Split:
    """Split a study by group, stratified by patient-level labels, and store the split.

    ``val`` and ``test`` are fractions of the groups. ``from_table`` = (table, column) takes an official split instead
    (rows joined by ``join``; the table "" is the study's own labels), refused with LeakError where a group stands in two
    parts; ``val_from_train`` then takes that fraction of its train groups for validation. ``stratify``: "auto" (all
    labels), "none", or names of labels or index columns. ``group_duplicates`` keeps groups that share an exact picture
    together. ``near``: a ShardCache of any side that the run builds anyway, True for one of side 64 of its own, False to
    leave near copies out; they are listed in ``warnings``. Nothing is written on an error.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1 and 0 <= (val_from_train or 0) < 1):
        raise HilumError(
            f"val {val:g} and test {test:g} leave nothing to train on", fix="0 <= val, test and val + test < 1"
        )
    units = Units(study, seed=seed, stratify=stratify, group_duplicates=group_duplicates, unknown=unknown_groups(study))
    several = study.left_out().get(SEVERAL_FRAMES) if len(study.rows(None)) else 0
    warnings = [f"left out: {several} {SEVERAL_FRAMES}"] if several else []
    if from_table is None:
        if val_from_train is not None:
            raise HilumError("val_from_train takes validation groups out of an official split", fix="use val")
        part = units.draw(units.start(), {"val": val, "test": test})
    else:
        part = units.adopt(official_parts(study, *from_table, join=join, warnings=warnings), warnings)
        if val_from_train:
            if (part == "val").any():
                raise HilumError("the official split has its own validation part", fix="leave val_from_train out")
            part = units.draw(part, {"val": val_from_train})
        if not (part == "train").any():
            raise HilumError("the part 'train' of the official split would be empty", where=f"column {from_table[1]!r}")
    split = Split(study, name, units.group_id, part[units.unit_of], units.ranks(part), units.folds(part, folds))
    split.check_copies(study)
    copies, note = _near_copies(split, near)
    split.info = {
        "name": name,
        "seed": seed,
        "fractions": {"val": val, "test": test} if from_table is None else {"val_from_train": val_from_train or 0},
        "from": None if from_table is None else _origin(*from_table),
        "stratify": units.stratified_by,
        "group_duplicates": group_duplicates,
        "folds": folds,
        "groups": {p: int((split.split == p).sum()) for p in PARTS},
        "index_digest": study.digest,
        "digest": split.digest,
        "table_digest": split.digest_of(*COLUMNS),
        "near_copies": copies,
        "warnings": [*warnings, *note],
    }
    split.save(replace=replace)
    return split


def _origin(table: str | Path, column: str) -> dict[str, str]:
    return {"table": file_sha256(Path(table)) if str(table) else "labels.parquet", "column": column}


def _near_copies(split: Split, near: ShardCache | bool) -> tuple[dict[str, Any] | None, list[str]]:
    """Pairs of near copies in different parts (the closest LISTED of them) and what to tell about them."""
    study = split.study
    if near is False or not len(study.rows(None)):  # volumes have no thumbnails to compare
        return None, []
    part_of = dict(zip(split.group_id, split.split, strict=True))
    served = study.rows(None)
    parts = np.array([PARTS.index(part_of[g]) for g in np.asarray(study.column("group_id"), object)[served]])
    used = served[parts < PARTS.index("none")]
    cache = ShardCache(study, side=SIDE, rows=used) if near is True else near
    built = cache.build()
    rows, thumbnails = thumbnails_of(cache, used)
    place = dict(zip(served.tolist(), parts.tolist(), strict=True))
    pairs = near_copies(thumbnails, [place[r] for r in rows.tolist()])
    ids = np.asarray(study.column("sample_id"), object)[rows]
    listed = [
        {"first": ids[p.first], "second": ids[p.second], "distance": p.distance, "ncc": round(p.ncc, 4)}
        for p in pairs[:LISTED]
    ]
    notes = [f"{len(built.bad)} images could not be read and were not compared"] if built.bad else []
    if pairs:
        shown = "; ".join(f"{p['first']} ~ {p['second']} (ncc {p['ncc']})" for p in listed[:NAMED])
        notes.append(f"{len(pairs)} pairs of near-identical pictures stand in different parts: {shown}")
    return {"count": len(pairs), "compared": len(rows), "pairs": listed}, notes


def is_in(values: NDArray[Any], members: set[str]) -> NDArray[np.bool_]:
    return np.fromiter((v in members for v in values), bool, len(values))


def some(groups: Iterable[str]) -> str:
    """``3 groups stand (a, b, c)``, at most NAMED of them."""
    listed = sorted(groups)
    more = ", ..." if len(listed) > NAMED else ""
    return f"{len(listed)} group{'s stand' if len(listed) != 1 else ' stands'} ({', '.join(listed[:NAMED])}{more})"


def unknown_groups(study: Any) -> set[str]:
    """Groups without a usable identity: they may train, never be held out (FORMATS 4)."""
    if "group_known" not in study.columns:
        return set()
    known = study.column("group_known")
    return {g for g, k in zip(study.column("group_id"), known, strict=True) if k is not None and not k}
