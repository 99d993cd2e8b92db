"""Every file accounted for, whatever the file does; the same study for any order and number of workers."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake.archive import by_path, index
from fake.dicom import dataset, phantom, write
from fake.hostile_intake import HostileIntake
from PIL import Image

from hilum.core.errors import HilumError
from hilum.core.types import Limits
from hilum.data import ledger
from hilum.data.split import make_split
from hilum.data.study import Study

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom, when it writes the faulty files


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Some of everything."""
    root = tmp_path / "archive"
    for n in range(4):
        write(root / f"p{n}/im.dcm", phantom(n), patient=f"P{n}", study=n)
    write(root / "p0/again.dcm", phantom(0), patient="P0", study=0)  # the same instance, sent again
    whole = (root / "p1/im.dcm").read_bytes()
    (root / "cut.dcm").write_bytes(whole[:-100])
    (root / "empty.dcm").write_bytes(b"")
    (root / "notes.dcm").write_text("these are notes, not an image\n" * 20)
    (root / "readme.txt").write_text("hello")
    (root / "a.zip").write_bytes(b"PK\x03\x04" + b"\0" * 40)
    Image.fromarray(phantom(9).astype(np.uint8)).save(root / "grey.png")
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to("loop")
    (root / "up").symlink_to("..")
    (root / "nowhere").symlink_to("missing")
    (root / "other").symlink_to("p0/im.dcm")
    return root


class Backwards(list):
    """What ``os.scandir`` gives, in another order."""

    def __enter__(self) -> Backwards:
        return self

    def __exit__(self, *error: object) -> None:
        return None


EXPECTED = {
    "p0/im.dcm": ("indexed", ""),
    "p0/again.dcm": ("indexed", ""),
    "p1/im.dcm": ("indexed", ""),
    "p2/im.dcm": ("indexed", ""),
    "p3/im.dcm": ("indexed", ""),
    "grey.png": ("indexed", ""),
    "cut.dcm": ("quarantined", "truncated_pixels"),
    "empty.dcm": ("quarantined", "empty_file"),
    "notes.dcm": ("quarantined", "not_dicom"),
    "readme.txt": ("quarantined", "not_dicom"),
    "a.zip": ("quarantined", "unsafe_archive"),
    "pipe": ("quarantined", "special_file"),
    "loop": ("quarantined", "cycle"),
    "up": ("quarantined", "cycle"),
    "nowhere": ("quarantined", "special_file"),
    "other": ("quarantined", "special_file"),
}


def test_every_file_ends_in_one_row_with_its_reason(archive: Path, tmp_path: Path) -> None:
    result = index(archive, tmp_path / "s")
    rows = by_path(result.study)
    assert {p: (r["status"], r["reason"]) for p, r in rows.items()} == EXPECTED
    counts = result.counts
    assert counts["found"] == len(EXPECTED) == counts["indexed"] + counts["skipped"] + counts["quarantined"]
    assert counts["reasons"]["special_file"] == 3 and result.exit_code == 3
    index_table = pq.read_table(result.study / "index.parquet")
    assert index_table.schema.names == ledger.COLUMNS.names
    paths = pq.read_table(result.study / "private/paths.parquet").column("path").to_pylist()
    assert paths == sorted(paths, key=str.encode)
    assert json.loads((result.study / "study.json").read_text())["counts"] == {
        k: n for k, n in counts.items() if k != "read"
    }


def test_same_study_for_any_order_and_number_of_workers(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [index(archive, tmp_path / f"s{n}", workers=n) for n in (0, 1, 2)]
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda *folder: Backwards(reversed(list(scandir(*folder)))))
    results.append(index(archive, tmp_path / "reversed"))
    for name in ("index.parquet", "series.parquet", "study.json", "private/paths.parquet", "private/state.parquet"):
        written = {(r.study / name).read_bytes() for r in results}
        assert len(written) == 1, name


