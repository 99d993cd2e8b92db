"""Where a network's weights came from, and under which licence, is told as long as the model lives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from small_road import write_recipe, write_study

from hilum.encoders.build import timm_encoder
from hilum.encoders.exported import save_exported
from hilum.verbs.deployed import load_deployed
from hilum.verbs.evaluating import evaluate
from hilum.verbs.exporting import export
from hilum.verbs.folder import RunFolder
from hilum.verbs.loading import load_model
from hilum.verbs.training import finetune, resume

pytestmark = pytest.mark.integration
LICENCE = "CC-BY-NC-4.0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Started from weights that are not for commercial use, and resumed."""
    root = tmp_path_factory.mktemp("starts")
    study = write_study(root)
    torch.manual_seed(3)
    view, small = {"size": 32, "channels": 1}, {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    save_exported(
        root / "theirs", "encoder", timm_encoder("vit_tiny_patch16_224", view=view, **small), card={"licence": LICENCE}
    )
    out = study / "runs" / "tuned"
    finetune(str(write_recipe(root)), data=study, out=out, init=str(root / "theirs"), track=False)
    for path in (out / "exported").iterdir():
        path.unlink()
    resume(out, epochs=4, track=False)
    return out


def test_a_resumed_run_s_exports_name_the_licence_of_their_start(run: Path) -> None:
    card = json.loads((run / "exported" / "encoder.json").read_text())
    assert (card["licence"], card["source"]) == (LICENCE, "theirs#encoder")
    told = RunFolder(run).facts["starts"]["encoder"]
    assert (told["licence"], told["source"]) == (LICENCE, "theirs#encoder") and len(told["sha256"]) == 64


def test_so_do_the_loaded_model_its_report_and_its_export(run: Path, tmp_path: Path) -> None:
    spec = load_model(run).objective.encoder.spec
    assert (spec.licence, spec.source) == (LICENCE, "theirs#encoder")
    evaluate(run, split="val", resamples=10, track=False)
    page = (run / "eval" / "val" / "report.html").read_text()
    assert re.search(rf"{LICENCE}</td>\s*<td>theirs#encoder", page)
    export(run, out=tmp_path / "out")
    spec = load_deployed(tmp_path / "out").objective.encoder.spec
    assert (spec.licence, spec.source) == (LICENCE, "theirs#encoder")
    assert "not for commercial use" in (tmp_path / "out" / "README.md").read_text()
