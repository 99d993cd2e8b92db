"""Real images check an export and never travel with it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import NAMES, write_run

from hilum.core.errors import HilumError
from hilum.core.types import Window
from hilum.data import image as images
from hilum.data.index import index_archive
from hilum.data.split import Split, make_split
from hilum.data.study import Study
from hilum.verbs.deployed import Deployed, Preprocessing
from hilum.verbs.export_samples import Example, compare, graph_inputs, outputs, real_examples
from hilum.verbs.exporting import export
from hilum.verbs.loading import LoadedModel, load_model
from hilum.verbs.onnx_graph import ExportedModel

pytestmark = pytest.mark.integration
INDEXED = ("where=status = 'indexed'",)


def study_of(root: Path, *, colour: bool = False) -> Path:
    """20 patients with one picture each, half of them larger than a cache of side 64 keeps."""
    rng = np.random.default_rng(0)
    (root / "files").mkdir(parents=True)
    for i in range(20):
        shape = (70 + i, 100) if i % 2 else (40 + i, 50)
        values = rng.integers(0, 256, (*shape, 3)) if colour else rng.integers(0, 60000, shape)
        Image.fromarray(values.astype(np.uint8 if colour else np.uint16)).save(root / "files" / f"{i:02d}.png")
    table = root / "labels.csv"
    with table.open("w", newline="") as file:
        rows = [[f"{i:02d}.png", f"p{i}", *(i >> k & 1 for k in range(3))] for i in range(20)]
        csv.writer(file).writerows([["path", "patient_id", *NAMES], *rows])
    index_archive(root / "files", root / "study", labels=table, workers=0, progress=False)
    make_split(Study(root / "study"), val=0.6, test=0.1, near=False)
    return root / "study"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_of(tmp_path_factory.mktemp("grey"))


@pytest.fixture(scope="module")
def model(study: Path) -> LoadedModel:
    write_run(study / "runs" / "tiny", sets=INDEXED, study="../..")
    return load_model(study / "runs" / "tiny")


def test_eight_validation_images_are_compared_and_stay(study: Path, model: LoadedModel, tmp_path: Path) -> None:
    result = export(model.folder, out=tmp_path / "out")
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert (result.real, result.random, result.max_abs_difference) == (8, 8, 0.0) and not parity["notes"]
    assert sum(row["kind"] == "real" for row in parity["images"]) == 8
    shipped = b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir())
    for path in (study.parent / "files").iterdir():
        pixels = np.asarray(Image.open(path))
        assert pixels.astype(np.int16)[3].tobytes() not in shipped and path.name.encode() not in shipped
    ids = Study(study).column("sample_id")
    assert not any(str(sample).encode() in shipped for sample in ids)


def test_a_graph_is_checked_on_eight_real_images_and_not_on_seven(
    study: Path, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = export(model.folder, to="onnx", out=tmp_path / "out")
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert (result.real, result.random) == (8, 8) and 0 < result.max_abs_difference <= 1e-4
    assert not parity["without_real_samples"]
    assert "without-real-samples" not in (tmp_path / "out" / "README.md").read_text()
    read, seen = images.open_image, []

    def seven(*args, **options):  # of each part of the study, all other files cannot be read
        seen.append(args[1])
        if len(set(seen)) > 7:
            raise OSError("gone")
        return read(*args, **options)

    monkeypatch.setattr(images, "open_image", seven)
    with pytest.raises(HilumError, match=r"8 real images and 7 could be compared: .*could not be read"):
        export(model.folder, to="onnx", out=tmp_path / "seven")
    assert not (tmp_path / "seven").exists()


def test_they_are_what_evaluation_reads(study: Path, model: LoadedModel) -> None:
    whole = Deployed.of(model)
    examples, _ = real_examples(model, whole, data=None, graph=True)
    opened = Study(study)
    names = [opened.file(int(row))[0] for row in Split.load(opened).rows("val")]
    sizes = {np.asarray(Image.open(path)).shape for path in names}
    reduced = {
        (64, round(64 * w / h)) if h < w and h > 64 else (round(64 * h / w), 64) if w > 64 and h > 64 else (h, w)
        for h, w in sizes
    }
    assert len(examples) == 8 and {e.size for e in examples} <= reduced
    assert sum(e.whole is not None for e in examples) == 2
    graph = ExportedModel(model.objective, whole.preprocessing).eval()
    for example in examples:
        values, lo, hi = graph_inputs(example.pixels)
        expected = graph(values, values.new_tensor([(lo + hi) / 2]), values.new_tensor([hi - lo]))[0]
        assert (expected - example.expected).abs().max() < 1e-5
        assert (outputs(whole, example.pixels) - example.expected).abs().max() == 0.0


def test_whole_files_are_reported_not_judged(model: LoadedModel) -> None:
    whole = Deployed.of(model)
    examples, notes = real_examples(model, whole, data=None, graph=True)

    def score(pixels):  # the graph, run by torch
        values, lo, hi = graph_inputs(pixels)
        graph = ExportedModel(model.objective, whole.preprocessing).eval()
        return graph(values, values.new_tensor([(lo + hi) / 2]), values.new_tensor([hi - lo]))[0].detach()

    told = compare(examples, score, tolerance=1e-5, notes=notes, where="")
    assert len(told["whole_files"]) == 2 and max(told["whole_files"]) < 1e-2
    assert any("2 whole files" in note for note in told["notes"])


def test_a_flat_model_is_called_out_and_no_number_is_refused(model: LoadedModel) -> None:
    example = real_examples(model, Deployed.of(model), data=None, graph=True)[0][0]
    flat = [Example("random", example.pixels, example.expected.new_tensor([0.5 + i * 1e-5] * 3)) for i in range(3)]
    told = compare(flat, lambda _: flat[1].expected, tolerance=1e-4, notes=(), where="")
    assert any("says little" in note for note in told["notes"])
    with pytest.raises(HilumError, match="by nan on a random one"):
        compare(flat, lambda _: flat[0].expected * float("nan"), tolerance=1e-4, notes=(), where="")


def test_the_study_may_be_named_and_must_be_one(model: LoadedModel, study: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "lost", sets=INDEXED)
    lost = load_model(tmp_path / "lost")
    assert real_examples(lost, Deployed.of(lost), data=None, graph=False)[0] == []
    assert len(real_examples(lost, Deployed.of(lost), data=study, graph=False)[0]) == 8
    with pytest.raises(HilumError, match="is not a study"):
        real_examples(lost, Deployed.of(lost), data=tmp_path, graph=False)


def test_colour_needs_safetensors(tmp_path: Path) -> None:
    place = study_of(tmp_path / "colour", colour=True)
    write_run(tmp_path / "run", sets=INDEXED, study=str(place))
    model = load_model(tmp_path / "run")
    with pytest.raises(HilumError, match="in colour, and the graph takes one channel"):
        real_examples(model, Deployed.of(model), data=None, graph=True)
    assert export(tmp_path / "run", out=tmp_path / "out").real == 8


def test_windows_that_are_not_linear_are_said(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read = images.open_image

    def bent(*args, **options):
        found = read(*args, **options)
        found.window = Window(100.0, 50000.0, "sigmoid")
        return found

    monkeypatch.setattr(images, "open_image", bent)
    examples, notes = real_examples(model, Deployed.of(model), data=None, graph=True)
    assert {e.pixels.window.kind for e in examples} == {"linear"} and notes[0].startswith("8 of the real images")
    kept, silent = real_examples(model, Deployed.of(model), data=None, graph=False)
    assert {e.pixels.window.kind for e in kept} == {"sigmoid"} and not silent
    assert isinstance(Deployed.of(model).preprocessing, Preprocessing)
