"""A VinDr-CXR of a few small images: three readers who disagree, in the layout of PhysioNet or of Kaggle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake.pictures import dicom
from fake.truth import Held

NAMES = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,Tuberculosis,"
    "Other diseases,No finding"
)
FINDINGS = tuple(NAMES.split(","))
KAGGLE = (
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD", "Infiltration"),
    *("Lung Opacity", "Nodule/Mass", "Other lesion", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *("Pulmonary fibrosis", "No finding"),
)
# image -> reader -> findings; by hand: two of three is a majority, one of three is uncertain
TRAIN = {
    "50a418190bc3fb1ef1633bf9678929b3": {"R11": ["No finding"], "R7": ["No finding"], "R15": ["No finding"]},
    "9a5094b2563a1ef3ff50dc5c7ff71345": {
        "R10": ["Cardiomegaly", "ILD"],
        "R8": ["Cardiomegaly"],
        "R9": ["Aortic enlargement"],
    },
}
AGREED = {
    "50a418190bc3fb1ef1633bf9678929b3": {"No finding": 1.0},
    "9a5094b2563a1ef3ff50dc5c7ff71345": {"Cardiomegaly": 1.0, "ILD": -1.0, "Aortic enlargement": -1.0},
}
TEST = {"008bdde2af2462e86fd373a445d0f4cd": ["Other diseases", "Pneumonia"]}


def write_vindr_cxr(root: Path, *, kaggle: bool = False, seed: int = 0) -> list[Held]:
    """The second training image is MONOCHROME1. No header names a patient."""
    rng, held = np.random.default_rng(seed), []
    names = KAGGLE if kaggle else FINDINGS
    for number, image in enumerate(TRAIN):
        photometric = "MONOCHROME1" if number else "MONOCHROME2"
        path = dicom(root, f"train/{image}.dicom", rng, patient=None, photometric=photometric)
        held.append(Held(path, None, "train", {name: AGREED[image].get(name, 0.0) for name in names}))
    for image, said in TEST.items():
        path = dicom(root, f"test/{image}.dicom", rng, patient=None)
        labels = {name: None if kaggle else float(name in said) for name in names}
        held.append(Held(path, None, None if kaggle else "test", labels))
    (_kaggle if kaggle else _physionet)(root)
    return held


def _kaggle(root: Path) -> None:
    lines = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for image, readers in TRAIN.items():
        for reader, said in readers.items():
            for name in said:
                box = ",,," if name == "No finding" else "2.0,3.0,12.0,18.0"
                lines.append(f"{image},{name},{KAGGLE.index(name)},{reader},{box}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")


def _physionet(root: Path) -> None:
    folder = root / "annotations"
    folder.mkdir()
    labels, boxes = [f"image_id,rad_id,{NAMES}"], ["image_id,rad_id,class_name,x_min,y_min,x_max,y_max"]
    for image, readers in TRAIN.items():
        for reader, said in readers.items():
            labels.append(f"{image},{reader}," + ",".join(str(int(name in said)) for name in FINDINGS))
            cells = {name: ",,," if name == "No finding" else "2.0,3.0,12.0,18.0" for name in said}
            boxes += [f"{image},{reader},{name},{box}" for name, box in cells.items()]
    (folder / "image_labels_train.csv").write_text("\n".join(labels) + "\n")
    (folder / "annotations_train.csv").write_text("\n".join(boxes) + "\n")
    labels = ["image_id," + NAMES.replace("Other diseases", "Other disease")]  # as the real test table has it
    labels += [f"{image}," + ",".join(str(int(name in said)) for name in FINDINGS) for image, said in TEST.items()]
    (folder / "image_labels_test.csv").write_text("\n".join(labels) + "\n")
    (folder / "annotations_test.csv").write_text(
        "image_id,class_name,x_min,y_min,x_max,y_max\n"
        + "".join(f"{image},{name},1,2,3,4\n" for image, said in TEST.items() for name in said)
    )
