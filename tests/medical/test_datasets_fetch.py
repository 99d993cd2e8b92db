"""``hilum fetch`` and ``hilum list datasets``: steps for all, downloads from a loopback server for a set that is open."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hilum.core.cli import main
from hilum.core.errors import HilumError
from hilum.core.registry import registry
from hilum.data.cards import Dataset, DatasetCard, Download, cards
from hilum.verbs import fetching


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the loopback address that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Registers a set of some downloads for one test."""

    def made(*downloads: Download, terms: str = "open") -> str:
        class Small(Dataset):
            card = DatasetCard(
                "test/small", "Small", "CC0", "http://x", "c", terms, "g", "l", "s", ("Look.",), downloads=downloads,
            )  # type: ignore[arg-type]  # fmt: skip

        monkeypatch.setattr(registry, "local", {})
        registry.register("dataset", "test/small", Small)
        return "test/small"

    return made


def zipped(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    return data.getvalue()


def tarred(*members: tarfile.TarInfo, content: bytes = b"") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as bundle:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            bundle.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return data.getvalue()


def test_steps_of_every_set_end_with_its_index_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name, card in cards().items():
        assert main(["fetch", name]) == 0
        told = capsys.readouterr().out
        assert told.rstrip().endswith(f"hilum index ROOT --out STUDY --dataset {name}")
        assert card.licence in told and card.url in told and card.group in told and all(s in told for s in card.steps)


def test_list_datasets_shows_the_cards(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "datasets"]) == 0
    told = capsys.readouterr().out
    assert all(name in told and card.licence in told for name, card in cards().items())
    assert main(["list", "data"]) == 1


def test_what_needs_an_agreement_is_not_downloaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "chexpert", "--out", str(tmp_path / "d")]) == 1
    told = capsys.readouterr()
    assert "Register" in told.out and "agreement" in told.err and not (tmp_path / "d").exists()


def test_an_open_set_is_downloaded_checked_and_unpacked(
    served: tuple[Path, str], small: Callable[..., str], tmp_path: Path
) -> None:
    folder, address = served
    data = zipped({"a/one.txt": b"1", "a/._one.txt": b"x", "two.txt": b"2" * 1000})
    (folder / "set.zip").write_bytes(data)
    (folder / "table.csv").write_bytes(b"a,b\n")
    good = Download(f"{address}/set.zip", f"sha256:{hashlib.sha256(data).hexdigest()}")
    name = small(good, Download(f"{address}/table.csv?download=1"))
    out = tmp_path / "out"
    assert [p.name for p in fetching.fetch(name, out=out).files] == ["set.zip", "table.csv"]
    assert (out / "a/one.txt").read_bytes() == b"1" and (out / "two.txt").stat().st_size == 1000
    assert not (out / "a/._one.txt").exists() and not list(out.glob("*.part"))
    (folder / "set.zip").unlink()  # what is there and right is not fetched again
    assert fetching.fetch(name, out=out, only="SET").files == (out / "set.zip",)
    with pytest.raises(HilumError, match="no file of"):
        fetching.fetch(name, out=out, only="other")


@pytest.mark.parametrize(
    ("more", "where", "fix"),
    [
        (["--out", "{at}/file"], "{at}/file", "another --out"),
        (["--out", "{at}/file/out"], "{at}/file/out", "another --out"),
        (["--out", "{at}/taken"], "{at}/taken", "another --out"),
        (["--out", "{at}/out", "--only", "Task99"], "--only", "a part of: set.zip, table.csv"),
    ],
)
def test_wrong_use_is_told_with_its_place_and_a_way_out(
    served: tuple[Path, str],
    small: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    where: str,
    fix: str,
) -> None:
    folder, address = served
    (folder / "set.zip").write_bytes(zipped({"a": b"1"}))
    (folder / "table.csv").write_bytes(b"a,b\n")
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "taken" / "set.zip.part").mkdir(parents=True)
    name = small(Download(f"{address}/set.zip"), Download(f"{address}/table.csv"))
    assert main(["fetch", name, *(word.format(at=tmp_path) for word in more)]) == 1
    told = capsys.readouterr()
    assert where.format(at=tmp_path) in told.err and fix in told.err and "network" not in told.err
    assert "1. Look." in told.out and not list(tmp_path.glob("*/a"))


def test_a_name_that_is_none_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "chexpertt"]) == 1
    assert "chexpert" in capsys.readouterr().err


