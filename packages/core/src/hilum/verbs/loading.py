"""From a RUN folder back to the model it trained: what evaluate, predict, embed and export start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hilum.core.adapter import state_sha256
from hilum.core.checkpoint import load_checkpoint, stands
from hilum.core.errors import HilumError
from hilum.core.objective import Objective
from hilum.core.recipe import Recipe
from hilum.core.types import LabelSpace
from hilum.verbs.folder import RunFolder
from hilum.verbs.staging import stage_recipes
from hilum.verbs.starts import restore_origins


@dataclass
class LoadedModel:
    """A run's objective with trained weights, in evaluation mode. ``folder`` is RUN, ``facts`` its ``run.json``.

    ``recipe`` is the resolved one the weights belong to: of a run with stages, the last stage's.
    """

    objective: Objective
    recipe: Recipe
    labels: LabelSpace | None
    folder: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = "best"

    @cached_property
    def sha256(self) -> str:
        """Of the weights as they were loaded: names, dtypes, shapes, bytes."""
        return state_sha256(self.objective)

    @property
    def study_path(self) -> Path:
        """See :meth:`RunFolder.study_of`."""
        return RunFolder(self.folder).study_of(self.recipe)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and batches go."""
        return next((p.device for p in self.objective.parameters()), torch.device("cpu"))


def inference_device() -> torch.device:
    """Where a trained model runs: a GPU where training would take one. Numbers stay float32 there."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(run: Path, *, checkpoint: str = "best", device: str | torch.device = "cpu") -> LoadedModel:
    """Rebuild the objective of ``RUN/config.yaml`` and load ``checkpoints/CHECKPOINT.ckpt`` into it.

    Where the checkpoint holds a moving average of the weights, the average is what is loaded: it is what was validated
    and exported. Raises :class:`HilumError` for a folder that is no run, a checkpoint that is not there, and weights
    that do not fit.
    """
    from hilum.verbs.assembly import build_objective

    folder = RunFolder.open(run)
    path = _checkpoint(folder, checkpoint)
    recipe, facts = _trained_recipe(folder), folder.facts
    labels = labels_of(facts, recipe)
    with torch.random.fork_rng(devices=[]):  # building draws initial weights that are replaced at once
        objective, _ = build_objective(recipe, labels, init=dict.fromkeys(recipe.get("encoders", {}), "structure"))
    payload = load_checkpoint(path)
    load_state(objective, payload["objective"], where=f"{folder.path.name}/checkpoints/{path.name}")
    if payload.get("average") is not None:
        _take_average(objective, payload["average"])
    restore_origins(objective, facts.get("starts", {}))
    return LoadedModel(objective.to(device).eval(), recipe, labels, folder.path, facts, checkpoint)


def labels_of(facts: Mapping[str, Any], recipe: Recipe) -> LabelSpace | None:
    """The label space that training noted in ``run.json``; None for a run without labels."""
    told = facts.get("labels")
    if not told:
        return None
    counts = {s: {n: (c[0], c[1], c[2]) for n, c in named.items()} for s, named in facts.get("counts", {}).items()}
    lateral = frozenset(recipe["labels"].get("lateral", ()))
    return LabelSpace(tuple(told["names"]), told["task"], counts=counts, lateral=lateral)


def load_state(objective: Objective, state: Mapping[str, Tensor], *, where: str) -> None:
    """``load_state_dict`` whose refusal names the first keys that do not fit."""
    try:
        objective.load_state_dict(state)
    except RuntimeError as error:
        told = " ".join(" ".join(str(error).split()).split()[:40])
        raise HilumError(
            f"these weights do not belong to the run's configuration: {told}", where=where,
            fix="config.yaml and run.json must be those the weights were trained with",
        ) from error  # fmt: skip


def _take_average(objective: Objective, average: Mapping[str, Tensor]) -> None:
    lost = [name for name, _ in objective.named_parameters() if name not in average]
    if lost:
        raise HilumError(f"the stored average lacks {len(lost)} tensors, e.g. {lost[0]}", where="checkpoint")
    objective.load_state_dict(average, strict=False)  # it also holds buffers that are not part of the state


def _checkpoint(folder: RunFolder, name: str) -> Path:
    path = folder.checkpoint(name)
    if stands(path):
        return path
    prefixes = ("incoming-", "previous-")
    known = sorted(p.stem for p in path.parent.glob("*.ckpt") if not p.name.startswith(prefixes))
    raise HilumError(
        f"this run has no checkpoint {name!r}", where=str(folder.path),
        fix=f"--checkpoint {known[0]}" if known else "train it first: hilum resume RUN",
    )  # fmt: skip


def _trained_recipe(folder: RunFolder) -> Recipe:
    """The run's configuration; of a run with stages, the last stage's, which the run's checkpoints come from."""
    recipe = folder.recipe
    if not (recipe.get("stages") or recipe.get("tasks")):
        return recipe
    stages = stage_recipes(recipe)
    last = RunFolder(folder.path / "stages" / f"{len(stages) - 1}-{stages[-1][0]}")
    if not last.config.is_file():
        raise HilumError("this run's last stage has not started", where=str(folder.path), fix="hilum resume RUN")
    return last.recipe
