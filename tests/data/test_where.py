"""Predicates against the same conditions written in Python, and their errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.core.errors import HilumError
from hilum.data.where import select

TABLE = pa.table(
    {
        "modality": ["DX", "CR", "CT", None, "dx"],
        "rows": pa.array([10, 20, None, 40, 50], pa.int32()),
        "mean": [1.5, -2.0, 0.0, None, 3.25],
        "has_report": [True, False, None, True, False],
        "problems": [["a"], [], None, ["b", "uid_conflict"], ["c"]],
        "it's": ["x", "x", "y", "y", "z"],
    }
)
ROWS = TABLE.to_pylist()


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        ("modality in ('DX','CR') and rows < 20", [0]),
        ("modality = 'DX' or modality = 'dx'", [0, 4]),
        ("has_report and modality in ('DX', 'CR')", [0]),
        ("not has_report", [1, 4]),
        ("not (rows > 15)", [0]),  # unknown stays unknown
        ("rows is null", [2]),
        ("rows is not null and modality is null", [3]),
        ("mean between -2 and 1.5", [0, 1, 2]),
        ("mean not between -2 and 1.5", [4]),
        ("modality not in ('CT')", [0, 1, 4]),
        ("modality like 'D%'", [0]),
        ("modality not like '_R'", [0, 2, 4]),
        ("rows >= 2e1 AND rows <> 40", [1, 4]),
        ("10 = rows", [0]),
        ("rows == 10 or mean == -2.0 or 1 > 2", [0, 1]),
        ("modality = 'DX' or modality = 'CR' and rows = 99", [0]),  # and binds closer
        ("(modality = 'DX' or modality = 'CR') and rows = 20", [1]),
        ("\"it's\" = 'y'", [2, 3]),
        ("\"it's\" = 'it''s'", []),
        ("problems like '%uid_conflict%'", [3]),
        ("true", [0, 1, 2, 3, 4]),
        ("modality = null", []),
        ("", [0, 1, 2, 3, 4]),
        (None, [0, 1, 2, 3, 4]),
    ],
)
def test_selects(predicate: str | None, expected: list[int]) -> None:
    assert np.flatnonzero(select(TABLE, predicate)).tolist() == expected


@pytest.mark.parametrize(
    ("predicate", "words"),
    [
        ("modalty = 'DX'", "no column 'modalty'"),
        ("rows = 'ten'", "text and numbers"),
        ("modality > 3", "text and numbers"),
        ("rows", "'rows' is not a condition"),
        ("modality in ('DX'", "')' expected"),
        ("modality in 'DX'", "'(' expected"),
        ("rows = 1 rows = 2", "left over"),
        ("rows =", "ends too early"),
        ("modality = DX", "no column 'DX'"),
        ("rows = 1; drop table", "cannot read"),
        ("__import__('os')", "no column '__import__'"),
        ("modality like rows", "quoted pattern"),
        ("rows not 3", "expected after not"),
        ("and", "before 'and'"),
    ],
)
def test_says_what_is_wrong_and_where(predicate: str, words: str) -> None:
    with pytest.raises(HilumError) as caught:
        select(TABLE, predicate)
    assert words in caught.value.what and "character" in caught.value.where
    if "modalty" in predicate:
        assert "'modality'" in caught.value.fix


COMPARISONS = {"=": "__eq__", "!=": "__ne__", "<": "__lt__", ">=": "__ge__"}
terms = st.tuples(st.just("rows"), st.sampled_from(sorted(COMPARISONS)), st.integers(5, 55))
trees: Any = st.recursive(
    terms,
    lambda inner: st.tuples(st.sampled_from(["and", "or"]), inner, inner) | st.tuples(st.just("not"), inner),
    max_leaves=6,
)


def text_of(tree: Any) -> str:
    if tree[0] == "not":
        return f"not ({text_of(tree[1])})"
    if tree[0] in ("and", "or"):
        return f"({text_of(tree[1])} {tree[0]} {text_of(tree[2])})"
    return f"{tree[0]} {tree[1]} {tree[2]}"


def truth(tree: Any, row: dict[str, Any]) -> bool | None:
    """Three-valued logic by hand."""
    if tree[0] == "not":
        value = truth(tree[1], row)
        return None if value is None else not value
    if tree[0] in ("and", "or"):
        both = {truth(tree[1], row), truth(tree[2], row)}
        decisive = tree[0] == "or"
        return decisive if decisive in both else None if None in both else not decisive
    return None if row["rows"] is None else bool(getattr(row["rows"], COMPARISONS[tree[1]])(tree[2]))


@settings(max_examples=60)
@given(trees)
def test_random_predicates_equal_logic_by_hand(tree: Any) -> None:
    assert select(TABLE, text_of(tree)).tolist() == [truth(tree, row) is True for row in ROWS]
