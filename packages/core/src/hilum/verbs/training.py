"""``hilum pretrain``, ``finetune`` and ``resume``: one function trains, whatever the objective."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path

from hilum.core.errors import HilumError
from hilum.core.recipe import Recipe, load_recipe
from hilum.verbs.folder import RunFolder
from hilum.verbs.launch import own_rank
from hilum.verbs.running import RunResult, train


def pretrain(
    recipe: str,
    *,
    data: Path,
    out: Path | None = None,
    set: list[str] | None = None,
    split: str = "default",
    fold: int | None = None,
    init: str | None = None,
    limit: int | None = None,
    allow_overlap: list[str] | None = None,
    dry_run: bool = False,
    track: bool = True,
) -> RunResult:
    """Train an encoder on a study without labels.

    Args:
        recipe: a name of `hilum list --kind recipe`, or a YAML file
        data: the study that `hilum index` wrote
        out: folder of the run (default STUDY/runs/RECIPE)
        set: change one setting of the recipe, e.g. --set optim.base_lr=1e-4
        split: name of the split to train and validate on
        fold: leave this fold of the split out (`hilum split --folds K`)
        init: start of the encoder: scratch, a run, a weights file or folder, runs:/RUN_ID, or a hub name
        limit: use only this many images of each part
        allow_overlap: a dataset that --init learned from and that may share images with this study's (recorded)
        dry_run: one training and one validation step on the largest images; prints memory and projected time
        track: log to MLflow
    """
    return start(
        recipe,
        data=data,
        out=out,
        sets=set or (),
        split=split,
        fold=fold,
        init=init,
        limit=limit,
        allow_overlap=allow_overlap or (),
        dry_run=dry_run,
        track=track,
        verb="pretrain",
    )


def finetune(
    recipe: str,
    *,
    data: Path,
    init: str = "scratch",
    out: Path | None = None,
    fraction: float = 1.0,
    fold: int | None = None,
    set: list[str] | None = None,
    split: str = "default",
    limit: int | None = None,
    allow_overlap: list[str] | None = None,
    dry_run: bool = False,
    track: bool = True,
) -> RunResult:
    """Adapt an encoder to a study's labels.

    Args:
        recipe: a name of `hilum list --kind recipe`, or a YAML file
        data: the study that `hilum index` wrote
        init: start of the encoder: scratch, a run, a weights file or folder, runs:/RUN_ID, or a hub name
        out: folder of the run (default STUDY/runs/RECIPE)
        fraction: share of the training groups whose labels are used (nested: 0.1 is part of 0.25)
        fold: leave this fold of the split out (`hilum split --folds K`)
        set: change one setting of the recipe, e.g. --set optim.base_lr=1e-4
        split: name of the split to train and validate on
        limit: use only this many images of each part
        allow_overlap: a dataset that --init learned from and that may share images with this study's (recorded)
        dry_run: one training and one validation step on the largest images; prints memory and projected time
        track: log to MLflow
    """
    return start(
        recipe,
        data=data,
        out=out,
        sets=set or (),
        split=split,
        init=init,
        fraction=fraction,
        fold=fold,
        limit=limit,
        allow_overlap=allow_overlap or (),
        dry_run=dry_run,
        track=track,
        verb="finetune",
    )


def resume(run: Path, *, epochs: float | None = None, track: bool = True) -> RunResult:
    """Go on with a run exactly where it stopped; nothing else is needed.

    Args:
        run: the run's folder
        epochs: extend (or shorten) the schedule to this many epochs; redefines the learning-rate curve from here on
        track: log to MLflow, under the same MLflow run
    """
    folder = RunFolder.open(run)
    recipe = folder.recipe
    if epochs is not None:
        recipe = recipe.with_({"schedule": {"epochs": epochs}})
    plan = recipe["run"]
    return train(recipe, folder=folder, study_path=_study_path(folder, plan["study"]), resuming=True, track=track)


def _study_path(folder: RunFolder, told: str) -> Path:
    """The study of a run: stored relative to the run where it lies inside the study, so that studies may move."""
    path = Path(told)
    return path if path.is_absolute() else (folder.path / path).resolve()


def start(
    recipe: str,
    *,
    data: Path,
    out: Path | None,
    sets: Sequence[str],
    split: str,
    verb: str,
    init: str | None = None,
    fraction: float = 1.0,
    fold: int | None = None,
    limit: int | None = None,
    allow_overlap: Sequence[str] = (),
    dry_run: bool = False,
    track: bool = True,
    quiet: bool = False,
) -> RunResult:
    """Check everything that can be checked before torch is imported, then train."""
    checked = load_recipe(recipe, sets=sets)
    _check_augment(checked)
    if checked.get("verb", verb) != verb:
        raise HilumError(
            f"recipe {checked.name} is for `hilum {checked['verb']}`", fix=f"hilum {checked['verb']} {recipe} ..."
        )
    if not 0 < fraction <= 1:
        raise HilumError(f"--fraction must be above 0 and at most 1, got {fraction}")
    study_path = Path(data)
    folder = RunFolder(Path(out) if out else study_path / "runs" / checked.name.replace("/", "-"))
    if folder.config.is_file() and not dry_run and own_rank() == 0:
        raise HilumError(
            "this run folder is taken",
            where=str(folder.path),
            fix=f"hilum resume {folder.path}   to go on with it, or choose another --out",
        )
    plan = {
        "study": os.path.relpath(study_path.resolve(), folder.path.resolve())
        if not _foreign(study_path, folder.path)
        else str(study_path.resolve()),
        "split": split,
        "fraction": float(fraction),
        "name": folder.path.name,
        "hilum": importlib.metadata.version("hilum"),
        **({"init": init} if init else {}),
        **({"rows": {"limit": limit}} if limit is not None else {}),
        **({"fold": fold} if fold is not None else {}),
        **({"allow_overlap": list(allow_overlap)} if allow_overlap else {}),
    }
    return train(
        checked.with_({"run": plan}), folder=folder, study_path=study_path, dry_run=dry_run, track=track, quiet=quiet
    )


def _check_augment(recipe: Recipe) -> None:
    """Unknown augmentation keys and ranges, with the place they came from."""
    from hilum.augment.ops import read_ops
    from hilum.verbs.components import told_by

    with told_by(recipe, "augment", "the augmentation"):
        read_ops(recipe["augment"])


def _foreign(study: Path, run: Path) -> bool:
    """Whether the run lies outside the study (then an absolute path finds it again)."""
    return study.resolve() not in run.resolve().parents
