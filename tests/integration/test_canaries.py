"""A hundred planted identifiers, the whole road from index to export, faults included: none of them in anything written.

Excepted are ``STUDY/private``, whose purpose is to hold names of files, and the table of ``hilum predict``, which says
whose scores it holds by naming files and nothing else.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake.canaries import (
    DATES,
    NUMBER,
    WORD,
    Planted,
    deepen,
    everything,
    found_in,
    person,
    radiograph,
    spellings,
    unpacked,
)

from hilum.core.cli import main
from hilum.core.registry import registry

pytestmark = pytest.mark.integration
PATIENTS = 16
SHORT = ["--set", "schedule.epochs=1", "--set", "schedule.warmup_epochs=0"]


class Site:
    """An archive full of identifiers, and everything that a road over it writes (``written``)."""

    def __init__(self, root: Path) -> None:
        self.root, self.planted, self.said = root, Planted(), ""
        self.archive, self.written = root / self.planted.word("archive"), root / "written"
        self.study = self.written / "study"
        for folder in (self.archive, self.written / "here", self.written / "scratch"):
            folder.mkdir(parents=True)
        self.labels, self.reports = root / "labels.csv", root / "reports.csv"
        self.fill()

    def fill(self) -> None:
        plant, reports = self.planted, ["path,text"]
        lines = ["path,patient_id,name,left,right"]
        for patient in range(PATIENTS):
            folder = self.archive / plant.word("folder")
            folder.mkdir()
            who = person(plant)
            for image in range(2):
                data = radiograph(plant, patient, image, who)
                if image == 0:
                    deepen(plant, data)
                file = folder / f"{plant.word('file')}.dcm"
                data.save_as(file, enforce_file_format=True)
                path = file.relative_to(self.archive)
                lines.append(f"{path},{plant.word('table')},{plant.word('cell')},{patient % 2},{patient // 2 % 2}")
                reports.append(f"{path},No effusion. Seen by {plant.word('radiologist')} on {DATES[3]}.")
        with zipfile.ZipFile(self.archive / f"{plant.word('zip')}.zip", "w") as packed:
            packed.write(file, f"{plant.word('member')}.dcm")
            packed.comment = plant.word("comment").encode()
        self.labels.write_text("\n".join(lines) + "\n")
        self.reports.write_text("\n".join(reports) + "\n")

    def add_faults(self) -> None:
        """A truncated file, an unknown syntax, a damaged header, a foreign file."""
        whole = next(self.archive.rglob("*.dcm")).read_bytes()
        (self.archive / f"{self.planted.word('cut')}.dcm").write_bytes(whole[:-500])
        odd = radiograph(self.planted, 0, 5, person(self.planted))
        odd.file_meta.TransferSyntaxUID = self.planted.uid()
        odd.save_as(self.archive / "odd.dcm", implicit_vr=False, little_endian=True, enforce_file_format=True)
        (self.archive / "damaged.dcm").write_bytes(whole[:400] + b"\xff" * 90 + whole[490:])
        (self.archive / "text.txt").write_text(self.planted.name("text"))

    @property
    def private(self) -> Path:
        return self.study / "private"

    def leaks(self, *without: Path) -> dict[str, list[str]]:
        blobs = list(everything(self.written, without=[self.private, *without]))
        return found_in([*blobs, ("said", self.said.encode())])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def run(site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., int]]:
    """A command in an empty folder with its own temporary folder; what it says, on whichever stream, is kept."""
    monkeypatch.chdir(site.written / "here")
    monkeypatch.setenv("TMPDIR", str(site.written / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("HILUM_DEBUG", raising=False)

    def go(*words: object) -> int:
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        # A message may repeat what the user typed in this very command.
        site.said += re.sub("|".join(re.escape(str(w)) for w in words if len(str(w)) > 8) or "$^", "", out + err)
        return code

    yield go


def test_the_search_finds_what_is_planted_in_every_container_and_encoding(site: Site, tmp_path: Path) -> None:
    """Otherwise finding nothing would mean nothing."""
    assert len(site.planted.all) >= 100
    raw = b"".join(p.read_bytes() + os.fsencode(p) for p in site.archive.rglob("*") if p.is_file())
    raw += site.labels.read_bytes() + site.reports.read_bytes() + os.fsencode(site.archive)
    missing = [c for c in site.planted.all if c.encode() not in raw and c.upper().encode() not in raw]
    assert not missing
    secret = f"x{WORD}1"
    hidden = [b"a" + secret.encode("utf-16-le"), secret.upper().encode(), secret.encode().hex().encode()]
    hidden += ["".join(f"%{b:02x}" for b in secret.encode()).encode(), secret.encode("utf-16-be")]
    import base64
    import io
    import sqlite3

    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image, PngImagePlugin

    hidden += [base64.b64encode(b"ab"[:n] + secret.encode() + b"tail") for n in range(3)]
    for number, blob in enumerate(hidden):
        assert WORD in found_in([("here", blob)]), number
    table, zipped, picture = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"a": [secret] * 50, "b": range(50)}), table, compression="zstd")
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("inner.txt", secret * 40)
    words = PngImagePlugin.PngInfo()
    words.add_text("who", secret, zip=True)
    Image.new("L", (4, 4)).save(picture, "PNG", pnginfo=words)
    base = sqlite3.connect(tmp_path / "a.db")
    base.execute("create table t (a text)")
    base.execute("insert into t values (?)", [secret])
    base.commit()
    base.close()
    page = b'<img src="data:image/png;base64,' + base64.b64encode(picture.getvalue()) + b'">'
    for kind, blob in {
        "parquet": table.getvalue(),
        "zip": zipped.getvalue(),
        "png": picture.getvalue(),
        "sqlite": (tmp_path / "a.db").read_bytes(),
        "html": page,
    }.items():
        assert WORD in found_in(unpacked(kind, blob)), kind
    assert all(len(form) >= 4 for form in spellings(NUMBER))


def test_nothing_that_the_road_writes_holds_an_identifier(site: Site, recipes: Path, run: Callable[..., int]) -> None:
    study, runs, out = site.study, site.study / "runs", site.written / "out"
    tables = ("--labels", site.labels, "--reports", site.reports, "--max-unmatched", "0.5")
    assert run("index", site.archive, "--out", study, "--workers", "2", *tables) in (0, 3)
    assert run("doctor", study) == 0
    assert run("split", study, "--val", "0.25", "--test", "0.25", "--no-near") == 0
    assert run("pretrain", recipes / "mae.yaml", "--data", study, "--out", runs / "mae", *SHORT) == 0
    start = ("--init", runs / "mae", "--set", "engine.workers=1")
    assert run("finetune", recipes / "findings.yaml", "--data", study, "--out", runs / "ft", *start, *SHORT) == 0
    assert run("evaluate", runs / "ft", "--split", "test", "--resamples", "20") == 0
    assert run("embed", runs / "ft", "--data", study, "--out", out / "features.parquet") == 0
    table = out / "scores.csv"
    assert run("predict", runs / "ft", site.archive, "--out", table, "--workers", "1") == 0
    assert run("export", runs / "ft", "--out", out / "exported") == 0
    assert run("doctor", site.archive, "--workers", "1", "--out", out / "look.html") == 0
    assert (study / "mlflow.db").is_file() and (runs / "ft" / "eval" / "test" / "report.html").is_file()
    assert (study / "doctor.html").read_text().count("data:image/png") > 5
    assert "found" in site.said and "usable images" in site.said
    written = [p for p in site.written.rglob("*") if p.is_file()]
    assert len(written) > 40 and json.loads((study / "study.json").read_text())["counts"]["indexed"] >= 2 * PATIENTS
    assert site.leaks(table) == {}
    lines = list(csv.reader(table.open()))
    assert all(line[0].endswith((".dcm", ".zip")) for line in lines[1:])
    rest = [("columns but the first", "\n".join(",".join(line[1:]) for line in lines).encode())]
    assert found_in(rest) == {}
    whole = table.read_text()
    assert not [c for c in site.planted.words if c in whole and not c.endswith(("folder", "file", "zip", "member"))]


def test_nothing_said_or_written_about_faults_holds_an_identifier(
    site: Site, run: Callable[..., int], recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add_faults()
    study = site.written / "faulty"
    assert run("index", site.archive, "--out", study, "--workers", "2") == 3
    counts = json.loads((study / "study.json").read_text())["counts"]
    assert {"truncated_pixels", "unsupported_transfer_syntax", "not_dicom"} <= counts["reasons"].keys()
    assert run("doctor", study) == 0
    assert found_in(everything(study, without=[study / "private"])) == {}
    wrong = site.root / "wrong.csv"
    wrong.write_text("path,finding\n" + "".join(f"{site.planted.word('lost')}.dcm,1\n" for _ in range(40)))
    assert run("index", site.archive, "--out", site.written / "none", "--labels", wrong, "--workers", "1") == 1
    assert "fit no file" in site.said
    mixed = site.root / "mixed.csv"
    mixed.write_text(site.labels.read_text().replace(",1,0\n", f",{site.planted.word('value')},0\n"))
    run("index", site.archive, "--out", site.written / "none", "--labels", mixed, "--finding", "left", "--workers", "1")
    again = ["--data", site.study, "--out", site.study / "runs" / "bad", "--set", "cache.side=33", *SHORT]
    if site.study.is_dir():  # files that were fine when they were indexed
        for file in sorted(site.archive.rglob("*file.dcm"))[::7]:
            file.write_bytes(file.read_bytes()[:-700])
        assert run("finetune", recipes / "findings.yaml", *again, "--set", "engine.max_bad=0.9") in (0, 4)
    assert site.leaks(site.written / "out" / "scores.csv", study / "private", site.written / "none" / "private") == {}


def test_a_crash_and_an_unforeseen_error_quote_nothing(
    site: Site, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = site.planted.name("crash")

    def toy() -> None:
        import logging
        import warnings

        logging.getLogger("pydicom").error(f"Invalid value for VR PN: {name!r}")
        logging.getLogger("mlflow").warning("run of %s", name)
        warnings.warn(f"odd value {name!r}", stacklevel=2)
        try:
            raise KeyError(name)
        except KeyError as error:
            raise ValueError(f"cannot use {name}") from error

    monkeypatch.setattr(registry, "local", dict(registry.local))
    registry.register("verb", "toy", toy)
    for debug in ("", "1"):
        monkeypatch.setenv("HILUM_DEBUG", debug)
        assert run("toy") == 1
    assert "ValueError" in site.said and "in toy" in site.said
    assert found_in([("said", site.said.encode())]) == {}


def test_a_reader_that_dies_leaves_no_name(site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In a process of its own: a crashing, a raising and a killed reader under a folder that bears a name."""
    root = tmp_path / site.planted.word("crashing")
    root.mkdir()
    for deed in ("crash", "killed", "name", "fine"):
        (root / f"{site.planted.word(deed)}.bin").write_bytes(b"HOSTILE " + deed.encode())
    script = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "from fake.hostile_intake import HostileIntake\n"
        "from hilum.data.index import index_archive\n"
        "from hilum.core.privacy import install\n"
        "install()\n"
        "done = index_archive(sys.argv[1], sys.argv[2], intakes=[HostileIntake()], workers=2)\n"
        "print(done.counts)\n"
    )
    words = [sys.executable, "-X", "faulthandler", "-c", script, str(root), str(tmp_path / "study")]
    done = subprocess.run([*words, str(Path(__file__).parents[1])], capture_output=True, check=True)
    said: list[tuple[str, bytes]] = [("stdout", done.stdout), ("stderr", done.stderr)]
    assert b"'codec_error': 1" in done.stdout and b"'parse_error': 1" in done.stdout
    study: Any = tmp_path / "study"
    assert found_in([*said, *everything(study, without=[study / "private"])]) == {}
