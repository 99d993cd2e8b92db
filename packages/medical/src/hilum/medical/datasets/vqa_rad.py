"""VQA-RAD (Lau et al. 2018): 315 radiology images of MedPix, 2,248 questions by clinicians."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from hilum.data.cards import DatasetCard, Download, Origin
from hilum.medical.datasets.columns import Rows, files_by_name, first_match, records
from hilum.medical.datasets.questions import QUESTIONS, QuestionSet, question

_ORGANS = {"HEAD": "HEAD", "CHEST": "CHEST", "ABD": "ABDOMEN"}


class VQARAD(QuestionSet):
    """``VQA_RAD Dataset Public.json`` beside ``VQA_RAD Image Folder/synpic*.jpg``.

    The published test questions (``phrase_type`` test_freeform, test_para) ask about images that training questions ask
    about too, all of them: there is no split of images, and none is given here.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/vqa-rad",
        title="VQA-RAD",
        licence="CC0 1.0",
        url="https://osf.io/89kps/",
        citation="Lau et al., Scientific Data 2018, doi 10.1038/sdata.2018.251",
        terms="open",
        group="MedPix case (image_case_url)",
        labels="questions and answers, OPEN and CLOSED; no image-level labels",
        split="none of images: every test image is also in training (the questions' own part is kept in questions())",
        counts={"images": 315},
        files=("VQA_RAD Dataset Public.json", "VQA_RAD Image Folder/"),
        steps=("hilum fetch vqa-rad --out DIR downloads and unpacks the OSF archive (70 MB).",),
        draws_from=(Origin("medpix", "its images are of MedPix cases", "Lau et al. 2018"),),
        downloads=(Download("https://files.osf.io/v1/resources/89kps/providers/osfstorage/?zip=", file="vqa-rad.zip"),),
        traps=("every test image is also in training", "answers may be numbers", "OPEN and CLOSED are scored apart"),
    )
    keys: ClassVar[tuple[str, ...]] = (
        *("qid", "phrase_type", "qid_linked_id", "image_case_url", "image_name", "image_organ", "question"),
        *("question_type", "answer", "answer_type"),
    )

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, patient (the MedPix case), study, body part."""
        where_is, rows = files_by_name(root, (".jpg", ".png")), Rows()
        for name, record in {str(r["image_name"]): r for r in self._records(root)}.items():
            case = str(record["image_case_url"]).strip()
            organ = str(record["image_organ"]).strip().upper()
            about = {"issuer": "medpix", "patient_id": case, "study_id": case, "image_id": name}
            rows.add(where_is.get(name, name), **about, body_part=_ORGANS.get(organ, organ))
        return rows.table()

    def questions(self, root: Path) -> pa.Table:
        """QUESTIONS; ``part`` is test where the phrase type says so."""
        where_is = files_by_name(root, (".jpg", ".png"))
        found = [
            question(
                where_is.get(str(r["image_name"]), str(r["image_name"])),
                r,
                part="test" if str(r["phrase_type"]).strip().startswith("test") else "train",
                dataset=self.name,
            )
            for r in self._records(root)
        ]
        return pa.Table.from_pylist(found, schema=QUESTIONS)

    def _records(self, root: Path) -> list[dict[str, object]]:
        path = first_match(root, ("VQA_RAD Dataset Public.json", "VQA_RAD*.json"), dataset=self.name)
        return records(path, self.keys, dataset=self.name)
