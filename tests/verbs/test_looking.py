"""``hilum ui`` and ``hilum list``: what cannot be served is refused, and every usable name is explained."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hilum.core.cli import main
from hilum.core.errors import HilumError
from hilum.verbs.doctor import ui
from hilum.verbs.listing import list_

RUN = subprocess.run


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "mlflow.db").touch()
    return tmp_path


@pytest.fixture
def free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serves(monkeypatch: pytest.MonkeyPatch, code: int) -> list[list[str]]:
    """The server is a process that ends at once with ``code``; returns the commands that it was started with."""
    started: list[list[str]] = []

    def run(command: list[str], **options: Any) -> Any:
        started.append(command)
        return RUN([sys.executable, "-c", f"raise SystemExit({code})"], **options)

    monkeypatch.setattr(subprocess, "run", run)
    return started


def test_a_server_that_fails_is_an_error(
    study: Path, free: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serves(monkeypatch, 3)
    assert main(["ui", str(study), "--port", str(free)]) == 1
    assert "ended with code 3" in capsys.readouterr().err
    started = serves(monkeypatch, 0)
    ui(study, port=free)
    assert f"http://127.0.0.1:{free}" in capsys.readouterr().out and str(free) in started[0]


def test_no_address_is_printed_where_none_can_be_served(
    study: Path, free: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = serves(monkeypatch, 0)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = int(holder.getsockname()[1])
        for port in (taken, 70_000):
            with pytest.raises(HilumError, match=f"port {port} cannot be used") as caught:
                ui(study, port=port)
            assert "--port" in caught.value.fix
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else real(name, *a))
    with pytest.raises(HilumError, match="needs the package 'mlflow'") as caught:
        ui(study, port=free)
    assert "pip install" in caught.value.fix
    assert not started and not capsys.readouterr().out


def test_a_name_of_a_family_is_explained_by_the_family(capsys: pytest.CaptureFixture[str]) -> None:
    list_(why="timm/vit_tiny_patch16_224")
    told = capsys.readouterr().out
    assert told.startswith("encoder timm/vit_tiny_patch16_224, of the family timm/*\n") and "usable    yes" in told
    list_(why="timm/*")
    assert capsys.readouterr().out.startswith("encoder timm/*\n")
    list_(why="linear")  # a head and a probe
    assert [line for line in capsys.readouterr().out.splitlines() if line[0] != " "] == ["head linear", "probe linear"]
    with pytest.raises(HilumError, match="nothing installed is named"):
        list_(why="timn/vit_tiny_patch16_224")
