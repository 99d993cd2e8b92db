"""VinDr-CXR (Nguyen et al. 2022): 18,000 radiographs; three radiologists read each training image, five the test set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from hilum.core.errors import HilumError, nearest
from hilum.data.cards import Dataset, DatasetCard
from hilum.data.tables import Table
from hilum.medical.datasets.columns import (
    BOXES,
    Rows,
    any_match,
    files_below,
    first_match,
    need_columns,
    number,
    read,
    value,
)

FINDINGS = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
)
KAGGLE = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "No finding",
)
"""Classes 0 to 14 of the Kaggle release, in order; 14 is none of the others."""
_BOX = ("x_min", "y_min", "x_max", "y_max")
_SYNONYM = {"Other disease": "Other diseases"}  # the test table's header


class VinDrCXR(Dataset):
    """PhysioNet: ``{train,test}/ID.dicom``, ``annotations/{image_labels,annotations}_{train,test}.csv``. Kaggle:
    ``train.csv`` (a row a box and reader) beside ``train/`` and ``test/``; its test images have no labels."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/vindr-cxr",
        title="VinDr-CXR 1.0.0",
        licence="PhysioNet Credentialed Health Data License 1.5.0 (Kaggle: competition rules, non-commercial)",
        url="https://physionet.org/content/vindr-cxr/1.0.0/",
        citation="Nguyen et al., Scientific Data 2022, doi 10.1038/s41597-022-01498-w",
        terms="credentialed",
        group="none exists: no patient id is published, so all images are for training only (--group image_id assumes "
        "one image a patient)",
        labels="of the readers of an image: more than half 1, nobody 0, else -1 uncertain; the test set is a consensus",
        split="train (15,000), test (3,000; unlabelled on Kaggle)",
        counts={"images": 18_000, "train": 15_000, "test": 3_000},
        files=("annotations/image_labels_train.csv", "annotations/image_labels_test.csv", "train/", "test/"),
        steps=(
            "Become a credentialed PhysioNet user and sign the data use agreement, or join the Kaggle competition "
            "vinbigdata-chest-xray-abnormalities-detection.",
            "wget -r -N -c -np --user YOU --ask-password https://physionet.org/files/vindr-cxr/1.0.0/  (192 GB)",
        ),
        traps=(
            "three readers of a training image disagree",
            "class 14 is No finding, not a lesion",
            "some images are MONOCHROME1",
            "the test table calls 'Other diseases' otherwise",
        ),
    )
    findings: ClassVar[tuple[str, ...]] = FINDINGS
    uncertain: ClassVar[str] = "ignore"
    columns: ClassVar[tuple[str, ...]] = ("image_id", "class_name", "class_id", "rad_id", *_BOX)

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, image_id, split, modality, findings; no patient."""
        rows, votes = Rows(), self._votes(root)
        names = KAGGLE if any_match(root, ("image_labels_train.csv",)) is None else FINDINGS
        where_is = {path.rpartition("/")[2].partition(".")[0]: path for path in files_below(root, (".dicom", ".dcm"))}
        nobody: Mapping[str, Sequence[float]] = {}
        for image in sorted({*where_is, *votes}):
            split, readings = votes.get(image, (None, nobody))
            rows.add(
                where_is.get(image, f"{split}/{image}.dicom"),
                {name: agreed(readings.get(name, ())) for name in names},
                image_id=image,
                study_id=image,
                split=split,
                modality="DX",
            )
        return rows.table()

    def _votes(self, root: Path) -> dict[str, tuple[str, Mapping[str, Sequence[float]]]]:
        """Image -> (part, finding -> what each reader said)."""
        found: dict[str, tuple[str, Mapping[str, Sequence[float]]]] = {}
        if any_match(root, ("image_labels_train.csv",)) is None:
            return {image: ("train", said) for image, said in self._kaggle(root).items()}
        for part in ("train", "test"):
            path = first_match(root, (f"image_labels_{part}.csv",), dataset=self.name)
            header = [_SYNONYM.get(name, name) for name in Table.names(path)]
            need_columns(path, ("image_id", *FINDINGS), header, dataset=self.name)
            labels = Table.read(path, only={"image_id", *FINDINGS, *_SYNONYM}).columns
            columns = {_SYNONYM.get(name, name): cells for name, cells in labels.items()}
            images: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
            for row, image in enumerate(columns["image_id"]):
                for name in FINDINGS:
                    said = value(columns[name][row], dataset=self.name, where=f"{path.name}, row {row + 2}")
                    if said is not None:
                        images[image][name].append(said)
            found |= {image: (part, said) for image, said in images.items()}
        return found

    def _kaggle(self, root: Path) -> dict[str, dict[str, list[float]]]:
        path = first_match(root, ("train.csv",), dataset=self.name)
        columns = read(path, self.columns, dataset=self.name, licence=self.licence).columns
        marks: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # image -> reader -> findings
        wanted = zip(*(columns[c] for c in ("image_id", "rad_id", "class_name", "class_id")), strict=True)
        for row, (image, reader, name, listed) in enumerate(wanted, 2):
            where = f"{path.name}, row {row}"
            if name not in KAGGLE or KAGGLE.index(name) != number(listed, dataset=self.name, where=where):
                fix = nearest(name, KAGGLE)
                raise HilumError(f"{self.name}: class_name and class_id do not belong together", where=where, fix=fix)
            marks[image][reader].add(name)
        return {
            image: {name: [float(name in said) for said in readers.values()] for name in KAGGLE}
            for image, readers in marks.items()
        }

    def boxes(self, root: Path) -> pa.Table:
        """BOXES of every reader; the rows of "No finding", which mark nothing, are left out."""
        where_is = {path.rpartition("/")[2].partition(".")[0]: path for path in files_below(root, (".dicom", ".dcm"))}
        found = []
        kaggle = any_match(root, ("annotations_train.csv",)) is None
        for name in ("train.csv",) if kaggle else ("annotations_train.csv", "annotations_test.csv"):
            path = first_match(root, (name,), dataset=self.name)
            wanted = ("image_id", "class_name", *_BOX)
            columns = read(path, wanted, dataset=self.name, licence=self.licence, also=("rad_id",)).columns
            readers = columns.get("rad_id", [""] * len(columns["image_id"]))
            lines = zip(columns["image_id"], readers, columns["class_name"], *(columns[c] for c in _BOX), strict=True)
            for row, (image, reader, finding, *cells) in enumerate(lines, 2):
                if all(cells):
                    numbers = [number(cell, dataset=self.name, where=f"{path.name}, row {row}") for cell in cells]
                    box = dict(zip(("x0", "y0", "x1", "y1"), numbers, strict=True))
                    place = where_is.get(image, f"{'test' if 'test' in name else 'train'}/{image}.dicom")
                    found.append({"path": place, "finding": finding, "reader": reader or None, **box})
        return pa.Table.from_pylist(found, schema=BOXES)


def agreed(said: Sequence[float]) -> float | None:
    """What readers agree on: more than half say 1: 1; nobody does: 0; fewer: -1; None without a reader."""
    if not said:
        return None
    share = sum(vote == 1 for vote in said) / len(said)
    return 1.0 if share > 0.5 else -1.0 if share else 0.0
