"""A run: the data, the networks and the loop of one checked recipe, whatever the objective."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from tempfile import TemporaryDirectory
from typing import Any

from hilum.core.errors import HilumError
from hilum.core.recipe import Recipe
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
    from hilum.verbs.run_record import data_facts, export_networks, export_sharded, refuse_other_data, write_facts
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
    refuse_other_data(recipe, data, {k: v for k, v in folder.facts.items() if k in facts} if resuming else {}, facts)
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
        write_facts(folder, recipe, data, facts)
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
    loop.hooks.append(hooks.Exports(lambda o: export_networks(o, folder, recipe, data)))
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
                export_sharded(folder, recipe, data)
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


def _warn_other_machine(payload: Mapping[str, Any]) -> None:
    import torch

    here = (torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
    there = (payload.get("threads"), payload.get("capability"))
    if here != there and not torch.cuda.is_available():
        print(
            f"note: started with {there[0]} threads on {there[1]}, going on with {here[0]} on {here[1]}: not bit-exact"
        )
