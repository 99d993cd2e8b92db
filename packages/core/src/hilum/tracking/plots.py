"""Training curves as one SVG picture, drawn from the lines of ``RUN/logs/metrics.jsonl``."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable
from itertools import groupby

WIDTH, HEIGHT, LEFT, TOP, POINTS = 420, 230, 62, 34, 400
NOT_LOSSES = ("lr", "gradient_norm", "skipped_steps")
COLOURS = {"train": "#0072b2", "val": "#d55e00"}

Series = list[tuple[float, float]]


def read_series(lines: Iterable[str]) -> dict[str, Series]:
    """``train/NAME`` and ``val/NAME`` -> points (step, value), finite ones, the last of those of one step."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        try:
            row = json.loads(line)
            items = list(row["metrics"].items())
        except (ValueError, KeyError, AttributeError, TypeError):  # half a line of a killed run
            continue
        for name, value in items:
            part, _, term = name.partition("/")
            if part in COLOURS and term not in NOT_LOSSES and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: sorted((float(step), value) for step, value in points.items()) for name, points in found.items()}


def training_svg(series: dict[str, Series]) -> str:
    """A panel a quantity, training and validation in one; "" where there is nothing to draw."""
    order = sorted(series, key=lambda name: (name.partition("/")[2], name))
    panels = [(term, list(names)) for term, names in groupby(order, key=lambda name: name.partition("/")[2])]
    if not panels:
        return ""
    drawn = [_panel(term, {n: series[n] for n in names}, i * HEIGHT) for i, (term, names) in enumerate(panels)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT * len(panels)}" width="{2 * WIDTH}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}</svg>\n'
    )


def _panel(term: str, curves: dict[str, Series], top: int) -> str:
    points = [point for curve in curves.values() for point in curve]
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    wide, tall = WIDTH - LEFT - 14, HEIGHT - TOP - 34

    def at(step: float, value: float) -> str:
        x = LEFT + wide * ((step - left) / (right - left) if right > left else 0.5)
        y = TOP + tall * (1 - ((value - low) / (high - low) if high > low else 0.5))
        return f"{x:.1f} {y:.1f}"

    parts = [f'<rect x="{LEFT}" y="{TOP}" width="{wide}" height="{tall}" fill="none" stroke="#d8dde2"/>']
    for value, y in ((high, TOP + 9), (low, TOP + tall)):
        parts.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end">{value:.4g}</text>')
    for step, x, anchor in ((left, LEFT, "start"), (right, LEFT + wide, "end")):
        parts.append(f'<text x="{x}" y="{TOP + tall + 15}" text-anchor="{anchor}">step {step:.0f}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 12}" font-weight="bold">{html.escape(term)}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        part = name.partition("/")[0]
        shown = curve[:: max(len(curve) // POINTS, 1)] + curve[-1:]
        path = "L".join(at(*point) for point in shown)
        parts.append(f'<path d="M{path}" fill="none" stroke="{COLOURS[part]}" stroke-width="1.6"/>')
        where = f'x="{WIDTH - 14 - 60 * number}" y="{TOP - 12}" text-anchor="end" fill="{COLOURS[part]}"'
        parts.append(f"<text {where}>{part}</text>")
    return f'<g transform="translate(0 {top})">{"".join(parts)}</g>'
