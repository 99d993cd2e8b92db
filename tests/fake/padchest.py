"""A PadChest of a few small 16-bit images, with the published 36 columns and lists as Python writes them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from fake.pictures import grey
from fake.truth import Held

_HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
)
COLUMNS = _HEADER.split(",")
# (patient, projection, photometric, method, Labels as published, the names in it; None: unknown)
IMAGES = (
    ("8398604886942923316379882", "PA", "MONOCHROME2", "Physician", "['normal']", {"normal"}),
    ("8398604886942923316379882", "L", "MONOCHROME2", "RNN_model", "['pleural effusion', ' cardiomegaly ', '']",
     {"pleural effusion", "cardiomegaly"}),
    ("3135727504309973475029326", "AP_horizontal", "MONOCHROME1", "Physician", "['cardiomegaly', \"adam's sign\"]",
     {"cardiomegaly", "adam's sign"}),
    ("2015062214968019924555248", "PA", "MONOCHROME2", "RNN_model", "", None),
    ("1496801992455524886569451", "PA", "MONOCHROME2", "Physician", "[]", set()),
)  # fmt: skip
FINDINGS = ("adam's sign", "cardiomegaly", "normal", "pleural effusion")
VIEWS = {"PA": "PA", "L": "LATERAL", "AP_horizontal": "AP"}
REPORT = "sin hallazg, patolog"  # free text: must not be written anywhere


def write_padchest(root: Path, *, physician: bool = False, seed: int = 0) -> list[Held]:
    """``physician``: the truth where only physicians' labels count."""
    rng, held, lines = np.random.default_rng(seed), [], []
    for number, (patient, projection, photometric, method, labels, names) in enumerate(IMAGES):
        image, folder = f"{patient}_{number:06}.png", str(number % 2)
        path = grey(root, f"{folder}/{image}", rng, bits=16)
        line = dict.fromkeys(COLUMNS, "None") | {
            "": str(number), "ImageID": image, "ImageDir": folder, "StudyID": f"{patient}{number}", "PatientID": patient,
            "PatientSex_DICOM": "F", "Projection": projection, "Modality_DICOM": "CR", "Report": REPORT,
            "PhotometricInterpretation_DICOM": photometric, "MethodLabel": method, "Labels": labels,
        }  # fmt: skip
        lines.append(line)
        known = names is not None and (method == "Physician" or not physician)
        counted = ("adam's sign", "cardiomegaly", "normal") if physician else FINDINGS
        told = {f: float(f in names) if known else None for f in counted}
        held.append(Held(path, patient, None, told, view=VIEWS[projection]))
    with (root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    return held
