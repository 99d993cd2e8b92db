"""What the HTML report says, as plain data: :class:`ReportContent`, and its curves and gallery made from a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hilum.core.types import Metric
from hilum.evaluation.comparison import Comparison
from hilum.evaluation.intervals import curve_bands, proportion
from hilum.evaluation.metrics import Array, Curve, pr_curve, reliability, roc_curve
from hilum.evaluation.report import Finding, Report

Points = NDArray[np.float64]
OUTCOMES = {"TP": "True positive", "FP": "False positive", "FN": "False negative", "TN": "True negative"}


@dataclass(slots=True)
class Step:
    """One box of the flow: how many ``count`` reached it, and what left after it, reason -> count."""

    label: str
    count: int
    unit: str = "files"
    left: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class SplitColumn:
    """One split: its groups and images, and finding -> (positive images, positive groups, known images).

    ``judged`` images of it were judged, where any were; ``left`` says why the others were not.
    """

    name: str
    groups: int
    images: int
    positive: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    judged: int | None = None
    left: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(name: str, *, names: Sequence[str], targets: ArrayLike, groups: Sequence[str]) -> SplitColumn:
        """Counts a label matrix (N,F): 1 positive, 0 negative, anything else unknown."""
        y, g = np.asarray(targets), np.asarray(groups)
        counts = {
            label: (
                int((y[:, f] == 1).sum()),
                len(np.unique(g[y[:, f] == 1])),
                int(((y[:, f] == 0) | (y[:, f] == 1)).sum()),
            )
            for f, label in enumerate(names)
        }
        return SplitColumn(name, len(np.unique(g)), len(g), counts)


@dataclass(slots=True)
class Bin:
    """One point of a reliability plot: mean predicted probability, observed share with its interval."""

    score: float
    rate: Metric


@dataclass(slots=True)
class Curves:
    """What is drawn for one finding. Points are (n,2) of (x, y); bands (m,3) of (x, lo, hi); marks are the operating
    point; ``histogram`` counts scores in 20 equal bins of [0, 1]."""

    finding: str
    roc: Points
    pr: Points
    bins: list[Bin]
    histogram: list[int]
    roc_band: Points | None = None
    pr_band: Points | None = None
    roc_mark: tuple[float, float] | None = None
    pr_mark: tuple[float, float] | None = None


@dataclass(slots=True)
class Picture:
    """A gallery image as it is shown: uint8 (H,W) or (H,W,3), what the model said, and the window it is shown in."""

    pixels: NDArray[np.uint8]
    finding: str
    outcome: str  # TP FP FN TN
    score: float
    threshold: float
    window: str
    sample_id: str = ""
    note: str = ""


@dataclass(slots=True)
class ReportContent:
    """Everything on the page. Strings are plain text (escaped when written); a section without data is left out.

    ``facts`` stand under the title (model, start, data set ...); ``hashes`` and ``environment`` are name -> value;
    ``licences`` rows of (what, licence, source); ``group`` and ``image`` are the words for what is resampled and for
    a row ("patient", "lot"; "image", "frame").
    """

    title: str
    split: str
    findings: list[Finding]
    macro: Mapping[str, Metric]
    covered: tuple[str, ...]
    n_images: int
    n_groups: int
    n_resamples: int
    seed: int
    subtitle: str = ""
    created: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    flow: list[Step] = field(default_factory=list)
    splits: list[SplitColumn] = field(default_factory=list)
    curves: list[Curves] = field(default_factory=list)
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)  # "A against B" -> comparison
    gallery: list[Picture] = field(default_factory=list)
    gallery_note: str = ""
    config: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    licences: list[tuple[str, str, str]] = field(default_factory=list)
    group: str = "patient"
    image: str = "image"

    @staticmethod
    def of(report: Report, *, title: str, bands: bool = True, **rest: Any) -> ReportContent:
        """The content of a report, curves included; ``rest`` are further fields, of which ``warnings`` come first."""
        base, _ = report.predictions.repeats()
        warnings = [*rest.pop("warnings", []), *report.warnings]
        return ReportContent(
            title=title,
            split=report.split,
            findings=report.findings,
            macro=report.macro,
            covered=report.covered,
            n_images=len(base),
            n_groups=len(np.unique(base.group_id)),
            n_resamples=report.n_resamples,
            seed=report.seed,
            warnings=warnings,
            curves=curves_of(report, bands=bands),
            **rest,
        )


def thin(curve: Curve, *, most: int = 200) -> Points:
    """At most about ``most`` vertices of a curve, spaced along its length; ends kept, none moved."""
    points = np.stack([curve.x, curve.y], 1)
    if len(points) <= most:
        return points
    length = np.cumsum(np.r_[0.0, np.abs(np.diff(points, axis=0)).sum(1)])
    keep = np.unique(np.searchsorted(length, np.linspace(0, length[-1], most)).clip(0, len(points) - 1))
    kept: Points = points[np.union1d(keep, [0, len(points) - 1])]
    return kept


def curves_of(report: Report, *, bands: bool = True) -> list[Curves]:
    """Curves of every computable finding of a report about one model (one seed, one fold); else none."""
    p = report.predictions
    if len(np.unique(p.seed)) > 1 or len(np.unique(p.fold)) > 1:
        return []
    out, grid = [], np.linspace(0, 1, 51)
    for finding in report.findings:
        if finding.reason:
            continue
        f = p.names.index(finding.name)
        y, s = p.targets[:, f], p.scores[:, f]
        bins = reliability(y, s)
        positive, groups = y[bins.rows] == 1, p.group_id[bins.rows]
        made = Curves(
            finding.name,
            roc=thin(roc_curve(y, s)),
            pr=thin(pr_curve(y, s)),
            bins=[
                Bin(float(score), proportion(positive[bins.bin_of == b], groups[bins.bin_of == b]))
                for b, score in enumerate(bins.score)
            ],
            histogram=np.histogram(s[bins.rows], bins=20, range=(0, 1))[0].tolist(),
        )
        if bands:
            made.roc_band, made.pr_band = (
                _band(grid, b) for b in curve_bands(y, s, p.group_id, grid, seed=report.seed)
            )
        if finding.at is not None and None not in (finding.at.sensitivity.value, finding.at.specificity.value):
            sensitivity, specificity = (
                float(finding.at.sensitivity.value or 0),
                float(finding.at.specificity.value or 0),
            )
            made.roc_mark = (1 - specificity, sensitivity)
            made.pr_mark = None if finding.at.ppv.value is None else (sensitivity, finding.at.ppv.value)
        out.append(made)
    return out


def _band(grid: Array, band: Array) -> Points:
    return np.column_stack([grid, band[0], band[1]])


def gallery_rows(report: Report, *, n: int = 12, seed: int = 0) -> list[tuple[int, str, str]]:
    """(row of ``report.predictions``, finding, outcome) of images to show: TP, FP, FN and TN in equal parts as far as
    they go, drawn at random with ``seed`` over findings with an operating point, no image twice, none picked by eye."""
    p = report.predictions
    pool: dict[str, list[tuple[int, str]]] = {outcome: [] for outcome in OUTCOMES}
    for finding in report.findings:
        if finding.point is None:
            continue
        f = p.names.index(finding.name)
        y, called = p.targets[:, f], p.scores[:, f] >= finding.point.threshold
        for outcome, mask in (
            ("TP", (y == 1) & called),
            ("FP", (y == 0) & called),
            ("FN", (y == 1) & ~called),
            ("TN", (y == 0) & ~called),
        ):
            pool[outcome] += [(int(r), finding.name) for r in np.flatnonzero(mask)]
    rng = np.random.Generator(np.random.Philox(seed))
    queues = {k: [v[i] for i in rng.permutation(len(v))] for k, v in pool.items()}
    chosen: list[tuple[int, str, str]] = []
    seen: set[int] = set()
    while len(chosen) < n and any(queues.values()):
        # the rarest outcomes first, so that common ones cannot use up their images
        for outcome in sorted(queues, key=lambda k: len(pool[k])):
            while queues[outcome]:
                row, name = queues[outcome].pop(0)
                if row not in seen:
                    seen.add(row)
                    chosen.append((row, name, outcome))
                    break
    order = list(OUTCOMES)
    return sorted(chosen[:n], key=lambda c: order.index(c[2]))


def flow_gaps(flow: Sequence[Step], splits: Sequence[SplitColumn] = ()) -> list[str]:
    """Where the boxes of a flow, the splits at its end and what was judged do not add up; written on the page as a
    warning, so that nothing is lost silently."""
    boxes = list(flow)
    if splits and boxes:  # the files that are left at the end are the images of the splits
        boxes.append(Step("the splits", sum(s.images for s in splits), boxes[-1].unit))
    checks = [(a, b) for a, b in pairwise(boxes) if a.unit == b.unit]
    checks += [(Step(s.name, s.images, "", s.left), Step("judged", s.judged)) for s in splits if s.judged is not None]
    out = []
    for a, b in checks:
        gone = sum(a.left.values())
        if a.count - gone != b.count:
            out.append(f"The flow does not add up: {a.label} {a.count:,}, less {gone:,}, is not {b.label} {b.count:,}.")
    return out
