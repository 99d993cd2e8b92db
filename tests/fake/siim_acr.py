"""A SIIM-ACR pneumothorax set of a few small images, with the blank before its second header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake.dicom import uid
from fake.pictures import dicom
from fake.truth import Held

# image number -> run lengths, of which one image has two
MASKS = {1: [" -1"], 2: [" 30 4 20 4"], 3: [" 0 2", " 100 3"]}


def write_siim_acr(root: Path, *, seed: int = 0) -> list[Held]:
    rng, held, lines = np.random.default_rng(seed), [], ["ImageId, EncodedPixels"]
    for number, runs in MASKS.items():
        image = uid(9, number)
        path = dicom(root, f"dicom-images-train/{uid(7, number)}/{uid(8, number)}/{image}.dcm", rng, patient=image)
        lines += [f"{image},{text}" for text in runs]
        held.append(Held(path, None, "train", {"Pneumothorax": float(runs != [" -1"])}))
    path = dicom(root, f"dicom-images-test/{uid(7, 9)}/{uid(8, 9)}/{uid(9, 9)}.dcm", rng, patient=uid(9, 9))
    held.append(Held(path, None, None, {"Pneumothorax": None}))
    (root / "train-rle.csv").write_text("\n".join(lines) + "\n")
    return held
