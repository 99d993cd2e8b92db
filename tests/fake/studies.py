"""Small studies on disk, written as the index writes them, with images in .npy files and a reader for those."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hilum.core.types import IndexRow, Pixels, Window
from hilum.data import ledger
from hilum.data.study import Study


class NpyIntake:
    """Reads .npy. The first bytes of the file's stem say how it misbehaves, if it does."""

    name = "npy"

    def claims(self, path: Path, head: bytes) -> float:
        return 1.0 if head.startswith(b"\x93NUMPY") else 0.0

    def read(self, path: Path, limits: Any) -> list[IndexRow]:
        return [IndexRow("indexed")]

    def problems(self, rows: Any) -> list[dict[str, Any]]:
        return []

    def open(self, path: Path, row: Mapping[str, Any]) -> Pixels:
        stem = path.stem
        if stem.startswith("stop"):
            raise StopIteration
        if stem.startswith("deep"):
            return self.open(path, row)
        if stem.startswith("die"):
            import os
            import signal

            os.kill(os.getpid(), signal.SIGSEGV)
        image = np.load(path)
        inverted = bool(row["inverted"])
        window = Window(0.0, 100.0, "table", tuple(np.linspace(0, 1, 5).tolist()), "voi lut 0")
        valid = np.load(path.with_suffix(".valid.npy")) if path.with_suffix(".valid.npy").exists() else None
        return Pixels(
            image[None],
            -0.5 if inverted else 0.5,
            3.25,
            window if stem.startswith("voi") else Window(1.5, 99.25, source="window 0 (NORMAL)"),
            (0.14, 0.2),
            "HU",
            None if valid is None else valid[None],
            inverted,
            {"codec": "numpy", "codec_version": np.__version__},
        )


def sample_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def write_study(
    folder: Path,
    groups: Sequence[str],
    *,
    labels: Mapping[str, Sequence[Any]] | None = None,
    images: Sequence[np.ndarray] | None = None,
    names: Sequence[str] | None = None,
    order: Sequence[int] | None = None,
    **columns: Sequence[Any],
) -> Study:
    """One row a group given. ``order`` permutes the rows of the finished index; ``columns`` overrides index columns."""
    n = len(groups)
    names = names or [f"img{i:05d}" for i in range(n)]
    (folder / "study" / "private").mkdir(parents=True, exist_ok=True)
    (folder / "root").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        image = None if images is None else images[i]
        if image is not None:
            np.save(folder / "root" / f"{names[i]}.npy", image)
        rows.append(
            {
                **dict.fromkeys(ledger.COLUMNS.names),
                "sample_id": sample_id(names[i]),
                "status": "indexed",
                "reason": "",
                "message": "",
                "group_id": groups[i],
                "study_id": f"study-{groups[i]}",
                "modality": "DX",
                "photometric": "RGB" if image is not None and image.ndim == 3 else "MONOCHROME2",
                "bits_stored": 8 * image.dtype.itemsize if image is not None else 16,
                "frames": 1,
                "rows": image.shape[0] if image is not None else 8,
                "columns": image.shape[1] if image is not None else 8,
                "stored_sha256": hashlib.sha256(names[i].encode() if image is None else image.tobytes()).hexdigest(),
                "min": 0.0,
                "max": 1.0,
                "group_known": not groups[i].startswith("unknown-"),
                "role": "image",
                "problems": [],
                "source": "npy",
                "inverted": False,
                **{name: values[i] for name, values in columns.items()},
            }
        )
    order = list(range(n)) if order is None else list(order)
    study = folder / "study"
    pq.write_table(pa.Table.from_pylist([rows[i] for i in order], schema=ledger.COLUMNS), study / "index.parquet")
    paths = {"sample_id": [rows[i]["sample_id"] for i in order], "path": [f"{names[i]}.npy" for i in order]}
    pq.write_table(pa.table(paths), study / "private" / "paths.parquet")
    (study / "private" / "root.json").write_text(json.dumps({"root": str(folder / "root")}))
    (study / "study.json").write_text("{}")
    if labels is not None:
        ids = pa.array([rows[i]["sample_id"] for i in order])
        kinds = {k: pa.string() if k in ("class", "split") else pa.float32() for k in labels}
        table = {k: pa.array([v[i] for i in order], kinds[k]) for k, v in labels.items()}
        pq.write_table(pa.table({"sample_id": ids, **table}), study / "labels.parquet")
    return Study(study)
