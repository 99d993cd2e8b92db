"""A DICOMDIR (PS3.3 Annex F) names files of its folder. Its files are found by walking; what is checked is that no
reference leads out of the folder (CVE-2026-32711 in readers that follow them) and how many lead nowhere."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from hilum.core.types import Limits
from hilum.data.ledger import Rejected
from hilum.medical.dicom.elements import UNDEFINED, Encoding, Source, sought, walk
from hilum.medical.dicom.header import Header

RECORDS = 1 << 18
_FILE_ID = 0x00041500  # ReferencedFileID


def check_dicomdir(header: Header, limits: Limits) -> None:
    """:class:`Rejected` as ``unsafe_reference`` or ``missing_reference`` (a count, never a name)."""
    if header.cut:
        raise Rejected("parse_error", "the file ends inside its directory records")
    folder = Path(os.path.realpath(header.path.parent))
    names: dict[Path, dict[str, str]] = {}
    missing = total = 0
    for parts in _references(header, limits):
        total += 1
        if _climbs(parts):
            raise Rejected("unsafe_reference", "a file that it names would be outside its folder")
        found = _resolve(folder, parts, names)
        if found is None:
            missing += 1
        elif found != folder and folder not in found.parents:
            raise Rejected("unsafe_reference", "a file that it names is outside its folder, behind a link")
    # PS3.10 8.6: beside its files it has this name; under another one it is a copy, as of a member of an archive.
    if missing and header.path.name.upper().startswith("DICOMDIR"):
        raise Rejected("missing_reference", f"{missing} of the {total} files that it names are not there")


def _references(header: Header, limits: Limits) -> Iterator[list[str]]:
    """ReferencedFileID of every record, split into its components."""
    raw = header.elements.get(0x00041220)  # DirectoryRecordSequence
    if raw is None or not raw.value:
        return
    encoding = Encoding(raw.is_implicit_VR, "<" if raw.is_little_endian else ">")
    item, wanted = encoding.tag(0xFFFEE000), sought(encoding.order, [_FILE_ID])
    data, at = raw.value, 0
    source = Source(io.BytesIO(data), len(data))
    for _ in range(RECORDS):
        if at + 8 > len(data):
            return
        if data[at : at + 4] != item:
            raise Rejected("parse_error", "its directory records are no list of items")
        length = int.from_bytes(data[at + 4 : at + 8], "little" if raw.is_little_endian else "big")
        if length == UNDEFINED:
            found = walk(source, at + 8, encoding, wanted, depth=limits.depth)
            at = found.at
        else:
            record = data[at + 8 : at + 8 + length]
            found = walk(Source(io.BytesIO(record), len(record)), 0, encoding, wanted, depth=limits.depth)
            at += 8 + length
        reference = found.elements.get(_FILE_ID)
        if reference is not None and reference.value:
            yield [p.strip(" \0") for p in reference.value.decode("latin-1").split("\\")]
    raise Rejected("resource_limit", f"it has more than {RECORDS} directory records")


def _climbs(parts: list[str]) -> bool:
    """Whether a component is no plain name: empty (an absolute path), ``..``, a path of its own, or a drive."""
    return any(p in ("", ".", "..") or "/" in p or "\0" in p or re.match(r"[A-Za-z]:", p) for p in parts)


def _resolve(folder: Path, parts: list[str], names: dict[Path, dict[str, str]]) -> Path | None:
    """The regular file that a reference names, links followed; case is ignored where the exact name is not there."""
    place = folder
    for part in parts:
        direct = place / part
        if not os.path.lexists(direct):
            other = _names(place, names).get(part.lower())
            if other is None:
                return None
            direct = place / other
        place = Path(os.path.realpath(direct))
        if place != folder and folder not in place.parents:
            return place  # outside: nothing there is looked at
    try:
        return place if stat.S_ISREG(place.lstat().st_mode) else None
    except OSError:
        return None


def _names(folder: Path, names: dict[Path, dict[str, str]]) -> dict[str, str]:
    """Lower case, without the version that ISO 9660 adds -> name as it is."""
    if folder not in names:
        try:
            there = [entry.name for entry in folder.iterdir()]
        except OSError:
            there = []
        names[folder] = {name.lower().partition(";")[0].rstrip("."): name for name in sorted(there)}
    return names[folder]
