"""Indexing a folder in a test, and finding rows by the path that only ``private/`` knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from hilum.data.image_files import ImageFilesIntake
from hilum.data.index import IndexResult, index_archive
from hilum.medical.dicom.intake import DicomIntake

INTAKES = (DicomIntake(), ImageFilesIntake())


def index(root: Path, out: Path, **options: Any) -> IndexResult:
    """In this process, without a bar, with the DICOM and image-file intakes; ``options`` change that."""
    return index_archive(root, out, **{"workers": 0, "intakes": INTAKES, "progress": False, **options})


def by_path(study: Path) -> dict[str, dict[str, Any]]:
    """Rows of the index by their path."""
    paths = pq.read_table(study / "private" / "paths.parquet").to_pylist()
    rows = {r["sample_id"]: r for r in pq.read_table(study / "index.parquet").to_pylist()}
    return {p["path"]: rows[p["sample_id"]] for p in paths}
