"""What a run says of itself: the data it saw, in run.json, and what it hands on, in exported/ (FORMATS 11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hilum.core.errors import HilumError
from hilum.core.recipe import Recipe
from hilum.verbs.folder import RunFolder


def data_facts(data: Any) -> dict[str, str]:
    """What run.json keeps of the data beside the digests in config.yaml: those leave out folds, patients and labels."""
    from hilum.verbs.assembly import grouping_sha256, labels_sha256

    return {
        "split_table_digest": data.split.info.get("table_digest", "") if data.split is not None else "",
        "grouping_sha256": grouping_sha256(data.study),
        "labels_sha256": labels_sha256(data),
    }


def refuse_other_data(recipe: Recipe, data: Any, noted: Mapping[str, str], facts: Mapping[str, str]) -> None:
    """A resumed run must see the data it started on."""
    told = recipe["run"]
    now = {"index_digest": data.study.digest, "split_digest": data.split_digest, **facts}
    for key, what in (
        ("index_digest", "the index"),
        ("split_digest", "the split"),
        ("split_table_digest", "the split's folds or ranks"),
        ("grouping_sha256", "who is the same patient"),
        ("labels_sha256", "the labels"),
    ):
        then = told.get(key, noted.get(key))
        if then is not None and then != now[key]:
            raise HilumError(
                f"{what} changed since this run started",
                where=recipe.where(f"run.{key}"),
                fix="restore the study as it was, or start a new run",
            )


def write_facts(folder: RunFolder, recipe: Recipe, data: Any, known: Mapping[str, str]) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.write_config(recipe)
    facts: dict[str, Any] = {
        **known,
        "rows": {name: len(rows) for name, rows in data.rows.items()},
        "config_sha256": recipe.sha256,
    }
    if data.labels is not None:
        facts["labels"] = {"names": list(data.labels.names), "task": data.labels.task}
        facts["counts"] = {s: {n: list(c) for n, c in counts.items()} for s, counts in data.labels.counts.items()}
    folder.note(**facts)


def export_networks(objective: Any, folder: RunFolder, recipe: Recipe, data: Any) -> None:
    from hilum.encoders.exported import save_exported
    from hilum.verbs.assembly import normalisation
    from hilum.verbs.deltas import save_deltas
    from hilum.verbs.tracked import data_licence

    provenance = {
        "index_digest": data.study.digest,
        "split_digest": data.split_digest,
        "recipe": recipe.name,
        "data_licence": data_licence(data.study),
        "datasets": folder.facts.get("datasets", []),
    }
    save_deltas(objective, folder.path / "exported", recipe, card=provenance)
    for name, module in objective.exported().items():
        if name in recipe.get("adapters", {}):  # written as a delta, which names its base
            continue
        spec = getattr(module, "spec", None)
        config = recipe.get("encoders", {}).get("image" if name == "encoder" else name.removesuffix("_encoder"), {})
        save_exported(
            folder.path / "exported",
            name,
            module,
            card={
                "registry_id": config.get("name", recipe["objective"]["name"]),
                "kwargs": {k: v for k, v in config.items() if k not in ("name", "init")},
                "view": dict(recipe["views"].get("image", {})),
                **dict(zip(("mean", "std"), map(list, normalisation(recipe).get("image", ((), ()))), strict=True)),
                "value_range": [0.0, 1.0],
                "licence": getattr(spec, "licence", "Apache-2.0"),
                **provenance,
            },
        )


def export_sharded(folder: RunFolder, recipe: Recipe, data: Any) -> None:
    """A sharded run exports from its whole checkpoint, once it is written."""
    from hilum.verbs.loading import load_model

    export_networks(load_model(folder.path).objective, folder, recipe, data)
