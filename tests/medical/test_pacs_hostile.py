"""Archives that mean harm, or behave as if they did."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import requests
from fake.deid import KEY
from fake.dicom import phantom, uid, write
from fake.pacs import Habits, web_server

from hilum.core.errors import HilumError
from hilum.medical.pacs import dicomweb
from hilum.medical.pacs.address import Certificates, parse_address
from hilum.medical.pacs.pull import pull
from hilum.medical.pacs.query import Answer, Query
from hilum.medical.pacs.transfer import Arrival, Manners, Ref, Trouble

MANNERS = Manners(retries=0, timeout=3.0, sleep=lambda seconds: None)


class _Answers:
    """Of one instance; ``twice``: told again after it came, as when a connection breaks behind it."""

    batch = 1

    def __init__(self, instances: Sequence[str], *, twice: bool = False) -> None:
        self._instances, self._twice = instances, twice

    def studies(self, filters: Mapping[str, str]) -> Iterator[Answer]:
        yield {"StudyInstanceUID": uid(1)}

    def series(self, study: str) -> Iterator[Answer]:
        yield {"SeriesInstanceUID": uid(1, 1)}

    def instances(self, study: str, series: str, instance: str = "") -> Iterator[Answer]:
        yield from ({"SOPInstanceUID": i} for i in self._instances)

    def fetch(self, refs: Sequence[Ref], folder: Path) -> Iterator[Arrival]:
        for ref in refs:
            yield Arrival(ref, write(folder / "came", phantom()))
            if self._twice:
                yield Arrival(ref, write(folder / "again", phantom()))
                yield Arrival(ref, reason="pdu_too_long")

    def store(self, file: Path, ref: Ref, syntax: str) -> None: ...

    def close(self) -> None: ...


def test_an_instance_that_is_told_twice_counts_once(tmp_path: Path) -> None:
    result = pull(_Answers([uid(1, 1, 1)], twice=True), [Query()], tmp_path / "in", KEY, MANNERS)
    assert (result.found, result.received, result.failed) == (1, 1, 0)
    assert len(list((tmp_path / "in").rglob("*.dcm"))) == 1 and not list((tmp_path / "in").rglob("again"))


def test_answers_without_a_uid_or_with_a_path_are_counted_and_the_rest_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_server() as server:
        server.store.add(write(tmp_path / "a.dcm", phantom(), instance=1).read_bytes())
        for wrong in ("", "../../../x", "..", "1.2\n"):
            server.store.about[f"?{wrong}"] = {**server.store.about[uid(1, 1, 1)], "SOPInstanceUID": wrong}
        peer = dicomweb.DicomWeb(parse_address(server.url), MANNERS)  # type: ignore[arg-type]
        result = pull(peer, [Query(exact=(("StudyInstanceUID", uid(1)),))], tmp_path / "in", KEY, MANNERS)
    assert (result.found, result.received, result.failed, result.invalid) == (5, 1, 4, 4)
    assert {p.name for p in tmp_path.iterdir()} == {"a.dcm", "in"}


def test_a_list_without_an_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page has new studies that nobody asked for."""
    monkeypatch.setattr(dicomweb, "ANSWERS", 2000)
    peer = dicomweb.DicomWeb(parse_address("http://127.0.0.1:9/dicom-web"), MANNERS)  # type: ignore[arg-type]
    pages = []

    def search(limit: int, offset: int) -> list[dict[str, object]]:
        pages.append(offset)
        return [{"0020000D": {"vr": "UI", "Value": [f"1.2.{offset + n}"]}} for n in range(limit)]

    with pytest.raises(Trouble, match="too_many_answers"):
        for _ in peer._pages("StudyInstanceUID", search):
            assert len(pages) < 10
    assert len(pages) == 5


def test_a_dripping_answer_ends(tmp_path: Path) -> None:
    """One byte now and then never meets a time limit between two bytes."""
    listening = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        link, _ = listening.accept()
        with link:
            link.recv(1 << 16)
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            for _ in range(100):
                try:
                    link.sendall(b"x")
                except OSError:
                    return
                time.sleep(0.05)

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    begun = time.monotonic()
    with requests.get(f"http://127.0.0.1:{listening.getsockname()[1]}/", stream=True, timeout=3) as answer:
        bounded = dicomweb._Bounded(answer.raw, 1 << 20, 0.4)
        with pytest.raises(Trouble, match="timeout"):
            while bounded.read():
                pass
    assert time.monotonic() - begun < 3
    listening.close()


def test_no_credentials_travel_in_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of ~/.netrc neither, where --allow-http is written out."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1\nlogin anna\npassword geheim\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with web_server() as server:
        here = parse_address(server.url)
        assert isinstance(here, dicomweb.WebAddress)
        for address, sent in ((here, True), (dicomweb.WebAddress(here.url, here.host, False, False), False)):
            session = dicomweb._Session(address, Certificates(), MANNERS)
            session.get(f"{here.url}/studies")
            assert ("Authorization" in server.requests[-1][2]) is sent


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/", "file:///etc/passwd", "http://169.254.169.254/latest"])
def test_redirects_are_not_followed(tmp_path: Path, place: str) -> None:
    with web_server(Habits(redirects=place)) as server:
        peer = dicomweb.DicomWeb(parse_address(server.url), MANNERS)  # type: ignore[arg-type]
        with pytest.raises(HilumError, match="redirects"):
            pull(peer, [Query(modality="DX")], tmp_path / "in", KEY, MANNERS)
