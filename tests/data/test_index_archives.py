"""Zip archives as part of an index: members are rows, whatever lies is refused, nothing is written where it says."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake.archive import INTAKES, by_path, index
from fake.dicom import phantom, write
from fake.hostile_intake import HostileIntake

from hilum.core.types import Limits, Request, SampleKey
from hilum.data import archives
from hilum.data.archives import member_file
from hilum.data.cache import ShardCache
from hilum.data.ledger import Rejected
from hilum.data.source import StudySource
from hilum.data.study import Study

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom and zipfile, when they write the faulty files


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"plain/{n}.dcm", phantom(n), patient=f"P{n}", study=n) for n in range(3)]


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def reasons(study: Path) -> dict[str, tuple[str, str]]:
    return {path: (row["status"], row["reason"]) for path, row in by_path(study).items()}


def test_members_are_rows_like_files(files: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "archive"
    packed(root / "study.zip", {f"a/{f.name}": f.read_bytes() for f in files} | {"notes.txt": b"hello", "none": b""})
    packed(root / "nothing.zip", {})
    for workers in (0, 2):
        study = index(root, tmp_path / f"s{workers}", workers=workers).study
        assert reasons(study) == {
            "nothing.zip": ("indexed", ""),
            "study.zip": ("indexed", ""),
            "study.zip!a/0.dcm": ("indexed", ""),
            "study.zip!a/1.dcm": ("indexed", ""),
            "study.zip!a/2.dcm": ("indexed", ""),
            "study.zip!none": ("quarantined", "empty_file"),
            "study.zip!notes.txt": ("quarantined", "not_dicom"),
        }
    assert (tmp_path / "s0/index.parquet").read_bytes() == (tmp_path / "s2/index.parquet").read_bytes()
    rows, plain = by_path(study), by_path(index(tmp_path / "plain", tmp_path / "p").study)
    assert (rows["study.zip"]["role"], rows["study.zip"]["frames"]) == ("container", 0)
    same = ("group_id", "study_id", "stored_sha256", "modality_sha256", "mean", "rows", "transfer_syntax")
    for n in range(3):
        assert [rows[f"study.zip!a/{n}.dcm"][c] for c in same] == [plain[f"{n}.dcm"][c] for c in same]
    assert len({r["sample_id"] for r in rows.values()}) == 7 and not list(study.rglob("*member*"))


def test_a_sample_comes_out_of_an_archive_as_out_of_a_file(files: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "archive"
    packed(root / "odd!name.zip", {f"a/{f.name}": f.read_bytes() for f in files})
    shutil.copy(files[0], root / "a!b.dcm")  # a name that only looks like a member's
    study = Study(index(root, tmp_path / "s").study)
    paths = {str(p["path"]): n for n, p in enumerate(pq.read_table(study.path / "private/paths.parquet").to_pylist())}
    assert study.file(paths["odd!name.zip!a/1.dcm"]) == (root / "odd!name.zip", "a/1.dcm")
    assert study.file(paths["a!b.dcm"]) == (root / "a!b.dcm", "")
    rows = study.rows(None)
    cache = ShardCache(study, side=24, intakes=INTAKES, workers=1)
    assert cache.build().bad == {}
    row = paths["odd!name.zip!a/1.dcm"]
    for source in (
        StudySource(study, rows=rows, cache=cache),
        StudySource(study, rows=rows, side=24, intakes=INTAKES),
    ):
        sample = source[Request(row, SampleKey(0, 0, 0))]
        stored: Any = sample.views["image"]
        assert np.array_equal(stored.numpy()[0], phantom(1))  # 24 rows: nothing to reduce


def test_a_file_named_like_a_member(files: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "archive"
    packed(root / "a.zip", {"x.dcm": files[0].read_bytes(), "y.dcm": files[1].read_bytes()})
    shutil.copy(files[2], root / "a.zip!x.dcm")
    study = Study(index(root, tmp_path / "s").study)
    paths = pq.read_table(study.path / "private/paths.parquet").column("path").to_pylist()
    assert paths == ["a.zip", "a.zip!x.dcm", "a.zip!x.dcm", "a.zip!y.dcm"] and len(set(study.column("sample_id"))) == 4
    places = [study.file(row) for row in range(4)]
    assert places == [
        (root / "a.zip", ""),
        (root / "a.zip", "x.dcm"),
        (root / "a.zip!x.dcm", ""),
        (root / "a.zip", "y.dcm"),
    ]
    hashes = [by_path(index(tmp_path / "plain", tmp_path / "p").study)[f"{n}.dcm"]["stored_sha256"] for n in range(3)]
    assert study.column("stored_sha256").tolist() == [None, hashes[0], hashes[2], hashes[1]]


def with_member(name: str, *, mode: int = 0) -> bytes:
    """A zip of a good member and one whose name, and type, are as given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("good.txt", "good")
        member = zipfile.ZipInfo("placeholder" if "\0" in name or "\\" in name else name)
        member.create_system, member.external_attr = 3, mode << 16
        member.filename = member.orig_filename = name
        archive.writestr(member, "/etc/passwd")
    return buffer.getvalue()


