"""Which rows are one patient: spellings of one identifier, identifiers without an issuer, and what the user decided.

Reading gives every row the group of its own issuer and identifier; here groups become people, once all rows are known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from hilum.data.identity import IdentityKey, Merges, Spelling


def unite(
    rows: dict[str, list[Any]],
    merges: Merges,
    key: IdentityKey,
    spellings: dict[str, Spelling],
    again: Callable[[list[int]], None],
) -> list[int]:
    """Set ``group_id`` by ``merges``, to which is added what is joined unasked: spellings that normalise to one
    identifier of one issuer, and an identifier without an issuer where exactly one issuer uses it.

    Returns the rows whose identifier lacks an issuer while several use it: nobody knows whose they are, and
    ``group_known`` becomes False. ``rows`` are columns; ``spellings`` is the plain text that this run has read, by
    digest; ``again`` reads the files of rows once more, to learn theirs, since plain text is not kept between runs.
    """
    first: dict[str, int] = {}  # spelling -> a row
    for at, (spelling, reason) in enumerate(zip(rows["spelling"], rows["reason"], strict=True)):
        if spelling is not None and reason != "vanished":
            first.setdefault(spelling, at)
    patients: dict[str, list[str]] = defaultdict(list)
    for spelling, at in first.items():
        patients[rows["patient"][at]].append(spelling)
    group = {spelling: rows["group_id"][at] for spelling, at in first.items()}
    decided = merges.groups(key)
    told: set[str] = set()  # spellings that merges.csv must list
    borrowed: dict[str, str] = {}  # spelling without an issuer -> spelling of the only issuer
    several: set[str] = set()
    for members in patients.values():
        by_group: dict[str, list[str]] = defaultdict(list)
        for spelling in members:
            by_group[group[spelling]].append(spelling)
        told.update(s for same in by_group.values() if len(same) > 1 for s in same)
        named = sorted(s for s in members if rows["issued"][first[s]])
        bare = [s for s in members if not rows["issued"][first[s]]]
        owners = len({decided.get(s, group[s]) for s in named})
        if owners == 1 and bare:
            told.update(members)
            borrowed |= dict.fromkeys(bare, named[0])
        elif owners > 1:
            several.update(bare)
    _list(merges, key, told, borrowed, spellings, lambda unknown: again([first[s] for s in unknown]))
    merged = merges.groups(key)
    lost = {s for s in several if merged.get(s, group[s]) == group[s]}  # not given to anybody by the user
    unplaced = [at for at, s in enumerate(rows["spelling"]) if s in lost and rows["reason"][at] != "vanished"]
    for at in unplaced:
        rows["group_known"][at] = False
    rows["group_id"] = [merged.get(s, g) for s, g in zip(rows["spelling"], rows["group_id"], strict=True)]
    return unplaced


def _list(
    merges: Merges,
    key: IdentityKey,
    told: set[str],
    borrowed: dict[str, str],
    spellings: dict[str, Spelling],
    again: Callable[[list[str]], None],
) -> None:
    """Add lines for ``told``; lines that are there, edited or not, stay as they are."""
    listed = {key.spelling(*raw): raw for raw in merges.rows}
    unknown = sorted(told - listed.keys() - spellings.keys())
    if unknown:
        again(unknown)
    new = {s: spellings[s] for s in sorted(told - listed.keys()) if s in spellings}
    merges.add(raw for s, raw in new.items() if s not in borrowed)
    for s, owner in borrowed.items():
        known = listed.get(owner) or spellings.get(owner)
        if s in new and known is not None:
            merges.rows[new[s]] = merges.rows[known]
