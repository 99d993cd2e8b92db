"""From a checked recipe and a study to data: rows by split, the pixel cache, sources, and what feeds the loop."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from hilum.augment import sides
from hilum.augment.augmenter import Augmenter
from hilum.core.contracts import check_source
from hilum.core.errors import HilumError, nearest
from hilum.core.recipe import Recipe
from hilum.core.types import LabelSpace
from hilum.data.cache import ShardCache
from hilum.data.module import DataModule
from hilum.data.source import StudySource, label_values, window_choice
from hilum.data.split import Split
from hilum.data.study import Study
from hilum.parts.window import apply_window
from hilum.verbs.components import build_component, told_by
from hilum.verbs.networks import normalisation
from hilum.verbs.resolving import check_precision

STATISTICS_ROWS = 2000  # images whose pixels give the dataset's mean and standard deviation
REHEARSED = 256  # images of a part, at most, that a dry run looks at
Rows = np.ndarray[Any, Any]


@dataclass
class Rehearsal:
    """The few images of a dry run: in ``folder``, which goes when this does. ``missing`` images lie in no cache yet;
    to read and reduce one took ``seconds_per_image``."""

    folder: TemporaryDirectory[str]
    missing: int
    seconds_per_image: float


@dataclass
class Data:
    """Rows and sources of one run, by split."""

    study: Study
    split: Split | None
    rows: dict[str, Rows]
    labels: LabelSpace | None
    cache: ShardCache
    sources: dict[str, StudySource] = field(default_factory=dict)
    rehearsal: Rehearsal | None = None

    @property
    def split_digest(self) -> str:
        return self.split.digest if self.split is not None else "none"


def label_names(recipe: Recipe, study: Study) -> tuple[str, ...]:
    """Findings a recipe asks for, or all of the study's."""
    wanted = recipe["labels"].get("names")
    known = tuple(study.label_names)
    if not wanted:
        return known
    unknown = [n for n in wanted if n not in known]
    if unknown:
        raise HilumError(
            f"the study has no label {unknown[0]!r}",
            where=recipe.where("labels.names"),
            fix=f"its labels are {', '.join(known) or 'none: index it with --labels'}",
        )
    return tuple(wanted)


def open_data(
    recipe: Recipe,
    study: Study,
    *,
    split_name: str,
    fraction: float = 1.0,
    fold: int | None = None,
    limit: int | None = None,
    need_labels: bool,
    splits: Sequence[str] = ("train", "val"),
    purpose: Literal["train", "dry run", "evaluate"] = "evaluate",
    quiet: bool = False,
) -> Data:
    """Rows by split (checked for leaks), the pixel cache, label space and sources.

    ``limit`` keeps the images of a part whose groups have the lowest ranks of the split: equal from run to run, and
    spread over findings as the split is. To "train" is refused here, before anything is read, where this machine cannot;
    a "dry run" caches the largest images only, and not in the study.
    """
    check_limit(limit)
    if purpose != "evaluate":
        check_precision(recipe)
    split = Split.load(study, split_name)
    split.check(study)
    _refuse_new_groups(study, split)
    among = study.rows(recipe["where"])
    if not len(among):
        _refuse_selection(recipe, study)
    names = label_names(recipe, study) if need_labels or study.label_names else ()
    rows, whole = {}, {}
    for name in splits:
        part = fraction if name == "train" else 1.0
        chosen = whole[name] = split.rows(name, fraction=part, fold=fold, among=among, labels=names)
        rows[name] = chosen if limit is None else lowest_ranked(split, chosen, limit)
        if not len(chosen):
            raise HilumError(
                f"the {name} set is empty: no row of it matches the recipe's where",
                where=recipe.where("where"),
                fix=f"{len(among)} rows match `{recipe['where']}`; check `hilum doctor {study.path.name}` and the split",
            )
    if need_labels and not names:
        raise HilumError(
            "this recipe learns from labels and the study has none",
            fix="hilum index ROOT --out STUDY --labels T.csv --join KEY",
        )
    lateral = _lateral(recipe, names)
    if need_labels and purpose != "evaluate" and "train" in whole:
        _refuse_empty_classes(recipe, study, whole["train"], names)  # a --limit is a try, and may leave one out
    cache, rehearsal = _cached(recipe, study, rows, rehearse=purpose == "dry run", quiet=quiet)
    data = Data(study, split, rows, None, cache, rehearsal=rehearsal)
    # a policy for uncertain labels is a way to train; nobody is judged, or selected, by a guessed truth
    _serve(data, recipe, names, uncertain={"train": recipe["labels"].get("uncertain", "ignore")})
    counts = {name: dict(source.labels.counts.get(name, {})) for name, source in data.sources.items() if source.labels}
    first = next(iter(data.sources.values())).labels
    if first is not None:
        data.labels = LabelSpace(
            first.names, first.task, first.synonyms, first.templates, counts, lateral | first.lateral
        )
    return data


