"""How long a training step waits for its data: a run of `medical/mae-cxr-s` or `medical/cxr-multilabel`, as they stand.

16-bit images of short side 256 lie in the warm cache; the run is `hilum pretrain` or `finetune` with the recipe's own
augmentation, workers and, on a GPU, precision. The share is of the loop's own time: waiting for the loader, augmenting on the
device, and the step. The first epoch is left out. There is no peer to divide by: the goal is a share.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from claims import arguments, claim, cores, tell, versions

RECIPES = {"mae": "medical/mae-cxr-s", "multilabel": "medical/cxr-multilabel"}


def write_images(folder: Path, numbers: range) -> None:
    """Smooth noise that differs from image to image, 256 x 300 and the like."""
    import numpy as np
    from PIL import Image
    from scipy import ndimage

    for number in numbers:
        rng = np.random.default_rng(number)
        size = (256, 300) if number % 2 else (310, 256)
        field = ndimage.zoom(rng.normal(size=(16, 16)), [s / 16 for s in size], order=1)
        pixels = 2000 + 500 * field + rng.normal(0, 30, field.shape)
        Image.fromarray(pixels.clip(0, 4095).astype(np.uint16)).save(folder / f"{number:05d}.png", compress_level=1)


def study_of(root: Path, count: int) -> Path:
    """An indexed, split study of ``count`` images, two a patient."""
    from hilum.verbs.intake import index
    from hilum.verbs.splitting import split

    (root / "images").mkdir()
    with (root / "labels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "patient_id", "modality", "a", "b"])
        table.writerows([f"{n:05d}.png", f"p{n // 2}", "DX", n // 2 % 2, n // 4 % 2] for n in range(count))
    with ProcessPoolExecutor(cores(), mp_context=get_context("spawn")) as pool:
        parts = [range(k, count, cores()) for k in range(cores())]
        for done in [pool.submit(write_images, root / "images", part) for part in parts]:
            done.result()
    index(root / "images", out=root / "study", labels=root / "labels.csv", workers=cores())
    split(root / "study", val=0.02, test=0, near=False)
    return root / "study"


def history(kind: str, study: Path, out: Path, *, batch: int, epochs: int) -> list[dict[str, float]]:
    """Log lines of a run after its first epoch."""
    from hilum.verbs.training import start

    sets = [
        f"batch.size={batch}",
        "batch.per_device=" + str(batch),
        "cache.side=256",
        "engine.log_every=1",
        "probes={}",
    ]
    sets += [f"schedule.epochs={epochs}", "schedule.warmup_epochs=1", f"engine.validate_epochs={epochs}"]
    if not torch.cuda.is_available():
        sets.append("precision=32-true")  # bf16 is emulated on many processors
    verb = "pretrain" if kind == "mae" else "finetune"
    done: Any = start(RECIPES[kind], data=study, out=out, sets=sets, split="default", verb=verb, track=False)
    steps = len(done.history) // epochs
    return list(done.history[steps:])


def main() -> None:
    gpu = torch.cuda.is_available()
    options = arguments(__doc__, ("--count", {"type": int}), ("--batch", {"type": int}), ("--epochs", {"type": int}))
    count = options.count or (4096 if gpu else 24 if options.quick else 256)
    batch, epochs = options.batch or (256 if gpu else 4), options.epochs or (6 if gpu else 2)
    with tempfile.TemporaryDirectory() as folder:
        study = study_of(Path(folder), count)
        tell(f"{count} images, batch {batch}, {epochs} epochs; {versions('torch', 'timm')}")
        for kind, recipe in RECIPES.items():
            lines = history(kind, study, Path(folder) / kind, batch=batch, epochs=epochs)
            mean = {
                k: statistics.fmean(line[f"speed/{k}"] for line in lines) for k in ("data_wait_share", "augment_share")
            }
            rate = statistics.median(line["speed/samples_per_second"] for line in lines)
            tell(
                f"{recipe}: {rate:.4g} images/s; waiting {mean['data_wait_share']:.1%}, augmenting {mean['augment_share']:.1%}"
            )
            claim(f"data_wait_{kind}{'_gpu' if gpu else ''}", mean["data_wait_share"], "of step time", 0.05, below=True)


if __name__ == "__main__":
    main()
