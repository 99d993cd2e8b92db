"""What a recipe builds: contracts are checked, settings that cannot be are told with their line, adapters train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from matrix import NAMES, batch
from torch import Tensor, nn

from hilum.core.errors import ContractError, HilumError
from hilum.core.objective import Objective, Parts
from hilum.core.recipe import Recipe, parse_recipe
from hilum.core.registry import registry
from hilum.core.types import Batch, Features, LabelSpace, Prediction, Progress, StepOutput, Term
from hilum.verbs.networks import build_objective
from hilum.verbs.optimisation import loop_settings
from hilum.verbs.resolving import resolve

YAML = """
recipe: test/tiny
verb: pretrain
views: {image: {size: 32, channels: 1, normalise: [[0.4], [0.25]]}}
objective: {name: masked, ratio: 0.75, decoder_depth: 1, decoder_width: 32, decoder_heads: 2}
encoders:
  image: {name: timm/vit_tiny_patch16_224, patch_size: 8, embed_dim: 48, depth: 2, num_heads: 3, mask_token: true}
optim: {name: adamw, lr: 1.0e-2}
schedule: {name: constant, epochs: 1}
batch: {size: 4, per_device: 4}
engine: {devices: 1, workers: 0, strategy: single}
"""
OBJECTIVES = {
    "masked": (),
    "simmim": ("objective={name: simmim, ratio: 0.5}",),
    "supervised": ("objective={name: supervised}", "head={name: linear}"),
}
ADAPTERS = {
    "lora": "adapters={extra: {name: lora, rank: 2}}",
    "vpt": "adapters={extra: {name: vpt, tokens: 2}}",
}


def recipe_of(*sets: str) -> Recipe:
    return parse_recipe(YAML, origin="tiny.yaml", sets=sets)


def labels() -> LabelSpace:
    return LabelSpace(NAMES, "multilabel", counts={"train": dict.fromkeys(NAMES, (4, 4, 0))})


def built(*sets: str) -> Objective:
    return build_objective(recipe_of(*sets), labels())[0]


def step(objective: Objective, recipe: Recipe) -> None:
    """One optimiser step, as the recipe's own settings make it."""
    settings = loop_settings(recipe, steps_per_epoch=1, devices=1, monitor=None)
    (optimiser,) = settings.optimisers(objective).values()
    objective(objective.prepare(batch(range(4)), Progress())).loss().backward()
    optimiser.step()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_adapters_train_and_leave_with_every_objective(name: str, adapter: str) -> None:
    recipe = recipe_of(*OBJECTIVES[name], ADAPTERS[adapter])
    objective, _ = build_objective(recipe, labels())
    before = {n: p.detach().clone() for n, p in objective.named_parameters()}
    for _ in range(2):  # LoRA's A has no gradient while B is zero
        step(objective, recipe)
    moved = {n for n, p in objective.named_parameters() if not torch.equal(p, before[n])}
    own = {n for n in before if n.startswith("adapters.extra.")}
    assert own and own <= moved
    assert not any(n.startswith("encoder.") for n in moved)  # the base stands still

    left, objective = objective.eval().exported(), objective.eval()
    plain, _ = build_objective(recipe_of(*OBJECTIVES[name]), labels())
    assert set(left["encoder"].state_dict()) == set(plain.encoder.state_dict())  # type: ignore[union-attr]
    images: Any = batch(range(3)).views["image"]
    with torch.no_grad():
        torch.testing.assert_close(left["encoder"](images).pooled, objective.encoder(images).pooled)  # type: ignore[operator]
    if adapter == "lora":
        assert set(left) == set(plain.exported())  # merged
        plain.encoder.load_state_dict(left["encoder"].state_dict())  # type: ignore[union-attr]
        with torch.no_grad():
            adapted = objective.encoder(images).pooled  # type: ignore[operator]
            torch.testing.assert_close(plain.eval().encoder(images).pooled, adapted, rtol=1e-4, atol=1e-5)  # type: ignore[operator]
    else:
        assert set(left) == {*plain.exported(), "extra"}  # prompts stand beside the base


