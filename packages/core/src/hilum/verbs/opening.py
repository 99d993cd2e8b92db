"""Which images of which study a run is judged on, and what forbids it: changed parts, patients seen in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hilum.core.errors import HilumError, LeakError


class Opened:
    """A study's rows served for evaluation by a model's own views and normalisation.

    ``notes`` say what a reader of the results must know of these rows; ``feed`` counts what it delivers, and writes what
    it could not to ``bad_path`` when it is checked.
    """

    def __init__(self, model: Any, data: Any, *, notes: Sequence[str] = (), bad_path: Path | None = None) -> None:
        from hilum.verbs.assembly import feed_of

        self.data, self.notes = data, list(notes)
        self.external = data.study.path.resolve() != model.study_path
        self.feed = feed_of(model.recipe, data, train=False, bad_path=bad_path)

    def loader(self, split: str) -> Any:
        return self.feed.loader(split)


def open_study(
    model: Any,
    data: Path | None,
    *,
    splits: tuple[str, ...],
    limit: int | None = None,
    bad_path: Path | None = None,
    allow_overlap: Sequence[str] = (),
) -> Opened:
    """Parts of the run's own study (``data`` None) or of another one; ``("all",)`` is every image the recipe selects.

    A study of a dataset that shares images with one the run learned from is a LeakError, unless that one is named in
    ``allow_overlap``.
    """
    from hilum.data.split import Split
    from hilum.data.study import Study
    from hilum.verbs.assembly import open_data, open_rows
    from hilum.verbs.run_data import check_limit

    check_limit(limit)
    study = Study(data if data is not None else model.study_path)
    # what a recipe makes of uncertain labels is a way to train; nobody is judged by a guessed truth
    recipe = model.recipe.with_({"labels": {"uncertain": "ignore"}})
    labelled = bool(model.labels) and set(model.labels.names) <= set(study.label_names)
    names = list(model.labels.names) if labelled else None
    recipe = recipe.with_({"labels": {"names": names}}) if names else recipe
    plan = recipe["run"]
    own = study.path.resolve() == model.study_path
    shared = [] if own or splits == ("all",) else _refuse_shared(model, study, allow_overlap)
    if splits == ("all",) or (not own and not (study.path / "splits" / f"{plan['split']}.json").exists()):
        rows = {splits[0]: study.rows(recipe["where"])[:limit]}
        notes = [] if splits == ("all",) else [*shared, *_refuse_seen(model, study, rows[splits[0]])]
        return Opened(model, open_rows(recipe, study, rows, labelled=labelled), notes=notes, bad_path=bad_path)
    if own:
        _same_parts(model, study, Split.load(study, plan["split"]))
    made = open_data(
        recipe,
        study,
        split_name=plan["split"],
        fraction=plan.get("fraction", 1.0) if own else 1.0,
        fold=plan.get("fold") if own else None,
        # what the run learned from; the parts that judge it are judged whole
        limit=plan.get("rows", {}).get("limit") if own and splits == ("train",) and limit is None else limit,
        need_labels=labelled,
        splits=splits,
    )
    notes = [] if own else [*shared, *_refuse_seen(model, study, np.concatenate(list(made.rows.values())))]
    return Opened(model, made, notes=notes, bad_path=bad_path)


def _refuse_shared(model: Any, study: Any, allowed: Sequence[str]) -> list[str]:
    """LeakError where published datasets are known to share images; what was allowed is returned as a note."""
    from hilum.data.overlaps import refuse_overlap

    return refuse_overlap(model.facts.get("datasets", ()), study.about.get("dataset"), allowed=allowed)


def _same_parts(model: Any, study: Any, split: Any) -> None:
    """The run's own study must deal its patients as it did when the run was trained."""
    from hilum.verbs.assembly import grouping_sha256

    facts = model.facts
    for then, now, what in (
        (model.recipe["run"].get("split_digest"), split.digest, "the split is not the one"),
        (
            facts.get("split_table_digest", split.info.get("table_digest")),
            split.info.get("table_digest"),
            "the split's folds or ranks are not those",
        ),
        (
            facts.get("grouping_sha256"),
            facts.get("grouping_sha256") and grouping_sha256(study),
            "the patients are not those",
        ),
    ):
        if then != now:
            raise HilumError(
                f"{what} this run was trained on",
                where=f"splits/{split.name}.json",
                fix="evaluate on the study as it was, or train again on the new one",
            )


def _refuse_seen(model: Any, study: Any, rows: Any) -> list[str]:
    """LeakError where another study holds patients or pictures that this run was trained or selected on.

    Returns what could not be compared. Patients are the same only under one identity key; pixels are under any.
    """
    from hilum.data.split import Split, is_in
    from hilum.data.study import Study

    told, own = model.recipe["run"], None
    try:
        own = Study(model.study_path)
        split = Split.load(own, told["split"])
    except HilumError:
        pass
    if own is None or split.digest != told.get("split_digest"):
        return ["The study this run was trained on is gone or changed: nobody checked for patients in both."]
    used = own.rows(model.recipe["where"])
    group = np.asarray(own.column("group_id"), object)[used]
    seen = split.groups("train", fold=told.get("fold")) | split.groups("val", fold=told.get("fold"))
    patients, pictures = (np.asarray(study.column(c), object)[rows] for c in ("group_id", "stored_sha256"))
    known = set(np.asarray(own.column("stored_sha256"), object)[used[is_in(group, seen)]]) - {None}
    one_key = study.about.get("id_key") == own.about.get("id_key")
    both, copies = set(patients) & seen, [p for p in pictures if p in known]
    if both or copies:
        what = f"{len(both)} patients and {len(copies)} pictures" if one_key else f"{len(copies)} pictures"
        raise LeakError(
            f"{what} of {study.path.name} were used to train or select this run",
            where=f"groups: {', '.join(sorted(both)[:5])}" if both else "identical pixels under other patients",
            fix="judge it on a study without them (hilum index --exclude), or on the run's own test set",
        )
    if one_key:
        return []
    return [
        "Patients of training cannot be recognised in this study: it was indexed with another identity key. No picture "
        "of it is one of training; index it with the run's key (--id-key) to compare patients too."
    ]
