"""Small pieces of HTML: escaped text, counted words, numbers with their intervals, table rows."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from hilum.core.types import Metric


def text(value: object) -> str:
    """Escaped for HTML; an address stays readable but is no address to a parser or a search for one."""
    return html.escape(str(value), quote=True).replace("://", "&#58;//").replace("//", "&#47;/")


def plural(word: str) -> str:
    return word[:-1] + "ies" if word.endswith("y") else word + "s"


def count(n: int, word: str) -> str:
    return f"{n:,} {text(word if n == 1 else plural(word))}"


def named(words: str, *, group: str, row: str) -> str:
    """Escaped words of the statistics with "group" and "row" in the page's own terms ("patient", "image")."""
    for general, own in (("group", group), ("row", row)):
        words = re.sub(rf"\b{general}s\b", plural(own), re.sub(rf"\b{general}\b", own, words))
        words = re.sub(rf"\b{general.capitalize()}s\b", plural(own).capitalize(), words)
    return text(words)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def p_value(value: float | None, n: int) -> str:
    """A share of ``n`` redraws; none of them is less than one in n, not zero."""
    if value is None:
        return "–"
    return f"&lt; {1 / n:.3g}" if value == 0 else f"{value:.3f}"


def stacked(m: Metric, *, as_percent: bool = False, with_sign: bool = False) -> str:
    """A cell's value over its interval."""
    if m.value is None:
        return "<small>not computable</small>"

    def show(value: float) -> str:
        return f"{100 * value:.1f}" if as_percent else signed(value) if with_sign else f"{value:.3f}"

    dash = "to" if with_sign else "–"
    return show(m.value) + ("" if m.lo is None or m.hi is None else f"<small>{show(m.lo)} {dash} {show(m.hi)}</small>")


def inline(m: Metric) -> str:
    if m.value is None:
        return "not computable"
    return f"{m.value:.3f}" + ("" if m.lo is None or m.hi is None else f" ({m.lo:.3f} – {m.hi:.3f})")


def how_to_read(words: str) -> str:
    return f'<p class="read"><b>How to read this.</b> {words}</p>'


def row(first: str, *cells: str) -> str:
    rest = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{first}</th>{rest}</tr>'


def table(head: Sequence[str], rows: Iterable[str], *, foot: str = "", caption: str = "", css: str = "") -> str:
    cells = "".join(h if h.startswith("<th") else f'<th scope="col">{h}</th>' for h in head)
    return (
        f'<div class="wide"><table{f" class={css}" if css else ""}>'
        + (f"<caption>{caption}</caption>" if caption else "")
        + (f"<thead><tr>{cells}</tr></thead>" if head else "")
        + f"<tbody>{''.join(rows)}</tbody>{f'<tfoot>{foot}</tfoot>' if foot else ''}</table></div>"
    )
