"""``hilum fetch``: how to get a published dataset, and, where its terms allow it, getting it."""

from __future__ import annotations

import hashlib
import http.client
import lzma
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hilum.core.errors import HilumError
from hilum.data.cards import DatasetCard, Download, card_of

TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20
_LOCAL = ("127.0.0.1", "::1", "localhost")
_SPARE = 1 << 30  # bytes of the disk that stay free
_INFLATION = 200  # times its archive that what is unpacked may take


@dataclass(frozen=True)
class Fetched:
    """Files that are there now, and whether all of the set is."""

    files: tuple[Path, ...] = ()
    exit_code: int = 0


def fetch(name: str, *, out: Path | None = None, only: str | None = None) -> Fetched:
    """Print the exact steps to a public dataset; with --out, download it where its terms are open.

    Args:
        name: a name of `hilum list datasets`, with or without its first part
        out: folder to download and unpack into (only sets that need no agreement)
        only: files whose name holds this text
    """
    card = card_of(name)
    print(steps(card, out))
    if out is None:
        return Fetched()
    wanted = [d for d in card.downloads if only is None or only.casefold() in d.name.casefold()]
    if card.terms != "open" or not card.downloads:
        why = (
            "its terms ask for an agreement of yours" if card.terms != "open" else "it has no address of a single file"
        )
        raise HilumError(f"{card.name} is not downloaded: {why}", fix="follow the steps above")
    if not wanted:
        known = ", ".join(d.name for d in card.downloads)
        raise HilumError(f"no file of {card.name} has {only!r} in its name", where="--only", fix=f"a part of: {known}")
    return Fetched(tuple(_get(download, Path(out)) for download in wanted))


def steps(card: DatasetCard, out: Path | None = None) -> str:
    """What a person must know and do, ending with the line that indexes the result."""
    place = str(out) if out is not None else "ROOT"
    lines = [f"{card.title} ({card.name})", f"  from      {card.url}", f"  licence   {card.licence}"]
    lines += [f"  terms     {card.terms}", f"  cite      {card.citation}", f"  groups    {card.group}"]
    lines += [f"  labels    {card.labels}", f"  split     {card.split}"]
    if card.counts:
        lines.append("  expected  " + ", ".join(f"{n:,} {what}" for what, n in card.counts.items()))
    lines += [f"  shares    images with {o.name}: {o.what}" for o in card.draws_from]
    lines.append("steps")
    lines += [f"  {number}. {text}" for number, text in enumerate(card.steps, 1)]
    for download in card.downloads:
        lines.append(f"     {download.url}  {download.checksum or 'no checksum is published'}")
    if card.files:
        lines.append(f"  {len(card.steps) + 1}. Check that {place} holds: {', '.join(card.files)}")
    lines.append(f"  {len(card.steps) + 1 + bool(card.files)}. hilum index {place} --out STUDY --dataset {card.name}")
    return "\n".join(lines)


