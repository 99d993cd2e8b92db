"""What one evaluation found: rows, metrics with intervals or reasons, operating points; metrics.json; compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hilum.core.errors import HilumError, LeakError
from hilum.core.types import Metric
from hilum.evaluation import metrics as closed
from hilum.evaluation.comparison import Comparison, Correction, paired_bootstrap
from hilum.evaluation.intervals import METRICS, intervals
from hilum.evaluation.metrics import NotComputable
from hilum.evaluation.predictions import Predictions
from hilum.evaluation.thresholds import AtThreshold, OperatingPoint, at_threshold, choose_threshold, is_validation


@dataclass(slots=True)
class Finding:
    """One finding's row: counts over known labels, metrics, calibration, and what its operating point gives."""

    name: str
    n: int
    n_groups: int
    n_positive: int
    n_positive_groups: int
    n_unknown: int
    metrics: dict[str, Metric]
    redrawn: int = 0
    calibration: dict[str, float | None] = field(default_factory=dict)  # ece_mass, ece_width, slope, intercept
    point: OperatingPoint | None = None
    point_reason: str = ""
    at: AtThreshold | None = None

    @property
    def prevalence(self) -> float | None:
        return self.n_positive / self.n if self.n else None

    @property
    def reason(self) -> str:
        return next((m.reason for m in self.metrics.values() if m.reason), "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"prevalence": self.prevalence}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where predictions come from: SHA-256 of the ``checkpoint``'s weights, and the ``study`` where it is not the run's.

    ``delivery`` counts, by split, ``expected`` and ``delivered`` rows and the ``missing`` ones, reason -> n. ``notes``
    are warnings about the rows.
    """

    checkpoint: str = ""
    study: str = ""
    delivery: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Report:
    """Everything an evaluation of one split says. ``macro[name]`` is the mean over the ``covered`` findings only.

    ``rule`` is how thresholds were chosen, where they were.
    """

    split: str
    predictions: Predictions
    findings: list[Finding]
    macro: dict[str, Metric]
    covered: tuple[str, ...]
    n_resamples: int
    seed: int
    warnings: list[str] = field(default_factory=list)
    rule: str | Mapping[str, str] = "youden"
    origin: Origin = field(default_factory=Origin)

    @property
    def name(self) -> str:
        """What the results are kept under: the split, after the study where it is another than the run's."""
        return f"{self.origin.study}-{self.split}" if self.origin.study else self.split

    @property
    def left_out(self) -> dict[str, str]:
        """Findings outside the macro mean, with the reason."""
        return {f.name: f.reason for f in self.findings if f.name not in self.covered}

    def finding(self, name: str) -> Finding:
        for f in self.findings:
            if f.name == name:
                return f
        raise HilumError(f"no finding {name!r}", fix=f"there are: {', '.join(f.name for f in self.findings)}")

    def scalars(self) -> dict[str, float]:
        """``split/metric/finding`` and ``split/metric/macro`` -> value, computable ones only: for a tracker.

        Those of another study begin with its name, so that they stand beside the run's own.
        """
        first = f"{self.origin.study}/" if self.origin.study else ""
        rows = {f.name: f.metrics for f in self.findings} | {"macro": self.macro}
        return {
            f"{first}{self.split}/{metric}/{name}": m.value
            for name, row in rows.items()
            for metric, m in row.items()
            if m.value is not None
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "split": self.split,
            "study": self.origin.study,
            "checkpoint": self.origin.checkpoint,
            "rule": self.rule if isinstance(self.rule, str) else dict(self.rule),
            "delivery": {name: dict(counts) for name, counts in self.origin.delivery.items()},
            "n": len(self.predictions),
            "n_groups": len(np.unique(self.predictions.group_id)),
            "intervals": {"kind": "percentile 95 %", "resampled": "groups", "n": self.n_resamples, "seed": self.seed},
            "findings": [f.to_json() for f in self.findings],
            "macro": {
                "covered": list(self.covered),
                "left_out": self.left_out,
                "metrics": {k: asdict(m) for k, m in self.macro.items()},
            },
            "warnings": self.warnings,
        }

    def write(self, folder: Path | str) -> Path:
        """Writes ``metrics.json`` and ``predictions.parquet`` into ``folder``; returns it."""
        folder = Path(folder)
        self.predictions.write(folder / "predictions.parquet")
        partial = folder / "metrics.json.partial"
        partial.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(folder / "metrics.json")
        return folder

    def compare(self, other: Report, *, metric: str = "auroc", correction: Correction = "bh") -> Comparison:
        """Paired bootstrap of this report (A) against ``other`` (B) on the same samples, with this report's seed."""
        (a, scores_a), (b, scores_b) = self.predictions.repeats(), other.predictions.repeats()
        a.same_samples(b)
        return paired_bootstrap(
            a.targets,
            scores_a,
            scores_b,
            a.group_id,
            names=a.names,
            metric=metric,
            n=self.n_resamples,
            seed=self.seed,
            folds=a.fold,
            correction=correction,
        )


def evaluate(
    predictions: Predictions,
    *,
    validation: Predictions | None = None,
    points: Mapping[str, OperatingPoint] | None = None,
    rule: str | Mapping[str, str] = "youden",
    n: int = 1000,
    seed: int = 0,
    refused: Mapping[str, str] | None = None,
    origin: Origin | None = None,
) -> Report:
    """The report of one split.

    Thresholds come from ``points`` (finding -> operating point) or are chosen by ``rule`` (one, or one a finding) on
    ``validation``; a point or predictions of any other split are refused, and so are validation groups that are also
    evaluated. Seeds and folds in ``predictions`` are averaged inside each redraw, and then there is no operating point:
    a threshold belongs to one model. ``refused`` maps findings to a reason not to judge their scores (never trained).
    """
    splits = np.unique(predictions.split).tolist()
    if len(splits) != 1:
        raise HilumError(f"a report is about one split, not {', '.join(splits)}", fix="use predictions.of_split(name)")
    split = str(splits[0])
    if validation is not None:
        _check_validation(validation, predictions, split)
    base, scores_SNF = predictions.repeats()
    result = intervals(
        base.targets,
        scores_SNF,
        base.group_id,
        names=base.names,
        n=n,
        seed=seed,
        folds=base.fold,
        refused=dict(refused or {}),
    )
    single = len(scores_SNF) == 1 and len(np.unique(base.fold)) == 1
    report = Report(split, base if single else predictions, [], result.macro, result.covered, n, seed, rule=rule)
    report.origin = origin or Origin()
    for f, name in enumerate(base.names):
        known = (base.targets[:, f] == 0) | (base.targets[:, f] == 1)
        positive = base.targets[:, f] == 1
        row = result.metrics[f]
        finding = Finding(
            name,
            int(known.sum()),
            len(np.unique(base.group_id[known])),
            int(positive.sum()),
            len(np.unique(base.group_id[positive])),
            int((~known).sum()),
            {m: row[m] for m in METRICS},
            redrawn=result.redrawn[f],
        )
        report.findings.append(finding)
        if finding.reason:
            finding.point_reason = finding.reason
        elif not single:
            finding.point_reason = "several seeds or folds: a threshold belongs to one model"
        else:
            finding.calibration = _calibration(base.targets[:, f], base.scores[:, f])
            _operate(
                finding, base, f, split, validation, points, rule if isinstance(rule, str) else rule.get(name, "youden")
            )
    report.warnings = _warnings(report)
    return report


def _check_validation(validation: Predictions, evaluated: Predictions, split: str) -> None:
    for name in np.unique(validation.split).tolist():
        if not is_validation(name):
            raise HilumError(
                f"thresholds may be chosen on validation predictions only, not on {name!r}",
                fix="hilum evaluate RUN --split val first; the test split is for judging",
            )
    shared = np.intersect1d(validation.group_id, evaluated.group_id)
    if len(shared) and not is_validation(split):
        raise LeakError(f"{len(shared)} groups stand both in validation and in {split!r}", where=f"first: {shared[0]}")


def _calibration(targets: Any, scores: Any) -> dict[str, float | None]:
    out: dict[str, float | None] = {
        f"ece_{scheme}": closed.ece(targets, scores, scheme=scheme) for scheme in ("mass", "width")
    }
    try:
        out["slope"], out["intercept"] = closed.calibration_line(targets, scores)
    except NotComputable:
        out["slope"] = out["intercept"] = None
    return out


def _operate(
    finding: Finding,
    base: Predictions,
    f: int,
    split: str,
    validation: Predictions | None,
    points: Mapping[str, OperatingPoint] | None,
    rule: str,
) -> None:
    try:
        if points is not None:
            finding.point = points.get(finding.name)
            finding.point_reason = "" if finding.point else "no threshold was given"
        elif validation is None:
            finding.point_reason = "no validation predictions"
        else:
            finding.point = _choose(finding.name, validation, rule)
    except NotComputable as error:
        finding.point_reason = error.what
    if finding.point is not None:
        finding.at = at_threshold(finding.point, base.targets[:, f], base.scores[:, f], base.group_id, split=split)


def _choose(name: str, validation: Predictions, rule: str) -> OperatingPoint:
    splits = np.unique(validation.split).tolist()
    if name not in validation.names:
        raise NotComputable("the validation predictions lack this finding")
    f = validation.names.index(name)
    source = splits[0] if len(splits) == 1 else " and ".join(splits)
    return choose_threshold(
        validation.targets[:, f], validation.scores[:, f], validation.group_id, split=source, rule=rule, finding=name
    )


def _warnings(report: Report) -> list[str]:
    out = [*report.origin.notes]
    for name, counts in report.origin.delivery.items():
        if missing := sum(counts["missing"].values()):
            kinds = ", ".join(f"{n} {reason}" for reason, n in counts["missing"].items())
            lost = "they are not judged" if name == report.name else "thresholds were chosen without them"
            out.append(f"{missing} of {counts['expected']} rows of {name} could not be read ({kinds}): {lost}.")
    if report.left_out:
        names = "; ".join(f"{name}: {reason}" for name, reason in report.left_out.items())
        out.append(f"Not computable, {len(report.left_out)} of {len(report.findings)} findings: {names}.")
    if is_validation(report.split) and not report.origin.study and any(f.point for f in report.findings):
        out.append(
            "Thresholds were chosen on these very validation rows: sensitivity and specificity below are optimistic. "
            "The test split gives fair ones."
        )
    if few := [f.name for f in report.findings if not f.reason and f.n_positive_groups < 30]:
        out.append(f"Fewer than 30 positive groups: {', '.join(few)}. Intervals of such findings are wide and rough.")
    unknown = [f"{f.name} ({f.n_unknown:,})" for f in report.findings if f.n_unknown]
    if unknown:
        out.append(f"Rows without a known label are left out, finding by finding: {', '.join(unknown)}.")
    return out
