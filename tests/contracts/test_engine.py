"""The engine's switches change how a run is computed, never what: compile, gradient checkpointing, sharding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from matrix import OBJECTIVES, loop
from ranks import run_on_ranks
from safetensors.torch import load_file
from small_road import write_recipe, write_study

from hilum.core.fit import fit
from hilum.verbs.training import finetune, pretrain

MASKED = """
recipe: test/masked
schema: 1
verb: pretrain
where: "status = 'indexed'"
views: {image: {size: 32, channels: 1, voi: auto, normalise: dataset}}
cache: {side: 32}
objective: {name: masked, ratio: 0.75, decoder_depth: 1, decoder_width: 32, decoder_heads: 2}
encoders: {image: {name: timm/vit_tiny_patch16_224, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}}
augment: {resized_crop: [0.5, 1.0]}
optim: {name: adamw, lr: 1.0e-3}
schedule: {name: cosine, epochs: 2, warmup_epochs: 0}
batch: {size: 8, per_device: 8}
engine: {log_every: 1, workers: 0}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("engine"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler here"
)
def test_a_compiled_run_equals_an_eager_one() -> None:
    runs = []
    for compiled in (False, True):
        made = loop(OBJECTIVES["masked"](), steps=4, compile=compiled)
        fit(made)
        runs.append(made)
    eager, compiled_run = runs
    assert eager._step_function is eager.objective
    assert isinstance(compiled_run._step_function, torch._dynamo.eval_frame.OptimizedModule)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    losses = [[h["train/reconstruction"] for h in run.history] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[0]) == 4
    for (name, ours), theirs in zip(
        compiled_run.objective.named_parameters(), eager.objective.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, msg=name)


@pytest.mark.integration
def test_a_recipe_with_gradient_checkpointing_trains_the_same_weights(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, recomputed = str(write_recipe(tmp_path)), []
    from hilum.encoders import timm_vit

    original = timm_vit.checkpoint
    monkeypatch.setattr(timm_vit, "checkpoint", lambda *a, **k: recomputed.append(1) or original(*a, **k))
    encoders = []
    for number, told in enumerate(("false", "true")):
        out = tmp_path / str(number)
        finetune(recipe, data=study, out=out, set=[f"engine.checkpointing={told}"], track=False)
        encoders.append(load_file(out / "exported" / "encoder.safetensors"))
        assert bool(recomputed) == (told == "true")
    assert encoders[0].keys() == encoders[1].keys()
    for name, tensor in encoders[0].items():
        torch.testing.assert_close(encoders[1][name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.mark.integration
def test_a_sharded_run_on_two_ranks_equals_one_process(study: Path, tmp_path: Path) -> None:
    """The recipe's own shard units: every block, and the root."""
    recipe = str(write_recipe(tmp_path, "masked.yaml", MASKED))
    alone = pretrain(recipe, data=study, out=tmp_path / "alone", track=False)
    both = run_on_ranks("engine_ranks:sharded", tmp_path, recipe=recipe, study=str(study), seconds=240)
    losses = [h["train/reconstruction"] for h in alone.history]
    assert both["losses"] == pytest.approx(losses, rel=1e-4) and len(losses) > 4
    assert {"", "encoder.net.blocks.0", "encoder.net.blocks.1"} <= set(both["sharded"]) and both["ranks"] == 2
    for held, whole in both["sharded"].values():
        assert 0.4 < held / whole < 0.6
    ours, theirs = (load_file(tmp_path / run / "exported" / "encoder.safetensors") for run in ("run", "alone"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
