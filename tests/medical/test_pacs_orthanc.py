"""Pull and push against a real Orthanc, by DICOMweb and by DIMSE."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake.dicom import dataset, phantom, uid
from pydicom import dcmread, dcmwrite
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from hilum.core.errors import HilumError
from hilum.medical.pacs.verbs import pull, push

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless]
pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(
        shutil.which("Orthanc") is None or not PLUGIN.exists(),
        reason="Orthanc and its DICOMweb plug-in are not installed",
    ),
]
QUICK: dict[str, Any] = {"retries": 2, "timeout": 20.0}


@dataclass
class Orthanc:
    web: str
    dimse: str
    rest: str
    move_port: int

    def empty(self) -> None:
        for study in json.load(urllib.request.urlopen(f"{self.rest}/studies")):
            urllib.request.urlopen(urllib.request.Request(f"{self.rest}/studies/{study}", method="DELETE"))

    def fill(self, files: list[bytes]) -> None:
        for content in files:
            urllib.request.urlopen(urllib.request.Request(f"{self.rest}/instances", content, method="POST"))

    def held(self) -> int:
        return int(json.load(urllib.request.urlopen(f"{self.rest}/statistics"))["CountInstances"])


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    folder = tmp_path_factory.mktemp("orthanc")
    http, dicom, move = free_ports(3)
    config = {
        "Name": "test",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "HttpThreadsCount": 4,
        "DicomModalities": {
            "hilum": {"AET": "HILUM", "Host": "127.0.0.1", "Port": move, "AllowGet": True, "AllowMove": True}
        },
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(["Orthanc", str(folder / "config.json")], stdout=log, stderr=log, cwd=folder)
    rest = f"http://127.0.0.1:{http}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{rest}/system", timeout=1)
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.05)
        yield Orthanc(f"{rest}/dicom-web", f"dimse://ORTHANC@127.0.0.1:{dicom}?calling=HILUM", rest, move)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


@pytest.fixture
def orthanc(running: Orthanc) -> Orthanc:
    running.empty()
    return running


def archive(n: int = 20) -> list[bytes]:
    """Files of seven syntaxes in two series of one study; sequences, private elements and Latin text among them."""
    files = []
    for i in range(n):
        syntax = [*SYNTAXES, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian][i % 7]
        pixels = phantom(i, (64, 80)) if syntax in SYNTAXES[2:] else phantom(i, (64, 80)).astype(np.int16) - 1024
        data = dataset(
            pixels, bits=16, series=1 + i % 2, instance=i + 1, sop_class=CTImageStorage, patient="PAT-1",
            syntax=syntax if syntax == ExplicitVRBigEndian else ExplicitVRLittleEndian,
            StudyDate="20200115", Modality="CT", PatientIdentityRemoved="YES", SpecificCharacterSet="ISO_IR 100",
            SeriesDescription="Schädel", RescaleSlope=1, RescaleIntercept=0, WindowCenter=[40, 400], WindowWidth=[80, 2000],
        )  # fmt: skip
        data.private_block(0x0029, "HILUM TEST", create=True).add_new(0x10, "OB", bytes(range(16)))
        if syntax in SYNTAXES[2:]:
            data.compress(syntax, generate_instance_uid=False)
        data.file_meta.TransferSyntaxUID = syntax
        buffer = io.BytesIO()
        dcmwrite(buffer, data, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files


def by_uid(files: list[bytes]) -> dict[str, Any]:
    return {str(d.SOPInstanceUID): d for d in (dcmread(io.BytesIO(f)) for f in files)}


def assert_equal(sent: list[bytes], out: Path) -> None:
    got, asked = by_uid([p.read_bytes() for p in out.glob("[0-9a-f]*/*/*.dcm")]), by_uid(sent)
    assert set(got) == set(asked)
    for key, data in asked.items():
        assert got[key].file_meta.TransferSyntaxUID == data.file_meta.TransferSyntaxUID
        assert got[key] == data
        np.testing.assert_array_equal(got[key].pixel_array, data.pixel_array)


@pytest.mark.parametrize("way", ["web", "get", "move"])
def test_pull_is_equal_in_every_syntax_and_goes_on(orthanc: Orthanc, tmp_path: Path, way: str) -> None:
    sent = archive()
    orthanc.fill(sent)
    source = {"web": orthanc.web, "get": orthanc.dimse, "move": f"{orthanc.dimse}&move=127.0.0.1:{orthanc.move_port}"}[
        way
    ]
    first = pull(source, tmp_path / "in", patient="PAT-1", modality="CT", limit=7, **QUICK)
    assert (first.found, first.received, first.failed) == (7, 7, 0)
    second = pull(source, tmp_path / "in", patient="PAT-1", modality="CT", **QUICK)
    assert (second.found, second.received, second.skipped, second.failed) == (20, 13, 7, 0)
    assert_equal(sent, tmp_path / "in")


@pytest.mark.parametrize("way", ["web", "dimse"])
def test_push_is_read_back_in_every_syntax(orthanc: Orthanc, tmp_path: Path, way: str) -> None:
    sent = archive()
    for i, content in enumerate(sent):
        (tmp_path / f"{i:02d}.dcm").write_bytes(content)
    dest = getattr(orthanc, way)
    result = push(sorted(tmp_path.glob("*.dcm")), dest, out=tmp_path / "log", **QUICK)
    assert (result.found, result.verified, dict(result.reasons)) == (20, 20, {})
    assert orthanc.held() == 20
    pulled = pull(orthanc.web, tmp_path / "in", study=uid(1), **QUICK)
    assert pulled.received == 20
    assert_equal(sent, tmp_path / "in")
    again = push(sorted(tmp_path.glob("*.dcm")), dest, out=tmp_path / "log", **QUICK)
    assert dict(again.reasons) == {"present": 20}


def test_a_killed_pull_goes_on(orthanc: Orthanc, tmp_path: Path) -> None:
    sent = archive()
    orthanc.fill(sent)
    out = tmp_path / "in"
    command = [
        sys.executable,
        "-m",
        "hilum.core.cli",
        "pull",
        orthanc.dimse,
        str(out),
        "--study",
        uid(1),
        "--rate",
        "10",
    ]
    process = subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if len(list(out.glob("[0-9a-f]*/*/*.dcm"))) >= 4 or process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    there = len(list(out.glob("[0-9a-f]*/*/*.dcm")))
    assert 4 <= there < 20
    result = pull(orthanc.dimse, out, study=uid(1), **QUICK)
    assert (result.found, result.skipped, result.received, result.failed) == (20, there, 20 - there, 0)
    assert_equal(sent, out)
    assert pq.read_table(out / "private" / "transfer.parquet").num_rows == 20


def test_a_wrong_title_and_an_altered_instance_are_told(orthanc: Orthanc, tmp_path: Path) -> None:
    with pytest.raises(HilumError, match="its AE title is another"):
        pull(orthanc.dimse.replace("ORTHANC@", "OTHER@"), tmp_path / "in", study=uid(1), **QUICK)
    sent = archive(1)
    orthanc.fill(sent)
    data = dcmread(io.BytesIO(sent[0]))
    data.PatientName = "Other^Name"
    data.save_as(tmp_path / "changed.dcm")
    result = push([tmp_path / "changed.dcm"], orthanc.dimse, out=tmp_path / "log", **QUICK)
    assert dict(result.reasons) == {"held_differently": 1}
    row = pq.read_table(tmp_path / "log" / "private" / "transfer.parquet").to_pylist()[0]
    assert row["detail"] == "PatientName"
