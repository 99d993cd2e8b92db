"""A tiny fine-tuning and its evaluation as the store has them, and another run started from there."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_road import write_recipe, write_study

from hilum.core.errors import HilumError
from hilum.tracking.provenance import environment
from hilum.tracking.stored import fetch_exported
from hilum.tracking.tracker import load_mlflow, store_uri
from hilum.verbs.evaluating import evaluate
from hilum.verbs.folder import RunFolder
from hilum.verbs.loading import load_model
from hilum.verbs.training import finetune, resume

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_recipe(tmp_path_factory.mktemp("recipe")))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, recipe: str) -> Path:
    study = write_study(tmp_path_factory.mktemp("tracked"))
    about = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(json.dumps(about | {"licence": "CC-BY-4.0, simulated"}))
    run = study / "runs" / "tiny"
    finetune(recipe, data=study, out=run)
    evaluate(run, split="val", resamples=20)
    return run


@pytest.fixture(scope="module")
def client(out: Path) -> Any:
    return load_mlflow().MlflowClient(tracking_uri=store_uri(out.parents[1]))


@pytest.fixture(scope="module")
def run_id(out: Path) -> str:
    return str(RunFolder(out).facts["run_id"])


def artifacts(client: Any, run_id: str) -> dict[str, Path]:
    root = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}


def test_a_run_s_tags_say_what_it_was_made_from(client: Any, run_id: str, out: Path) -> None:
    run, folder = client.get_run(run_id), RunFolder(out)
    tags, plan = run.data.tags, folder.recipe["run"]
    assert run.info.status == "FINISHED"
    assert tags["hilum.config_sha256"] == folder.recipe.sha256
    assert tags["hilum.split_digest"] == plan["split_digest"] and len(plan["split_digest"]) == 64
    assert tags["hilum.index_digest"] == plan["index_digest"]
    assert tags["hilum.torch"] == torch.__version__ and tags["hilum.device"]
    assert re.fullmatch(r"[0-9a-f]{40}", tags["hilum.git_commit"]) and tags["hilum.git_dirty"] in ("true", "false")
    assert tags["hilum.licence.code"] == "Apache-2.0" and tags["hilum.licence.data"] == "CC-BY-4.0, simulated"
    spec = load_model(out).objective.encoder.spec
    assert tags["hilum.licence.weights.encoder"] == f"{spec.licence} (random initialisation)"
    assert run.data.params["encoders.image.name"] == "timm/vit_tiny_patch16_224"
    assert {item.dataset.digest for item in run.inputs.dataset_inputs} == {plan["split_digest"][:32]}


def test_a_run_s_artifacts_are_its_weights_curves_and_figures(client: Any, run_id: str, out: Path) -> None:
    found = artifacts(client, run_id)
    text = found[next(name for name in found if name.startswith("environment/"))].read_text()
    assert text == environment() and "torch==" in text
    assert "timm/vit_tiny_patch16_224" in found["config/config.yaml"].read_text()
    names = {f"exported/{name}.{kind}" for name in ("encoder", "head") for kind in ("safetensors", "json")}
    assert names <= set(found) and not any(name.startswith("exported/exported") for name in found)
    best, sent = load_model(out).objective.encoder.state_dict(), load_file(found["exported/encoder.safetensors"])
    assert best.keys() == sent.keys() and all(torch.equal(best[k], sent[k]) for k in best)
    assert json.loads(found["exported/encoder.json"].read_text())["data_licence"] == "CC-BY-4.0, simulated"
    picture = ElementTree.fromstring(found["plots/training.svg"].read_text())
    drawn = [p.get("d", "") for p in picture.iter("{http://www.w3.org/2000/svg}path")]
    words = {t.text for t in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"classification", "train", "val", "auroc_macro"} <= words
    steps = len(client.get_metric_history(run_id, "train/classification"))
    assert max(d.count("L") for d in drawn) >= steps - 1 > 1
    for kind in ("roc", "pr", "reliability"):
        figure = ElementTree.fromstring(found[f"eval/val/plots/left-{kind}.svg"].read_text())
        assert figure.find("{http://www.w3.org/2000/svg}path") is not None
        assert "--blue: #0072b2" in "".join(figure.itertext())
    assert {"eval/val/report.html", "eval/val/metrics.json"} <= set(found)


def test_nothing_of_a_patient_or_path_is_in_the_store(client: Any, run_id: str, out: Path) -> None:
    store, files = out.parents[1] / "mlflow.db", artifacts(client, run_id).values()
    for needle in (b"PATIENT0", b"p07.png"):
        assert not [path.name for path in (store, *files) if needle in path.read_bytes()]
    # the store itself must know where its artifacts lie; nothing that it serves does
    assert not [path.name for path in files if str(out.parents[2]).encode() in path.read_bytes()]


def test_weights_come_from_a_run_in_the_store(out: Path, run_id: str, recipe: str, tmp_path: Path) -> None:
    """With the run's folder gone: what is read is what the store holds."""
    study = out.parents[1]
    expected = load_model(out).objective.encoder.state_dict()
    hidden = out.rename(tmp_path / "hidden")
    try:
        for number, init in enumerate((f"runs:/{run_id}", f"runs:/{run_id}/exported/encoder.safetensors")):
            there = tmp_path / str(number)
            finetune(recipe, data=study, out=there, init=init, set=["optim.lr=1e-12", "seed=3"], track=False)
            loaded = load_model(there).objective.encoder
            assert all(torch.allclose(v, expected[k], atol=1e-7) for k, v in loaded.state_dict().items())
            card = json.loads((there / "exported" / "encoder.json").read_text())
            assert card["source"] == f"{run_id}#encoder"
        own = tmp_path / "own"
        sets = ["encoders.image.init=" + f"runs:/{run_id}", "optim.lr=1e-12"]
        finetune(recipe, data=study, out=own, init="", set=sets, track=False)
        assert torch.allclose(load_model(own).objective.encoder.net.cls_token, expected["net.cls_token"], atol=1e-7)
        resume(own, epochs=3, track=False)
    finally:
        shutil.move(hidden, out)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("runs:/RUN/checkpoints/best.ckpt", "only exported weights"),
        ("runs:/RUN/exported/encoder.pt", "only exported weights"),
        ("runs:/RUN/../../exported/encoder", "no address|only exported"),
        ("runs:/RUN#decoder", "no artifact exported/decoder.safetensors"),
        ("runs:/" + "0" * 32, "was not found|no artifact"),
        ("runs:/", "no address"),
    ],
)
def test_what_is_no_run_s_weights_is_refused(address: str, said: str, out: Path, run_id: str, tmp_path: Path) -> None:
    with pytest.raises(HilumError, match=said) as refused:
        fetch_exported(address.replace("RUN", run_id), tmp_path, study=out.parents[1])
    assert refused.value.fix
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_store_is_one_message_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(HilumError, match="there is no tracking store") as refused:
        fetch_exported("runs:/abc", tmp_path / "into", study=tmp_path)
    assert "MLFLOW_TRACKING_URI" in refused.value.fix and not list(tmp_path.iterdir())
