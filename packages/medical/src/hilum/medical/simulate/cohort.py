"""A whole simulated archive on disk: DICOM files, labels, reports, masks, and some files damaged on purpose."""

from __future__ import annotations

import csv
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum.core.errors import HilumError, nearest

from .anatomy import Chest, load_chest
from .chance import cohort_mark, generator
from .findings import FINDINGS, PREVALENCE

Row = dict[str, Any]
SEEN_MM = 6.0  # thickness along the beam from which a structure counts as seen, in masks


@dataclass(frozen=True)
class Cohort:
    """Where a simulated cohort lies. ``dicom`` is the folder to index, joined by ``sop_instance_uid``; ``images`` is a
    table of what was drawn for every file (vendor, view, findings with side and size); ``broken`` (kind, path) and
    ``copies`` (path, path of its original) are relative to ``dicom``."""

    root: Path
    patients: int
    studies: int
    count: int
    findings: tuple[str, ...] = FINDINGS
    broken: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    dicom: Path = field(init=False)
    labels: Path = field(init=False)
    reports: Path = field(init=False)
    images: Path = field(init=False)
    masks: Path = field(init=False)

    def __post_init__(self) -> None:
        names = {
            "dicom": "dicom",
            "labels": "labels.csv",
            "reports": "reports.csv",
            "images": "images.csv",
            "masks": "masks",
        }
        for attribute, name in names.items():
            object.__setattr__(self, attribute, self.root / name)


@dataclass(frozen=True)
class Settings:
    """What every worker needs to know."""

    root: Path
    seed: int
    size: int
    images: tuple[int, int]
    prevalence: Mapping[str, float]
    masks: bool


