"""Several stages, or one stage a task, run one after the other with audited freezing.

A stage may override any section of the recipe and say what it starts from (``init``: ``previous`` = the whole objective
of the stage before, ``start`` = as the recipe builds it, ``stage:NAME/encoder`` = what a stage exported, or a file),
which parameters train (``train``: globs; all others are frozen and audited by hash) and which modules stay in
evaluation mode (``eval_mode``: globs).
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hilum.core.errors import HilumError
from hilum.core.recipe import COMPONENTS, NESTED, Recipe, check, merge
from hilum.verbs.folder import RunFolder

if TYPE_CHECKING:
    from hilum.encoders.weights import LoadReport
    from hilum.verbs.running import RunResult

OWN_KEYS = ("name", "init", "train", "eval_mode")


def stage_recipes(recipe: Recipe) -> list[tuple[str, dict[str, Any], Recipe]]:
    """(name, own settings, whole recipe) of each stage; ``tasks`` are stages that start from the previous one."""
    list_ = "stages" if recipe.get("stages") else "tasks"
    result = []
    for number, entry in enumerate(recipe[list_]):
        own = {k: entry[k] for k in OWN_KEYS if k in entry}
        own.setdefault("name", f"{list_.removesuffix('s')}{number}")
        own.setdefault("init", "start" if number == 0 else "previous")
        at = f"{list_}.{number}."
        lines = {k.removeprefix(at): line for k, line in recipe.lines.items() if k.startswith(at)}
        base = {k: v for k, v in recipe.data.items() if k not in ("stages", "tasks")}
        changes = {k: v for k, v in entry.items() if k not in OWN_KEYS}
        whole = Recipe(_changed(base, changes), recipe.origin, {**recipe.lines, **lines}, recipe.settings - set(lines))
        check(whole)  # what a stage changes may not fit what it keeps
        result.append((str(own["name"]), own, whole))
    names = [name for name, _, _ in result]
    if len(set(names)) != len(names):
        raise HilumError("two stages have the same name", where=recipe.where(list_))
    return result


def _changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` laid on ``base``; a component of another name does not inherit the options of the one it replaces."""
    kept = dict(base)
    for key in COMPONENTS:
        if changes.get(key, {}).get("name", base.get(key, {}).get("name")) != base.get(key, {}).get("name"):
            kept.pop(key, None)
    for key in NESTED:
        if key in kept and key in changes:
            others = {
                n for n, c in changes[key].items() if c.get("name") not in (None, kept[key].get(n, {}).get("name"))
            }
            kept[key] = {n: c for n, c in kept[key].items() if n not in others}
    return merge(kept, changes)


def run_stages(recipe: Recipe, *, folder: RunFolder, study: Any, resuming: bool, track: bool, quiet: bool) -> RunResult:
    """Run what is not finished; the last stage's exports become the run's."""
    from hilum.verbs.running import RunResult, run_one

    stages = stage_recipes(recipe)
    if resuming and recipe["schedule"] != folder.recipe["schedule"]:
        raise HilumError(
            "a run with stages cannot be extended: each stage has its own epochs, kept in its own folder",
            where=str(folder.path),
            fix="resume without --epochs; to train longer, start a run with more epochs in its last stage",
        )
    if not resuming:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_config(recipe)
    tasks = bool(recipe.get("tasks"))
    done: dict[str, RunFolder] = {}
    result = None
    for number, (name, own, whole) in enumerate(stages):
        inner = RunFolder(folder.path / "stages" / f"{number}-{name}")
        previous = list(done.values())[-1] if done else None
        done[name] = inner
        if inner.facts.get("finished"):
            continue
        going_on = inner.config.is_file()
        audit = Audit(own, previous, done, quiet=quiet)
        plan = {**whole["run"], "name": inner.path.name}
        chosen = inner.recipe if going_on else whole.with_({"run": plan})
        result = run_one(
            chosen, folder=inner, study=study, resuming=going_on, track=track, quiet=quiet, before=audit.prepare,
            stage={"stage": 0 if tasks else number, "task": number if tasks else 0},
        )  # fmt: skip
        if result.exit_code:
            return result
        inner.note(frozen=audit.verify())
    last = list(done.values())[-1]
    if (last.path / "exported").is_dir():
        shutil.copytree(last.path / "exported", folder.path / "exported", dirs_exist_ok=True)
    shutil.copytree(last.path / "checkpoints", folder.path / "checkpoints", dirs_exist_ok=True)
    folder.note(**{k: v for k, v in last.facts.items() if k != "mlflow"}, stages=list(done))
    if result is None:
        result = RunResult(folder.path, "finished", 0)
    result.folder = folder.path
    return result


