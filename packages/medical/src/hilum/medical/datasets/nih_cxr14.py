"""NIH ChestX-ray14 (Wang et al. 2017): 112,120 frontal radiographs of 30,805 patients, 14 findings by text mining."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from hilum.core.errors import HilumError, nearest
from hilum.medical.datasets.columns import files_by_name, first_match, read

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
_NONE = "No Finding"


class NIHChestXray14:
    """``Data_Entry_2017*.csv``, ``images*/**.png`` and, where they are, ``train_val_list.txt`` and ``test_list.txt``.

    The published header's own commas cut ``OriginalImage[Width,Height]`` and ``OriginalImagePixelSpacing[x,y]`` in two;
    it is read as it is. The official split is by patient.
    """

    name: ClassVar[str] = "medical/nih-cxr14"
    licence: ClassVar[str] = "no restriction stated by the NIH Clinical Center; cite Wang et al., CVPR 2017"
    source: ClassVar[str] = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
    group: ClassVar[str] = "Patient ID"
    overlaps: ClassVar[tuple[str, ...]] = ("medical/rsna-pneumonia", "medical/covidx")
    findings: ClassVar[tuple[str, ...]] = FINDINGS
    uncertain: ClassVar[str] = "ignore"  # there are none
    columns: ClassVar[tuple[str, ...]] = (
        "Image Index",
        "Finding Labels",
        "Follow-up #",
        "Patient ID",
        "Patient Age",
        "Patient Gender",
        "View Position",
        "OriginalImage[Width",
        "Height]",
        "OriginalImagePixelSpacing[x",
        "y]",
    )

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, patient_id, study_id, split (null without the lists), view, modality, findings."""
        path = first_match(root, ("Data_Entry_2017*.csv", "*/Data_Entry_2017*.csv"), dataset=self.name)
        table = read(path, self.columns, dataset=self.name, licence=self.licence)
        names, labels = table.columns["Image Index"], table.columns["Finding Labels"]
        place = {finding: at for at, finding in enumerate(FINDINGS)}
        matrix = np.zeros((len(table), len(FINDINGS)), np.float32)
        for row, text in enumerate(labels):
            for finding in text.split("|"):
                if finding.strip() == _NONE:
                    continue
                if finding.strip() not in place:
                    where = f"{path.name}, row {row + 2}"
                    raise HilumError(
                        f"{self.name}: unknown finding {finding!r}", where=where, fix=nearest(finding, FINDINGS)
                    )
                matrix[row, place[finding.strip()]] = 1
        where_is = files_by_name(root, ".png")
        splits = self._splits(path.parent)
        patients = table.columns["Patient ID"]
        visits = table.columns["Follow-up #"]
        return pa.table(
            {
                "path": [where_is.get(name, name) for name in names],
                "patient_id": list(patients),
                "study_id": [f"{p}/{v}" for p, v in zip(patients, visits, strict=True)],
                "split": pa.array([splits.get(name) for name in names], pa.string()),
                "view": list(table.columns["View Position"]),
                "modality": ["DX"] * len(table),
                **{finding: matrix[:, at] for finding, at in place.items()},
            }
        )

    def _splits(self, folder: Path) -> dict[str, str]:
        """File name -> train (``train_val_list.txt``) or test (``test_list.txt``)."""
        splits: dict[str, str] = {}
        for split, name in (("train", "train_val_list.txt"), ("test", "test_list.txt")):
            file = folder / name
            if file.is_file():
                splits |= dict.fromkeys(file.read_text().split(), split)
        return splits