def _masks(
    chest: Chest, found: Mapping[str, NDArray[np.bool_]], look: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> dict[str, NDArray[np.uint8]]:
    """Projected outlines (H, W) of lungs, heart and findings."""
    volumes = {
        "right lung": chest.lung["right"],
        "left lung": chest.lung["left"],
        "heart": chest.mask(["heart"]),
        **found,
    }
    return {
        name.replace(" ", "_"): (look(volume.astype(np.float32)) > SEEN_MM).astype(np.uint8)
        for name, volume in volumes.items()
    }


def simulate_patient(number: int, settings: Settings) -> list[Row]:
    """Write one patient's files; returns a row an image. Runs in a worker process, on one thread."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same bits whatever the machine's cores; processes share the cores
    try:
        with threadpool_limits(1, user_api="blas"):
            return _simulate_patient(number, settings)
    finally:
        torch.set_num_threads(threads)


def _simulate_patient(number: int, settings: Settings) -> list[Row]:
    from .appearance import develop
    from .cases import body, draw_patient
    from .dicom import identifiers, to_dataset
    from .findings import insert
    from .projection import project, sampling
    from .reports import write_report

    chest = load_chest()
    patient = draw_patient(settings.seed, number, chest, prevalence=settings.prevalence, images=settings.images)
    own, vendor = body(patient, chest), patient.vendor
    size, pixel = vendor.size(settings.size), vendor.pixel_mm(settings.size)
    rows: list[Row] = []
    for study in patient.studies:
        density, found = insert(own, chest, study.findings)
        shape = patient.shape_at(study)
        views = [image.pose.view for image in study.images]
        text = write_report(
            study.findings, generator(settings.seed, "patient", number, "report", study.number), views=views
        )
        for image in study.images:
            positions = sampling(chest, shape, image.pose, size, pixel)
            look = partial(project, positions=positions, size=size, step_mm=chest.spacing_mm[0] * shape.scale[0])
            data = to_dataset(
                develop(look(density), image.exposure, pixel_mm=pixel), patient, study, image, size=settings.size
            )
            study_uid, _, sop_uid = identifiers(patient, study, image)
            path = Path(patient.patient_id, f"S{study.number + 1}", f"I{image.number + 1}{vendor.suffix}")
            (settings.root / "dicom" / path).parent.mkdir(parents=True, exist_ok=True)
            data.save_as(settings.root / "dicom" / path, enforce_file_format=True)
            if settings.masks:
                np.savez_compressed(settings.root / "masks" / f"{sop_uid}.npz", **_masks(chest, found, look))  # type: ignore[arg-type]
            rows.append(
                {
                    "path": path.as_posix(),
                    "sop_instance_uid": sop_uid,
                    "study_instance_uid": study_uid,
                    "patient_id": patient.patient_id,
                    "vendor": vendor.name,
                    "view": image.pose.view,
                    "heart": round(shape.heart, 3),
                    "findings": json.dumps(
                        {name: _plain(asdict(f)) for name, f in study.findings.items()}, sort_keys=True
                    ),
                    "labels": {name: int(name in study.findings) for name in FINDINGS},
                    "report": text,
                }
            )
    return rows


def _plain(finding: Mapping[str, Any]) -> Row:
    plain = {key: finding[key] for key in ("side", "lobe", "size_mm", "strength") if finding[key]}
    return {**plain, "count": len(finding["centres_mm"])} if finding["name"] == "nodule" else plain


def _patients(numbers: Sequence[int], settings: Settings, workers: int) -> Iterator[list[Row]]:
    if workers <= 1:
        yield from (simulate_patient(number, settings) for number in numbers)
        return
    # Forked workers share the volume and need no second import; each runs on one thread, as DataLoader's do.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin" else "spawn"
    load_chest()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method)) as pool:
        tasks = [pool.submit(simulate_patient, number, settings) for number in numbers]
        try:
            for task in as_completed(tasks):
                yield task.result()
        except BrokenProcessPool as error:
            raise HilumError(
                "a simulating process died", fix="run again with fewer workers; memory may be short"
            ) from error
        finally:
            for task in tasks:
                task.cancel()


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _check(
    out: Path, patients: int, size: int, images: tuple[int, int], prevalence: Mapping[str, float]
) -> dict[str, float]:
    for name, value in prevalence.items():
        if name not in FINDINGS:
            raise HilumError(
                f"the simulator knows no finding {name!r}",
                where="prevalence",
                fix=nearest(name, FINDINGS) or f"one of {', '.join(FINDINGS)}",
            )
        if not 0 <= value <= 1:
            raise HilumError(f"prevalence of {name} is {value}", where="prevalence", fix="a number from 0 to 1")
    if patients < 1 or not 40 <= size <= 1024 or not 1 <= images[0] <= images[1]:
        raise HilumError(
            f"cannot simulate {patients} patients of {images[0]} to {images[1]} images at {size} pixels",
            fix="patients >= 1, size 40 to 1024, images_per_patient (fewest >= 1, most)",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise HilumError("the folder for the simulated cohort is not empty", where=str(out), fix="name a new folder")
    return {**PREVALENCE, **prevalence}


def simulate_cohort(
    out: Path | str,
    *,
    patients: int = 240,
    seed: int = 0,
    size: int = 256,
    workers: int = 2,
    broken: int = 0,
    copies: int = 0,
    images_per_patient: tuple[int, int] = (1, 3),
    prevalence: Mapping[str, float] = PREVALENCE,
    uncertain: float = 0.0,
    missing: float = 0.0,
    masks: bool = False,
    progress: bool = True,
) -> Cohort:
    """Simulate an archive of chest radiographs in the empty folder ``out``.

    Writes ``dicom/``, ``labels.csv`` (``sop_instance_uid`` and the five findings as 1, 0; a fraction ``uncertain``
    of the entries as -1, a fraction ``missing`` blank), ``reports.csv`` (``study_instance_uid``, ``text``),
    ``images.csv`` (what was drawn) and, if asked, ``masks/<sop_instance_uid>.npz`` (uint8 (H, W) a structure).
    ``size`` is the nominal matrix; makers differ a little from it. ``broken`` damaged files without labels are
    added, kinds in turn as :data:`.damage.KINDS`; ``copies`` pictures are filed once more under another patient,
    with labels. The same arguments give the same bytes whatever ``workers``, with one version of numpy, torch and
    the codecs. Raises HilumError for arguments out of range and for a folder that is not empty.
    """
    from .damage import KINDS, copy_near, damage

    root, start = Path(out), time.perf_counter()
    settings = Settings(
        root, seed, size, images_per_patient, _check(root, patients, size, images_per_patient, prevalence), masks
    )
    for folder in ("dicom", *(["masks"] if masks else [])):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for done, part in enumerate(_patients(range(patients), settings, workers), 1):
        rows += part
        if progress:
            rate = len(rows) / (time.perf_counter() - start)
            ending = "\n" if done == patients else ""
            told = f"simulated {done}/{patients} patients, {len(rows)} images, {rate:.1f} images/s"
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{told}{ending}")
            elif done == patients or done % max(patients // 4, 1) == 0:  # a log gets a few lines, not a rewritten one
                sys.stderr.write(f"{told}\n")
            sys.stderr.flush()
    rows.sort(key=lambda row: row["path"])
    count, chosen = len(rows), generator(seed, "damage", "sources")

    damaged, copied = [], []
    for number in range(broken):
        kind, source = KINDS[number % len(KINDS)], rows[int(chosen.integers(count))]["path"]
        target = f"INCOMING/{number:04d}.dcm"
        damage(kind, root / "dicom" / source, root / "dicom" / target, seed=seed, number=number)
        damaged.append((kind, target))
    for number in range(copies):
        original = rows[int(chosen.integers(count))]
        target = f"SIMCOPY{cohort_mark(seed)}{number:05d}/S1/I1.dcm"
        study, sop, patient = copy_near(
            root / "dicom" / original["path"], root / "dicom" / target, seed=seed, number=number
        )
        rows.append(
            {**original, "path": target, "study_instance_uid": study, "sop_instance_uid": sop, "patient_id": patient}
        )
        copied.append((target, original["path"]))

    cohort = Cohort(
        root,
        patients,
        len({row["study_instance_uid"] for row in rows}),
        len(rows),
        FINDINGS,
        tuple(damaged),
        tuple(copied),
        time.perf_counter() - start,
    )
    _write(cohort.labels, ["sop_instance_uid", *FINDINGS], (_label_row(row, seed, uncertain, missing) for row in rows))
    reports = {row["study_instance_uid"]: row["report"] for row in rows}
    _write(cohort.reports, ["study_instance_uid", "text"], reports.items())
    drawn = ["path", "sop_instance_uid", "study_instance_uid", "patient_id", "vendor", "view", "heart", "findings"]
    _write(cohort.images, drawn, ([row[name] for name in drawn] for row in rows))
    return cohort


def _label_row(row: Row, seed: int, uncertain: float, missing: float) -> list[object]:
    luck = generator(seed, "labels", row["sop_instance_uid"]).random(len(FINDINGS))
    known = row["labels"].values()
    entries = [
        "" if u < missing else -1 if u < missing + uncertain else label for label, u in zip(known, luck, strict=True)
    ]
    return [row["sop_instance_uid"], *entries]
