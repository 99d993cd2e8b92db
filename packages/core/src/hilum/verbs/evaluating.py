"""``hilum evaluate`` and ``hilum embed``: what a trained run says about a split, with intervals, on one page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hilum.core.errors import HilumError, LeakError
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
    where = folder.path / "eval" / (split if data is None else f"{Path(data).name}-{split}")
    for other in against or []:
        _need_predictions(Path(other), where.name)
    from hilum.evaluation.page import write_report
    from hilum.evaluation.predictions import Predictions
    from hilum.evaluation.report import evaluate as judge
    from hilum.verbs.loading import load_model

    model = load_model(run, checkpoint=checkpoint)
    opened = _open(model, data, splits=("val", split) if data is None and split != "val" else (split,))
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
    for title, comparison in comparisons.items():
        print(differences(title, comparison))
    print(f"report: {page}")
    if track:
        _track(model, folder, report, where)
    return report


def _need_predictions(other: Path, name: str) -> None:
    """The error that comes before anything is computed: a run to compare with was never judged on these images."""
    if not (RunFolder.open(other).path / "eval" / name / "predictions.parquet").is_file():
        raise HilumError(
            f"the run to compare with has no predictions for {name!r}",
            where=str(other),
            fix=f"hilum evaluate {other}   with the same --split and --data first",
        )


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
    RunFolder.open(run)
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
    # what a recipe makes of uncertain labels is a way to train; nobody is judged by a guessed truth
    recipe = model.recipe.with_({"labels": {"uncertain": "ignore"}})
    labelled = bool(model.labels) and set(model.labels.names) <= set(study.label_names)
    names = list(model.labels.names) if labelled else None
    recipe = recipe.with_({"labels": {"names": names}}) if names else recipe
    if splits == ("all",):
        return Opened(model, open_rows(recipe, study, {"all": study.rows(recipe["where"])[:limit]}, labelled=labelled))
    own = data is None or study.path.resolve() == model.study_path
    if not own and not (study.path / "splits" / f"{recipe['run']['split']}.json").exists():
        rows = {splits[0]: study.rows(recipe["where"])[:limit]}
        _refuse_seen(model, study, rows[splits[0]])
        return Opened(model, open_rows(recipe, study, rows, labelled=labelled))
    if own:
        _same_parts(model, study, Split.load(study, recipe["run"]["split"]))
    data_ = open_data(
        recipe,
        study,
        split_name=recipe["run"]["split"],
        fold=recipe["run"].get("fold"),
        limit=limit,
        need_labels=labelled,
        splits=splits,
    )
    if not own and splits != ("train",):
        _refuse_seen(model, study, np.concatenate(list(data_.rows.values())))
    return Opened(model, data_)


def _same_parts(model: Any, study: Any, split: Any) -> None:
    """The run's own study must deal its patients as it did when the run was trained."""
    from hilum.verbs.assembly import grouping_sha256

    facts = model.facts
    for then, now, what in (
        (model.recipe["run"].get("split_digest"), split.digest, "the split is not the one"),
        (
            facts.get("split_table_digest", split.info.get("table_digest")),
            split.info.get("table_digest"),
            "the split's folds or ranks are not those",
        ),
        (
            facts.get("grouping_sha256"),
            facts.get("grouping_sha256") and grouping_sha256(study),
            "the patients are not those",
        ),
    ):
        if then != now:
            raise HilumError(
                f"{what} this run was trained on",
                where=f"splits/{split.name}.json",
                fix="evaluate on the study as it was, or train again on the new one",
            )


def _refuse_seen(model: Any, study: Any, rows: Any) -> None:
    """LeakError where another study holds patients or pictures that this run was trained or selected on."""
    from hilum.data.split import Split
    from hilum.data.study import Study

    told, own = model.recipe["run"], None
    try:
        own = Study(model.study_path)
        split = Split.load(own, told["split"])
    except HilumError:
        pass
    if own is None or split.digest != told.get("split_digest"):
        print("note: the study this run was trained on is gone or changed: nobody checked for patients in both")
        return
    used = own.rows(model.recipe["where"])
    group = np.asarray(own.column("group_id"), object)[used]
    seen = split.groups("train", fold=told.get("fold")) | split.groups("val", fold=told.get("fold"))
    inside = np.fromiter((g in seen for g in group), bool, len(group))
    patients, pictures = (np.asarray(study.column(c), object)[rows] for c in ("group_id", "stored_sha256"))
    known = set(np.asarray(own.column("stored_sha256"), object)[used[inside]]) - {None}
    both, copies = set(patients) & seen, [p for p in pictures if p in known]
    if both or copies:
        raise LeakError(
            f"{len(both)} patients and {len(copies)} pictures of {study.path.name} were used to train or select this run",
            where=f"groups: {', '.join(sorted(both)[:5])}" if both else "identical pixels under other patients",
            fix="judge it on a study without them (hilum index --exclude), or on the run's own test set",
        )


def open_run(run: Path, *, splits: tuple[str, ...], checkpoint: str = "best") -> tuple[Any, Opened]:
    """A run's model and its own study served for evaluation."""
    from hilum.verbs.loading import load_model

    model = load_model(run, checkpoint=checkpoint)
    return model, _open(model, None, splits=splits)


def score(model: Any, opened: Opened, split: str) -> Any:
    """Predictions of one part as the evaluation wants them."""
    import torch

    from hilum.evaluation.predictions import Predictions
    from hilum.verbs.inference import predict_batches

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
        if "labels" not in batch.targets:
            raise HilumError(
                f"{opened.data.study.path.name} lacks the labels this run predicts: {', '.join(model.labels.names)}",
                fix="index it with --labels whose columns have these names",
            )
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


def differences(title: str, comparison: Any) -> str:
    """The paired differences of one comparison, for the terminal."""

    def line(row: Any) -> str:
        if row.difference.value is None:
            return f"  {row.name:<24} not computable: {row.difference.reason}"
        return f"  {row.name:<24} {row.difference.value:+.3f}  [{row.difference.lo:+.3f}, {row.difference.hi:+.3f}]"

    return "\n".join(
        [f"{title}: AUROC difference, paired over patients", *map(line, (*comparison.rows, comparison.mean))]
    )


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

    from hilum.core.provenance import redact
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
        config=redact(recipe.to_yaml(), {"RUN": folder.path, "STUDY": study.path}),
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
