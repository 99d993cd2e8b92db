"""A PathVQA of three images, as the Parquet release has it; one image is asked about in training and test."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

# part -> (image number, question, answer)
PARTS = {
    "train": ((0, "where are liver stem cells located?", "in the canals of hering"), (1, "is this cut?", "yes")),
    "validation": ((2, "what is present?", "gastrointestinal"),),
    "test": ((0, "are stem cells seen?", "no"),),
}


def pictures(seed: int = 0) -> list[bytes]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(3):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(data, "JPEG")
        found.append(data.getvalue())
    return found


def write_pathvqa_parquet(folder: Path, *, seed: int = 0) -> list[bytes]:
    """``data/PART-00000-of-00001.parquet``; returns the images."""
    images = pictures(seed)
    (folder / "data").mkdir(parents=True)
    for part, rows in PARTS.items():
        table = pa.Table.from_pylist(
            [{"image": {"bytes": images[n], "path": None}, "question": q, "answer": a} for n, q, a in rows]
        )
        pq.write_table(table, folder / "data" / f"{part}-00000-of-00001.parquet")
    return images
