"""CheXpert (Irvin et al. 2019): 224,316 radiographs of 65,240 patients, 14 observations with uncertainty."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.medical.datasets.columns import first_match, read

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_PATH = re.compile(r"(?:^|.*/)((?:train|valid|test)/(patient\d+)/(study\d+)/[^/]+)$")


class CheXpert:
    """``train.csv``, ``valid.csv`` and, where it is, ``test.csv``, beside the folders that they name.

    There is no patient column: patient and study come from the path, whose leading folders differ between releases.
    1, 0, -1 (uncertain) and blank (not mentioned, unknown) are kept; what -1 counts as is the recipe's
    ``labels.uncertain``; the paper found ``ones`` best for the findings in ``policies``.
    """

    name: ClassVar[str] = "medical/chexpert"
    licence: ClassVar[str] = "Stanford University dataset research use agreement (non-commercial)"
    source: ClassVar[str] = "https://stanfordmlgroup.github.io/competitions/chexpert/"
    group: ClassVar[str] = "patient number in the path"
    overlaps: ClassVar[tuple[str, ...]] = ()
    findings: ClassVar[tuple[str, ...]] = FINDINGS
    uncertain: ClassVar[str] = "ignore"
    policies: ClassVar[Mapping[str, str]] = {"Atelectasis": "ones", "Edema": "ones"}
    columns: ClassVar[tuple[str, ...]] = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, patient_id, study_id, split (train, val, test), view, modality, findings."""
        folder = first_match(root, ("train.csv", "*/train.csv"), dataset=self.name).parent
        columns: dict[str, list[Any]] = {n: [] for n in ("path", "patient_id", "study_id", "split", "view", "modality")}
        columns |= {finding: [] for finding in FINDINGS}
        for split, name in (("train", "train.csv"), ("val", "valid.csv"), ("test", "test.csv")):
            if name == "test.csv" and not (folder / name).is_file():
                continue
            self._add(columns, root, folder / name, split)
        return pa.table(columns)

    def _add(self, columns: dict[str, list[Any]], root: Path, file: Path, split: str) -> None:
        table = read(file, self.columns, dataset=self.name, licence=self.licence)
        before = file.parent.relative_to(root).as_posix()
        for row, text in enumerate(table.columns["Path"]):
            match = _PATH.fullmatch(text)
            if match is None:
                where = f"{file.name}, row {row + 2}"
                raise HilumError(
                    f"{self.name}: 'Path' is not .../patientN/studyN/view", where=where, fix="restore the file"
                )
            path, patient, study = match.groups()
            columns["path"].append(path if before == "." else f"{before}/{path}")
            columns["patient_id"].append(patient)
            columns["study_id"].append(f"{patient}/{study}")
            columns["split"].append(split)
            columns["view"].append(_view(table.columns["Frontal/Lateral"][row], table.columns["AP/PA"][row]))
            columns["modality"].append("DX")
        for finding in FINDINGS:
            columns[finding] += [float(value) if value else None for value in table.columns[finding]]


def _view(side: str, projection: str) -> str:
    if side.casefold() == "lateral":
        return "LATERAL"
    return projection.upper() if projection.upper() in ("AP", "PA") else "FRONTAL"
