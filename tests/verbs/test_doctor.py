"""``hilum doctor``: the inventory against plain counting, the page, the pictures, and why one file is as it is."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake.archive import by_path
from fake.dicom import dataset, phantom, write
from PIL import Image
from pydicom.uid import UID

from hilum.core.cli import main
from hilum.core.errors import HilumError
from hilum.data.inventory import codes, histogram, inventory, volumes
from hilum.data.study import Study
from hilum.verbs.archive_page import render
from hilum.verbs.contact_sheet import chosen, contact_sheet
from hilum.verbs.doctor import doctor
from hilum.verbs.holdings import Archive
from hilum.verbs.intake import index
from hilum.verbs.splitting import split
from hilum.verbs.why import explain

SR = "1.2.840.10008.5.1.4.1.1.88.33"
LABELS = "path,patient_id,nodule\n" + "".join(f"dx/{n}.dcm,P{n // 2},{n % 2}\n" for n in range(6))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site") / "files"
    for n in range(6):
        options = {"photometric": "MONOCHROME1"} if n == 5 else {}
        write(root / f"dx/{n}.dcm", phantom(n), patient=f"P{n // 2}", study=n, Modality=("DX", "CR")[n % 2], **options)
    write(root / "dx/again.dcm", phantom(0), patient="P0", study=0)
    write(root / "nobody.dcm", phantom(7), patient=None, study=20)
    write(root / "other/mine.dcm", phantom(8), patient="P8", study=21)
    write(root / "other/yours.dcm", phantom(8), patient="P9", study=22)
    frames = np.stack([np.full((24, 32), 500 * k, np.uint16) + phantom(30, bits=6) for k in range(5)])
    write(
        root / "cine.dcm", frames, patient="P10", study=23, frames=5, Modality="US", WindowCenter=1024, WindowWidth=2049
    )
    write(root / "report.dcm", None, patient="P0", study=0, series=9, sop_class=SR, Modality="SR")
    whole = (root / "dx/1.dcm").read_bytes()
    (root / "cut.dcm").write_bytes(whole[: len(whole) - 900])
    (root / "notes.txt").write_text("nothing")
    odd = dataset(phantom(2), patient="P11", study=24)
    odd.file_meta.TransferSyntaxUID = UID("1.2.3.4.5")
    odd.save_as(root / "odd.dcm", implicit_vr=False, little_endian=True, enforce_file_format=True)
    (root / "empty.dcm").touch()
    (root.parent / "labels.csv").write_text(LABELS)
    return root


@pytest.fixture(scope="module")
def study(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    out = tmp_path_factory.mktemp("study") / "study"
    index(archive, out=out, labels=archive.parent / "labels.csv", workers=1, max_unmatched=0.9)
    split(out, val=0.3, test=0.3, near=False, group_duplicates=True)
    return Study(out)


class Page(HTMLParser):
    """Tags with attributes, and the words; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_inventory_equals_plain_counting(study: Study) -> None:
    seen, rows = inventory(study), study.index.to_pylist()
    images = [r for r in rows if r["status"] == "indexed" and r["role"] == "image"]
    for name in ("modality", "photometric", "bits_stored", "view", "codec", "window", "frames", "unit"):
        assert seen[name] == dict(Counter("-" if r[name] is None else str(r[name]) for r in images)), name
    assert seen["sizes"] == {"24 x 32": len(images)} and seen["spacing_mm"] == {"0.5 x 0.25": len(images)}
    problems = Counter(code for r in rows for code in {p.partition(":")[0] for p in r["problems"] or ()})
    assert seen["problems"] == dict(problems) and problems["same_pixels_other_patient"] == 2
    faults = Counter((r["status"], r["reason"]) for r in rows if r["status"] != "indexed")
    assert seen["faults"] == dict(faults) and faults["skipped", "non_image:sr"] == 1
    assert seen["groups"] == len({r["group_id"] for r in images if r["group_known"]}) == 6
    assert (seen["unknown_groups"], seen["unknown_images"], seen["copies"]) == (1, 1, 1)


def test_codes_count_once_a_file_whatever_the_chunks() -> None:
    lists = [["a:1", "a:2", "b"], None, [], ["b:x:y"], ["a"]]
    column = pa.chunked_array([pa.array(lists[:2], pa.list_(pa.string())), pa.array(lists[2:], pa.list_(pa.string()))])
    assert Counter(codes(column).to_pylist()) == {"a": 2, "b": 2}


