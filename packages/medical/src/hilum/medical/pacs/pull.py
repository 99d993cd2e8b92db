"""Copies what matches from an archive into a folder, each instance once, whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError
from hilum.data.identity import IdentityKey
from hilum.medical.pacs.query import Query, is_uid
from hilum.medical.pacs.transfer import (
    GONE,
    SILENCE,
    Arrival,
    Ledger,
    Manners,
    Peer,
    Ref,
    Trouble,
    describe,
    private_folder,
    settle,
    sha256_of,
)

_Asked = tuple[list[Ref], Query]


@dataclass
class Pulled:
    """found = received + skipped + failed. ``unasked``: studies that the archive answered although they do not match;
    ``invalid``: studies, series and instances whose UID is none, which are among the failed."""

    found: int = 0
    received: int = 0
    skipped: int = 0
    failed: int = 0
    studies: int = 0
    series: int = 0
    unasked: int = 0
    invalid: int = 0
    cut: bool = False  # by the limit
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def exit_code(self) -> int:
        return 3 if self.failed else 0


def pull(
    peer: Peer,
    queries: Iterable[Query],
    out: Path,
    key: IdentityKey,
    manners: Manners,
    *,
    limit: int | None = None,
    dry_run: bool = False,
) -> Pulled:
    """Fetch into ``OUT/<study digest>/<series digest>/<instance digest>.dcm``.

    Instances that an earlier pull left and that are unchanged are skipped. A dry run only counts. The ledger is written
    whatever ends the pull.
    """
    result = Pulled()
    plan = _plan(peer, queries, result, limit)
    if dry_run:
        result.found = sum(len(refs) for refs, _ in plan) + result.invalid
        return result
    with private_folder(out) as incoming:
        work = _Work(peer, out, incoming, Ledger(out, key, manners.tell), manners, result)
        try:
            for refs, query in plan:
                work.series(refs, query)
        finally:
            counts = work.ledger.counts
            result.received, result.skipped, result.failed = (counts[n] for n in ("received", "skipped", "failed"))
            result.found, result.reasons = counts.total() + result.invalid, work.ledger.reasons
            if result.invalid:
                result.failed += result.invalid
                result.reasons["invalid_uid"] += result.invalid
            work.ledger.write()
    return result


def _plan(peer: Peer, queries: Iterable[Query], result: Pulled, limit: int | None) -> Iterator[_Asked]:
    """Instances to fetch, series by series, and what was asked; each study once, however many queries it answers."""
    try:
        yield from _matching(peer, queries, result, limit)
    except Trouble as trouble:
        told = f"the archive gives no answer to a query ({trouble.reason})"
        raise HilumError(told, where="SOURCE", fix=_way_out(trouble.reason)) from None


def _way_out(reason: str) -> str:
    if reason == "too_many_answers":
        return "narrow the query, for instance by --date"
    if reason.endswith("refused") or reason.startswith("status_"):  # DIMSE
        return "ask the archive's keeper to let this AE title query it"
    if reason in ("unexpected_answer", "not_found") or reason.startswith("http_4"):
        return "check the address: it is the base of the service, as in https://host/dicom-web"
    return "check the address and the network; then the same command goes on"


def _matching(peer: Peer, queries: Iterable[Query], result: Pulled, limit: int | None) -> Iterator[_Asked]:
    left = float("inf") if limit is None else limit
    seen: set[str] = set()
    for query in queries:
        for study in peer.studies(query.filters()):
            uid = study.get("StudyInstanceUID", "").strip(" \0")
            if not query.answered_by(study):
                result.unasked += 1
                continue
            if not is_uid(uid):
                result.invalid += 1
                continue
            if uid in seen:
                continue
            seen.add(uid)
            result.studies += 1
            for refs in _series(peer, uid, query, result):
                if left <= 0:
                    result.cut = True
                    return
                kept = refs[: int(min(left, len(refs)))]
                result.cut |= len(kept) < len(refs)
                left -= len(kept)
                result.series += 1
                yield kept, query


def _series(peer: Peer, study: str, query: Query, result: Pulled) -> Iterator[list[Ref]]:
    seen: set[str] = set()
    for answer in peer.series(study):
        series = answer.get("SeriesInstanceUID", "").strip(" \0")
        if series in seen or not query.wants(answer):
            continue
        seen.add(series)
        if not is_uid(series):
            result.invalid += 1
            continue
        refs = {}
        for found in peer.instances(study, series):
            instance = found.get("SOPInstanceUID", "").strip(" \0")
            if not is_uid(instance):
                result.invalid += 1
                continue
            sop_class = found.get("SOPClassUID", "").strip(" \0")
            refs[instance] = Ref(study, series, instance, sop_class if is_uid(sop_class) else "")
        if refs:
            yield list(refs.values())


@dataclass
class _Work:
    peer: Peer
    out: Path
    incoming: Path
    ledger: Ledger
    manners: Manners
    result: Pulled
    silent: int = 0
    query: Query = field(default_factory=Query)

    def series(self, refs: Sequence[Ref], query: Query) -> None:
        self.query = query
        missing = [ref for ref in refs if not self._present(ref)]
        for at in range(0, len(missing), self.peer.batch):
            self._batch(missing[at : at + self.peer.batch])

    def _target(self, ref: Ref) -> Path:
        study, series, instance = self.ledger.ids(ref)
        return self.out / study / series / f"{instance}.dcm"

    def _present(self, ref: Ref) -> bool:
        """Whether the file is there and is what was received; one that the ledger missed is read again."""
        target = self._target(ref)
        if not target.is_file() or target.is_symlink():
            return False
        digest, known = sha256_of(target), self.ledger.known(self.ledger.ids(ref)[2])
        if known is not None and known != digest:
            return False
        try:
            described = describe(target, self.manners.limits)
        except Trouble:
            return False
        if not _same(described.ref, ref) or self.query.contradiction(described.told):
            return False
        size = target.stat().st_size
        self.ledger.add(ref, "skipped", "present", bytes=size, sha256=digest, transfer_syntax=described.syntax)
        return True

    def _batch(self, refs: Sequence[Ref]) -> None:
        """Ask for several at once; what does not come is asked for again, one by one."""
        pending = {r.instance: r for r in refs}
        if len(refs) > 1:
            self._ask(refs, pending, 1)
        for ref in refs:
            attempt = 0
            while ref.instance in pending and attempt <= self.manners.retries:
                attempt += 1
                trouble = self._ask([ref], pending, attempt + (len(refs) > 1))
                if trouble is not None and trouble.again and attempt <= self.manners.retries:
                    self.manners.wait(attempt - 1, trouble)
                elif pending.pop(ref.instance, None):
                    reason = "not_sent" if trouble is None else trouble.reason
                    self.ledger.add(ref, "failed", reason, attempts=attempt)

    def _ask(self, refs: Sequence[Ref], pending: dict[str, Ref], attempt: int) -> Trouble | None:
        try:
            for arrival in self.peer.fetch(refs, self.incoming):
                if pending.pop(arrival.ref.instance, None) is None:  # told twice: it came, then the connection broke
                    if arrival.file is not None:
                        arrival.file.unlink(missing_ok=True)
                    continue
                self.silent = 0
                self._take(arrival, attempt)
        except Trouble as trouble:
            self._listen(trouble)
            return trouble
        return None

    def _listen(self, trouble: Trouble) -> None:
        self.silent = self.silent + 1 if trouble.reason in GONE else 0
        if self.silent > SILENCE + self.manners.retries:
            told = "the archive no longer answers"
            raise HilumError(told, where="SOURCE", fix="run the same command again later: it goes on")

    def _take(self, arrival: Arrival, attempts: int) -> None:
        """Keep a file that holds what was asked for."""
        ref, file = arrival.ref, arrival.file
        if file is None:
            self.ledger.add(ref, "failed", arrival.reason, attempts=attempts)
            return
        try:
            described = describe(file, self.manners.limits)
            if not _same(described.ref, ref):
                raise Trouble("wrong_instance")
            if keyword := self.query.contradiction(described.told):  # of another patient
                raise Trouble(f"wrong_instance:{keyword}")
        except Trouble as trouble:
            file.unlink(missing_ok=True)
            self.ledger.add(ref, "failed", trouble.reason, attempts=attempts)
            return
        about: dict[str, Any] = {
            "bytes": file.stat().st_size,
            "sha256": sha256_of(file),
            "transfer_syntax": described.syntax,
        }
        settle(file, self._target(ref))
        self.ledger.add(ref, "received", attempts=attempts, **about)


def _same(one: Ref, other: Ref) -> bool:
    return (one.study, one.series, one.instance) == (other.study, other.series, other.instance)
