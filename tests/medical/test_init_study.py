"""Comparing starts on a toy study: rotated bars, where one start has seen bars before (card of arXiv 2308.07688)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hilum.core.errors import HilumError
from hilum.medical.init_study import init_study
from hilum.verbs.intake import index
from hilum.verbs.splitting import split
from hilum.verbs.training import finetune, pretrain

RECIPE = """
recipe: test/bars
schema: 1
verb: finetune
views: {image: {size: 32, channels: 1, voi: auto, normalise: dataset}}
cache: {side: 32}
objective: {name: supervised}
encoders: {image: {name: timm/vit_tiny_patch16_224, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}}
head: {name: linear}
task: multilabel
augment: {}
optim: {name: adamw, lr: 1.0e-3}
schedule: {name: constant, epochs: 4}
batch: {size: 8, per_device: 8}
engine: {workers: 0}
"""
MAE = RECIPE.replace(
    "objective: {name: supervised}", "objective: {name: masked, decoder_depth: 1, decoder_width: 32, decoder_heads: 2}"
)
MAE = MAE.replace("verb: finetune", "verb: pretrain").replace("head: {name: linear}\ntask: multilabel\n", "")


def bars(root: Path, *, patients: int, seed: int) -> Path:
    """A study of noisy 32 x 32 pictures of a bar at a random place; steep and long are its findings."""
    rng, lines = np.random.default_rng(seed), ["path,patient_id,modality,steep,long"]
    (root / "archive").mkdir(parents=True)
    y, x = np.mgrid[:32, :32]
    for patient in range(patients):
        for k in range(2):
            steep, long = patient % 2, (patient // 2) % 2
            angle = np.deg2rad(rng.uniform(50, 85) if steep else rng.uniform(5, 40)) * rng.choice([-1, 1])
            cy, cx = rng.uniform(11, 21, 2)
            along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
            across = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
            bar = (np.abs(across) < 1.5) & (np.abs(along) < (10 if long else 6))
            pixels = 90 + 60 * bar + rng.normal(0, 20, (32, 32))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "archive" / f"{patient}-{k}.png")
            lines.append(f"{patient}-{k}.png,B{seed}-{patient},DX,{steep},{long}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    index(root / "archive", out=root / "study", labels=root / "labels.csv", workers=1)
    return root / "study"


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The study to compare on, recipes, and a run that learned bars of other patients."""
    root = tmp_path_factory.mktemp("bars")
    (root / "bars.yaml").write_text(RECIPE)
    (root / "mae.yaml").write_text(MAE)
    others = bars(root / "others", patients=160, seed=1)
    split(others, val=0.2, test=0, near=False)
    sets = ["schedule.epochs=25", "optim.lr=2.0e-3"]
    finetune(str(root / "bars.yaml"), data=others, out=root / "seen", set=sets, track=False)
    study = bars(root / "own", patients=48, seed=2)
    split(study, name="folds", folds=3, test=0, near=False)
    return {"root": root, "study": study, "seen": root / "seen"}


def compare(studies: dict[str, Path], out: str, **changes: object) -> object:
    starts = ["scratch", f"seen={studies['seen']}"]
    settings = {"recipe": str(studies["root"] / "bars.yaml"), "folds": 3, "split": "folds", "resamples": 400}
    settings |= {"lr": [3.0e-4, 1.0e-3], "seeds": 2, "start": starts, "out": studies["root"] / out}
    return init_study(studies["study"], **{**settings, **changes})  # type: ignore[arg-type]


def test_a_start_that_saw_bars_beats_a_random_one(studies: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    result = compare(studies, "one")
    told = result.comparisons["seen against scratch"]
    assert told.mean.p_a_better < 0.05 and told.mean.difference.lo > 0
    assert all(row.adjusted_a >= row.p_a_better for row in told.rows)
    shown = capsys.readouterr().out
    assert (studies["root"] / "one" / "table.md").read_text().strip() in shown
    sd = told.mean.sd_a
    assert sd is not None and sd > 0 and f"± {sd:.3f} [" in shown
    for start in ("scratch", "seen"):
        assert result.reports[start].predictions.sample_id.size == 96 * 2  # every picture judged once a seed
        assert len(result.chosen[start]) == 3 and set(result.chosen[start]) <= {3.0e-4, 1.0e-3}

    # the rate came from validation: it is the one whose run has the better validation score
    for fold, rate in enumerate(result.chosen["scratch"]):
        base = studies["root"] / "one" / "scratch" / f"fold{fold}"
        best = [json.loads((base / f"seed0-lr{k}" / "run.json").read_text())["best"] for k in range(2)]
        assert rate == (3.0e-4 if best[0] >= best[1] else 1.0e-3)

    # the same again in two processes, and once more from what is on disk
    again = compare(studies, "two", jobs=2)
    kept = compare(studies, "two", jobs=1)
    for other in (again, kept):
        assert other.comparisons["seen against scratch"].mean.difference == told.mean.difference

    with pytest.raises(HilumError, match="other settings"):
        compare(studies, "two", lr=[1.0e-4])


def test_a_start_for_every_fold_was_pretrained_without_its_patients(studies: dict[str, Path]) -> None:
    root, sets = studies["root"], ["schedule.epochs=1"]
    seen = []
    for fold in range(2):
        out = root / f"mae-{fold}"
        pretrain(
            str(root / "mae.yaml"), data=studies["study"], out=out, split="folds", fold=fold, set=sets, track=False
        )
        seen.append(json.loads((out / "run.json").read_text())["rows"])
    whole = len(pq.read_table(studies["study"] / "index.parquet"))
    assert all(rows["train"] + rows["val"] < whole for rows in seen)
    result = compare(
        studies, "folded", start=["scratch", f"mae={root}/mae-{{fold}}"], seeds=1, lr=[1.0e-3], folds=2, set=sets
    )
    for fold in range(2):
        config = (root / "folded" / "mae" / f"fold{fold}" / "seed0-lr0" / "config.yaml").read_text()
        assert f"mae-{fold}" in config
    assert result.reports["mae"].macro["auroc"].value is not None


def test_what_cannot_be_compared_is_refused(studies: dict[str, Path]) -> None:
    with pytest.raises(HilumError, match="at least two starts"):
        compare(studies, "x", start=["scratch"])
    with pytest.raises(HilumError, match="two starts are named"):
        compare(studies, "x", start=["a=scratch", "a=scratch"])
    with pytest.raises(HilumError, match="has 3 folds, not 5"):
        compare(studies, "x", folds=5)
    with pytest.raises(HilumError, match="--jobs"):
        compare(studies, "x", jobs=0)
