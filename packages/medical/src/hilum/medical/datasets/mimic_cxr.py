"""MIMIC-CXR and MIMIC-CXR-JPG 2.1 (Johnson et al. 2019): 377,110 radiographs of 227,835 studies of 65,379 patients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from hilum.data.cards import Dataset, DatasetCard, Origin
from hilum.medical.datasets.columns import Rows, any_match, first_match, inside, read, value

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
_TRAPS = (
    "labels are per study and serve every view of it",
    "the official test set is small (5,159 images of 293 patients)",
    "dates are shifted per patient and are not read",
)
_LABELS = (
    "per study, by the CheXpert labeller (negbio's where only its table is there): 1, 0, -1 uncertain, blank not "
    "mentioned (unknown)"
)
_COUNTS = {"images": 377_110, "patients": 65_379, "train": 368_960, "val": 2_991, "test": 5_159}


class MIMICCXRJPG(Dataset):
    """``mimic-cxr-2.0.0-{metadata,split,chexpert|negbio}.csv[.gz]`` beside ``files/pNN/pNNNNNNNN/sNNNNNNNN/ID.jpg``."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/mimic-cxr-jpg",
        title="MIMIC-CXR-JPG 2.1",
        licence="PhysioNet Credentialed Health Data License 1.5.0",
        url="https://physionet.org/content/mimic-cxr-jpg/2.1.0/",
        citation="Johnson et al., arXiv 1901.07042; PhysioNet doi 10.13026/jsn5-t979",
        terms="credentialed",
        group="subject_id",
        labels=_LABELS,
        split="mimic-cxr-2.0.0-split.csv.gz: train, validate, test, by patient",
        counts=_COUNTS,
        files=(
            "mimic-cxr-2.0.0-metadata.csv.gz",
            "mimic-cxr-2.0.0-split.csv.gz",
            "mimic-cxr-2.0.0-chexpert.csv.gz",
            "files/",
        ),
        steps=(
            "Become a credentialed PhysioNet user (CITI training, reference) and sign the data use agreement.",
            "wget -r -N -c -np --user YOU --ask-password https://physionet.org/files/mimic-cxr-jpg/2.1.0/  (570 GB)",
            "sha256sum -c SHA256SUMS.txt",
        ),
        draws_from=(
            Origin(
                "medical/mimic-cxr", "the same images as JPEG", "https://physionet.org/content/mimic-cxr-jpg/2.1.0/"
            ),
        ),
        traps=_TRAPS,
    )
    findings: ClassVar[tuple[str, ...]] = FINDINGS
    uncertain: ClassVar[str] = "ignore"
    columns: ClassVar[tuple[str, ...]] = METADATA

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, patient, study, split, view, modality, the findings of its study."""
        path = _table(root, "mimic-cxr-2.0.0-metadata", dataset=self.name)
        kept = ("dicom_id", "subject_id", "study_id", "ViewPosition")
        columns = read(path, self.columns, dataset=self.name, licence=self.licence, keep=kept).columns
        wanted = zip(*(columns[c] for c in kept), strict=True)
        base = inside(root, path.parent)
        before = "" if base == "." else f"{base}/"
        images = ((f"{before}{place(s, t, d)}.jpg", d, s, t, view) for d, s, t, view in wanted)
        return described(self, root, images)


class MIMICCXR(Dataset):
    """``cxr-record-list.csv.gz`` beside ``files/...dcm``; labels, views and split where MIMIC-CXR-JPG's tables are too.

    The header's PatientID is the subject_id; the list decides.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/mimic-cxr",
        title="MIMIC-CXR 2.1 (DICOM)",
        licence="PhysioNet Credentialed Health Data License 1.5.0",
        url="https://physionet.org/content/mimic-cxr/2.1.0/",
        citation="Johnson et al., Scientific Data 2019, doi 10.1038/s41597-019-0322-0",
        terms="credentialed",
        group="subject_id",
        labels=_LABELS + "; from MIMIC-CXR-JPG's tables, unknown without them",
        split="that of MIMIC-CXR-JPG, where its table is there",
        counts=_COUNTS,
        files=("cxr-record-list.csv.gz", "files/", "mimic-cxr-reports.zip"),
        steps=(
            "Become a credentialed PhysioNet user (CITI training, reference) and sign the data use agreement.",
            "wget -r -N -c -np --user YOU --ask-password https://physionet.org/files/mimic-cxr/2.1.0/  (4.7 TB)",
            "Put mimic-cxr-2.0.0-{metadata,split,chexpert}.csv.gz of MIMIC-CXR-JPG beside cxr-record-list.csv.gz.",
        ),
        traps=_TRAPS,
    )
    findings: ClassVar[tuple[str, ...]] = FINDINGS
    uncertain: ClassVar[str] = "ignore"
    columns: ClassVar[tuple[str, ...]] = ("subject_id", "study_id", "dicom_id", "path")

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, patient, study, split, view, modality, the findings of its study (null without)."""
        path = _table(root, "cxr-record-list", dataset=self.name)
        columns = read(path, self.columns, dataset=self.name, licence=self.licence).columns
        base, views = inside(root, path.parent), {}
        if any_match(root, _names("mimic-cxr-2.0.0-metadata")):
            other = _table(root, "mimic-cxr-2.0.0-metadata", dataset=self.name)
            kept = ("dicom_id", "ViewPosition")
            told = read(other, METADATA, dataset=self.name, licence=self.licence, keep=kept).columns
            views = dict(zip(told["dicom_id"], told["ViewPosition"], strict=True))
        before = "" if base == "." else f"{base}/"
        wanted = zip(*(columns[c] for c in ("path", "dicom_id", "subject_id", "study_id")), strict=True)
        return described(self, root, ((before + p, d, s, t, views.get(d, "")) for p, d, s, t in wanted))


def described(dataset: Dataset, root: Path, images: Iterator[tuple[str, str, str, str, str]]) -> pa.Table:
    """The table of (path, dicom_id, subject_id, study_id, view), with study labels and the official split."""
    (labelled, labels), splits, rows = _labels(dataset, root), _splits(dataset, root), Rows()
    for path, image, subject, study, view in images:
        at = labelled.get((subject, study))
        rows.add(
            path,
            {name: None if at is None else column[at] for name, column in labels.items()},
            issuer="mimic",
            patient_id=subject,
            study_id=study,
            split=splits.get(image),
            view=view,
            modality="DX",
        )
    return rows.table()


def place(subject: str, study: str, image: str) -> str:
    """Where an image lies, without its ending: ``files/p10/p10000032/s50414267/ID``."""
    return f"files/p{subject[:2]}/p{subject}/s{study}/{image}"


def _labels(dataset: Dataset, root: Path) -> tuple[dict[tuple[str, str], int], dict[str, list[float | None]]]:
    """(row of every (patient, study), values a finding)."""
    path = any_match(root, [n for of in ("chexpert", "negbio") for n in _names(f"mimic-cxr-2.0.0-{of}")])
    if path is None:
        return {}, {name: [] for name in FINDINGS}
    columns = read(path, ("subject_id", "study_id", *FINDINGS), dataset=dataset.name, licence=dataset.licence).columns
    places = {key: row for row, key in enumerate(zip(columns["subject_id"], columns["study_id"], strict=True))}
    values = {
        name: [value(v, dataset=dataset.name, where=f"{path.name}, row {n}") for n, v in enumerate(columns[name], 2)]
        for name in FINDINGS
    }
    return places, values


def _splits(dataset: Dataset, root: Path) -> dict[str, str]:
    path = any_match(root, _names("mimic-cxr-2.0.0-split"))
    if path is None:
        return {}
    wanted = ("dicom_id", "study_id", "subject_id", "split")
    kept = ("dicom_id", "split")
    columns = read(path, wanted, dataset=dataset.name, licence=dataset.licence, keep=kept).columns
    return dict(zip(columns["dicom_id"], columns["split"], strict=True))


def _names(stem: str) -> tuple[str, str]:
    return f"{stem}.csv.gz", f"{stem}.csv"


def _table(root: Path, stem: str, *, dataset: str) -> Path:
    return first_match(root, _names(stem), dataset=dataset)
