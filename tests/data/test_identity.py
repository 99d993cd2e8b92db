"""Keys, digests and which spellings are one patient."""

from __future__ import annotations

import csv
import hashlib
import hmac
import stat
from pathlib import Path

import numpy as np
import pytest
from fake.archive import by_path, index
from fake.dicom import phantom, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hilum.core.errors import HilumError
from hilum.data.identity import IdentityKey, Merges, normalise, usable

KEY = IdentityKey(b"k" * 32)


def test_digest_is_a_truncated_hmac() -> None:
    message = b"study\0" + (3).to_bytes(8, "little") + b"abc"
    assert KEY.digest("study", "abc") == hmac.new(b"k" * 32, message, hashlib.sha256).hexdigest()[:32]
    assert KEY.digest("a", "bc", "d") != KEY.digest("a", "b", "cd")
    assert len(KEY.fingerprint) == 16 and KEY.fingerprint != IdentityKey(b"l" * 32).fingerprint
    assert "k" * 8 not in repr(KEY)


def test_variants_of_one_identifier_are_one_group() -> None:
    spellings = ["AB-0007", "ab-0007", " AB-0007", "AB-0007\0", "ＡＢ-0007"]  # the last one full width
    assert len({KEY.group("X", s) for s in spellings}) == 1
    assert len({KEY.spelling("X", s) for s in spellings}) == 3  # blanks and NULs at the ends are padding
    assert KEY.group("X", "AB-0007") != KEY.group("Y", "AB-0007") != KEY.group(None, "AB-0007")
    assert KEY.group("X", "AB 0007") == KEY.group(" x ", "ab   0007") != KEY.group("X", "AB0007")


@given(st.text(max_size=12), st.text(max_size=12))
def test_normalising_is_idempotent_and_groups_follow_it(one: str, other: str) -> None:
    assert normalise(normalise(one)) == normalise(one)
    assert (KEY.group("", one) == KEY.group("", other)) == (normalise(one) == normalise(other))


@pytest.mark.parametrize(
    "text", [None, "", "   ", "ANONYMOUS", "Unknown", "none", "0", "000000", "0-0", "\0\0", "N/A", "-"]
)
def test_identifiers_that_name_nobody(text: str | None) -> None:
    assert not usable(text)


@pytest.mark.parametrize("text", ["7", "P0", "anonymous-12", "10", "Ångström"])
def test_identifiers_that_name_somebody(text: str) -> None:
    assert usable(text)


def test_key_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").write_bytes(bytes(range(32)))
    (tmp_path / "hex").write_text(bytes(range(32)).hex() + "\n")
    assert IdentityKey.load(tmp_path / "raw") == IdentityKey.load(tmp_path / "hex") == IdentityKey(bytes(range(32)))
    monkeypatch.setenv("HILUM_ID_KEY", bytes(32).hex())
    assert IdentityKey.load() == IdentityKey(bytes(32)) != IdentityKey.load(tmp_path / "raw")
    monkeypatch.setenv("HILUM_ID_KEY", str(tmp_path / "raw"))
    assert IdentityKey.load() == IdentityKey(bytes(range(32)))
    monkeypatch.delenv("HILUM_ID_KEY")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    made = IdentityKey.load()
    file = tmp_path / "home/.config/hilum/id.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and file.read_bytes() == made.secret
    assert IdentityKey.load() == made
    (tmp_path / "short").write_bytes(b"short")
    for bad in ("short", "absent"):
        with pytest.raises(HilumError) as caught:
            IdentityKey.load(tmp_path / bad)
        assert "urandom" in caught.value.fix


def test_merges_file_round_trip(tmp_path: Path) -> None:
    merges = Merges()
    merges.add([("X", "AB-7"), ("X", "ab-7")])
    assert merges.lines()[1:] == [["X", "AB-7", "x", "ab-7"], ["X", "ab-7", "x", "ab-7"]]
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows(merges.lines())
    again = Merges.read(tmp_path / "m.csv")
    assert again.rows == merges.rows and set(again.groups(KEY).values()) == {KEY.group("X", "AB-7")}
    (tmp_path / "m.csv").write_text("issuer,patient_id\nX,AB-7\n")
    with pytest.raises(HilumError, match="into_issuer"):
        Merges.read(tmp_path / "m.csv")


