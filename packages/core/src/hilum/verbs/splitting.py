"""``hilum split``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError


def split(
    study: Path,
    *,
    val: float = 0.15,
    test: float = 0.2,
    seed: int = 0,
    name: str = "default",
    from_: str | None = None,
    val_from: str | None = None,
    stratify: list[str] | None = None,
    group_duplicates: bool = False,
    folds: int = 0,
    near: bool = True,
    replace: bool = False,
) -> Any:
    """Divide a study's patients into training, validation and test sets; no patient is in two of them.

    Args:
        study: the folder that `hilum index` wrote
        val: share of patients for validation
        test: share of patients for the test set
        seed: seed of the draw
        name: name of the split
        from_: take an official split from a table: T.csv:COLUMN (or just COLUMN of the labels table)
        val_from: draw a validation set from the training patients: --val-from train:0.1 (or train 0.1)
        stratify: columns to balance by (default: the labels)
        group_duplicates: keep patients that share identical images on one side instead of refusing
        folds: also number the non-test patients into this many folds
        near: look for nearly identical images across the parts (decodes every image once)
        replace: overwrite a split of the same name
    """
    from hilum.data.split import make_split
    from hilum.data.study import Study

    opened = Study(study)
    made = make_split(
        opened, val=val, test=test, seed=seed, name=name, from_table=_table(from_), val_from_train=_share(val_from),
        stratify=stratify or "auto", group_duplicates=group_duplicates, folds=folds, near=near, replace=replace,
    )  # fmt: skip
    print(render(made))
    if from_ is None and (parts := _official(opened)):
        told = f"the labels table has a column 'split' ({', '.join(parts)}), which was not used"
        print(f"note: {told}; to take that official split: hilum split {study} --from split --name official")
    return made


def _official(study: Any) -> list[str]:
    """The parts that a column ``split`` of the study's own labels table names; the index keeps it where all words do."""
    from hilum.data.tables import part_of

    if study.labels is None or "split" not in study.labels.column_names:
        return []
    named = {part_of(word) for word in study.labels.column("split").unique().to_pylist() if word}
    return [part for part in ("train", "val", "test") if part in named]


def _table(told: str | None) -> tuple[str, str] | None:
    if told is None:
        return None
    path, colon, column = told.rpartition(":")
    if not colon:
        return ("", column)
    return (path, column)


def _share(told: str | None) -> float | None:
    if not told:
        return None
    try:
        return float(told.removeprefix("train").lstrip(": "))
    except ValueError:
        raise HilumError(f"--val-from takes train:SHARE, got {told!r}", fix="--val-from train:0.1") from None


def _reword(words: Sequence[str]) -> list[str]:
    """``--val-from train 0.1`` as one word: an option that took several would swallow the study behind it."""
    told = list(words)
    for at, pair in enumerate(pairwise(told)):
        if pair == ("--val-from", "train"):
            told[at + 1 : at + 3] = [":".join(told[at + 1 : at + 3])]
            break
    return told


split.reword = _reword  # type: ignore[attr-defined]  # the command line's own words, before they are parsed


def render(made: Any) -> str:
    """The split as a table of groups, images and positives."""
    table = made.table().to_pylist()
    findings = [c.removeprefix("positive.") for c in table[0] if c.startswith("positive.")]
    header = ["", "patients", "images", *findings]
    rows = [
        [r["split"], r["groups"], r["images"], *(r[f"positive.{f}"] for f in findings)] for r in table if r["groups"]
    ]
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(str(c).rjust(w) if i else str(c).ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in [header, *rows]
    ]
    if made.info.get("folds"):
        sizes = [int((made.fold == i).sum()) for i in range(int(made.fold.max()) + 1)]
        role = "is val" if (made.split == "test").any() else "is test, the next one val"
        lines.append(f"folds of {', '.join(map(str, sizes))} patients over train and val; with --fold i, fold i {role}")
    notes = [f"note: {w}" for w in (*made.warnings, *made.empty_classes())]
    return "\n".join([*lines, *notes, f"split {made.name}: digest {made.digest[:16]}"])
