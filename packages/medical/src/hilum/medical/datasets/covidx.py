"""COVIDx CXR (Wang et al. 2020): a collection of other collections, by class and source."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from hilum.core.errors import HilumError, nearest
from hilum.data.cards import Dataset, DatasetCard, Origin
from hilum.medical.datasets.columns import Rows, any_match, files_by_name
from hilum.medical.datasets.nih_cxr14 import ISSUER, mapped_patients

CLASSES = ("normal", "pneumonia", "COVID-19", "negative", "positive")
_DOCS = "github.com/lindawangg/COVID-Net, docs/COVIDx.md"
_RSNA = "rsna"


class COVIDx(Dataset):
    """``{train,val,test}*.txt`` with lines ``patient file class source``, blank-separated, beside folders ``train`` ...

    Patients are told apart within a source; those of the source rsna are image ids (see RSNAPneumonia), so their groups
    are unknown without the RSNA's mapping file.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/covidx",
        title="COVIDx CXR",
        licence="CC BY-NC-SA 4.0 for the lists; every source has its own",
        url="https://www.kaggle.com/datasets/andyczhao/covidx-cxr2",
        citation="Wang, Lin, Wong, Scientific Reports 2020, arXiv 2003.09871",
        terms="registration",
        group="patient within source; none exists for images of the source rsna without its mapping file",
        labels="class: normal, pneumonia, COVID-19 (A releases); negative, positive (B releases and CXR-2 on)",
        split="train, test and, later, val lists",
        files=("train_COVIDx*.txt", "test_COVIDx*.txt", "train/", "test/"),
        steps=(
            "Register with Kaggle; kaggle datasets download andyczhao/covidx-cxr2, unpack",
            "Keep one pair of lists of one release: lists of several releases name the same images twice.",
        ),
        draws_from=(
            Origin("medical/rsna-pneumonia", "normal and pneumonia images", _DOCS),
            Origin("covid-chestxray-dataset", "COVID-19 and other pneumonia images", _DOCS),
            Origin("figure1-covid-chestxray", "COVID-19 images", _DOCS),
            Origin("actualmed-covid-chestxray", "COVID-19 images", _DOCS),
            Origin("covid19-radiography-database", "COVID-19 images, those of SIRM among them", _DOCS),
            Origin("ricord", "COVID-19 images", _DOCS),
        ),
        traps=("lines are blank-separated", "sources overlap NIH and RSNA", "rsna patients are image ids"),
    )
    uncertain: ClassVar[str] = "ignore"  # there are none

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, issuer (the source), patient, split, modality, class, data_source."""
        rows, where_is = Rows(), files_by_name(root, (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG"))
        nih, lists = mapped_patients(root, dataset=self.name), 0
        for split, name in (("train", "train"), ("val", "val"), ("test", "test")):
            path = any_match(root, (f"{name}_COVIDx*.txt", f"{name}.txt"))
            if path is None:
                continue
            self._alone(path, name)
            lists += 1
            for row, line in enumerate(path.read_text("utf-8-sig", "replace").splitlines(), 1):
                if not line.strip():
                    continue
                patient, file, kind, source = self._parsed(line, where=f"{path.name}, line {row}")
                rsna = source.casefold() == _RSNA
                rows.add(
                    where_is.get(file, f"{name}/{file}"),
                    issuer=ISSUER if rsna else f"covidx {source.casefold()}",
                    patient_id=nih.get(patient) if rsna else patient,
                    image_id=file,
                    split=split,
                    modality="DX",
                    data_source=source,
                    **{"class": kind},
                )
        if not lists:
            raise HilumError(f"{self.name}: no train_COVIDx*.txt below the archive", where=str(root))
        return rows.table()

    def _alone(self, path: Path, part: str) -> None:
        """Lists of several releases name the same images, in other parts and classes."""
        others = [p for p in sorted(path.parent.glob(f"{part}_COVIDx*.txt")) if p != path]
        if others:
            told = f"{path.name} and {others[0].name}"
            raise HilumError(f"{self.name}: lists of several releases: {told}", where=str(path.parent), fix="keep one")

    def _parsed(self, line: str, *, where: str) -> tuple[str, str, str, str]:
        words = line.split()
        if len(words) < 4:
            raise HilumError(f"{self.name}: a line is not 'patient file class source'", where=where)
        if words[-2] not in CLASSES:
            raise HilumError(f"{self.name}: unknown class", where=where, fix=nearest(words[-2], CLASSES))
        return words[0], " ".join(words[1:-2]), words[-2], words[-1]  # file names may hold blanks
