"""The training curves that are drawn: which numbers, and where they stand."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

from hilum.tracking.plots import HEIGHT, LEFT, TOP, WIDTH, read_series, training_svg

SVG = "{http://www.w3.org/2000/svg}"


def line(step: int, **metrics: object) -> str:
    return json.dumps({"time": 0, "step": step, "metrics": {k.replace("_", "/", 1): v for k, v in metrics.items()}})


def test_losses_are_read_and_rates_and_broken_lines_are_not() -> None:
    lines = [line(2, train_loss=3.0, train_lr=0.1, speed_x=9.0), line(1, train_loss=4.0, train_gradient_norm=1.0)]
    lines += ['{"step": 7, "metr', "[]", line(3, train_loss="nan"), line(2, train_loss=2.0, val_loss=1.5)]
    assert read_series(lines) == {"train/loss": [(1.0, 4.0), (2.0, 2.0)], "val/loss": [(2.0, 1.5)]}
    assert training_svg({}) == ""


def test_a_curve_spans_its_panel_from_highest_to_lowest() -> None:
    falling = [(float(s), 10.0 - s) for s in range(11)]
    svg = training_svg({"train/loss": falling, "val/loss": [(5.0, 7.0)], "val/a<b": [(1.0, 1.0)]})
    root = ElementTree.fromstring(svg)
    panels = root.findall(f"{SVG}g")
    assert [p.get("transform") for p in panels] == ["translate(0 0)", f"translate(0 {HEIGHT})"]
    assert [t.text for t in panels[0].iter(f"{SVG}text") if t.get("font-weight")] == ["a<b"]
    path = panels[1].find(f"{SVG}path")
    assert path is not None
    points = [tuple(map(float, p)) for p in re.findall(r"([\d.]+) ([\d.]+)", path.get("d", ""))]
    assert points[0] == (LEFT, TOP) and points[-1] == (WIDTH - 14, HEIGHT - 34)
    assert all(b[0] >= a[0] and b[1] >= a[1] for a, b in zip(points, points[1:], strict=False))
