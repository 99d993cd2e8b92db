"""Keys, digests and which spellings are one patient."""

from __future__ import annotations

import csv
import hashlib
import hmac
import stat
from pathlib import Path

import pytest
from fake.archive import by_path, index
from fake.dicom import phantom, write
from hypothesis import given
from hypothesis import strategies as st

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