def test_histograms_hold_every_finite_value() -> None:
    values = np.array([*range(1, 1001), np.nan, np.inf, 1e9])
    made = histogram(values)
    assert made is not None
    counts, lo, hi = made
    assert counts.sum() == 1001 and lo == 6 and hi == 996
    assert histogram(np.array([np.nan])) is None
    flat = histogram(np.full(7, 3.0))
    assert flat is not None and flat[0].sum() == 7 and flat[1:] == (2.5, 3.5)


def test_the_page_stands_alone_and_tells_the_ledger(study: Study, archive: Path, capsys: Any) -> None:
    assert main(["doctor", str(study.path)]) == 0
    told = capsys.readouterr().out
    page = study.path / "doctor.html"
    html = page.read_text(encoding="utf-8")
    seen = Page(html)
    assert f"page: {page}" in told and len(html) < 6_000_000
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in seen.tags}
    places = [v for _, a in seen.tags for k, v in a.items() if k in ("src", "href") and v]
    assert all(p.startswith(("data:image/png;base64,", "#")) for p in places) and "://" not in html
    targets = {a["id"] for tag, a in seen.tags if tag == "section"}
    assert {p[1:] for p in places if p.startswith("#")} == targets
    counts = study.about["counts"]
    assert counts["found"] == 16 and counts["found"] == sum(counts[k] for k in ("indexed", "skipped", "quarantined"))
    boxes = re.search(r'<div class="figures">(.*?)</div></div>', html)
    assert boxes is not None and re.findall(r"<b>([\d,]+)</b>", boxes[1]) == ["16", "9", "6", "2"]
    for words in ("truncated_pixels", "non_image:sr", "same_pixels_other_patient", "not_dicom", "24 x 32"):
        assert words in seen.text, words
    assert "1 file: no codec reads its transfer syntax" in seen.text and "missing codec    1 files: no codec" in told
    assert "1 image of unknown ones" in seen.text
    assert "and 3 that hold no image" in seen.text  # a report, a text, an empty file


def test_the_page_and_the_terminal_name_no_file_and_no_person(study: Study, archive: Path, capsys: Any) -> None:
    doctor(study.path)
    told = capsys.readouterr().out.replace(str(study.path), "")
    words = Page((study.path / "doctor.html").read_text(encoding="utf-8")).text
    for secret in ("Doe", "ACC", "P10", "cine.", "again.dcm", "dx/", str(archive), "nobody"):
        assert secret not in words and secret not in told, secret


def test_a_hostile_reason_or_maker_is_only_text(study: Study) -> None:
    made = Archive.of(study)
    made.numbers["vendor"] = {'<script>alert("x")</script>': 3}
    made.numbers["faults"] = {("quarantined", "<img src=x onerror=y>"): 1}
    made.labels = {"</table><h1>": (1, 2, 3)}
    made.names = {"1.2.840.10008.1.2.1": "Explicit <VR>"}
    seen = Page(render(made))
    assert "script" not in {tag for tag, _ in seen.tags} and not [a for _, a in seen.tags if "onerror" in a]
    assert '<script>alert("x")</script>' in seen.text
    assert "Explicit <VR> 1.2.840.10008.1.2.1 " in seen.text


def test_pictures_show_every_kind_once_before_any_twice(study: Study) -> None:
    rows = chosen(study.index, most=3)
    kinds = [(study.row(int(r))["modality"], study.row(int(r))["view"]) for r in rows]
    assert len(set(kinds)) == 3 and {m for m, _ in kinds} == {"DX", "CR", "US"}
    everyone = chosen(study.index, most=99)
    images = study.index.to_pylist()
    expected = {
        n for n, r in enumerate(images) if (r["status"], r["role"], r["duplicate_of"]) == ("indexed", "image", None)
    }
    assert sorted(everyone.tolist()) == sorted(expected)
    for kind in set(kinds):  # of a kind those with the lowest keyed digests
        own = [n for n in expected if (images[n]["modality"], images[n]["view"]) == kind]
        lowest = min(own, key=lambda n: images[n]["sample_id"])
        assert [int(r) for r, k in zip(rows, kinds, strict=True) if k == kind] == [lowest]


def test_a_picture_is_the_middle_frame_in_its_window(study: Study) -> None:
    drawn = {p.row["modality"]: p for p in contact_sheet(study, most=3)}
    cine = drawn["US"]
    assert cine.frame == 2 and cine.pixels is not None and cine.pixels.shape == (24, 32)
    # LINEAR, centre 1024, width 2049 (PS3.3 C.11.2.1.2): (x - 1023.5) / 2048 + 0.5, of frame 2 of `archive`
    values = np.full((24, 32), 1000, np.uint16) + phantom(30, bits=6)
    expected = np.floor(np.clip((values - 1023.5) / 2048 + 0.5, 0, 1) * 255)
    assert np.abs(cine.pixels.astype(int) - expected).max() <= 1


