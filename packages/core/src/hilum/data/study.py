"""A study: the folder that ``hilum index`` writes and everything else reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hilum.core.errors import HilumError, nearest
from hilum.data.ledger import path_bytes, write_json
from hilum.data.where import select

SEVERAL_FRAMES = "images of several frames (2-D views take one)"
_NOT_FINDINGS = frozenset({"sample_id", "class", "split"})
# Mean and standard deviation are left out: their last bit differs between machines.
_APPEARANCE = (
    *("stored_sha256", "modality_sha256", "photometric", "inverted", "unit", "spacing_mm"),
    *("window", "voi_lut", "lo", "hi", "min", "max", "p005", "p995", "background"),
)


class Study:
    """Reads ``index.parquet``, ``labels.parquet`` and, to open files, ``private/``.

    ``root`` overrides where the archive was when it was indexed.
    """

    def __init__(self, path: Path | str, *, root: Path | str | None = None) -> None:
        self.path = Path(path)
        if not (self.path / "index.parquet").is_file():
            raise HilumError(
                "this folder is no study: it holds no index.parquet",
                where=str(self.path),
                fix="hilum index ROOT --out STUDY",
            )
        self._root = Path(root) if root is not None else None

    @cached_property
    def index(self) -> pa.Table:
        return pq.read_table(self.path / "index.parquet")

    @cached_property
    def labels(self) -> pa.Table | None:
        """Row by row beside :attr:`index` (null where a file has no label), or None where the study has none."""
        file = self.path / "labels.parquet"
        if not file.is_file():
            return None
        table = pq.read_table(file)
        place = {sample: row for row, sample in enumerate(table.column("sample_id").to_pylist())}
        return table.take(pa.array([place.get(s) for s in self.index.column("sample_id").to_pylist()], pa.int64()))

    @cached_property
    def about(self) -> dict[str, Any]:
        """``study.json``: key fingerprint, version, counts."""
        content: dict[str, Any] = json.loads((self.path / "study.json").read_text())
        return content

    @property
    def columns(self) -> list[str]:
        return list(self.index.column_names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the sorted ``sample_id,status,appearance`` lines."""
        parts = [*(self.index.column(c).to_pylist() for c in ("sample_id", "status")), self.appearance]
        lines = sorted(",".join(line) + "\n" for line in zip(*parts, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @cached_property
    def appearance(self) -> list[str]:
        """For every row a hash of what decides the values it is served with: stored pixels, rescale, padding, polarity,
        window, unit and spacing. A corrected header changes it as changed pixels do."""
        columns = [self.index.column(name).to_pylist() for name in _APPEARANCE if name in self.columns]
        return [hashlib.sha256(repr(line).encode()).hexdigest()[:32] for line in zip(*columns, strict=True)]

    def rows(self, where: str | None = None) -> NDArray[np.int64]:
        """Rows (n,) that can be samples of a 2-D view and meet ``where``: indexed images of one frame, exact copies
        once, no UID conflicts. :meth:`left_out` counts the others."""
        chosen: NDArray[np.int64] = np.flatnonzero((self._fates == "") & select(self.index, where))
        return chosen

    @cached_property
    def pictures(self) -> NDArray[np.int64]:
        """Rows (n,) that a split is made over: :meth:`rows`, or where the study holds none, its volumes and films."""
        flat = self.rows(None)
        return flat if len(flat) else np.flatnonzero(self._fates == SEVERAL_FRAMES)

    def left_out(self) -> dict[str, int]:
        """Indexed images that are no samples, counted by why."""
        names, counts = np.unique(self._fates[(self._fates != "") & (self._fates != "no image")], return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    def fate(self, row: int) -> str:
        """Why a row is no sample of a 2-D view, "" where it is one (as :meth:`left_out` counts them)."""
        return str(self._fates[int(row)])

    @cached_property
    def _fates(self) -> NDArray[Any]:
        """(n,) why a row is no sample, "" where it is one."""
        problems = self.index.column("problems").to_pylist()
        fates = np.where(select(self.index, "status = 'indexed' and role = 'image'"), "", "no image").astype(object)
        for why, hit in (
            ("exact copies", select(self.index, "duplicate_of is not null")),
            ("of a UID that other pixels have too", np.array(["uid_conflict" in (p or ()) for p in problems], bool)),
            (SEVERAL_FRAMES, select(self.index, "frames > 1")),
        ):
            fates[(fates == "") & hit] = why
        return fates

    def column(self, name: str) -> Any:
        """A column as a numpy array (objects for text, NaN for missing numbers), lists as a list."""
        if name not in self.columns:
            raise HilumError(f"the index has no column {name!r}", where=str(self.path), fix=nearest(name, self.columns))
        values = self.index.column(name)
        return values.to_pylist() if pa.types.is_list(values.type) else values.to_numpy(zero_copy_only=False)

    def row(self, row: int) -> dict[str, Any]:
        """One row as a dictionary."""
        return {name: self.index.column(name)[int(row)].as_py() for name in self.columns}

    @cached_property
    def root(self) -> Path:
        """Where the indexed files are."""
        if self._root is not None:
            return self._root
        file = self.path / "private" / "root.json"
        if not file.is_file():
            raise HilumError(
                "the study does not say where its files are", where=str(file), fix="pass root=..., or index again"
            )
        return Path(os.fsdecode(path_bytes(json.loads(file.read_text())["root"])))

    @cached_property
    def _paths(self) -> list[str]:
        table = pq.read_table(self.path / "private" / "paths.parquet")
        place = dict(zip(table.column("sample_id").to_pylist(), table.column("path").to_pylist(), strict=True))
        return [place[sample] for sample in self.index.column("sample_id").to_pylist()]

    def file(self, row: int) -> tuple[Path, str]:
        """The file of a row, and the member inside it where it is an archive; :func:`~hilum.data.archives.member_file`
        opens either. A name may hold "!" itself: the longest part of it that is a file, is the file."""
        text = self._paths[int(row)]
        parts = text.split("!")
        # Of two rows with one text the first is the member, the second a file of that very name (the index's order).
        inside_first = int(row) + 1 < len(self._paths) and self._paths[int(row) + 1] == text
        for n in range(len(parts) - inside_first, 0, -1):
            name, member = "!".join(parts[:n]), "!".join(parts[n:])
            path = self.root / os.fsdecode(path_bytes(name))
            if path.is_file():
                return path, member
        return self.root / os.fsdecode(path_bytes(text)), ""

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """Findings, or the classes in sorted order."""
        if self.labels is None:
            return ()
        findings = tuple(n for n in self.labels.column_names if n not in _NOT_FINDINGS)
        if findings or "class" not in self.labels.column_names:
            return findings
        return tuple(sorted(pc.unique(self.labels.column("class")).drop_null().to_pylist()))

    def label_matrix(self, names: Sequence[str] | None, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, F) float32: 1, 0, -1 uncertain, NaN unknown; classes one-hot, NaN where unknown."""
        names = self.label_names if names is None else names
        unknown = [n for n in names if n not in self.label_names]
        if unknown:
            raise HilumError(
                f"there is no label {unknown[0]!r}",
                where=str(self.path / "labels.parquet"),
                fix=nearest(unknown[0], self.label_names),
            )
        matrix = np.full((len(rows), len(names)), np.nan, np.float32)
        if self.labels is None or not len(rows):
            return matrix
        chosen = self.labels.take(pa.array(np.asarray(rows, np.int64)))
        for at, name in enumerate(names):
            if name in chosen.column_names:
                matrix[:, at] = chosen.column(name).to_numpy(zero_copy_only=False)
            else:
                kind = chosen.column("class")
                matrix[:, at] = np.where(
                    np.asarray(pc.is_valid(kind)), np.asarray(pc.fill_null(pc.equal(kind, name), False)), np.nan
                )
        return matrix

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write ``STUDY/name`` whole or not at all."""
        file = self.path / name
        write_json(content, file)
        return file
