"""An archive that speaks DIMSE: C-FIND, C-GET (or C-MOVE to our own receiver) and C-STORE (PS3.4 B and C, PS3.7)."""

from __future__ import annotations

import contextlib
import os
import queue
import ssl
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import PresentationContext, StoragePresentationContexts, build_context, build_role

from hilum.core.errors import HilumError
from hilum.medical.dicom.codecs import NATIVE, ORDER
from hilum.medical.dicom.header import quiet
from hilum.medical.pacs.address import Certificates, DimseAddress
from hilum.medical.pacs.guard import PDU, Guard
from hilum.medical.pacs.query import ANSWERS, Answer
from hilum.medical.pacs.transfer import Arrival, Manners, Pace, Ref, Trouble

FIND, GET, MOVE = (f"1.2.840.10008.5.1.4.1.2.2.{n}" for n in (1, 3, 2))  # Study Root (PS3.4 C.6.2)
_MOST = 128  # presentation contexts of an association (PS3.8 7.1.1.13)
_ANSWER = 1 << 24  # bytes of one C-FIND answer
_VIDEO = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (100, 102, 103))
SYNTAXES = [*dict.fromkeys((ExplicitVRLittleEndian, *sorted(NATIVE), *ORDER, *_VIDEO))]
_SUCCESS, _REFUSED, _CANNOT = 0x0000, 0x0124, 0xC000
_REASONS = {0xA700: "out_of_resources", 0xA900: "refused", 0xC000: "refused", 0x0122: "sop_class_refused"}


