"""``hilum deid``: a whole tree, file by file in isolated workers, with a journal to go on from and a report."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow, Limits
from hilum.data.identity import IdentityKey
from hilum.data.index import Interrupted
from hilum.data.isolation import Readers
from hilum.data.ledger import HARMLESS, path_text, replacing
from hilum.data.listing import Found, walk
from hilum.data.processes import Stopped, stoppable
from hilum.medical.deid.one_file import METHOD, BurnedIn, Deidentifier, Settings
from hilum.medical.deid.profile import Options, Profile

STATUSES = ("written", "held", "refused", "failed")
FIELDS = ("path", "size", "mtime_ns", "file", "status", "reason", "message", "details")
SHOWN = ("output", "declared", "burned_in", "bits_cleared", "excess_removed", "blackened")
LIMITS = Limits(max_pixels=1 << 28, max_bytes=2 << 30, seconds=120.0)
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True)
class Result:
    """``counts``: found, written, held, refused, failed; found is the sum of the others. ``report`` is the JSON;
    ``reasons`` counts why files were not written."""

    out: Path
    report: Path
    counts: dict[str, int]
    reasons: Mapping[str, int]
    exit_code: int


def deidentify(
    root: Path,
    out: Path,
    *,
    key: IdentityKey,
    options: Options | None = None,
    burned_in: BurnedIn = "hold",
    report: Path | None = None,
    workers: int | None = None,
    limits: Limits = LIMITS,
) -> Result:
    """Write de-identified copies of what is below ``root`` into ``out``; both must lie apart from each other.

    Beside ``out`` the folder ``OUT.private`` (0700) keeps the journal, the only place with paths of the input, and the
    report where ``report`` names no other. Files of an earlier run with the same options and key are not done again.
    Raises :class:`HilumError` for folders inside each other and for other options than before.
    """
    root, out = Path(root), Path(out)
    private = out.with_name(f"{out.name}.private")
    _apart(root, out, private)
    if workers is not None and workers < 0:
        raise HilumError("the number of processes is 0 (this one) or more", where="--workers", fix="--workers 2")
    if report is not None:
        _beside(report, root, out)
    options = options or Options()
    settings = Settings(out.resolve(), key, options, burned_in)
    for folder, mode in ((out, 0o755), (private, 0o700), ((report or private / "report.json").parent, 0o755)):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=mode)
            if not os.access(folder, os.W_OK | os.X_OK):  # now, rather than after hours
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            told = f"the folder cannot be written: {error.strerror}"
            raise HilumError(told, where=str(folder), fix="name a new folder") from None
    _same_settings(private / "settings.json", settings)
    for left in out.rglob(".*.partial"):  # of a run that was ended
        left.unlink()
    journal = Journal(private / "journal.csv")
    entries = sorted(walk(root, out, ()), key=lambda e: e.path)
    if not entries and not journal.lines:
        raise HilumError(
            "the archive holds no files", where=str(root), fix="check the path, and that its disk is there"
        )
    entries = [e for e in entries if not journal.knows(e, out)]
    try:
        with stoppable(), journal:
            for entry, row in _rows(root, entries, Deidentifier(settings), workers, limits):
                journal.add(entry, key.digest("deid-path", entry.path)[:16], row, out)
    except Stopped as stop:
        raise Interrupted(stop.signal) from None
    present = {path_text(e.path) for e in walk(root, out, ())}
    lines = [line for path, line in sorted(journal.lines.items()) if path in present]
    target = report or private / "report.json"
    vanished = [line for path, line in journal.lines.items() if path not in present and line["status"] == "written"]
    counts = write_report(lines, target, settings, vanished=len(vanished))
    reasons = Counter(line["reason"] for line in lines if line["reason"])
    return Result(out, target, counts, reasons, 3 if counts["held"] or counts["failed"] else 0)


def _apart(root: Path, out: Path, private: Path) -> None:
    if not root.is_dir():
        raise HilumError("the archive is not a folder", where=str(root), fix="give the folder that holds the files")
    inside, outside = root.resolve(), (out.resolve(), private.resolve())
    if any(o.is_relative_to(inside) or inside.is_relative_to(o) for o in outside):
        told = "the input and the output must not lie inside each other"
        raise HilumError(told, where=str(out), fix="name a folder elsewhere")


def _beside(report: Path, root: Path, out: Path) -> None:
    """The report replaces what stands under its name: never a file of the input, nor one among the copies."""
    place = report.resolve()
    if any(place.is_relative_to(folder.resolve()) for folder in (root, out)):
        told = "the report must not lie in the input or among the copies"
        raise HilumError(told, where="--report", fix="name a place elsewhere")
    if place.suffix.lower() != ".json" or place.is_dir():
        told = "the report is JSON; a CSV of the same name is written beside it"
        raise HilumError(told, where="--report", fix=f"--report {report.with_suffix('.json').name}")
    if place.with_suffix(".csv").exists() and not place.exists():
        told = "the report's CSV would replace a table that is no report"
        raise HilumError(told, where="--report", fix="give it another name")


def _same_settings(path: Path, settings: Settings) -> None:
    """Copies made with different options or keys would not fit together."""
    options = settings.options
    now = {
        "method": METHOD,
        "edition": Profile.load().edition,
        "key": settings.key.fingerprint,
        "retain": sorted(options.retain),
        "keep": sorted(options.keep),
        "private": [[c, f"{g:04X}", f"{e:02X}"] for c, g, e in sorted(options.private)],
        "burned_in": settings.burned_in,
    }
    if path.is_file():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            told = "what is known of this folder's settings cannot be read"
            raise HilumError(told, where=str(path), fix="name a new folder") from None
        changed = [name for name in now if before.get(name) != now[name]]
        if changed:
            told = ", ".join(changed)
            fix = "name another OUT, or give the settings that stand in OUT.private/settings.json"
            raise HilumError(f"this folder was made with other settings ({told})", where=str(settings.out), fix=fix)
        return
    if any(settings.out.iterdir()):
        raise HilumError("the output folder holds something else", where=str(settings.out), fix="name a new folder")
    with replacing(path, private=True) as file:
        file.write(json.dumps(now, indent=1).encode())


def _rows(
    root: Path, entries: Sequence[Found], writer: Deidentifier, workers: int | None, limits: Limits
) -> Iterator[tuple[Found, IndexRow]]:
    """What became of every entry, in the order they are done."""
    regular = []
    for entry in entries:
        fault = entry.fault or _container(root, entry)
        if fault is None:
            regular.append(entry)
        else:
            yield entry, IndexRow(fault[0], fault[1], fault[2])  # type: ignore[arg-type]
    paths = [root / os.fsdecode(e.path) for e in regular]
    number = max(1, min(os.cpu_count() or 1, len(paths))) if workers is None else workers
    for at, rows in Readers([writer], workers=number, limits=limits).read(paths):
        yield regular[at], rows[0]


def _container(root: Path, entry: Found) -> tuple[str, str, str] | None:
    try:
        with (root / os.fsdecode(entry.path)).open("rb") as file:
            head = file.read(4)
    except OSError:
        return "quarantined", "unreadable", "the file cannot be read"
    return (
        ("quarantined", "unsupported_container", "archives are not opened; unpack it first") if head in _ZIP else None
    )


class Journal:
    """What became of each file: ``journal.csv``, appended line by line, so that an ended run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, dict[str, str]] = {}
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                for line in csv.DictReader(file):
                    if None not in line.values() and _whole(line["details"]):  # the last one may be cut
                        self.lines[line["path"]] = line
        self.outputs = Counter(map(_output, self.lines.values()))  # copies -> files that they stand for

    def knows(self, entry: Found, out: Path) -> bool:
        """Whether the file was done and has not changed since, and its copy is still there."""
        line = self.lines.get(path_text(entry.path))
        if line is None or (line["size"], line["mtime_ns"]) != (str(entry.size), str(entry.mtime_ns)):
            return False
        return line["status"] != "written" or (out / json.loads(line["details"])["output"]).is_file()

    def __enter__(self) -> Journal:
        with replacing(self.path, private=True) as file:  # one line a file, whole ones only
            text = [",".join(FIELDS), *(_csv_line(line) for line in self.lines.values())]
            file.write(("\n".join(text) + "\n").encode())
        self.file = self.path.open("a", encoding="utf-8", newline="")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, entry: Found, file: str, row: IndexRow, out: Path) -> None:
        """Note what became of a file; a copy of what it held before goes, unless another file holds the same."""
        details = dict(row.columns.get("deid") or {})
        status = details.pop("action", None) or ("refused" if _harmless(row) else "failed")
        if status == "failed" and _harmless(row):
            status = "refused"
        line = {
            "path": path_text(entry.path),
            "size": str(entry.size),
            "mtime_ns": str(entry.mtime_ns),
            "file": file,
            "status": status,
            "reason": row.reason,
            "message": row.message,
            "details": json.dumps(details, sort_keys=True),
        }
        before, now = _output(self.lines.get(line["path"])), _output(line)
        self.outputs.update([now])
        self.outputs.subtract([before])
        self.lines[line["path"]] = line
        if before and not self.outputs[before]:
            (out / before).unlink(missing_ok=True)
        self.file.write(_csv_line(line) + "\n")
        self.file.flush()


