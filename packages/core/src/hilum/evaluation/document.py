"""A page that stands alone: no script, no address outside itself, at most 6 MB, light, dark and fit to print."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError
from hilum.evaluation.markup import text

MAX_BYTES = 6_000_000
# even a mistake in a page cannot make it fetch or run anything
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LOGO = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M14 3.2a9 9 0 1 0 0 17.6M22 12h-9M13 12c-3 0-3-4-6-4M13 12H7'
    'M13 12c-3 0-3 4-6 4"/></svg>'
)


def document(*, title: str, head: str, sections: Iterable[tuple[str, str, str]], footer: str) -> str:
    """HTML of (id, heading, body) sections under ``head``; a section without body is left out."""
    kept = [s for s in sections if s[2]]
    links = "".join(f'<a href="#{name}">{words}</a>' for name, words, _ in kept)
    body = "".join(f'<section id="{name}"><h2>{words}</h2>{inner}</section>' for name, words, inner in kept)
    style = (files("hilum.evaluation") / "report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{text(title)} · hilum</title><style>{style}</style></head><body>"
        f'{head}<nav aria-label="Sections">{links}</nav><main>{body}</main>'
        f"<footer>{footer}</footer>"
        "</body></html>\n"
    )


def header(kind: str, title: str, *, date: str = "", lead: str = "", facts: dict[str, str] | None = None) -> str:
    """The top of a page: what kind it is, its title, a line about it and a row of facts."""
    listed = "".join(f"<li><b>{text(k)}</b>{text(v)}</li>" for k, v in (facts or {}).items())
    dated = f" · {text(date)}" if date else ""
    return (
        f'<header><div class="brand">{_LOGO}hilum<span>{kind}{dated}</span></div><h1>{text(title)}</h1>'
        + (f'<p class="lead">{text(lead)}</p>' if lead else "")
        + (f'<ul class="facts">{listed}</ul>' if listed else "")
        + "</header>"
    )


def caution(heading: str, lines: Sequence[str]) -> str:
    """A box of HTML lines to be read first; nothing where there are none."""
    rows = "".join(f"<li>{line}</li>" for line in lines)
    return f'<aside class="warn"><h2>{heading}</h2><ul>{rows}</ul></aside>' if rows else ""


def key_numbers(boxes: Iterable[tuple[str, str]]) -> str:
    """Large numbers over small words, four a row; both are HTML."""
    return '<div class="figures">' + "".join(f"<div><b>{b}</b><small>{s}</small></div>" for b, s in boxes) + "</div>"


def write_document(path: Path, render: Callable[[int], str], *, sides: Sequence[int], fix: str) -> Path:
    """Write the page; images shrink through ``sides`` until it keeps within 6 MB, or it raises with ``fix``."""
    for side in sides:
        page = render(side).encode("utf-8")
        if len(page) <= MAX_BYTES:
            break
    else:
        raise HilumError(
            f"the report would be {len(page) / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB",
            where=str(path),
            fix=fix,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(page)
    partial.replace(path)
    return path


def data_uri(pixels: NDArray[Any], side: int) -> str:
    """PNG of uint8 (H,W) or (H,W,3), at most ``side`` pixels, without metadata."""
    from PIL import Image

    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise HilumError(f"a gallery image must be uint8 (H,W) or (H,W,3), not {pixels.dtype} {pixels.shape}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