def overlapping() -> bytes:
    """Two names for the bytes of one member, as zip bombs do."""
    data = bytearray(with_member("twin.txt"))
    at = data.rfind(b"PK\x01\x02")
    data[at + 42 : at + 46] = struct.pack("<I", 0)  # its local header is the first one's
    return bytes(data)


def twice() -> bytes:
    return with_member("good.txt")


def cut(data: bytes, left: int) -> bytes:
    return data[:left]


GOOD = with_member("fine.txt")
LIES: dict[str, Callable[[], bytes]] = {
    "absolute": lambda: with_member("/etc/cron.d/x"),
    "up": lambda: with_member("a/../../x"),
    "drive": lambda: with_member("C:x"),
    "backslash": lambda: with_member("..\\x"),
    "nul": lambda: with_member("x\0.dcm"),
    "link": lambda: with_member("x", mode=stat.S_IFLNK | 0o777),
    "device": lambda: with_member("x", mode=stat.S_IFCHR | 0o777),
    "twice": twice,
    "overlap": overlapping,
    "no directory": lambda: cut(GOOD, 60),
    "half a directory": lambda: cut(GOOD, len(GOOD) - 30),
    "empty end": lambda: GOOD[:-22] + b"PK\x05\x06" + b"\xff" * 18,
}


@pytest.mark.parametrize("name", LIES)
def test_an_archive_that_lies_is_refused_whole(name: str, tmp_path: Path) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    (root / "x.zip").write_bytes(LIES[name]())
    before = sorted(p for p in tmp_path.rglob("*"))
    study = index(root, tmp_path / "s").study
    row = reasons(study)
    assert list(row) == ["x.zip"] and row["x.zip"] in (
        ("quarantined", "unsafe_archive"),
        ("quarantined", "resource_limit"),
    )
    assert sorted(p for p in tmp_path.rglob("*") if not p.is_relative_to(study)) == before


