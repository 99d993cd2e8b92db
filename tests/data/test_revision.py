"""Long tables in blocks: what changes, what is shared, and rows of one value."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilum.data import revision
from hilum.data.comparison import compared

texts = st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "c", "", "\0"])), min_size=1, max_size=40)


def chunked(values: list[Any], kind: pa.DataType, size: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values[i : i + size], kind) for i in range(0, len(values), size)], kind)


@pytest.fixture(params=[1, 3, 1 << 14])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(revision, "BLOCK", request.param)
    return int(request.param)


def test_changed_rows_change_and_others_are_the_same_memory(block: int) -> None:
    table = pa.table({"x": chunked([*range(10)], pa.int64(), 4), "y": chunked([["p"]] * 10, pa.list_(pa.string()), 10)})
    new = revision.revised(table, {"x": {2: 20, 9: None}, "y": {0: ["q"]}})
    assert new.column("x").to_pylist() == [0, 1, 20, 3, 4, 5, 6, 7, 8, None]
    assert new.column("y").to_pylist() == [["q"], *[["p"]] * 9] and new.schema == table.schema
    if block == 1:
        last = new.column("y").chunks[-1]
        assert last.buffers()[1].address == table.column("y").chunk(0).buffers()[1].address
    assert revision.revised(table, {"x": {}}).column("x") is table.column("x") or new.schema == table.schema


@given(texts, st.integers(1, 7))
def test_rows_that_share_a_value(values: list[str | None], size: int) -> None:
    column, among = chunked(values, pa.string(), size), np.arange(len(values)) % 5 != 3
    counted = Counter(v for v, here in zip(values, among, strict=True) if here and v is not None)
    expected = [n for n, v in enumerate(values) if among[n] and counted[v] > 1]
    assert revision.shared(column, among).tolist() == expected


@given(texts, st.integers(1, 7))
def test_codes_stand_for_values(values: list[str | None], size: int) -> None:
    codes, known = revision.codes_of(chunked(values, pa.string(), size))
    assert [None if c < 0 else known[c] for c in codes] == values
    assert len(set(known)) == len(known)


def test_every_block_is_rewritten_once(block: int) -> None:
    table, starts = pa.table({"x": chunked([*range(7)], pa.int64(), 2), "y": ["a"] * 7}), []

    def change(lists: revision.Lists, start: int) -> None:
        starts.append(start)
        lists["y"] = [f"{v}{x}" for v, x in zip(lists["y"], lists["x"], strict=True)]

    new = revision.rewritten(table, ["x", "y"], ["y"], change)
    assert new.column("y").to_pylist() == [f"a{n}" for n in range(7)]
    assert starts == [*range(0, 7, min(block, 7))] and new.column("x").equals(table.column("x"))


rows = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["indexed", "indexed", "quarantined"]),
        "instance": st.sampled_from([None, "u", "v"]),
        "stored_sha256": st.sampled_from([None, "h", "i"]),
        "std": st.sampled_from([None, 0.0, 1.0]),
        "group_id": st.sampled_from(["g", "k"]),
        "group_known": st.booleans(),
    }
)


@given(st.lists(rows, min_size=1, max_size=8))
def test_copies_and_conflicts_by_pairs(drawn: list[dict[str, Any]]) -> None:
    """Every pair of rows by itself, as FORMATS 5 words it."""
    about = {"rows": 1, "columns": 1, "frames": 1, "role": "image", "problems": None, "refers_to": None}
    about |= {"modality_sha256": None, "inverted": False}
    lines = [{**row, **about, "sample_id": str(n)} for n, row in enumerate(drawn)]
    kinds = {
        "std": pa.float64(),
        "modality_sha256": pa.string(),
        "problems": pa.list_(pa.string()),
        "refers_to": pa.list_(pa.string()),
    }
    columns = {n: pa.array([line[n] for line in lines], kinds.get(n)) for n in lines[0]}
    columns |= {n: columns[n].cast(pa.string()) for n in ("instance", "stored_sha256")}
    found = compared(pa.table(columns))

    def alive(line: dict[str, Any]) -> bool:
        return line["status"] == "indexed" and line["stored_sha256"] is not None

    torn, foreign = set(), set()
    for n, one in enumerate(lines):
        for other in lines:
            if one is other or not alive(one) or not alive(other):
                continue
            same_file = one["instance"] is not None and one["instance"] == other["instance"]
            same_pixels, same_group = (one[k] == other[k] for k in ("stored_sha256", "group_id"))
            if same_file and not (same_pixels and same_group):
                torn.add(n)
            if same_pixels and one["std"] and other["std"] and not same_group:
                foreign.add(n) if one["group_known"] and other["group_known"] else None
    noted = {n for n, problems in found["problems"].items() if "uid_conflict" in problems}
    assert noted == torn
    assert foreign <= {n for n, problems in found["problems"].items() if "same_pixels_other_patient" in problems}
    for n, original in found["duplicate_of"].items():
        first = lines[int(original)]
        assert int(original) < n and alive(lines[n]) and n not in torn
        assert first["stored_sha256"] == lines[n]["stored_sha256"]


def test_equal_masks_of_other_series_are_no_copies() -> None:
    about = {
        "status": "indexed", "stored_sha256": "h", "rows": 1, "columns": 1, "frames": 1, "role": "label", "std": 1.0,
        "group_id": "g", "group_known": True, "problems": None, "modality_sha256": None, "inverted": False,
    }  # fmt: skip
    lines = [
        {**about, "sample_id": str(n), "instance": f"u{n}", "refers_to": [series]} for n, series in enumerate("aba")
    ]
    assert compared(pa.Table.from_pylist(lines))["duplicate_of"] == {2: "0"}
