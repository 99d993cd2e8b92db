"""``hilum evaluate`` and ``hilum embed``: what a trained run says about a split, with intervals, on one page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hilum.core.errors import HilumError
from hilum.verbs.folder import RunFolder

if TYPE_CHECKING:
    from hilum.verbs.opening import Opened


def evaluate(
    run: Path,
    *,
    split: str = "test",
    checkpoint: str = "best",
    data: Path | None = None,
    resamples: int = 1000,
    rule: str = "youden",
    against: list[Path] | None = None,
    allow_overlap: list[str] | None = None,
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
        allow_overlap: a dataset the run learned from that may share images with --data's all the same (recorded)
        track: log to the run's MLflow entry
    """
    folder = RunFolder.open(run)
    study = _other_study(folder, data)
    name = f"{study}-{split}" if study else split
    for other in against or []:
        _need_predictions(Path(other), name)
    # the rest is heavy: whatever can be refused before it was
    from hilum.evaluation.page import write_report
    from hilum.evaluation.predictions import Predictions
    from hilum.evaluation.report import Origin
    from hilum.evaluation.report import evaluate as judge
    from hilum.verbs.loading import inference_device, load_model
    from hilum.verbs.opening import open_study
    from hilum.verbs.report_content import content_of

    model = load_model(run, checkpoint=checkpoint, device=inference_device())
    where, seed = folder.path / "eval" / name, int(model.recipe["seed"])
    parts = (split,) if study or split in ("val", "train") else ("val", split)
    bad_path = folder.path / "bad_samples.parquet"
    allowed = allow_overlap or ()
    opened = open_study(model, data if study else None, splits=parts, bad_path=bad_path, allow_overlap=allowed)
    if allowed and study:
        told = {**folder.facts.get("allowed_overlaps", {}), name: sorted({*allowed})}
        folder.note(allowed_overlaps=told)
    predictions = score(model, opened, split)
    opened.feed.evaluated[-1].split = name  # listed apart from the run's own
    validation = points = None
    if study:
        validation, points = _thresholds(model, opened, rule)
    elif len(parts) > 1:
        validation = score(model, opened, "val")
    for note in opened.notes:
        print(f"note: {note}")
    delivery = {account.split: account.counts for account in opened.feed.evaluated}
    origin = Origin(model.sha256, study, delivery, tuple(opened.notes))
    report = judge(predictions, validation=validation, points=points, rule=rule, n=resamples, seed=seed, origin=origin)
    report.write(where)
    if validation is not None:
        validation.write(folder.path / "eval" / "val" / "predictions.parquet")
    comparisons = {}
    for other in against or []:
        stored = Predictions.read(Path(other) / "eval" / name / "predictions.parquet")
        comparisons[f"{folder.path.name} against {Path(other).name}"] = report.compare(
            judge(stored, n=resamples, seed=seed)
        )
    page = write_report(where / "report.html", content_of(model, opened, report, comparisons=comparisons))
    print(table(report))
    for title, comparison in comparisons.items():
        print(differences(title, comparison))
    print(f"report: {page}")
    if track:
        _track(model, folder, report, where)
    opened.feed.check_evaluated()  # last: what is too little to trust is there to be looked at
    return report


def _other_study(folder: RunFolder, data: Path | None) -> str:
    """The name results on another study go by, "" for the run's own: two folders may be called the same."""
    from hilum.data.study import Study

    if data is None or Path(data).resolve() == folder.study_of(folder.recipe):
        return ""
    plain = re.sub(r"[^\w.-]+", "_", Path(data).resolve().name)  # it becomes part of a metric's name
    return f"{plain}-{Study(data).digest[:8]}"


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
    from hilum.verbs.loading import inference_device, load_model
    from hilum.verbs.opening import open_study

    model, part, out = load_model(run, checkpoint=checkpoint, device=inference_device()), split or "all", Path(out)
    bad_path = out.with_suffix(".bad_samples.parquet")
    opened = open_study(model, data, splits=(part,), limit=limit, bad_path=bad_path)
    encoder = model.objective.exported()["encoder"]
    ids: list[str] = []
    groups: list[str] = []
    features: list[np.ndarray[Any, Any]] = []
    with torch.no_grad():
        for batch in opened.loader(part):
            if not batch.size:
                continue
            ready = opened.feed.augment(batch.to(model.device), train=False)
            features.append(encoder(ready.views["image"]).pooled.float().cpu().numpy())
            ids += [m.sample_id for m in ready.meta]
            groups += [m.group_id for m in ready.meta]
    if not features:
        raise HilumError("no image could be embedded", fix=f"hilum doctor {data}")
    matrix = np.concatenate(features)
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
    write_table(pa.table({"sample_id": ids, "group_id": groups, "feature": column}), out)
    print(f"{len(ids)} features of width {matrix.shape[1]} in {out}")
    for account in opened.feed.evaluated:
        print(account)
    opened.feed.check_evaluated()
    return out


