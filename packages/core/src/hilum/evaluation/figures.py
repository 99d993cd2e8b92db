"""Curves as inline SVG strings: coloured by the page's classes, so that they follow light, dark and print."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from hilum.core.types import Metric
from hilum.evaluation.content import Curves, Points
from hilum.evaluation.markup import text

SIZE, LEFT, TOP, SIDE = 300, 44, 8, 244
"""A plot's width, and the position and side of its square, in user units."""


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


class Square:
    """A plot on [0, limit] x [0, limit] with axes, grid and a legend line below."""

    def __init__(self, *, x_label: str, y_label: str, limit: float = 1.0) -> None:
        self.limit, self.parts = limit, [f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}"/>']
        for i in range(6):
            t = limit * i / 5
            x, y, label = self.x(t), self.y(t), f"{t:.3f}".rstrip("0").rstrip(".") or "0"
            if 0 < i < 5:
                self.parts.append(f'<path class="grid" d="M{_n(x)} {TOP}v{SIDE}M{LEFT} {_n(y)}h{SIDE}"/>')
            self.parts.append(
                f'<text class="tick" x="{_n(x)}" y="{TOP + SIDE + 14}" text-anchor="middle">{label}</text>'
            )
            self.parts.append(f'<text class="tick" x="{LEFT - 6}" y="{_n(y + 3.5)}" text-anchor="end">{label}</text>')
        middle = LEFT + SIDE / 2
        self.parts.append(
            f'<text class="axis" x="{_n(middle)}" y="{TOP + SIDE + 31}" text-anchor="middle">{x_label}</text>'
        )
        at = TOP + SIDE / 2
        self.parts.append(
            f'<text class="axis" transform="translate(9 {_n(at)}) rotate(-90)" text-anchor="middle">{y_label}</text>'
        )

    def x(self, value: float) -> float:
        return LEFT + SIDE * value / self.limit

    def y(self, value: float) -> float:
        return TOP + SIDE * (1 - value / self.limit)

    def line(self, points: Iterable[Sequence[float]], css: str) -> None:
        path = "L".join(f"{_n(self.x(p[0]))} {_n(self.y(p[1]))}" for p in points)
        self.parts.append(f'<path class="{css}" d="M{path}"/>')

    def band(self, band: Points | None) -> None:
        if band is not None:
            outline = [*((x, hi) for x, _, hi in band), *((x, lo) for x, lo, _ in band[::-1])]
            self.line(outline, "band")

    def mark(self, at: tuple[float, float] | None) -> None:
        if at is not None:
            x, y = self.x(at[0]), self.y(at[1])
            self.parts.append(f'<path class="mark" d="M{_n(x)} {_n(y - 6.5)}l6.5 6.5 -6.5 6.5 -6.5 -6.5z"/>')

    def svg(self, title: str, legend: Sequence[tuple[str, str]]) -> str:
        """``legend``: (kind, words) with kind of line, band, chance, mark, dot, bar."""
        x, y = 2.0, TOP + SIDE + 50
        signs = {
            "line": '<path class="curve" d="M{0} {1}h14"/>',
            "chance": '<path class="chance" d="M{0} {1}h14"/>',
            "band": '<path class="band" d="M{0} {1}m0 -4h14v8h-14z"/>',
            "mark": '<path class="mark" d="M{0} {1}m7 -5.5l5.5 5.5 -5.5 5.5 -5.5 -5.5z"/>',
            "dot": '<path class="whisker" d="M{0} {1}m7 -6v12"/><circle class="dot" cx="{2}" cy="{1}" r="3.2"/>',
            "bar": '<path class="bar" d="M{0} {1}m1 4v-5h5v5zm6 0v-8h5v8z"/>',
        }
        for kind, words in legend:
            self.parts.append(signs[kind].format(_n(x), _n(y), _n(x + 7)))
            self.parts.append(f'<text class="key" x="{_n(x + 18)}" y="{_n(y + 3.5)}">{text(words)}</text>')
            x += 18 + 5.2 * len(words) + 13
        height = TOP + SIDE + 60
        return (
            f'<svg viewBox="0 0 {SIZE} {height}" role="img" aria-label="{text(title)}"><title>{text(title)}</title>'
            f"{''.join(self.parts)}</svg>"
        )


def _legend(curves: Curves, band: Points | None, chance: str, mark: object) -> list[tuple[str, str]]:
    rows = [("line", "model"), ("band", "95 % band"), ("chance", chance), ("mark", "threshold")]
    return [r for r in rows if (r[0] != "band" or band is not None) and (r[0] != "mark" or mark is not None)]


def roc_figure(curves: Curves) -> str:
    plot = Square(x_label="1 − specificity (false alarms)", y_label="sensitivity (found)")
    plot.line([(0, 0), (1, 1)], "chance")
    plot.band(curves.roc_band)
    plot.line(curves.roc, "curve")
    plot.mark(curves.roc_mark)
    return plot.svg(f"ROC curve of {curves.finding}", _legend(curves, curves.roc_band, "guessing", curves.roc_mark))


def pr_figure(curves: Curves, *, prevalence: float) -> str:
    """Precision-recall as steps; guessing lies at the prevalence."""
    plot = Square(x_label="recall = sensitivity", y_label="precision = PPV")
    plot.line([(0, prevalence), (1, prevalence)], "chance")
    plot.band(curves.pr_band)
    steps = [curves.pr[0]]
    for before, after in pairwise(curves.pr):
        steps += [(before[0], after[1]), after]
    plot.line(steps, "curve")
    plot.mark(curves.pr_mark)
    title = f"Precision-recall curve of {curves.finding}"
    return plot.svg(title, _legend(curves, curves.pr_band, "prevalence", curves.pr_mark))