def _whole(details: str) -> bool:
    try:
        return isinstance(json.loads(details), dict)
    except ValueError:
        return False


def _output(line: Mapping[str, str] | None) -> str:
    return str(json.loads(line["details"]).get("output") or "") if line is not None else ""


def _harmless(row: IndexRow) -> bool:
    return row.status == "skipped" or row.reason in HARMLESS


def _csv_line(line: Mapping[str, str]) -> str:
    return ",".join('"' + line[name].replace('"', '""') + '"' for name in FIELDS)


def write_report(
    lines: Sequence[Mapping[str, str]], target: Path, settings: Settings, *, vanished: int = 0
) -> dict[str, int]:
    """``target`` (JSON: totals, reasons, actions by keyword) and a CSV beside it (one line a file, named by digest)."""
    details = [json.loads(line["details"]) for line in lines]
    totals = Counter(line["status"] for line in lines)
    counts = {"found": len(lines), **{status: totals[status] for status in STATUSES}}
    reasons = Counter(line["reason"] for line in lines if line["reason"])
    actions: dict[str, Counter[str]] = {}
    for done in details:
        for name, n in (done.get("counts") or {}).items():
            keyword, _, action = name.rpartition(":")
            actions.setdefault(keyword, Counter())[action] += n
    pixels = Counter(
        f"declared {d.get('declared') or 'nothing'}, {d.get('burned_in', 'not_examined')}" for d in details
    )
    outputs = Counter(d["output"] for d in details if d.get("output"))
    content: dict[str, Any] = {
        "method": METHOD,
        "edition": Profile.load().edition,
        "key_fingerprint": settings.key.fingerprint,
        "codes": [list(code) for code in settings.options.codes],
        "burned_in": settings.burned_in,
        "counts": counts,
        "duplicates": sum(n - 1 for n in outputs.values()),
        "copies_of_vanished_files": vanished,
        "reasons": dict(sorted(reasons.items())),
        "burned_in_annotation": dict(sorted(pixels.items())),
        "bits_cleared": sum(bool(d.get("bits_cleared")) for d in details),
        "excess_removed": sum(bool(d.get("excess_removed")) for d in details),
        "blackened_files": sum(bool(d.get("blackened")) for d in details),
        "actions": {keyword: dict(sorted(done.items())) for keyword, done in sorted(actions.items())},
    }
    with replacing(target) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
    with replacing(target.with_suffix(".csv")) as file:
        header = ("file", "status", "reason", "message", *SHOWN)
        rows = [
            [line[n] for n in header[:4]] + [str(d.get(n, "")) for n in SHOWN]
            for line, d in zip(lines, details, strict=True)
        ]
        text = [",".join(header), *(",".join('"' + c.replace('"', '""') + '"' for c in row) for row in rows)]
        file.write(("\n".join(text) + "\n").encode())
    return counts
