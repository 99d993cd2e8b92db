"""A CheXpert of a few small images, in the published layout."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

_NAMES = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
FINDINGS = tuple(_NAMES.split(","))
VALUES = ("1.0", "0.0", "-1.0", "")


def write_chexpert(
    root: Path, *, patients: int = 6, prefix: str = "CheXpert-v1.0-small/", seed: int = 0
) -> list[dict[str, str]]:
    """Write the set; returns the lines of both tables."""
    rng = np.random.default_rng(seed)
    written: list[dict[str, str]] = []
    for split, first, count in (("train", 1, patients), ("valid", 64541, 2)):
        lines = []
        for patient in range(first, first + count):
            for view, side in ((1, "Frontal"), (2, "Lateral")):
                path = f"{split}/patient{patient:05}/study1/view{view}_{side.lower()}.jpg"
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (24, 20), dtype=np.uint8)).save(root / path)
                line = {"Path": prefix + path, "Sex": "Female", "Age": "0", "Frontal/Lateral": side}
                line["AP/PA"] = ("AP", "PA")[patient % 2] if side == "Frontal" else ""
                line |= {f: VALUES[int(rng.integers(4 if split == "train" else 2))] for f in FINDINGS}
                lines.append(line)
        with (root / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        written += lines
    return written
