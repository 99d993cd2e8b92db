"""SLAKE (Liu et al. 2021): 642 CT, MR and radiograph slices, 14,028 questions in English and Chinese, with masks."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.data.cards import DatasetCard, Origin
from hilum.medical.datasets.columns import Rows, first_match, inside, one_part, records
from hilum.medical.datasets.questions import QUESTIONS, QuestionSet, question

_PARTS = {"train": "train.json", "val": "validate.json", "test": "test.json"}
_MODALITIES = {"X-RAY": "DX", "CT": "CT", "MRI": "MR"}
_PAPER = "Liu et al., ISBI 2021, arXiv 2102.09542, section 2"


class SLAKE(QuestionSet):
    """``{train,validate,test}.json`` beside ``imgs/xmlabN/{source.jpg,mask.png}``. The split is by image."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/slake",
        title="SLAKE 1.0",
        licence="CC BY 4.0",
        url="https://www.med-vqa.com/slake/",
        citation="Liu et al., ISBI 2021, arXiv 2102.09542",
        terms="open",
        group="none exists: images are numbered, and several may be slices of one volume (--group image_id is by image)",
        labels="questions and answers, OPEN and CLOSED; no image-level labels; masks of organs",
        split="train, validate, test, by image",
        counts={"images": 642},
        files=("train.json", "validate.json", "test.json", "imgs/"),
        steps=("Download Slake1.0.zip (210 MB) from the address above and unpack it.",),
        draws_from=(
            Origin("medical/nih-cxr14", "radiographs", _PAPER),
            Origin("medical/msd", "CT and MR slices", _PAPER),
            Origin("chaos", "abdominal MR slices", _PAPER),
        ),
        traps=("questions in English and Chinese", "mask.png beside every image"),
    )
    keys: ClassVar[tuple[str, ...]] = (
        *("qid", "img_id", "img_name", "question", "answer", "q_lang", "location", "modality", "answer_type"),
        *("base_type", "content_type", "triple"),
    )

    def table(self, root: Path) -> pa.Table:
        """One row an image and one a mask: path, image_id, study, split, modality, body part, role."""
        parts: dict[str, set[str]] = defaultdict(set)
        about: dict[str, dict[str, Any]] = {}
        for part, base, record in self._records(root):
            path = base + str(record["img_name"])
            parts[path].add(part)
            about[path] = record
        rows = Rows()
        for path, record in about.items():
            modality = str(record["modality"]).strip().upper()
            told = {
                "image_id": str(record["img_id"]),
                "study_id": str(record["img_id"]),
                "split": one_part(parts[path]),
                "modality": _MODALITIES.get(modality, modality),
                "body_part": str(record["location"]).strip().upper(),
            }
            rows.add(path, role="image", **told)
            mask = path.rpartition("/")[0] + "/mask.png"
            if (root / mask).is_file():
                rows.add(mask, role="label", **told)
        return rows.table()

    def questions(self, root: Path) -> pa.Table:
        """QUESTIONS; ``language`` en or zh."""
        found = [
            question(base + str(r["img_name"]), r, part=part, language=str(r["q_lang"]), dataset=self.name)
            for part, base, r in self._records(root)
        ]
        return pa.Table.from_pylist(found, schema=QUESTIONS)

    def _records(self, root: Path) -> list[tuple[str, str, dict[str, Any]]]:
        found = []
        for part, name in _PARTS.items():
            path = first_match(root, (name,), dataset=self.name)
            folder = inside(root, path.parent)
            base = "imgs/" if folder == "." else f"{folder}/imgs/"
            found += [(part, base, record) for record in records(path, self.keys, dataset=self.name)]
            names = [PurePosixPath(str(record["img_name"])) for _, _, record in found]
            if any(n.is_absolute() or ".." in n.parts for n in names):
                raise HilumError(f"{self.name}: {name} names files outside its folder", where=str(path))
        return found
