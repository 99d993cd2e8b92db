"""Official splits: a table that names a part for files, studies or patients, joined without keeping identifiers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hilum.core.errors import HilumError, LeakError
from hilum.data.identity import IdentityKey, Merges
from hilum.data.labels import JOINS
from hilum.data.labels import join as join_table
from hilum.data.tables import Table, part_of, row_list

HASHED: Final = ("sample_id", "group_id", "study_id")  # index columns a table may name directly
NAMED: Final = 5


def official_parts(
    study: Any,
    source: str | Path,
    column: str,
    *,
    join: str | None = None,
    id_key: str | Path | None = None,
    warnings: list[str],
) -> dict[str, str]:
    """Group -> part. A group whose files stand in two parts is a LeakError that names it by hash.

    Without a ``source`` the column is one of the study's own labels table, which keeps ``split`` where a table had it.
    ``join`` is one of ``sample_id group_id study_id`` (as in the index) or FORMATS 3's keys; by default the first of
    ``sample_id path sop_instance_uid study_instance_uid accession patient_id group_id study_id`` that the table has.
    Whatever finds no partner is counted in ``warnings``; a table that fits nothing is an error.
    """
    table = Table.read(source) if str(source) else _own_labels(study)
    named = [part_of(word) for word in table.need(column, why="the official split")]
    strange = [row for row, part in enumerate(named, 2) if part is None]
    if strange:
        raise HilumError(
            f"column {column!r} of {table.name} holds values that name no part of a split",
            where=f"{len(strange)} of {len(table)}, {row_list(strange)}",  # the cells could be identifiers
            fix="write train, val, test or none, or name another column",
        )
    by = join or next((k for k in ("sample_id", *JOINS, "group_id", "study_id") if table.find(k)), None)
    if by is None:
        raise HilumError(
            f"{table.name} has no column that says which files its rows mean",
            where="columns: " + ", ".join(table.columns),
            fix="name one path, patient_id, study_instance_uid, ... or give join",
        )
    kept = {c: table.columns[c] for name in (by, "issuer", column) if (c := table.find(name))}
    partners, unused = _partners(study, Table(table.name, kept), by, id_key)
    indexed = np.asarray(study.column("status"), object) == "indexed"
    group = np.asarray(study.column("group_id"), object)
    given: dict[str, set[str]] = {}
    for row in np.flatnonzero(indexed):
        for partner in partners[row]:
            given.setdefault(group[row], set()).add(str(named[partner]))
    if not given:
        raise HilumError(
            f"no row of {table.name} fits a file of the index", where=f"joined by {by!r}", fix="check the join column"
        )
    leaking = sorted(g for g, parts in given.items() if len(parts - {"none"}) > 1)
    if leaking:
        pairs = Counter(" and ".join(sorted(given[g] - {"none"})) for g in leaking)
        kinds = ", ".join(f"{n} in {parts}" for parts, n in sorted(pairs.items()))
        raise LeakError(
            f"the official split puts {len(leaking)} groups in two parts ({kinds}): "
            + ", ".join(leaking[:NAMED])
            + (", ..." if len(leaking) > NAMED else ""),
            where=f"{table.name}, column {column!r}",
            fix="mend the table, or let `hilum split` draw a split of its own",
        )
    bare = sum(not rows for row, rows in enumerate(partners) if indexed[row])
    if unused:
        warnings.append(f"{unused} of {len(table)} rows of {table.name} fit no file")
    if bare:
        warnings.append(f"{bare} indexed files are not in {table.name}; groups it does not name are in no part")
    return {g: max(parts - {"none"}, default="none") for g, parts in given.items()}


def _own_labels(study: Any) -> Table:
    if study.labels is None:
        raise HilumError(
            "the study has no labels table to take a split from", fix="hilum split STUDY --from T.csv:COLUMN"
        )
    return Table.read(study.labels.filter(pc.is_valid(study.labels["sample_id"])))


def _partners(study: Any, table: Table, by: str, id_key: str | Path | None) -> tuple[list[list[int]], int]:
    """For every index row the table's rows that mean it, and how many rows of the table mean none."""
    if by in HASHED:
        place: dict[str, list[int]] = {}
        for row, value in enumerate(table.need(by, why="the join key")):
            place.setdefault(value, []).append(row)
        found = [place.get(value, []) for value in study.column(by)]
        return found, len(table) - len({row for rows in found for row in rows})
    state = pq.read_table(Path(study.path) / "private" / "state.parquet")
    key = IdentityKey(b"") if by == "path" else IdentityKey.load(id_key)
    if by != "path" and study.about.get("id_key") != key.fingerprint:
        raise HilumError(
            "the study was indexed with another identity key",
            where=str(study.path),
            fix="set $HILUM_ID_KEY to that key",
        )
    joined = join_table(table, state, key, by=by)
    partner = dict(zip(state.column("sample_id").to_pylist(), joined.rows, strict=True))
    found = [[] if partner.get(s) is None else [partner[s]] for s in study.column("sample_id")]
    if by == "patient_id":
        # Files whose header names nobody got their patient from a table at index time: they are known by group.
        told = table.columns[name] if (name := table.find("issuer")) else [None] * len(table)
        ids = table.need(by, why="the join key")
        patients = list(zip(told, ids, joined.stands_for, strict=True))
        if name is None:  # a published set's own numbers stand under its issuer
            known = study.about.get("issuers", ())
            patients += [(issuer, p, row) for issuer in known for _, p, row in patients]
        merged = Merges.read(Path(study.path) / "private" / "merges.csv").groups(key)
        groups = {merged.get(key.spelling(i, p), key.group(i, p)): row for i, p, row in patients if p}
        found = [
            f or ([groups[g]] if g in groups else []) for f, g in zip(found, study.column("group_id"), strict=True)
        ]
    used = {row for rows in found for row in rows}
    return found, sum(first not in used for first in joined.stands_for)
