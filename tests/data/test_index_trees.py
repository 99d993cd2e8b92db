"""found = indexed + skipped + quarantined, for any tree: odd names, links, loops, pipes, archives, empty and torn files."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake.archive import index
from fake.dicom import phantom, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilum.data.ledger import path_bytes, path_text
from hilum.data.study import Study

pytestmark = pytest.mark.filterwarnings("ignore")

names = st.one_of(
    st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=8).map(
        str.encode
    ),
    st.binary(min_size=1, max_size=6).map(lambda b: b.replace(b"/", b"_").replace(b"\0", b"_")),
    st.sampled_from([b"new\nline", b"\x1b[2J", b"a!b", b"x.zip!y", b"\xff\xfe", b"\\x00"]),
).filter(lambda n: n not in (b".", b"..") and len(n) < 200)
contents = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=40).map(lambda tail: b"\0" * 128 + b"DICM" + tail),
    st.binary(max_size=40).map(lambda tail: b"\x89PNG\r\n\x1a\n" + tail),
    st.binary(max_size=40).map(lambda tail: b"\x08\x00\x05\x00CS" + tail),
    st.binary(max_size=60).map(lambda tail: b"PK\x03\x04" + tail),
    st.just(b"\0" * (1 << 20)),
)
member = st.text("abc/é.", min_size=1, max_size=5).filter(lambda n: ".." not in n and n.strip("/") and n[0] != "/")
zips = st.dictionaries(member, contents, max_size=3)
entries = st.one_of(contents, contents, zips, st.sampled_from(["fifo", "link", "loop", "up", "folder"]))


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, b"" if name.endswith("/") else data)
    return buffer.getvalue()


def make(path: bytes, entry: Any) -> int:
    """Put an entry into a tree; how many rows it must give."""
    file = Path(os.fsdecode(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_symlink() or file.exists():
        raise FileExistsError
    if isinstance(entry, dict):
        file.write_bytes(zipped(entry))
        return 1 + sum(not name.endswith("/") for name in entry)
    if isinstance(entry, bytes):
        file.write_bytes(entry)
    elif entry == "fifo":
        os.mkfifo(file)
    elif entry == "folder":
        file.mkdir()
        return 0
    else:
        file.symlink_to({"link": "nowhere", "loop": file.name, "up": ".."}[entry])
    return 1


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.lists(names, min_size=1, max_size=3).map(tuple), entries, min_size=1, max_size=6))
def test_any_tree_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[tuple[bytes, ...], Any]
) -> None:
    root = tmp_path_factory.mktemp("tree") / "archive"
    write(root / "always.dcm", phantom(1))
    made, places = 1, {b"always.dcm"}
    for parts, entry in tree.items():
        if any(Path(root, *map(os.fsdecode, parts[:n])).is_symlink() for n in range(1, len(parts))):
            continue  # written through a link it would lie elsewhere
        try:
            made += make(b"/".join((os.fsencode(root), *parts)), entry)
            places.add(b"/".join(parts))
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # one entry's file is another one's folder
    counts = index(root, root.parent / "study").counts
    assert counts["found"] == made == counts["indexed"] + counts["skipped"] + counts["quarantined"]
    study = Study(root.parent / "study")
    rows = study.index.to_pylist()
    assert len({r["sample_id"] for r in rows}) == made and all(r["reason"] or r["status"] == "indexed" for r in rows)
    paths = pq.read_table(study.path / "private/paths.parquet").column("path").to_pylist()
    assert len(paths) == made
    for row, (path, about) in enumerate(zip(paths, rows, strict=True)):
        if about["status"] == "indexed" and about["role"] == "image":
            assert study.file(row) == (root / os.fsdecode(path_bytes(path)), "")
    again = index(root, root.parent / "study")
    assert again.counts["found"] == made and again.counts["vanished"] == 0
    other = root.parent / "other"
    index(root, other)
    assert (other / "index.parquet").read_bytes() == (study.path / "index.parquet").read_bytes()


def test_control_characters_in_names_reach_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from hilum.core.cli import main

    root = tmp_path / "archive"
    write(root / "good.dcm", phantom(1))
    for name in ("\x1b[2Jred\x07.dcm", "two\nlines.dcm", "\x1b]0;title\x07"):
        (root / name).write_bytes(b"\0" * 128 + b"DICM" + b"torn")
    write(root / "\x1b[31m/x.dcm", phantom(2), study=2)
    code = main(["index", str(root), "--out", str(tmp_path / "s"), "--workers", "0"])
    code += main(["doctor", str(tmp_path / "s")])
    told = "".join(capfd.readouterr())
    assert code == 3 and "found 5 = indexed 2" in told
    assert not any(ord(letter) < 32 and letter != "\n" for letter in told) and "lines.dcm" not in told


@pytest.mark.parametrize(
    "name", [b"a\\x62.dcm", b"a\xff", b"a\\xff", b"\\", b"\\x", b"\\x5cx62", b"\\\xe9x41", "ä\\".encode()]
)
def test_a_stored_path_names_one_file(name: bytes) -> None:
    """A file called backslash, x, six, two is not the one called b."""
    assert path_bytes(path_text(name)) == name
