"""An RSNA pneumonia challenge of a few small images, whose headers call an image a patient, as the real ones do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fake.pictures import dicom
from fake.truth import Held

# image id -> (NIH file name, boxes, class)
IMAGES = {
    "0004cfab-14fd-4e49-80ba-63a80b6bddd6": ("00000005_000.png", [], "No Lung Opacity / Not Normal"),
    "00436515-870c-4b36-a041-de91049b9ab4": (
        "00000005_003.png",
        [(264, 152, 213, 379), (562, 152, 256, 453)],
        "Lung Opacity",
    ),
    "00704310-78a8-4b38-8475-49f4573b2dbb": ("00000013_001.png", [(323, 577, 160, 104)], "Lung Opacity"),
    "003d8fa0-6bf1-40ed-b54c-ac657f8495c5": ("00000017_000.png", [], "Normal"),
}
TEST = "0000a175-0e68-4ca4-b1af-167204a7e0bc"


def write_rsna_pneumonia(root: Path, *, mapping: bool = True, seed: int = 0) -> list[Held]:
    """With the mapping file the first two images are of one patient; without it nobody's patient is known."""
    rng, held = np.random.default_rng(seed), []
    labels, classes, mapped = ["patientId,x,y,width,height,Target"], ["patientId,class"], []
    for image, (nih, boxes, kind) in IMAGES.items():
        path = dicom(root, f"stage_2_train_images/{image}.dcm", rng, patient=image)
        labels += [f"{image},{x}.0,{y}.0,{w}.0,{h}.0,1" for x, y, w, h in boxes] or [f"{image},,,,,0"]
        classes += [f"{image},{kind}"] * max(len(boxes), 1)
        mapped.append({"subset_img_id": image, "img_id": nih, "SOPInstanceUID": "1.2.3"})
        patient = str(int(nih[:8])) if mapping else None
        held.append(Held(path, patient, "train", {"Target": float(bool(boxes))}))
    path = dicom(root, f"stage_2_test_images/{TEST}.dcm", rng, patient=TEST)
    held.append(Held(path, None, None, {"Target": None}))
    (root / "stage_2_train_labels.csv").write_text("\n".join(labels) + "\n")
    (root / "stage_2_detailed_class_info.csv").write_text("\n".join(classes) + "\n")
    if mapping:
        (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mapped))
    return held
