"""A simulated exposure as a DICOM file: DX (or CR) with valid file meta, nothing in it of a real person."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .cases import Image, Patient, Study
from .chance import accession, generator, uid
from .vendors import EXPLICIT, IMPLICIT, write_pixels

if TYPE_CHECKING:
    from pydicom import FileDataset

SOP_CLASS = {"DX": "1.2.840.10008.5.1.4.1.1.1.1", "CR": "1.2.840.10008.5.1.4.1.1.1"}
IMPLEMENTATION = uid("hilum.medical.simulate")
COMMENT = "SIMULATED radiograph, projected from a CT; not a patient"


def identifiers(patient: Patient, study: Study, image: Image) -> tuple[str, str, str]:
    """Study, series and SOP instance UID."""
    stem = (patient.seed, patient.number, study.number)
    return uid(*stem, "study"), uid(*stem, "series", image.number), uid(*stem, "image", image.number)


def to_dataset(
    brightness: NDArray[np.float32], patient: Patient, study: Study, image: Image, *, size: int
) -> FileDataset:
    """The file of one exposure; ``brightness`` (H, W) in [0, 1] at the vendor's own matrix of nominal ``size``."""
    from pydicom.dataset import FileDataset, FileMetaDataset

    vendor, rng = patient.vendor, generator(patient.seed, "patient", patient.number, "header", image.number)
    study_uid, series_uid, sop_uid = identifiers(patient, study, image)
    native = vendor.syntax in (EXPLICIT, IMPLICIT)
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SOP_CLASS[vendor.modality], sop_uid
    meta.TransferSyntaxUID = vendor.syntax if native else EXPLICIT
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION, "HILUM_SIMULATE"

    data = FileDataset("", {}, file_meta=meta, preamble=b"\x00" * 128)
    data.SOPClassUID, data.SOPInstanceUID = SOP_CLASS[vendor.modality], sop_uid
    data.StudyInstanceUID, data.SeriesInstanceUID = study_uid, series_uid
    data.PatientName, data.PatientID = f"SIMULATED^{patient.number:03d}", patient.patient_id
    data.PatientSex, data.PatientAge = patient.sex, f"{patient.age:03d}Y"
    data.PatientBirthDate = ""
    # Weeks apart, in the order of the studies.
    day = 1 + 28 * study.number + int(generator(patient.seed, "patient", patient.number, "date").integers(0, 200))
    date = str(np.datetime64("2020-01-01") + np.timedelta64(day, "D")).replace("-", "")
    data.StudyDate = data.AcquisitionDate = date
    data.StudyTime = data.AcquisitionTime = f"{int(rng.integers(7, 19)):02d}{int(rng.integers(60)):02d}00"
    data.AccessionNumber = accession(patient.seed, f"SIM{patient.number:06d}{study.number:02d}")
    data.StudyID = str(study.number + 1)
    data.SeriesNumber, data.InstanceNumber = image.number + 1, 1
    data.ReferringPhysicianName, data.Manufacturer, data.ManufacturerModelName = "", vendor.name, vendor.model
    data.Modality, data.BodyPartExamined, data.ViewPosition = vendor.modality, "CHEST", image.pose.view
    data.StudyDescription, data.SeriesDescription = "SIMULATED chest radiograph", f"SIMULATED chest {image.pose.view}"
    data.ImageComments = COMMENT
    data.ImageType = ["DERIVED", "PRIMARY", ""]
    data.PatientOrientation = ["L", "F"]
    data.ImageLaterality, data.BurnedInAnnotation, data.LossyImageCompression = "U", "NO", "00"
    pixel = f"{vendor.pixel_mm(size):.6g}"
    data.ImagerPixelSpacing = [pixel, pixel]
    if vendor.modality == "DX":
        data.PresentationIntentType = "FOR PRESENTATION"
        data.PixelSpacing, data.PixelSpacingCalibrationType = [pixel, pixel], "GEOMETRY"
    data.KVP = str(int(rng.integers(85, 126)))
    data.DistanceSourceToDetector = str(round(image.pose.source_mm))
    write_pixels(data, brightness, vendor, rng)
    if not native:
        data.compress(vendor.syntax, generate_instance_uid=False)
    return data