def test_a_file_that_cannot_be_drawn_is_said_and_the_others_are(archive: Path, tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        write(
            tmp_path / "files" / name,
            phantom(1),
            study=ord(name[0]),
            patient=name,
            Modality="DX" if name[0] == "a" else "CR",
        )
    index(tmp_path / "files", out=tmp_path / "study", workers=1)
    (tmp_path / "files" / "b.dcm").write_bytes(b"no longer an image")
    drawn = {p.row["modality"]: p for p in contact_sheet(Study(tmp_path / "study"))}
    assert drawn["DX"].pixels is not None and drawn["CR"].pixels is None and drawn["CR"].reason
    doctor(tmp_path / "study")
    html = (tmp_path / "study" / "doctor.html").read_text(encoding="utf-8")
    assert "not drawn:" in html and len(re.findall("data:image/png", html)) == 1
    stored = base64.b64decode(re.findall(r"base64,([A-Za-z0-9+/=]+)", html)[0])
    assert Image.open(io.BytesIO(stored)).size == (32, 24)


def test_a_folder_is_only_looked_at(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in archive.rglob("*")}
    assert main(["doctor", str(archive), "--workers", "1", "--no-pictures", "--headers-only"]) == 0
    told = capsys.readouterr().out
    assert "found 16 = " in told and [p.name for p in tmp_path.iterdir() if p.name != "scratch"] == [
        "hilum-doctor.html"
    ]
    assert "Only headers were read" in (tmp_path / "hilum-doctor.html").read_text(encoding="utf-8")
    assert not [p for p in (tmp_path / "scratch").iterdir() if p.name.startswith("hilum")]
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in archive.rglob("*")} == before


def test_why_tells_of_every_kind_of_file(study: Study, archive: Path) -> None:
    rows = by_path(study.path)

    def told(path: str) -> str:
        return "\n".join(f"{topic}: {words}" for topic, words in explain(study, path))

    cut = told("cut.dcm")
    assert "status: quarantined: truncated_pixels" in cut and "send the file again" in cut
    image = told("dx/2.dcm")
    assert "use: a sample of 2-D views" in image and "labels: nodule 0" in image
    part = pq.read_table(study.path / "splits" / "default.parquet").to_pylist()
    own = next(p["split"] for p in part if p["group_id"] == rows["dx/2.dcm"]["group_id"])
    assert f"split: default: {own}" in image and f"patient: {rows['dx/2.dcm']['group_id']}" in image
    assert f"an exact copy of sample {rows['dx/0.dcm']['sample_id']}" in told("dx/again.dcm") or (
        f"an exact copy of sample {rows['dx/again.dcm']['sample_id']}" in told("dx/0.dcm")
    )
    assert "patient: not known" in told("nobody.dcm") and "no row of the table fits it" in told("nobody.dcm")
    mine = told("other/mine.dcm")
    assert "same_pixels_other_patient" in mine and rows["other/yours.dcm"]["sample_id"][:12] in mine
    assert "5 frames" in told("cine.dcm") and "no sample of 2-D views (images of several frames" in told("cine.dcm")
    assert "non_image:sr" in told("report.dcm") and "nothing needs to be done" in told("report.dcm")
    assert "displays inverted" in told("dx/5.dcm")
    assert told(str(archive / "cut.dcm")) == cut == told("./cut.dcm") == told(rows["cut.dcm"]["sample_id"][:12])
    for lines in (cut, image, mine):
        assert "Doe" not in lines and "P8" not in lines and "ACC" not in lines


