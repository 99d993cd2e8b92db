"""One small simulated archive, indexed and split once for all tests of the road."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from hilum.verbs.intake import index
from hilum.verbs.splitting import split

TINY = {
    "encoders": "{image: {name: timm/vit_tiny_patch16_224, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}}",
    "views": "{image: {size: 32, channels: 1, voi: auto, normalise: dataset}}",
}
PRETRAIN = f"""
recipe: test/mae
verb: pretrain
views: {TINY["views"]}
cache: {{side: 40}}
objective: {{name: masked, ratio: 0.75, decoder_depth: 1, decoder_width: 32, decoder_heads: 2}}
encoders: {TINY["encoders"]}
augment: {{resized_crop: [0.5, 1.0]}}
optim: {{name: adamw, lr: 1.0e-3}}
schedule: {{name: cosine, epochs: 3, warmup_epochs: 1}}
batch: {{size: 8, per_device: 4}}
engine: {{log_every: 1, workers: 0}}
"""
FINETUNE = f"""
recipe: test/findings
verb: finetune
views: {TINY["views"]}
cache: {{side: 40}}
objective: {{name: supervised}}
encoders: {TINY["encoders"]}
head: {{name: linear}}
task: multilabel
augment: {{rotate: 5}}
optim: {{name: adamw, lr: 1.0e-3, layer_decay: 0.75}}
schedule: {{name: cosine, epochs: 3, warmup_epochs: 1}}
batch: {{size: 8, per_device: 8}}
engine: {{log_every: 1, workers: 0}}
"""


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "mae.yaml").write_text(PRETRAIN)
    (folder / "findings.yaml").write_text(FINETUNE)
    return folder


def draw_archive(root: Path, patients: Iterable[int], *, seed: int) -> None:
    """16-bit PNG: a bright disc on the left and a dark square on the right are findings; ``labels.csv`` lies beside."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :56]
    lines = ["path,patient_id,left,right"]
    root.mkdir(parents=True, exist_ok=True)
    for patient in patients:
        left, right = patient % 2, (patient // 2) % 2
        for image in range(1 + patient % 2):
            pixels = 8000 + 3000 * rng.random((48, 56)) + 60 * y + 1500 * rng.random()
            pixels += left * 12000 * (((y - 24) ** 2 + (x - 14) ** 2) < 81)
            pixels -= right * 7000 * ((abs(y - 24) < 8) & (abs(x - 42) < 8))
            name = f"p{patient:02d}-{image}.png"
            Image.fromarray(pixels.astype(np.uint16)).save(root / name)
            lines.append(f"{name},P{patient:02d},{left},{right}")
    (root.parent / "labels.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def draw() -> Callable[..., None]:
    return draw_archive


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 patients; one file is broken."""
    root = tmp_path_factory.mktemp("archive")
    draw_archive(root, range(48), seed=0)
    (root / "broken.png").write_bytes((root / "p00-0.png").read_bytes()[:200])
    return root


@pytest.fixture(scope="session")
def study(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "study"
    result = index(archive, out=out, labels=archive.parent / "labels.csv", workers=1)
    assert result.exit_code == 3  # one file is quarantined
    assert result.counts["indexed"] == 72
    split(out, val=0.25, test=0.25)
    return out