class Dimse:
    """:class:`~hilum.medical.pacs.transfer.Peer` over DIMSE. Instances go to disk as they come."""

    batch = 32

    def __init__(self, address: DimseAddress, manners: Manners, certificates: Certificates | None = None) -> None:
        self._to, self._manners, self._pace = address, manners, Pace(manners)
        self._ae = _entity(address.calling, manners)
        self._tls = (_context(certificates), address.host) if certificates else None
        self._finding: Any = None
        self._getting: Any = None
        self._storing: Any = None
        self._offered: dict[tuple[str, str], None] = {}  # SOP class and syntax of what is sent
        self._refused: dict[tuple[str, str], str] = {}

    def studies(self, filters: Mapping[str, str]) -> Iterator[Answer]:
        asked = dict.fromkeys(
            ("StudyInstanceUID", "PatientID", "AccessionNumber", "StudyDate", "ModalitiesInStudy"), ""
        )
        yield from self._find("STUDY", {**asked, **filters})

    def series(self, study: str) -> Iterator[Answer]:
        yield from self._find("SERIES", {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": ""})

    def instances(self, study: str, series: str, instance: str = "") -> Iterator[Answer]:
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": instance, "SOPClassUID": ""}
        yield from self._find("IMAGE", keys)

    def _find(self, level: str, keys: Mapping[str, str]) -> list[Answer]:
        return self._manners.persist(lambda: self._ask(level, keys))

    def _ask(self, level: str, keys: Mapping[str, str]) -> list[Answer]:
        self._pace.wait()
        if self._finding is None or not self._finding.is_established:
            self._finding = self._associate(
                [build_context(FIND, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])], _ANSWER
            )
        answers = []
        with quiet():
            for status, found in self._finding.send_c_find(_identifier(level, keys), FIND):
                self._finding.guard.restart()
                code = status.get("Status")
                if code in (0xFF00, 0xFF01) and found is not None:
                    answers.append(_flat(found, keys))
                    if len(answers) > ANSWERS:
                        _release(self._finding)
                        raise Trouble("too_many_answers")
                elif code != _SUCCESS:
                    raise self._failed(self._finding, code)
        return answers

    def fetch(self, refs: Sequence[Ref], folder: Path) -> Iterator[Arrival]:
        by_move = self._to.move is not None
        yield from (self._move if by_move else self._get)(refs, folder)

    def _get(self, refs: Sequence[Ref], folder: Path) -> Iterator[Arrival]:
        """Over one association as long as the SOP classes stay the same."""
        classes = tuple(dict.fromkeys(r.sop_class for r in refs))
        if self._getting is None or not self._getting.is_established or self._getting.classes != classes:
            if self._getting is not None:
                _release(self._getting)
            contexts = [build_context(GET, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]), *_receiving(classes)]
            roles = [build_role(uid, scp_role=True) for uid in dict.fromkeys(c.abstract_syntax for c in contexts[1:])]
            self._getting = self._associate(contexts, self._manners.limits.max_bytes, roles)
            self._getting.classes = classes
        self._getting.guard.restart()
        inbox = _Inbox(refs, folder, self._pace, self._getting.guard)
        self._getting.bind(evt.EVT_C_STORE, inbox.receive)
        association, self._getting = self._getting, None
        try:
            yield from self._gather(association, association.send_c_get, inbox, refs)
            self._getting = association
        finally:
            if self._getting is None:  # left in the middle of an answer: of no use to the next request
                _release(association)

    def _move(self, refs: Sequence[Ref], folder: Path) -> Iterator[Arrival]:
        """Into a receiver that lives as long as the request, on one address, for one calling entity."""
        assert self._to.move is not None
        guard = Guard(self._manners.limits.max_bytes, _patience(self._manners))
        inbox = _Inbox(refs, folder, self._pace, guard)
        receiver = _entity(self._to.calling, self._manners)
        receiver.require_called_aet, receiver.require_calling_aet = True, [self._to.called]
        receiver.maximum_associations = 2
        for context in _receiving([*dict.fromkeys(r.sop_class for r in refs)]):
            receiver.add_supported_context(context.abstract_syntax, context.transfer_syntax)
        handlers = [(evt.EVT_CONN_OPEN, guard.attach), (evt.EVT_C_STORE, inbox.receive)]
        try:
            server = receiver.start_server(self._to.move, block=False, evt_handlers=handlers)
        except OSError:
            raise HilumError(
                "our receiver cannot listen there", where="move=", fix="a free port of this machine"
            ) from None
        association = None
        try:
            association = self._associate(
                [build_context(MOVE, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])], _ANSWER
            )
            move = association.send_c_move
            yield from self._gather(association, lambda i, m: move(i, self._to.calling, m), inbox, refs)
        finally:
            if association is not None:
                _release(association)
            server.shutdown()

    def _gather(self, association: Any, send: Any, inbox: _Inbox, refs: Sequence[Ref]) -> Iterator[Arrival]:
        """What comes while the request runs. Refs are of one series."""
        self._pace.wait()
        uids = [r.instance for r in refs]
        keys = {"StudyInstanceUID": refs[0].study, "SeriesInstanceUID": refs[0].series}
        identifier = _identifier("IMAGE", keys)
        identifier.SOPInstanceUID = uids if len(uids) > 1 else uids[0]
        code: int | None = None
        with quiet():
            for status, _ in send(identifier, MOVE if self._to.move else GET):
                code = status.get("Status")
                yield from inbox.arrived()
        yield from inbox.arrived()
        if code is None or 0xA700 <= code <= 0xA702 or inbox.guard.broken:
            if inbox.guard.broken and len(refs) == 1:
                yield Arrival(refs[0], reason=inbox.guard.broken)
                return
            raise self._failed(association, code)
        if code == 0xA801:
            raise HilumError("the archive does not know our AE title as a destination", fix="register calling= there")

    def store(self, file: Path, ref: Ref, syntax: str) -> None:
        self._pace.wait()
        pair = (ref.sop_class, syntax)
        if pair in self._refused:
            raise Trouble(self._refused[pair])
        if self._storing is None or not self._storing.is_established or pair not in self._offered:
            if self._storing is not None:
                _release(self._storing)
            self._offered = dict([*self._offered.items(), (pair, None)][-_MOST:])
            self._storing = self._associate([build_context(*p) for p in self._offered], _ANSWER)
            if pair in self._refused:
                raise Trouble(self._refused[pair])
        with quiet():
            try:
                status = self._storing.send_c_store(file)
            except (ValueError, AttributeError, KeyError, OSError, RuntimeError):
                raise Trouble("unreadable") from None
        self._storing.guard.restart()
        code = status.get("Status")
        if code is None:
            raise self._failed(self._storing, code)
        if code != _SUCCESS and code & 0xF000 != 0xB000:  # a warning: stored, perhaps altered, which is compared
            raise _status(code)

    def close(self) -> None:
        for association in (self._finding, self._getting, self._storing):
            if association is not None:
                _release(association)

    def _associate(self, contexts: list[Any], most: int, roles: Sequence[Any] = ()) -> Any:
        guard = Guard(most, _patience(self._manners))
        handlers, to = [(evt.EVT_CONN_OPEN, guard.attach)], self._to
        more: dict[str, Any] = {"ext_neg": list(roles), "tls_args": self._tls, "evt_handlers": handlers}
        try:
            association = self._ae.associate(to.host, to.port, contexts, to.called, PDU, **more)
        except OSError:  # the host has no address
            raise Trouble("unreachable", again=True) from None
        asked = {c.context_id: c for c in association.requestor.requested_contexts}
        refused = {
            (str(asked[c.context_id].abstract_syntax), str(syntax)): c.result
            for c in association.rejected_contexts
            for syntax in asked[c.context_id].transfer_syntax  # the answer's own syntax means nothing (PS3.8 9.3.3.2)
        }
        if not roles:
            self._refused |= {p: "syntax_refused" if code == 4 else "sop_class_refused" for p, code in refused.items()}
        if association.is_established:
            association.guard = guard
            if roles and contexts[0].abstract_syntax not in {c.abstract_syntax for c in association.accepted_contexts}:
                _release(association)
                raise HilumError(
                    "the archive offers no C-GET", fix="&move=ADDRESS:PORT in its address, where it may send to us"
                )
            return association
        if association.is_rejected:
            raise _rejection(association)
        if refused and not guard.broken:  # it knows us, and offers none of what we ask for
            raise Trouble("service_refused" if roles else self._refused[next(reversed(refused))])
        raise Trouble(guard.broken or "unreachable", again=True)

    def _failed(self, association: Any, code: int | None) -> Exception:
        """After a request without success: the association is given up."""
        silence = "aborted" if association.is_aborted else "timeout"
        _release(association)
        return Trouble(association.guard.broken or silence, again=True) if code is None else _status(code)