def open_run(run: Path, *, splits: tuple[str, ...], checkpoint: str = "best") -> tuple[Any, Opened]:
    """A run's model and its own study served for evaluation."""
    from hilum.verbs.loading import inference_device, load_model
    from hilum.verbs.opening import open_study

    model = load_model(run, checkpoint=checkpoint, device=inference_device())
    return model, open_study(model, None, splits=splits)


def score(model: Any, opened: Opened, split: str) -> Any:
    """Predictions of one part as the evaluation wants them; says on the terminal what the part lacks."""
    import torch

    from hilum.evaluation.predictions import Predictions
    from hilum.verbs.inference import predict_batches

    ids: list[str] = []
    groups: list[str] = []
    scores, targets = [], []
    names: tuple[str, ...] = ()
    for batch, prediction in predict_batches(model.objective, opened.loader(split), opened.feed, device=model.device):
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
    account = opened.feed.evaluated[-1]
    if account.bad:
        print(account)
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


def _thresholds(model: Any, opened: Opened, rule: str) -> tuple[Any, Mapping[str, Any] | None]:
    """For another study: the run's own validation predictions, or the points stored when they could still be made."""
    from hilum.verbs.opening import open_study

    try:
        own = open_study(model, None, splits=("val",))
        validation = score(model, own, "val")
    except HilumError as error:
        points = _stored_points(model, rule)
        source = "are those stored with eval/test" if points else "cannot be chosen"
        opened.notes.append(f"The run's own validation set cannot be scored ({error.what}): thresholds {source}.")
        return None, points
    opened.feed.evaluated += own.feed.evaluated
    return validation, None


def _stored_points(model: Any, rule: str) -> Mapping[str, Any] | None:
    """Operating points of an earlier evaluation, if it was of these weights and by this rule."""
    from hilum.evaluation.thresholds import OperatingPoint

    path = model.folder / "eval" / "test" / "metrics.json"
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    for what, then, now in (
        ("checkpoint", stored.get("checkpoint", "unknown"), model.sha256),
        ("rule", stored.get("rule", "unknown"), rule),
    ):
        if then != now:
            raise HilumError(
                f"the stored thresholds belong to another {what}: {str(then)[:20]}, not {now[:20]}",
                where=str(path),
                fix="evaluate with the --checkpoint and --rule of that evaluation, or bring the run's own study back",
            )
    return {f["name"]: OperatingPoint.from_json(f["point"]) for f in stored["findings"] if f.get("point")}


def differences(title: str, comparison: Any) -> str:
    """The paired differences of one comparison, for the terminal."""
    from html import unescape

    from hilum.evaluation.markup import p_value

    def line(row: Any) -> str:
        if row.difference.value is None:
            return f"  {row.name:<24} not computable: {row.difference.reason}"
        p, adjusted = (unescape(p_value(value, comparison.n)) for value in (row.p_a_better, row.adjusted_a))
        interval = f"[{row.difference.lo:+.3f}, {row.difference.hi:+.3f}]"
        return f"  {row.name:<24} {row.difference.value:+.3f}  {interval}  p {p}  adjusted {adjusted}"

    head = f"{title}: AUROC difference, paired over patients; p that the first is not better, adjusted over findings"
    return "\n".join([head, *map(line, (*comparison.rows, comparison.mean))])


def table(report: Any) -> str:
    """AUROC a finding with its interval, for the terminal."""

    def line(name: str, metric: Any, positives: str) -> str:
        if metric.value is None:
            return f"  {name:<24} not computable: {metric.reason}"
        return f"  {name:<24} {metric.value:.3f}  [{metric.lo:.3f}, {metric.hi:.3f}]  {positives}"

    lines = [f"AUROC on {report.split} with 95 % intervals over patients"]
    lines += [line(f.name, f.metrics["auroc"], f"{f.n_positive} of {f.n} images positive") for f in report.findings]
    return "\n".join([*lines, line("macro mean", report.macro["auroc"], f"{len(report.covered)} findings")])


def _track(model: Any, folder: RunFolder, report: Any, where: Path) -> None:
    from hilum.tracking.tracker import Tracker
    from hilum.verbs.tracked import log_evaluation

    tracker = Tracker.open(
        study=Path(model.study_path),
        run_dir=folder.path,
        experiment=model.recipe.name,
        run_name=folder.path.name,
    )
    with tracker:
        log_evaluation(tracker, report, where, step=int(model.facts.get("steps", 0)))