class Audit:
    """Freezes what a stage does not train, and proves afterwards that it did not move."""

    def __init__(
        self, own: dict[str, Any], previous: RunFolder | None, done: dict[str, RunFolder], *, quiet: bool = True
    ) -> None:
        self.own, self.previous, self.done, self.quiet = own, previous, done, quiet
        self.objective: Any = None
        self.hashes: dict[str, str] = {}

    def prepare(self, objective: Any) -> None:
        """Load the start, freeze, keep modules in evaluation mode; called before the optimiser is built."""
        self.objective = objective
        self._load(objective, str(self.own["init"]))
        globs = self.own.get("train")
        if globs is not None:
            _freeze_all_but(objective, globs)
        for glob in self.own.get("eval_mode", ()):
            matched = [m for n, m in objective.named_modules() if n and fnmatch.fnmatchcase(n, glob)]
            if not matched:
                raise HilumError(f"eval_mode: {glob!r} matches no module", where="stages")
            for module in matched:
                module.eval()
                module.train = lambda mode=True, module=module: module  # stays in evaluation mode
        self.hashes = _hashes(objective)

    def verify(self) -> dict[str, str]:
        """Hashes of the frozen parameters, or an error naming the ones that changed."""
        now = _hashes(self.objective)
        moved = [name for name, value in self.hashes.items() if now.get(name) != value]
        if moved:
            raise HilumError(
                f"{len(moved)} frozen parameters changed in stage {self.own['name']!r}: {', '.join(moved[:5])}"
            )
        return now

    def _load(self, objective: Any, init: str) -> None:
        from hilum.core.checkpoint import load_checkpoint
        from hilum.encoders.weights import load_weights

        if init == "start":
            return
        if init == "previous":
            if self.previous is None:
                raise HilumError("the first stage has no previous one", where="stages", fix="init: start")
            state = load_checkpoint(self.previous.checkpoint("last"))["objective"]
            self._tell(load_fitting(objective, state, source=f"the stage in {self.previous.path.name}"))
            return
        source = init
        if init.startswith("stage:"):
            name, _, part = init.removeprefix("stage:").partition("/")
            if name not in self.done:
                raise HilumError(
                    f"there is no earlier stage {name!r}", where="stages", fix=f"earlier stages: {', '.join(self.done)}"
                )
            source = f"{self.done[name].path}#{part or 'encoder'}"
        encoder = getattr(
            objective, "encoder", None
        )  # not exported(): that is a merged copy where adapters are attached
        if encoder is None:
            raise HilumError("this stage's objective has no encoder to start", where="stages")
        self._tell(load_weights(encoder, source))

    def _tell(self, report: Any) -> None:
        from hilum.verbs.launch import own_rank

        if not self.quiet and not own_rank():
            print(f"stage {self.own['name']}: {report}")


def load_fitting(objective: Any, state: Mapping[str, Any], *, source: str) -> LoadReport:
    """Fill ``objective`` with the tensors of ``state`` that have its names and shapes; raise where they are too few.

    A head for other findings stays as it is built; how much must fit is what ``--init`` asks of an encoder.
    """
    from hilum.encoders.weights import ENOUGH, LoadReport

    own = objective.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    missing, unexpected = (tuple(k for k in among if k not in fitting) for among in (own, state))
    report = LoadReport(tuple(fitting), (), missing, unexpected, source)
    parameters = [name for name, _ in objective.named_parameters()]
    filled = sum(name in fitting for name in parameters)
    if filled < ENOUGH * len(parameters):
        raise HilumError(
            f"{source} fills only {filled} of this stage's {len(parameters)} parameters\n{report}",
            where="stages",
            fix="give both stages the same networks, or this one init: stage:NAME/encoder, a file, or start",
        )
    objective.load_state_dict(fitting, strict=False)
    return report


def _freeze_all_but(objective: Any, globs: Sequence[str]) -> None:
    matched = dict.fromkeys(globs, False)
    for name, parameter in objective.named_parameters():
        hits = [glob for glob in globs if fnmatch.fnmatchcase(name, glob)]
        for glob in hits:
            matched[glob] = True
        if not hits:
            parameter.requires_grad_(False)
    for glob, hit in matched.items():
        if not hit:
            raise HilumError(f"train: {glob!r} matches no parameter", where="stages")


def _hashes(objective: Any) -> dict[str, str]:
    return {
        name: hashlib.sha256(p.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        for name, p in objective.named_parameters()
        if not p.requires_grad
    }