def test_private_files_are_for_the_owner_only(archive: Path, tmp_path: Path) -> None:
    study = index(archive, tmp_path / "s").study
    assert stat.S_IMODE((study / "private").stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in (study / "private").iterdir()} == {0o600}
    assert not list(study.rglob(".*"))  # no leftovers of writing


def test_readers_that_die_cost_one_file_each(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    deeds = ["fine", "crash", "killed", "hang", "hog", "deep", "stop", "name"]
    for copy in range(2):
        for deed in deeds:
            (root / f"{deed}{copy}").write_text(f"HOSTILE {deed}")
    limits = Limits(seconds=1.5, max_bytes=1 << 28)
    result = index(root, tmp_path / "s", workers=2, intakes=(HostileIntake(),), limits=limits)
    reasons = {p[:-1]: (r["status"], r["reason"]) for p, r in by_path(result.study).items()}
    assert len(by_path(result.study)) == 16
    assert reasons == {
        "fine": ("indexed", ""),
        "crash": ("quarantined", "codec_error"),
        "killed": ("quarantined", "resource_limit"),
        "hang": ("quarantined", "resource_limit"),
        "hog": ("quarantined", "resource_limit"),
        "deep": ("quarantined", "resource_limit"),
        "stop": ("quarantined", "parse_error"),
        "name": ("quarantined", "parse_error"),
    }
    assert "Doe" not in str(pq.read_table(result.study / "index.parquet").to_pylist())


def test_second_run_reads_only_what_changed(archive: Path, tmp_path: Path) -> None:
    first = index(archive, tmp_path / "s")
    before = (tmp_path / "s/index.parquet").read_bytes()
    assert index(archive, tmp_path / "s").counts["read"] == 0
    assert (tmp_path / "s/index.parquet").read_bytes() == before
    write(archive / "p1/im.dcm", phantom(1) + 1, patient="P1", study=1)
    write(archive / "p9/new.dcm", phantom(9), patient="P9", study=9)
    (archive / "grey.png").unlink()
    second = index(archive, tmp_path / "s")
    assert (second.counts["read"], second.counts["vanished"]) == (2, 1)
    assert second.counts["found"] == first.counts["found"]
    rows = by_path(second.study)
    assert (rows["grey.png"]["status"], rows["grey.png"]["reason"]) == ("skipped", "vanished")
    fresh = by_path(index(archive, tmp_path / "fresh").study)
    assert {p: r for p, r in rows.items() if p != "grey.png"} == fresh
    with pytest.raises(HilumError, match="another identity key"):
        other = tmp_path / "other.key"
        other.write_bytes(b"k" * 32)
        index(archive, tmp_path / "s", id_key=other)


def test_copies_and_conflicts(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    write(root / "a.dcm", phantom(1), patient="A", study=1)
    write(root / "b.dcm", phantom(1), patient="A", study=1)  # sent twice
    write(root / "c.dcm", phantom(2), patient="C", study=2)
    write(root / "d.dcm", phantom(3), patient="C", study=2)  # same UID, other pixels
    write(root / "e.dcm", phantom(4), patient="E", study=3)
    write(root / "f.dcm", phantom(4), patient="F", study=4)  # same pixels, other patient
    write(root / "g.dcm", phantom(5), patient="G", study=5)
    study = Study(index(root, tmp_path / "s").study)
    rows = by_path(study.path)
    assert rows["b.dcm"]["duplicate_of"] == rows["a.dcm"]["sample_id"] and rows["b.dcm"]["status"] == "indexed"
    assert rows["a.dcm"]["duplicate_of"] is None
    problems = {p: r["problems"] for p, r in rows.items() if r["problems"]}
    assert problems == {
        "c.dcm": ["uid_conflict"],
        "d.dcm": ["uid_conflict"],
        "e.dcm": ["same_pixels_other_patient"],
        "f.dcm": ["same_pixels_other_patient"],
    }
    chosen = study.column("sample_id")[study.rows()]
    assert set(chosen) == {rows[p]["sample_id"] for p in ("a.dcm", "e.dcm", "f.dcm", "g.dcm")}


def test_copies_under_new_uids_count_once_for_a_known_patient(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    for name, seed, patient, instance in (
        ("a", 1, "A", 1), ("b", 1, "A", 2), ("c", 1, "A", 3),  # sent again under other UIDs
        ("d", 1, "D", 4),  # another patient's
        ("e", 2, None, 5), ("f", 2, None, 6),  # nobody knows whether this is one patient
        ("g", 3, "G", 7), ("h", 4, "G", 7), ("i", 3, "G", 8),  # a conflict is no original
    ):  # fmt: skip
        write(root / f"{name}.dcm", phantom(seed), patient=patient, study=instance, instance=instance)
    write(root / "j.dcm", np.zeros((24, 32), np.uint16), patient="J", study=10)
    write(root / "k.dcm", np.zeros((24, 32), np.uint16), patient="J", study=11)  # constant: no evidence
    write(root / "l.dcm", phantom(1).reshape(12, 64), patient="A", study=12)  # the same bytes, another shape
    study = Study(index(root, tmp_path / "s").study)
    rows = by_path(study.path)
    names = {r["sample_id"]: p[0] for p, r in rows.items()}
    assert {p[0]: names[r["duplicate_of"]] for p, r in rows.items() if r["duplicate_of"]} == {"b": "a", "c": "a"}
    assert {names[s] for s in study.column("sample_id")[study.rows()]} == set("adefijkl")


def test_nothing_private_is_written_outside_private(tmp_path: Path) -> None:
    """A hundred planted identifiers in names, numbers, paths, free text: none in a public file, few in private ones."""
    root, canaries = tmp_path / "archive", []
    for n in range(20):
        words = [f"Canary{n:02}{kind}" for kind in ("Name", "Id", "Acc", "Path", "Text")]
        canaries += words
        extra = {
            "PatientName": words[0],
            "AccessionNumber": words[2],
            "BodyPartExamined": words[4][:16],
            "ViewPosition": words[4][:16],
        }
        extra |= {
            "WindowCenterWidthExplanation": words[4],
            "WindowCenter": 9,
            "WindowWidth": 9,
            "InstitutionName": words[4],
        }
        write(root / f"{words[3]}/im{n}.dcm", phantom(n), patient=words[1], issuer=words[4], study=n, **extra)
    file = next(root.rglob("im3.dcm"))
    file.write_bytes(file.read_bytes()[:-50])
    write(
        root / "x.dcm", phantom(99), patient=" canary00id", issuer="Canary00Text", study=99
    )  # merges with another spelling
    reports = tmp_path / "reports.csv"
    reports.write_text(
        "accession,text\n" + "".join(f"Canary{n:02}Acc,no finding for Canary{n:02}Name\n" for n in range(20))
    )
    study = index(root, tmp_path / "s", reports=reports, workers=1).study

    def leaks(file: Path) -> list[str]:
        content = file.read_bytes() if file.suffix != ".parquet" else str(pq.read_table(file).to_pylist()).encode()
        return [c for c in canaries if c.casefold().encode() in content.lower()]

    public = [f for f in study.rglob("*") if f.is_file() and "private" not in f.parts]
    assert len(public) >= 3 and {f.name: leaks(f) for f in public} == {f.name: [] for f in public}
    private = {f.name: {c[8:] for c in leaks(f)} for f in (study / "private").iterdir()}
    assert private["paths.parquet"] == {"Path"} and private["state.parquet"] == {"Path"}
    assert private["merges.csv"] == {"Id", "Text"} and private["reports.parquet"] == {"Name"}
    assert sum(pq.read_table(study / "index.parquet").column("has_report").to_pylist()) == 20


def test_headers_only_says_what_it_can(archive: Path, tmp_path: Path) -> None:
    result = index(archive, tmp_path / "s", headers_only=True)
    row = by_path(result.study)["p0/im.dcm"]
    assert row["status"] == "indexed" and row["rows"] == 24 and row["modality"] == "DX"
    assert row["stored_sha256"] is None and row["mean"] is None
    assert by_path(result.study)["cut.dcm"]["reason"] == "truncated_pixels"
    with pytest.raises(HilumError, match="no hash of their pixels") as caught:
        make_split(Study(result.study), near=False)
    assert "--headers-only" in caught.value.fix and not (result.study / "splits").exists()
    full = index(archive, tmp_path / "s")  # the same study again, now with pixels
    assert by_path(full.study)["p0/im.dcm"]["mean"] is not None


def test_excluded_files_and_the_study_itself(archive: Path, tmp_path: Path) -> None:
    result = index(archive, archive / "study", exclude=["p0", "*.txt"])
    rows = by_path(result.study)
    assert {p for p, r in rows.items() if r["reason"] == "excluded"} == {"p0/im.dcm", "p0/again.dcm", "readme.txt"}
    again = index(archive, archive / "study", exclude=["p0", "*.txt"])
    assert again.counts["found"] == result.counts["found"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    write(root / "plain.dcm", phantom(1))
    (root / "plain.dcm").rename(os.fsdecode(os.fsencode(root) + b"/M\xfcller.dcm"))
    write(root / "new\nline.dcm", phantom(2), study=2)
    study = Study(index(root, tmp_path / "s").study)
    assert set(by_path(study.path)) == {"M\\xfcller.dcm", "new\nline.dcm"}
    assert all(study.file(row)[0].is_file() for row in range(2))


def test_exit_codes(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    for n in range(9):
        write(root / f"{n}.dcm", phantom(n), study=n)
    (root / "a.txt").write_text("x")
    (root / "b").write_bytes(b"")
    assert index(root, tmp_path / "clean").exit_code == 0  # only harmless ones are quarantined
    (root / "cut.dcm").write_bytes((root / "0.dcm").read_bytes()[:-9])
    index(root, tmp_path / "gone")
    for n in range(1, 9):
        (root / f"{n}.dcm").rename(root / f"new{n}.dcm")
    assert index(root, tmp_path / "gone", max_quarantined=0.07).exit_code == 3  # 1 of 12, vanished ones not counted
    assert index(root, tmp_path / "s").exit_code == 3
    assert index(root, tmp_path / "s", max_quarantined="10%").exit_code == 0
    assert index(root, tmp_path / "s", max_quarantined=0.05).exit_code == 3
    with pytest.raises(HilumError, match="share"):
        index(root, tmp_path / "s", max_quarantined="ten")
    for bad, words in ((tmp_path / "absent", "not a folder"), (tmp_path / "void", "no files")):
        (tmp_path / "void").mkdir(exist_ok=True)
        with pytest.raises(HilumError, match=words):
            index(bad, tmp_path / "t")


def test_series_of_one_image_are_usable(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    write(root / "one.dcm", phantom(1), study=1)
    for n in range(3):
        write(root / f"many{n}.dcm", phantom(2 + n), study=2, instance=n)
    data = dataset(np.stack([phantom(7), phantom(8)]), study=3, frames=2)
    data.save_as(root / "cine.dcm", enforce_file_format=True)
    series = pq.read_table(index(root, tmp_path / "s").study / "series.parquet").to_pylist()
    assert sorted((len(s["sample_ids"]), s["frames"], s["usable"], bool(s["problems"])) for s in series) == [
        (1, 1, True, False),
        (1, 2, False, True),
        (3, 3, False, True),
    ]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    ledger.write_json({"old": 1}, target)
    with pytest.raises(RuntimeError), ledger.replacing(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"old": 1} and [f.name for f in tmp_path.iterdir()] == ["a.json"]


def test_the_images_licence_is_kept_with_the_study(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    index(archive, out, licence="CC BY 4.0")
    assert Study(out).about["licence"] == "CC BY 4.0"
    index(archive, out)  # a later run that does not say it does not forget it
    assert Study(out).about["licence"] == "CC BY 4.0"
    other = index(archive, tmp_path / "other")
    assert Study(other.study).about["licence"] is None
