"""``hilum list``: what is installed, from the manifests alone."""

from __future__ import annotations

from hilum.core.errors import HilumError, nearest
from hilum.core.registry import KINDS, registry


def list_(what: str | None = None, *, kind: str | None = None, why: str | None = None) -> None:
    """Show everything that installed distributions register.

    Args:
        what: only this kind, in plain words: recipes, encoders, datasets, ...
        kind: only this kind (recipe, encoder, objective, ...)
        why: explain where one name comes from and whether it can be used here
    """
    if why is not None:
        _explain(why)
        return
    if what is not None and kind is None:
        kind = what if what in KINDS else what.removesuffix("s")
    if kind is not None and kind not in KINDS:
        raise HilumError(f"unknown kind {kind!r}", fix=nearest(kind, KINDS) or " ".join(KINDS))
    for each in [kind] if kind else KINDS:
        entries = registry.entries(each)
        if not entries:
            continue
        print(f"{each}")
        width = max(len(name) for name in entries)
        for name, entry in entries.items():
            missing = entry.missing()
            note = f'  [needs {", ".join(missing)}: pip install "hilum[{entry.extra or "all"}]"]' if missing else ""
            print(f"  {name:<{width}}  {entry.help}{note}")
    if kind == "dataset":
        _datasets()


def _datasets() -> None:
    """What the cards of datasets say, shortly; ``hilum fetch NAME`` says the rest."""
    from hilum.data.cards import cards

    print("\nhow to get one, its licence, labels and groups: hilum fetch NAME")
    for name, card in cards().items():
        images = f"{card.counts['images']:,} images, " if "images" in card.counts else ""
        print(f"  {name}: {images}{card.terms}; groups: {card.group}")
        print(f"    {card.licence}")
        for origin in card.draws_from:
            print(f"    shares images with {origin.name} ({origin.what})")


def _explain(name: str) -> None:
    found = registry.named(name)
    if not found:
        everything = {entry.name for entry in registry.entries().values()}
        raise HilumError(f"nothing installed is named {name!r}", fix=nearest(name, everything) or "hilum list")
    for entry in found:
        missing = entry.missing()
        family = f", of the family {entry.name}" if entry.name != name else ""
        print(f"{entry.kind} {name}{family}")
        print(f"  from      {entry.owner}")
        print(f"  target    {entry.path if entry.kind == 'recipe' else entry.target}")
        if entry.help:
            print(f"  what      {entry.help}")
        print(f"  usable    {'no, missing ' + ', '.join(missing) if missing else 'yes'}")
        accepted = registry.keywords(entry.kind, entry.name) if entry.kind not in ("recipe", "verb") else None
        if accepted:
            print(f"  accepts   {' '.join(sorted(accepted))}")