def open_rows(recipe: Recipe, study: Study, rows: dict[str, Any], *, labelled: bool) -> Data:
    """Sources over given rows without a split: embedding, prediction, external validation."""
    names = label_names(recipe, study) if labelled else ()
    for name, chosen in rows.items():
        if not len(chosen):
            raise HilumError(
                f"no image of the study matches `{recipe['where']}`",
                where=recipe.where("where"),
                fix=f"{name}: widen the recipe's where with --set",
            )
    cache, _ = _cached(recipe, study, rows, rehearse=False, quiet=False)
    data = Data(study, None, rows, None, cache)
    _serve(data, recipe, names, uncertain={})
    data.labels = list(data.sources.values())[-1].labels
    return data


def _serve(data: Data, recipe: Recipe, names: tuple[str, ...], *, uncertain: dict[str, Any]) -> None:
    for name, chosen in data.rows.items():
        data.sources[name] = StudySource(
            data.study,
            rows=chosen,
            views=recipe["views"],
            cache=data.cache,
            label_names=names,
            task=recipe.get("task", "multilabel"),
            uncertain=uncertain.get(name, "ignore"),
            split=name,
        )


def _cached(
    recipe: Recipe, study: Study, rows: dict[str, Rows], *, rehearse: bool, quiet: bool
) -> tuple[ShardCache, Rehearsal | None]:
    """The cache of ``rows``, built; to rehearse, of the largest of them, in a folder of its own."""
    side, voi = recipe["cache"]["side"], window_choice(recipe["views"])
    cache = ShardCache(study, side=side, voi=voi, rows=np.unique(np.concatenate(list(rows.values()))))
    if not rehearse:
        cache.build(progress=not quiet)
        return cache, None
    n = min(int(recipe["batch"]["size"]), REHEARSED)
    largest = np.unique(np.concatenate([largest_rows(study, own, n) for own in rows.values()]))
    few, folder = ShardCache(study, side=side, voi=voi, rows=largest), TemporaryDirectory(prefix="hilum-dry-run-")
    few.folder = Path(folder.name)
    built = few.build(progress=not quiet)
    return few, Rehearsal(folder, len(cache.missing()), built.seconds / max(built.read, 1))


def largest_rows(study: Study, rows: Rows, n: int) -> Rows:
    """The ``n`` of ``rows`` whose files have most pixels, largest first."""
    height, width = (np.nan_to_num(np.asarray(study.column(c), float)[rows]) for c in ("rows", "columns"))
    return rows[np.argsort(-height * width, kind="stable")[:n]]


def check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise HilumError(f"--limit must be at least 1, got {limit}", fix="leave it out for every image")


def lowest_ranked(split: Split, rows: Rows, limit: int) -> Rows:
    """At most ``limit`` of ``rows``, ascending: those whose groups have the lowest ranks within their part."""
    relative = np.zeros(len(split.group_id))
    for part in set(split.split):  # a fold mixes groups that were ranked in different parts
        own = split.split == part
        relative[own] = (split.rank[own] + 0.5) / own.sum()
    rank = dict(zip(split.group_id, relative, strict=True))
    group, sample = (np.asarray(split.study.column(c), object)[rows] for c in ("group_id", "sample_id"))
    order = sorted(range(len(rows)), key=lambda i: (rank[group[i]], group[i], sample[i]))
    return np.sort(rows[order[:limit]])


def _lateral(recipe: Recipe, names: Sequence[str]) -> frozenset[str]:
    """Findings that have a side: images are not mirrored where there are any."""
    told = recipe["labels"].get("lateral", ())
    for name in told:
        if name not in names:
            raise HilumError(
                f"labels.lateral names {name!r}, which is no label of this run",
                where=recipe.where("labels.lateral"),
                fix=nearest(name, names) or f"its labels: {', '.join(names) or 'none'}",
            )
    return frozenset(told) | {name for name in names if sides.exchange_words(name) != name}


def _refuse_empty_classes(recipe: Recipe, study: Study, rows: Rows, names: tuple[str, ...]) -> None:
    """A finding that training sees on one side only teaches a constant, and its loss hides that."""
    values = label_values(study, rows, names, recipe["labels"].get("uncertain", "ignore"))
    kinds = ((values == 1).sum(0), (values == 0).sum(0), np.isnan(values).sum(0))
    counts = dict(zip(names, zip(*(kind.tolist() for kind in kinds), strict=True), strict=True))
    empty = [n for n, (positive, negative, _) in counts.items() if not (positive and negative)]
    if not empty:
        return
    usable = [n for n in names if n not in empty]
    told = "; ".join("{} ({} positive, {} negative, {} unknown)".format(n, *counts[n]) for n in empty)
    raise HilumError(
        f"{len(empty)} of {len(names)} labels have no positive or no negative among the {len(rows)} training images: {told}",
        where=recipe.where("labels.names"),
        fix=f'--set "labels.names=[{", ".join(usable)}]", or another split or `where`'
        if usable
        else "make another split, or index with a table in which both kinds occur",
    )


