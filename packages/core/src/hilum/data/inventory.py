"""What a study holds and what this machine can read: the numbers behind ``hilum doctor``.

Columns are counted where they lie (Arrow), so an archive of a million files takes seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hilum.core.types import Intake
from hilum.data.ledger import counts_of
from hilum.data.study import Study

COUNTED = (
    "modality",
    "body_part",
    "view",
    "laterality",
    "vendor",
    "photometric",
    "transfer_syntax",
    "bits_stored",
    "frames",
    "unit",
    "source",
    "codec",
    "window",
    "frames_axis",
)
_ALSO = (
    *("status", "reason", "message", "role", "problems", "group_id", "group_known", "duplicate_of"),
    *("spacing_mm", "rows", "columns", "codec_version"),
)
_BINS = 24


def inventory(study: Study, *, intakes: Sequence[Intake] | None = None) -> dict[str, Any]:
    """``counts`` of the ledger; for each of COUNTED the number of indexed images by value; ``spacing_mm``, ``sizes``,
    ``problems`` (code -> files) likewise; ``faults`` ((status, reason) -> files), ``messages`` ((reason, message) ->
    files), ``syntaxes`` ((UID, status, reason, codec, its version) -> files); ``groups`` and ``unknown_groups``,
    ``unknown_images``, ``copies``; ``codecs`` as intakes tell.
    """
    index = study.index.select([n for n in (*COUNTED, *_ALSO) if n in study.columns])  # few: filters copy them
    is_image = pc.and_kleene(pc.equal(index["status"], "indexed"), pc.equal(index["role"], "image"))
    images = index.filter(pc.fill_null(is_image, False))
    result: dict[str, Any] = {"counts": counts_of(index.select(["status", "reason"]))}
    for name in COUNTED:
        if name in index.column_names:
            result[name] = counted(images[name])
    result["spacing_mm"] = _spacings(images["spacing_mm"])
    sizes = _pairs(images, "rows", "columns").items()
    result["sizes"] = _ordered({f"{rows} x {columns}": n for (rows, columns), n in sizes if rows is not None})
    result["problems"] = counted(codes(index["problems"]))
    told = _ordered({key: n for key, n in _pairs(index, "status", "reason", "message").items() if key[0] != "indexed"})
    result["faults"], result["messages"] = _summed(told, 0, 1), _summed(told, 1, 2)
    coded = _pairs(index, "transfer_syntax", "status", "reason", "codec", "codec_version").items()
    result["syntaxes"] = {key: n for key, n in coded if key[0] is not None}
    certain = pc.fill_null(images["group_known"], False)
    known, unknown = images["group_id"].filter(certain), images["group_id"].filter(pc.invert(certain))
    result["groups"], result["unknown_groups"] = _distinct(known), _distinct(unknown)
    result["unknown_images"], result["copies"] = len(unknown), len(images) - images["duplicate_of"].null_count
    if intakes is None:
        from hilum.core.registry import registry

        intakes = [entry.load()() for entry in registry.entries("intake").values() if not entry.missing()]
    result["codecs"] = {i.name: made() for i in intakes if callable(made := getattr(i, "codecs", None))}
    return result


def counted(values: Any) -> dict[str, int]:
    """Values of a column -> how often; most frequent first, ties by name; what is absent counts as ``-``."""
    found = pc.value_counts(values)
    pairs = zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)
    named = [("-" if value is None else str(value), n) for value, n in pairs]
    return _ordered(dict(named))


def _ordered(found: Mapping[Any, int]) -> dict[Any, int]:
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def codes(problems: Any) -> Any:
    """Codes of a column of problem lists, once a file, details cut off."""
    whole = problems.combine_chunks() if isinstance(problems, pa.ChunkedArray) else problems
    told = pc.list_flatten(whole).dictionary_encode()
    names = pa.array([text.partition(":")[0] for text in told.dictionary.to_pylist()], pa.string())
    pairs = pa.table({"row": pc.list_parent_indices(whole), "code": names.take(told.indices)})
    return pairs.group_by(["row", "code"]).aggregate([])["code"]


def _pairs(table: pa.Table, *names: str) -> dict[tuple[Any, ...], int]:
    groups = table.group_by(list(names)).aggregate([([], "count_all")])
    lines = zip(*(groups[name].to_pylist() for name in (*names, "count_all")), strict=True)
    return {line[:-1]: int(line[-1]) for line in lines}


def _spacings(column: Any) -> dict[str, int]:
    """``0.5 x 0.25`` (rows, columns; mm) -> images; distinct pairs are few, so they are what is written out."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    pairs = whole.filter(pc.fill_null(pc.greater_equal(pc.list_value_length(whole), 2), False))
    seen = _pairs(pa.table({"row": pc.list_element(pairs, 0), "column": pc.list_element(pairs, 1)}), "row", "column")
    found: Counter[str] = Counter()
    for (row, column_), n in seen.items():
        found["-" if row is None else f"{row:.4g} x {column_:.4g}"] += n
    if unknown := len(whole) - len(pairs):
        found["-"] += unknown
    return _ordered(found)


