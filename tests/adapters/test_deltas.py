"""An adapter's run hands on a delta of kilobytes: base + delta is the run, and no other base takes it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_road import write_recipe

from hilum.core.adapter import delta_base, state_sha256
from hilum.core.errors import HilumError
from hilum.core.recipe import Recipe
from hilum.core.types import Batch
from hilum.verbs.assembly import build_objective
from hilum.verbs.deltas import load_delta
from hilum.verbs.evaluating import evaluate
from hilum.verbs.exporting import export
from hilum.verbs.loading import LoadedModel, load_model
from hilum.verbs.predicting import predict
from hilum.verbs.training import finetune

ADAPTERS = {
    "lora": "adapters={lora: {name: lora, rank: 1, roles: [q, v]}}",
    "vpt": "adapters={vpt: {name: vpt, tokens: 2}}",
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_recipe(tmp_path_factory.mktemp("recipe")))


@pytest.fixture(scope="module", params=sorted(ADAPTERS))
def run(request: pytest.FixtureRequest, study: Path, recipe: str) -> tuple[str, Path]:
    """Started from another run's encoder, so that the base is not what the recipe's seed draws."""
    start = study / "runs" / "start"
    if not start.exists():
        finetune(recipe, data=study, out=start, set=["seed=5"], track=False)
    out = study / "runs" / request.param
    sets = [ADAPTERS[request.param], "optim.lr=0.05"]
    finetune(recipe, data=study, out=out, init=str(start), set=sets, track=False)
    return request.param, out


def without_adapters(model: LoadedModel, *, init: str) -> Any:
    """The recipe's network with its base alone."""
    data = {key: value for key, value in model.recipe.data.items() if key != "adapters"}
    return build_objective(Recipe(data, "test"), model.labels, init={"image": init})[0].eval()


def images() -> Batch:
    return Batch({"image": torch.randn(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))})


def test_base_and_delta_are_the_run_bit_for_bit(run: tuple[str, Path]) -> None:
    (name, out), start = run, run[1].parent / "start"
    file = out / "exported" / f"{name}-delta.safetensors"
    card = json.loads(file.with_suffix(".json").read_text())
    whole = (out / "exported" / "encoder.safetensors").stat().st_size
    assert file.stat().st_size < 0.05 * whole
    model = load_model(out)
    ours = without_adapters(model, init=str(start))
    ours.head.load_state_dict(load_file(out / "exported" / "head.safetensors"))
    base, plain = state_sha256(ours.encoder), ours.predict(images()).scores
    assert card["base_sha256"] == delta_base(load_file(file)) == base
    assert (card["kind"], card["licence"]) == (name, ours.encoder.spec.licence) and card["base_source"]
    adapter = load_delta(file, ours.encoder)
    expected = model.objective.predict(images()).scores
    assert torch.equal(ours.predict(images()).scores, expected) and not torch.equal(plain, expected)
    adapter.scale = 0.0
    assert torch.equal(ours.predict(images()).scores, plain)


def test_another_base_is_refused_before_it_is_touched(run: tuple[str, Path], tmp_path: Path) -> None:
    name, out = run
    file = out / "exported" / f"{name}-delta.safetensors"
    other = without_adapters(load_model(out), init="scratch").encoder
    before, digest = other(images().views["image"]).pooled, state_sha256(other)
    with pytest.raises(HilumError, match="trained on other base weights") as refused:
        load_delta(file, other)
    assert digest[:12] in refused.value.where and "start" in refused.value.fix
    assert torch.equal(other(images().views["image"]).pooled, before)
    assert all(type(m) is torch.nn.Linear for m in other.modules() if isinstance(m, torch.nn.Linear))
    with pytest.raises(HilumError, match="is no adapter's delta"):
        load_delta(out / "exported" / "encoder.safetensors", other)
    changed = {k: v + 1 for k, v in load_file(file).items()}
    save_file(changed, tmp_path / file.name)
    (tmp_path / file.name).with_suffix(".json").write_text(file.with_suffix(".json").read_text())
    with pytest.raises(HilumError, match="not the file its card describes"):
        load_delta(tmp_path / file.name, other)


def test_an_adapters_run_is_judged_used_exported_and_started_from(
    run: tuple[str, Path], study: Path, recipe: str, tmp_path: Path
) -> None:
    name, out = run
    report = evaluate(out, split="val", resamples=20, track=False)
    assert len(report.predictions)
    predict(out, study.parent / "files", out=tmp_path / "scores.csv", workers=1)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert all(0 < float(row["score.left"]) < 1 for row in rows if row["status"] == "scored") and len(rows) > 20
    export(out, out=tmp_path / "export")
    went_on = tmp_path / "on"
    finetune(recipe, data=study, out=went_on, init=str(out), set=["optim.lr=1e-12"], track=False)
    pooled = load_model(went_on).objective.encoder(images().views["image"]).pooled
    adapted = load_model(out).objective.encoder(images().views["image"]).pooled
    if name == "lora":  # prompts cannot be merged: the encoder that is handed on is the base
        torch.testing.assert_close(pooled, adapted, rtol=1e-4, atol=1e-5)


def test_a_run_s_own_checkpoint_is_a_start(run: tuple[str, Path]) -> None:
    start, model = run[1].parent / "start", load_model(run[1])
    ours = without_adapters(model, init=str(start / "checkpoints" / "last.ckpt")).encoder
    last = load_model(start, checkpoint="last").objective.encoder
    assert state_sha256(ours) == state_sha256(last)