@pytest.mark.parametrize(
    ("arguments", "where", "fix"),
    [
        (["{at}/a.dcm"], "{at}/a.dcm", "doctor FOLDER --why FILE"),
        (["{at}/a.dcm", "--why", "a.dcm"], "{at}/a.dcm", "doctor FOLDER --why FILE"),
        (["{at}/files", "--workers", "-1"], "--workers", "--workers 2"),
        (["{at}/none"], "{at}/none", "a study or an archive"),
        (["{at}/files", "--out", "{at}/a.dcm/page.html"], "{at}/a.dcm", "--out"),
        (["{at}/files", "--out", "{at}"], "{at}", "--out FILE.html"),
        (["{at}/files", "--out", "{at}/a.dcm"], "{at}/a.dcm", "--out FILE.html"),
        (["{at}/files", "--out", "{at}/files/page.html"], "{at}/files/page.html", "--out elsewhere"),
        (["{at}/files", "--why", "b.dcm"], "b.dcm", "did you mean a.dcm?"),
    ],
)
def test_wrong_use_is_told_with_its_place_and_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], where: str, fix: str
) -> None:
    write(tmp_path / "a.dcm", phantom())
    write(tmp_path / "files" / "a.dcm", phantom())
    assert main(["doctor", *(a.format(at=tmp_path) for a in arguments)]) == 1
    told = capsys.readouterr().err
    assert where.format(at=tmp_path) in told and fix in told and "Traceback" not in told
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.dcm", "a.dcm", "files"]
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "files" / "a.dcm").read_bytes()


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may read everything")
def test_what_may_not_be_read_or_written_is_told_at_once(study: Study, tmp_path: Path) -> None:
    """As the owner without the power to override permissions, which these tests may run with."""
    shut, page = tmp_path / "shut", tmp_path / "full"
    shut.mkdir(mode=0o000)
    page.mkdir(mode=0o555)
    private = study.path / "private"
    code = (
        "import sys; from hilum.core.cli import main\n"
        f"codes = [main(['doctor', {str(shut)!r}]), main(['doctor', {str(study.path)!r}, '--out', {str(page / 'p.html')!r}])]\n"
        f"codes += [main(['doctor', {str(study.path)!r}, '--why', 'cut.dcm'])]\n"
        "sys.exit(codes != [1, 1, 1])"
    )
    private.chmod(0o000)
    powers = "-dac_override,-dac_read_search"
    plain = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"] if os.geteuid() == 0 else []
    try:
        done = subprocess.run([*plain, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    finally:
        private.chmod(0o700)
        shut.chmod(0o700)
    assert done.returncode == 0, done.stderr
    for words in ("the folder may not be read", "the page's folder cannot be written", "may not be read"):
        assert words in done.stderr
    assert done.stderr.count("where:") == done.stderr.count("fix:") == 3 and "Traceback" not in done.stderr


def test_why_names_near_misses_and_nothing_else(study: Study, capsys: Any) -> None:
    assert main(["doctor", str(study.path), "--why", "dx/9.dcm"]) == 1
    near = capsys.readouterr().err
    assert "knows no file of this name" in near and "dx/" in near and near.count(".dcm") <= 4
    with pytest.raises(HilumError) as caught:
        explain(study, "elsewhere/mine.dcm")
    assert caught.value.fix == "did you mean other/mine.dcm?"
    with pytest.raises(HilumError) as caught:
        explain(study, "completely-different")
    assert "did you mean" not in caught.value.fix
    with pytest.raises(HilumError, match="file of a study"):
        doctor(None, why="x")


def test_volumes_are_counted_with_their_problems(study: Study, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    table = pq.read_table(study.path / "series.parquet")
    wide: dict[str, Any] = dict.fromkeys(table.column_names)
    made = [
        wide | {"series_id": "a", "volume_id": "1", "frames": 9, "usable": True, "problems": []},
        wide | {"series_id": "a", "volume_id": "2", "frames": 9, "usable": False, "problems": ["x:2", "x:3", "y"]},
        wide | {"series_id": "b", "volume_id": "3", "frames": 1, "usable": True, "problems": ["y:1"]},
    ]
    pq.write_table(pa.Table.from_pylist(made, schema=table.schema), tmp_path / "s" / "series.parquet")
    pq.write_table(study.index, tmp_path / "s" / "index.parquet")
    assert volumes(Study(tmp_path / "s")) == {
        "series": 2,
        "volumes": 3,
        "usable": 2,
        "deep": 2,
        "deep_usable": 1,
        "problems": {"y": (2, 1), "x": (1, 0)},
    }


def test_a_member_of_a_zip_is_drawn_and_explained(tmp_path: Path) -> None:
    inside = write(tmp_path / "inside.dcm", phantom(4), patient="P1", study=1)
    (tmp_path / "ward!7").mkdir()
    with zipfile.ZipFile(tmp_path / "ward!7" / "cd.zip", "w") as packed:
        packed.write(inside, "disc/IM0001.dcm")
    index(tmp_path / "ward!7", out=tmp_path / "study", workers=1)
    study = Study(tmp_path / "study")
    assert [p.pixels is not None and p.pixels.shape for p in contact_sheet(study)] == [(24, 32)]
    told = dict(explain(study, "cd.zip!disc/IM0001.dcm"))
    assert told["status"] == "indexed" and told["image"].startswith("24 x 32, 16 bits")
    assert dict(explain(study, f"{tmp_path / 'ward!7' / 'cd.zip'}!disc/IM0001.dcm")) == told
    with pytest.raises(HilumError) as caught:
        explain(study, "cd.zip!disc/IM0002.dcm")
    assert "cd.zip!disc/IM0001.dcm" in caught.value.fix
