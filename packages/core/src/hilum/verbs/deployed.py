"""A model outside its run: preprocessing as data, and the folder of safetensors that brings both back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hilum.augment.policy import Policy
from hilum.augment.reference import apply
from hilum.core.checkpoint import file_sha256, write_json
from hilum.core.errors import HilumError, Unsupported
from hilum.core.objective import Objective
from hilum.core.recipe import Recipe
from hilum.core.types import Batch, LabelSpace, Meta, Pixels, Prediction
from hilum.data.image import CachedImage, reduce_pixels
from hilum.encoders.exported import read_safetensors
from hilum.verbs.loading import LoadedModel, labels_of, load_state
from hilum.verbs.starts import origins, restore_origins

FORMAT = 2
WEIGHTS, CONFIG, PREPROCESSING = "model.safetensors", "config.json", "preprocessing.json"
ABOUT_LOADING = ("stages", "tasks", "run", "engine", "batch", "optim", "schedule", "probes", "plan")


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to network input: area-averaged to ``cache_side`` on the short side (None: not), then the
    evaluation transform of :class:`~hilum.augment.policy.Policy`: ``fit`` to ``size``, window, clip, ``channels``,
    (x - ``mean``) / ``std``."""

    view: str
    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str
    border: str | float
    interpolation: str
    cache_side: int | None

    @staticmethod
    def of(recipe: Recipe, objective: Objective) -> Preprocessing:
        """What evaluation does to the one image view of ``objective``."""
        from hilum.verbs.assembly import normalisation

        kinds = {name: spec.kind for name, spec in objective.views.items()}
        if len(kinds) != 1 or set(kinds.values()) != {"image"}:
            raise Unsupported(
                f"only models of one image can be exported, this one reads {kinds}", where=recipe.where("views"),
                fix="use the encoders under RUN/exported",
            )  # fmt: skip
        name, side = next(iter(kinds)), recipe["cache"]["side"]
        view, (mean, std) = recipe["views"][name], normalisation(recipe)[name]
        channels = int(view.get("channels", 3))
        policy = Policy(recipe["augment"], size=view["size"], channels=channels, mean=mean, std=std, train=False)
        return Preprocessing(
            name, policy.size, channels, policy.mean, policy.std, policy.fit, policy.border, policy.interpolation,
            None if side == "full" else int(side),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Its fields, and in words what a second implementation must do."""
        return asdict(self) | {
            "format": FORMAT,
            "order": [
                "values: stored * slope + intercept; sign flipped where the image displays inverted",
                "area average to cache_side on the short side, never enlarged; long side rounded half up",
                "fit to size, an axis at a time: step r = source pixels an output pixel; average over blocks of f = "
                "2^floor(log2 max(r, 1)) pixels from pixel 0; kernel [t/2, 1 - t, t/2], t = (max(1, r / f)^2 - 1) / 6; "
                "linear read at (u + 0.5) / f - 0.5, half-pixel centres",
                "window: (x - lo) / (hi - lo), lo = centre - width / 2, hi = centre + width / 2; clipped to [0, 1]",
                "one channel repeated to channels; (x - mean) / std",
            ],
            "border": self.border,
            "background": "median of the outermost pixels after the area average, where border is background",
        }

    @staticmethod
    def from_json(told: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_json`."""
        values = {name: told[name] for name in Preprocessing.__dataclass_fields__}
        return Preprocessing(**values | {name: tuple(values[name]) for name in ("size", "mean", "std")})

    def policy(self) -> Policy:
        """The evaluation policy."""
        how = {"fit": self.fit, "border": self.border, "interpolation": self.interpolation}
        return Policy(how, size=self.size, channels=self.channels, mean=self.mean, std=self.std, train=False)

    def reduce(self, image: Pixels) -> CachedImage:
        """As the cache keeps it."""
        return reduce_pixels(image, side=self.cache_side)

    def batch(self, images: Sequence[Pixels]) -> Batch:
        """Decoded images of any size -> one batch of (B, channels, *size)."""
        policy, reduced = self.policy(), [self.reduce(image) for image in images]
        draws = [policy.draw(None, source_size=image.size, stats=image.stats) for image in reduced]
        metas = [Meta(f"{i:08x}", "", extra={self.view: _about(image)}) for i, image in enumerate(reduced)]
        x = apply([image.stored for image in reduced], draws, metas, policy, view=self.view)
        return Batch({self.view: x}, meta=metas, norm={self.view: (self.mean, self.std)})


def _about(image: CachedImage) -> dict[str, Any]:
    return {"slope": image.slope, "intercept": image.intercept, "window": image.window, "stats": image.stats}


@dataclass
class Deployed:
    """A model with its preprocessing. ``config`` is what ``config.json`` says."""

    objective: Objective
    preprocessing: Preprocessing
    labels: LabelSpace | None
    config: Mapping[str, Any]

    @staticmethod
    def of(model: LoadedModel) -> Deployed:
        """A run's model, as it would come back from its export."""
        return Deployed(model.objective, Preprocessing.of(model.recipe, model.objective), model.labels, _config(model))

    @torch.no_grad()
    def predict(self, images: Sequence[Pixels]) -> Prediction:
        """Scores (B, F) of decoded images of any size, each with its window.

        Values of floating point without a window are read as 0..1, uint8 as 0..255.
        """
        return self.objective.predict(self.preprocessing.batch(images))

    @torch.no_grad()
    def embed(self, images: Sequence[Pixels]) -> Tensor:
        """Pooled features (B, E) of the encoder."""
        encoder = self.objective.exported().get("encoder")
        if encoder is None:
            raise Unsupported(f"{type(self.objective).__name__} has no encoder of its own")
        pooled: Tensor = encoder(self.preprocessing.batch(images).views[self.preprocessing.view]).pooled
        return pooled


def save_deployed(model: LoadedModel, folder: Path) -> Deployed:
    """Write weights, configuration and preprocessing into an existing ``folder``; returns what was written."""
    from safetensors.torch import save_file

    deployed = Deployed.of(model)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.objective.state_dict().items()}
    save_file(state, folder / WEIGHTS, {"format": "pt", "hilum": deployed.config["hilum"]})
    write_json(folder / CONFIG, {**deployed.config, "weights_sha256": file_sha256(folder / WEIGHTS)})
    write_json(folder / PREPROCESSING, deployed.preprocessing.to_json())
    return deployed


