"""CheXpert (Irvin et al. 2019): 224,316 radiographs of 65,240 patients, 14 observations with uncertainty."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.data.cards import Dataset, DatasetCard
from hilum.medical.datasets.columns import Rows, age, first_match, inside, read, sex, value

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


class CheXpert(Dataset):
    """``train.csv``, ``valid.csv`` and, where it is, ``test.csv``, beside the folders that they name.

    There is no patient column: patient and study come from the path, whose leading folders differ between releases.
    1, 0, -1 (uncertain) and blank (not mentioned, unknown) are kept; what -1 counts as is the recipe's
    ``labels.uncertain``; the paper found ``ones`` best for the findings in ``policies``.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/chexpert",
        title="CheXpert",
        licence="Stanford University dataset research use agreement (non-commercial)",
        url="https://stanfordmlgroup.github.io/competitions/chexpert/",
        citation="Irvin et al., AAAI 2019, arXiv 1901.07031",
        terms="registration",
        group="patient number in the path",
        labels="1, 0, -1 uncertain (recipe: labels.uncertain), blank not mentioned (unknown)",
        split="train, valid (200 studies read by radiologists); test was published later",
        counts={"images": 223_648, "patients": 64_740, "train": 223_414, "val": 234},
        files=("train.csv", "valid.csv", "train/", "valid/"),
        steps=(
            "Register at the address above and accept the research use agreement; a link is sent by mail.",
            "Unpack CheXpert-v1.0-small.zip (11 GB) or the batches of CheXpert-v1.0 (439 GB).",
        ),
        traps=("no patient column", "leading folders differ", "age 0 is unknown", "AP/PA is blank for lateral views"),
    )
    findings: ClassVar[tuple[str, ...]] = FINDINGS
    uncertain: ClassVar[str] = "ignore"
    policies: ClassVar[Mapping[str, str]] = {"Atelectasis": "ones", "Edema": "ones"}
    columns: ClassVar[tuple[str, ...]] = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, patient, study, split (train, val, test), view, modality, sex, age, findings."""
        folder = first_match(root, ("train.csv",), dataset=self.name).parent
        rows = Rows()
        for split, name in (("train", "train.csv"), ("val", "valid.csv"), ("test", "test.csv")):
            if name != "test.csv" or (folder / name).is_file():
                self._add(rows, root, folder / name, split)
        return rows.table()

    def _add(self, rows: Rows, root: Path, file: Path, split: str) -> None:
        columns = read(file, self.columns, dataset=self.name, licence=self.licence).columns
        before = inside(root, file.parent)
        for row, text in enumerate(columns["Path"]):
            match, where = _PATH.fullmatch(text), f"{file.name}, row {row + 2}"
            if match is None:
                raise HilumError(
                    f"{self.name}: 'Path' is not .../patientN/studyN/view", where=where, fix="restore the file"
                )
            path, patient, study = match.groups()
            rows.add(
                path if before == "." else f"{before}/{path}",
                {f: value(columns[f][row], dataset=self.name, where=where) for f in FINDINGS},
                issuer="chexpert",
                patient_id=patient,
                study_id=f"{patient}/{study}",
                split=split,
                view=_view(columns["Frontal/Lateral"][row], columns["AP/PA"][row]),
                modality="DX",
                sex=sex(columns["Sex"][row]),
                age=None if columns["Age"][row] == "0" else age(columns["Age"][row]),  # 0: unknown
            )


def _view(side: str, projection: str) -> str:
    if side.casefold() == "lateral":
        return "LATERAL"
    return projection.upper() if projection.upper() in ("AP", "PA") else "FRONTAL"
