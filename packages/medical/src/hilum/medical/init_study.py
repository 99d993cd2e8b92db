"""``hilum init-study``: several starts, one network and one budget, paired statistics.

Tayebi Arasteh et al. 2024 (arXiv 2308.07688). What differs from the released code, because it was wrong there:
the checkpoint and the learning rate are chosen on validation patients, never on the test set; redraws are of patients;
false-discovery control runs over all findings at once.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hilum.core.checkpoint import write_json
from hilum.core.errors import HilumError
from hilum.core.recipe import load_recipe


@dataclass
class StudyResult:
    """``reports[start]`` over all folds and seeds; ``comparisons["A against B"]``; the chosen learning rates."""

    reports: dict[str, Any]
    comparisons: dict[str, Any]
    chosen: dict[str, list[float]] = field(default_factory=dict)
    exit_code: int = 0


def init_study(
    study: Path,
    *,
    start: list[str],
    recipe: str = "medical/init-study",
    out: Path | None = None,
    lr: list[float] | None = None,
    seeds: int = 3,
    folds: int = 0,
    fraction: float = 1.0,
    split: str = "default",
    set: list[str] | None = None,
    resamples: int = 1000,
    jobs: int = 1,
) -> StudyResult:
    """Compare starts of one network on one study: same recipe, same budget, same patients.

    Args:
        study: the study that `hilum index` wrote
        start: a start to compare, NAME=INIT (scratch, a run, a weights file, a hub name); give at least two; {fold} in
            INIT is the fold's number, for starts that were pretrained without its patients (`hilum pretrain --fold`)
        recipe: the fine-tuning that every start gets
        out: folder for runs and tables (default STUDY/runs/init-study)
        lr: learning rates to choose from on validation, for every start alike (default: the recipe's)
        seeds: training repeats
        folds: cross-validate over the folds of the split (made with `hilum split --folds K --test 0`)
        fraction: share of the training groups whose labels are used
        split: name of the split
        set: change one setting of the recipe for every start
        resamples: redraws of patients
        jobs: trainings at the same time, each in a process of its own
    """
    starts = _starts(start)
    root = Path(out) if out else Path(study) / "runs" / "init-study"
    if folds:
        _need_folds(Path(study), split, folds)
    _same_settings(
        root,
        starts,
        {
            "recipe": load_recipe(recipe, sets=set or []).sha256,
            "learning_rates": [float(rate) for rate in lr or []],
            "folds": folds,
            "fraction": fraction,
            "split": split,
        },
    )
    common = {"study": Path(study), "recipe": recipe, "fraction": fraction, "split": split}
    cells = [
        Cell(
            root / name / ("whole" if fold is None else f"fold{fold}"), init.replace("{fold}", str(fold)), fold, common
        )
        for fold in (range(folds) if folds else [None])
        for name, init in starts.items()
    ]
    collected: dict[str, list[Any]] = {name: [] for name in starts}
    chosen: dict[str, list[float]] = {name: [] for name in starts}
    for cell, (rate, predictions) in zip(cells, _train_all(cells, lr or [None], seeds, set or [], jobs), strict=True):
        name = cell.base.parent.name
        chosen[name].append(rate if rate is not None else float("nan"))
        collected[name] += predictions
    return _finish(root, collected, chosen, resamples)


@dataclass(frozen=True)
class Cell:
    """One start on one fold: what is trained there shares the patients and the choice of the learning rate."""

    base: Path
    init: str
    fold: int | None
    common: Mapping[str, Any]

    def train(self, rates: Sequence[float | None], seeds: int, sets: Sequence[str]) -> tuple[float | None, list[Any]]:
        """The rate that validation chose, and the test predictions of every seed."""
        common = {**self.common, "init": self.init, "fold": self.fold, "sets": sets}
        rate, first = _choose_rate(self.base, rates, **common)
        folders = [first, *(_run(self.base / f"seed{seed}", rate, seed, **common) for seed in range(1, seeds))]
        return rate, [_predict(folder, fold=self.fold, seed=seed) for seed, folder in enumerate(folders)]


def _train_all(
    cells: Sequence[Cell], rates: Sequence[float | None], seeds: int, sets: Sequence[str], jobs: int
) -> list[tuple[float | None, list[Any]]]:
    if jobs < 1:
        raise HilumError(f"--jobs must be at least 1, got {jobs}")
    if jobs == 1:
        return [cell.train(rates, seeds, sets) for cell in cells]
    spawned = multiprocessing.get_context("spawn")  # torch's threads and CUDA do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=spawned, initializer=_share_cores, initargs=(jobs,)) as pool:
        return [f.result() for f in [pool.submit(cell.train, rates, seeds, sets) for cell in cells]]


def _share_cores(jobs: int) -> None:
    import torch

    torch.set_num_threads(max(torch.get_num_threads() // jobs, 1))


def _starts(told: Sequence[str]) -> dict[str, str]:
    starts = {}
    for text in told:
        name, equals, init = text.partition("=")
        if not equals:
            name, init = Path(text.partition("#")[0]).name, text
        if name in starts:
            raise HilumError(f"two starts are named {name!r}", fix="--start NAME=INIT")
        starts[name] = init
    if len(starts) < 2:
        raise HilumError("a comparison needs at least two starts", fix="--start scratch --start mae=STUDY/runs/mae")
    return starts


def _need_folds(study: Path, name: str, folds: int) -> None:
    """Cross-validation judges a patient once: folds of a split without a test part of its own."""
    from hilum.data.split import Split
    from hilum.data.study import Study

    split = Split.load(Study(study), name)
    made = int(split.fold.max(initial=-1)) + 1
    if made < folds or (split.split == "test").any():
        what = (
            f"has {made} folds, not {folds}"
            if made < folds
            else "keeps a test set, which every fold would be judged on"
        )
        raise HilumError(
            f"the split {name!r} {what}",
            where=str(study),
            fix=f"hilum split {study} --folds {folds} --test 0 --name folds{folds}, then --split folds{folds}",
        )


def _same_settings(root: Path, starts: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    """Finished runs are kept when a study goes on; with other settings they would answer another question."""
    path = root / "settings.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    inits = known.get("starts", {})
    changed = [k for k, v in settings.items() if k in known and known[k] != v]
    changed += [f"start {n}" for n, init in starts.items() if inits.get(n, init) != init]
    if changed:
        raise HilumError(
            f"this folder holds a comparison with other settings ({', '.join(changed)})",
            where=str(root),
            fix="the same settings go on with it; for others choose another --out",
        )
    root.mkdir(parents=True, exist_ok=True)
    write_json(path, {**settings, "starts": {**inits, **starts}})


def _choose_rate(base: Path, rates: Sequence[float | None], **common: Any) -> tuple[float | None, Path]:
    """Train seed 0 at every rate; the best by validation wins (first in case of a tie)."""
    from hilum.verbs.folder import RunFolder

    best: tuple[float, float | None, Path] | None = None
    for number, rate in enumerate(rates):
        folder = _run(base / f"seed0-lr{number}", rate, 0, **common)
        value = RunFolder(folder).facts.get("best")
        score = float(value) if value is not None else float("-inf")
        if best is None or score > best[0]:
            best = (score, rate, folder)
    assert best is not None
    return best[1], best[2]


def _run(
    folder: Path,
    rate: float | None,
    seed: int,
    *,
    study: Path,
    recipe: str,
    init: str,
    fraction: float,
    split: str,
    fold: int | None,
    sets: Sequence[str],
) -> Path:
    """One training, or what is left of it: finished runs are kept, interrupted ones resumed."""
    from hilum.verbs.folder import RunFolder
    from hilum.verbs.training import resume, start

    run = RunFolder(folder)
    if run.facts.get("finished"):
        return folder
    if run.config.is_file():
        _unless_stopped(resume(folder, track=False))
        return folder
    own = [*sets, f"seed={seed}", *([f"optim.lr={rate}"] if rate is not None else [])]
    done = start(
        recipe,
        data=study,
        out=folder,
        sets=own,
        split=split,
        verb="finetune",
        init=init,
        fraction=fraction,
        fold=fold,
        track=False,
        quiet=True,
    )
    _unless_stopped(done)
    print(f"{folder.parent.parent.name} {folder.parent.name} {folder.name}: validation {run.facts.get('best')}")
    return folder


def _unless_stopped(result: Any) -> None:
    """A signal ends the whole comparison: half a training is not judged."""
    if result.exit_code:
        print("the same command goes on with this comparison")
        raise SystemExit(result.exit_code)


def _predict(folder: Path, *, fold: int | None, seed: int) -> Any:
    from hilum.evaluation.predictions import Predictions
    from hilum.verbs.evaluating import open_run, score

    path = folder / "eval" / "test" / "predictions.parquet"
    if not path.is_file():
        model, opened = open_run(folder, splits=("test",))
        made = score(model, opened, "test")
        path.parent.mkdir(parents=True, exist_ok=True)
        made.write(path)
        opened.feed.check_evaluated()  # a test set that lost too much is no basis of a comparison
    made = Predictions.read(path)
    made.fold[:] = -1 if fold is None else fold
    made.seed[:] = seed
    return made


def pooled(parts: Sequence[Any]) -> Any:
    """Predictions of several folds and seeds as one."""
    from hilum.evaluation.predictions import Predictions

    return Predictions.of(
        sample_id=np.concatenate([p.sample_id for p in parts]).tolist(),
        group_id=np.concatenate([p.group_id for p in parts]).tolist(),
        split="test",
        names=parts[0].names,
        targets=np.concatenate([p.targets for p in parts]),
        scores=np.concatenate([p.scores for p in parts]),
        fold=np.concatenate([p.fold for p in parts]).tolist(),
        seed=np.concatenate([p.seed for p in parts]).tolist(),
    )


def _finish(
    root: Path, collected: Mapping[str, Sequence[Any]], chosen: dict[str, list[float]], resamples: int
) -> StudyResult:
    from hilum.evaluation.report import evaluate

    reports = {name: evaluate(pooled(parts), n=resamples) for name, parts in collected.items()}
    names = list(reports)
    comparisons = {
        f"{a} against {b}": reports[a].compare(reports[b]) for i, b in enumerate(names) for a in names[i + 1 :]
    }
    result = StudyResult(reports, comparisons, chosen)
    text = table(result)
    root.mkdir(parents=True, exist_ok=True)
    (root / "table.md").write_text(text + "\n", encoding="utf-8")
    write_json(
        root / "init-study.json",
        {
            "reports": {n: r.to_json() for n, r in reports.items()},
            "comparisons": {n: c.to_json() for n, c in comparisons.items()},
            "learning_rates": {n: [None if r != r else r for r in rates] for n, rates in chosen.items()},
        },
    )
    print(text)
    return result


def table(result: StudyResult) -> str:
    """Markdown: AUROC of every start, mean over findings first, with its deviation over redraws of patients and its
    interval; then the paired differences with adjusted p-values."""
    sd: dict[tuple[str, str], float | None] = {}
    for told, comparison in result.comparisons.items():
        a, _, b = told.partition(" against ")
        for row in (*comparison.rows, comparison.mean):
            sd |= {(a, row.name): row.sd_a, (b, row.name): row.sd_b}

    def cell(metric: Any, deviation: float | None = None) -> str:
        if metric.value is None:
            return f"n/a ({metric.reason})"
        spread = "" if deviation is None else f" ± {deviation:.3f}"
        return f"{metric.value:.3f}{spread} [{metric.lo:.3f}, {metric.hi:.3f}]"

    mean = next(iter(result.comparisons.values())).mean.name
    findings = [f.name for f in next(iter(result.reports.values())).findings]
    columns = ["start", "macro AUROC ± SD [95 % CI]", *findings, "learning rates"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, report in result.reports.items():
        cells = [cell(f.metrics["auroc"], sd.get((name, f.name))) for f in report.findings]
        rates = ", ".join("recipe's" if r != r else f"{r:g}" for r in dict.fromkeys(result.chosen[name]))
        row = [name, cell(report.macro["auroc"], sd.get((name, mean))), *cells, rates]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "| comparison | finding | difference [95 % CI] | p (first not better) | adjusted (FDR) |",
        "|---|---|---|---|---|",
    ]
    for name, comparison in result.comparisons.items():
        for row in (*comparison.rows, comparison.mean):
            lines.append(
                f"| {name} | {row.name} | {cell(row.difference)} | {_p(row.p_a_better, comparison.n)} | "
                f"{_p(row.adjusted_a, comparison.n)} |"
            )
    return "\n".join(lines)


def _p(value: float | None, redraws: int) -> str:
    """A share of redraws; what no redraw showed is below one of them."""
    return "" if value is None else f"{value:.3f}" if value else f"< {1 / redraws:.3g}"
