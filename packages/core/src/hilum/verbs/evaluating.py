"""``hilum evaluate`` and ``hilum embed``: what a trained run says about a split, with intervals, on one page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hilum.core.errors import HilumError
from hilum.verbs.folder import RunFolder

GALLERY_SIDE = 256


def evaluate(
    run: Path,
    *,
    split: str = "test",
    checkpoint: str = "best",
    data: Path | None = None,
    resamples: int = 1000,
    rule: str = "youden",
    against: list[Path] | None = None,
    track: bool = True,
) -> Any:
    """Judge a run on a split: metrics with intervals over patients, thresholds from validation, one HTML page.

    Args:
        run: folder of a fine-tuned run
        split: part to judge: test, val or train
        checkpoint: best or last
        data: another study than the one trained on (external validation); it needs the same label names
        resamples: redraws of patients for the intervals
        rule: operating point chosen on validation: youden, sensitivity>=0.9, specificity>=0.9
        against: other evaluated runs to compare with on the same samples (paired bootstrap)
        track: log to the run's MLflow entry
    """
    folder = RunFolder.open(run)  # before anything heavy is imported
    compared = {Path(other).name: _evaluated(other, split if data is None else None, data, split) for other in against or []}
    from hilum.evaluation.page import write_report
    from hilum.evaluation.predictions import Predictions
    from hilum.evaluation.report import evaluate as judge
    from hilum.verbs.loading import load_model

    model = load_model(run, checkpoint=checkpoint)
    opened = _open(model, data, splits=("val", split) if data is None and split != "val" else (split,))
    folder = RunFolder(run)
    where = folder.path / "eval" / (split if data is None else f"{Path(data).name}-{split}")
    predictions = score(model, opened, split)
    validation = score(model, opened, "val") if data is None and split not in ("val", "train") else None
    points = None
    if data is not None:
        points = _stored_points(folder)
    report = judge(
        predictions, validation=validation, points=points, rule=rule, n=resamples, seed=int(model.recipe["seed"])
    )
    report.write(where)
    if validation is not None:
        (folder.path / "eval" / "val").mkdir(parents=True, exist_ok=True)
        validation.write(folder.path / "eval" / "val" / "predictions.parquet")
    comparisons = {}
    for other in against or []:
        stored = Predictions.read(Path(other) / "eval" / where.name / "predictions.parquet")
        comparisons[f"{folder.path.name} against {Path(other).name}"] = report.compare(
            judge(stored, n=resamples, seed=int(model.recipe["seed"]))
        )
    content = _content(model, opened, report, folder, comparisons)
    page = write_report(where / "report.html", content)
    print(table(report))
    print(f"report: {page}")
    if track:
        _track(model, folder, report, where)
    return report


def embed(
    run: Path, *, data: Path, out: Path, split: str | None = None, checkpoint: str = "best", limit: int | None = None
) -> Path:
    """Write the encoder's pooled feature of every image of a study.

    Args:
        run: folder of a pretrained or fine-tuned run
        data: the study to embed
        out: Parquet file to write: sample_id, group_id, feature
        split: only this part of the run's split (default: every indexed image)
        checkpoint: best or last
        limit: only the first images
    """
    import pyarrow as pa
    import torch

    from hilum.data.ledger import write_table
    from hilum.verbs.loading import load_model

    model = load_model(run, checkpoint=checkpoint)
    opened = _open(model, data, splits=(split,) if split else ("all",), limit=limit)
    encoder = model.objective.exported()["encoder"]
    ids: list[str] = []
    groups: list[str] = []
    features: list[np.ndarray[Any, Any]] = []
    bad = 0
    with torch.no_grad():
        for batch in opened.loader(split or "all"):
            bad += len(batch.bad)
            if not batch.size:
                continue
            ready = opened.feed.augment(batch, train=False)
            features.append(encoder(ready.views["image"]).pooled.float().cpu().numpy())
            ids += [m.sample_id for m in ready.meta]
            groups += [m.group_id for m in ready.meta]
    if not features:
        raise HilumError("no image could be embedded", fix=f"hilum doctor {data}")
    matrix = np.concatenate(features)
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
    write_table(pa.table({"sample_id": ids, "group_id": groups, "feature": column}), Path(out))
    print(
        f"{len(ids)} features of width {matrix.shape[1]} in {out}"
        + (f", {bad} images could not be read" if bad else "")
    )
    return Path(out)


class Opened:
    """A study's rows served for evaluation by a model's own views and normalisation."""

    def __init__(self, model: Any, data: Any) -> None:
        from hilum.verbs.assembly import feed_of

        self.data = data
        self.fold: int | None = model.recipe["run"].get("fold")
        self.feed = feed_of(model.recipe, data, train=False)

    def loader(self, split: str) -> Any:
        return self.feed.loader(split)


def _open(model: Any, data: Path | None, *, splits: tuple[str, ...], limit: int | None = None) -> Opened:
    from hilum.data.split import Split
    from hilum.data.study import Study
    from hilum.verbs.assembly import open_data, open_rows

    study = Study(data if data is not None else model.study_path)
    recipe = model.recipe
    labelled = bool(model.labels) and set(model.labels.names) <= set(study.label_names)
    names = list(model.labels.names) if labelled else None
    recipe = recipe.with_({"labels": {"names": names}}) if names else recipe
    if splits == ("all",):
        return Opened(model, open_rows(recipe, study, {"all": study.rows(recipe["where"])[:limit]}, labelled=labelled))
    if data is not None and not (study.path / "splits" / f"{recipe['run']['split']}.json").exists():
        rows = {splits[0]: study.rows(recipe["where"])[:limit]}
        return Opened(model, open_rows(recipe, study, rows, labelled=labelled))
    if data is None:
        now = Split.load(study, recipe["run"]["split"]).digest
        if now != recipe["run"].get("split_digest"):
            raise HilumError(
                "the split is not the one this run was trained on",
                where=f"splits/{recipe['run']['split']}.json",
                fix="evaluate on the stored split, or train again on the new one",
            )
    data_ = open_data(
        recipe,
        study,
        split_name=recipe["run"]["split"],
        fold=recipe["run"].get("fold"),
        limit=limit,
        need_labels=labelled,
        splits=splits,
    )
    return Opened(model, data_)


def open_run(run: Path, *, splits: tuple[str, ...], checkpoint: str = "best") -> tuple[Any, Opened]:
    """A run's model and its own study served for evaluation."""
    from hilum.verbs.loading import load_model

    model = load_model(run, checkpoint=checkpoint)
    return model, _open(model, None, splits=splits)


