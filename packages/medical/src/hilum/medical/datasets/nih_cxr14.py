"""NIH ChestX-ray14 (Wang et al. 2017): 112,120 frontal radiographs of 30,805 patients, 14 findings by text mining."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from hilum.core.errors import HilumError, nearest
from hilum.data.cards import Dataset, DatasetCard
from hilum.medical.datasets.columns import (
    BOXES,
    Rows,
    age,
    any_match,
    files_by_name,
    first_match,
    number,
    read,
    records,
    sex,
)

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
ISSUER = "nih-cxr14"  # of patient numbers; sets that are drawn from this one use it too
BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
_NONE = "No Finding"
_BOX_NAMES = {"Infiltrate": "Infiltration"}  # the table of boxes has a name of its own


class NIHChestXray14(Dataset):
    """``Data_Entry_2017*.csv``, ``images*/**.png`` and, where they are, ``train_val_list.txt`` and ``test_list.txt``.

    The published header's own commas cut ``OriginalImage[Width,Height]`` and ``OriginalImagePixelSpacing[x,y]`` in two;
    it is read as it is. The official split is by patient.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/nih-cxr14",
        title="NIH ChestX-ray14",
        licence="no restriction stated by the NIH Clinical Center; cite Wang et al., CVPR 2017",
        url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        citation="Wang et al., CVPR 2017, arXiv 1705.02315",
        terms="open",
        group="Patient ID",
        labels="1 named, 0 not named in the report (text mining); no uncertain values",
        split="by patient: train_val_list.txt, test_list.txt",
        counts={"images": 112_120, "patients": 30_805, "train": 86_524, "test": 25_596},
        files=("Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt", "images_001/ ... images_012/"),
        steps=(
            "Open the address above (no registration) and download images/images_001.tar.gz to images_012.tar.gz "
            "(42 GB; batch_download_zips.py there does it), Data_Entry_2017_v2020.csv and the two lists.",
            "Unpack every archive into a folder of its own name.",
        ),
        traps=(
            "two headers are cut by their own comma",
            "the table of boxes says Infiltrate",
            "ages above 110 in the first release are unknown",
        ),
    )
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
        """One row an image: path, patient, study, split (null without the lists), view, modality, sex, age, findings."""
        path = first_match(root, ("Data_Entry_2017*.csv", "Data_Entry_2017*.csv.gz"), dataset=self.name)
        columns = read(path, self.columns, dataset=self.name, licence=self.licence).columns
        where_is, splits, rows = files_by_name(root, ".png"), self._splits(path.parent), Rows()
        for row, name in enumerate(columns["Image Index"]):
            patient, visit = _plain(columns["Patient ID"][row]), columns["Follow-up #"][row]
            named = self._named(columns["Finding Labels"][row], where=f"{path.name}, row {row + 2}")
            rows.add(
                where_is.get(name, name),
                {finding: float(finding in named) for finding in FINDINGS},
                issuer=ISSUER,
                patient_id=patient,
                study_id=f"{patient}/{visit}",
                split=splits.get(name),
                view=columns["View Position"][row],
                modality="DX",
                sex=sex(columns["Patient Gender"][row]),
                age=age(columns["Patient Age"][row]),
            )
        return rows.table()

    def _named(self, text: str, *, where: str) -> set[str]:
        named = {finding.strip() for finding in text.split("|")} - {_NONE}
        for strange in sorted(named - set(FINDINGS)):
            raise HilumError(f"{self.name}: unknown finding", where=where, fix=nearest(strange, FINDINGS))
        return named

    def _splits(self, folder: Path) -> dict[str, str]:
        """File name -> train (``train_val_list.txt``) or test (``test_list.txt``)."""
        splits: dict[str, str] = {}
        for split, name in (("train", "train_val_list.txt"), ("test", "test_list.txt")):
            file = folder / name
            if file.is_file():
                splits |= dict.fromkeys(file.read_text("utf-8-sig", "replace").split(), split)
        return splits

    def boxes(self, root: Path) -> pa.Table:
        """BOXES of ``BBox_List_2017.csv`` (984 boxes on 880 images), named as in the labels."""
        path = first_match(root, ("BBox_List_2017.csv", "BBox_List_2017.csv.gz"), dataset=self.name)
        columns = read(path, BOX_COLUMNS, dataset=self.name, licence=self.licence).columns
        where_is, found = files_by_name(root, ".png"), []
        for row, (name, finding, *cells) in enumerate(zip(*(columns[c] for c in BOX_COLUMNS), strict=True), 2):
            where = f"{path.name}, row {row}"
            x, y, width, height = (number(cell, dataset=self.name, where=where) for cell in cells)
            found.append(
                {
                    "path": where_is.get(name, name),
                    "finding": _BOX_NAMES.get(finding, finding),
                    "x0": x,
                    "y0": y,
                    "x1": x + width,
                    "y1": y + height,
                }
            )
        return pa.Table.from_pylist(found, schema=BOXES)


def patient_of(name: str) -> str | None:
    """Patient number of an image's file name (``00000013_004.png`` -> ``13``), as the table writes it."""
    return _plain(first) if (first := name.partition("_")[0]).isdecimal() else None


def _plain(patient: str) -> str:
    """A patient number without leading zeros: file names have them, tables do not."""
    return str(int(patient)) if patient.isdecimal() else patient


def mapped_patients(root: Path, *, dataset: str) -> dict[str, str]:
    """Image id of a challenge that took this set's images -> patient number, by the challenge's mapping file.

    The RSNA publishes it (``pneumonia-challenge-dataset-mappings_2018.json``: ``SOPInstanceUID``, ``img_id`` here,
    ``subset_img_id`` there) beside the challenge data. Without the file: empty, nobody knows the patients.
    """
    path = any_match(root, ("*dataset-mapping*.json",))
    if path is None:
        return {}
    entries = records(path, ("subset_img_id", "img_id"), dataset=dataset)
    pairs = [
        (str(e["subset_img_id"]), str(e.get("SOPInstanceUID") or ""), patient_of(str(e["img_id"]))) for e in entries
    ]
    return {key: patient for own, uid, patient in pairs if patient for key in (own, uid) if key}
