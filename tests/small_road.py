"""The smallest archive, study and recipe that a verb can run on: 40 patients, 16-bit PNG, two findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hilum.verbs.intake import index
from hilum.verbs.splitting import split

RECIPE = """
recipe: test/small
schema: 1
verb: finetune
where: "status = 'indexed'"
views: {image: {size: 32, channels: 1, voi: auto, normalise: dataset}}
cache: {side: 32}
objective: {name: supervised}
encoders: {image: {name: timm/vit_tiny_patch16_224, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}}
head: {name: linear}
task: multilabel
augment: {}
optim: {name: adamw, lr: 1.0e-3}
schedule: {name: cosine, epochs: 2, warmup_epochs: 0}
batch: {size: 8, per_device: 8}
engine: {log_every: 1, workers: 0}
"""


def write_recipe(folder: Path, name: str = "small.yaml", text: str = RECIPE) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def write_archive(root: Path, patients: int = 40) -> Path:
    """A disc on the left and one on the right are the findings; ``labels.csv`` lies beside."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :48]
    lines = ["path,patient_id,left,right"]
    root.mkdir(parents=True)
    for patient in range(patients):
        left, right = patient % 2, (patient // 2) % 2
        pixels = 8000 + 3000 * rng.random((40, 48)) + 60 * y
        for present, centre in ((left, 12), (right, 36)):
            pixels += present * 12000 * ((y - 20) ** 2 + (x - centre) ** 2 < 64)
        Image.fromarray(pixels.astype(np.uint16)).save(root / f"p{patient:02d}.png")
        lines.append(f"p{patient:02d}.png,PATIENT{patient:02d},{left},{right}")
    (root.parent / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def write_study(root: Path) -> Path:
    """``root/files`` indexed and split as ``root/study``."""
    archive = write_archive(root / "files")
    index(archive, out=root / "study", labels=root / "labels.csv", join="path", workers=1)
    split(root / "study", val=0.34, test=0.16)
    return root / "study"
