"""The HTML report: self-contained, escaped, small, complete, and drawn where the numbers are."""

import base64
import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hilum.core.errors import HilumError
from hilum.evaluation import page
from hilum.evaluation.content import Picture, ReportContent, SplitColumn, Step, curves_of, flow_gaps, gallery_rows, thin
from hilum.evaluation.figures import LEFT, SIDE, TOP, interval_strip, pr_figure, reliability_figure, roc_figure
from hilum.evaluation.markup import named, text
from hilum.evaluation.metrics import roc_curve
from hilum.evaluation.page import MAX_BYTES, render, write_report
from hilum.evaluation.predictions import Predictions
from hilum.evaluation.report import evaluate

HOSTILE = """<script>alert(1)</script>"'&</style><img src=x onerror=y> https://evil.example/x"""
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes and text; fails on tags that are not closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.words = [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def table(split, seed, names, n=160):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, len(names))) < 0.35).astype(float)
    y[:, -1] = 0  # the last finding is never there
    s = 1 / (1 + np.exp(-(rng.normal(size=y.shape) + 1.6 * y - 1)))
    group = [f"{split}{i // 2}" for i in range(n)]
    return Predictions.of(
        sample_id=[f"{split}{i:06d}" for i in range(n)], group_id=group, split=split, names=names, targets=y, scores=s
    )


def full(names=("Effusion", "Nodule", "Hernia"), side=64, word=""):
    test = table("test", 0, names)
    report = evaluate(test, validation=table("val", 1, names), n=40)
    other = evaluate(table("test", 0, names), n=40)
    rng = np.random.default_rng(0)
    gallery = [
        Picture(
            rng.integers(0, 256, (side, side, 3) if k % 2 else (side, side), dtype=np.uint8),
            finding,
            outcome,
            float(test.scores[row, names.index(finding)]),
            report.finding(finding).point.threshold,
            f"p0.5 to p99.5 {word}",
            str(test.sample_id[row]),
            note=word,
        )
        for k, (row, finding, outcome) in enumerate(gallery_rows(report))
    ]
    return ReportContent.of(
        report,
        title=f"A study {word}",
        subtitle=word,
        created=f"2026-01-02 {word}",
        facts={f"Model {word}": word or "m"},
        warnings=[f"Simulated. {word}"],
        flow=[
            Step(f"Found {word}", 170, "files", {f"quarantined: truncated_pixels {word}": 7, "skipped": 3}),
            Step("Indexed", 160, word or "files"),
        ],
        splits=[SplitColumn.of("test", names=names, targets=test.targets, groups=test.group_id)],
        comparisons={f"A against B {word}": report.compare(other)},
        gallery=gallery,
        gallery_note=word,
        config=f"recipe: medical/cxr {word}",
        hashes={f"split {word}": f"ab{word}"},
        environment={f"torch {word}": word},
        licences=[(f"code {word}", f"Apache-2.0 {word}", word)],
    )


@pytest.fixture(scope="module")
def content():
    return full()


def test_everything_asked_for_is_on_the_page(content):
    seen = Page(render(content))
    for words in (
        "Data flow", "Found", "170", "quarantined: truncated_pixels", "Splits", "Results by finding",
        "Operating points", "Comparison of models", "Curves", "Example images", "Methods", "Provenance",
        "Configuration", "Licences", "Hashes", "not computable: only 0 positive patients, at least 5 are needed",
        "2 of 3 findings", "Simulated.", "Youden on val: 160 images, 80 patients", "window: p0.5 to p99.5",
        "not for diagnosis",
    ):  # fmt: skip
        assert words in seen.text, words
    assert seen.text.count("How to read this.") == 8
    effusion = content.findings[0].metrics["auroc"]
    assert f"{effusion.value:.3f}" in seen.text and f"{effusion.lo:.3f} – {effusion.hi:.3f}" in seen.text
    assert f"{content.macro['auprc'].value:.3f}" in seen.text
    assert len([t for t in seen.tags if t[0] == "img"]) == 12
    assert len([t for t in seen.tags if t[0] == "svg" and t[1].get("role") == "img"]) == 3 * 2


