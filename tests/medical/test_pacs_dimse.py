"""Pull and push by DIMSE, against an archive of pynetdicom on loopback."""

from __future__ import annotations

import io
import logging
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake.dicom import dataset, phantom, uid, write
from fake.pacs import Node, node
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from hilum.core.cli import main
from hilum.core.errors import HilumError
from hilum.medical.pacs.verbs import pull, push

QUICK: dict[str, Any] = {"retries": 1, "timeout": 5.0}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hilum.medical.pacs.transfer.Manners.wait", lambda *_: None)


def compressed(syntax: str, **options: Any) -> bytes:
    data = dataset(phantom(options["instance"]), StudyDate="20200115", bits=12, **options)
    if syntax in (RLELossless, JPEGLSLossless):
        data.compress(syntax, generate_instance_uid=False)
    buffer = io.BytesIO()
    if syntax == ImplicitVRLittleEndian:
        data.file_meta.TransferSyntaxUID = syntax
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def fill(held: Node) -> dict[str, bytes]:
    files = {}
    for i, syntax in enumerate([RLELossless, JPEGLSLossless, ImplicitVRLittleEndian, "", "", ""]):
        data = compressed(syntax, instance=i + 1, series=1 + i % 2, patient="PAT-1")
        files[held.store.add(data)] = data
    return files


def body(content: bytes) -> bytes:
    """A data set without file meta information, which the receiver writes itself."""
    length = struct.unpack("<I", content[140:144])[0]
    return content[144 + length :]


def files_of(out: Path) -> dict[str, bytes]:
    return {str(dcmread(p).SOPInstanceUID): p.read_bytes() for p in out.rglob("*.dcm")}


def test_get_copies_every_data_set_in_its_own_syntax(tmp_path: Path) -> None:
    with node() as held:
        files = fill(held)
        result = pull(held.url, tmp_path / "in", patient="PAT-1", **QUICK)
        again = pull(held.url, tmp_path / "in", date="20200101-", **QUICK)
    assert (result.found, result.received, result.failed) == (6, 6, 0)
    assert (again.received, again.skipped) == (0, 6)
    got = files_of(tmp_path / "in")
    assert {u: body(b) for u, b in got.items()} == {u: body(b) for u, b in files.items()}
    syntax = lambda b: str(dcmread(io.BytesIO(b)).file_meta.TransferSyntaxUID)  # noqa: E731
    assert {u: syntax(b) for u, b in got.items()} == {u: syntax(b) for u, b in files.items()}


def test_what_the_archive_does_not_send_fails_and_the_rest_arrives(tmp_path: Path) -> None:
    with node() as held:
        fill(held)
        held.refuses = {uid(1, 1, 1)}
        result = pull(held.url, tmp_path / "in", study=uid(1), **QUICK)
    assert (result.received, result.failed, dict(result.reasons), result.exit_code) == (5, 1, {"not_sent": 1}, 3)


