"""An index that was killed goes on where it was, and ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake.archive import by_path, index
from fake.dicom import phantom, write
from fake.hostile_intake import HostileIntake

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow, Limits, Pixels
from hilum.data import journal as journal_module
from hilum.data.image_files import ImageFilesIntake
from hilum.data.index import Interrupted
from hilum.data.journal import Journal
from hilum.data.progress import following
from hilum.medical.dicom.intake import DicomIntake

WRITTEN = ("index.parquet", "series.parquet", "study.json", "private/paths.parquet", "private/state.parquet")
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import hilum.data.journal as journal
journal._ROWS = 8
from fake.hostile_intake import HostileIntake
from hilum.core.errors import HilumError
from hilum.data.index import index_archive
try:
    index_archive(sys.argv[1], sys.argv[2], intakes=[HostileIntake()], workers=int(sys.argv[4]))
except HilumError as error:
    print(error, file=sys.stderr)
    raise SystemExit(error.exit_code)
"""
FILES = 200


class Quick(HostileIntake):
    """The same rows without the waiting."""

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        return [IndexRow("indexed", columns={"role": "image", "stored_sha256": "0" * 64, "std": 1.0})]


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """An archive that takes seconds."""
    root = tmp_path / "archive"
    root.mkdir()
    for n in range(FILES):
        (root / f"{n:03}").write_text("HOSTILE slow")
    return root


