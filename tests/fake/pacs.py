"""Archives for tests: a DICOMweb server of the standard library and a DIMSE one of pynetdicom, both on loopback.

They share nothing with the code under test: the web server answers from files that pydicom parsed, and writes its own
multipart messages.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydicom import dcmread
from pydicom.dataset import Dataset

KEYS = {
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "SOPInstanceUID": "00080018",
    "SOPClassUID": "00080016",
    "PatientID": "00100020",
    "AccessionNumber": "00080050",
    "StudyDate": "00080020",
    "Modality": "00080060",
}


@dataclass
class Store:
    """What an archive holds: the bytes of files, and what queries read of them."""

    files: dict[str, bytes] = field(default_factory=dict)  # SOP Instance UID -> file
    about: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, content: bytes) -> str:
        data = dcmread(io.BytesIO(content), stop_before_pixels=True)
        uid = str(data.SOPInstanceUID)
        self.files[uid] = content
        self.about[uid] = {k: str(data.get(k, "")) for k in KEYS}
        return uid

    def select(self, level: str, **asked: str) -> list[dict[str, str]]:
        """One row a study, series or instance that matches."""
        rows: dict[str, dict[str, str]] = {}
        for about in self.about.values():
            if all(_matches(about.get(k, ""), v) for k, v in asked.items() if v and k in about):
                rows.setdefault(about[level], about)
        return list(rows.values())


def _matches(value: str, asked: str) -> bool:
    if re.fullmatch(r"\d*-\d*", asked) and asked != "-":
        first, last = asked.split("-")
        return (first or "0") <= value <= (last or "9")
    return value == asked


@dataclass
class Habits:
    """Faults of the web server. ``fails``: path pattern -> statuses to answer first."""

    stores: bool = True
    alters: str = ""  # keyword that is altered when an instance is stored
    filters: bool = True  # False: every query is answered with everything
    page: int = 1000
    token: str = ""
    fails: dict[str, list[int]] = field(default_factory=dict)
    cuts: int = 0  # answers to break off in the middle, first ones
    stalls: float = 0.0  # seconds before anything is answered
    single_part: bool = False  # retrieves as application/dicom
    no_wildcard: bool = False  # 406 for transfer-syntax=*
    redirects: str = ""
    junk: bytes = b""  # sent in place of an instance


@dataclass
class WebServer:
    url: str
    store: Store
    habits: Habits
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers


@contextlib.contextmanager
def web_server(habits: Habits | None = None) -> Iterator[WebServer]:
    server = WebServer("", Store(), habits or Habits())

    class Handler(_Handler):
        told = server

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}/dicom-web"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    told: WebServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _refused(self) -> bool:
        habits = self.told.habits
        self.told.requests.append((self.command, self.path, dict(self.headers)))
        time.sleep(habits.stalls)
        if habits.token and self.headers.get("Authorization") != f"Bearer {habits.token}":
            self._answer(401)
            return True
        if habits.redirects:
            self._answer(302, Location=habits.redirects)
            return True
        for pattern, statuses in habits.fails.items():
            if statuses and re.search(pattern, self.path):
                self._answer(statuses.pop(0))
                return True
        return False

    def do_GET(self) -> None:
        if self._refused():
            return
        parts = urlsplit(self.path)
        at = re.fullmatch(
            r"/dicom-web/studies(?:/([^/]+))?(?:/series(?:/([^/]+))?)?(?:/instances(?:/([^/]+))?)?", parts.path
        )
        if at is None:
            self._answer(404)
        elif at[3]:
            self._instance(at[3])
        else:
            self._search(at, dict(parse_qsl(parts.query)))

    def _search(self, at: re.Match[str], asked: dict[str, str]) -> None:
        level = (
            "SOPInstanceUID"
            if "/instances" in at[0]
            else "SeriesInstanceUID"
            if "/series" in at[0]
            else "StudyInstanceUID"
        )
        limit, offset = int(asked.pop("limit", 10**6)), int(asked.pop("offset", 0))
        asked = asked if self.told.habits.filters else {}
        asked |= {k: v for k, v in (("StudyInstanceUID", at[1]), ("SeriesInstanceUID", at[2])) if v}
        rows = self.told.store.select(level, **asked)
        rows = rows[offset : offset + min(limit, self.told.habits.page)]
        if not rows:
            self._answer(204)
            return
        answers = [{KEYS[k]: {"vr": "LO", "Value": [v]} for k, v in row.items() if v} for row in rows]
        self._answer(200, json.dumps(answers).encode(), **{"Content-Type": "application/dicom+json"})

    def _instance(self, uid: str) -> None:
        habits, content = self.told.habits, self.told.store.files.get(uid)
        if content is None:
            self._answer(404)
        elif habits.no_wildcard and "transfer-syntax=*" in self.headers["Accept"]:
            self._answer(406)
        elif habits.single_part:
            self._answer(200, habits.junk or content, **{"Content-Type": "application/dicom"})
        else:
            content = habits.junk or content
            body = b"--frontier\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--frontier--\r\n"
            kind = 'multipart/related; type="application/dicom"; boundary=frontier'
            if habits.cuts:
                habits.cuts -= 1
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                return
            self._answer(200, body, **{"Content-Type": kind})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._refused():
            return
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
        assert boundary is not None
        for part in body.split(b"--" + boundary[1].encode())[1:-1]:
            content = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            habits = self.told.habits
            if habits.alters:
                data = dcmread(io.BytesIO(content))
                setattr(data, habits.alters, "ALTERED")
                buffer = io.BytesIO()
                data.save_as(buffer)
                content = buffer.getvalue()
            if habits.stores:
                self.told.store.add(content)
        self._answer(200, b"{}", **{"Content-Type": "application/dicom+json"})

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@dataclass
class Node:
    """A DIMSE archive. ``refuses``: SOP Instance UIDs that it cannot send."""

    port: int
    title: str
    store: Store
    destinations: dict[str, tuple[str, int]] = field(default_factory=dict)
    stores: bool = True
    refuses: set[str] = field(default_factory=set)
    stalls: float = 0.0
    associations: int = 0

    @property
    def url(self) -> str:
        return f"dimse://{self.title}@127.0.0.1:{self.port}?calling=HILUM"


@contextlib.contextmanager
def node(
    *,
    title: str = "ARCHIVE",
    known: tuple[str, ...] = ("HILUM",),
    syntaxes: list[str] | None = None,
    tls: Any = None,
) -> Iterator[Node]:
    """C-FIND, C-GET, C-MOVE and C-STORE on a free port; callers must know its title and be known."""
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, build_context, evt
    from pynetdicom import sop_class as sop

    entity = AE(title)
    entity.require_called_aet, entity.require_calling_aet = True, list(known)
    for uid in (sop.StudyRootQueryRetrieveInformationModelFind, sop.StudyRootQueryRetrieveInformationModelGet,
                sop.StudyRootQueryRetrieveInformationModelMove):  # fmt: skip
        entity.add_supported_context(uid)
    offered = syntaxes or list(ALL_TRANSFER_SYNTAXES)
    for name in ("CTImageStorage", "MRImageStorage", "DigitalXRayImageStorageForPresentation", "BasicTextSRStorage"):
        entity.add_supported_context(getattr(sop, name), offered, scu_role=True, scp_role=True)
    held = Node(0, title, Store())

    def wanted(event: Any, level: str) -> list[dict[str, str]]:
        keys = {k: event.identifier.get(k, "") for k in KEYS}
        uids = keys.pop("SOPInstanceUID")
        rows = held.store.select(level, **{k: str(v) for k, v in keys.items()})
        several = [uids] if isinstance(uids, str) and uids else list(uids or ())
        return [r for r in rows if not several or r["SOPInstanceUID"] in map(str, several)]

    def find(event: Any) -> Iterator[Any]:
        time.sleep(held.stalls)
        level = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
        for row in wanted(event, level[event.identifier.QueryRetrieveLevel]):
            answer = Dataset()
            answer.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
            for key in KEYS:
                if key in event.identifier:
                    setattr(answer, key, row[key])
            yield 0xFF00, answer
        yield 0x0000, None

    def send(event: Any) -> Iterator[Any]:
        rows = wanted(event, "SOPInstanceUID")
        yield len(rows)
        for row in rows:
            if row["SOPInstanceUID"] in held.refuses:
                continue
            yield 0xFF00, dcmread(io.BytesIO(held.store.files[row["SOPInstanceUID"]]))

    def move(event: Any) -> Iterator[Any]:
        place = held.destinations.get(event.move_destination)
        contexts = [build_context(uid, s) for uid in ("1.2.840.10008.5.1.4.1.1.1.1",) for s in offered]
        yield (*place, {"contexts": contexts}) if place is not None else (None, None)
        if place is not None:
            yield from send(event)

    def count(event: Any) -> None:
        held.associations += 1

    def keep(event: Any) -> int:
        if held.stores:
            chunked = event.request._dataset_path  # the client's setting is this process's
            held.store.add(chunked.read_bytes() if chunked else event.encoded_dataset())
        return 0x0000

    handlers = [(evt.EVT_C_FIND, find), (evt.EVT_C_GET, send), (evt.EVT_C_MOVE, move), (evt.EVT_C_STORE, keep)]
    handlers.append((evt.EVT_ACCEPTED, count))
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=tls)
    held.port = server.socket.getsockname()[1]
    try:
        yield held
    finally:
        server.shutdown()
