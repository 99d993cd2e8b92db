"""The safetensors export: bit-equal when read back, a card that tells all, nothing half-written, no path inside."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny_run import NAMES, YAML, write_run

from hilum.augment.augmenter import Augmenter
from hilum.core.errors import HilumError, Unsupported
from hilum.core.types import Batch, Meta, Pixels, Window
from hilum.verbs import deployed, exporting
from hilum.verbs.assembly import normalisation
from hilum.verbs.deployed import load_deployed
from hilum.verbs.exporting import ExportResult, export
from hilum.verbs.loading import load_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_run(folder)
    (folder / "exported").mkdir()
    (folder / "exported" / "encoder.json").write_text(json.dumps({"licence": "CC-BY-NC-4.0", "source": "a start"}))
    point = {"finding": "nodule", "threshold": 0.4375, "rule": "youden", "split": "val", "n": 90, "n_groups": 45}
    metrics = {
        m: {"value": 0.8125, "lo": 0.75, "hi": 0.875, "n": 60, "n_groups": 30, "reason": ""} for m in ("auroc", "auprc")
    }
    refused = {
        m: {"value": None, "lo": None, "hi": None, "n": 60, "n_groups": 30, "reason": "3 positive groups"}
        for m in metrics
    }
    findings = [
        {"name": "nodule", "n": 60, "n_positive": 21, "metrics": metrics, "point": point},
        {
            "name": "heart|size",
            "n": 60,
            "n_positive": 3,
            "metrics": refused,
            "point": None,
            "point_reason": "3 positive groups",
        },
    ]
    told = {"n": 61, "n_groups": 31, "findings": findings, "macro": {"metrics": metrics}, "warnings": ["One warning."]}
    told["intervals"] = {"kind": "percentile 95 %", "resampled": "groups", "n": 1000, "seed": 0}
    for name, extra in (("test", {}), ("elsewhere", {"model_sha256": "0" * 64})):
        (folder / "eval" / name).mkdir(parents=True)
        (folder / "eval" / name / "metrics.json").write_text(json.dumps(told | extra))
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> ExportResult:
    return export(run, out=run.parent / "out")


def decoded(size: tuple[int, int], *, inverted: bool = False, seed: int = 0) -> Pixels:
    """A 12-bit image; inverted ones as the decoder gives them: slope, intercept negated, window mirrored."""
    stored = np.random.default_rng(seed).integers(0, 4096, size).astype(np.uint16)[None]
    if inverted:
        return Pixels(stored, -1.0, 24.0, Window(-3000.0, -500.0), inverted=True)
    return Pixels(stored, 1.0, -24.0, Window(500.0, 3000.0))


def test_read_back_it_is_the_run_bit_for_bit(run: Path, exported: ExportResult) -> None:
    model, back = load_model(run), load_deployed(exported.folder)
    ours, theirs = model.objective.state_dict(), back.objective.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    norm = normalisation(model.recipe)
    augmenter = Augmenter(model.recipe["views"], model.recipe["augment"], norm=norm, backend="reference")
    for size, inverted in (((50, 40), False), ((33, 61), True), ((32, 32), False)):  # none larger than the cache keeps
        image = decoded(size, inverted=inverted)
        stats = back.preprocessing.reduce(image).stats
        about = {"slope": image.slope, "intercept": image.intercept, "window": image.window, "stats": stats}
        batch = Batch({"image": torch.from_numpy(image.stored)[None]}, meta=[Meta("0" * 8, "", extra={"image": about})])
        with torch.no_grad():
            expected = model.objective.predict(augmenter.apply(batch, train=False)).scores
        got = back.predict([image])
        assert torch.equal(got.scores, expected) and got.names == NAMES
    assert exported.max_abs_difference == 0.0 and exported.random == 8 and exported.real == 0


def test_embed_gives_the_encoder_s_pooled_feature(run: Path, exported: ExportResult) -> None:
    back = load_deployed(exported.folder)
    feature = back.embed([decoded((40, 50)), decoded((64, 64), seed=1)])
    head = back.objective.head.linear
    scores = back.predict([decoded((40, 50)), decoded((64, 64), seed=1)]).scores
    torch.testing.assert_close((feature @ head.weight.T + head.bias).sigmoid(), scores)


def test_samples_travel_with_their_expected_outputs(exported: ExportResult) -> None:
    tensors = load_file(exported.folder / "samples.safetensors")
    back, sizes, signs = load_deployed(exported.folder), set(), set()
    for i in range(8):
        image, centre, width = (tensors[f"{name}.{i}"] for name in ("image", "window_centre", "window_width"))
        window = Window(float(centre[0] - width[0] / 2), float(centre[0] + width[0] / 2))
        scores = back.predict([Pixels(image[0].astype(np.float32), window=window)]).scores
        np.testing.assert_allclose(scores.numpy(), tensors[f"expected.{i}"], atol=1e-6)
        assert scores.std() > 1e-3  # outputs that could disagree
        sizes.add(image.shape[2:])
        signs.add(bool(image.mean() < 0))
    assert len(sizes) == 8 and signs == {True, False}


def test_the_card_says_what_a_reader_must_know(run: Path, exported: ExportResult) -> None:
    card = (exported.folder / "README.md").read_text()
    for told in (
        "Research use only; not a medical device.", "license: other", "Task: multilabel", "heart|size (train: 4 positive, 12 negative",
        "mean 0.5, 0.45, 0.4, standard deviation 0.25, 0.2, 0.3", "area average to 64", "fit to 32 x 32 (pad",
        "| nodule | 21 / 60 | 0.812 [0.750, 0.875] | 0.812 [0.750, 0.875] |", "not computable: 3 positive groups",
        "| nodule | 0.4375 | youden | val (90 images, 45 groups) |", "No threshold: heart|size (3 positive groups).",
        "1d" * 32, "5d" * 32, load_model(run).sha256, "CC-BY-NC-4.0: not for commercial use", "| code (hilum) | Apache-2.0 |",
        "c - 0.5 and w - 1", "50% of the training groups", "no real image was compared", "judged other weights",
    ):  # fmt: skip
        assert told in card, told
    assert card.count("### ") == 1 and "| heart\\|size | 3 / 60 |" in card


def test_no_path_leaves(exported: ExportResult) -> None:
    for path in exported.folder.iterdir():
        assert b"/home/someone" not in path.read_bytes(), path.name
    config = json.loads((exported.folder / "config.json").read_text())
    assert "run" not in config["recipe"] and "init" not in config["recipe"]["encoders"]["image"]
    assert sorted(exported.files) == sorted(p.name for p in exported.folder.iterdir())


def test_a_non_commercial_licence_is_printed_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run, out=tmp_path / "out")
    printed = capsys.readouterr().out
    assert printed.count("CC-BY-NC-4.0") == 1 and "not for commercial use" in printed


def test_an_average_and_merged_nothing_is_exported_as_validated(tmp_path: Path) -> None:
    write_run(tmp_path / "ema", average=True)
    export(tmp_path / "ema", out=tmp_path / "out")
    averaged = load_model(tmp_path / "ema").objective.state_dict()
    back = load_deployed(tmp_path / "out").objective.state_dict()
    assert all(torch.equal(back[name], value) for name, value in averaged.items())


def test_nothing_is_overwritten(run: Path, exported: ExportResult, tmp_path: Path) -> None:
    before = {p.name: p.read_bytes() for p in exported.folder.iterdir()}
    for out in (exported.folder, exported.folder / "README.md"):
        with pytest.raises(HilumError, match="something at --out already"):
            export(run, out=out)
    assert before == {p.name: p.read_bytes() for p in exported.folder.iterdir()}
    (tmp_path / "empty").mkdir()
    assert export(run, out=tmp_path / "empty").folder == tmp_path / "empty"


def test_what_differs_is_refused_and_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporting.TOLERANCE, "safetensors", -1.0)
    with pytest.raises(HilumError, match="disagrees with the trained model on 8 of 8"):
        export(run, out=tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written: Permission denied"),
    ],
)
def test_a_disk_that_refuses_is_one_message_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, told: str
) -> None:
    def refuse(model: object, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(deployed, "save_deployed", refuse)
    with pytest.raises(HilumError, match=told):
        export(run, out=tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_a_pretrained_encoder_is_exported_by_its_features(tmp_path: Path) -> None:
    mae = YAML.replace(
        "{name: supervised, task: multilabel}", "{name: masked, decoder_depth: 1, decoder_width: 32, decoder_heads: 2}"
    )
    mae = "".join(line for line in mae.splitlines(keepends=True) if not line.startswith(("head:", "task:")))
    write_run(tmp_path / "mae", yaml=mae)
    assert export(tmp_path / "mae", out=tmp_path / "out").max_abs_difference == 0.0
    encoder = load_model(tmp_path / "mae").objective.exported()["encoder"]
    back, image = load_deployed(tmp_path / "out"), decoded((32, 32))
    shown = ((torch.from_numpy(image.stored.astype(np.float32)) - 24 - 500) / 2500).clamp(0, 1).expand(1, 3, -1, -1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (back.preprocessing.mean, back.preprocessing.std))
    with torch.no_grad():
        expected = encoder((shown - mean) / std).pooled
    torch.testing.assert_close(back.embed([image]), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(Unsupported):
        back.predict([image])


def test_changed_files_are_refused(exported: ExportResult, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "preprocessing.json"):
        folder = tmp_path / name
        folder.mkdir()
        for path in exported.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        data = bytearray((folder / name).read_bytes())
        data[-2] ^= 1
        (folder / name).write_bytes(bytes(data))
        with pytest.raises(HilumError):
            load_deployed(folder)
    with pytest.raises(HilumError, match="missing or cannot be read"):
        load_deployed(tmp_path)