@pytest.mark.parametrize("word", ["", HOSTILE])
def test_nothing_is_fetched_or_run(word):
    html = render(full(names=(f"a{word}", "b", "c"), word=word))
    seen = Page(html)
    assert not re.search(r"https?:|//", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html), re.IGNORECASE)
    assert "@import" not in html and "url(" not in html
    for tag, attributes in seen.tags:
        assert tag not in {"script", "iframe", "object", "embed", "link", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert value.startswith(("data:image/png;base64,", "#"))
    policy = next(a["content"] for t, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_hostile_strings_are_shown_as_they_are():
    words = Page(render(full(names=(f"a{HOSTILE}", "b", "c"), word=HOSTILE))).text
    shown = " ".join(HOSTILE.split())
    # title, subtitle, fact, warning, flow, finding, comparison, gallery, configuration, hash, environment, licence ...
    assert words.count(shown) > 25
    assert text('<a href="x">&') == "&lt;a href=&quot;x&quot;&gt;&amp;"


def test_statistics_speak_the_words_of_the_study(content):
    assert (
        named("only 3 positive groups of a group, 2 rows", group="lot", row="tile")
        == "only 3 positive lots of a lot, 2 tiles"
    )
    content = full()
    content.group, content.image = "body", "frame"
    words = Page(render(content)).text
    assert "only 0 positive bodies" in words and "160 frames, 80 bodies" in words and "patient" not in words


def test_twelve_large_images_stay_below_six_megabytes(tmp_path):
    content = full(side=700)  # noise: nothing compresses worse
    path = write_report(tmp_path / "eval" / "report.html", content)
    assert len(content.gallery) == 12
    assert path.stat().st_size <= MAX_BYTES
    images = re.findall(r"base64,([A-Za-z0-9+/=]+)", path.read_text(encoding="utf-8"))
    sides = {max(Image.open(io.BytesIO(base64.b64decode(i))).size) for i in images}
    assert len(sides) == 1 and 256 <= sides.pop() <= 384
    assert not list(path.parent.glob("*.partial"))
    content.config = "x" * MAX_BYTES
    with pytest.raises(HilumError, match="more than 6 MB"):
        write_report(path, content)
    assert path.stat().st_size <= MAX_BYTES  # the good one is still there


def test_small_images_keep_every_pixel(content):
    html = render(content)
    stored = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(i)))) for i in re.findall(r"base64,([A-Za-z0-9+/=]+)", html)
    ]
    for picture in content.gallery:
        assert any(np.array_equal(picture.pixels, s) for s in stored)


