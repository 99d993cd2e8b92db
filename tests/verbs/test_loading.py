"""What comes back from a RUN folder is what was saved, average included, or one clear message."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import NAMES, write_run

from hilum.core.checkpoint import load_checkpoint, save_checkpoint
from hilum.core.errors import HilumError
from hilum.verbs.folder import RunFolder
from hilum.verbs.loading import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_run(folder)
    return folder


def test_weights_labels_and_mode_come_back(run: Path) -> None:
    stored = load_checkpoint(run / "checkpoints" / "best.ckpt")["objective"]
    before = torch.random.get_rng_state()
    model = load_model(run)
    assert torch.equal(before, torch.random.get_rng_state())
    state = model.objective.state_dict()
    assert state.keys() == stored.keys() and all(torch.equal(state[k], stored[k]) for k in stored)
    assert not any(m.training for m in model.objective.modules())
    assert model.labels is not None and model.labels.names == NAMES
    assert model.labels.counts["train"]["nodule"] == (4, 12, 1)
    assert model.recipe["run"]["index_digest"] == "1d" * 32 and model.folder == run
    assert model.sha256 == load_model(run).sha256


def test_a_moving_average_is_what_is_loaded(tmp_path: Path) -> None:
    live = write_run(tmp_path / "ema", average=True)
    model = load_model(tmp_path / "ema")
    for (name, ours), theirs in zip(model.objective.named_parameters(), live.parameters(), strict=True):
        assert torch.equal(ours, theirs * 0.5), name


def test_a_relative_study_counts_from_the_run(tmp_path: Path) -> None:
    write_run(tmp_path / "study" / "runs" / "a", study="../..")
    assert load_model(tmp_path / "study" / "runs" / "a").study_path == (tmp_path / "study").resolve()


def test_a_run_with_stages_is_rebuilt_from_its_last_stage(tmp_path: Path) -> None:
    objective = write_run(tmp_path / "run" / "stages" / "1-second", sets=("head.init_std=0.25",))
    whole = RunFolder(tmp_path / "run")
    recipe = RunFolder(tmp_path / "run" / "stages" / "1-second").recipe
    whole.write_config(recipe.with_({"stages": [{"name": "first"}, {"name": "second"}], "head": {"name": "attentive"}}))
    whole.note(labels={"names": list(NAMES), "task": "multilabel"})
    save_checkpoint(whole.checkpoint("best"), {"objective": objective.state_dict(), "average": None})
    model = load_model(tmp_path / "run")
    assert model.recipe["head"] == {"name": "linear", "init_std": 0.25}
    assert torch.equal(model.objective.head.linear.weight, objective.head.linear.weight)


def test_faults_are_one_message(run: Path, tmp_path: Path) -> None:
    with pytest.raises(HilumError, match=r"not a run folder"):
        load_model(tmp_path)
    with pytest.raises(HilumError, match=r"no checkpoint 'last'") as missing:
        load_model(run, checkpoint="last")
    assert missing.value.fix == "--checkpoint best"
    write_run(tmp_path / "other")
    config = RunFolder(tmp_path / "other")
    config.write_config(config.recipe.with_({"encoders": {"image": {"embed_dim": 24}}}))
    with pytest.raises(HilumError, match=r"do not belong to the run's configuration.*size mismatch"):
        load_model(tmp_path / "other")
