"""Stages: what each is made of, what it may start from, and what cannot be changed when a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import NAMES

from hilum.core.checkpoint import save_checkpoint
from hilum.core.errors import HilumError
from hilum.core.objective import Objective
from hilum.core.recipe import Recipe, parse_recipe
from hilum.core.types import LabelSpace
from hilum.verbs.folder import RunFolder
from hilum.verbs.networks import build_objective
from hilum.verbs.staging import Audit, load_fitting, run_stages, stage_recipes

YAML = """
recipe: test/staged
verb: finetune
views: {image: {size: 32, channels: 1, normalise: none}}
objective: {name: masked, ratio: 0.75, decoder_depth: 1, decoder_width: 32, decoder_heads: 2}
encoders: {image: {name: timm/vit_tiny_patch16_224, patch_size: 8, embed_dim: 48, depth: 2, num_heads: 3}}
optim: {name: adamw, lr: 1.0e-3}
stages:
- {name: pixels, schedule: {epochs: 1}}
- {name: labels, objective: {name: supervised}, head: {name: linear}}
run: {study: ../.., split: default}
"""


def recipe_of(*sets: str, yaml: str = YAML) -> Recipe:
    return parse_recipe(yaml, origin="staged.yaml", sets=sets)


def objective_of(recipe: Recipe, names: tuple[str, ...] = NAMES) -> Objective:
    counts = {"train": dict.fromkeys(names, (4, 4, 0))}
    return build_objective(recipe, LabelSpace(names, "multilabel", counts=counts))[0]


def test_another_component_does_not_inherit_the_options_of_the_one_it_replaces() -> None:
    (_, _, first), (_, _, second) = stage_recipes(recipe_of())
    assert first["schedule"]["epochs"] == 1 and first["objective"]["ratio"] == 0.75
    assert second["objective"] == {"name": "supervised"}
    assert second["encoders"]["image"]["embed_dim"] == 48
    changed = YAML.replace("head: {name: linear}}", "head: {name: linear}, encoders: {image: {name: timm/resnet18}}}")
    assert stage_recipes(recipe_of(yaml=changed))[1][2]["encoders"]["image"] == {"name": "timm/resnet18"}
    same = YAML.replace("objective: {name: supervised}, head: {name: linear}", "objective: {ratio: 0.5}")
    assert stage_recipes(recipe_of(yaml=same))[1][2]["objective"]["decoder_width"] == 32


def test_a_fault_of_a_stage_has_the_line_of_the_stage() -> None:
    whole = stage_recipes(recipe_of())[0][2]
    assert whole.where("schedule.epochs") == "staged.yaml:9 (schedule.epochs)"
    assert whole.where("optim.lr") == "staged.yaml:7 (optim.lr)"


def previous_stage(folder: Path, objective: Objective) -> RunFolder:
    stage = RunFolder(folder)
    save_checkpoint(stage.checkpoint("last"), {"format": 1, "objective": objective.state_dict()})
    return stage


def audit(init: str, folder: Path, objective: Objective) -> Audit:
    previous = previous_stage(folder / "0-first", objective)
    return Audit({"name": "second", "init": init}, previous, {"first": previous}, quiet=False)


def test_the_previous_stage_is_taken_over_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (objective_of(whole) for _, _, whole in stage_recipes(recipe_of()))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    audit("previous", tmp_path, first).prepare(second)
    theirs: dict[str, Any] = first.encoder.state_dict()  # type: ignore[union-attr, assignment]
    assert all(torch.equal(v, theirs[k]) for k, v in second.encoder.state_dict().items())  # type: ignore[union-attr]
    told = capsys.readouterr().out
    assert told.startswith("stage second: weights from the stage in 0-first")
    assert "missing        2  head.linear.weight, head.linear.bias" in told
    assert "unexpected" in told and "decoder" in told


def test_a_head_for_other_findings_stays_as_it_is_built() -> None:
    whole = stage_recipes(recipe_of())[1][2]
    first, second = objective_of(whole), objective_of(whole, NAMES[:2])
    head = second.head.linear.weight.clone()  # type: ignore[union-attr]
    report = load_fitting(second, first.state_dict(), source="the first task")
    assert torch.equal(second.head.linear.weight, head)  # type: ignore[union-attr]
    assert "head.linear.weight" in report.missing and "head.linear.weight" in report.unexpected


def test_a_previous_stage_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    whole = stage_recipes(recipe_of())[0][2]
    other = objective_of(whole.with_({"encoders": {"image": {"embed_dim": 96}}, "objective": {"decoder_width": 48}}))
    objective = objective_of(whole)
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    with pytest.raises(HilumError, match="fills only") as caught:
        audit("previous", tmp_path, other).prepare(objective)
    assert "of this stage's" in caught.value.what and "unexpected" in caught.value.what
    assert "stage:NAME/encoder" in caught.value.fix
    assert all(torch.equal(v, before[k]) for k, v in objective.state_dict().items())


def test_a_run_with_stages_is_not_extended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "study" / "runs" / "staged")
    folder.path.mkdir(parents=True)
    folder.write_config(recipe_of())
    longer = folder.recipe.with_({"schedule": {"epochs": 50}})
    with pytest.raises(HilumError, match="cannot be extended") as caught:
        run_stages(longer, folder=folder, study=None, resuming=True, track=False, quiet=True)
    assert "without --epochs" in caught.value.fix
    assert not (folder.path / "stages").exists()


def test_a_stage_whose_changes_do_not_fit_is_told_before_it_runs() -> None:
    text = YAML.replace("- {name: labels, objective: {name: supervised}", "- {name: labels, objective: {unit: 2}")
    with pytest.raises(HilumError, match="unknown key 'unit'"):
        stage_recipes(recipe_of(yaml=text))