def reliability_figure(curves: Curves) -> str:
    """Bins with whiskers over the diagonal, scores as a histogram at the foot. The axes zoom to where the bins are."""
    reach = max([b.score for b in curves.bins] + [b.rate.hi or b.rate.value or 0 for b in curves.bins])
    limit = next(v for v in (0.1, 0.25, 0.5, 1.0) if reach <= v or v == 1.0)
    plot = Square(x_label="predicted probability", y_label="observed share positive", limit=limit)
    shown = [c for i, c in enumerate(curves.histogram) if i / len(curves.histogram) < limit]
    width, foot = SIDE / (limit * len(curves.histogram)), TOP + SIDE
    for i, count in enumerate(shown):
        tall = 34 * count / max(*shown, 1)
        if count:
            x = LEFT + i * width
            plot.parts.append(f'<path class="bar" d="M{_n(x + 0.5)} {foot}v{_n(-tall)}h{_n(width - 1)}V{foot}z"/>')
    plot.line([(0, 0), (limit, limit)], "chance")
    for b in curves.bins:
        if b.rate.lo is not None and b.rate.hi is not None:
            plot.line([(b.score, b.rate.lo), (b.score, min(b.rate.hi, limit))], "whisker")
    plot.line([(b.score, b.rate.value or 0) for b in curves.bins], "thin")
    for b in curves.bins:
        x, y = plot.x(b.score), plot.y(b.rate.value or 0)
        plot.parts.append(f'<circle class="dot" cx="{_n(x)}" cy="{_n(y)}" r="3.4"/>')
    legend = [("dot", "bin, 95 % CI"), ("chance", "perfect"), ("bar", "all scores")]
    return plot.svg(f"Reliability of {curves.finding}", legend)


def interval_strip(metric: Metric | None, *, lo: float, chance: float | None = 0.5) -> str:
    """A metric as dot and whisker on [lo, 1]; with ``metric=None`` the strip's axis for the table's head."""

    def at(value: float) -> float:
        return 5 + 130 * (min(max(value, lo), 1.0) - lo) / (1 - lo)

    marks = "".join(f"M{_n(at(v))} 2v16" for v in ([chance] if chance is not None else []))
    if metric is None:
        ticks = [lo, (lo + 1) / 2, 1.0]
        labels = "".join(
            f'<text class="tick" x="{_n(at(t))}" y="11" text-anchor="{a}">{f"{t:.2f}".rstrip("0").rstrip(".")}</text>'
            for t, a in zip(ticks, ("start", "middle", "end"), strict=True)
        )
        return f'<svg class="strip" viewBox="0 0 140 14" aria-hidden="true">{labels}</svg>'
    if metric.value is None:
        return ""
    whisker = ""
    if metric.lo is not None and metric.hi is not None:
        whisker = f'<path class="whisker" d="M{_n(at(metric.lo))} 10H{_n(at(metric.hi))}"/>'
    dot = f'<circle class="dot" cx="{_n(at(metric.value))}" cy="10" r="3.6"/>'
    base = f'<path class="grid" d="M{_n(at(lo))} 10H{_n(at(1.0))}"/><path class="chance" d="{marks}"/>'
    return f'<svg class="strip" viewBox="0 0 140 20" aria-hidden="true">{base}{whisker}{dot}</svg>'


def histogram_figure(counts: Sequence[int], lo: float, hi: float, *, title: str, x_label: str) -> str:
    """Bars over [lo, hi], the highest named at the left edge; the end bins hold what lies beyond."""
    height, foot, most = 104, TOP + 104, max([*counts, 1])
    width = SIDE / max(len(counts), 1)
    parts = [f'<path class="grid" d="M{LEFT} {TOP}h{SIDE}M{LEFT} {_n(TOP + height / 2)}h{SIDE}"/>']
    for at, count in enumerate(counts):
        if count:
            tall = max(1.0, height * count / most)
            x = LEFT + at * width
            parts.append(f'<path class="bin" d="M{_n(x + 0.5)} {foot}v{_n(-tall)}h{_n(max(width - 1, 0.5))}V{foot}z"/>')
    parts.append(f'<path class="frame" d="M{LEFT} {foot}h{SIDE}"/>')
    parts.append(f'<text class="tick" x="{LEFT - 6}" y="{TOP + 4}" text-anchor="end">{most:,}</text>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        label = _short(lo + share * (hi - lo))
        parts.append(
            f'<text class="tick" x="{_n(LEFT + share * SIDE)}" y="{foot + 14}" text-anchor="{anchor}">{label}</text>'
        )
    parts.append(
        f'<text class="axis" x="{LEFT + SIDE / 2}" y="{foot + 31}" text-anchor="middle">{text(x_label)}</text>'
    )
    return (
        f'<svg viewBox="0 0 {SIZE} {foot + 38}" role="img" aria-label="{text(title)}"><title>{text(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _short(value: float) -> str:
    """Three digits; thousands in full, more as a power of ten."""
    shown = f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"
    return re.sub(r"e\+?(-?)0*(\d+)", r" · 10^\1\2", shown).replace("-", "−")