def score(model: Any, opened: Opened, split: str) -> Any:
    """Predictions of one part as the evaluation wants them."""
    import torch

    from hilum.core.loop import predict_batches
    from hilum.evaluation.predictions import Predictions

    ids: list[str] = []
    groups: list[str] = []
    scores, targets = [], []
    names: tuple[str, ...] = ()
    for batch, prediction in predict_batches(
        model.objective, opened.loader(split), opened.feed, device=torch.device("cpu")
    ):
        ids += [m.sample_id for m in batch.meta]
        groups += [m.group_id for m in batch.meta]
        names = prediction.names
        scores.append(prediction.scores.float().cpu().numpy())
        label, valid = batch.targets["labels"].cpu(), batch.valid["labels"].cpu().bool()
        if label.ndim == 1:
            one_hot = torch.nn.functional.one_hot(label.long().clamp(min=0), len(names)).float()
            label, valid = one_hot, valid[:, None].expand_as(one_hot)
        targets.append(torch.where(valid, label.float(), torch.nan).numpy())
    if not ids:
        raise HilumError(
            f"the {split} set delivered no image", fix="look at bad_samples.parquet and hilum doctor STUDY"
        )
    return Predictions.of(
        sample_id=ids,
        group_id=groups,
        split=split,
        names=names or model.labels.names,
        targets=np.concatenate(targets),
        scores=np.concatenate(scores).astype(np.float64),
        seed=int(model.recipe["seed"]),
    )


def _stored_points(folder: RunFolder) -> Mapping[str, Any] | None:
    """Operating points that an earlier evaluation chose on this run's own validation set."""
    from hilum.evaluation.thresholds import OperatingPoint

    path = folder.path / "eval" / "test" / "metrics.json"
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())["findings"]
    return {f["name"]: OperatingPoint.from_json(f["point"]) for f in stored if f.get("point")}


def table(report: Any) -> str:
    """AUROC a finding with its interval, for the terminal."""

    def line(name: str, metric: Any, positives: str) -> str:
        if metric.value is None:
            return f"  {name:<24} not computable: {metric.reason}"
        return f"  {name:<24} {metric.value:.3f}  [{metric.lo:.3f}, {metric.hi:.3f}]  {positives}"

    lines = [f"AUROC on {report.split} with 95 % intervals over patients"]
    lines += [line(f.name, f.metrics["auroc"], f"{f.n_positive} of {f.n} images positive") for f in report.findings]
    return "\n".join([*lines, line("macro mean", report.macro["auroc"], f"{len(report.covered)} findings")])