def start(root: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", DRIVER, str(root), str(out), tests, str(workers)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def parts(out: Path) -> list[Path]:
    return sorted((out / "private/journal").glob("0*.arrow"))


def when_it_has_read(process: subprocess.Popen[str], out: Path, number: int) -> None:
    deadline = time.monotonic() + 100
    while len(parts(out)) < number:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it was interrupted"
        time.sleep(0.005)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "how",
    [signal.SIGKILL, pytest.param(signal.SIGINT, marks=SLOW), pytest.param(signal.SIGTERM, marks=SLOW)],
)
def test_a_run_that_was_killed_goes_on(how: signal.Signals, slow: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    process = start(slow, out, workers=2)
    when_it_has_read(process, out, 1)
    process.send_signal(how)
    told = process.communicate(timeout=60)[1]
    if how == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 128 + how and "the same command goes on" in told and "Traceback" not in told
    assert not (out / "study.json").exists()
    kept = sum(len(journal_module._mapped(part, check=True)) for part in parts(out))  # type: ignore[arg-type]
    assert 1 <= kept < FILES
    (out / "private/journal/00000099.arrow").write_bytes(
        parts(out)[0].read_bytes()[:500]
    )  # as a failing disk leaves it
    (out / "private/journal/.00000003.arrow.x").write_bytes(b"torn")
    result = index(slow, out, intakes=[Quick()])
    assert result.counts["read"] == FILES - kept and result.counts["found"] == FILES
    whole = index(slow, tmp_path / "whole", intakes=[Quick()])
    for name in WRITTEN:
        assert (out / name).read_bytes() == (whole.study / name).read_bytes(), name
    assert not (out / "private/journal").exists()


class _Stopping(DicomIntake):
    """Reads a few files, then the user presses Ctrl-C."""

    def __init__(self, left: int) -> None:
        self.left = left

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().read(path, limits)


def test_merges_and_changes_across_interruptions(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    for n in range(8):  # two spellings of every patient, far apart
        write(root / f"{n}.dcm", phantom(n), patient=f"{'p' if n < 4 else 'P'}-{n % 4}", study=n)
    held = signal.getsignal(signal.SIGINT)
    for left in (3, 2):
        with pytest.raises(Interrupted) as caught:
            index(root, tmp_path / "s", intakes=[_Stopping(left), ImageFilesIntake()])
        assert caught.value.exit_code == 130 and signal.getsignal(signal.SIGINT) is held
    (root / "0.dcm").unlink()
    shutil.copy(root / "7.dcm", root / "1.dcm")
    shutil.copytree(tmp_path / "s", tmp_path / "other key")
    result = index(root, tmp_path / "s")
    assert result.counts["read"] == 4 and result.counts["found"] == 7  # 2, 3 and 4 are known, 0 is nowhere
    whole = index(root, tmp_path / "whole").study
    for name in (*WRITTEN, "private/merges.csv"):
        assert (tmp_path / "s" / name).read_bytes() == (whole / name).read_bytes(), name
    assert len((whole / "private/merges.csv").read_text().splitlines()) == 1 + 4
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    assert index(root, tmp_path / "other key", id_key=key).counts["read"] == 7  # digests of another key are no use


def test_one_run_at_a_time(slow: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "s/private", key="k"), pytest.raises(HilumError, match="another run"):
        index(slow, tmp_path / "s", intakes=[Quick()])
    assert index(slow, tmp_path / "s", intakes=[Quick()]).counts["indexed"] == FILES


def test_an_index_made_by_an_older_version_is_read_again(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    write(root / "a.dcm", phantom(1))
    study = index(root, tmp_path / "s").study
    state = pq.read_table(study / "private/state.parquet")
    pq.write_table(state.drop(["refers_to"]), study / "private/state.parquet")
    assert index(root, study).counts["read"] == 1 and index(root, study).counts["read"] == 0


def test_a_label_refers_to_series_by_their_digests(tmp_path: Path) -> None:
    class Segmentation(DicomIntake):
        def read(self, path: Path, limits: Limits) -> list[IndexRow]:
            [row] = super().read(path, limits)
            series = row.identity["series"]
            row.identity["refers_to"] = [f"{series}\0", series, "1.2.3"] if path.stem == "a" else None
            return [row]

    root = tmp_path / "archive"
    write(root / "a.dcm", phantom(1), study=1)
    write(root / "b.dcm", phantom(2), study=1, instance=2)
    rows = by_path(index(root, tmp_path / "s", intakes=[Segmentation()]).study)
    assert rows["b.dcm"]["refers_to"] is None
    assert len(rows["a.dcm"]["refers_to"]) == 2 and rows["b.dcm"]["series_id"] in rows["a.dcm"]["refers_to"]


class _Optional(HostileIntake):
    volume_options = {"allow_gaps": "volumes with missing slices are usable", "split_4d": "one volume a time point"}

    def __init__(self) -> None:
        self.asked: list[frozenset[str]] = []

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        columns: dict[str, Any] = {"role": "image", "frames": 1, "rows": 1, "columns": 1}
        return [IndexRow("indexed", columns=columns, identity={"series": "1.2", "study": "1"})]

    def problems(self, rows: Any, options: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
        self.asked.append(options)
        return []

    def open(self, path: Path, row: Mapping[str, Any]) -> Pixels:
        raise AssertionError


def test_options_of_volumes_are_checked_passed_on_and_recorded(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/x").write_text("HOSTILE fine")
    intake = _Optional()
    study = index(tmp_path / "archive", tmp_path / "s", intakes=[intake], volumes=["split_4d", "allow_gaps"]).study
    assert json.loads((study / "study.json").read_text())["volumes"] == ["allow_gaps", "split_4d"]
    assert intake.asked == [frozenset({"allow_gaps", "split_4d"})]
    with pytest.raises(HilumError, match="no option 'gaps'") as caught:
        index(tmp_path / "archive", study, intakes=[intake], volumes=["gaps"])
    assert "allow_gaps: volumes with missing slices" in caught.value.fix


def test_a_value_that_does_not_fit_costs_its_file(tmp_path: Path) -> None:
    class Careless(HostileIntake):
        def read(self, path: Path, limits: Limits) -> list[IndexRow]:
            columns: dict[str, Any] = {"role": "image", "rows": 1 << 40 if path.name == "b" else 1, "mean": 1.0}
            return [IndexRow("indexed", columns=columns)]

    (tmp_path / "archive").mkdir()
    for name in "abc":
        (tmp_path / "archive" / name).write_text("HOSTILE fine")
    rows = by_path(index(tmp_path / "archive", tmp_path / "s", intakes=[Careless()]).study)
    assert {n: (r["status"], r["reason"]) for n, r in rows.items()} == {
        "a": ("indexed", ""),
        "b": ("quarantined", "parse_error"),
        "c": ("indexed", ""),
    }
    assert rows["b"]["mean"] is None and rows["a"]["mean"] == 1.0


def test_the_archive_is_only_read(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    write(root / "p/a.dcm", phantom(1))
    with pytest.raises(HilumError, match="into the archive itself"):
        index(root, root)
    for folder in (root / "p", root):
        folder.chmod(0o555)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_mode) for p in (root, *root.rglob("*"))}
    inside = index(root, tmp_path).study  # the archive stands in the study's folder
    moved = tmp_path / "elsewhere"
    assert {p: (p.stat().st_mtime_ns, p.stat().st_mode) for p in (root, *root.rglob("*"))} == before
    for folder in (root, root / "p"):
        folder.chmod(0o755)
    shutil.move(root, moved)
    again = index(moved, inside)
    assert (again.counts["read"], again.counts["vanished"]) == (0, 0)


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 31))
    monkeypatch.setattr("hilum.data.progress.time.monotonic", lambda: float(next(clock)))
    assert list(following([(10, "a"), (10, "b"), (10, "c"), (10, "d")], 100, name="index", shown=True)) == list("abcd")
    assert capsys.readouterr().err.splitlines() == [
        "hilum index: 20 of 100 files, about 4 min left",  # 62 s for 20
        "hilum index: 40 of 100 files, about 3 min left",
    ]
    list(following([(10, "a")], 10, name="index", shown=False))
    assert capsys.readouterr().err == ""


def test_any_number_of_deaths_in_a_row(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    for n in range(24):
        (root / f"{n:02}").write_text(f"HOSTILE {'crash' if n != 13 else 'fine'}")
    result = index(root, tmp_path / "s", workers=2, intakes=[HostileIntake()])
    assert result.counts["reasons"] == {"codec_error": 23} and by_path(result.study)["13"]["status"] == "indexed"


def test_plain_identifiers_need_not_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "archive"
    for n in range(4):
        write(root / f"{n}.dcm", phantom(n), patient=["p-1", "P-1", "q-2", " Q-2"][n], study=n)
    kept = index(root, tmp_path / "kept").study
    monkeypatch.setattr("hilum.data.index._SPELLINGS", 0)
    monkeypatch.setattr("hilum.data.state._REMEMBERED", 1)
    dropped = index(root, tmp_path / "dropped").study
    for name in (*WRITTEN, "private/merges.csv"):
        assert (dropped / name).read_bytes() == (kept / name).read_bytes(), name
    assert "Q-2" in (kept / "private/merges.csv").read_text()
