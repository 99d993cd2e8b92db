"""PadChest (Bustos et al. 2020): 160,868 radiographs of 67,625 patients, 174 findings, a quarter labelled by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.data.cards import Dataset, DatasetCard, Origin
from hilum.medical.datasets.columns import Rows, files_by_name, first_match, listed, read, sex

RAREST = 1000  # a name is a finding where at least one image in so many has it
_VIEWS = {"L": "LATERAL", "AP_HORIZONTAL": "AP", "UNK": None}
_METHODS = ("Physician", "RNN_model")
_KEPT = (
    *("ImageID", "ImageDir", "StudyID", "PatientID", "PatientSex_DICOM", "Projection", "Modality_DICOM"),
    *("PhotometricInterpretation_DICOM", "MethodLabel", "Labels"),
)


class PadChest(Dataset):
    """``PADCHEST_chest_x_ray_images_labels_160K*.csv[.gz]`` beside the unpacked folders ``0/ ... 54/`` of 16-bit PNGs.

    Labels are lists written as Python writes them; they are matched as text, never evaluated. PNGs of MONOCHROME1
    images hold stored values, so they look inverted: ``photometric`` tells the index. The report text is not kept.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/padchest",
        title="PadChest",
        licence="PADCHEST Dataset Research Use Agreement (non-commercial)",
        url="https://bimcv.cipf.es/bimcv-projects/padchest/",
        citation="Bustos et al., Medical Image Analysis 2020, arXiv 1901.07441",
        terms="registration",
        group="PatientID",
        labels="1 named, 0 not named in the report, unknown where Labels is blank; names of at least one image in 1,000; "
        "27 % by physicians, the rest by a network (medical/padchest-physician leaves those unknown)",
        split="none",
        counts={"images": 160_861, "patients": 67_625},
        files=("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "0/ ... 54/"),
        steps=(
            "Accept the research use agreement at the address above; a link to the archives (1 TB) is given.",
            "Unpack 0.zip to 54.zip into folders of their names, beside the table.",
        ),
        traps=(
            "Labels are Python lists with stray blanks",
            "16-bit PNG",
            "MONOCHROME1 stored as it is",
            "MethodLabel tells manual from learnt labels",
        ),
    )
    uncertain: ClassVar[str] = "ignore"  # there are none
    by: ClassVar[tuple[str, ...]] = _METHODS  # whose labels count
    columns: ClassVar[tuple[str, ...]] = (
        *("ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
        *("ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Modality_DICOM", "Manufacturer_DICOM"),
        *("PhotometricInterpretation_DICOM", "PixelRepresentation_DICOM", "PixelAspectRatio_DICOM"),
        *("SpatialResolution_DICOM", "BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM", "Rows_DICOM"),
        *("Columns_DICOM", "XRayTubeCurrent_DICOM", "Exposure_DICOM", "ExposureInuAs_DICOM", "ExposureTime"),
        *("RelativeXRayExposure_DICOM", "ReportID", "Report", "MethodLabel", "Labels", "Localizations"),
        *("LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS"),
    )

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, patient, study, view, modality, photometric, sex, method_label, findings."""
        path = first_match(root, ("PADCHEST*160K*.csv", "PADCHEST*160K*.csv.gz"), dataset=self.name)
        columns = read(path, self.columns, dataset=self.name, licence=self.licence, keep=_KEPT).columns
        named: list[list[str] | None] = []
        for row, (text, method) in enumerate(zip(columns["Labels"], columns["MethodLabel"], strict=True), 2):
            where = f"{path.name}, row {row}"
            if method not in (*_METHODS, ""):
                raise HilumError(f"{self.name}: MethodLabel is neither of {', '.join(_METHODS)}", where=where)
            names = listed(text, dataset=self.name, where=where)
            named.append(names if method in self.by else None)
        where_is, rows = files_by_name(root, ".png"), Rows()
        for row, image in enumerate(columns["ImageID"]):
            projection = columns["Projection"][row].upper()
            rows.add(
                where_is.get(image, f"{columns['ImageDir'][row]}/{image}"),
                issuer="padchest",
                patient_id=columns["PatientID"][row],
                study_id=columns["StudyID"][row],
                view=_VIEWS.get(projection, projection),
                modality=columns["Modality_DICOM"][row],
                photometric=columns["PhotometricInterpretation_DICOM"][row],
                sex=sex(columns["PatientSex_DICOM"][row]),
                method_label=columns["MethodLabel"][row],
            )
        return rows.table(_findings(named))


def _findings(named: Sequence[Sequence[str] | None]) -> dict[str, NDArray[np.float32]]:
    """Name -> (n,) 1 or 0, NaN of images whose names are unknown; names that are not too rare, in order."""
    counts = Counter(name for names in named for name in names or ())
    found = {
        name: np.where([names is None for names in named], np.nan, 0).astype(np.float32)
        for name, n in sorted(counts.items())
        if n * RAREST >= len(named)
    }
    for row, names in enumerate(named):
        for name in names or ():
            if name in found:
                found[name][row] = 1
    return found


class PadChestPhysician(PadChest):
    """PadChest with the labels that physicians gave; of the other images nothing is known."""

    card: ClassVar[DatasetCard] = DatasetCard(
        **{
            **{name: getattr(PadChest.card, name) for name in DatasetCard.__dataclass_fields__},
            "name": "medical/padchest-physician",
            "title": "PadChest, labels by physicians only",
            "labels": "as medical/padchest, unknown where MethodLabel is not Physician",
            "draws_from": (Origin("medical/padchest", "the same images", "the same table"),),
        }
    )
    by: ClassVar[tuple[str, ...]] = ("Physician",)