def _content(model: Any, opened: Opened, report: Any, folder: RunFolder, comparisons: Mapping[str, Any]) -> Any:
    import importlib.metadata

    from hilum.evaluation.content import ReportContent

    recipe, study = model.recipe, opened.data.study
    spec = getattr(model.objective.exported().get("encoder"), "spec", None)
    start = recipe["run"].get("init", next(iter(recipe.get("encoders", {"": {}}).values())).get("init", "scratch"))
    return ReportContent.of(
        report,
        title=f"{folder.path.name}: {report.split} set",
        subtitle=f"recipe {recipe.name}",
        facts={
            "Encoder": str(next(iter(recipe["encoders"].values()))["name"]),
            "Start": Path(str(start)).name,
            "Label fraction": f"{recipe['run'].get('fraction', 1.0):.0%} of training patients",
            "Images used to train": str(model.facts.get("rows", {}).get("train", "")),
        },
        flow=_flow(study, opened, model, report),
        splits=_splits(opened, report),
        gallery=_gallery(opened, report),
        gallery_note="Drawn at random among each outcome; none picked by eye.",
        comparisons=comparisons,
        config=recipe.to_yaml(),
        warnings=_unread(opened, report),
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
            (
                str(next(iter(recipe["encoders"].values()))["name"]),
                getattr(spec, "licence", "unknown"),
                getattr(spec, "source", ""),
            ),
        ],
    )


def _flow(study: Any, opened: Opened, model: Any, report: Any) -> list[Any]:
    from hilum.data.ledger import counts_of
    from hilum.evaluation.content import Step

    counts = counts_of(study.index)
    index = study.index
    reasons: dict[str, dict[str, int]] = {"skipped": {}, "quarantined": {}}
    for status, reason in zip(index.column("status").to_pylist(), index.column("reason").to_pylist(), strict=True):
        if status in reasons:
            reasons[status][f"{status}: {reason}"] = reasons[status].get(f"{status}: {reason}", 0) + 1
    served = study.rows(None)
    matching = study.rows(model.recipe["where"])
    steps = [
        Step("Found", counts["found"], left={**reasons["skipped"], **reasons["quarantined"]}),
        Step("Indexed", counts["indexed"], left={"copies, conflicts and containers": counts["indexed"] - len(served)}),
        Step("Usable", len(served), left={"outside the recipe's selection": len(served) - len(matching)}),
        Step("Selected", len(matching)),
    ]
    for step in steps:
        step.left = {k: v for k, v in step.left.items() if v}
        step.unit = "files"
    return steps


def _unread(opened: Opened, report: Any) -> list[str]:
    asked, judged = len(opened.data.rows[report.split]), len(report.predictions)
    return (
        [f"{asked - judged} of {asked} images of the {report.split} set could not be read and are not judged."]
        if judged < asked
        else []
    )


def _splits(opened: Opened, report: Any) -> list[Any]:
    """Every part of the split: patients, images and, a finding, (positive images, positive patients, known images)."""
    from hilum.evaluation.content import SplitColumn

    split, study = opened.data.split, opened.data.study
    if split is None:
        return []
    names = [n for n in report.predictions.names if n in study.label_names]
    served = study.rows(None)
    group = np.asarray(study.column("group_id"), object)[served]
    labels = study.label_matrix(names, served)
    columns = []
    for part in ("train", "val", "test", "none"):
        inside = np.isin(group, list(split.groups(part, fold=opened.fold)))
        if not inside.any():
            continue
        positive = {
            name: (
                int((labels[inside, f] == 1).sum()),
                len(set(group[inside & (labels[:, f] == 1)])),
                int(np.isin(labels[inside, f], (0, 1)).sum()),
            )
            for f, name in enumerate(names)
        }
        columns.append(SplitColumn(part, len(set(group[inside])), int(inside.sum()), positive))
    return columns


def _gallery(opened: Opened, report: Any) -> list[Any]:
    from hilum.evaluation.content import Picture, gallery_rows
    from hilum.parts.window import apply_window

    study = opened.data.study
    row_of = {s: i for i, s in enumerate(study.column("sample_id"))}
    pictures = []
    for at, finding, outcome in gallery_rows(report):
        sample = str(report.predictions.sample_id[at])
        image = opened.data.cache.get(row_of[sample])
        pixels = image.stored.float() * image.slope + image.intercept
        if image.window is not None:
            pixels = apply_window(pixels, image.window)
        shown = (pixels.clamp(0, 1) * 255).byte().numpy()
        f = report.predictions.names.index(finding)
        pictures.append(
            Picture(
                shown[0] if shown.shape[0] == 1 else np.moveaxis(shown, 0, -1),
                finding,
                outcome,
                float(report.predictions.scores[at, f]),
                float(report.finding(finding).point.threshold),
                image.window.source if image.window is not None else "full range",
                sample_id=sample[:8],
            )
        )
    return pictures


def _track(model: Any, folder: RunFolder, report: Any, where: Path) -> None:
    from hilum.core.track import Tracker

    tracker = Tracker.open(
        study=Path(model.study_path),
        run_dir=folder.path,
        experiment=model.recipe.name,
        run_name=folder.path.name,
    )
    with tracker:
        steps = int(model.facts.get("steps", 0))
        tracker.log_metrics(report.scalars(), step=steps)
        for name in ("metrics.json", "report.html", "predictions.parquet"):
            tracker.log_artifact(where / name, f"eval/{where.name}")