def test_groups_of_an_archive(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    patients = {
        "a": ("H1", "AB-0007"),
        "b": ("H1", "ab-0007"),
        "c": ("H1", " AB-0007"),
        "d": ("H2", "AB-0007"),
        "e": (None, "AB-0007"),
        "f": ("H1", "ANONYMOUS"),
        "g": ("H1", None),
    }
    for n, (name, (issuer, patient)) in enumerate(patients.items()):
        write(root / f"{name}.dcm", phantom(n), patient=patient, issuer=issuer, study=n)
    study = index(root, tmp_path / "s").study
    rows = by_path(study)
    groups = {p[0]: r["group_id"] for p, r in rows.items()}
    assert groups["a"] == groups["b"] == groups["c"]
    assert len({groups[n] for n in "adefg"}) == 5
    assert {n: rows[f"{n}.dcm"]["group_known"] for n in "afg"} == {"a": True, "f": False, "g": False}
    assert groups["f"] == f"unknown-{rows['f.dcm']['study_id']}"
    merges = study / "private/merges.csv"
    listed = list(csv.reader(merges.open()))[1:]
    assert [line[1] for line in listed] == ["AB-0007", "ab-0007"]  # a blank before an identifier is no spelling

    merges.write_text(
        merges.read_text().replace("H1,ab-0007,h1,ab-0007", "H1,ab-0007,h1,somebody else") + "H2,AB-0007,h1,ab-0007\n"
    )
    edited = {p[0]: r["group_id"] for p, r in by_path(index(root, tmp_path / "s").study).items()}
    assert edited["a"] == edited["c"] == edited["d"] == groups["a"] != edited["b"]  # one undone, one added
    assert {n: edited[n] for n in "efg"} == {n: groups[n] for n in "efg"}


def test_a_spelling_that_arrives_later_joins_and_both_are_listed(tmp_path: Path) -> None:
    """The first spelling is not kept in plain text between runs: its file is read again."""
    root = tmp_path / "archive"
    write(root / "a.dcm", phantom(1), patient="AB-0007", study=1)
    study = index(root, tmp_path / "s").study
    assert len((study / "private/merges.csv").read_text().splitlines()) == 1
    write(root / "b.dcm", phantom(2), patient="ab-0007", study=2)
    result = index(root, tmp_path / "s")
    assert result.counts["read"] == 1
    assert len({r["group_id"] for r in by_path(study).values()}) == 1
    assert [line[1] for line in csv.reader((study / "private/merges.csv").open())][1:] == ["AB-0007", "ab-0007"]
    assert index(root, tmp_path / "fresh").counts["read"] == 2
    for name in ("index.parquet", "private/merges.csv"):
        assert (tmp_path / "fresh" / name).read_bytes() == (study / name).read_bytes()


def listed(study: Path) -> list[list[str]]:
    return list(csv.reader((study / "private/merges.csv").open()))[1:]


def test_an_identifier_without_issuer_belongs_to_the_only_issuer(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    for n, (name, issuer, patient) in enumerate([("a", "H1", "AB-7"), ("b", None, "ab-7"), ("c", None, "CD-8")]):
        write(root / f"{name}.dcm", phantom(n), patient=patient, issuer=issuer, study=n)
    study = index(root, tmp_path / "s").study
    rows = by_path(study)
    assert rows["a.dcm"]["group_id"] == rows["b.dcm"]["group_id"] != rows["c.dcm"]["group_id"]
    assert all(r["group_known"] and not r["problems"] for r in rows.values())
    assert listed(study) == [["", "ab-7", "h1", "ab-7"], ["H1", "AB-7", "h1", "ab-7"]]
    file = study / "private/merges.csv"
    file.write_text(file.read_text().replace(",ab-7,h1,ab-7", ",ab-7,,ab-7"))
    undone = by_path(index(root, study).study)
    assert undone["a.dcm"]["group_id"] != undone["b.dcm"]["group_id"] and undone["b.dcm"]["group_known"]


def test_an_identifier_without_issuer_that_several_issuers_use_is_nobody(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    for n, (name, issuer) in enumerate([("a", "H1"), ("b", "H2"), ("c", None)]):
        write(root / f"{name}.dcm", phantom(n), patient="7", issuer=issuer, study=n)
    study = index(root, tmp_path / "s").study
    rows = by_path(study)
    assert len({r["group_id"] for r in rows.values()}) == 3 and listed(study) == []
    assert {p: (r["group_known"], r["problems"]) for p, r in rows.items()} == {
        "a.dcm": (True, []),
        "b.dcm": (True, []),
        "c.dcm": (False, ["issuer_missing"]),
    }
    file = study / "private/merges.csv"
    file.write_text(file.read_text() + ",7,h2,7\n")
    decided = by_path(index(root, study).study)
    assert decided["c.dcm"]["group_id"] == decided["b.dcm"]["group_id"] and decided["c.dcm"]["group_known"]


def test_an_issuer_that_arrives_later_joins_what_had_none(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    write(root / "a.dcm", phantom(1), patient="AB-7", study=1)
    index(root, tmp_path / "s")
    write(root / "b.dcm", phantom(2), patient="AB-7", issuer="H1", study=2)
    result = index(root, tmp_path / "s")
    assert result.counts["read"] == 1 and len({r["group_id"] for r in by_path(result.study).values()}) == 1
    index(root, tmp_path / "fresh")
    for name in ("index.parquet", "private/merges.csv"):
        assert (tmp_path / "fresh" / name).read_bytes() == (result.study / name).read_bytes()


def test_spellings_of_a_table_are_listed_and_can_be_parted(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for n in range(4):
        Image.fromarray(phantom(n).astype(np.uint8)).save(root / f"{n}.png")
    write(root / "d.dcm", phantom(9), patient="ab 7", issuer="H1", study=9)
    table = tmp_path / "t.csv"
    table.write_text("path,patient_id\n0.png,AB 7\n1.png,ab  7\n2.png,CD 8\n3.png,cd 8\nd.dcm,\n")
    study = index(root, tmp_path / "s", labels=table).study
    groups = {p: r["group_id"] for p, r in by_path(study).items()}
    assert groups["0.png"] == groups["1.png"] == groups["d.dcm"] != groups["2.png"] == groups["3.png"]
    assert [line[:2] for line in listed(study)] == [["", t] for t in ("AB 7", "CD 8", "ab  7", "cd 8")] + [
        ["H1", "ab 7"]
    ]
    assert [line[2:] for line in listed(study)][:2] == [["h1", "ab 7"], ["", "cd 8"]]
    file = study / "private/merges.csv"
    file.write_text(file.read_text().replace(",cd 8,,cd 8", ",cd 8,,another"))
    edited = {p: r["group_id"] for p, r in by_path(index(root, study, labels=table).study).items()}
    assert edited["2.png"] == groups["2.png"] != edited["3.png"]
