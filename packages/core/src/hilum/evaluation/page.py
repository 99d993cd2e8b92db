"""The HTML report: one self-contained page, no script, no address outside itself, at most 6 MB, fit to print."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path

import numpy as np

from hilum.core.errors import HilumError
from hilum.evaluation import sections
from hilum.evaluation.content import OUTCOMES, Picture, ReportContent, flow_gaps
from hilum.evaluation.markup import how_to_read, named, text

MAX_BYTES = 6_000_000
_SIDES = (384, 320, 256, 192, 128)
# even a mistake in this file cannot make the page fetch or run anything
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MEANING = {"TP": "there, and called", "FP": "not there, but called", "FN": "there, but missed", "TN": "not there"}
_LOGO = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M14 3.2a9 9 0 1 0 0 17.6M22 12h-9M13 12c-3 0-3-4-6-4M13 12H7'
    'M13 12c-3 0-3 4-6 4"/></svg>'
)


def write_report(path: Path | str, content: ReportContent) -> Path:
    """Writes the page; gallery images shrink (384 px side at most) until it keeps within 6 MB, or it raises."""
    path = Path(path)
    for side in _SIDES:
        page = render(content, side=side).encode("utf-8")
        if len(page) <= MAX_BYTES:
            break
    else:
        raise HilumError(
            f"the report would be {len(page) / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB",
            where=str(path),
            fix="shorten the configuration or draw fewer findings",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(page)
    partial.replace(path)
    return path


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
    kept = [m for m in made if m[2]]
    links = "".join(f'<a href="#{name}">{head}</a>' for name, head, _ in kept)
    body = "".join(f'<section id="{name}"><h2>{head}</h2>{inner}</section>' for name, head, inner in kept)
    style = (files("hilum.evaluation") / "report.css").read_text(encoding="utf-8")
    made_on = f", {text(c.created)}" if c.created else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{text(c.title)} · hilum</title><style>{style}</style></head><body>"
        f"<header>{_head(c)}</header>{_warnings(c)}{sections.key_figures(c)}"
        f'<nav aria-label="Sections">{links}</nav><main>{body}</main>'
        f"<footer>Made by hilum{made_on}. For research; not a medical device, not for diagnosis.</footer>"
        "</body></html>\n"
    )


def _head(c: ReportContent) -> str:
    facts = "".join(f"<li><b>{text(k)}</b>{text(v)}</li>" for k, v in c.facts.items())
    date = f" · {text(c.created)}" if c.created else ""
    return (
        f'<div class="brand">{_LOGO}hilum<span>Evaluation report{date}</span></div><h1>{text(c.title)}</h1>'
        + (f'<p class="lead">{text(c.subtitle)}</p>' if c.subtitle else "")
        + (f'<ul class="facts">{facts}</ul>' if facts else "")
    )


def _warnings(c: ReportContent) -> str:
    rows = "".join(
        f"<li>{named(w, group=c.group, row=c.image)}</li>" for w in [*c.warnings, *flow_gaps(c.flow, c.splits)]
    )
    return f'<aside class="warn"><h2>Before you read the numbers</h2><ul>{rows}</ul></aside>' if rows else ""


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
    from PIL import Image

    pixels = np.asarray(p.pixels)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise HilumError(f"a gallery image must be uint8 (H,W) or (H,W,3), not {pixels.dtype} {pixels.shape}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
