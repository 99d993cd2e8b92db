"""``hilum doctor STUDY --why PATH``: everything that a study knows of one file, and what to do about it.

It answers whoever holds ``private/``: that is where names of files are. Patients appear as digests only.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hilum.core.errors import HilumError
from hilum.data.ledger import path_bytes, path_text
from hilum.data.reasons import meaning
from hilum.data.study import Study

_NEAR = 3  # paths named where none fits
_COMPARED = 20_000  # names that a misspelt one is compared with
Line = tuple[str, str]


def explain(study: Study, wanted: str) -> list[Line]:
    """(topic, words) of a file given by its path below the root, in full, or as ``archive.zip!member``, or by the
    first digits of its ``sample_id``. HilumError where no file fits, with the nearest ones."""
    at = _row_of(study, wanted)
    row = study.row(at)
    return [
        *_status(row),
        *_problems(row),
        *_identity(study, row),
        *_copies(study, row),
        *_decoding(row),
        *_volume(study, row),
        *_use(study, at, row),
    ]


def _row_of(study: Study, wanted: str) -> int:
    file = study.path / "private" / "paths.parquet"
    try:
        if not file.is_file():
            raise HilumError("the study does not hold the names of its files", where=str(file), fix="index it again")
        table = pq.read_table(file)
    except PermissionError:
        fix = "ask whoever indexed it: names of files are for those who may read private/"
        raise HilumError("the names of the study's files may not be read", where=str(file), fix=fix) from None
    sample = _by_path(table, _spellings(study, wanted)) or _by_digest(table, wanted)
    if sample is None:
        raise HilumError("the study knows no file of this name", where=wanted, fix=_near(table["path"], wanted))
    return int(pc.index(study.index["sample_id"], sample).as_py())


def _spellings(study: Study, wanted: str) -> list[str]:
    """As a path may be written: from the root, in full, or from the working folder."""
    archive, mark, member = wanted.partition("!")
    roots = []
    with contextlib.suppress(HilumError):  # a study whose root is not known: paths below it still fit
        roots = [study.root, study.root.resolve()]
    found = [wanted.removeprefix("./")]
    for name, rest in ((archive, mark + member), (wanted, "")):  # the root's own name may hold "!"
        for place in (Path(name), Path.cwd() / name, Path(name).resolve()):
            found += [str(place.relative_to(root)) + rest for root in roots if place.is_relative_to(root)]
    plain = [path_text(os.fsencode(text)) for text in dict.fromkeys(found)]
    shown = os.fsencode(wanted.removeprefix("./")).decode("utf-8", "backslashreplace")
    return [*plain, path_text(path_bytes(shown))]  # as a near miss or private/paths.parquet has it


def _by_path(table: pa.Table, spellings: Sequence[str]) -> str | None:
    for text in spellings:
        at = int(pc.index(table["path"], text).as_py())
        if at >= 0:
            return str(table["sample_id"][at].as_py())
    return None


def _by_digest(table: pa.Table, wanted: str) -> str | None:
    if len(wanted) < 8 or set(wanted) - set("0123456789abcdef"):
        return None
    fit = table.filter(pc.starts_with(table["sample_id"], wanted))["sample_id"]
    return str(fit[0].as_py()) if len(fit) == 1 else None


def _near(paths: Any, wanted: str) -> str:
    """Files of the same name elsewhere, else of a similar one in the same folder, else anywhere."""
    inside = paths.filter(pc.starts_with(paths, path_text(os.fsencode(wanted.rstrip("/"))) + "/"))
    if len(inside):
        return f"a folder of {len(inside):,} files: name one of them"
    name = path_text(os.fsencode(wanted.rpartition("/")[2]))
    folder = path_text(os.fsencode(wanted.rpartition("/")[0]))
    same = paths.filter(pc.or_(pc.ends_with(paths, "/" + name), pc.ends_with(paths, "!" + name)))
    if len(same):
        close = same[:_NEAR].to_pylist()
    else:
        beside = paths.filter(pc.starts_with(paths, folder + "/")) if folder else paths
        names = (beside if len(beside) else paths)[:_COMPARED].to_pylist()
        close = difflib.get_close_matches(path_text(os.fsencode(wanted)), names, n=_NEAR, cutoff=0.6)
    close = ["".join(c if c.isprintable() else _escaped(c) for c in name) for name in close]  # no terminal codes
    return f"did you mean {' or '.join(close)}?" if close else "give its path below the archive's root"


def _escaped(letter: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in letter.encode())


def _status(row: dict[str, Any]) -> Iterator[Line]:
    yield "sample", str(row["sample_id"])
    reason = row["reason"] or ""
    yield "status", row["status"] + (f": {reason}" if reason else "")
    if row["message"]:
        yield "", row["message"]
    if reason:
        told = meaning(reason)
        yield "means", f"the file {told.means}"
        yield "to do", told.fix


def _problems(row: dict[str, Any]) -> Iterator[Line]:
    for problem in row["problems"] or ():
        told = meaning(problem)
        yield "note", f"{problem}: it {told.means}"
        yield "to do", told.fix


def _identity(study: Study, row: dict[str, Any]) -> Iterator[Line]:
    if (row["status"] == "quarantined" or row["role"] != "image") and not row["study_id"] and not row["group_known"]:
        return
    if row["group_known"]:
        own = study.index.filter(pc.equal(study.index["group_id"], row["group_id"]))
        yield "patient", f"{row['group_id']} (a digest), with {len(own):,} files in the study"
    else:
        why = (
            "several issuers use its identifier"
            if "issuer_missing" in (row["problems"] or ())
            else ("its header has no usable identifier, and no table names one")
        )
        if row["role"] == "image":
            yield "patient", f"not known: {why}; it can train, never validate or test"
            yield "to do", "hilum index ... --labels TABLE with a column patient_id"
        else:
            yield "patient", f"not known: {why}"
    for name, topic in (("study_id", "study"), ("series_id", "series")):
        yield topic, row[name] or "not told by its header"


def _copies(study: Study, row: dict[str, Any]) -> Iterator[Line]:
    index = study.index
    if row["duplicate_of"]:
        yield "copy", f"an exact copy of sample {row['duplicate_of']}, which stands for both"
    others = index.filter(pc.equal(index["duplicate_of"], row["sample_id"]))["sample_id"].to_pylist()
    if others:
        yield "copies", f"{len(others)} exact copies stand behind it: {', '.join(s[:12] for s in others[:5])}"
    torn = "uid_conflict" in {problem.partition(":")[0] for problem in row["problems"] or ()}
    if torn and (others := _of_one_uid(study, row["sample_id"])):
        yield "conflict", f"its SOPInstanceUID also stands in: {', '.join(s[:12] for s in others[:5])}"
    if row["stored_sha256"] and "same_pixels_other_patient" in (row["problems"] or ()):
        same = index.filter(pc.equal(index["stored_sha256"], row["stored_sha256"]))
        foreign = same.filter(pc.not_equal(same["group_id"], row["group_id"]))["sample_id"].to_pylist()
        yield "conflict", f"its pixels also stand under another patient: {', '.join(s[:12] for s in foreign[:5])}"


def _of_one_uid(study: Study, sample: str) -> list[str]:
    """Samples under the SOPInstanceUID of one, which only ``private/`` tells."""
    file = study.path / "private" / "state.parquet"
    if not file.is_file():
        return []
    table = pq.read_table(file, columns=["sample_id", "instance"])
    own = table["instance"][pc.index(table["sample_id"], sample).as_py()]
    same = table.filter(pc.equal(table["instance"], own))["sample_id"].to_pylist()
    return [other for other in same if other != sample]


def _decoding(row: dict[str, Any]) -> Iterator[Line]:
    if row["source"]:
        yield "read by", str(row["source"])
    if row["status"] != "indexed" or not row["rows"]:
        return
    size = f"{row['rows']} x {row['columns']}" + (f", {row['frames']} frames" if (row["frames"] or 1) > 1 else "")
    axis = f" ({row['frames_axis']})" if row["frames_axis"] else ""
    yield "image", f"{size}{axis}, {row['bits_stored']} bits, {row['photometric'] or 'no colour model'}"
    yield "codec", f"{row['codec'] or 'none'} {row['codec_version'] or ''}".strip()
    if row["window"]:
        ends = f", {row['lo']:g} to {row['hi']:g}" if row["lo"] is not None and row["hi"] is not None else ""
        function = f", {row['voi_lut']}" if row["voi_lut"] and row["voi_lut"] != "none" else ""
        yield "window", f"{row['window']}{ends}{function}" + (", displays inverted" if row["inverted"] else "")
    if row["stored_sha256"] is None and row["status"] == "indexed":
        yield "pixels", "not read (headers only): copies and values are not known"


def _volume(study: Study, row: dict[str, Any]) -> Iterator[Line]:
    file = study.path / "series.parquet"
    if not row["series_id"] or not file.is_file() or row["role"] != "image":
        return
    series = pq.read_table(file, filters=[("series_id", "=", row["series_id"])]).to_pylist()
    mine = [s for s in series if row["sample_id"] in (s["sample_ids"] or ())]
    if not mine:
        yield "volume", "in none"
    for volume in mine:
        shape = " x ".join(map(str, volume["shape_kji"] or ())) or f"{volume['frames']} frames"
        yield "volume", f"{shape}, {'usable' if volume['usable'] else 'not usable'} ({volume['volume_id'][:12]})"
        for problem in volume["problems"] or ():
            told = meaning(problem)
            yield "", f"{problem}: the volume {told.means}; {told.fix}"


def _use(study: Study, at: int, row: dict[str, Any]) -> Iterator[Line]:
    if row["status"] == "indexed" and row["role"] == "container":
        yield "use", "an archive: each of its members is explained as ARCHIVE!MEMBER"
    if row["status"] != "quarantined" and row["role"] == "label":  # a structure set is skipped as an image
        marked = ", ".join(row.get("refers_to") or ())
        yield "use", f"a label of series {marked}" if marked else "a label that names no series it marks"
    if row["status"] != "indexed" or row["role"] != "image":
        return
    fate = study.fate(at)
    yield "use", "a sample of 2-D views" if not fate else f"no sample of 2-D views ({fate})"
    for info in sorted((study.path / "splits").glob("*.json")):
        table = pq.read_table(info.with_suffix(".parquet"), filters=[("group_id", "=", row["group_id"])])
        part = table["split"][0].as_py() if len(table) else "in no part"
        yield "split", f"{info.stem}: {part}"
    if study.labels is None:
        yield "labels", "the study has none"
        return
    values = {n: study.labels[n][at].as_py() for n in study.labels.column_names if n not in ("sample_id", "split")}
    found = study.labels["sample_id"][at].as_py() is not None
    known = {n: v for n, v in values.items() if v is not None and not (isinstance(v, float) and np.isnan(v))}
    joined = json.loads((study.path / "study.json").read_text(encoding="utf-8")).get("join")
    told = ", ".join(f"{n} {v:g}" if isinstance(v, float) else f"{n} {v}" for n, v in known.items())
    yield "labels", (told or "a row without values") if found else f"no row of the table fits it (joined by {joined})"