def test_images_of_another_type_are_refused(content):
    for pixels in (np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(HilumError, match="uint8"):
            page._data_uri(Picture(pixels, "a", "TP", 0.5, 0.5, "w"), 64)


def test_sections_without_data_are_left_out():
    names = ("a", "b")
    report = evaluate(table("test", 0, names), n=10)
    words = Page(render(ReportContent.of(report, title="bare", bands=False))).text
    for absent in ("Data flow", "Splits", "Comparison", "Example images", "Provenance"):
        assert absent not in words
    assert "none: no validation predictions" in words and "Curves" in words


def test_no_finding_computable_still_gives_a_page():
    names = ("a",)
    report = evaluate(table("test", 0, names), n=10)  # its only finding has no positive
    words = Page(render(ReportContent.of(report, title="empty"))).text
    assert "not computable" in words and "0 of 1 findings" in words


def test_a_flow_that_loses_files_says_so(content):
    assert flow_gaps([Step("Found", 10, left={"bad": 2}), Step("Indexed", 8)]) == []
    lost = [Step("Found", 10, left={"bad": 2}), Step("Indexed", 7)]
    assert flow_gaps(lost) == ["The flow does not add up: Found 10, less 2, is not Indexed 7."]
    ends = [SplitColumn("train", 3, 5), SplitColumn("test", 2, 3, judged=2, left={"codec_error": 1})]
    found = [Step("Found", 10, left={"bad": 2})]
    assert flow_gaps(found, ends) == []
    ends[1].left = {}
    assert flow_gaps(found, ends) == ["The flow does not add up: test 3, less 0, is not judged 2."]
    ends[1] = SplitColumn("test", 2, 2)
    assert flow_gaps(found, ends) == ["The flow does not add up: Found 10, less 2, is not the splits 7."]
    content = full()
    content.flow = lost
    assert "does not add up" in Page(render(content)).text


def test_split_columns_count_known_labels():
    s = SplitColumn.of("train", names=("a",), targets=[[1], [1], [0], [-1], [np.nan]], groups=["p", "p", "q", "r", "r"])
    assert (s.groups, s.images, s.positive["a"]) == (3, 5, (2, 1, 3))


def test_gallery_is_random_balanced_and_without_repeats():
    names = ("a", "b", "c")
    report = evaluate(table("test", 0, names), validation=table("val", 1, names), n=10)
    rows = gallery_rows(report, seed=3)
    assert rows == gallery_rows(report, seed=3) != gallery_rows(report, seed=4)
    assert [o for _, _, o in rows] == ["TP"] * 3 + ["FP"] * 3 + ["FN"] * 3 + ["TN"] * 3
    assert len({r for r, _, _ in rows}) == 12
    for row, finding, outcome in rows:
        f = names.index(finding)
        called = report.predictions.scores[row, f] >= report.finding(finding).point.threshold
        true = report.predictions.targets[row, f] == 1
        assert (
            outcome
            == {(True, True): "TP", (False, True): "FP", (True, False): "FN", (False, False): "TN"}[(true, called)]
        )
    assert len(gallery_rows(report, n=100_000)) == 160
    assert gallery_rows(evaluate(table("test", 0, names), n=5)) == []


def path_points(svg, css):
    return [tuple(map(float, p.split())) for p in re.search(rf'class="{css}" d="M([^"]*)"', svg)[1].split("L")]


def test_curves_are_drawn_where_the_numbers_are():
    names = ("a", "b", "c")
    test = table("test", 0, names)
    report = evaluate(test, validation=table("val", 1, names), n=10)
    curves = curves_of(report)
    assert [c.finding for c in curves] == ["a", "b"]
    points = path_points(roc_figure(curves[0]), "curve")
    xy = np.array([((x - LEFT) / SIDE, 1 - (y - TOP) / SIDE) for x, y in points])
    curve = roc_curve(test.targets[:, 0], test.scores[:, 0])
    assert np.abs(xy - np.stack([curve.x, curve.y], 1)).max() < 0.001  # 0.1 of 244 units
    at = report.finding("a").at
    mark = re.search(r'class="mark" d="M([\d.]+) ([\d.]+)l', roc_figure(curves[0]))
    assert (float(mark[1]) - LEFT) / SIDE == pytest.approx(1 - at.specificity.value, abs=0.001)
    assert 1 - (float(mark[2]) + 6.5 - TOP) / SIDE == pytest.approx(at.sensitivity.value, abs=0.001)
    chance = path_points(pr_figure(curves[0], prevalence=0.25), "chance")
    assert [1 - (y - TOP) / SIDE for _, y in chance] == pytest.approx([0.25, 0.25], abs=0.001)
    assert reliability_figure(curves[0]).count("<circle") == len(curves[0].bins) + 1  # and one in the legend
    assert sum(curves[0].histogram) == len(test)
    for figure in (roc_figure(curves[0]), reliability_figure(curves[0])):
        assert "<title>" in figure and "NaN" not in figure and "nan" not in figure


def test_thin_keeps_ends_and_stays_on_the_curve():
    rng = np.random.default_rng(0)
    y = rng.random(20_000) < 0.3
    curve = roc_curve(y, rng.normal(size=20_000) + y)
    points = thin(curve, most=150)
    assert len(points) <= 152 and points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1]
    every = {(x, v) for x, v in zip(curve.x, curve.y)}
    assert all((x, v) in every for x, v in points.tolist())
    assert np.abs(np.interp(curve.x, points[:, 0], points[:, 1]) - curve.y).max() < 0.02


def test_interval_strip_shows_dot_and_whisker(content):
    m = content.findings[0].metrics["auroc"]
    svg = interval_strip(m, lo=0.5)
    dot = float(re.search(r'cx="([\d.]+)"', svg)[1])
    assert dot == pytest.approx(5 + 130 * (m.value - 0.5) / 0.5, abs=0.06)
    assert interval_strip(content.findings[2].metrics["auroc"], lo=0.5) == ""


@pytest.mark.service
def test_a_browser_opens_the_page_from_file_without_complaint(tmp_path, content):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on PATH")
    path, picture = write_report(tmp_path / "report.html", content), tmp_path / "page.png"
    flags = ["--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    done = subprocess.run(
        [
            chromium,
            *flags,
            "--enable-logging=stderr",
            f"--screenshot={picture}",
            "--window-size=1000,1400",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert "CONSOLE" not in done.stderr  # a blocked or failed request would be reported there
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (1400, 1000)
    assert pixels[:, :20].min() > 200 or pixels[:, :20].max() < 60  # an even margin, light or dark
    assert pixels[60:1300, 40:960].std() > 15  # and something between
