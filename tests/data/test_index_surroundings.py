"""What goes on around an index while it reads: files that vanish, disks that fail, users who edit, runs that are killed."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fake.archive import by_path, index
from fake.dicom import phantom, write
from fake.hostile_intake import HostileIntake
from fake.volumes import places, slices

from hilum.core.errors import HilumError
from hilum.core.types import IndexRow, Limits
from hilum.data import archives, ledger, listing
from hilum.data.identity import IdentityKey, Merges
from hilum.data.journal import Journal
from hilum.data.ledger import STATE
from hilum.data.pool import Pool
from hilum.data.state import in_order, places_of
from hilum.medical.dicom.intake import DicomIntake

DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from fake.archive import index
from fake.hostile_intake import HostileIntake
from hilum.core.types import Limits
limits = Limits(seconds=float(sys.argv[4]))
print(index(Path(sys.argv[1]), Path(sys.argv[2]), intakes=[HostileIntake()], workers=1, limits=limits).counts["reasons"])
"""


def start(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """An index in a group of its own; what reads ``told`` writes its process id to ``folder/pid``."""
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", DRIVER, str(folder / "root"), str(folder / "out"), tests, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def reading(folder: Path) -> int:
    """The process that reads ``told``, once it does."""
    deadline = time.monotonic() + 60
    while not (folder / "pid").is_file() or not (folder / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int((folder / "pid").read_text())


def test_a_file_removed_while_its_folder_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    write(root / "a.dcm", phantom())
    write(root / "b.dcm", phantom(1))
    listed = os.scandir

    def removing(folder: Any) -> Any:
        if not isinstance(folder, bytes):  # somebody else's
            return listed(folder)
        entries = list(listed(folder))
        (root / "b.dcm").unlink(missing_ok=True)
        return iter(entries)

    monkeypatch.setattr(listing.os, "scandir", removing)
    assert index(root, tmp_path / "out").counts["found"] == 1


def test_paths_that_are_too_long_for_the_system(tmp_path: Path) -> None:
    """A folder that can be listed and entries in it that cannot be named."""
    root = tmp_path / "root"
    root.mkdir()
    write(root / "a.dcm", phantom())
    at, length = os.open(root, os.O_RDONLY), len(os.fsencode(root))
    while length < 4000:
        name = "d" * min(200, 4060 - length)
        os.mkdir(name, dir_fd=at)
        deeper = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at, length = deeper, length + 1 + len(name)
    os.close(os.open("f" * 200, os.O_WRONLY | os.O_CREAT, dir_fd=at))
    os.mkdir("g" * 200, dir_fd=at)
    os.close(at)
    counts = index(root, tmp_path / "out").counts
    assert (counts["found"], counts["indexed"], counts["reasons"]) == (3, 1, {"unreadable": 2})
    shutil.rmtree(root)


def test_what_was_mended_without_changing_the_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    write(root / "a.dcm", phantom())
    write(root / "b.dcm", phantom(1))
    opened = Path.open

    def denied(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "a.dcm":
            raise PermissionError(errno.EACCES, "denied")
        return opened(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", denied)
        assert index(root, out).counts["reasons"] == {"unreadable": 1}
    counts = index(root, out).counts
    assert (counts["reasons"], counts["read"], counts["indexed"]) == ({}, 1, 2)
    assert index(root, out).counts["read"] == 0


def test_a_member_without_room_is_read_again_with_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    with zipfile.ZipFile(root / "z.zip", "w") as file:
        for n in range(2):
            file.write(write(tmp_path / f"{n}.dcm", phantom(n)), f"{n}.dcm")
    copied = archives._copy

    def full(source: Any, copy: Any, size: int) -> None:
        if source.name == "1.dcm":
            raise OSError(errno.ENOSPC, "no space")
        copied(source, copy, size)

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_copy", full)
        assert index(root, out).counts["reasons"] == {"unreadable": 1}
    counts = index(root, out).counts
    assert (counts["found"], counts["indexed"], counts["vanished"]) == (3, 3, 0)


class Codecs(HostileIntake):
    """Reads files that start with HOSTILE once its codec is there."""

    known: dict[str, str] = {}

    def codecs(self) -> dict[str, str]:
        return self.known

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        if not self.known:
            return [IndexRow("quarantined", "unsupported_transfer_syntax", "install the codec")]
        return super().read(path, limits)


def test_a_new_codec_or_reader_reads_what_had_waited_for_it(tmp_path: Path) -> None:
    root, out, later = tmp_path / "root", tmp_path / "out", Codecs()
    root.mkdir()
    (root / "a").write_text("HOSTILE fine")
    (root / "b").write_text("nobody's")
    with zipfile.ZipFile(root / "z.zip", "w") as file:
        file.writestr("m", "HOSTILE fine")
        file.writestr("n", "nobody's")
    write(root / "c.dcm", phantom())
    later.known = {"JPEG XL": "codec 1"}
    assert index(root, out, intakes=[Codecs()]).counts["indexed"] == 1
    assert index(root, out, intakes=[Codecs()]).counts["read"] == 0
    counts = index(root, out, intakes=[later]).counts
    assert (counts["read"], counts["indexed"], counts["vanished"]) == (4, 3, 0)
    from fake.archive import INTAKES

    counts = index(root, out, intakes=[later, *INTAKES]).counts
    assert (counts["indexed"], counts["reasons"]) == (4, {"not_dicom": 2})


@pytest.mark.parametrize("zip64", [False, True])
def test_a_directory_that_lies_about_its_size_costs_nothing(zip64: bool, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    local = b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    entries = b"".join(
        b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0) + b"%06d" % n
        for n in range(300_000)
    )
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entries), len(local), 0)
    if zip64:  # an honest record where the locator points to, another one where zipfile looks
        record = lambda n, size: b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, n, n, size, 0)  # noqa: E731
        local += record(1, 47)
        entries += record(1, len(entries)) + b"PK\x06\x07" + struct.pack("<IQI", 0, 31, 1)
        end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (root / "z.zip").write_bytes(local + entries + end)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert index(root, tmp_path / "out").counts["reasons"] == {"resource_limit": 1}
    assert time.process_time() - began < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_what_is_no_file_any_more_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe put in a file's place after it was listed: opening it would wait for ever."""
    root = tmp_path / "root"
    root.mkdir()
    write(root / "a.dcm", phantom())
    file = write(root / "b.dcm", phantom(1))
    listed = listing.Listing.__init__

    def swapping(self: Any, entries: Any) -> None:
        listed(self, entries)
        file.unlink()
        os.mkfifo(file)

    monkeypatch.setattr(listing.Listing, "__init__", swapping)
    began = time.monotonic()
    counts = index(root, tmp_path / "out", workers=1, limits=Limits(seconds=5)).counts
    assert counts["reasons"] == {"unreadable": 1} and time.monotonic() - began < 5


class Odd(HostileIntake):
    """Hands over identifiers that are no text."""

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        return [IndexRow("indexed", identity={"group": ("", 7), "series": b"1"} if path.name == "odd" else {})]


def test_identifiers_of_another_kind_cost_their_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("odd", "plain"):
        (root / name).write_text("HOSTILE")
    counts = index(root, tmp_path / "out", intakes=[Odd()]).counts
    assert (counts["indexed"], counts["reasons"]) == (1, {"parse_error": 1})


@pytest.mark.parametrize("path", ["d/z.zip!p/{}.dcm", "z.zip!p/{}.dcm", "p/{}.dcm", "{}.dcm", "x/y/d/z.zip!p/{}.dcm"])
def test_labels_find_members_by_their_path(path: str, tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    (root / "d").mkdir(parents=True)
    with zipfile.ZipFile(root / "d" / "z.zip", "w") as file:
        for n in range(3):
            file.write(write(tmp_path / f"{n}.dcm", phantom(n)), f"p/{n}.dcm")
    table = pa.table({"path": [path.format(n) for n in (2, 0, 1)], "finding": [1, 0, 0]})
    assert index(root, out, labels=table).counts["labels"] == {
        "rows": 3, "rows_unmatched": 0, "files": 3, "files_unmatched": 0,
    }  # fmt: skip
    labels = ledger.pq.read_table(out / "labels.parquet").to_pylist()
    [positive] = [row["sample_id"] for row in labels if row["finding"] == 1]
    assert by_path(out)["d/z.zip!p/2.dcm"]["sample_id"] == positive


def test_labels_of_a_run_that_was_never_finished_are_not_taken_for_ours(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    write(root / "a.dcm", phantom())
    index(root, out, labels=pa.table({"path": ["a.dcm"], "finding": [1]}))
    (out / "study.json").unlink()  # which is written last
    index(root, out)
    assert not (out / "labels.parquet").exists()


def test_what_killed_runs_left_half_written_is_removed(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    write(root / "a.dcm", phantom())
    (out / "private" / "journal").mkdir(parents=True)
    (out / "private" / ".journal-77").mkdir()
    left = [out / ".index.parquet.abcd_123", out / "private/.state.parquet.abcd_123", out / "private/.journal-77/x"]
    kept = [out / ".notes.txt.abcd_123", out / ".index.parquet.orig"]
    for file in (*left, *kept):
        file.write_bytes(b"half")
    index(root, out)
    assert not any(file.exists() for file in left) and all(file.exists() for file in kept)
    assert not list((out / "private").glob(".*"))


def test_a_lock_that_went_with_its_journal_is_nobodys(tmp_path: Path) -> None:
    private = tmp_path / "private"
    with Journal(private, key="k") as first:
        first.finish()
        with Journal(private, key="k"), pytest.raises(HilumError, match="another run"), Journal(private, key="k"):
            pass  # pragma: no cover
    with Journal(private, key="k") as last:
        assert last.scratch.is_dir()


MERGES = b"issuer,patient_id,into_issuer,merge_into\n"


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + MERGES.replace(b"\n", b"\r\n") + b",AB 1,,ab 2\r\n",
        MERGES.replace(b",", b";") + b";AB 1;;ab 2\n",
        MERGES + b"\n,AB 1,,ab 2\n\n",
    ],
    ids=["byte order mark", "semicolons", "blank lines"],
)
def test_merges_come_back_from_a_spreadsheet(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "merges.csv").write_bytes(text)
    assert Merges.read(tmp_path / "merges.csv").rows == {("", "AB 1"): ("", "ab 2")}


@pytest.mark.parametrize("text", [MERGES + b",AB 1\n", MERGES + b",AB 1,,ab,2\n", MERGES + b",\xe9,,e\n", b""], ids=str)
def test_merges_that_are_no_table_are_refused_without_quoting_them(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "merges.csv").write_bytes(text)
    with pytest.raises(HilumError, match=r"merges\.csv") as told:
        Merges.read(tmp_path / "merges.csv")
    assert "AB" not in str(told.value)


def test_merges_survive_any_identifier(tmp_path: Path) -> None:
    merges = Merges()
    merges.add([("", "a\rb"), ("x;y", 'q"\n,'), ("", "n" * 200_000), ("", " ")])
    ledger.write_csv(merges.lines(), tmp_path / "merges.csv", private=True)
    assert Merges.read(tmp_path / "merges.csv") == merges


def test_two_members_of_one_place_have_one_order() -> None:
    """``a!b`` holding ``c`` and ``a`` holding ``b!c`` read the same."""
    pairs = [("a", "b!c"), ("a!b", "c")]
    rows = [{"sample_id": s, "path": p, "member": m} for s, (p, m) in zip("xy", pairs, strict=True)]
    tables = [pa.Table.from_pylist([row], schema=STATE) for row in rows]
    one, other = (pa.concat_tables(in_order(t)) for t in (tables, tables[::-1]))
    assert one.equals(other) and len(set(places_of(one).to_pylist())) == 1


class _Core:
    """A task that answers with the limit on core dumps."""

    def __call__(self, job: Any) -> Any:
        return resource.getrlimit(resource.RLIMIT_CORE)

    def pack(self, answers: list[Any]) -> list[Any]:
        return answers

    def lost(self, job: Any, part: int, row: IndexRow, pid: int) -> Any:
        raise AssertionError


def test_a_reader_that_crashes_leaves_no_dump() -> None:
    answers = [a for _, packed in Pool(_Core(), workers=1, limits=Limits()).run([1]) for a in packed]
    assert answers == [(0, 0)]


def test_time_for_which_everything_was_stopped_is_no_files(tmp_path: Path) -> None:
    """Ctrl-Z, a freezer, a debugger: what is being read then does not end as a file that takes too long."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "told").write_text("HOSTILE tell 2")
    process = start(tmp_path, seconds=4)
    reading(tmp_path)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(5)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=60)[0].strip() == "{}"


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells children of their parent's end on Linux")
def test_a_reader_that_hangs_ends_with_a_run_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "told").write_text("HOSTILE tell 60")
    process = start(tmp_path, seconds=100)
    worker = reading(tmp_path)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while _alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_key_that_others_may_read_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "id.key"
    file.write_bytes(bytes(32))
    for mode, told in ((0o600, 0), (0o640, 1)):
        file.chmod(mode)
        caplog.clear()
        assert IdentityKey.load(file) == IdentityKey(bytes(32))
        assert len(caplog.records) == told and all("chmod 600" in r.getMessage() for r in caplog.records)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(HilumError) as told:
        ledger.write_json({}, tmp_path / "a.json")
    assert told.value.where == str(tmp_path)


def test_a_file_in_a_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HilumError, match=r"cannot write a\.json") as told:
        ledger.write_json({}, tmp_path / "file" / "a.json")
    assert told.value.where == str(tmp_path / "file")


class Dying(DicomIntake):
    """Dies with the pixels of one file, or with its header, too."""

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        if path.name == "3.dcm":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(path, limits)


class DyingTwice(Dying):
    def read_header(self, path: Path, limits: Limits) -> list[IndexRow]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.mark.parametrize("intake", [Dying(), DyingTwice()])
def test_a_file_that_ends_its_reader_is_known_to_lack_in_its_volume(intake: Any, tmp_path: Path) -> None:
    slices(tmp_path / "root", places())
    names = sorted(f.name for f in (tmp_path / "root").iterdir())
    (tmp_path / "root" / names[-1]).rename(tmp_path / "root" / "3.dcm")
    result = index(tmp_path / "root", tmp_path / "out", intakes=[intake], workers=1)
    assert result.counts["reasons"] == {"resource_limit": 1}
    (volume,) = ledger.pq.read_table(tmp_path / "out" / "series.parquet").to_pylist()
    known = not isinstance(intake, DyingTwice)
    assert volume["usable"] != known and any(p.startswith("lost_slices:1") for p in volume["problems"]) == known
    row = by_path(tmp_path / "out")["3.dcm"]
    assert row["status"] == "quarantined" and (row["series_id"] is not None) == known and row["stored_sha256"] is None


def test_which_files_came_first_does_not_decide_whose_they_are(tmp_path: Path) -> None:
    """A bare identifier of one issuer is that issuer's, until a second issuer uses it."""
    root = tmp_path / "root"
    for name, issuer in (("a", "H1"), ("b", None)):
        write(root / f"{name}.dcm", phantom(ord(name)), patient="AB-7", study=ord(name), IssuerOfPatientID=issuer)
    first = index(root, tmp_path / "out")
    assert len((first.study / "private/merges.csv").read_text().splitlines()) == 3
    write(root / "c.dcm", phantom(3), patient="AB-7", study=3, IssuerOfPatientID="H2")
    index(root, tmp_path / "out")
    index(root, tmp_path / "fresh")
    for name in ("index.parquet", "private/merges.csv", "private/root.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes(), name
    rows = by_path(tmp_path / "out")
    assert rows["b.dcm"]["problems"] == ["issuer_missing"] and not rows["b.dcm"]["group_known"]
    lines = (tmp_path / "out/private/merges.csv").read_text() + ",AB-7,H1,ab7\n"
    (tmp_path / "out/private/merges.csv").write_text(lines)  # the user knows
    for _ in range(2):
        index(root, tmp_path / "out")
        rows = by_path(tmp_path / "out")
        assert ",AB-7,H1,ab7" in (tmp_path / "out/private/merges.csv").read_text()
        assert rows["b.dcm"]["problems"] == [] and rows["b.dcm"]["group_known"]


def test_equal_pixels_of_another_meaning_are_no_copies(tmp_path: Path) -> None:
    root = tmp_path / "root"
    same = {"patient": "P", "study": 1}
    write(root / "a.dcm", phantom(), **same, SOPInstanceUID="1.2.3", RescaleSlope=1, RescaleIntercept=-1024)
    write(root / "b.dcm", phantom(), **same, SOPInstanceUID="1.2.3", RescaleSlope=3, RescaleIntercept=0)
    write(root / "c.dcm", phantom(), **same, SOPInstanceUID="1.2.4", PhotometricInterpretation="MONOCHROME1")
    write(root / "d.dcm", phantom(), **same, SOPInstanceUID="1.2.5", RescaleSlope=1, RescaleIntercept=-1024)
    index(root, tmp_path / "out")
    rows = by_path(tmp_path / "out")
    assert [rows[f"{n}.dcm"]["problems"] for n in "abcd"] == [["uid_conflict"], ["uid_conflict"], [], []]
    assert all(rows[f"{n}.dcm"]["duplicate_of"] is None for n in "abcd")
