"""Paths of a table against paths of files: what a plain comparison of every pair gives, in time linear in files."""

from __future__ import annotations

import random
import time

import pyarrow as pa
import pytest

from hilum.core.errors import HilumError
from hilum.data.identity import IdentityKey
from hilum.data.labels import Joined, join
from hilum.data.tables import Table

KEY = IdentityKey(b"k" * 32)
MANY = 20_000


def joined(rows: list[str], paths: list[str]) -> Joined:
    return join(Table("t.csv", {"path": rows}), pa.table({"path": paths}), KEY)


def brute(rows: list[str], paths: list[str]) -> list[int | None] | str:
    """The rule itself: the first row with the longest shared tail; a row torn between files is an error, unless one
    file has its very path."""
    found: list[int | None] = []
    for path in paths:
        parts, fits = path.split("/"), []
        for at, row in enumerate(rows):
            shared = min(len(row.split("/")), len(parts))
            if row and row.split("/")[-shared:] == parts[-shared:]:
                fits.append((-shared, at))
        found.append(min(fits)[1] if fits else None)
    own = list(found)
    for row in {r for r in found if r is not None}:
        holders = [at for at, r in enumerate(found) if r == row]
        exact = [at for at in holders if paths[at] == rows[row]]
        if len(holders) > 1 and not exact:
            return "torn"
        for at in holders:
            own[at] = row if len(holders) == 1 or at == exact[-1] else None
    return own


def test_matches_are_those_of_comparing_every_pair() -> None:
    rng, torn, matched = random.Random(0), 0, 0

    def draw() -> str:
        return "/".join(rng.choice("ab") for _ in range(rng.randint(1, 4)))

    for _ in range(400):
        rows = [draw() if rng.random() < 0.9 else "" for _ in range(rng.randint(1, 6))]
        paths = sorted({draw() for _ in range(rng.randint(1, 5))})
        expected = brute(rows, paths)
        if expected == "torn":
            torn += 1
            with pytest.raises(HilumError, match="fits several files"):
                joined(rows, paths)
        else:
            matched += 1
            assert joined(rows, paths).rows == expected, (rows, paths)
    assert min(torn, matched) > 50


@pytest.mark.parametrize("longer", ["the table's", "the files'"])
def test_many_files_of_one_name_take_linear_time(longer: str) -> None:
    short = [f"patient{n:05d}/study1/view1_frontal.jpg" for n in range(MANY)]
    long = [f"CheXpert-v1.0-small/train/{name}" for name in short]
    rows, paths = (long, short) if longer == "the table's" else (short, long)
    start = time.process_time()
    found = joined(rows, paths[::-1])
    assert time.process_time() - start < 3
    assert found.rows == list(range(MANY))[::-1] and not found.unused
