"""What a study holds and what this machine can read: the numbers behind ``hilum doctor``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hilum.core.types import Intake
from hilum.data.ledger import counts_of
from hilum.data.study import Study

COUNTED = (
    "modality",
    "body_part",
    "view",
    "laterality",
    "photometric",
    "transfer_syntax",
    "bits_stored",
    "unit",
    "source",
    "codec",
)


def inventory(study: Study, *, intakes: Sequence[Intake] | None = None) -> dict[str, Any]:
    """``counts`` of the ledger; for each of COUNTED the number of indexed files by value; ``spacing_mm``, ``sizes``,
    ``problems`` and unreadable ``syntaxes`` likewise; ``groups`` and ``unknown_groups``; ``codecs`` as intakes tell.
    """
    index = study.index.select(
        [*COUNTED, "status", "reason", "spacing_mm", "rows", "columns", "problems", "group_id", "group_known"]
    )
    files = index.to_pylist()
    indexed = [f for f in files if f["status"] == "indexed"]
    result: dict[str, Any] = {"counts": counts_of(study.index)}
    for name in COUNTED:
        result[name] = _counted(f[name] for f in indexed)
    result["spacing_mm"] = _counted(
        None if f["spacing_mm"] is None else " x ".join(f"{v:.4g}" for v in f["spacing_mm"]) for f in indexed
    )
    result["sizes"] = _counted(f"{f['rows']} x {f['columns']}" for f in indexed if f["rows"] is not None)
    result["problems"] = _counted(p.partition(":")[0] for f in files for p in f["problems"] or ())
    result["syntaxes"] = _counted(f["transfer_syntax"] for f in files if f["reason"] == "unsupported_transfer_syntax")
    result["groups"] = len({f["group_id"] for f in indexed if f["group_known"]})
    result["unknown_groups"] = len({f["group_id"] for f in indexed if not f["group_known"]})
    if intakes is None:
        from hilum.core.registry import registry

        intakes = [kind() for kind in registry.all("intake").values()]
    result["codecs"] = {i.name: codecs() for i in intakes if callable(codecs := getattr(i, "codecs", None))}
    return result


def _counted(values: Any) -> dict[str, int]:
    """Most frequent first, ties by name; what is absent counts as ``-``."""
    counts = Counter("-" if v is None else str(v) for v in values)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