class Forgetful(Objective):
    """Written without a thought of adapters."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.encoder, self.scale = parts.encoder, nn.Parameter(torch.ones(()))

    def forward(self, batch: Batch) -> StepOutput:
        pooled: Tensor = self.encoder(batch.views["image"]).pooled
        return StepOutput({"size": Term((pooled * self.scale).square().sum(), torch.tensor(batch.size))})

    def exported(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder}


@pytest.fixture
def register() -> Iterator[Any]:
    known = dict(registry.local)
    yield registry.register
    registry.local.clear()
    registry.local.update(known)


def test_an_objective_that_forgets_its_adapters_is_refused(register: Any) -> None:
    register("objective", "test/forgetful", Forgetful)
    built("objective={name: test/forgetful}")
    with pytest.raises(ContractError) as caught:
        built("objective={name: test/forgetful}", ADAPTERS["lora"])
    assert [gap.partition(" (")[0] for gap in caught.value.missing] == [
        "the parameters of the adapter 'extra'",
        "merged adapters in exported()",
    ]
    assert caught.value.where == "--set adapters"


def test_every_component_is_checked_where_a_recipe_is_assembled(register: Any) -> None:
    class NoEncoder(nn.Module):
        def __init__(self, *, view: Any = None) -> None:
            super().__init__()

    class NoHead(nn.Module):
        def __init__(self, dim: int, names: Any, task: str) -> None:
            super().__init__()

    class NoAdapter(nn.Module):
        slot = "blocks"

    class NoObjective(nn.Module):
        def __init__(self, parts: Parts) -> None:
            super().__init__()

    for kind, target in (("encoder", NoEncoder), ("head", NoHead), ("adapter", NoAdapter), ("objective", NoObjective)):
        register(kind, "test/odd", target)
    supervised = OBJECTIVES["supervised"][0]
    for sets, section in (
        (["encoders={image: {name: test/odd}}"], "encoders.image"),
        ([supervised, "head={name: test/odd}"], "head"),
        (["adapters={a: {name: test/odd}}"], "adapters.a"),
        (["objective={name: test/odd}"], "objective"),
    ):
        with pytest.raises(ContractError, match="is not an? ") as caught:
            built(*sets)
        assert section in caught.value.where


@pytest.mark.parametrize(
    ("sets", "told", "where"),
    [
        (["objective.ratio=1.5"], "outside [0, 1)", "tiny.yaml:5 (objective"),
        (["objective.ratio=0"], "hides none", "--set objective.ratio"),
        (["objective.decoder_depth=0"], "at least one block", "tiny.yaml:5 (objective"),
        (["objective.decoder_heads=5"], "does not split", "tiny.yaml:5 (objective"),
        (["objective={name: simmim, ratio: 1.5}"], "cannot hide 1.5", "--set objective"),
        (["objective={name: simmim, unit: 0}"], "units of 0", "--set objective"),
        (["objective={name: simmim, ratio: 0.01}"], "hides 0 of 4", "(objective.ratio"),
        ([*OBJECTIVES["supervised"], "objective.label_smoothing=3"], "in [0, 1)", "--set objective.label_smoothing"),
        ([*OBJECTIVES["supervised"], "head.dropout=2"], "dropout 2", "--set head"),
        ([*OBJECTIVES["supervised"], "head.init_std=-1"], "init_std -1", "--set head"),
        ([OBJECTIVES["supervised"][0], "head={name: attentive, heads: 0}"], "0 heads", "--set head"),
        ([OBJECTIVES["supervised"][0]], "a head", ""),
        (["encoders.image.freeze=[nothing*]"], "'nothing*' matches no parameter", "--set encoders.image.freeze"),
        (["encoders.image.depht=2"], "could not build", ""),
        (["encoders={other: {name: test/crashes}}"], "RuntimeError: out of luck", "(encoders.other)"),
        (["optim.groups={inner: {lr: 0.1}}"], "no group of parameters 'inner'", "(optim.groups.inner)"),
    ],
)
def test_what_cannot_be_built_is_told_with_the_recipe_s_line(
    sets: list[str], told: str, where: str, register: Any
) -> None:
    def crashes(*, view: Any = None) -> None:
        raise RuntimeError("out of luck\nand more")

    register("encoder", "test/crashes", crashes)
    with pytest.raises(HilumError) as caught:
        built(*sets)
    assert told in str(caught.value)
    assert where in caught.value.where


def test_frozen_globs_freeze_what_they_match() -> None:
    objective = built("encoders.image.freeze=[patch_embed, blocks.0]")
    frozen = {n for n, p in objective.encoder.named_parameters() if not p.requires_grad}  # type: ignore[union-attr]
    assert {n for n in frozen if "blocks.1" in n} == set()
    assert any("patch_embed" in n for n in frozen) and any("blocks.0" in n for n in frozen)
    whole = built("encoders.image.freeze=true")
    assert not any(p.requires_grad for p in whole.encoder.parameters())  # type: ignore[union-attr]


class TwoGroups(Forgetful):
    def groups(self) -> dict[str, nn.Module]:
        return {"main": self.encoder, "inner": nn.ParameterList([self.scale])}


def test_groups_of_parameters_have_their_own_rates(register: Any) -> None:
    register("objective", "test/groups", TwoGroups)
    sets = ("objective={name: test/groups}", "optim={name: sgd, base_lr: 0.64, groups: {inner: {lr: 0.5}}}")
    recipe = recipe_of(*sets)
    settings = loop_settings(recipe, steps_per_epoch=1, devices=1, monitor=None)
    optimisers = settings.optimisers(built(*sets))
    assert [o.param_groups[0]["lr"] for o in optimisers.values()] == [pytest.approx(0.01), 0.5]


def test_what_the_loop_gets_is_resolved() -> None:
    """No "auto" is left for the loop to interpret: not in the recipe, not in the settings made of it."""
    sets = ("batch.per_device=auto", "engine={devices: auto, workers: auto, strategy: auto}")
    recipe = resolve(recipe_of(*sets), None, devices=1)  # type: ignore[arg-type]
    assert "auto" not in [v for section in ("batch", "engine") for v in recipe[section].values()]
    settings = loop_settings(recipe, steps_per_epoch=1, devices=1, monitor=("val/loss", "min"))
    assert "auto" not in [getattr(settings, name) for name in type(settings).__slots__]
    assert replace(settings, clip=1.0).clip == 1.0


def test_a_head_reads_what_it_needs() -> None:
    objective = built(OBJECTIVES["supervised"][0], "head={name: attentive, heads: 3}")
    prediction: Prediction = objective.predict(batch(range(2)))
    assert prediction.scores.shape == (2, len(NAMES))
    assert isinstance(objective.encoder(batch(range(2)).views["image"]), Features)  # type: ignore[operator]
