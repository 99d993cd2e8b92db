"""``hilum pull`` and ``hilum push`` used wrongly: each is told what is wrong, where, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake.dicom import phantom, uid, write
from fake.pacs import WebServer, web_server

from hilum.core.cli import main
from hilum.core.errors import HilumError
from hilum.medical.pacs.verbs import pull, push

QUICK: dict[str, Any] = {"retries": 1, "timeout": 5.0}


def fill(server: WebServer, folder: Path, n: int = 6) -> None:
    """Two studies of ``n`` instances."""
    for study in (1, 2):
        for i in range(n):
            file = write(folder / "held", phantom(i), study=study, instance=i + 1)
            server.store.add(file.read_bytes())
            file.unlink()


def to_send(folder: Path) -> Path:
    write(folder / "0.dcm", phantom(), PatientIdentityRemoved="YES")
    return folder


def test_a_folder_of_another_key_is_not_filled(tmp_path: Path) -> None:
    """Under another key nothing would be found again: every instance would lie there twice."""
    mine, other = tmp_path / "mine.key", tmp_path / "other.key"
    mine.write_bytes(bytes(range(32)))
    other.write_bytes(bytes(range(1, 33)))
    with web_server() as server:
        fill(server, tmp_path)
        pull(server.url, tmp_path / "in", study=uid(1), id_key=mine, **QUICK)
        with pytest.raises(HilumError, match="another identity key") as told:
            pull(server.url, tmp_path / "in", study=uid(2), id_key=other, **QUICK)
        assert told.value.where == str(tmp_path / "in") and "--id-key" in told.value.fix
        assert len(list((tmp_path / "in").rglob("*.dcm"))) == 6
        assert pull(server.url, tmp_path / "in", study=uid(2), id_key=mine, **QUICK).received == 6
    to_send(tmp_path / "deid")
    with web_server() as server:
        push([tmp_path / "deid"], server.url, out=tmp_path / "log", id_key=mine, **QUICK)
        with pytest.raises(HilumError, match="another identity key"):
            push([tmp_path / "deid"], server.url, out=tmp_path / "log", id_key=other, **QUICK)


@pytest.mark.parametrize(
    ("command", "where", "fix"),
    [
        (["pull", "{url}", "{at}/in", "--date", "20200202-20200101"], "--date", "20200101-20201231"),
        (["pull", "{url}", "{at}/in", "--study", "1.2", "--limit", "0"], "--limit", "--limit 100"),
        (["pull", "{url}", "{at}/in", "--study", "1.2", "--retries", "-1"], "--retries", "leave them out"),
        (["pull", "{url}", "{at}/file", "--study", "1.2"], "{at}/file", "another folder"),
        (["pull", "{url}", "{at}/file/in", "--study", "1.2"], "{at}/file/in", "another folder"),
        (["pull", "{url}", "{at}/in"], "--study", "--date"),
        (["pull", "{url}", "{at}/in", "--study", "abc"], "--study", "StudyID"),
        (["pull", "{url}", "{at}/in", "--patient", "PAT*"], "--patient", "--from TABLE.csv:COLUMN"),
        (["pull", "{url}", "{at}/in", "--study", "1.2", "--tls-ca", "{at}/none"], "--tls-ca", "PEM"),
        (["pull", "pacs.example:104", "{at}/in", "--study", "1.2"], "SOURCE", "dimse://AET@host:port"),
        (
            ["pull", "dimse://A@none.invalid:104", "{at}/in", "--study", "1.2", "--retries", "0"],
            "SOURCE",
            "the network",
        ),
        (["pull", "{secure}", "{at}/in", "--study", "1.2", "--retries", "0"], "the archive's address", "its port"),
        (["pull", "{url}", "{at}/in", "--from", "{at}/none.csv:PatientID"], "none.csv", ""),
        (["push", "{at}/sent", "{at}/Doe^Jane", "{url}"], "path 2 of 2", "files or folders"),
        (["push", "{at}/sent", "{url}", "--out", "{at}/file"], "{at}/file", "another folder"),
        (["push", "{at}/empty", "{url}"], "PATHS", "files or folders"),
    ],
)
def test_wrong_use_is_told_with_its_place_and_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], where: str, fix: str
) -> None:
    to_send(tmp_path / "sent")
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    with web_server() as server:
        fill(server, tmp_path, 1)
        secure = server.url.replace("http:", "https:")
        assert main([*(word.format(at=tmp_path, url=server.url, secure=secure) for word in command)]) == 1
        told = capsys.readouterr()
        assert where.format(at=tmp_path) in told.err and fix in told.err
        assert "Traceback" not in told.err and "Doe" not in told.err and server.url not in told.err


def test_a_question_that_nothing_answers_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with web_server() as server:
        fill(server, tmp_path, 1)
        assert pull(server.url, tmp_path / "in", patient="AB-007", **QUICK).exit_code == 0
    assert "nothing in the archive matches" in capsys.readouterr().out
