"""What holds for any series: the order of rows decides nothing, and no header ends an index."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fake.volumes import AXIAL, enhanced, headers, item, oblique, places, slices
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.data.ledger import SERIES
from hilum.medical.volumes.assemble import assemble

pytestmark = pytest.mark.filterwarnings("ignore")


def stacked(k: int) -> dict[str, Any]:
    return {"FrameContentSequence": item(StackID="1", InStackPositionNumber=k)}


@given(st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_any_order_of_rows_gives_the_same_series(mixed_rows: list[dict[str, Any]], rng: random.Random) -> None:
    shuffled = list(mixed_rows)
    rng.shuffle(shuffled)
    for options in (frozenset[str](), frozenset({"split_4d", "allow_gaps", "resample"})):
        assert assemble(shuffled, options) == assemble(mixed_rows, options)


@pytest.fixture(scope="module")
def mixed_rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("mixed")
    files = slices(folder, places(), own=lambda k: {"EchoNumbers": 1}) + slices(
        folder, places(), first=6, own=lambda k: {"EchoNumbers": 2}
    )
    files += slices(folder, places(axes=oblique()), axes=oblique(), first=20)
    files.append(
        enhanced(
            folder / "e.dcm",
            places(4),
            lines=[(1, 0)] * 4,
            order=[2, 0, 1, 3],
            own=stacked,
        )
    )
    return headers(files)


numbers = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([0.0, 2.5, 5.0, 1e-9, 1e-300]))
wild = st.fixed_dictionaries(
    {
        "positions": st.one_of(st.none(), st.lists(numbers, min_size=3, max_size=3)),
        "orientation": st.one_of(st.none(), st.sampled_from([list(AXIAL), [float(v) for v in oblique()]])),
        "spacing_mm": st.one_of(st.none(), st.sampled_from([[0.8, 0.5], [1e-300, 9e3], [1.0, 1.0]])),
        "frame_keys": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["b_value", "echo", "instance", "localizer", "thickness_mm", "stack"]),
                    "values": st.lists(
                        st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=1
                    ),
                }
            ),
            max_size=3,
        ),
        "photometric": st.sampled_from(["MONOCHROME2", "RGB", None]),
    }
)


@given(st.lists(wild, min_size=1, max_size=9), st.sets(st.sampled_from(["allow_gaps", "resample", "split_4d"])))
@settings(max_examples=60)
def test_no_header_ends_an_index(rows: list[dict[str, Any]], options: set[str]) -> None:
    """Every frame ends in exactly one row that the table can hold."""
    about = {
        "series_id": "s",
        "group_id": "g",
        "study_id": None,
        "modality": None,
        "rows": 7,
        "columns": 5,
        "frames": 1,
    }
    found = assemble([{**about, "sample_id": str(n), **row} for n, row in enumerate(rows)], frozenset(options))
    table = pa.Table.from_pylist(found, schema=SERIES)
    assert sorted(s for row in found for s in row["sample_ids"]) == sorted(map(str, range(len(rows))))
    assert len({row["volume_id"] for row in found}) == len(found)
    for row in found:
        assert not row["usable"] or row["affine_lps"] is None or np.isfinite(row["affine_lps"]).all()
    assert len(table) == len(found)
