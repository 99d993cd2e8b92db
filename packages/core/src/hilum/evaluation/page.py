"""The HTML report: one self-contained page, no script, no address outside itself, at most 6 MB, fit to print."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hilum.evaluation import sections
from hilum.evaluation.content import OUTCOMES, Picture, ReportContent, flow_gaps
from hilum.evaluation.document import MAX_BYTES, caution, data_uri, document, header, write_document
from hilum.evaluation.markup import how_to_read, named, text

__all__ = ["MAX_BYTES", "render", "write_report"]

_SIDES = (384, 320, 256, 192, 128)
_MEANING = {"TP": "there, and called", "FP": "not there, but called", "FN": "there, but missed", "TN": "not there"}


def write_report(path: Path | str, content: ReportContent) -> Path:
    """Writes the page; gallery images shrink (384 px side at most) until it keeps within 6 MB, or it raises."""
    fix = "shorten the configuration or draw fewer findings"
    return write_document(Path(path), lambda side: render(content, side=side), sides=_SIDES, fix=fix)


def render(content: ReportContent, *, side: int = _SIDES[0]) -> str:
    """The page as a string; gallery images at most ``side`` pixels."""
    c = content
    made = [
        ("flow", "Data flow", sections.flow(c)),
        ("splits", "Splits", sections.splits(c)),
        ("findings", "Results by finding", sections.findings(c)),
        ("operating", "Operating points", sections.operating(c)),
        ("comparison", "Comparison of models", sections.comparisons(c)),
        ("curves", "Curves", sections.curves(c)),
        ("gallery", "Example images", _gallery(c, side)),
        ("methods", "Methods", sections.methods(c)),
        ("provenance", "Provenance", sections.provenance(c)),
    ]
    words = [named(w, group=c.group, row=c.image) for w in [*c.warnings, *flow_gaps(c.flow, c.splits)]]
    top = header("Evaluation report", c.title, date=c.created, lead=c.subtitle, facts=dict(c.facts))
    made_on = f", {text(c.created)}" if c.created else ""
    return document(
        title=c.title,
        head=top + caution("Before you read the numbers", words) + sections.key_figures(c),
        sections=made,
        footer=f"Made by hilum{made_on}. For research; not a medical device, not for diagnosis.",
    )


def _gallery(c: ReportContent, side: int) -> str:
    if not c.gallery:
        return ""
    columns = []
    for outcome, name in OUTCOMES.items():
        inner = "".join(_picture(p, side) for p in c.gallery if p.outcome == outcome)
        empty = '<p class="none">none among the images judged</p>'
        columns.append(f"<div><h3>{name}<small>{_MEANING[outcome]}</small></h3>{inner or empty}</div>")
    note = f" {text(c.gallery_note)}" if c.gallery_note else ""
    words = (
        f"Drawn at random within each outcome, none picked by eye.{note} The window says which grey values are shown."
    )
    return how_to_read(words) + f'<div class="gallery">{"".join(columns)}</div>'


def _picture(p: Picture, side: int) -> str:
    alt = text(f"{OUTCOMES.get(p.outcome, p.outcome)}, {p.finding}")
    lines = [
        f"<b>{text(p.finding)}</b>",
        f"score {p.score:.3f}, threshold {p.threshold:.3f}",
        f"window: {text(p.window)}",
    ]
    lines += [text(line) for line in (p.note, p.sample_id[:12]) if line]
    return f'<figure><img alt="{alt}" src="{_data_uri(p, side)}"><figcaption>{"<br>".join(lines)}</figcaption></figure>'


def _data_uri(p: Picture, side: int) -> str:
    return data_uri(np.asarray(p.pixels), side)
