"""``hilum volumes``: every usable volume of a study as NIfTI, its labels on the same grid, and why others were left out."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError, nearest
from hilum.data.ledger import write_csv
from hilum.data.study import Study
from hilum.medical.nifti import NiftiIntake
from hilum.medical.volumes.assemble import plans
from hilum.medical.volumes.export import write_array, write_nifti
from hilum.medical.volumes.labels import label_map, labels_of, open_label
from hilum.medical.volumes.volume import Volume, open_volume, refusal, series_rows, volumes_of

COLUMNS = ["volume_id", "series_id", "group_id", "study_id", "modality", "status", "reason", "problems", "file"]
COLUMNS += ["slices", "rows", "columns"]
_FRESH = "name another --out, or remove what is there"


@dataclass(frozen=True)
class VolumesResult:
    """``lines``: rows of ``volumes.csv`` below its header. Exit code 0, or 3 where a volume that is said to be usable
    could not be read."""

    written: int
    left_out: int
    failed: int
    lines: list[list[str]]
    exit_code: int = 0


def volumes(
    study: Path,
    *,
    out: Path,
    volume: list[str] | None = None,
    option: list[str] | None = None,
) -> VolumesResult:
    """Write the volumes of a study as NIfTI files, with labels on the same grid, and a table of those left out.

    Args:
        study: the study that `hilum index` wrote
        out: folder for VOLUME.nii.gz, VOLUME_LABEL.nii.gz and volumes.csv
        volume: id of a volume to write (default: all that are usable)
        option: allow_gaps, resample, split_4d or pixdim_affine, beside those the study was indexed with
    """
    known = Study(study)
    options = frozenset(option or ()) | frozenset(known.about.get("volumes") or ())
    unknown = sorted(options - set(NiftiIntake.volume_options))
    if unknown:
        fix = nearest(unknown[0], NiftiIntake.volume_options) or ", ".join(NiftiIntake.volume_options)
        raise HilumError(f"there is no volume option {unknown[0]!r}", where="--option", fix=fix)
    rows = [row for row in _rows(known, options) if not volume or row["volume_id"] in volume]
    absent = sorted(set(volume or ()) - {row["volume_id"] for row in rows})
    if absent:
        fix = "column volume_id of volumes.csv, which the command writes without --volume"
        raise HilumError(f"the study has no volume {absent[0]!r}", where=str(study), fix=fix)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        told = f"the folder cannot be written: {error.strerror}"
        raise HilumError(told, where=str(out), fix="choose another --out") from None
    before = _before(out, rows, asked=bool(volume))
    lines, counts = [], Counter[str]()
    for row in rows:
        for line in _written(known, row, options, out):
            lines.append(line)
            counts[line[COLUMNS.index("status")]] += 1
    write_csv([COLUMNS, *sorted(before, key=lambda line: line[0]), *lines], out / "volumes.csv")
    for status, n in sorted(counts.items()):
        print(f"{n:>6}  {status}")
    print(f"table: {out / 'volumes.csv'}")
    failed = counts["failed"]
    return VolumesResult(counts["written"], counts["left_out"], failed, lines, 3 if failed else 0)


def _before(out: Path, rows: Sequence[Mapping[str, Any]], *, asked: bool) -> list[list[str]]:
    """Lines of an earlier table in the folder that stay: those of other volumes where single ones were ``asked`` for.
    Files that neither table would tell of are refused, since nothing would say how they were made."""
    try:
        text = (out / "volumes.csv").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        raise HilumError("the table of the folder cannot be read", where=str(out / "volumes.csv"), fix=_FRESH) from None
    header, *lines = list(csv.reader(io.StringIO(text))) or [[]]
    if header != COLUMNS or any(len(line) != len(COLUMNS) for line in lines):
        raise HilumError("a table of something else is in the folder", where=str(out / "volumes.csv"), fix=_FRESH)
    mine = {row["volume_id"] for row in rows if asked or (row["usable"] and row["affine_lps"] is not None)}
    others = [line for line in lines if line[0] not in mine]
    if not asked and any(line[COLUMNS.index("file")] for line in others):
        raise HilumError(
            "the folder holds volumes of another study or of other options, which this run does not write",
            where=str(out),
            fix=_FRESH,
        )
    return others if asked else []


def _rows(study: Study, options: frozenset[str]) -> list[dict[str, Any]]:
    """Of ``series.parquet``; a series that an option may resolve is assembled again."""
    recorded = frozenset(study.about.get("volumes") or ())
    listed = [row for row in volumes_of(study).to_pylist() if _is_volume(row)]
    if options == recorded:
        return listed
    found: list[dict[str, Any]] = []
    for series in sorted({row["series_id"] for row in listed}):
        own = [row for row in listed if row["series_id"] == series]
        torn = [p for row in own for p in row["problems"] if p.startswith("uid_conflict")]
        found += own if torn else [p.row for p in plans([r for r, _ in series_rows(study, series).values()], options)]
    return [row for row in found if _is_volume(row)]


def _is_volume(row: dict[str, Any]) -> bool:
    """Not a 2-D image, which is usable without a place."""
    return not (row["usable"] and row["affine_lps"] is None)


def _written(study: Study, row: dict[str, Any], options: frozenset[str], out: Path) -> list[list[str]]:
    """Lines of the table: the volume, then its labels."""
    name = row["volume_id"]
    if not row["usable"] or row["affine_lps"] is None:
        return [_line(row, "left_out", refusal(row).what.partition("usable: ")[2])]
    try:
        volume = open_volume(study, name, options=options)
        write_nifti(volume, out / f"{name}.nii.gz")
    except (HilumError, OSError) as error:
        return [_line(row, "failed", _why(error))]
    return [_line(row, "written", "", f"{name}.nii.gz"), *_labels(study, row, volume, out)]


def _labels(study: Study, row: dict[str, Any], volume: Volume, out: Path) -> list[list[str]]:
    lines = []
    for at in labels_of(study, row["series_id"]):
        stem = f"{volume.volume_id}_{study.row(at)['sample_id'][:8]}"
        try:
            labels = open_label(study, at, volume)
        except (HilumError, OSError) as error:
            lines.append(_line(row, "label_left_out", _why(error)))
            continue
        if not labels:
            lines.append(_line(row, "label_left_out", "it marks nothing"))
            continue
        whole = label_map(labels)
        parts = [(stem, whole)] if whole is not None else [(f"{stem}-{la.number}", la.mask) for la in labels]
        for name, values in parts:
            write_array(values, volume.affine_lps, out / f"{name}.nii.gz")
            lines.append(_line(row, "label_written", "", f"{name}.nii.gz"))
    return lines


def _why(error: HilumError | OSError) -> str:
    """Without the place, which may name somebody."""
    return error.what if isinstance(error, HilumError) else f"a file of it cannot be read ({type(error).__name__})"


def _line(row: dict[str, Any], status: str, reason: str, file: str = "") -> list[str]:
    shape = [str(n) for n in row["shape_kji"] or ("", "", "")]
    names = ("volume_id", "series_id", "group_id", "study_id", "modality")
    return [*(str(row[n] or "") for n in names), status, reason, "; ".join(row["problems"]), file, *shape]
