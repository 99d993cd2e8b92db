"""Zip archives: checked before a byte is unpacked, then read member by member through a private temporary file.

An archive whose structure lies (names that climb out, links, duplicate names, overlapping members, a damaged directory)
is refused whole; a member that is encrypted, damaged or too large costs itself only. Archives inside archives stay shut.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from hilum.core.types import IndexRow, Limits
from hilum.data.isolation import refusal
from hilum.data.ledger import Rejected
from hilum.data.pool import beat

MEMBERS = 1 << 16  # of one archive
_DIRECTORY = 1 << 26  # bytes of its list of members
_SMALL = 1 << 26  # bytes: below this a high ratio is a blank image, not a bomb
_LOCAL = 30  # bytes of a local header without its name (APPNOTE 4.3.7)
_ENTRY, _CENTRAL = b"PK\x01\x02", 46  # how an entry of the directory starts, and its bytes without its name (4.3.12)
_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"  # APPNOTE 4.3.16, 4.3.14, 4.3.15
_CHUNK = 1 << 20
_PREFIX = "hilum-member-"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, UnicodeDecodeError, OverflowError, ValueError)
Read = Callable[[Path], list[IndexRow]]


def read_archive(
    path: Path, limits: Limits, read: Read, *, scratch: Path, lost: Mapping[int, IndexRow]
) -> list[IndexRow]:
    """The archive's own row, then those of its members, in order of their names, read from a copy in ``scratch``.

    ``lost`` are members, by number, whose reader died when the archive was read before. Raises :class:`Rejected`.
    """
    with _open(path, limits) as archive:
        members = _members(archive, path, limits)
        rows = [IndexRow("indexed", columns={"role": "container", "frames": 0, "source": "zip"})]
        for number, member in enumerate(members):
            beat(number)
            found = [lost[number]] if number in lost else _rows(archive, member, limits, read, scratch)
            for row in found:
                row.member = member.filename
            rows += found
    return rows


@contextlib.contextmanager
def member_file(path: Path, member: str, limits: Limits | None = None) -> Iterator[Path]:
    """The file to read: ``path`` itself, or a private copy of its ``member`` for as long as the block runs.

    Raises :class:`Rejected` where the archive is unsafe or does not hold the member.
    """
    if not member:
        yield path
        return
    limits, about = limits or Limits(), path.stat()
    archive, members = _opened(path, about.st_size, about.st_mtime_ns, os.getpid(), limits)
    if member not in members:
        raise Rejected("missing_reference", "the archive does not hold this member any more")
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as folder:
        yield _unpack(archive, members[member], limits, Path(folder))


def forget(pid: int) -> None:
    """Remove what a process that was killed had unpacked."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{pid}-*"):
        shutil.rmtree(left, ignore_errors=True)


@lru_cache(maxsize=4)
def _opened(
    path: Path, size: int, mtime_ns: int, pid: int, limits: Limits
) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An archive kept open: its directory is parsed once, not once a member. ``pid``: a fork would share its offset."""
    archive = _open(path, limits)
    return archive, {member.filename: member for member in _members(archive, path, limits)}


def _open(path: Path, limits: Limits) -> zipfile.ZipFile:
    with path.open("rb") as file:
        count, size, end = _directory(file)
        if count > MEMBERS or size > _DIRECTORY:
            raise Rejected("resource_limit", f"an archive of {count} members, more than {MEMBERS}, or of longer names")
        if _listed(file, end - size, size) != count:
            raise Rejected("unsafe_archive", "its directory holds more or fewer members than it says")
    try:
        return zipfile.ZipFile(path)
    except (*_FAULTS, NotImplementedError):
        raise Rejected("unsafe_archive", "its directory is damaged") from None


def _directory(file: BinaryIO) -> tuple[int, int, int]:
    """(members, bytes of their list, where it ends) as the end record says, before anything is allocated for them."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 22 - 0xFFFF))
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise Rejected("unsafe_archive", "its directory is missing or cut off")
    count, length = struct.unpack("<HI", tail[at + 10 : at + 16])
    end = max(0, size - len(tail)) + at
    file.seek(max(0, end - 76))
    before = file.read(76)
    if len(before) == 76 and before[56:60] == _LOCATOR:
        # Where the locator points is not asked: zipfile, which reads next, takes the record that stands before it.
        if before[:4] != _END64:
            raise Rejected("unsafe_archive", "its directory is damaged")
        count, length = struct.unpack("<QQ", before[32:48])
        end -= 76
    return count, length, end


