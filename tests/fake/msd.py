"""Two tasks of a Medical Segmentation Decathlon: a 4-D one and a CT, with the ``._`` files of the archives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fake.pictures import mask, volume
from fake.truth import Held

TASKS = {
    "Task01_BrainTumour": ("BRATS", {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, (8, 7, 4, 4), (0, 1, 2, 3)),
    "Task09_Spleen": ("spleen", {"0": "CT"}, (8, 7, 4), (0, 1)),
}


def write_msd(root: Path, *, seed: int = 0) -> list[Held]:
    rng, held = np.random.default_rng(seed), []
    for task, (stem, modality, shape, values) in TASKS.items():
        training, test = [], f"./imagesTs/{stem}_9.nii.gz"
        for number in (1, 2):
            name = f"{stem}_{number}.nii.gz"
            held.append(Held(volume(root, f"{task}/imagesTr/{name}", rng, shape=shape), None, "train"))
            held.append(Held(mask(root, f"{task}/labelsTr/{name}", rng, values=values), None, "train", role="label"))
            training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
            (root / f"{task}/imagesTr/._{name}").write_bytes(b"\0\5\26\7" + bytes(60))
        held.append(Held(volume(root, f"{task}/{test[2:]}", rng, shape=shape)))
        about = {"name": task[7:], "description": "d", "reference": "r", "licence": "CC-BY-SA 4.0", "release": "1.0"}
        about |= {"tensorImageSize": f"{len(shape)}D", "modality": modality}
        about |= {"labels": {str(v): f"structure {v}" for v in values}, "numTraining": 2, "numTest": 1}
        about |= {"training": training, "test": [test]}
        (root / task / "dataset.json").write_text(json.dumps(about))
        (root / task / "._dataset.json").write_bytes(b"\0\5\26\7" + bytes(60))
    return held