def test_a_wrong_checksum_leaves_nothing(served: tuple[Path, str], small: Callable[..., str], tmp_path: Path) -> None:
    folder, address = served
    (folder / "set.zip").write_bytes(zipped({"a": b"1"}))
    name = small(Download(f"{address}/set.zip", "md5:" + "0" * 32))
    with pytest.raises(HilumError, match="not the published file"):
        fetching.fetch(name, out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_without_a_network_the_steps_stand_and_the_exit_is_1(
    small: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = small(Download("http://127.0.0.1:9/set.zip"))  # the discard port: nobody listens
    assert main(["fetch", name, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "1. Look." in told.out and "could not be downloaded" in told.err and not list(tmp_path.glob("set*"))
    for address in ("http://example.org/set.zip", "file:///etc/passwd", "ftp://127.0.0.1/x"):
        with pytest.raises(HilumError, match="only https"):
            fetching.fetch(small(Download(address)), out=tmp_path)


LINK, DEVICE, OUTSIDE = tarfile.TarInfo("link"), tarfile.TarInfo("null"), tarfile.TarInfo("../outside.txt")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "/etc"
DEVICE.type = tarfile.CHRTYPE


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("a.zip", zipped({"../outside.txt": b"x"}), "outside its folder"),
        ("a.zip", zipped({"..\\outside.txt": b"x"}), "outside its folder"),
        ("a.zip", zipped({"/tmp/x": b"x"}), "outside its folder"),
        ("a.zip", zipped({"C:/x": b"x"}), "outside its folder"),
        ("a.tar", tarred(OUTSIDE, content=b"x"), "outside its folder"),
        ("a.tar", tarred(LINK), "a link or a device"),
        ("a.tar", tarred(DEVICE), "a link or a device"),
        ("a.zip", zipped({"bomb": bytes(1 << 22)}), "200 times its size"),
        ("a.zip", b"PK\3\4 cut", "damaged"),
        ("a.tar", b"no tar at all", "damaged"),
    ],
)
def test_archives_that_must_not_be_unpacked(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(data)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(HilumError, match=what):
        fetching.unpack(tmp_path / name, out)
    assert not list(out.iterdir()) and not (tmp_path / "outside.txt").exists()


def test_a_link_that_was_there_before_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"sub/x": b"x"}))
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HilumError, match="through a link"):
        fetching.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def _encrypted() -> bytes:
    data = bytearray(zipped({"x": b"1" * 100}))
    data[data.index(b"PK\3\4") + 6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def _method(number: int) -> bytes:
    data = bytearray(zipped({"x": b"1" * 100}))
    data[data.index(b"PK\3\4") + 8] = data[data.index(b"PK\1\2") + 10] = number
    return bytes(data)


def _torn() -> bytes:
    data = bytearray(zipped({"x": bytes(range(256)) * 40}))
    data[60:80] = b"\xff" * 20
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (zipped({"a": b"1", "a/b": b"2"}), "cannot be unpacked"),
        (zipped({"x" * 300: b"1"}), "cannot be unpacked"),
        (_encrypted(), "encrypted"),
        (_method(97), "not read"),
        (_torn(), "damaged"),
    ],
)
def test_archives_that_no_file_can_be_made_of_are_errors_with_a_fix(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "a.zip").write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(HilumError, match=what):
        fetching.unpack(tmp_path / "a.zip", tmp_path / "out")


def test_neither_a_link_nor_the_archive_itself_is_written_over(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").symlink_to(victim)
    (tmp_path / "a.zip").write_bytes(zipped({"x": b"x"}))
    with pytest.raises(HilumError, match="over a link"):
        fetching.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert victim.read_bytes() == b"precious"
    own = zipped({"a.zip": b"x"})
    (tmp_path / "out/a.zip").write_bytes(own)
    with pytest.raises(HilumError, match="itself"):
        fetching.unpack(tmp_path / "out/a.zip", tmp_path / "out")
    assert (tmp_path / "out/a.zip").read_bytes() == own


def test_an_address_may_not_send_on_to_one_that_is_not_fetched(small: Callable[..., str], tmp_path: Path) -> None:
    class Moved(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://example.invalid/set.zip")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Moved)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    name = small(Download(f"http://127.0.0.1:{server.server_address[1]}/set.zip"))
    with pytest.raises(HilumError, match="only https"):
        fetching.fetch(name, out=tmp_path / "out")
    server.shutdown()
    server.server_close()
    assert not list((tmp_path / "out").iterdir())
