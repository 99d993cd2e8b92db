"""Left and right in labels and text, exchanged where an image was mirrored (``hflip_with_sides``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hilum.core.errors import HilumError, nearest
from hilum.core.types import Sample

Pairs: TypeAlias = "Iterable[tuple[int, int]]"
Lexicon: TypeAlias = "Mapping[str, Sequence[tuple[str, str]]]"

_GERMAN = [("links" + end, "rechts" + end) for end in ("", "seitig")]
_GERMAN += [(left + end, right + end) for left, right in [("link", "recht")] for end in ("e", "er", "en", "es", "em")]
_GERMAN += [(f"linksseitig{end}", f"rechtsseitig{end}") for end in ("e", "er", "en", "es", "em")]

LEXICON: Final[Lexicon] = MappingProxyType(
    {
        "en": (("left", "right"), ("leftward", "rightward"), ("leftwards", "rightwards")),
        "de": tuple(_GERMAN),
        # gauche is one word for both genders: it becomes droite, and droit becomes gauche
        "fr": (("gauche", "droite"), ("gauches", "droites"), ("gauche", "droit"), ("gauches", "droits")),
        "es": tuple((f"izquierd{end}", f"derech{end}") for end in ("a", "o", "as", "os")),
        "it": tuple((f"sinistr{end}", f"destr{end}") for end in ("a", "o", "e", "i")),
    }
)


def mirrored(matrix: ArrayLike) -> bool:
    """Whether a view shows its image as a mirror does: by its orientation. Two flips are a turn, and mirror nothing."""
    linear = np.asarray(matrix, np.float64)[:-1, :-1]
    return bool(np.linalg.det(linear) < 0)


def exchange(values: Tensor, pairs: Pairs, *, dim: int = 0) -> Tensor:
    """Rows of ``values`` along ``dim`` exchanged by (left, right) indexes: labels (F,), (B, F) with dim=1, channels (C, ...).

    A copy, except without pairs. :class:`HilumError` where an index is not there or stands in two pairs.
    """
    pairs = list(pairs)
    if not pairs:
        return values
    n = values.shape[dim]
    _distinct(pairs, "rows")
    if odd := [i for pair in pairs for i in pair if not 0 <= i < n]:
        raise HilumError(f"side labels name row {odd[0]} of {n}", where="exchange of sides")
    order = list(range(n))
    for left, right in pairs:
        order[left], order[right] = right, left
    return values.index_select(dim, torch.tensor(order, device=values.device))


def exchange_values(labels: Tensor, pairs: Pairs) -> Tensor:
    """A label map of any shape and integer dtype whose values exchange by (left, right): kidney_left and kidney_right."""
    pairs = list(pairs)
    if labels.dtype.is_floating_point:
        raise HilumError(f"masks hold labels, not {labels.dtype}", where="exchange of sides")
    _distinct(pairs, "labels")
    wide = labels.to(torch.int64)  # uint16 knows neither masked_fill nor index_put
    out = wide
    for left, right in pairs:
        out = out.masked_fill(wide == left, right).masked_fill(wide == right, left)
    return out.to(labels.dtype)


def pairs_of(
    names: Sequence[str], *, lexicon: Lexicon = LEXICON, languages: Iterable[str] = ("en",)
) -> list[tuple[int, int]]:
    """(left, right) indexes of names that are each other's mirror image: ``kidney_left`` and ``kidney_right``.

    :class:`HilumError` where a name has a side and its counterpart is not among ``names``.
    """
    at = {name.lower(): i for i, name in enumerate(names)}
    pairs: list[tuple[int, int]] = []
    languages = tuple(languages)
    for i, name in enumerate(names):
        other = exchange_words(name, lexicon=lexicon, languages=languages)
        if other == name:
            continue
        if other.lower() not in at:
            raise HilumError(
                f"label {name!r} has a side and there is no {other!r}",
                where="side labels",
                fix=nearest(other, names) or "add its counterpart, or leave hflip out",
            )
        j = at[other.lower()]
        if at[exchange_words(names[j], lexicon=lexicon, languages=languages).lower()] != i:
            raise HilumError(f"{name!r} and {names[j]!r} are not each other's mirror image", where="side labels")
        if i < j:
            pairs.append((i, j) if _leads(name, lexicon, languages) else (j, i))
    return pairs


def exchange_words(text: str, *, lexicon: Lexicon = LEXICON, languages: Iterable[str] | None = None) -> str:
    """``text`` with side words exchanged, all at once, whole words only, case kept (left, Left, LEFT).

    A word ends at anything but a letter or digit: ``left-sided`` and ``kidney_left`` hold one, ``leftover`` none.
    Abbreviations (L, R, LLL) are not in the lexicon: they mean other things as well; nor is a meaning looked at ("all right").
    ``languages``: codes of the lexicon, None for all of them.
    """
    table, _ = _table(lexicon, languages)
    if not table:
        return text
    words = "|".join(re.escape(word) for word in sorted(table, key=len, reverse=True))
    pattern = re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])", re.IGNORECASE)

    def swapped(found: re.Match[str]) -> str:
        word = found.group()
        other = table[word.lower()]
        if word.isupper():
            return other.upper()
        return other[:1].upper() + other[1:] if word[:1].isupper() else other

    return pattern.sub(swapped, text)


def exchange_sample(
    sample: Sample, pairs: Pairs = (), *, lexicon: Lexicon = LEXICON, languages: Iterable[str] | None = None
) -> Sample:
    """The sample with its labels and texts turned to the side that its mirrored image shows; done once, then recorded.

    Reads ``meta.extra["draws"]``. ``targets["labels"]`` (F,) of floating point exchanges its rows by ``pairs``, integers (a
    class, or one a box) their values; views that are text exchange their side words. :class:`HilumError` where views of
    one sample were mirrored differently: its labels cannot be true for all.
    """
    extra = sample.meta.extra
    seen = {mirrored(draw["matrix"]) for draw in extra.get("draws", {}).values()}
    pairs, labels = list(pairs), sample.targets.get("labels")
    said = any(isinstance(view, str | list) for view in sample.views.values())
    if len(seen) > 1 and (said or (pairs and labels is not None)):
        raise HilumError(
            "one view is mirrored and another is not, and labels or text name sides",
            where=f"hflip_with_sides, sample {sample.meta.sample_id}",
            fix="one image view, or hflip: 0",
        )
    if seen != {True} or extra.get("sides_exchanged"):
        return sample
    targets, views = dict(sample.targets), dict(sample.views)
    if labels is not None:
        classes = not labels.dtype.is_floating_point and labels.dtype != torch.bool  # of the image, or of its boxes
        try:
            targets["labels"] = exchange_values(labels, pairs) if classes else exchange(labels, pairs, dim=-1)
        except HilumError as error:
            where = f"hflip_with_sides, sample {sample.meta.sample_id}"
            raise HilumError(error.what, where=where, fix=error.fix) from error
    for name, view in views.items():
        if isinstance(view, str):
            views[name] = exchange_words(view, lexicon=lexicon, languages=languages)
        elif isinstance(view, list):
            views[name] = [exchange_words(text, lexicon=lexicon, languages=languages) for text in view]
    meta = replace(sample.meta, extra={**extra, "sides_exchanged": True})
    return Sample(views, targets, meta)


def _table(lexicon: Lexicon, languages: Iterable[str] | None) -> tuple[dict[str, str], set[str]]:
    """Word -> its counterpart, lower case, the first pair of a word deciding; and the words that mean left."""
    table: dict[str, str] = {}
    lefts = set()
    for code in lexicon if languages is None else languages:
        if code not in lexicon:
            fix = nearest(code, lexicon) or f"one of {' '.join(lexicon)}"
            raise HilumError(f"the lexicon of sides has no language {code!r}", where="side words", fix=fix)
        for left, right in lexicon[code]:
            lefts.add(left.lower())
            table.setdefault(left.lower(), right.lower())
            table.setdefault(right.lower(), left.lower())
    return table, lefts


def _leads(name: str, lexicon: Lexicon, languages: Iterable[str]) -> bool:
    _, lefts = _table(lexicon, languages)
    return any(word in lefts for word in re.findall(r"[^\W_]+", name.lower()))


def _distinct(pairs: Sequence[tuple[int, int]], what: str) -> None:
    flat = [i for pair in pairs for i in pair]
    if any(len(pair) != 2 for pair in pairs) or len(set(flat)) != len(flat):
        raise HilumError(f"side {what} stand in more than one pair: {list(pairs)}", where="exchange of sides")
