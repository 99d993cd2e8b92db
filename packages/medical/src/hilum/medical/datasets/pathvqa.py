"""PathVQA (He et al. 2020): 5,004 pathology images of textbooks and PEIR, 32,795 questions. Parquet or JSON, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.data.cards import DatasetCard, Origin
from hilum.medical.datasets.columns import Rows, any_match, files_by_name, need_columns, one_part, records
from hilum.medical.datasets.questions import QUESTIONS, QuestionSet, question, refuse_pickles

_PARTS = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}
_MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png"}
LARGEST = 64 << 20  # bytes of one image
_FIX = (
    "take the Parquet release (huggingface.co/datasets/flaviagiammarino/path-vqa) and write its images out: "
    "python -m hilum.medical.datasets.pathvqa PARQUET_FOLDER ROOT"
)


class PathVQA(QuestionSet):
    """``{train,val,test}.json`` (lists of ``image question answer``) beside the images that they name, which is what
    :func:`unpack` makes of the Parquet release. The original's pickles are refused."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/pathvqa",
        title="PathVQA",
        licence="MIT (questions); images of textbooks and PEIR under their own terms",
        url="https://huggingface.co/datasets/flaviagiammarino/path-vqa",
        citation="He et al., arXiv 2003.10286",
        terms="open",
        group="none exists: images are figures without a patient (--group image_id is by image)",
        labels="questions and answers; yes and no are CLOSED, all others OPEN; no image-level labels",
        split="train, validation, test; an image of several parts is for training",
        counts={"images": 4_289},
        files=("train.json", "val.json", "test.json", "images/"),
        steps=(
            "Download data/*.parquet from the address above (800 MB).",
            "python -m hilum.medical.datasets.pathvqa PARQUET_FOLDER ROOT  writes images and questions out",
        ),
        draws_from=(Origin("peir", "part of its images", "He et al. 2020"),),
        traps=("the original questions are pickles", "one image may be asked about in several parts"),
    )
    keys: ClassVar[tuple[str, ...]] = ("image", "question", "answer")

    def table(self, root: Path) -> pa.Table:
        """One row an image: path, image_id, study, split, modality."""
        parts: dict[str, set[str]] = defaultdict(set)
        for part, path, _ in self._records(root):
            parts[path].add(part)
        rows = Rows()
        for path, named in parts.items():
            image = path.rpartition("/")[2].partition(".")[0]
            rows.add(path, image_id=image, study_id=image, split=one_part(named), modality="GM")
        return rows.table()

    def questions(self, root: Path) -> pa.Table:
        """QUESTIONS."""
        found = [question(path, r, part=part, dataset=self.name) for part, path, r in self._records(root)]
        return pa.Table.from_pylist(found, schema=QUESTIONS)

    def _records(self, root: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
        where_is = files_by_name(root, (".jpg", ".jpeg", ".png"))
        stems = {name.rpartition(".")[0]: path for name, path in where_is.items()}
        files = {part: any_match(root, [f"{name}.json" for name in names]) for part, names in _PARTS.items()}
        if not any(files.values()):
            refuse_pickles(root, dataset=self.name, fix=_FIX)
            raise HilumError(f"{self.name}: no train.json below the archive", where=str(root), fix=_FIX)
        for part, path in files.items():
            for record in records(path, self.keys, dataset=self.name) if path is not None else ():
                name = str(record["image"])
                yield part, where_is.get(name) or stems.get(name) or name, record


def unpack(parquet: Path, root: Path) -> dict[str, int]:
    """Write the images of the Parquet release to ``ROOT/images/HASH.jpg``, once each, and ``ROOT/PART.json``.

    Returns the number of questions a part, and of ``images``. What is neither JPEG nor PNG is an error.
    """
    import pyarrow.parquet as pq

    counts, names = {}, set()
    (root / "images").mkdir(parents=True, exist_ok=True)
    for part, words in _PARTS.items():
        written = []
        for file in sorted({p for word in words for p in parquet.rglob(f"{word}*.parquet")}):
            source = pq.ParquetFile(file)
            need_columns(file, PathVQA.keys, source.schema_arrow.names, dataset=PathVQA.card.name)
            for batch in source.iter_batches(64, columns=list(PathVQA.keys)):
                for record in batch.to_pylist():
                    name = _write(record["image"], root / "images", where=file.name)
                    names.add(name)
                    written.append({**record, "image": name})
        if written:
            (root / f"{part}.json").write_text(json.dumps(written, ensure_ascii=False, indent=0), encoding="utf-8")
            counts[part] = len(written)
    if not counts:
        raise HilumError("pathvqa: no train*.parquet below the folder", where=str(parquet))
    return {**counts, "images": len(names)}


def _write(image: Any, folder: Path, *, where: str) -> str:
    data = image.get("bytes") if isinstance(image, dict) else image
    data = data if isinstance(data, bytes) else b""
    ending = next((e for magic, e in _MAGIC.items() if data.startswith(magic)), None)
    if ending is None or len(data) > LARGEST:
        raise HilumError("pathvqa: an image is neither JPEG nor PNG of at most 64 MiB", where=where)
    name = hashlib.sha256(data).hexdigest()[:24] + ending
    if not (folder / name).exists():
        (folder / name).write_bytes(data)
    return name


if __name__ == "__main__":
    import sys

    from hilum.core.cli import main

    sys.exit(main(["fetch", "pathvqa"])) if len(sys.argv) != 3 else unpack(Path(sys.argv[1]), Path(sys.argv[2]))