def _get(download: Download, out: Path) -> Path:
    """The file below ``out``, checked, unpacked beside itself. One that is there and right is not fetched again."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = f"the folder cannot be written: {error.strerror}"
        raise HilumError(told, where=str(out), fix="choose another --out") from None
    path = out / download.name
    if not (path.is_file() and download.checksum and _digest(path, download.checksum) == download.checksum):
        _download(download, path)
    print(f"  {path.name}: {_digest(path, download.checksum or 'sha256:')}")
    if path.name.endswith((".zip", ".tar", ".tar.gz", ".tgz")):
        print(f"  {path.name}: {unpack(path, out)} files unpacked")
    return path


def _download(download: Download, path: Path) -> None:
    """Fetch into ``path``, which has its name only once it is whole and its checksum is right."""
    _allowed(download.url)
    part = path.with_name(path.name + ".part")
    print(f"  {path.name}: downloading {download.url}")
    try:
        with (
            urllib.request.build_opener(_Redirects).open(download.url, timeout=TIMEOUT) as answer,
            part.open("wb") as file,
        ):
            length = answer.headers.get("Content-Length")
            _need_space(path.parent, int(length or 0))
            shutil.copyfileobj(answer, file, _BLOCK)
            written = file.tell()
    except HilumError:
        part.unlink(missing_ok=True)
        raise
    except (OSError, urllib.error.URLError, http.client.HTTPException, ValueError) as error:
        if getattr(error, "filename", None) == str(part):  # of this machine, not of the network
            told = f"{part.name} cannot be written: {error.strerror}"  # type: ignore[union-attr]
            raise HilumError(
                told, where=str(path.parent), fix="remove what is there, or choose another --out"
            ) from None
        part.unlink(missing_ok=True)
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise HilumError(
            f"{path.name} could not be downloaded: {reason}",
            where=download.url,
            fix="follow the steps above on a machine with a network, and copy the files here",
        ) from None
    if length is not None and written != int(length):
        part.unlink()
        raise HilumError(f"{path.name} broke off: {written:,} of {int(length):,} bytes", fix="run the command again")
    if download.checksum and (found := _digest(part, download.checksum)) != download.checksum:
        part.unlink()
        raise HilumError(
            f"{path.name} is not the published file: {found}, not {download.checksum}", fix="run the command again"
        )
    part.replace(path)


def _allowed(url: str) -> None:
    told = urllib.parse.urlsplit(url)
    if told.scheme != "https" and not (told.scheme == "http" and told.hostname in _LOCAL):
        raise HilumError("only https addresses are fetched", where=url)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """An address that is fetched may send on to such an address only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _allowed(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _digest(path: Path, like: str) -> str:
    kind = like.partition(":")[0]
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"


def _need_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + _SPARE > free:
        raise HilumError(
            f"{size:,} bytes do not fit the {free:,} that are free", where=str(folder), fix="another --out"
        )


def unpack(archive: Path, out: Path) -> int:
    """Write the regular files of a .zip or .tar below ``out``; returns how many.

    A member that would leave ``out``, take the place of the archive or of a link, a link, a device, or more bytes than
    200 times the archive or than the disk holds is a :class:`HilumError` before anything of it is written; so is, while
    it is unpacked, what no file can be made of. AppleDouble twins (``._*``) are left out.
    """
    written, budget = 0, _INFLATION * archive.stat().st_size
    try:
        for name, size, stream in _members(archive):
            target = _below(out, name, archive)
            budget -= size
            if budget < 0:
                raise HilumError(f"{archive.name} unpacks to more than {_INFLATION} times its size", where=str(out))
            _need_space(out, size)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.parent.resolve().is_relative_to(out.resolve()):
                raise HilumError(f"{archive.name} would write through a link", where=str(target.parent))
            if target.is_symlink() or (target.exists() and target.samefile(archive)):
                raise HilumError(f"{archive.name} would write over a link or itself", where=str(target.parent))
            with target.open("wb") as file:
                _copy(stream, file, size, archive)
            written += 1
    except NotImplementedError:
        raise HilumError(f"{archive.name} is packed in a way that is not read", fix="unpack it by hand") from None
    except OSError as error:  # a name that is too long, or a folder and a file of one name
        reason = error.strerror or type(error).__name__
        raise HilumError(f"{archive.name} cannot be unpacked: {reason}", where=str(out)) from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise HilumError(
            f"{archive.name} is damaged ({type(error).__name__})", fix="remove it and fetch again"
        ) from None
    return written


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(name, size, bytes) of every file of an archive."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                if (info.external_attr >> 16) & 0o170000 == 0o120000:
                    raise HilumError(f"{archive.name} holds a link", fix="unpack it by hand where you trust it")
                if info.flag_bits & 1:
                    raise HilumError(f"{archive.name} is encrypted", fix="unpack it by hand")
                if not info.is_dir() and not PurePosixPath(info.filename).name.startswith("._"):
                    with bundle.open(info) as stream:
                        yield info.filename, info.file_size, stream
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir() or PurePosixPath(member.name).name.startswith("._"):
                continue
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise HilumError(f"{archive.name} holds a link or a device", fix="unpack it by hand where you trust it")
            yield member.name, member.size, content


def _below(out: Path, name: str, archive: Path) -> Path:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or ":" in parts.parts[0]:
        raise HilumError(f"{archive.name} names a file outside its folder", fix="do not unpack it")
    return out / parts


def _copy(stream: IO[bytes], file: IO[bytes], size: int, archive: Path) -> None:
    """At most ``size`` bytes, which is what the archive said."""
    left = size
    while block := stream.read(min(_BLOCK, left + 1)):
        left -= len(block)
        if left < 0:
            raise HilumError(f"{archive.name} holds more than it says")
        file.write(block)
