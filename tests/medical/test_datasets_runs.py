"""A run remembers which published sets it learned from: its judges and its heirs are checked against them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake.archive import index
from fake.nih_cxr14 import write_nih_cxr14

from hilum.core.errors import LeakError
from hilum.data.split import Split, make_split
from hilum.data.study import Study
from hilum.verbs.evaluating import evaluate
from hilum.verbs.training import finetune

pytestmark = pytest.mark.integration
RECIPE = """
recipe: test/findings
verb: finetune
where: "modality = 'DX'"
views: {image: {size: 32, channels: 1, voi: auto, normalise: dataset}}
cache: {side: 40}
objective: {name: supervised}
encoders: {image: {name: timm/vit_tiny_patch16_224, patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}}
head: {name: linear}
task: multilabel
labels: {names: [Effusion]}
optim: {name: adamw, lr: 1.0e-3}
schedule: {name: cosine, epochs: 1, warmup_epochs: 0}
batch: {size: 8, per_device: 8}
engine: {log_every: 1, workers: 0}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a``: a study of ChestX-ray14; ``b``: one that says it is of RSNA pneumonia, other pictures, another key."""
    root = tmp_path_factory.mktemp("world")
    (root / "b.key").write_bytes(b"k" * 32)
    for name, seed in (("a", 0), ("b", 1)):
        (root / f"{name}-archive").mkdir()
        write_nih_cxr14(root / f"{name}-archive", patients=24, seed=seed, lists=False)
        key = {"id_key": root / "b.key"} if name == "b" else {}
        index(root / f"{name}-archive", root / name, dataset="medical/nih-cxr14", **key)
        make_split(Study(root / name), val=0.2, test=0.2, near=False)
    about = json.loads((root / "b/study.json").read_text())
    assert about["dataset"] == "medical/nih-cxr14"
    (root / "b/study.json").write_text(json.dumps(about | {"dataset": "medical/rsna-pneumonia"}))
    (root / "recipe.yaml").write_text(RECIPE)
    finetune(str(root / "recipe.yaml"), data=root / "a", out=root / "run", track=False)
    return root


def facts(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


def test_a_run_and_what_it_exports_say_what_they_learned_from(world: Path) -> None:
    assert facts(world / "run")["datasets"] == ["medical/nih-cxr14"]
    assert json.loads((world / "run/exported/encoder.json").read_text())["datasets"] == ["medical/nih-cxr14"]


def test_evaluation_on_a_sharing_set_is_refused_or_recorded(world: Path) -> None:
    run, options = world / "run", {"data": world / "b", "resamples": 10, "track": False}
    with pytest.raises(LeakError, match="medical/rsna-pneumonia shares images with medical/nih-cxr14"):
        evaluate(run, **options)
    assert not list((run / "eval").glob("b-*")) and "allowed_overlaps" not in facts(run)
    report = evaluate(run, allow_overlap=["medical/nih-cxr14"], **options)
    assert any("this was allowed" in warning for warning in report.warnings)
    (name,) = facts(run)["allowed_overlaps"]
    assert name.startswith("b-") and facts(run)["allowed_overlaps"][name] == ["medical/nih-cxr14"]


def test_a_start_that_saw_the_test_images_is_refused_or_recorded(world: Path, tmp_path: Path) -> None:
    recipe, options = str(world / "recipe.yaml"), {"data": world / "b", "init": str(world / "run"), "track": False}
    with pytest.raises(LeakError, match="shares images"):
        finetune(recipe, out=tmp_path / "refused", **options)
    finetune(recipe, out=tmp_path / "run", allow_overlap=["medical/nih-cxr14"], **options)
    assert facts(tmp_path / "run")["datasets"] == ["medical/nih-cxr14", "medical/rsna-pneumonia"]
    assert facts(tmp_path / "run")["allowed_overlaps"] == {"init": ["medical/nih-cxr14"]}
    shutil.rmtree(tmp_path / "run/checkpoints")  # an heir two steps on knows both
    heir = json.loads((tmp_path / "run/exported/encoder.json").read_text())
    assert heir["datasets"] == ["medical/nih-cxr14", "medical/rsna-pneumonia"]


def test_a_start_of_the_same_set_under_another_split_is_refused(world: Path, tmp_path: Path) -> None:
    """What the other split held out, the start may have been trained on."""
    options = {"data": world / "a", "init": str(world / "run"), "track": False}
    finetune(str(world / "recipe.yaml"), out=tmp_path / "same", **options)
    make_split(Study(world / "a"), name="other", seed=5, val=0.2, test=0.2, near=False)
    own, other = (Split.load(Study(world / "a"), name) for name in ("default", "other"))
    assert other.groups("test") & own.groups("train")
    with pytest.raises(LeakError, match="under another split"):
        finetune(str(world / "recipe.yaml"), out=tmp_path / "refused", **options, split="other")
    options |= {"split": "other", "allow_overlap": ["medical/nih-cxr14"]}
    finetune(str(world / "recipe.yaml"), out=tmp_path / "allowed", **options)
    assert facts(tmp_path / "allowed")["allowed_overlaps"] == {"init": ["medical/nih-cxr14"]}