def test_move_to_our_own_receiver(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with node() as held:
        files = fill(held)
        held.destinations["HILUM"] = ("127.0.0.1", port)
        result = pull(f"{held.url}&move=127.0.0.1:{port}", tmp_path / "in", study=uid(1), **QUICK)
        assert (result.received, result.failed) == (6, 0)
        assert {u: body(b) for u, b in files_of(tmp_path / "in").items()} == {u: body(b) for u, b in files.items()}
        held.destinations.clear()
        with pytest.raises(HilumError, match="as a destination"):
            pull(f"{held.url}&move=127.0.0.1:{port}", tmp_path / "other", study=uid(1), **QUICK)


def test_an_instance_beyond_the_limit_never_fills_the_disk(tmp_path: Path) -> None:
    with node() as held:
        for i, size in enumerate([(24, 32), (400, 400)]):
            buffer = io.BytesIO()
            dataset(phantom(i, size), instance=i + 1, StudyDate="20200115").save_as(buffer, enforce_file_format=True)
            held.store.add(buffer.getvalue())
        result = pull(held.url, tmp_path / "in", study=uid(1), max_bytes=100_000, **QUICK)
    assert (result.received, result.failed, dict(result.reasons)) == (1, 1, {"too_large": 1})


@pytest.mark.parametrize(
    ("change", "told"), [(("ARCHIVE", "OTHER"), "its AE title is another"), (("HILUM", "NOBODY"), "our AE")]
)
def test_a_refused_association_is_told_with_its_cause(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    with node() as held, pytest.raises(HilumError, match=told):
        pull(held.url.replace(*change), tmp_path / "in", study=uid(1), **QUICK)


def test_files_of_another_patient_than_was_asked_for_are_refused(tmp_path: Path) -> None:
    with node() as held:
        fill(held)
        for about in held.store.about.values():
            about["PatientID"] = "PAT-9"
        result = pull(held.url, tmp_path / "in", patient="PAT-9", **QUICK)
    assert (result.found, result.received, result.failed) == (6, 0, 6) and not list((tmp_path / "in").rglob("*.dcm"))
    assert set(result.reasons) == {"wrong_instance:PatientID"} and result.exit_code == 3


def test_silence_ends_in_a_timeout(tmp_path: Path) -> None:
    with node() as held:
        fill(held)
        held.stalls = 1.5
        with pytest.raises(HilumError, match="no answer"):
            pull(held.url, tmp_path / "in", study=uid(1), retries=0, timeout=0.4)


def test_a_unit_that_claims_four_gigabytes_is_not_read(tmp_path: Path) -> None:
    """Answers the association request with a header of 0xFFFFFFF0 bytes, then sends as long as it is listened to."""
    sent = [0]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as peer:
                peer.recv(1 << 16)
                peer.sendall(struct.pack(">BBL", 2, 0, 0xFFFFFFF0))
                peer.settimeout(5)
                try:
                    while sent[0] < 1 << 26:
                        sent[0] += peer.send(b"\0" * (1 << 16))
                except OSError:
                    pass

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(HilumError, match="no answer"):
            pull(f"dimse://A@127.0.0.1:{server.getsockname()[1]}", tmp_path / "in", study="1.2", retries=0, timeout=2.0)
        thread.join(10)
    assert sent[0] < 1 << 24


def archive_to_send(root: Path) -> list[bytes]:
    for i, syntax in enumerate([RLELossless, JPEGLSLossless, ImplicitVRLittleEndian, ""]):
        content = compressed(syntax, instance=i + 1, PatientIdentityRemoved="YES")
        (root / str(i)).mkdir(parents=True)
        (root / str(i) / "image").write_bytes(content)
    return [p.read_bytes() for p in sorted(root.rglob("image"))]


def test_push_stores_each_syntax_and_reads_it_back(tmp_path: Path) -> None:
    sent = archive_to_send(tmp_path / "deid")
    with node() as held:
        result = push([tmp_path / "deid"], held.url, out=tmp_path / "log", **QUICK)
        assert (result.found, result.verified, result.failed, dict(result.reasons)) == (4, 4, 0, {})
        assert held.associations == 2 + 4  # one to find, one to read back, one for each new syntax
        assert sorted(body(b) for b in held.store.files.values()) == sorted(body(b) for b in sent)
        again = push([tmp_path / "deid"], held.url, out=tmp_path / "log", **QUICK)
        assert dict(again.reasons) == {"present": 4}


def test_push_finds_out_what_is_not_stored_and_what_is_not_taken(tmp_path: Path) -> None:
    archive_to_send(tmp_path / "deid")
    with node(syntaxes=[ImplicitVRLittleEndian, RLELossless]) as held:
        held.stores = False
        result = push([tmp_path / "deid"], held.url, out=tmp_path / "log", **QUICK)
    assert dict(result.reasons) == {"not_stored": 2, "syntax_refused": 2}
    assert (result.verified, result.failed, result.exit_code) == (0, 4, 3)


def test_a_private_sop_class_is_refused_by_name_of_the_fault(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", phantom(1), sop_class="1.2.826.0.1.3680043.8.498.99", PatientIdentityRemoved="YES")
    with node() as held:
        result = push([tmp_path / "a.dcm"], held.url, out=tmp_path / "log", **QUICK)
    assert dict(result.reasons) == {"sop_class_refused": 1}


def test_nothing_that_identifies_is_printed_or_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with node() as held:
        for i in (1, 2):
            held.store.add(compressed("", instance=i, patient="CANARY-77", AccessionNumber="CANARYACC"))
        held.refuses = {uid(1, 1, 2)}
        assert main(["pull", held.url, str(tmp_path / "in"), "--patient", "CANARY-77", "--retries", "0"]) == 3
        held.stores = False
        sent = tmp_path / "sent.dcm"
        sent.write_bytes(compressed("", instance=3, patient="CANARY-78", PatientIdentityRemoved="YES"))
        assert main(["push", str(sent), held.url, "--out", str(tmp_path / "log"), "--retries", "0"]) == 3
        assert main(["pull", held.url.replace("HILUM", "X"), str(tmp_path / "in"), "--patient", "CANARY-77"]) == 1
    told = capfd.readouterr()
    names = " ".join(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    for text in (told.out, told.err, caplog.text, names):
        assert "CANARY" not in text and uid(1) not in text


def test_an_archive_without_the_service_is_told(tmp_path: Path) -> None:
    """It accepts the association for C-ECHO only."""
    from pynetdicom import AE, evt
    from pynetdicom.sop_class import Verification

    entity = AE("ECHO")
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_ECHO, lambda _: 0)])
    try:
        with pytest.raises(HilumError, match="sop_class_refused"):
            pull(f"dimse://ECHO@127.0.0.1:{server.socket.getsockname()[1]}", tmp_path / "in", study="1.2", **QUICK)
    finally:
        server.shutdown()


def test_an_archive_that_takes_images_and_gives_none_is_told(tmp_path: Path) -> None:
    """It accepts the storage classes of a C-GET association, and not C-GET itself."""
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
    from pynetdicom import sop_class as sop

    entity = AE("ARCHIVE")
    entity.add_supported_context(sop.StudyRootQueryRetrieveInformationModelFind)
    image = sop.DigitalXRayImageStorageForPresentation
    entity.add_supported_context(image, list(ALL_TRANSFER_SYNTAXES), scu_role=True, scp_role=True)

    def find(event: Any) -> Iterator[Any]:
        answer = Dataset()
        answer.StudyInstanceUID, answer.SeriesInstanceUID, answer.SOPInstanceUID = uid(1), uid(1, 1), uid(1, 1, 1)
        answer.SOPClassUID, answer.Modality = image, "DX"
        yield 0xFF00, answer
        yield 0x0000, None

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    try:
        with pytest.raises(HilumError, match="no C-GET"):
            pull(f"dimse://ARCHIVE@127.0.0.1:{server.socket.getsockname()[1]}", tmp_path / "in", study=uid(1), **QUICK)
    finally:
        server.shutdown()
