"""What is recorded of every file, and how tables are written: whole or not at all, private ones for their owner."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from hilum.core.errors import HilumError

_TEXT, _REAL, _LIST = pa.string(), pa.float64(), pa.list_(pa.string())
_KEYS = pa.list_(pa.struct([("name", _TEXT), ("values", pa.list_(_REAL))]))

COLUMNS = pa.schema(
    [
        ("sample_id", _TEXT),
        ("status", _TEXT),
        ("reason", _TEXT),
        ("message", _TEXT),
        ("group_id", _TEXT),
        ("study_id", _TEXT),
        ("series_id", _TEXT),
        ("modality", _TEXT),
        ("body_part", _TEXT),
        ("view", _TEXT),
        ("laterality", _TEXT),
        ("photometric", _TEXT),
        ("transfer_syntax", _TEXT),
        ("bits_stored", pa.int16()),
        ("frames", pa.int32()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("spacing_mm", pa.list_(_REAL)),  # (row, column)
        ("unit", _TEXT),
        ("stored_sha256", _TEXT),
        ("modality_sha256", _TEXT),
        ("min", _REAL),  # min to background: modality values before polarity, padding left out
        ("max", _REAL),
        ("group_known", pa.bool_()),
        ("has_report", pa.bool_()),
        ("role", _TEXT),  # image | label | container
        ("duplicate_of", _TEXT),
        ("problems", _LIST),
        ("source", _TEXT),  # the intake that read it
        ("bytes", pa.int64()),
        ("mean", _REAL),
        ("std", _REAL),
        ("lo", _REAL),  # of the window named in `window`, modality values
        ("hi", _REAL),
        ("p005", _REAL),
        ("p995", _REAL),
        ("background", _REAL),
        ("codec", _TEXT),
        ("codec_version", _TEXT),
        ("window", _TEXT),
        ("voi_lut", _TEXT),
        ("frames_axis", _TEXT),
        ("inverted", pa.bool_()),  # displays inverted: Pixels negates slope, intercept and window
        ("vendor", _TEXT),  # a listed maker
        ("orientation", pa.list_(_REAL)),  # row and column cosines, LPS: 6, or 6 a frame
        ("positions", pa.list_(_REAL)),  # mm LPS of the first pixel's centre: 3 a frame
        ("frame_keys", _KEYS),  # what else tells frames apart: one value a frame, or one for all
        ("refers_to", _LIST),  # series that a label marks
    ]
)
"""Columns of ``index.parquet`` (FORMATS 5), plus ``inverted`` and what follows it."""

STATE = pa.schema(
    [
        *COLUMNS,
        ("path", _TEXT),
        ("member", _TEXT),  # inside an archive
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("reader", _TEXT),  # what read it: a change makes the file new
        ("instance", _TEXT),  # digests, for joining tables without keeping identifiers
        ("accession", _TEXT),
        ("patient", _TEXT),
        ("spelling", _TEXT),
        ("issued", pa.bool_()),  # the patient's identifier has an issuer
    ]
)
"""``private/state.parquet``: rows before files are compared with each other; the next run reads only what changed."""

SERIES = pa.schema(
    [
        ("series_id", _TEXT),
        ("volume_id", _TEXT),
        ("group_id", _TEXT),
        ("study_id", _TEXT),
        ("modality", _TEXT),
        ("sample_ids", _LIST),
        ("frames", pa.int32()),
        ("regular", pa.bool_()),
        ("shape_kji", pa.list_(pa.int32())),
        ("spacing_mm", pa.list_(_REAL)),
        ("affine_lps", pa.list_(_REAL)),
        ("split_key", _TEXT),
        ("tilt_deg", _REAL),
        ("problems", _LIST),
        ("usable", pa.bool_()),
    ]
)

HARMLESS = frozenset({"not_dicom", "empty_file", "special_file"})  # quarantined, but no fault of the archive


class Rejected(HilumError):
    """A file that cannot be used: ``reason`` is one of FORMATS 5's stable codes; the message names no header value."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return Rejected, (self.reason, self.what)


def counts_of(index: pa.Table) -> dict[str, Any]:
    """``found = indexed + skipped + quarantined``; files that were there before are ``vanished``; ``reasons``."""
    pairs = _pairs(index)
    gone = sum(n for (_, reason), n in pairs.items() if reason == "vanished")
    totals, faults = Counter[str](), Counter[str]()
    for (status, reason), n in pairs.items():
        totals[status] += n
        if status != "indexed" and reason != "vanished":
            faults[reason] += n
    counts = {"found": len(index) - gone, "indexed": totals["indexed"], "skipped": totals["skipped"] - gone}
    counts |= {"quarantined": totals["quarantined"], "vanished": gone}
    return {**counts, "reasons": dict(sorted(faults.items()))}


def exit_code(index: pa.Table, *, max_quarantined: float | str | None = None) -> int:
    """0, or 3 where files were quarantined for more than HARMLESS reasons and more than ``max_quarantined`` of those
    found."""
    faulty = sum(n for (s, r), n in _pairs(index).items() if s == "quarantined" and r not in HARMLESS)
    return 3 if faulty > share(max_quarantined) * counts_of(index)["found"] else 0


def _pairs(index: pa.Table) -> dict[tuple[str, str], int]:
    """Rows by (status, reason)."""
    counted = index.select(["status", "reason"]).group_by(["status", "reason"]).aggregate([([], "count_all")])
    return {(row["status"], row["reason"]): row["count_all"] for row in counted.to_pylist()}


def share(value: float | str | None) -> float:
    """0.01 of ``0.01`` or ``"1%"``; 0 of None."""
    try:
        number = float(str(value or 0).rstrip("% ")) / (100 if str(value).strip().endswith("%") else 1)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise HilumError(f"{value!r} is not a share between 0 and 1", fix="for instance 1% or 0.01")
    return number


def path_text(path: bytes) -> str:
    r"""A path as it is stored: bytes that are not UTF-8 as a backslash, x and two hex digits; a backslash that would read
    as the start of such a one likewise (``\x5c``)."""
    return re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", path).decode("utf-8", "backslashreplace")


def path_bytes(text: str) -> bytes:
    """Bytes of a stored path."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes.fromhex(m[1].decode()), text.encode())


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file that takes its name only when it is complete and on disk; mode 0600 where it is private."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        if not private:
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise HilumError(
            f"cannot write {path.name}: {error.strerror}", where=str(path.parent), fix="free space, or another --out"
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_table(table: pa.Table, path: Path, *, private: bool = False) -> None:
    """Parquet without timestamps: equal tables give equal bytes."""
    with replacing(path, private=private) as out:
        pq.write_table(table, out, compression="zstd", row_group_size=1 << 16)


def write_csv(lines: Iterable[Sequence[str]], path: Path, *, private: bool = False) -> None:
    text, lines = io.StringIO(), list(lines)
    # Left to itself the writer does not quote a carriage return, at which readers end the line.
    every = any("\r" in cell for line in lines for cell in line)
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL)
    writer.writerows(lines)
    with replacing(path, private=private) as out:
        out.write(text.getvalue().encode())


def write_json(content: Mapping[str, Any], path: Path, *, private: bool = False) -> None:
    with replacing(path, private=private) as out:
        out.write(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n")
