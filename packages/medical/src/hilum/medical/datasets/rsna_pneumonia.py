"""RSNA Pneumonia Detection Challenge 2018 (Shih et al. 2019): 29,684 frontal radiographs out of NIH ChestX-ray14."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.data.cards import Dataset, DatasetCard, Origin
from hilum.medical.datasets.columns import BOXES, Rows, any_match, files_by_name, first_match, number, read, value
from hilum.medical.datasets.nih_cxr14 import ISSUER, mapped_patients

_BOX = ("x", "y", "width", "height")


class RSNAPneumonia(Dataset):
    """``stage_2_train_labels.csv`` (a row a box), ``stage_2_detailed_class_info.csv``, ``stage_2_{train,test}_images``.

    ``patientId``, also what the DICOM headers call PatientID, names an image: the same person has several. The patient
    is known through the mapping to NIH file names only.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/rsna-pneumonia",
        title="RSNA Pneumonia Detection Challenge (stage 2)",
        licence="challenge rules: non-commercial and academic research; cite Shih et al. 2019 and Wang et al. 2017",
        url="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        citation="Shih et al., Radiology: AI 2019, doi 10.1148/ryai.2019180041",
        terms="registration",
        group="NIH patient number through the RSNA's mapping file; without it none exists (patientId is an image id)",
        labels="Target 1 (lung opacity), 0; class: Normal, Lung Opacity, No Lung Opacity / Not Normal; no uncertain values",
        split="none that is public: stage_2_test_images have no labels",
        counts={"images": 29_684},
        files=("stage_2_train_labels.csv", "stage_2_detailed_class_info.csv", "stage_2_train_images/"),
        steps=(
            "Register with Kaggle and accept the competition's rules.",
            "kaggle competitions download -c rsna-pneumonia-detection-challenge  (4 GB), unpack",
            "Put pneumonia-challenge-dataset-mappings_2018.json (RSNA, AI challenge 2018 page) beside the tables: "
            "without it every group is unknown and nothing can be held out.",
        ),
        draws_from=(
            Origin("medical/nih-cxr14", "every image is one of its", "Shih et al. 2019; the RSNA's mapping file"),
        ),
        traps=("a row is a box", "boxes are blank for Target 0", "patientId is an image id, in the headers too"),
    )
    findings: ClassVar[tuple[str, ...]] = ("Target",)
    uncertain: ClassVar[str] = "ignore"
    columns: ClassVar[tuple[str, ...]] = ("patientId", *_BOX, "Target")

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, patient (with the mapping file), study, view unknown, Target, class; test: no label."""
        path, columns = self._labels(root)
        targets: dict[str, float | None] = {}
        for row, (image, text) in enumerate(zip(columns["patientId"], columns["Target"], strict=True), 2):
            where = f"{path.name}, row {row}"
            target = value(text, dataset=self.name, where=where)
            if targets.setdefault(image, target) != target:
                raise HilumError(f"{self.name}: two rows of one image differ in Target", where=where)
        kinds, patients = self._classes(root), mapped_patients(root, dataset=self.name)
        where_is, rows = files_by_name(root, ".dcm"), Rows()
        unlabelled = sorted(name.removesuffix(".dcm") for name in where_is)
        for image in dict.fromkeys([*targets, *unlabelled]):
            rows.add(
                where_is.get(f"{image}.dcm", f"stage_2_train_images/{image}.dcm"),
                {"Target": targets.get(image)},
                issuer=ISSUER,
                patient_id=patients.get(image),
                study_id=image,
                image_id=image,
                split="train" if image in targets else None,
                modality="DX",
                **({"class": kinds.get(image)} if kinds else {}),
            )
        return rows.table()

    def _labels(self, root: Path) -> tuple[Path, dict[str, list[str]]]:
        path = first_match(root, ("stage_2_train_labels.csv", "stage_2_train_labels.csv.gz"), dataset=self.name)
        table = read(path, self.columns, dataset=self.name, licence=self.licence)
        return path, {name: list(cells) for name, cells in table.columns.items()}

    def _classes(self, root: Path) -> dict[str, str]:
        path = any_match(root, ("stage_2_detailed_class_info.csv",))
        if path is None:
            return {}
        columns = read(path, ("patientId", "class"), dataset=self.name, licence=self.licence).columns
        return dict(zip(columns["patientId"], columns["class"], strict=True))

    def boxes(self, root: Path) -> pa.Table:
        """BOXES of lung opacity. A box without Target 1, or the reverse, is an error."""
        path, columns = self._labels(root)
        where_is, found = files_by_name(root, ".dcm"), []
        for row, (image, target, *cells) in enumerate(
            zip(*(columns[c] for c in ("patientId", "Target", *_BOX)), strict=True)
        ):
            where = f"{path.name}, row {row + 2}"
            if any(cells) != (target.removesuffix(".0") == "1"):
                raise HilumError(f"{self.name}: a box and its Target contradict each other", where=where)
            if any(cells):
                x, y, width, height = (number(cell, dataset=self.name, where=where) for cell in cells)
                place = where_is.get(f"{image}.dcm", f"stage_2_train_images/{image}.dcm")
                box = {"x0": x, "y0": y, "x1": x + width, "y1": y + height}
                found.append({"path": place, "finding": "Target", **box})
        return pa.Table.from_pylist(found, schema=BOXES)
