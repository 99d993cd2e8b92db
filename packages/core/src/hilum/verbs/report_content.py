"""What the report of a run shows beside its metrics: where every file went, the parts, examples, and provenance."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hilum.data.ledger import counts_of
from hilum.data.split import is_in
from hilum.evaluation.content import Picture, ReportContent, SplitColumn, Step, gallery_rows
from hilum.evaluation.report import Report
from hilum.tracking.provenance import redact
from hilum.verbs.opening import Opened
from hilum.verbs.run_data import lowest_ranked


def content_of(model: Any, opened: Opened, report: Report, *, comparisons: Mapping[str, Any]) -> ReportContent:
    """Everything on the page of one evaluation."""
    recipe, study = model.recipe, opened.data.study
    spec = getattr(model.objective.exported().get("encoder"), "spec", None)
    encoder = str(next(iter(recipe["encoders"].values()))["name"])
    start = recipe["run"].get("init", next(iter(recipe.get("encoders", {"": {}}).values())).get("init", "scratch"))
    parts, left = parts_of(model, opened, report.split)
    return ReportContent.of(
        report,
        title=f"{model.folder.name}: {report.split} set"
        + (f" of {report.origin.study}" if report.origin.study else ""),
        subtitle=f"recipe {recipe.name}",
        facts={
            "Encoder": encoder,
            "Start": Path(str(start)).name,
            "Label fraction": f"{recipe['run'].get('fraction', 1.0):.0%} of training patients",
            "Images used to train": str(model.facts.get("rows", {}).get("train", "")),
        },
        flow=_flow(study, len(study.rows(recipe["where"])), left),
        splits=_columns(opened, report, parts),
        gallery=_gallery(opened, report),
        gallery_note="Drawn at random among each outcome; none picked by eye.",
        comparisons=comparisons,
        config=redact(recipe.to_yaml(), {"RUN": model.folder, "STUDY": study.path}),
        hashes={
            "index": study.digest,
            "split": opened.data.split.digest if opened.data.split is not None else "none",
            "configuration": recipe.sha256,
            "checkpoint": model.sha256,
        },
        environment={
            name: importlib.metadata.version(name) for name in ("hilum", "torch", "timm", "lightning", "numpy")
        },
        licences=[
            ("hilum", "Apache-2.0", "code"),
            (encoder, getattr(spec, "licence", "unknown"), getattr(spec, "source", "")),
        ],
    )


def parts_of(model: Any, opened: Opened, judged: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Index rows of every part as the run used them, and how many of the recipe's selection are in none, by reason.

    Of another study it is the judged part alone: the run learned from none of the others.
    """
    study, recipe, split = opened.data.study, model.recipe, opened.data.split
    among = study.rows(recipe["where"])
    if opened.external:
        rows = opened.data.rows[judged]
        return {judged: rows}, {"other parts of this study": len(among) - len(rows)}
    plan, groups = recipe["run"], np.asarray(study.column("group_id"), object)

    def within(rows: Any, part: str, fraction: float = 1.0) -> Any:
        return rows[is_in(groups[rows], split.groups(part, fraction=fraction, fold=plan.get("fold")))]

    parts = {part: within(among, part) for part in ("train", "val", "test")}
    learned = within(parts["train"], "train", plan.get("fraction", 1.0))
    limit = plan.get("rows", {}).get("limit")
    limited = learned if limit is None else lowest_ranked(split, learned, limit)
    left = {
        "in no part of the split": len(within(among, "none")),
        "train, beyond the label fraction": len(parts["train"]) - len(learned),
        "train, beyond --limit": len(learned) - len(limited),
    }
    return {name: rows for name, rows in {**parts, "train": limited}.items() if len(rows)}, left


def _flow(study: Any, selected: int, left: Mapping[str, int]) -> list[Step]:
    """Where every file of the archive went; what was there once and is gone is no part of it."""
    counts, served = counts_of(study.index), study.rows(None)
    pairs = zip(study.index.column("status").to_pylist(), study.index.column("reason").to_pylist(), strict=True)
    faults = Counter(f"{s}: {r}" for s, r in pairs if s in ("skipped", "quarantined") and r != "vanished")
    steps = [
        Step("Found", counts["found"], left=faults),
        Step("Indexed", counts["indexed"], left={"copies, conflicts and containers": counts["indexed"] - len(served)}),
        Step("Usable", len(served), left={"outside the recipe's selection": len(served) - selected}),
        Step("Selected", selected, left=left),
    ]
    for step in steps:
        step.left = {reason: n for reason, n in step.left.items() if n}
    return steps


def _columns(opened: Opened, report: Report, parts: Mapping[str, Any]) -> list[SplitColumn]:
    study = opened.data.study
    names = [n for n in report.predictions.names if n in study.label_names]
    groups = np.asarray(study.column("group_id"), object)
    columns = []
    for part, rows in parts.items():
        column = SplitColumn.of(part, names=names, targets=study.label_matrix(names, rows), groups=groups[rows])
        if part == report.split:
            column.judged = len(report.predictions)
            column.left = report.origin.delivery[report.name]["missing"]
        columns.append(column)
    return columns


def _gallery(opened: Opened, report: Report) -> list[Picture]:
    row_of = {s: i for i, s in enumerate(opened.data.study.column("sample_id"))}
    pictures = []
    for at, finding, outcome in gallery_rows(report):
        sample = str(report.predictions.sample_id[at])
        image = opened.data.cache.get(row_of[sample])
        point = report.finding(finding).point
        assert point is not None
        pictures.append(
            Picture(
                image.shown(),
                finding,
                outcome,
                float(report.predictions.scores[at, report.predictions.names.index(finding)]),
                float(point.threshold),
                image.window.source if image.window is not None else "full range",
                sample_id=sample[:8],
            )
        )
    return pictures
