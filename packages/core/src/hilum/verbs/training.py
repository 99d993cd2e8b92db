"""``hilum pretrain``, ``finetune`` and ``resume``: one function trains, whatever the objective."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from tempfile import TemporaryDirectory
from typing import Any

from hilum.core.errors import HilumError
from hilum.core.recipe import Recipe, load_recipe
from hilum.verbs.folder import RunFolder
from hilum.verbs.launch import launched, own_rank


@dataclass
class RunResult:
    """What a training verb returns. ``exit_code`` 0, 130 or 143 (a signal; state saved)."""

    folder: Path
    reason: str
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    exit_code: int = 0


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


def train(
    recipe: Recipe,
    *,
    folder: RunFolder,
    study_path: Path,
    resuming: bool = False,
    dry_run: bool = False,
    track: bool = True,
    quiet: bool = False,
) -> RunResult:
    """Run a checked recipe in ``folder``: its stages one after the other, or itself."""
    from hilum.data.study import Study
    from hilum.verbs import staging

    study = Study(study_path)
    with ExitStack() as stack:
        if own_rank() == 0 and not dry_run:
            stack.enter_context(folder.lock())
        if recipe.get("stages") or recipe.get("tasks"):
            if dry_run:
                raise HilumError(
                    "a recipe with stages has no dry run",
                    where=recipe.where("stages" if recipe.get("stages") else "tasks"),
                    fix="try it on few images: --limit 32 --out FOLDER",
                )
            return staging.run_stages(recipe, folder=folder, study=study, resuming=resuming, track=track, quiet=quiet)
        return run_one(recipe, folder=folder, study=study, resuming=resuming, dry_run=dry_run, track=track, quiet=quiet)


def run_one(
    recipe: Recipe,
    *,
    folder: RunFolder,
    study: Any,
    resuming: bool = False,
    dry_run: bool = False,
    track: bool = True,
    quiet: bool = False,
    before: Any = None,
    stage: Mapping[str, int] | None = None,
) -> RunResult:
    """One objective on one study. ``before(objective)`` may load states and freeze parameters."""
    import torch

    from hilum.core.checkpoint import load_checkpoint, stands
    from hilum.core.fit import SIGNAL_EXIT, fit
    from hilum.core.loop import Loop
    from hilum.core.objective import Objective
    from hilum.tracking.tracker import Tracker
    from hilum.verbs import assembly, hooks
    from hilum.verbs.dryrun import rehearse
    from hilum.verbs.starts import learned_from, local_starts, origins, restore_origins
    from hilum.verbs.tracked import log_end, log_start

    plan, stack = recipe["run"], ExitStack()
    devices = _devices(recipe)
    need_labels = recipe.get("verb") == "finetune" or "head" in recipe.data
    limit = plan.get("rows", {}).get("limit")
    data = assembly.open_data(
        recipe,
        study,
        split_name=plan["split"],
        fraction=plan.get("fraction", 1.0),
        fold=plan.get("fold"),
        limit=limit,
        need_labels=need_labels,
        purpose="dry run" if dry_run else "train",
        quiet=quiet,
    )
    facts = data_facts(data)
    _same_data(recipe, data, {k: v for k, v in folder.facts.items() if k in facts} if resuming else {}, facts)
    if not resuming:
        recipe = assembly.resolve(recipe, data, devices=devices)
    recipe = recipe.with_(
        {"run": {"index_digest": study.digest, "split_digest": data.split_digest, "threads": torch.get_num_threads()}}
    )
    last = folder.checkpoint("last")
    saved = load_checkpoint(last) if resuming and stands(last) else None  # a run may end before its first checkpoint
    # a frozen network is not in the checkpoint: where there is one, the starts are loaded again
    covered = saved is not None and not saved.get("frozen")
    starts = _starts(recipe, plan.get("init"), resuming=covered)
    fetched = stack.enter_context(TemporaryDirectory(prefix="hilum-start-"))
    starts = local_starts(starts, recipe, study=study.path, into=Path(fetched))
    lineage = learned_from(starts, recipe, data, before=folder.facts if resuming else {})
    objective, reports = assembly.build_objective(recipe, data.labels, init=starts)
    if covered:
        restore_origins(objective, folder.facts.get("starts", {}))
    for name, report in reports.items():
        if report is not None and not quiet and own_rank() == 0:
            print(f"{name}: {report}")
    if before is not None:
        before(objective)
    feed = assembly.feed_of(recipe, data, bad_path=folder.path / "bad_samples.parquet")
    stack.callback(feed.close)
    predicts = type(objective).predict is not Objective.predict
    monitor = (
        ("val/auroc_macro", "max")
        if predicts and recipe.get("task", "multilabel") != "multiclass"
        else ("val/accuracy", "max")
        if predicts
        else ("val/loss", "min")
    )
    settings = assembly.loop_settings(recipe, steps_per_epoch=feed.steps_per_epoch, devices=devices, monitor=monitor)
    loop = Loop(objective, feed, settings, folder=None if dry_run else folder.path)
    if stage:
        loop.position.stage, loop.position.task = stage.get("stage", 0), stage.get("task", 0)
    if dry_run:
        with stack:
            rehearse(loop, data, recipe)
        return RunResult(folder.path, "dry run", 0)
    if saved is not None:
        loop.restore(saved)
        _warn_other_machine(saved)
    if own_rank() == 0:
        _write_facts(folder, recipe, data, facts)
        folder.note(starts=origins(objective), **lineage)
    tracker = Tracker.open(
        study=study.path,
        run_dir=folder.path,
        experiment=recipe.name,
        run_name=folder.path.name,
        resumed_from=loop.position.step if resuming else None,
        enabled=track and own_rank() == 0,
    )
    every = int(recipe["engine"]["validate_epochs"])
    loop.hooks += [hooks.Tracking(tracker), hooks.Validation(lambda: feed.loader("val"), every=every, tracker=tracker)]
    if recipe.get("probes"):
        loop.hooks.append(
            hooks.Probes(
                recipe["probes"], train=lambda: feed.loader("train"), val=lambda: feed.loader("val"), tracker=tracker
            )
        )
    loop.hooks.append(hooks.Exports(lambda o: _export(o, folder, recipe, data)))
    if not quiet:
        loop.hooks.append(hooks.ProgressLine(folder.path.name))
    began = time.time()
    with stack, tracker:
        log_start(tracker, recipe, data, objective)
        nodes = launch.nodes if (launch := launched()) else 1
        strategy = assembly.strategy_of(recipe, devices)
        fit(loop, devices=devices // nodes, nodes=nodes, strategy=strategy, precision=recipe["precision"])
        if loop.stop_reason == "signal":
            tracker.close("KILLED")
        elif own_rank() == 0:
            if settings.shard is not None:
                _export_sharded(folder, recipe, data)
            folder.note(
                finished=True,
                seconds=round(time.time() - began, 1),
                samples=loop.position.samples,
                best=loop.position.best,
                steps=loop.position.step,
            )
            log_end(tracker, folder.path / "exported")
    # a signal after the last step changes nothing: the run is complete
    code = SIGNAL_EXIT[Signals(loop.stop_signal or 0)] if loop.stop_reason == "signal" else 0
    if code and own_rank() == 0:
        print(f"\nstopped at step {loop.position.step}, state saved; go on with: hilum resume {folder.path}")
    return RunResult(folder.path, loop.stop_reason, loop.position.step, loop.history, loop.position.best, code)


def _devices(recipe: Recipe) -> int:
    import torch

    told = recipe["engine"]["devices"]
    if (launch := launched()) is not None:
        return launch.world
    if told == "auto":
        return max(torch.cuda.device_count(), 1)
    if not isinstance(told, int) or told < 1:
        raise HilumError(
            f"engine.devices must be a whole number or auto, got {told!r}", where=recipe.where("engine.devices")
        )
    return told


def _starts(recipe: Recipe, init: str | None, *, resuming: bool) -> dict[str, str]:
    """Start of every encoder: the verb's --init for the first, the recipe's for the rest; nothing on resume."""
    names = list(recipe.get("encoders", {}))
    if resuming:
        return dict.fromkeys(names, "structure")
    return {names[0]: init} if init and names else {}


def data_facts(data: Any) -> dict[str, str]:
    """What run.json keeps of the data beside the digests in config.yaml: those leave out folds, patients and labels."""
    from hilum.verbs.assembly import grouping_sha256, labels_sha256

    return {
        "split_table_digest": data.split.info.get("table_digest", "") if data.split is not None else "",
        "grouping_sha256": grouping_sha256(data.study),
        "labels_sha256": labels_sha256(data),
    }


def _same_data(recipe: Recipe, data: Any, noted: Mapping[str, str], facts: Mapping[str, str]) -> None:
    """A resumed run must see the data it started on."""
    told = recipe["run"]
    now = {"index_digest": data.study.digest, "split_digest": data.split_digest, **facts}
    for key, what in (
        ("index_digest", "the index"),
        ("split_digest", "the split"),
        ("split_table_digest", "the split's folds or ranks"),
        ("grouping_sha256", "who is the same patient"),
        ("labels_sha256", "the labels"),
    ):
        then = told.get(key, noted.get(key))
        if then is not None and then != now[key]:
            raise HilumError(
                f"{what} changed since this run started",
                where=recipe.where(f"run.{key}"),
                fix="restore the study as it was, or start a new run",
            )


def _warn_other_machine(payload: Mapping[str, Any]) -> None:
    import torch

    here = (torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
    there = (payload.get("threads"), payload.get("capability"))
    if here != there and not torch.cuda.is_available():
        print(
            f"note: started with {there[0]} threads on {there[1]}, going on with {here[0]} on {here[1]}: not bit-exact"
        )


def _write_facts(folder: RunFolder, recipe: Recipe, data: Any, known: Mapping[str, str]) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_config(recipe)
    facts: dict[str, Any] = {
        **known,
        "rows": {name: len(rows) for name, rows in data.rows.items()},
        "config_sha256": recipe.sha256,
    }
    if data.labels is not None:
        facts["labels"] = {"names": list(data.labels.names), "task": data.labels.task}
        facts["counts"] = {s: {n: list(c) for n, c in counts.items()} for s, counts in data.labels.counts.items()}
    folder.note(**facts)


def _export(objective: Any, folder: RunFolder, recipe: Recipe, data: Any) -> None:
    from hilum.encoders.exported import save_exported
    from hilum.verbs.assembly import normalisation
    from hilum.verbs.deltas import save_deltas
    from hilum.verbs.tracked import data_licence

    provenance = {
        "index_digest": data.study.digest,
        "split_digest": data.split_digest,
        "recipe": recipe.name,
        "data_licence": data_licence(data.study),
        "datasets": folder.facts.get("datasets", []),
    }
    save_deltas(objective, folder.path / "exported", recipe, card=provenance)
    for name, module in objective.exported().items():
        if name in recipe.get("adapters", {}):  # written as a delta, which names its base
            continue
        spec = getattr(module, "spec", None)
        config = recipe.get("encoders", {}).get("image" if name == "encoder" else name.removesuffix("_encoder"), {})
        save_exported(
            folder.path / "exported",
            name,
            module,
            card={
                "registry_id": config.get("name", recipe["objective"]["name"]),
                "kwargs": {k: v for k, v in config.items() if k not in ("name", "init")},
                "view": dict(recipe["views"].get("image", {})),
                **dict(zip(("mean", "std"), map(list, normalisation(recipe).get("image", ((), ()))), strict=True)),
                "value_range": [0.0, 1.0],
                "licence": getattr(spec, "licence", "Apache-2.0"),
                **provenance,
            },
        )


def _export_sharded(folder: RunFolder, recipe: Recipe, data: Any) -> None:
    """A sharded run exports from its whole checkpoint, once it is written."""
    from hilum.verbs.loading import load_model

    _export(load_model(folder.path).objective, folder, recipe, data)
