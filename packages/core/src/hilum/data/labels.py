"""Which row of a table belongs to which file, found without keeping identifiers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from hilum.core.errors import HilumError, nearest
from hilum.data.identity import IdentityKey
from hilum.data.tables import Table, row_list

JOINS = ("path", "sop_instance_uid", "study_instance_uid", "accession", "patient_id")
GROUPS = ("patient_id", "group_id")
STUDIES = ("study_id", "study")
ABOUT = ("view", "laterality", "modality", "body_part")  # fill index columns that a file's header leaves empty


@dataclass(frozen=True)
class Joined:
    """Which row of a table each file belongs to, or None; ``stands_for`` maps every row of the table to the first one
    that means the same files, so that a row repeated for every image of a patient counts as used."""

    rows: list[int | None]
    stands_for: list[int]

    @property
    def unused(self) -> list[int]:
        """Rows of the table that fit no file."""
        used = {self.stands_for[row] for row in self.rows if row is not None}
        return [row for row, first in enumerate(self.stands_for) if first not in used]


def join(table: Table, state: pa.Table, key: IdentityKey, *, by: str = "path") -> Joined:
    """For each row of ``state`` the row of ``table`` it belongs to.

    ``by`` is one of JOINS and names the table's column. Identifiers are compared as keyed digests. A path fits where
    one is a tail of the other and no other file fits as well; a member of an archive is ``archive.zip!member`` or, in
    short, ``member``. Two table rows for one file must agree in every column.
    """
    if by not in JOINS:
        raise HilumError(f"tables cannot be joined by {by!r}", fix=nearest(by, JOINS) or f"one of {', '.join(JOINS)}")
    others = [name for name in JOINS if table.find(name)]
    values = table.need(by, why="the join key", fix=f"join by {' or '.join(others)}" if others else "")
    if by == "path":
        members = state.column("member").to_pylist() if "member" in state.column_names else [None] * len(state)
        return _join_paths(table, values, state.column("path").to_pylist(), members)
    issuers = table.columns[name] if (name := table.find("issuer")) else [""] * len(values)
    by_issuer = by == "patient_id" and name is not None
    keys = [_digest(key, by, v, i, by_issuer) if v else None for v, i in zip(values, issuers, strict=True)]
    column = {"study_instance_uid": "study_id", "sop_instance_uid": "instance", "accession": "accession"}.get(
        by, "patient"
    )
    theirs = state.column("group_id" if by_issuer else column).to_pylist()
    if by_issuer:
        theirs = _issuers_filled_in(key, values, keys, theirs, state)
    elif by == "patient_id":
        _refuse_shared_ids(table, keys, state)
    place: dict[str, int] = {}
    stands_for = list(range(len(keys)))
    for row, digest in enumerate(keys):
        if digest is not None and (first := place.setdefault(digest, row)) != row:
            _agree(table, first, row)
            stands_for[row] = first
    return Joined([None if digest is None else place.get(digest) for digest in theirs], stands_for)


def _digest(key: IdentityKey, by: str, value: str, issuer: str, by_issuer: bool) -> str:
    if by == "patient_id":
        return key.group(issuer, value) if by_issuer else patient_digest(key, value)
    return {"study_instance_uid": study_digest, "sop_instance_uid": instance_digest, "accession": accession_digest}[by](
        key, value
    )


def patient_digest(key: IdentityKey, value: str) -> str:
    return key.group(None, "patient:" + value)


def study_digest(key: IdentityKey, value: str) -> str:
    return key.digest("study", value.strip("\0 "))


def instance_digest(key: IdentityKey, value: str) -> str:
    return key.digest("instance", value.strip("\0 "))


def accession_digest(key: IdentityKey, value: str) -> str:
    return key.digest("accession", value.strip("\0 "))


def _agree(table: Table, first: int, second: int) -> None:
    differ = [n for n, v in table.columns.items() if v[first] != v[second] and n.casefold() not in JOINS]
    if differ:
        raise HilumError(
            f"two rows of {table.name} stand for the same files and differ in {differ[0]!r}",
            where=f"rows {first + 2} and {second + 2}",
            fix="join by a finer key, or keep one row",
        )


def _issuers_filled_in(
    key: IdentityKey,
    values: Sequence[str],
    keys: Sequence[str | None],
    groups: Sequence[str | None],
    state: pa.Table,
) -> list[str | None]:
    """Groups of files, those without an issuer under the only issuer that the table has for their patient."""
    known: dict[str, set[str]] = defaultdict(set)
    for value, digest in zip(values, keys, strict=True):
        if digest is not None:
            known[patient_digest(key, value)].add(digest)
    files = zip(groups, *(state.column(name).to_pylist() for name in ("patient", "issued")), strict=True)
    return [
        group if issued or len(known.get(patient, ())) != 1 else next(iter(known[patient]))
        for group, patient, issued in files
    ]


def _refuse_shared_ids(table: Table, keys: Sequence[str | None], state: pa.Table) -> None:
    holders: dict[str, set[str]] = defaultdict(set)
    files = zip(*(state.column(name).to_pylist() for name in ("patient", "group_id", "issued")), strict=True)
    for digest, group, issued in files:
        if digest is not None and issued:
            holders[digest].add(group)
    shared = [row for row, digest in enumerate(keys, 2) if digest is not None and len(holders.get(digest, ())) > 1]
    if shared:
        raise HilumError(
            "two issuers share a patient id", where=f"{table.name}, {row_list(shared)}", fix="add a column 'issuer'"
        )


def _join_paths(table: Table, values: Sequence[str], files: Sequence[str], members: Sequence[str | None]) -> Joined:
    paths = [file if member is None else f"{file}!{member}" for file, member in zip(files, members, strict=True)]
    wanted = ["/".join(p for p in re.split(r"[/\\]+", v) if p not in ("", ".")) for v in values]
    rows_of = _rows_by_path(wanted, set(paths))
    found: list[int | None] = []
    stands_for = list(range(len(wanted)))
    for path, member in zip(paths, members, strict=True):
        best: Sequence[int] = next((rows for tail in _tails(path, member) if (rows := rows_of(tail, path))), ())
        for other in best[1:]:
            _agree(table, best[0], other)
            stands_for[other] = best[0]
        found.append(best[0] if best else None)
    # Two files that one bare name fits: neither is the one that was meant, unless one fits exactly.
    claims = Counter(r for r in found if r is not None)
    exact = {
        r: at for at, (r, path) in enumerate(zip(found, paths, strict=True)) if r is not None and path == wanted[r]
    }
    torn = sorted(r for r, n in claims.items() if n > 1 and r not in exact)
    if torn:
        raise HilumError(
            "one path of the table fits several files",
            where=f"{table.name}, {row_list([r + 2 for r in torn])}",
            fix="write paths from ROOT",
        )
    own = [r if r is None or claims[r] == 1 or exact[r] == at else None for at, r in enumerate(found)]
    return Joined(own, stands_for)


def _rows_by_path(wanted: Sequence[str], paths: set[str]) -> Callable[[str, str], list[int]]:
    """Rows of the table, ascending, that a tail of a path fits: looked up, since a hundred thousand files may share
    one name. The whole path also fits rows that go on to the left of it."""
    whole: dict[str, list[int]] = defaultdict(list)
    longer: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(wanted):
        if text:
            whole[text].append(row)
            for tail in _tails(text):
                if tail in paths:
                    longer[tail].append(row)
    return lambda tail, path: (longer if tail == path else whole).get(tail, [])


def _tails(path: str, member: str | None = None) -> Iterator[str]:
    """``a/b/c``, ``b/c``, ``c``; of an archive's member those with the archive's name, then those of its own."""
    yield path
    while "/" in path:
        path = path.partition("/")[2]
        if member is not None and len(path) <= len(member):
            break
        yield path
    if member is not None:
        yield from _tails(member)


def check_matched(table: Table, joined: Joined, images: Sequence[bool], *, limit: float, by: str) -> dict[str, int]:
    """Counts of what found no partner, either way; above ``limit`` of its side that is an error naming rows.

    ``images`` says which files should have a label. A row that fits a file that could not be indexed has found it.
    """
    lost = [row + 2 for row in joined.unused]
    bare = sum(image and row is None for row, image in zip(joined.rows, images, strict=True))
    counts = {"rows": len(table), "rows_unmatched": len(lost), "files": sum(images), "files_unmatched": bare}
    others = ", ".join(j for j in JOINS if j != by)
    fix = f"check the column {by!r} (join by {others}?), exclude files that need no label, or raise --max-unmatched"
    if len(lost) > limit * len(table):
        raise HilumError(f"{len(lost)} of {len(table)} rows of {table.name} fit no file", where=row_list(lost), fix=fix)
    if bare > limit * max(sum(images), 1):
        raise HilumError(
            f"{bare} of {sum(images)} indexed images have no row in {table.name}", where=f"joined by {by}", fix=fix
        )
    return counts
