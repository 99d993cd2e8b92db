"""Which rows are one patient: spellings of one identifier, identifiers without an issuer, and what the user decided.

Reading gives every row the group of its own issuer and identifier; here groups become people, once all rows are known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from hilum.data.identity import IdentityKey, Merges, Spelling
from hilum.data.revision import codes_of, equals, rows_of


def united(
    table: pa.Table,
    merges: Merges,
    key: IdentityKey,
    spellings: dict[str, Spelling],
    again: Callable[[list[int]], None],
) -> dict[str, dict[int, Any]]:
    """What ``group_id``, ``group_known`` and ``problems`` become (column -> row -> value) by ``merges``, to which is
    added what is joined unasked: spellings that normalise to one identifier of one issuer, and an identifier without an
    issuer where exactly one issuer uses it.

    Where several issuers use an identifier that lacks one, nobody knows whose those rows are: ``group_known`` becomes
    False. ``spellings`` is the plain text that this run has read, by digest; ``again`` reads the files of rows once
    more, to learn theirs, since plain text is not kept between runs.
    """
    codes, texts = codes_of(table.column("spelling"))
    there = ~equals(table.column("reason"), "vanished")
    alive = np.flatnonzero(there & (codes >= 0))
    known, at = np.unique(codes[alive], return_index=True)
    by_row = np.argsort(alive[at])
    known, rows = known[by_row], alive[at][by_row]  # of every spelling its code and its first row
    told = rows_of(table, rows, ("spelling", "patient", "group_id", "issued"))
    first = dict(zip(told["spelling"], rows.tolist(), strict=True))
    group = dict(zip(told["spelling"], told["group_id"], strict=True))
    issued = dict(zip(told["spelling"], told["issued"], strict=True))
    patients: dict[str, list[str]] = defaultdict(list)
    for spelling, patient in zip(told["spelling"], told["patient"], strict=True):
        patients[patient].append(spelling)
    decided = merges.groups(key)
    listed: set[str] = set()  # spellings that merges.csv must list
    borrowed: dict[str, str] = {}  # spelling without an issuer -> spelling of the only issuer
    several: set[str] = set()
    for members in patients.values():
        by_group: dict[str, list[str]] = defaultdict(list)
        for spelling in members:
            by_group[group[spelling]].append(spelling)
        listed.update(s for same in by_group.values() if len(same) > 1 for s in same)
        named = sorted(s for s in members if issued[s])
        bare = [s for s in members if not issued[s]]
        owners = len({decided.get(s, group[s]) for s in named})
        if owners == 1 and bare:
            listed.update(members)
            borrowed |= dict.fromkeys(bare, named[0])
        elif owners > 1:
            several.update(bare)
    _list(merges, key, listed, borrowed, spellings, lambda unknown: again([first[s] for s in unknown]))
    merged = merges.groups(key)
    moved = np.array([text in merged for text in texts], bool)
    lost = np.array([t in several and merged.get(t, group[t]) == group[t] for t in texts], bool)
    changes: dict[str, dict[int, Any]] = {"group_id": {}, "group_known": {}, "problems": {}}
    for row in np.flatnonzero(_of(codes, moved)).tolist():
        changes["group_id"][row] = merged[texts[codes[row]]]
    unplaced = np.flatnonzero(there & _of(codes, lost))  # not given to anybody by the user either
    for row, problems in zip(unplaced.tolist(), rows_of(table, unplaced, ["problems"])["problems"], strict=True):
        changes["group_known"][row] = False
        changes["problems"][row] = sorted({*(problems or ()), "issuer_missing"})
    return changes


def _of(codes: Any, chosen: Any) -> Any:
    """(n,) rows whose value is chosen."""
    found = np.zeros(len(codes), bool)
    found[codes >= 0] = chosen[codes[codes >= 0]]
    return found


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