def _listed(file: BinaryIO, start: int, size: int) -> int:
    """Members that the directory really lists, counted up to one more than are allowed: the end record may lie."""
    if start < 0:
        raise Rejected("unsafe_archive", "its directory is missing or cut off")
    file.seek(start)
    data, at = file.read(size), 0
    for number in range(MEMBERS + 1):
        if at == size:
            return number
        if data[at : at + 4] != _ENTRY or at + _CENTRAL > size:
            raise Rejected("unsafe_archive", "its directory is damaged")
        at += _CENTRAL + sum(struct.unpack("<HHH", data[at + 28 : at + 34]))
    raise Rejected("resource_limit", f"an archive of more than {MEMBERS} members")


def _members(archive: zipfile.ZipFile, path: Path, limits: Limits) -> list[zipfile.ZipInfo]:
    """Files of an archive, sorted by name; :class:`Rejected` where its structure cannot be trusted."""
    entries = archive.infolist()
    for entry in entries:
        _refuse_name(entry)
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise Rejected("unsafe_archive", "two members have one name")
    end = archive.start_dir
    for entry in sorted(entries, key=lambda e: e.header_offset, reverse=True):
        if entry.header_offset < 0 or entry.header_offset + _LOCAL + entry.compress_size > end:
            raise Rejected("unsafe_archive", "its members overlap")
        end = entry.header_offset
    total = sum(entry.file_size for entry in entries)
    if total > _SMALL and total > limits.inflate_ratio * path.stat().st_size:
        raise Rejected("resource_limit", f"it unpacks to more than {limits.inflate_ratio:g} times its size")
    files = [entry for entry in entries if not entry.is_dir()]
    return sorted(files, key=lambda entry: entry.filename.encode("utf-8", "surrogatepass"))


def _refuse_name(entry: zipfile.ZipInfo) -> None:
    name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    if not name.strip("/") or "\0" in name or "\\" in name or re.match(r"/|[A-Za-z]:", name) or ".." in name.split("/"):
        raise Rejected("unsafe_archive", "a member's name leads out of the archive")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Rejected("unsafe_archive", "a member is a link or a device")


def _rows(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, limits: Limits, read: Read, scratch: Path
) -> list[IndexRow]:
    file = None
    try:
        file = _unpack(archive, member, limits, scratch)
        return read(file)
    except (Rejected, MemoryError) as error:
        return [refusal(error)]
    finally:
        if file is not None:
            file.unlink(missing_ok=True)


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limits: Limits, folder: Path) -> Path:
    """A copy of a member, readable by its owner only; of its name only the ending is kept, which tells formats apart."""
    if member.flag_bits & 0x1:
        raise Rejected("unsafe_archive", "it is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Rejected("unsupported_container", f"compressed by method {member.compress_type}; unpack it first")
    if member.file_size > limits.max_bytes:
        raise Rejected("resource_limit", "it unpacks to more than the limit")
    if member.file_size > max(_SMALL, limits.inflate_ratio * member.compress_size):
        raise Rejected("resource_limit", f"it unpacks to more than {limits.inflate_ratio:g} times its size")
    ending = re.search(r"(\.[a-z0-9]{1,8}){0,2}$", member.filename.rpartition("/")[2].lower())
    file = folder / f"{os.getpid()}-member{ending[0] if ending else ''}"
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
        with os.fdopen(descriptor, "wb") as copy, archive.open(member) as source:
            _copy(source, copy, member.file_size)
    except BaseException as error:
        file.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:  # no fault of the member's: read again next time
            raise Rejected("unreadable", "there is no room to unpack it") from None
        if isinstance(error, (*_FAULTS, NotImplementedError, RuntimeError)):
            raise Rejected("unsafe_archive", f"its data are damaged ({type(error).__name__})") from None
        raise
    return file


def _copy(source: Any, copy: Any, size: int) -> None:
    written = 0
    while block := source.read(_CHUNK):
        written += len(block)
        if written > size:  # what the directory promised is what limits were checked against
            raise Rejected("resource_limit", "it unpacks to more than its directory says")
        copy.write(block)
    if written < size:
        raise EOFError