def test_faults_that_cost_one_member(files: list[Path], tmp_path: Path) -> None:
    root, whole = tmp_path / "archive", files[0].read_bytes()
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("deep.dcm", whole)
    packed(
        root / "x.zip", {"a.dcm": whole, "b.dcm": files[1].read_bytes(), "c.zip": inner.getvalue()}, zipfile.ZIP_STORED
    )
    with zipfile.ZipFile(root / "x.zip", "a", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("d.dcm", whole)
    data = bytearray((root / "x.zip").read_bytes())
    at = data.find(b"DICM")
    data[at + 400] ^= 0xFF  # a.dcm: its checksum no longer fits
    second = data.rfind(b"PK\x01\x02", 0, data.rfind(b"b.dcm"))
    data[second + 8] |= 1  # b.dcm: encrypted, says the directory
    (root / "x.zip").write_bytes(data)
    found = reasons(index(root, tmp_path / "s").study)
    assert found == {
        "x.zip": ("indexed", ""),
        "x.zip!a.dcm": ("quarantined", "unsafe_archive"),
        "x.zip!b.dcm": ("quarantined", "unsafe_archive"),
        "x.zip!c.zip": ("quarantined", "unsupported_container"),
        "x.zip!d.dcm": ("quarantined", "unsupported_container"),
    }


def test_limits_come_before_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "archive"
    packed(root / "large.zip", {"x": b"\1" * 5000, "y": b"y"}, zipfile.ZIP_STORED)
    packed(root / "bomb.zip", {"x": b"\0" * (1 << 20)})
    monkeypatch.setattr(archives, "_SMALL", 1 << 16)
    opened: list[str] = []
    real = zipfile.ZipFile.open
    monkeypatch.setattr(
        zipfile.ZipFile, "open", lambda self, m, *a, **k: opened.append(m.filename) or real(self, m, *a, **k)
    )
    found = reasons(index(root, tmp_path / "s", limits=Limits(max_bytes=4000, inflate_ratio=50)).study)
    assert found == {
        "bomb.zip": ("quarantined", "resource_limit"),
        "large.zip": ("indexed", ""),
        "large.zip!x": ("quarantined", "resource_limit"),
        "large.zip!y": ("quarantined", "not_dicom"),
    }
    assert opened == ["y"]
    monkeypatch.setattr(archives, "MEMBERS", 1)
    assert reasons(index(root, tmp_path / "t").study)["large.zip"] == ("quarantined", "resource_limit")


def test_containers_that_are_not_opened(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    shutil.make_archive(str(tmp_path / "t"), "tar", tmp_path)
    shutil.make_archive(str(tmp_path / "t"), "gztar", tmp_path)
    root.mkdir()
    for name, source in {"a.tar": "t.tar", "b.tgz": "t.tar.gz"}.items():
        shutil.copy(tmp_path / source, root / name)
    (root / "c.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(40))
    (root / "d.rar").write_bytes(b"Rar!\x1a\x07\x01" + bytes(40))
    found = reasons(index(root, tmp_path / "s").study)
    assert set(found.values()) == {("quarantined", "unsupported_container")} and len(found) == 4


def test_a_member_that_kills_its_reader_costs_itself(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    deeds = {"a": "fine", "b": "crash", "c": "fine", "d": "hang", "e": "killed", "f": "fine"}
    packed(root / "x.zip", {name: f"HOSTILE {deed}".encode() for name, deed in deeds.items()})
    limits = Limits(seconds=1.0, max_bytes=1 << 28)
    study = index(root, tmp_path / "s", workers=1, intakes=(HostileIntake(),), limits=limits).study
    found = {path: reason for path, (_, reason) in reasons(study).items()}
    bad = {"x.zip!b": "codec_error", "x.zip!d": "resource_limit", "x.zip!e": "resource_limit"}
    assert found == dict.fromkeys(["x.zip", "x.zip!a", "x.zip!c", "x.zip!f"], "") | bad
    assert not list(study.rglob("*member*"))


def test_an_archive_that_changed(files: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "archive"
    contents = {f.name: f.read_bytes() for f in files}
    packed(root / "x.zip", contents)
    packed(root / "y.zip", {"only.dcm": contents["0.dcm"]})
    index(root, tmp_path / "s")
    again = index(root, tmp_path / "s")
    assert again.counts["read"] == 0 and again.counts["found"] == 6
    packed(root / "x.zip", {"0.dcm": contents["0.dcm"], "new.dcm": contents["1.dcm"]})
    os.utime(root / "x.zip", ns=(1, 1))
    changed = index(root, tmp_path / "s")
    assert (changed.counts["read"], changed.counts["vanished"], changed.counts["found"]) == (1, 2, 5)
    gone = {p for p, (_, reason) in reasons(changed.study).items() if reason == "vanished"}
    assert gone == {"x.zip!1.dcm", "x.zip!2.dcm"}
    still = index(root, tmp_path / "s")
    assert (still.counts["read"], still.counts["vanished"]) == (0, 2)
    (root / "x.zip").unlink()
    assert index(root, tmp_path / "s").counts["vanished"] == 5
    with pytest.raises(FileNotFoundError), member_file(root / "x.zip", "0.dcm"):
        pass
    with pytest.raises(Rejected, match="does not hold"), member_file(root / "y.zip", "0.dcm"):
        pass


class _Dying(HostileIntake):
    """Indexes, and dies when a picture is opened."""

    def open(self, path: Path, row: Any) -> Any:
        os.kill(os.getpid(), 9)


def test_a_reader_that_dies_leaves_no_copy_of_a_member(tmp_path: Path) -> None:
    packed(tmp_path / "archive/x.zip", {"a": b"HOSTILE fine"})
    study = Study(index(tmp_path / "archive", tmp_path / "s", intakes=[_Dying()]).study)
    built = ShardCache(study, side=8, intakes=[_Dying()], workers=1).build()
    assert [reason for reason, _ in built.bad.values()] == ["resource_limit"]
    left = [p.name for p in Path(tempfile.gettempdir()).glob("hilum-member-*")]
    assert [name for name in left if not Path(f"/proc/{name.split('-')[2]}").exists()] == []
