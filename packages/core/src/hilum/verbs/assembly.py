"""From a checked recipe and a study to everything a run needs: data, networks, objective, optimisers."""

from __future__ import annotations

import fnmatch
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hilum.augment.augmenter import Augmenter
from hilum.core.adapter import check_adapter, state_sha256
from hilum.core.encoder import check_encoder
from hilum.core.errors import HilumError
from hilum.core.head import check_head
from hilum.core.loop import LoopSettings
from hilum.core.objective import Objective, Parts, check_objective
from hilum.core.recipe import Recipe
from hilum.core.registry import registry
from hilum.core.types import EncoderSpec, LabelSpace
from hilum.data.cache import ShardCache
from hilum.data.module import DataModule
from hilum.data.source import StudySource
from hilum.data.split import Split
from hilum.data.study import Study
from hilum.parts.optimiser import build_optimizer, param_groups, scaled_lr
from hilum.parts.schedules import build_schedule

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STATISTICS_ROWS = 2000  # images whose pixels give the dataset's mean and standard deviation


@dataclass
class Data:
    """Rows and sources of one run, by split."""

    study: Study
    split: Split | None
    rows: dict[str, np.ndarray[Any, Any]]
    labels: LabelSpace | None
    cache: ShardCache
    sources: dict[str, StudySource] = field(default_factory=dict)

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
    quiet: bool = False,
) -> Data:
    """Rows by split (checked for leaks), the pixel cache, label space and sources."""
    split = Split.load(study, split_name)
    split.check(study)
    _refuse_new_groups(study, split)
    among = study.rows(recipe["where"])
    if not len(among):
        _refuse_selection(recipe, study)
    names = label_names(recipe, study) if need_labels or study.label_names else ()
    rows = {}
    for name in splits:
        part = fraction if name == "train" else 1.0
        chosen = split.rows(name, fraction=part, fold=fold, among=among, labels=names)
        rows[name] = chosen[:limit] if limit else chosen
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
    cache = ShardCache(study, side=recipe["cache"]["side"], rows=np.unique(np.concatenate(list(rows.values()))))
    cache.build(progress=not quiet)
    data = Data(study, split, rows, None, cache)
    task = recipe.get("task", "multilabel")
    for name, chosen in rows.items():
        data.sources[name] = StudySource(
            study,
            rows=chosen,
            views=recipe["views"],
            cache=cache,
            label_names=names,
            task=task,
            # a policy for uncertain labels is a way to train; nobody is judged, or selected, by a guessed truth
            uncertain=recipe["labels"].get("uncertain", "ignore") if name == "train" else "ignore",
            split=name,
        )
    counts = {name: dict(source.labels.counts.get(name, {})) for name, source in data.sources.items() if source.labels}
    first = next(iter(data.sources.values())).labels
    if first is not None:
        lateral = frozenset(recipe["labels"].get("lateral", ())) | first.lateral
        data.labels = LabelSpace(first.names, first.task, first.synonyms, first.templates, counts, lateral)
    return data


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


def strategy_of(recipe: Recipe, devices: int) -> str:
    """``single`` on one device, else ``ddp`` or what the recipe says."""
    told = str(recipe["engine"]["strategy"])
    if told not in ("auto", "single", "ddp", "fsdp2"):
        raise HilumError(f"unknown strategy {told!r}", where=recipe.where("engine.strategy"), fix="auto, ddp or fsdp2")
    return ("ddp" if devices > 1 else "single") if told in ("auto", "single") else told


def image_statistics(data: Data, *, split: str = "train") -> tuple[float, float]:
    """Mean and standard deviation of the windowed training pixels in [0, 1] (at most 2,000 images, evenly spread)."""
    from hilum.parts.window import apply_window

    rows = data.rows[split]
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