def load_deployed(folder: Path | str) -> Deployed:
    """The model of a folder that ``hilum export --to safetensors`` wrote; its outputs are the run's, bit for bit,
    on the reference back-end.

    Raises :class:`HilumError` where the folder is no export, was made by a newer format, or its weights were changed.
    """
    from hilum.verbs.assembly import build_objective

    folder = Path(folder)
    config, preprocessing = (_read(folder / name) for name in (CONFIG, PREPROCESSING))
    path = folder / WEIGHTS
    if not path.is_file() or file_sha256(path) != config.get("weights_sha256"):
        raise HilumError(
            f"{WEIGHTS} is missing or not the file that {CONFIG} describes",
            where=str(folder),
            fix="export the run again",
        )
    recipe = Recipe(config["recipe"], f"{folder.name}/{CONFIG}")
    labels = labels_of(config, recipe)
    with torch.random.fork_rng(devices=[]):
        objective, _ = build_objective(recipe, labels, init=dict.fromkeys(recipe.get("encoders", {}), "structure"))
    load_state(objective, read_safetensors(path), where=str(path))
    restore_origins(objective, config.get("starts", {}))
    return Deployed(objective.eval(), Preprocessing.from_json(preprocessing), labels, config)


def _read(path: Path) -> dict[str, Any]:
    try:
        told = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise HilumError(
            f"{path.name} is missing or cannot be read", where=str(path.parent),
            fix="give a folder that `hilum export --to safetensors` wrote",
        ) from error  # fmt: skip
    if told.get("format") != FORMAT:
        raise HilumError(
            f"this hilum reads exports of format {FORMAT}, not {told.get('format')!r}", where=str(path),
            fix="export the run again with this version",
        )  # fmt: skip
    return told


def _config(model: LoadedModel) -> dict[str, Any]:
    """What rebuilds the objective, and where it comes from. Holds no path: starts and the study are left out."""
    import importlib.metadata

    run = model.recipe.get("run", {})
    recipe = {key: value for key, value in model.recipe.data.items() if key not in ABOUT_LOADING}
    recipe["encoders"] = {
        name: {key: value for key, value in told.items() if key != "init"}
        for name, told in model.recipe.get("encoders", {}).items()
    }
    labels = model.labels
    counts = {"train": dict(labels.counts.get("train", {}))} if labels else {}
    return {
        "format": FORMAT,
        "hilum": importlib.metadata.version("hilum"),
        "recipe": recipe | {"engine": {"checkpointing": False}},
        "labels": {"names": list(labels.names), "task": labels.task} if labels else None,
        "counts": counts,
        "index_digest": run.get("index_digest"),
        "split_digest": run.get("split_digest"),
        "config_sha256": model.recipe.sha256,
        "model_sha256": model.sha256,
        "checkpoint": model.checkpoint,
        "starts": origins(model.objective),
    }
