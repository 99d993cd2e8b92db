"""De-identify in tests: one key, no processes unless asked for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset

from hilum.core.types import Limits
from hilum.data.identity import IdentityKey
from hilum.medical.deid.archive import Result, deidentify
from hilum.medical.deid.profile import Options
from hilum.medical.dicom.decode import measure, open_image

KEY = IdentityKey(bytes(range(32)))
OVERLAY = 0x6000


def run(root: Path, out: Path, *, retain: tuple[str, ...] = (), workers: int = 0, **how: Any) -> Result:
    return deidentify(root, out, key=KEY, options=Options(frozenset(retain)), workers=workers, **how)


def copies(out: Path) -> list[Path]:
    return sorted(p for p in out.rglob("*") if p.is_file())


def the_copy(root: Path, out: Path, **how: Any) -> Dataset:
    result = run(root, out, **how)
    assert result.counts["written"] == 1, json.loads(result.report.read_text())["reasons"]
    return dcmread(copies(out)[0])


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def stored_digest(path: Path) -> str | None:
    return measure(open_image(path, Limits())).stored_sha256