def resolve(recipe: Recipe, data: Data, *, devices: int) -> Recipe:
    """Every ``auto`` replaced by what it stands for here."""
    changes: dict[str, Any] = {"batch": {}, "engine": {}, "views": {}}
    size = int(recipe["batch"]["size"])
    per_device = recipe["batch"]["per_device"]
    if per_device == "auto":
        cap = 256 if torch.cuda.is_available() else 64
        per_device = min(size // max(devices, 1), cap)
    if not isinstance(per_device, int) or per_device < 1:
        raise HilumError(
            f"batch.per_device must be a whole number or auto, got {per_device!r}",
            where=recipe.where("batch.per_device"),
        )
    changes["batch"] = {"per_device": max(per_device, 1)}
    workers = recipe["engine"]["workers"]
    if workers == "auto":
        workers = 0 if not torch.cuda.is_available() else min(8, max((os.cpu_count() or 2) - 1, 1))
    changes["engine"] = {"workers": int(workers), "devices": devices, "strategy": strategy_of(recipe, devices)}
    for name, view in recipe["views"].items():
        if view.get("normalise", "none") == "dataset":
            mean, std = image_statistics(data)
            changes["views"][name] = {"normalise": [[round(mean, 6)], [round(std, 6)]]}
    return recipe.with_(changes)


def normalisation(recipe: Recipe) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """(mean, std) a view is normalised with, one value a channel."""
    norm = {}
    for name, view in recipe["views"].items():
        channels, rule = int(view.get("channels", 1)), view.get("normalise", "none")
        if rule == "none":
            mean, std = (0.0,) * channels, (1.0,) * channels
        elif rule == "imagenet":
            mean, std = IMAGENET if channels == 3 else ((0.449,) * channels, (0.226,) * channels)
        elif isinstance(rule, list) and len(rule) == 2:
            mean, std = (tuple(v * channels if len(v) == 1 else v) for v in rule)
        else:
            raise HilumError(
                f"unknown normalisation {rule!r}",
                where=recipe.where(f"views.{name}.normalise"),
                fix="dataset, imagenet, none, or [[mean, ...], [std, ...]]",
            )
        norm[name] = (tuple(map(float, mean)), tuple(map(float, std)))
    return norm


def feed_of(recipe: Recipe, data: Data, *, bad_path: Path | None = None, train: bool = True) -> DataModule:
    """The data module of a recipe: a plan a split, augmentation drawn in the workers."""
    size, seed = int(recipe["batch"]["size"]), int(recipe["seed"])
    lateral = bool(data.labels and data.labels.lateral)
    augmenter = Augmenter(recipe["views"], recipe["augment"], norm=normalisation(recipe), lateral=lateral and train)
    plans: dict[str, Any] = {}
    for name, source in data.sources.items():
        if name == "train" and train:
            options = {k: v for k, v in recipe.get("plan", {"name": "shuffle"}).items() if k != "name"}
            kind = recipe.get("plan", {"name": "shuffle"})["name"]
            # a short last step is fine (means are exact); it is left out only where that costs under a tenth of an epoch
            whole = {"drop_last": True} if kind == "shuffle" and len(source) >= 10 * size else {}
            plans[name] = registry.build(
                "plan", kind, source.rows, source.sample_ids, batch_size=size, seed=seed, **whole, **options
            )
        else:
            per_device = int(recipe["batch"]["per_device"])
            plans[name] = registry.build(
                "plan", "sequential", source.rows, source.sample_ids, batch_size=per_device, seed=seed
            )
    return DataModule(
        data.sources,
        plans,
        augmenter=augmenter,
        workers=int(recipe["engine"]["workers"]),
        pin_memory=torch.cuda.is_available(),
        max_bad=float(recipe["engine"]["max_bad"]),
        bad_path=bad_path,
    )


def build_objective(
    recipe: Recipe, labels: LabelSpace | None, *, init: Mapping[str, str] | None = None
) -> tuple[Objective, dict[str, Any]]:
    """Encoders (with their start loaded), adapters, head and objective; and a load report an encoder.

    ``init`` overrides the recipe's start of an encoder; the value ``"structure"`` builds without loading anything.
    """
    torch.manual_seed(int(recipe["seed"]))
    reports: dict[str, Any] = {}
    encoders: dict[str, nn.Module] = {}
    for name, config in recipe.get("encoders", {}).items():
        encoders[name], reports[name] = _encoder(recipe, name, dict(config), (init or {}).get(name))
    adapters: dict[str, nn.Module] = {}
    for name, config in recipe.get("adapters", {}).items():
        options = {k: v for k, v in config.items() if k not in ("name", "encoder")}
        adapter = registry.build("adapter", config["name"], **options)
        check_adapter(adapter, where=recipe.where(f"adapters.{name}"))
        target = config.get("encoder", next(iter(encoders)))
        for parameter in encoders[target].parameters():
            parameter.requires_grad_(False)
        encoders[target] = adapter.attach(encoders[target])
        adapters[name] = adapter
    head = _head(recipe, encoders, labels)
    parts = Parts(encoders, head, adapters, labels, recipe["views"], normalisation(recipe), int(recipe["seed"]))
    options = {k: v for k, v in recipe["objective"].items() if k != "name"}
    accepted = registry.keywords("objective", recipe["objective"]["name"]) or set()
    told = {"task": recipe.get("task"), "pos_weight": recipe["labels"].get("pos_weight")}
    options = {k: v for k, v in told.items() if k in accepted and v is not None} | options
    objective = registry.build("objective", recipe["objective"]["name"], parts, **options)
    check_objective(objective, where=recipe.where("objective"))
    return objective, reports


def _encoder(recipe: Recipe, name: str, config: dict[str, Any], start: str | None) -> tuple[nn.Module, Any]:
    from hilum.encoders.weights import load_weights

    view = recipe["views"].get(config.pop("view", name), {})
    factory, init, freeze = config.pop("name"), start or config.pop("init", "scratch"), config.pop("freeze", [])
    config.pop("init", None)
    if recipe["engine"]["checkpointing"]:
        config["checkpointing"] = True
    encoder = registry.build("encoder", factory, view=view, **config)
    check_encoder(encoder, where=recipe.where(f"encoders.{name}"))
    report = None if init in ("scratch", "structure") else load_weights(encoder, init)
    for parameter_name, parameter in encoder.named_parameters():
        if freeze is True or any(fnmatch.fnmatchcase(parameter_name, f"*{g}*") for g in (freeze or [])):
            parameter.requires_grad_(False)
    return encoder, report


def _head(recipe: Recipe, encoders: Mapping[str, nn.Module], labels: LabelSpace | None) -> nn.Module | None:
    if "head" not in recipe.data:
        return None
    if labels is None:
        raise HilumError("a head needs labels and the study has none", where=recipe.where("head"))
    options = {k: v for k, v in recipe["head"].items() if k != "name"}
    spec: EncoderSpec = next(iter(encoders.values())).spec  # type: ignore[assignment]
    needs = getattr(registry.load("head", recipe["head"]["name"]), "needs", ("pooled",))
    dim = spec.pooled_dim if "pooled" in needs else spec.embed_dim
    head = registry.build("head", recipe["head"]["name"], dim=dim, names=labels.names, task=labels.task, **options)
    check_head(head, where=recipe.where("head"))
    return head  # type: ignore[no-any-return]


def loop_settings(
    recipe: Recipe, *, steps_per_epoch: int, devices: int, monitor: tuple[str, str] | None
) -> LoopSettings:
    """The recipe's optimiser, schedule and engine sections, resolved."""
    optim, schedule, engine = recipe["optim"], recipe["schedule"], recipe["engine"]
    epochs = float(schedule["epochs"])
    total = max(round(epochs * steps_per_epoch), 1)
    size, per_device = int(recipe["batch"]["size"]), int(recipe["batch"]["per_device"])
    accumulate = max(math.ceil(size / (per_device * devices)), 1)
    lr = scaled_lr(optim, size)
    if engine["strategy"] == "fsdp2" and optim.get("ema") is not None:
        raise HilumError(
            "a moving average is not kept under fsdp2", where=recipe.where("optim.ema"), fix="strategy ddp, or no ema"
        )
    if schedule["name"] == "plateau":
        raise HilumError(
            "the plateau schedule is not available", where=recipe.where("schedule.name"), fix="cosine, constant or step"
        )

    def optimisers(objective: nn.Module) -> dict[str, torch.optim.Optimizer]:
        groups = getattr(objective, "groups", None)
        named = groups() if callable(groups) else {"main": objective}
        built = {}
        for name, module in named.items():
            depth_of, layers = depths(module)
            own = {**optim, **optim.get("groups", {}).get(name, {})}
            built[name] = build_optimizer(
                param_groups(
                    module,
                    lr=lr
                    if name == "main"
                    else scaled_lr({k: v for k, v in own.items() if k in ("lr", "base_lr", "lr_per")}, size),
                    weight_decay=float(own.get("weight_decay", 0.0)),
                    rules=own.get("rules", ()),
                    layer_decay=own.get("layer_decay"),
                    depth_of=depth_of,
                    num_layers=layers,
                ),
                own.get("name", "adamw"),
                betas=tuple(own.get("betas", (0.9, 0.999))),
                eps=float(own.get("eps", 1e-8)),
                momentum=float(own.get("momentum", 0.9)),
            )
        return built

    return LoopSettings(
        optimisers=optimisers,
        schedule=build_schedule(schedule, steps_per_epoch=steps_per_epoch, total_steps=total, base_lr=lr),
        total_steps=total,
        total_epochs=math.ceil(epochs),
        accumulate=accumulate,
        clip=optim.get("clip"),
        ema=optim.get("ema"),
        seed=int(recipe["seed"]),
        nan_guard=int(engine["nan_guard"]),
        log_every=int(engine["log_every"]),
        checkpoint_minutes=float(engine["checkpoint_minutes"]),
        monitor=monitor,
        compile=bool(engine["compile"]),
        stop_after=schedule.get("stop_after"),
        shard=shard_blocks if engine["strategy"] == "fsdp2" else None,
    )


def depths(module: nn.Module) -> tuple[Callable[[str], int] | None, int]:
    """(depth of a parameter by name, number of layers) for layer decay, as the encoders in ``module`` tell them.

    What belongs to no encoder (heads, decoders) is as deep as the deepest encoder's output.
    """
    encoders = {
        n: m for n, m in module.named_modules() if callable(getattr(m, "depth_of", None)) and hasattr(m, "num_layers")
    }
    if not encoders:
        return None, 0
    layers = max(int(m.num_layers) for m in encoders.values())

    def depth(name: str) -> int:
        for prefix, encoder in encoders.items():
            if name.startswith(f"{prefix}."):
                return int(encoder.depth_of(name[len(prefix) + 1 :]))
        return layers + 1

    return depth, layers


def shard_blocks(objective: nn.Module, mesh: Any) -> None:
    """FSDP2: every transformer block is a shard unit of its own, the rest is the root's."""
    from torch.distributed.fsdp import fully_shard

    data_mesh = mesh["data_parallel"]
    for module in list(objective.modules()):
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.Sequential | nn.ModuleList):
            for block in blocks:
                fully_shard(block, mesh=data_mesh)
    fully_shard(objective, mesh=data_mesh)


def frozen_hashes(module: nn.Module) -> dict[str, str]:
    """SHA-256 of each direct child, to audit that what a stage froze did not move."""
    return {name: state_sha256(child) for name, child in module.named_children()}


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
    cache = ShardCache(study, side=recipe["cache"]["side"], rows=np.unique(np.concatenate(list(rows.values()))))
    cache.build(progress=True)
    data = Data(study, None, rows, None, cache)
    for name, chosen in rows.items():
        data.sources[name] = StudySource(
            study,
            rows=chosen,
            views=recipe["views"],
            cache=cache,
            label_names=names,
            task=recipe.get("task", "multilabel"),
            split=name,
        )
        data.labels = data.sources[name].labels
    return data
