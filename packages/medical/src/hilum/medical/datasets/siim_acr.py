"""SIIM-ACR Pneumothorax Segmentation 2019: 12,047 frontal radiographs out of NIH ChestX-ray14, with masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.data.cards import Dataset, DatasetCard, Origin
from hilum.medical.datasets.columns import Rows, files_by_name, first_match, read
from hilum.medical.datasets.nih_cxr14 import ISSUER, mapped_patients

_NOTHING = "-1"


class SIIMACR(Dataset):
    """``train-rle*.csv`` (``ImageId, EncodedPixels``; a row a mask, ``-1`` none) beside ``dicom-images-{train,test}``.

    The second header has a leading blank. The headers' PatientID names an image; the patient is known through a mapping
    to NIH file names only.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/siim-acr",
        title="SIIM-ACR Pneumothorax Segmentation",
        licence="challenge rules: non-commercial and academic research",
        url="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
        citation="Zawacki et al., SIIM-ACR Pneumothorax Segmentation, Kaggle 2019",
        terms="registration",
        group="none exists: headers name images; NIH patient number where a mapping file is there",
        labels="Pneumothorax 1 where a mask is given, 0 where it is -1; no uncertain values",
        split="none that is public: test images have no labels",
        counts={"images": 12_047},
        files=("train-rle.csv", "dicom-images-train/", "dicom-images-test/"),
        steps=(
            "Register with Kaggle and accept the competition's rules.",
            "kaggle competitions download -c siim-acr-pneumothorax-segmentation  (2 GB), unpack",
        ),
        draws_from=(
            Origin("medical/nih-cxr14", "its images are taken from it", "SIIM-ACR challenge, data description"),
        ),
        traps=("' EncodedPixels' has a leading blank", "run lengths are relative", "several masks an image"),
    )
    findings: ClassVar[tuple[str, ...]] = ("Pneumothorax",)
    uncertain: ClassVar[str] = "ignore"
    columns: ClassVar[tuple[str, ...]] = ("ImageId", "EncodedPixels")

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, image_id, patient (with a mapping file), study, modality, Pneumothorax."""
        encoded, patients = self.encoded(root), mapped_patients(root, dataset=self.name)
        where_is, rows = files_by_name(root, ".dcm"), Rows()
        for image in dict.fromkeys([*encoded, *sorted(name.removesuffix(".dcm") for name in where_is)]):
            rows.add(
                where_is.get(f"{image}.dcm", f"{image}.dcm"),
                {"Pneumothorax": None if image not in encoded else float(bool(encoded[image]))},
                issuer=ISSUER,
                patient_id=patients.get(image),
                study_id=image,
                image_id=image,
                split="train" if image in encoded else None,
                modality="DX",
            )
        return rows.table()

    def encoded(self, root: Path) -> dict[str, list[str]]:
        """Image -> its masks as run lengths, none for an image without pneumothorax."""
        path = first_match(root, ("train-rle.csv", "stage_2_train.csv", "train-rle-sample.csv"), dataset=self.name)
        columns = read(path, self.columns, dataset=self.name, licence=self.licence).columns
        masks: dict[str, list[str]] = defaultdict(list)
        for row, (image, text) in enumerate(zip(columns["ImageId"], columns["EncodedPixels"], strict=True), 2):
            if not text:
                where = f"{path.name}, row {row}"
                raise HilumError(f"{self.name}: EncodedPixels is blank", where=where, fix="restore the file")
            masks[image] += [] if text == _NOTHING else [text]
        return dict(masks)


def decode(runs: str | Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """A mask (height, width) of relative run lengths: pairs of a gap since the end of the last run and a length, down
    the columns, the leftmost first. Runs past the end, odd or negative counts are a :class:`HilumError`."""
    try:
        numbers = [int(n) for n in (runs.split() if isinstance(runs, str) else runs)]
    except ValueError:
        numbers = [-1]
    pairs = np.asarray(numbers[: len(numbers) // 2 * 2], np.int64).reshape(-1, 2)
    if len(numbers) % 2 or (pairs < 0).any() or pairs.sum() > height * width:
        raise HilumError("run lengths do not fit the image", fix="they are pairs of a gap and a length")
    ends = np.cumsum(pairs.sum(1))
    mask = np.zeros(height * width, bool)
    for end, length in zip(ends, pairs[:, 1], strict=True):
        mask[end - length : end] = True
    return mask.reshape(width, height).T