def _refuse_selection(recipe: Recipe, study: Study) -> None:
    """No image meets the recipe's ``where``; often since PNG and JPEG files do not say their modality."""
    silent = [
        name
        for name in ("modality", "body_part", "view")
        if name in recipe["where"] and not any(study.index.column(name)[int(row)].is_valid for row in study.rows(None))
    ]
    why = f": no file says its {' or '.join(silent)}" if silent else ""
    raise HilumError(
        f"none of the {len(study.rows(None))} images of the study meets the recipe's `{recipe['where']}`{why}",
        where=recipe.where("where"),
        fix=f"give the labels table a column {silent[0]} (DX) and index again, or --set \"where=status = 'indexed'\""
        if silent
        else f"widen it with --set where=...; hilum doctor {study.path.name} shows what there is",
    )


def _refuse_new_groups(study: Study, split: Split) -> None:
    """The index digest holds no groups: an edited merges.csv may have made patients that no part of the split knows."""
    served = set(np.asarray(study.column("group_id"), object)[study.rows(None)])
    if new := served - set(split.group_id):
        raise HilumError(
            f"{len(new)} of {len(served)} patients of the index are not in the split {split.name!r}: their grouping changed",
            where=f"splits/{split.name}.parquet",
            fix="make a split of this index under another --name, or undo the change in private/merges.csv",
        )


def grouping_sha256(study: Study) -> str:
    """Of the sorted ``sample_id,group_id`` lines: who is the same patient, which the index digest does not say."""
    pairs = zip(study.column("sample_id"), study.column("group_id"), strict=True)
    lines = sorted(f"{sample},{group or ''}\n" for sample, group in pairs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def labels_sha256(data: Data) -> str:
    """Of the labels as training reads them, before any policy for uncertain ones: rows, findings, values."""
    digest = hashlib.sha256()
    if data.labels is None:
        return digest.hexdigest()
    names = data.labels.names
    for part in sorted(data.rows):
        matrix = data.study.label_matrix(names, data.rows[part])
        digest.update(f"{part} {' '.join(names)} {matrix.shape}\n".encode() + np.nan_to_num(matrix, nan=9).tobytes())
    return digest.hexdigest()


def image_statistics(data: Data, *, split: str = "train") -> tuple[float, float]:
    """Mean and standard deviation of the windowed training pixels in [0, 1] (at most 2,000 images, evenly spread)."""
    rows = np.intersect1d(data.rows[split], data.cache.rows)  # a dry run has cached a few
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), STATISTICS_ROWS)).astype(int)]
    total = squares = count = 0.0
    for row in chosen:
        try:
            image = data.cache.get(int(row))
        except Exception:  # a bad file is accounted for where it is served
            continue
        pixels = image.stored.to(torch.float64) * image.slope + image.intercept
        shown = apply_window(pixels, image.window) if image.window is not None else pixels
        total += float(shown.sum())
        squares += float((shown**2).sum())
        count += shown.numel()
    if not count:
        raise HilumError("no training image could be read", fix="hilum doctor STUDY shows what is wrong with the files")
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean**2, 1e-12))


def feed_of(recipe: Recipe, data: Data, *, bad_path: Path | None = None, train: bool = True) -> DataModule:
    """The data module of a recipe: a plan a split, augmentation drawn in the workers."""
    size, seed = int(recipe["batch"]["size"]), int(recipe["seed"])
    lateral = bool(data.labels and data.labels.lateral)
    backend = str(recipe["engine"]["backend"])
    if not train and backend != "reference":
        backend = "auto"  # a run is evaluated elsewhere, too: back-ends agree far beyond what a score shows
    with told_by(recipe, "augment", "the augmentation"):
        named = data.labels.names if data.labels and train and recipe["augment"].get("hflip_with_sides") else ()
        augmenter = Augmenter(
            recipe["views"], recipe["augment"], norm=normalisation(recipe), lateral=lateral and train,
            side_pairs=sides.pairs_of(named, languages=sides.LEXICON), backend=backend,
        )  # fmt: skip
    plans: dict[str, Any] = {}
    for name, source in data.sources.items():
        check_source(source, where=f"the {name} images")
        if name == "train" and train:
            options = {k: v for k, v in recipe.get("plan", {"name": "shuffle"}).items() if k != "name"}
            kind = recipe.get("plan", {"name": "shuffle"})["name"]
            # a short last step is fine (means are exact); it is left out only where that costs under a tenth of an epoch
            whole = {"drop_last": True} if kind == "shuffle" and len(source) >= 10 * size else {}
            plans[name] = build_component(
                "plan",
                recipe,
                "plan",
                kind,
                source.rows,
                source.sample_ids,
                batch_size=size,
                seed=seed,
                **whole,
                **options,
            )
        else:
            per_device = int(recipe["batch"]["per_device"])
            plans[name] = build_component(
                "plan", recipe, "plan", "sequential", source.rows, source.sample_ids, batch_size=per_device, seed=seed
            )
    return DataModule(
        data.sources,
        plans,
        augmenter=augmenter,
        workers=int(recipe["engine"]["workers"]),
        pin_memory=torch.cuda.is_available(),
        max_bad=float(recipe["engine"]["max_bad"]),
        bad_path=bad_path,
        augment_in_workers=recipe["engine"]["augment"] == "workers",
    )
