"""What a run tells the tracking store, and when: at its start, at its end, and of each evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hilum.core.recipe import Recipe
from hilum.verbs.starts import origins

CODE_LICENCE = "Apache-2.0"
NO_LICENCE = "not recorded: whoever passes this model on must know"


def data_licence(study: Any) -> str:
    """What the study says of its images' licence."""
    return str(study.about.get("licence") or NO_LICENCE)


def licence_tags(objective: Any, study: Any) -> dict[str, str]:
    """``licence.code``, ``licence.data`` and, for every encoder, ``licence.weights.NAME`` with what it started from."""
    tags = {"hilum.licence.code": CODE_LICENCE, "hilum.licence.data": data_licence(study)}
    for path, told in origins(objective).items():
        tags[f"hilum.licence.weights.{path or 'objective'}"] = f"{told['licence']} ({told['source']})"
    return tags


def log_start(tracker: Any, recipe: Recipe, data: Any, objective: Any) -> None:
    """Configuration, digests, licences and datasets."""
    tracker.log_params({k: v for k, v in recipe.data.items() if k not in ("run", "where")} | {"where": recipe["where"]})
    tracker.set_tags(
        {
            "hilum.recipe": recipe.name,
            "hilum.config_sha256": recipe.sha256,
            "hilum.index_digest": data.study.digest,
            "hilum.split_digest": data.split_digest,
            "hilum.seed": str(recipe["seed"]),
            "hilum.stage": str(recipe.get("verb")),
            "hilum.fraction": str(recipe["run"].get("fraction", 1.0)),
            **licence_tags(objective, data.study),
        }
    )
    tracker.log_text(recipe.to_yaml(), "config/config.yaml")  # as text: paths of a start or study are redacted
    for name, rows in data.rows.items():
        tracker.log_dataset(
            f"{data.study.about.get('name', 'study')}-{name}",
            digest=data.split_digest[:32],
            context=name,
            counts={"images": len(rows)},
        )


def log_end(tracker: Any, exported: Path) -> None:
    """Curves, and the weights of the best checkpoint as the run hands them on."""
    tracker.log_curves()
    if exported.is_dir():
        tracker.log_model(exported)


def log_evaluation(tracker: Any, report: Any, where: Path, *, step: int) -> None:
    """Metrics, the page and its tables, and each finding's curves as pictures."""
    from hilum.evaluation.pictures import standalone_figures

    tracker.log_metrics(report.scalars(), step=step)
    for name in ("metrics.json", "report.html", "predictions.parquet"):
        tracker.log_artifact(where / name, f"eval/{where.name}")
    for name, picture in standalone_figures(report).items():
        tracker.log_figure_bytes(picture.encode(), f"eval/{where.name}/plots/{name}.svg")
