"""Sends files to an archive and reads every one of them back: what could not be verified is a failure.

Archives exist that answer 200 and store nothing, or store something else. Nothing is ever deleted or overwritten.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hilum.core.errors import HilumError
from hilum.data.identity import IdentityKey
from hilum.data.ledger import path_text
from hilum.medical.pacs.compare import differences
from hilum.medical.pacs.query import is_uid
from hilum.medical.pacs.transfer import (
    GONE,
    SILENCE,
    Described,
    Ledger,
    Manners,
    Peer,
    Trouble,
    describe,
    private_folder,
    sha256_of,
)

_NO_IMAGE = ("not_dicom", "empty_file", "special_file")  # what lies beside images in a folder: a report, a table


@dataclass
class Pushed:
    """found = verified + skipped + failed."""

    found: int = 0
    verified: int = 0
    skipped: int = 0
    failed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def exit_code(self) -> int:
        return 3 if self.failed else 0


@dataclass(frozen=True, repr=False)
class _Item:
    file: Path
    described: Described | None
    reason: str = ""


def push(
    peer: Peer,
    paths: Sequence[Path],
    out: Path,
    key: IdentityKey,
    manners: Manners,
    *,
    identified: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Send, then read back. The ledger ``OUT/private/transfer.parquet`` lists every file.

    Files without PatientIdentityRemoved YES are refused before anything is sent, unless ``identified``. An instance that
    the archive holds already is skipped where it is the same, and a failure where it is not.
    """
    items = [_item(file, manners) for file in _files(paths)]
    if not items:
        raise HilumError(
            "there is no file at any of the paths", where="PATHS", fix="give files or folders that hold some"
        )
    named = sum(i.described is not None and not i.described.deidentified for i in items)
    if named and not identified:
        raise HilumError(
            f"{named} of {len(items)} files may name their patients: PatientIdentityRemoved is not YES",
            where="PATHS",
            fix="hilum deid IN OUT first, or --identified where these may leave as they are",
        )
    result = Pushed(found=len(items))
    if dry_run:
        result.reasons = Counter(i.reason for i in items if i.reason)
        result.skipped = sum(i.reason in _NO_IMAGE for i in items)
        result.failed = sum(bool(i.reason) for i in items) - result.skipped
        return result
    with private_folder(out) as incoming:
        work = _Work(peer, incoming, Ledger(out, key, manners.tell), manners)
        try:
            for item in items:
                work.item(item)
        finally:
            counts = work.ledger.counts
            result.verified, result.skipped, result.failed = (counts[n] for n in ("verified", "skipped", "failed"))
            result.reasons = work.ledger.reasons
            work.ledger.write()
    return result


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Regular files, in a fixed order; links are not followed, folders called ``private`` never leave."""
    for number, path in enumerate(paths, 1):
        if not path.exists():  # its name may be a patient's
            told = "there is nothing at one of the paths"
            raise HilumError(told, where=f"path {number} of {len(paths)}", fix="give files or folders")
        if not path.is_dir():
            yield path
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(f for f in folders if f != "private")
            for name in sorted(names):
                file = Path(folder, name)
                if file.is_file() and not file.is_symlink():
                    yield file


def _item(file: Path, manners: Manners) -> _Item:
    try:
        if file.stat().st_size == 0:
            return _Item(file, None, "empty_file")
        described = describe(file, manners.limits, marks=True)
    except OSError:
        return _Item(file, None, "unreadable")
    except Trouble as trouble:
        return _Item(file, None, trouble.reason)
    ref = described.ref
    valid = all(is_uid(uid) for uid in (ref.study, ref.series, ref.instance, ref.sop_class, described.syntax))
    return _Item(file, described, "" if valid else "invalid_uid")


@dataclass
class _Work:
    peer: Peer
    incoming: Path
    ledger: Ledger
    manners: Manners
    sent: dict[str, str] = field(default_factory=dict)  # digest of an instance -> SHA-256 of the file
    silent: int = 0

    def item(self, item: _Item) -> None:
        path = path_text(os.fsencode(item.file))
        if item.described is None or item.reason:
            status = "skipped" if item.reason in _NO_IMAGE else "failed"
            ref = None if item.described is None else item.described.ref
            self.ledger.add(ref, status, item.reason, path=path)
            return
        sent, digest = item.described.ref, sha256_of(item.file)
        about = {"path": path, "bytes": item.file.stat().st_size, "sha256": digest}
        about |= {"transfer_syntax": item.described.syntax}
        name = self.ledger.ids(sent)[2]
        if name in self.sent:
            same = self.sent[name] == digest
            self.ledger.add(sent, "skipped" if same else "failed", "sent_before" if same else "uid_conflict", **about)
            return
        self.sent[name] = digest
        try:
            status, reason, detail = self._send(item)
            self.silent = 0
        except Trouble as trouble:
            status, reason, detail = "failed", trouble.reason, trouble.detail
            self.silent = self.silent + 1 if reason in GONE else 0
        self.ledger.add(sent, status, reason, detail=detail, **about)
        if self.silent >= SILENCE:
            fix = "check the address and the network; then the same command goes on"
            raise HilumError("the archive no longer answers", where="DEST", fix=fix)

    def _send(self, item: _Item) -> tuple[str, str, str]:
        """(status, reason, keywords that differ)."""
        assert item.described is not None
        ref, syntax, manners = item.described.ref, item.described.syntax, self.manners
        if self._holds(item):
            differs = self._read_back(item)
            return ("failed", "held_differently", " ".join(differs)) if differs else ("skipped", "present", "")
        manners.persist(lambda: self.peer.store(item.file, ref, syntax))
        for attempt in range(manners.retries + 1):
            if self._holds(item):
                break
            if attempt < manners.retries:
                manners.wait(attempt, Trouble("not_stored"))  # some archives index what they stored a little later
        else:
            return "failed", "not_stored", ""
        differs = self._read_back(item)
        return ("failed", "stored_differently", " ".join(differs)) if differs else ("verified", "", "")

    def _holds(self, item: _Item) -> bool:
        assert item.described is not None
        ref = item.described.ref
        try:
            return any(
                answer.get("SOPInstanceUID", "").strip(" \0") == ref.instance
                for answer in self.peer.instances(ref.study, ref.series, ref.instance)
            )
        except Trouble as trouble:
            if trouble.reason == "not_found":  # of a study that is not there
                return False
            raise

    def _read_back(self, item: _Item) -> list[str]:
        assert item.described is not None
        ref = item.described.ref

        def fetch() -> Path:
            arrivals = list(self.peer.fetch([ref], self.incoming))
            if not arrivals:
                raise Trouble("not_read_back", again=True)
            if arrivals[0].file is None:
                raise Trouble("not_read_back", detail=arrivals[0].reason)
            return arrivals[0].file

        returned = self.manners.persist(fetch)
        try:
            return differences(item.file, returned, self.manners.limits)
        finally:
            returned.unlink(missing_ok=True)
