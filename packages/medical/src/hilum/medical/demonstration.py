"""``hilum demo``: the whole road on simulated radiographs, through the same functions as the verbs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hilum.core.errors import HilumError


@dataclass(frozen=True)
class Scale:
    """How much the demo does: patients, pixels, epochs and the label fractions that are compared."""

    patients: int
    size: int
    pretrain_epochs: int
    finetune_epochs: dict[float, int]
    broken: int
    images: tuple[int, int] = (1, 3)  # a patient


SCALES = {
    "full": Scale(300, 256, 24, {0.1: 20, 1.0: 42}, 10, (2, 4)),
    "small": Scale(80, 160, 4, {1.0: 4}, 5),
}


def simulate(
    out: Path,
    *,
    patients: int = 240,
    seed: int = 0,
    size: int = 256,
    workers: int = 2,
    broken: int = 0,
    copies: int = 0,
    masks: bool = False,
    fewest: int = 1,
    most: int = 3,
) -> Any:
    """Write an archive of simulated chest radiographs as DICOM, with labels and reports.

    Args:
        out: folder to make
        patients: number of simulated patients
        seed: the same seed gives the same bytes
        size: nominal rows and columns
        workers: processes
        broken: damaged files to add on purpose
        copies: pictures filed once more under another patient
        masks: also write organ and finding masks
        fewest: images of a patient, at least
        most: images of a patient, at most
    """
    from hilum.medical.simulate.cohort import simulate_cohort

    cohort = simulate_cohort(
        out,
        patients=patients,
        seed=seed,
        size=size,
        workers=workers,
        broken=broken,
        copies=copies,
        masks=masks,
        images_per_patient=(fewest, most),
    )
    print(f"simulated radiographs in {out}/dicom, labels in {out}/labels.csv")
    return cohort


def demo(*, out: Path = Path("demo-study"), scale: Literal["full", "small"] = "full", seed: int = 0) -> Any:
    """Simulated DICOMs, index, split, MAE pretraining, fine-tuning with and without it, evaluation, report.

    Args:
        out: folder for everything the demo writes
        scale: full (minutes on two cores) or small (a smoke run)
        seed: seed of simulation, split and training
    """
    from hilum.verbs.evaluating import evaluate
    from hilum.verbs.intake import index
    from hilum.verbs.splitting import split
    from hilum.verbs.training import start

    chosen, root = SCALES[scale], Path(out)
    if root.exists() and any(root.iterdir()):
        if not (root / "demo.json").is_file():
            raise HilumError(f"{root} holds something else", fix="choose another --out")
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / "demo.json").write_text("{}\n")
    archive, study, budget = root / "archive", root / "study", Budget()
    print(f"hilum demo ({scale}): everything is written below {root}\n")
    with budget.part("simulate"):
        fewest, most = chosen.images
        simulate(
            archive,
            patients=chosen.patients,
            seed=seed,
            size=chosen.size,
            broken=chosen.broken,
            fewest=fewest,
            most=most,
        )
    with budget.part("index"):
        index(
            archive / "dicom",
            out=study,
            labels=archive / "labels.csv",
            join="sop_instance_uid",
            reports=archive / "reports.csv",
        )
    with budget.part("split"):
        split(study, seed=seed)
    common = {"data": study, "split": "default"}
    with budget.part("pretrain"):
        sets = [
            f"schedule.epochs={chosen.pretrain_epochs}",
            f"schedule.warmup_epochs={chosen.pretrain_epochs // 10}",
            f"seed={seed}",
        ]
        done = start("medical/demo-cxr", out=study / "runs" / "mae", sets=sets, verb="pretrain", **common)  # type: ignore[arg-type]
    if done.exit_code:
        return done  # a signal: nothing is fine-tuned from half a pretraining
    reports: dict[tuple[str, float], Any] = {}
    for fraction, epochs in chosen.finetune_epochs.items():
        for name, init in (("scratch", "scratch"), ("mae", str(study / "runs" / "mae"))):
            run = study / "runs" / f"{name}-{round(100 * fraction):03d}"
            with budget.part(f"fine-tune {run.name}"):
                done = start(
                    "medical/demo-cxr-finetune",
                    out=run,
                    verb="finetune",
                    init=init,
                    fraction=fraction,
                    sets=[f"schedule.epochs={epochs}", f"seed={seed}"],
                    **common,  # type: ignore[arg-type]
                )
            if done.exit_code:
                return done
            with budget.part("evaluate"):
                other = [study / "runs" / f"scratch-{round(100 * fraction):03d}"] if name == "mae" else None
                reports[name, fraction] = evaluate(run, split="test", against=other)
    print("\n" + summary(reports))
    print("\n" + budget.table())
    best = study / "runs" / f"mae-{round(100 * max(chosen.finetune_epochs)):03d}"
    print(
        f"\nlook at   {best}/eval/test/report.html\n          hilum ui {study}   (MLflow)\n          hilum doctor {study}"
    )
    return reports


def summary(reports: dict[tuple[str, float], Any]) -> str:
    """Macro AUROC of both starts at every label fraction, with intervals over patients."""
    lines = [
        "Macro AUROC on the test patients (95 % interval), simulated radiographs",
        f"  {'labels':<8}{'from scratch':<26}{'from MAE':<26}",
    ]
    for fraction in sorted({f for _, f in reports}):
        cells = []
        for name in ("scratch", "mae"):
            metric = reports[name, fraction].macro.get("auroc")
            told = (
                "not computable"
                if metric is None or metric.value is None
                else f"{metric.value:.3f} [{metric.lo:.3f}, {metric.hi:.3f}]"
            )
            cells.append(f"{told:<26}")
        lines.append(f"  {fraction:<8.0%}" + "".join(cells))
    return "\n".join(lines)


class Budget:
    """Seconds of each part, printed as a table."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        print(f"\n== {name}")
        began = time.monotonic()
        yield
        self.parts.append((name, time.monotonic() - began))

    def table(self) -> str:
        merged: dict[str, float] = {}
        for name, seconds in self.parts:
            merged[name] = merged.get(name, 0.0) + seconds
        total = sum(merged.values())
        lines = ["Time"] + [
            f"  {name:<24}{seconds:>7.1f} s {seconds / total:>6.0%}" for name, seconds in merged.items()
        ]
        return "\n".join([*lines, f"  {'total':<24}{total:>7.1f} s"])
