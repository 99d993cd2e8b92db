"""Behaviour matrices: everything registered keeps the same promises. A new entry must declare a tiny configuration."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import ENCODERS, OBJECTIVES, SIZE, MatrixFeed, batch, labels, loop, train
from ranks import run_on_ranks

from hilum.core.adapter import state_sha256
from hilum.core.encoder import check_encoder
from hilum.core.errors import Unsupported
from hilum.core.fit import fit
from hilum.core.loop import Loop
from hilum.core.objective import check_objective
from hilum.core.recipe import load_recipe
from hilum.core.registry import registry
from hilum.core.types import Progress
from hilum.verbs.networks import build_objective
from hilum.verbs.optimisation import loop_settings
from hilum.verbs.resolving import resolve


def test_every_registered_objective_and_encoder_family_is_in_the_matrix() -> None:
    assert set(OBJECTIVES) == set(registry.entries("objective"))
    families = {name.partition("/")[0] for name in registry.entries("encoder")}
    assert families == {name.partition("/")[0] for name in ENCODERS}


@pytest.fixture(params=sorted(OBJECTIVES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def loss_of(objective: torch.nn.Module, numbers: range) -> torch.Tensor:
    ready = objective.prepare(batch(numbers), Progress())
    return objective(ready).loss()


class TestObjectives:
    def test_contract_and_state_round_trip(self, name: str) -> None:
        objective = OBJECTIVES[name]()
        check_objective(objective)
        stream = io.BytesIO()
        torch.save(objective.state_dict(), stream)
        stream.seek(0)
        other = OBJECTIVES[name]()
        with torch.no_grad():
            for p in other.parameters():
                p.add_(1.0)
        other.load_state_dict(torch.load(stream, weights_only=True))
        assert state_sha256(other) == state_sha256(objective)
        assert torch.equal(loss_of(other.eval(), range(4)), loss_of(objective.eval(), range(4)))

    def test_counts_are_the_counts_of_the_terms(self, name: str) -> None:
        objective = OBJECTIVES[name]()
        ready = objective.prepare(batch(range(7)), Progress())
        told, terms = objective.counts(ready), objective(ready).terms
        assert set(told) == set(terms)
        assert all(float(told[n]) == float(t.count) for n, t in terms.items())

    def test_a_sample_s_loss_does_not_depend_on_its_batch(self, name: str) -> None:
        objective = OBJECTIVES[name]().eval()
        whole = objective(objective.prepare(batch(range(6)), Progress())).terms
        alone = [objective(objective.prepare(batch([i]), Progress())).terms for i in range(6)]
        for term, value in whole.items():
            total = sum(float(a[term].sum) for a in alone)
            assert total == pytest.approx(float(value.sum), rel=2e-5)

    def test_overfits_eight_samples(self, name: str) -> None:
        objective = OBJECTIVES[name]()
        ready = objective.prepare(batch(range(8)), Progress())
        optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3, weight_decay=0.0)
        losses = []
        for _ in range(120):
            loss = objective(ready).loss()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss))
        assert losses[-1] < 0.5 * losses[0], losses[::20]

    def test_resumes_bit_for_bit(self, name: str, tmp_path: Path) -> None:
        whole = loop(OBJECTIVES[name](), steps=5)
        fit(whole)
        first = loop(OBJECTIVES[name](), steps=2, folder=tmp_path)
        fit(first)
        second = loop(OBJECTIVES[name](), steps=5, folder=tmp_path)
        second.restore(tmp_path / "checkpoints" / "last.ckpt")
        fit(second)
        assert state_sha256(second.objective) == state_sha256(whole.objective)

    def test_bf16_step_is_close_to_fp32(self, name: str) -> None:
        objective = OBJECTIVES[name]()
        exact = loss_of(objective, range(8))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = loss_of(objective, range(8))
        assert float(rough.detach()) == pytest.approx(float(exact.detach()), rel=0.05)

    @pytest.mark.integration
    def test_two_ranks_equal_one(self, name: str, tmp_path: Path) -> None:
        alone = train(folder=tmp_path, name=name)
        both = run_on_ranks("matrix:train", tmp_path, name=name, strategy="ddp", devices=2, accumulate=2)
        objective = OBJECTIVES[name]()
        terms = [f"train/{n}" for n in objective.counts(objective.prepare(batch(range(2)), Progress()))]
        for term in terms:
            assert both["losses"][term] == pytest.approx(alone["losses"][term], rel=1e-4)
        torch.testing.assert_close(both["weights"], alone["weights"], rtol=1e-3, atol=2e-5)


@pytest.fixture(params=sorted(ENCODERS))
def make(request: pytest.FixtureRequest) -> Callable[..., torch.nn.Module]:
    """Builds one encoder, with options; the same weights at each call."""
    family = request.param.partition("/")[0]
    if importlib.util.find_spec(family) is None:
        pytest.skip(f"{family} is not installed")

    def made(**options: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return ENCODERS[request.param](**options)

    return made


@pytest.fixture
def encoder(make: Callable[..., torch.nn.Module]) -> torch.nn.Module:
    return make().eval()


class TestEncoders:
    def images(self, n: int = 3) -> torch.Tensor:
        return batch(range(n)).views["image"]  # type: ignore[return-value]

    def test_forward_meets_its_spec(self, encoder: torch.nn.Module) -> None:
        check_encoder(encoder)
        out = encoder(self.images())
        assert out.tokens.shape[0] == 3 and out.tokens.shape[2] == encoder.spec.embed_dim
        assert out.pooled.shape == (3, encoder.spec.pooled_dim)
        assert out.grid is not None and out.tokens.shape[1] == torch.Size(out.grid).numel()
        assert out.map().shape == (3, encoder.spec.embed_dim, *out.grid)

    def test_rows_do_not_see_each_other(self, encoder: torch.nn.Module) -> None:
        images = self.images(4)
        whole = encoder(images).pooled
        for i in range(4):
            torch.testing.assert_close(encoder(images[i : i + 1]).pooled[0], whole[i], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("option", ["keep", "fill", "layers", "taps", "stop", "context"])
    def test_an_option_works_or_is_refused(self, encoder: torch.nn.Module, option: str) -> None:
        images = self.images()
        out = encoder(images)
        n = out.tokens.shape[1]
        value = {
            "keep": torch.arange(n).expand(3, n), "fill": torch.zeros(3, n, dtype=torch.bool), "layers": (0,),
            "taps": ("blocks.0",), "stop": 1, "context": torch.zeros(3, 1, 8),
        }[option]  # fmt: skip
        if option not in encoder.spec.supports:
            with pytest.raises(Unsupported, match=option):
                encoder(images, **{option: value})
            return
        got = encoder(images, **{option: value})
        if option in ("keep", "fill", "layers", "taps"):  # all kept, nothing filled, only looked at: nothing changes
            torch.testing.assert_close(got.tokens, out.tokens, rtol=0, atol=1e-6)
        if option == "layers":
            assert len(got.layers) == 1 and got.layers[0].tokens.shape[0] == 3
        if option == "taps":
            assert set(got.taps) == {"blocks.0"}
            weights = got.taps["blocks.0"].softmax(-1)
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))

    def test_bf16_is_close_to_fp32(self, encoder: torch.nn.Module) -> None:
        images = self.images(4)
        with torch.no_grad():
            exact = encoder(images)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = encoder(images)
        for ours, theirs in ((rough.pooled, exact.pooled), (rough.tokens, exact.tokens)):
            assert ours.shape == theirs.shape and torch.isfinite(ours).all()
            assert not torch.equal(ours.float(), theirs), "nothing was computed in bf16"
            assert float((ours.float() - theirs).norm() / theirs.norm()) < 0.05

    def test_checkpointed_gradients_equal_plain_ones(self, make: Callable[..., torch.nn.Module]) -> None:
        images = self.images()
        plain = make().train()
        if "checkpointing" not in plain.spec.supports:
            with pytest.raises(Unsupported, match="checkpointing"):
                make(checkpointing=True)
            return
        gradients, calls = [], []
        for candidate in (plain, make(checkpointing=True).train()):
            ran = []
            for module in candidate.modules():
                if not list(module.children()):
                    module.register_forward_hook(lambda *_: ran.append(1))
            candidate(images).pooled.square().sum().backward()
            gradients.append({n: p.grad for n, p in candidate.named_parameters() if p.grad is not None})
            calls.append(len(ran))
        assert calls[1] > calls[0], "nothing was computed again in the backward pass"
        assert gradients[0].keys() == gradients[1].keys() and gradients[0]
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)

    def test_traces_for_export(self, encoder: torch.nn.Module) -> None:
        images = self.images(2)

        class Pooled(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encoder = encoder

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.encoder(x).pooled

        program = torch.export.export(Pooled(), (images,))
        torch.testing.assert_close(program.module()(images), encoder(images).pooled, rtol=1e-4, atol=1e-5)


SMALL = {
    "views": {"image": {"size": SIZE, "channels": 1, "normalise": [[0.4], [0.25]]}},
    "encoders": {"image": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}},
    "schedule": {"epochs": 1, "warmup_epochs": 0},
    "batch": {"size": 8, "per_device": 8},
    "precision": "32-true",
}
DECODER = {"objective": {"decoder_width": 32, "decoder_heads": 2, "decoder_depth": 1}}
RECIPES: dict[str, dict[str, Any]] = {
    "medical/cxr-linear-probe": SMALL,
    "medical/cxr-multilabel": SMALL,
    "medical/demo-cxr": SMALL | DECODER,
    "medical/demo-cxr-finetune": SMALL,
    "medical/init-study": SMALL,
    "medical/mae-cxr-b": SMALL | DECODER,
    "medical/mae-cxr-s": SMALL | DECODER,
    "medical/mae-cxr-ti": SMALL | DECODER,
}


def test_every_registered_recipe_is_in_the_matrix() -> None:
    assert set(RECIPES) == set(registry.entries("recipe"))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_parse_and_make_one_step(name: str) -> None:
    """With the recipe's own objective, augmentation, optimiser and schedule, on a small network and small images."""
    recipe = resolve(load_recipe(name).with_(RECIPES[name]), None, devices=1)  # type: ignore[arg-type]
    objective, _ = build_objective(recipe, labels())
    before = {n: p.detach().clone() for n, p in objective.named_parameters()}
    settings = loop_settings(recipe, steps_per_epoch=1, devices=1, monitor=None)
    made = Loop(objective, MatrixFeed(n=8, size=8, config=dict(recipe["augment"])), settings)
    fit(made, precision=recipe["precision"])
    assert (made.stop_reason, made.position.step, made.position.skipped) == ("finished", 1, 0)
    terms = {k: v for k, v in made.history[-1].items() if k.startswith("train/")}
    assert terms and all(map(math.isfinite, terms.values()))
    parameters = dict(objective.named_parameters())
    moved = {n for n, p in parameters.items() if not torch.equal(p, before[n])}
    trained = {n for n, p in parameters.items() if p.requires_grad}
    assert moved and moved <= trained
    assert len(moved) > 0.8 * len(trained)  # some have no gradient yet: behind a layer that starts at zero
