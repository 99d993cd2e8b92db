"""A run folder made by hand: a tiny fine-tuned ViT, no study, no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hilum.core.checkpoint import save_checkpoint
from hilum.core.objective import Objective
from hilum.core.recipe import Recipe, parse_recipe
from hilum.core.types import LabelSpace
from hilum.verbs.assembly import build_objective
from hilum.verbs.folder import RunFolder

NAMES = ("effusion", "heart|size", "nodule")
YAML = """
recipe: test/tiny
schema: 1
paper: "28"
verb: finetune
where: "modality in ('DX', 'CR')"
views: {image: {size: 32, channels: 3, normalise: [[0.5, 0.45, 0.4], [0.25, 0.2, 0.3]]}}
cache: {side: 64}
objective: {name: supervised, task: multilabel}
encoders: {image: {name: timm/vit_tiny_patch16_224, init: /home/someone/start.pt, img_size: 32, patch_size: 8, embed_dim: 48, depth: 1, num_heads: 3, pooling: avg}}
head: {name: linear, init_std: 0.5}
task: multilabel
augment: {border: background}
optim: {name: adamw, lr: 1.0e-3}
"""  # noqa: E501


def write_run(
    folder: Path, *, sets: tuple[str, ...] = (), average: bool = False, yaml: str = YAML, **run: Any
) -> Objective:
    """Writes config.yaml, run.json and checkpoints/best.ckpt; returns the objective whose weights they hold."""
    recipe = parse_recipe(yaml, origin="tiny.yaml", sets=sets)
    told = {
        "study": "/home/someone/gone",
        "split": "default",
        "fraction": 0.5,
        "index_digest": "1d" * 32,
        "split_digest": "5d" * 32,
    }
    recipe = recipe.with_({"run": {**told, **run}})
    objective = trained(recipe)
    at = RunFolder(folder)
    folder.mkdir(parents=True)
    at.write_config(recipe)
    counts = {"train": {name: [4, 12, 1] for name in NAMES}}
    labels = (
        {"labels": {"names": list(NAMES), "task": recipe["task"]}, "counts": counts} if "head" in recipe.data else {}
    )
    at.note(rows={"train": 17, "val": 8}, **labels)
    state = objective.state_dict()
    shadow = {n: p * 0.5 for n, p in objective.named_parameters()} if average else None
    save_checkpoint(at.checkpoint("best"), {"format": 1, "objective": state, "average": shadow})
    return objective


def trained(recipe: Recipe, *, seed: int = 1) -> Objective:
    """The recipe's objective with random weights that spread its scores."""
    labels = LabelSpace(NAMES, recipe["task"]) if "head" in recipe.data else None
    objective, _ = build_objective(recipe, labels, init=dict.fromkeys(recipe["encoders"], "structure"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return objective.eval()
