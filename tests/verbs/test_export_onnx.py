"""The ONNX export: what onnxruntime computes from modality values is what the evaluation path computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import NAMES, write_run

from hilum.core.checkpoint import load_checkpoint, save_checkpoint
from hilum.core.errors import HilumError, Unsupported
from hilum.core.objective import Objective
from hilum.core.types import Pixels, Window
from hilum.verbs import onnx_graph
from hilum.verbs.deployed import Deployed
from hilum.verbs.exporting import ExportResult, export
from hilum.verbs.loading import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> ExportResult:
    return export(run, to="onnx", out=run.parent / "out", without_real_samples=True)


@pytest.fixture(scope="module")
def session(exported: ExportResult) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("size", [(32, 32), (29, 31), (17, 9), (128, 128), (48, 200), (211, 90), (2, 2)])
def test_scores_equal_torch_s(run: Path, session: Any, n: int, size: tuple[int, int]) -> None:
    """Odd, smaller than the target, four times larger, not square, larger than the cache keeps; every second image
    inverted, every one with its own window."""
    model, rng = Deployed.of(load_model(run)), np.random.default_rng(n)
    slope = np.where(np.arange(n) % 2, -0.5, 1.0)[:, None, None]
    values = (rng.integers(0, 4096, (n, *size)) * slope - 300 * np.sign(slope)).astype(np.float32)
    middle, width = values.mean((1, 2)), rng.uniform(300, 3000, n).astype(np.float32)
    windows = [Window(float(c - w / 2), float(c + w / 2)) for c, w in zip(middle, width, strict=True)]
    expected = [model.predict([Pixels(v[None], window=o)]).scores for v, o in zip(values, windows, strict=True)]
    feed = {"image": values[:, None], "window_centre": middle, "window_width": width}
    (scores,) = session.run(["scores"], feed)
    assert scores.shape == (n, len(NAMES)) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, torch.cat(expected).numpy(), rtol=0, atol=2e-6)


def test_the_window_changes_the_scores(session: Any) -> None:
    """The parity above would also hold for a graph that ignores its inputs if torch did."""
    values = np.random.default_rng(0).normal(0, 500, (1, 1, 40, 40)).astype(np.float32)
    one, other = (
        session.run(None, {"image": values, "window_centre": np.float32([c]), "window_width": np.float32([1000])})[0]
        for c in (0, 400)
    )
    assert np.abs(one - other).max() > 1e-3


def test_the_file_describes_itself(run: Path, exported: ExportResult, session: Any) -> None:
    import onnx

    graph = onnx.load(exported.folder / "model.onnx")
    onnx.checker.check_model(graph)
    assert {o.domain: o.version for o in graph.opset_import}[""] == 18
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.graph.input}
    assert shapes == {"image": ["batch", 1, "height", "width"], "window_centre": ["batch"], "window_width": ["batch"]}
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["names"]) == list(NAMES) and told["recipe"] == "test/tiny" and told["task"] == "multilabel"
    assert told["sha256"] == load_model(run).sha256 and told["index_digest"] == "1d" * 32
    assert "sign flipped" in told["value_meaning"] and "Apache-2.0" in told["licence"] and told["hilum"]


def test_what_lies_beside_the_graph(exported: ExportResult) -> None:
    assert exported.files == ("README.md", "model.onnx", "parity.json", "preprocessing.json", "samples.safetensors")
    parity = json.loads((exported.folder / "parity.json").read_text())
    assert len(parity["images"]) == 8 == exported.random and parity["tolerance"] == 1e-4
    assert (
        parity["max_abs_difference"]
        == exported.max_abs_difference
        == max(r["max_abs_difference"] for r in parity["images"])
    )
    assert exported.max_abs_difference < 1e-5
    card = (exported.folder / "README.md").read_text()
    assert (
        "(N, 1, H, W)" in card and "onnxruntime" in card and "not a medical device" in card and "Not evaluated" in card
    )
    assert b"/home/someone" not in b"".join(p.read_bytes() for p in exported.folder.iterdir())


def test_a_graph_of_other_weights_is_refused_and_leaves_nothing(
    run: Path, exported: ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights change between training and export: here the graph is the old one."""
    shutil.copytree(run, tmp_path / "run")
    payload = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    payload["objective"]["head.linear.bias"] += 1e-2
    save_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt", payload)
    old = exported.folder / "model.onnx"
    monkeypatch.setattr(onnx_graph, "write_graph", lambda objective, preprocessing, path, about: shutil.copy(old, path))
    with pytest.raises(HilumError, match=r"disagrees with the trained model on 8 of 8 images: by 0\.00") as refused:
        export(tmp_path / "run", to="onnx", out=tmp_path / "out", without_real_samples=True)
    assert "nothing was written" in refused.value.fix
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_without_real_images_a_graph_is_refused_unless_asked_for(
    run: Path, exported: ExportResult, tmp_path: Path
) -> None:
    with pytest.raises(HilumError, match="on 8 real images and 0 could be compared") as refused:
        export(run, to="onnx", out=tmp_path / "out")
    assert "--without-real-samples" in refused.value.fix and not any(tmp_path.iterdir())
    parity, card = (exported.folder / name for name in ("parity.json", "README.md"))
    assert json.loads(parity.read_text())["without_real_samples"] is True
    assert "Written with --without-real-samples: agreement was shown on 0 real images" in card.read_text()
    assert (exported.real, exported.random) == (0, 8)


def test_what_makes_no_scores_has_no_graph(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(load_model(run).objective), "predict", Objective.predict)
    with pytest.raises(Unsupported, match="makes none"):
        export(run, to="onnx", out=tmp_path / "out")
    with pytest.raises(HilumError, match="cannot export to 'pickle'"):
        export(run, to="pickle", out=tmp_path / "out")  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())