class _Inbox:
    """Takes C-STORE sub-operations: what was asked for is kept, anything else is refused."""

    def __init__(self, refs: Sequence[Ref], folder: Path, pace: Pace, guard: Guard) -> None:
        self._wanted, self._folder, self._pace = {r.instance: r for r in refs}, folder, pace
        self._queue: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self.guard = guard

    def receive(self, event: Any) -> int:
        self.guard.restart()
        self._pace.wait()
        ref = self._wanted.pop(str(event.request.AffectedSOPInstanceUID), None)
        if ref is None:
            Path(event.dataset_path).unlink(missing_ok=True)
            return _REFUSED
        handle, name = tempfile.mkstemp(dir=self._folder)
        os.close(handle)
        try:
            Path(event.dataset_path).replace(name)
        except OSError:
            Path(name).unlink(missing_ok=True)
            return _CANNOT
        self._queue.put(Arrival(ref, Path(name)))
        return _SUCCESS

    def arrived(self) -> Iterator[Arrival]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._queue.get_nowait()


def _entity(title: str, manners: Manners) -> Any:
    entity = ApplicationEntity(title)
    entity.maximum_pdu_size = PDU
    entity.acse_timeout = entity.connection_timeout = entity.network_timeout = entity.dimse_timeout = manners.timeout
    return entity


def _patience(manners: Manners) -> float:
    """Seconds one message may take in all, however slowly it drips."""
    return max(600.0, 20 * manners.timeout)


def _receiving(classes: Sequence[str]) -> list[PresentationContext]:
    """One context a class and syntax, so that instances come as they are stored. Where classes are unknown or too
    many, one context a class, and the archive may transcode."""
    known = [c for c in classes if c]
    if len(known) == len(classes) and len(known) * len(SYNTAXES) < _MOST:
        return [build_context(c, s) for c in known for s in SYNTAXES]
    names = known if len(known) == len(classes) else [c.abstract_syntax for c in StoragePresentationContexts]
    return [build_context(c, SYNTAXES) for c in names[: _MOST - 1]]


def _identifier(level: str, keys: Mapping[str, str]) -> Dataset:
    data = Dataset()
    data.QueryRetrieveLevel = level
    if not all(value.isascii() for value in keys.values()):
        data.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in keys.items():
        setattr(data, keyword, value)
    return data


def _flat(found: Dataset, keys: Mapping[str, str]) -> Answer:
    flat = {}
    for keyword in keys:
        try:
            value = found.get(keyword)
        except Exception:  # one value of an answer is damaged; what is needed of it is checked by who asked
            continue
        if value is not None:
            several = hasattr(value, "append")
            flat[keyword] = "\\".join(map(str, value)) if several else str(value)
    return flat


def _status(code: int) -> Trouble:
    """PS3.4 B.2.3 and C.4."""
    known = code & 0xFF00 if code >= 0xA000 else code
    return Trouble(_REASONS.get(known, f"status_{code:04x}"), again=known == 0xA700)


def _rejection(association: Any) -> Exception:
    """PS3.8 9.3.4."""
    answer = association.acceptor.primitive
    result, source, why = (getattr(answer, n, None) for n in ("result", "result_source", "diagnostic"))
    if result == 2:
        return Trouble("busy", again=True)
    told = {(1, 3): "it does not know our AE title (calling=)", (1, 7): "its AE title is another"}.get(
        (source or 0, why or 0), "it gives no usable reason"
    )
    fix = "dimse://AET@host:port?calling=TITLE, and what its keeper has registered"
    return HilumError(f"the archive refuses the association: {told}", where="the archive's address", fix=fix)


def _release(association: Any) -> None:
    with contextlib.suppress(Exception):
        if association.is_established:
            association.release()
        if association.is_alive() and not association.is_released:
            association.abort()


def _context(certificates: Certificates) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=certificates.authorities and str(certificates.authorities))
        if certificates.own is not None:
            context.load_cert_chain(certificates.own, certificates.key)
    except (ssl.SSLError, OSError):
        raise HilumError(
            "a certificate or key cannot be read", where="--tls-*", fix="PEM files, key unencrypted"
        ) from None
    return context