def _summed(told: Mapping[tuple[Any, ...], int], *places: int) -> dict[tuple[str, ...], int]:
    """Counts by some places of the keys; those that are empty in the last one are left out."""
    found: Counter[tuple[str, ...]] = Counter()
    for key, n in told.items():
        if key[places[-1]]:
            found[tuple(key[place] or "" for place in places)] += n
    return _ordered(found)


def _distinct(column: Any) -> int:
    return int(pc.count_distinct(column).as_py())


def strata(table: pa.Table, names: Iterable[str]) -> NDArray[np.int64]:
    """(n,) number of the combination of values that a row has, small numbers first seen first."""
    kinds = table.select(list(names))
    key = pc.binary_join_element_wise(
        *(pc.fill_null(pc.cast(kinds[name], pa.string()), "-") for name in kinds.column_names), "\t"
    )
    whole = key.combine_chunks() if isinstance(key, pa.ChunkedArray) else key
    numbers: NDArray[np.int64] = whole.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def histogram(values: NDArray[np.float64], *, bins: int = _BINS) -> tuple[NDArray[np.int64], float, float] | None:
    """(counts (bins,), lo, hi) of the finite values; the outermost half percent falls into the end bins."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    lo, hi = (float(v) for v in np.quantile(finite, (0.005, 0.995), method="nearest"))
    if hi <= lo:
        lo, hi = lo - 0.5, lo + 0.5
    counts, _ = np.histogram(np.clip(finite, lo, hi), bins=bins, range=(lo, hi))
    return counts.astype(np.int64), lo, hi


def volumes(study: Study) -> dict[str, Any]:
    """Of series.parquet: ``series``, ``volumes``, ``usable``, those of several frames (``deep``, ``deep_usable``), and
    ``problems`` (code -> (volumes with it, of which usable))."""
    file = Path(study.path) / "series.parquet"
    names = ["series_id", "frames", "usable", "problems"]
    table = pq.read_table(file, columns=names) if file.is_file() else pa.table({n: [] for n in names})
    if not len(table):
        return {"series": 0, "volumes": 0, "usable": 0, "deep": 0, "deep_usable": 0, "problems": {}}
    usable = pc.fill_null(table["usable"], False)
    deep = pc.fill_null(pc.greater(table["frames"], 1), False)
    with_codes = counted(codes(table["problems"]))
    of_usable = counted(codes(table.filter(usable)["problems"]))
    return {
        "series": _distinct(table["series_id"]),
        "volumes": len(table),
        "usable": int(pc.sum(usable).as_py() or 0),
        "deep": int(pc.sum(deep).as_py() or 0),
        "deep_usable": int(pc.sum(pc.and_(usable, deep)).as_py() or 0),
        "problems": {code: (n, of_usable.get(code, 0)) for code, n in with_codes.items()},
    }
