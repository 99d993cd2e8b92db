"""A MIMIC-CXR-JPG, or MIMIC-CXR, of a few small images: gzipped tables, labels a study, images a view."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from fake.pictures import dicom, grey
from fake.truth import Held

LABELS = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
FINDINGS = tuple(LABELS.split(","))
# study -> (patient, split, what the labeller said of Edema and Pneumonia)
STUDIES = {
    "50414267": ("10000032", "train", "1.0", ""),
    "53189527": ("10000032", "train", "-1.0", "0.0"),
    "50000014": ("10000764", "validate", "0.0", "1.0"),
    "57375967": ("11000935", "test", "", "-1.0"),
}


def write_mimic_cxr(root: Path, *, jpg: bool = True, labeller: str = "chexpert", seed: int = 0) -> list[Held]:
    """Two views a study; the study 57375967 is not in the labels table."""
    rng, held = np.random.default_rng(seed), []
    metadata, splits, listed = [METADATA], ["dicom_id,study_id,subject_id,split"], ["subject_id,study_id,dicom_id,path"]
    labels = [f"subject_id,study_id,{LABELS}"]
    for study, (patient, split, edema, pneumonia) in STUDIES.items():
        known = study != "57375967"
        cells = dict.fromkeys(FINDINGS, "0.0") | {"Edema": edema, "Pneumonia": pneumonia}
        if known:
            labels.append(f"{patient},{study}," + ",".join(cells[f] for f in FINDINGS))
        for number, view in enumerate(("PA", "LATERAL")):
            image = f"{int(study):08x}-{number}"
            path = f"files/p{patient[:2]}/p{patient}/s{study}/{image}.{'jpg' if jpg else 'dcm'}"
            if jpg:
                grey(root, path, rng)
            else:
                dicom(root, path, rng, patient=patient, ViewPosition=None)
            listed.append(f"{patient},{study},{image},{path}")
            metadata.append(
                f'{image},{patient},{study},"CHEST (PA AND LAT)",{view},24,20,21800506,213014.531,X,Y,Erect'
            )
            splits.append(f"{image},{study},{patient},{split}")
            told = {f: float(cells[f]) if known and cells[f] else None for f in FINDINGS}
            held.append(Held(path, patient, split, told, view=view))
    tables = {"metadata": metadata, "split": splits, labeller: labels}
    for name, lines in tables.items():
        _zipped(root / f"mimic-cxr-2.0.0-{name}.csv.gz", lines)
    if not jpg:
        _zipped(root / "cxr-record-list.csv.gz", listed)
    return held


def _zipped(file: Path, lines: list[str]) -> None:
    file.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
