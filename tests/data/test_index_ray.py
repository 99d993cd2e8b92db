"""The index over Ray Data: on two local workers, equal to the run without Ray, row by row."""

from __future__ import annotations

import builtins
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake.archive import index
from fake.dicom import phantom, write

from hilum.core.errors import MissingExtra

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    for n in range(6):
        write(root / f"p{n}/im.dcm", phantom(n), patient=f"{'p' if n % 2 else 'P'}{n // 2}", study=n)
    whole = (root / "p1/im.dcm").read_bytes()
    (root / "cut.dcm").write_bytes(whole[:-100])
    (root / "readme.txt").write_text("hello")
    with zipfile.ZipFile(root / "x.zip", "w") as file:
        file.writestr("a.dcm", whole)
    return root


def test_without_ray_the_error_says_what_to_install(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "ray":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra) as caught:
        index(archive, tmp_path / "s", executor="ray")
    assert caught.value.fix == 'pip install "hilum[ray]"'


@pytest.mark.slow
def test_a_ray_run_equals_a_local_one(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setattr("hilum.data.ray_reading._BATCH", 2)  # several tasks for two workers
    local = index(archive, tmp_path / "local", workers=2)
    ray = index(archive, tmp_path / "ray", workers=2, executor="ray")
    assert ray.counts == local.counts and ray.counts["read"] == 9
    rows = [pq.read_table(s.study / "private/state.parquet").to_pylist() for s in (local, ray)]
    for one, other in zip(*rows, strict=True):
        assert one == other
    for name in ("index.parquet", "series.parquet", "study.json", "private/paths.parquet", "private/merges.csv"):
        assert (ray.study / name).read_bytes() == (local.study / name).read_bytes(), name
    assert capfd.readouterr().err == ""  # neither start-up messages nor bars
    assert index(archive, ray.study, executor="ray").counts["read"] == 0
