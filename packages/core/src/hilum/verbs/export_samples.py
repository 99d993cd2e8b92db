"""Images an export is checked on: real ones of the run's validation set, and random ones that may travel with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hilum.core.errors import HilumError
from hilum.core.objective import Objective
from hilum.core.types import Pixels, Window
from hilum.data.image import CachedImage
from hilum.verbs.deployed import Deployed
from hilum.verbs.loading import LoadedModel

EACH = 8
WHOLE = 2  # of them are also compared at the size of their files
TRIED = 64  # validation images read at most to find EACH that can be compared
LINEAR = "{} of the real images display through a window that is not linear; they were compared under a linear one."

FILES = (
    "Given {} whole files instead of what the cache keeps of them, the graph differs by {:.2g} from `hilum evaluate`, whose"
    " cache rounds averaged pixels to the stored type."
)
FLAT = "The outputs hardly vary over these images (by {:.2g}): agreement on them says little."


@dataclass(frozen=True)
class Example:
    """One image: as decoded, and what the trained model says of it.

    ``pixels`` of a real image are those that evaluation reads from the cache, ``whole`` those of its file.
    """

    kind: str  # real | random
    pixels: Pixels
    expected: Tensor
    whole: Pixels | None = None

    @property
    def size(self) -> tuple[int, int]:
        return int(self.pixels.stored.shape[1]), int(self.pixels.stored.shape[2])


def graph_inputs(pixels: Pixels) -> tuple[Tensor, float, float]:
    """Modality values (1, 1, H, W) of a one-channel image, and the ends of its window."""
    assert pixels.window is not None
    stored = torch.from_numpy(pixels.stored[:1].astype(np.float64))
    return (stored * pixels.slope + pixels.intercept).float()[None], pixels.window.lo, pixels.window.hi


def outputs(model: Deployed, pixels: Pixels) -> Tensor:
    """Scores (F,) of one image, or the pooled feature (E,) of a model that makes no scores."""
    if type(model.objective).predict is Objective.predict:
        return model.embed([pixels])[0]
    return model.predict([pixels]).scores[0].float()


def compare(
    examples: Sequence[Example],
    score: Callable[[Pixels], Tensor],
    *,
    tolerance: float,
    notes: Sequence[str],
    where: str,
) -> dict[str, Any]:
    """The table of differences between ``score`` and what was expected, for ``parity.json``.

    Raises :class:`HilumError` where one is above ``tolerance``, or no number.
    """
    import importlib.metadata

    rows: list[dict[str, Any]] = []
    for example in examples:
        told = {"kind": example.kind, "size": list(example.size), "inverted": example.pixels.inverted}
        rows.append({**told, "max_abs_difference": _difference(score(example.pixels), example.expected)})
    if off := [row for row in rows if not row["max_abs_difference"] <= tolerance]:
        worst = max(off, key=lambda row: np.nan_to_num(row["max_abs_difference"], nan=np.inf))
        raise HilumError(
            f"the export disagrees with the trained model on {len(off)} of {len(rows)} images: by "
            f"{worst['max_abs_difference']:.2g} on a {worst['kind']} one of {worst['size'][0]} x {worst['size'][1]} "
            f"(allowed: {tolerance:g})",
            where=where, fix="nothing was written; try the other --to, and report this with the run's config.yaml",
        )  # fmt: skip
    files = [_difference(score(e.whole), e.expected) for e in examples if e.whole is not None]
    spread = float(torch.stack([e.expected for e in examples]).std(0).max())
    said = [*notes, *([FILES.format(len(files), max(files))] if files else [])]
    return {
        "format": 1,
        "tolerance": tolerance,
        "max_abs_difference": max(row["max_abs_difference"] for row in rows),
        "spread_of_outputs": spread,
        "counts": {kind: sum(row["kind"] == kind for row in rows) for kind in ("real", "random")},
        "images": rows,
        "whole_files": files,
        "notes": said + ([FLAT.format(spread)] if spread < 10 * tolerance else []),
        "versions": {name: importlib.metadata.version(name) for name in ("hilum", "torch", "timm")},
    }


def _difference(scores: Tensor, expected: Tensor) -> float:
    return float((scores - expected).abs().max())


# --- random ------------------------------------------------------------------------------------------------


def random_examples(model: Deployed) -> list[Example]:
    """Clouds with noise: at the model's own size, odd, smaller, four times larger, long, larger than the cache keeps;
    negative (inverted) ones, narrow windows among them. Whole numbers, the same at every call."""
    p, rng = model.preprocessing, np.random.default_rng(20)
    h, w = p.size
    side = p.cache_side or 4 * max(h, w)
    sizes = [(h, w), (h + 1, w - 1), (max(h // 2, 2) | 1, max(w // 3, 2)), (4 * h, 3 * w), (2 * h + 3, 5 * w + 1)]
    sizes += [(side + side // 4 + 1, side + 3), (9 * h, w), (2 * h, 2 * w)]
    examples = []
    for i, size in enumerate(sizes):
        values, inverted = _clouds(rng, size), i % 4 == 3
        lo, hi = np.quantile(values, (0.02, 0.98) if i != 4 else (0.4, 0.6)).round().tolist()
        window = Window(-hi, -lo) if inverted else Window(lo, hi)
        pixels = Pixels((-values if inverted else values)[None], window=window, inverted=inverted)
        examples.append(Example("random", pixels, outputs(model, pixels)))
    return examples


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Twelve-bit values (H, W): a coarse random field, enlarged linearly, and noise."""
    coarse = torch.from_numpy(rng.normal(size=(1, 1, 6, 6)))
    field = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()
    values: np.ndarray[Any, np.dtype[np.float32]] = (2000 + 600 * field + 60 * rng.normal(size=size)).clip(0, 4095)
    return values.round().astype(np.float32)


def write_samples(path: Path, examples: Sequence[Example]) -> None:
    """``image.I`` int16 (1, 1, H, W), ``window_centre.I``, ``window_width.I`` (1,) and ``expected.I`` (1, F)."""
    from safetensors.torch import save_file

    tensors = {}
    for i, example in enumerate(examples):
        values, lo, hi = graph_inputs(example.pixels)
        tensors[f"image.{i}"] = values.to(torch.int16)
        tensors[f"window_centre.{i}"], tensors[f"window_width.{i}"] = (
            torch.tensor([(lo + hi) / 2]),
            torch.tensor([hi - lo]),
        )
        tensors[f"expected.{i}"] = example.expected[None].contiguous()
    save_file(tensors, path, {"image": "modality values; cast to float32"})


# --- real --------------------------------------------------------------------------------------------------


def real_examples(
    model: LoadedModel, deployed: Deployed, *, data: Path | None, graph: bool
) -> tuple[list[Example], list[str]]:
    """Up to 8 images of the run's validation set, evenly spread, and what must be said of them.

    Expected outputs come through the evaluation's own augmenter, not through ``deployed``. A ``graph`` takes
    one-channel images without padding, and windows as linear ones.
    """
    place = Path(data) if data is not None else model.study_path
    if not (place / "index.parquet").is_file():
        if data is not None:
            raise HilumError(f"{data} is not a study (it holds no index.parquet)", fix="give the folder of hilum index")
        return [], ["The study was not reachable: no real image was compared (--data STUDY names it)."]
    found: list[tuple[CachedImage, CachedImage | None]] = []
    colour = bent = unread = 0
    for image, file in _validation_images(model, deployed, place):
        if image is None:
            unread += 1
            continue
        if graph and (len(image.stored) != 1 or image.valid is not None):
            colour += len(image.stored) != 1
            continue
        if image.window is None or (graph and image.window.kind != "linear"):
            bent += image.window is not None
            image = replace(image, window=_linear(image))
        compared = file() if graph and len(found) < WHOLE and image.size != image.source_size else None
        found.append((image, compared and replace(compared, window=image.window)))
        if len(found) == EACH:
            break
    if colour and not found:
        raise HilumError(
            "the run's images are in colour, and the graph takes one channel", where=str(place),
            fix="hilum export RUN --to safetensors",
        )  # fmt: skip
    notes = [LINEAR.format(bent)] if bent else []
    if len(found) < EACH:
        notes.append(f"Only {len(found)} validation images could be compared ({unread} could not be read).")
    return [
        Example("real", _decoded(image), _evaluated(model, deployed, image), None if file is None else _decoded(file))
        for image, file in found
    ], notes


def _validation_images(
    model: LoadedModel, deployed: Deployed, place: Path
) -> Iterator[tuple[CachedImage | None, Callable[[], CachedImage]]]:
    """Images as the cache would keep them (None for one that cannot be read), and what reads the whole file."""
    from hilum.data.image import installed_intakes, open_image
    from hilum.data.source import window_choice
    from hilum.data.split import Split
    from hilum.data.study import Study

    study, run = Study(place), model.recipe.get("run", {})
    rows = study.rows(model.recipe["where"])
    if (place / "splits" / f"{run.get('split', 'default')}.json").is_file():
        rows = Split.load(study, run.get("split", "default")).rows("val", fold=run.get("fold"), among=rows)
    spread = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), TRIED)).astype(int))
    intakes, voi = installed_intakes(), window_choice(model.recipe["views"])
    for at in np.random.default_rng(0).permutation(spread) if len(rows) else ():
        read = partial(open_image, study, int(rows[at]), intakes=intakes, voi=voi)
        image = None
        with suppress(Exception):  # a file may be damaged in any way; here another one will do
            image = read(side=deployed.preprocessing.cache_side)
        yield image, partial(read, side=None)


def _linear(image: CachedImage) -> Window:
    """A linear window over what the image's own window spans, or over its values where it has none."""
    window = image.window
    if window is None:
        return Window(image.stats["p005"], image.stats["p995"])
    return Window(window.lo, window.lo + len(window.table) - 1 if window.kind == "table" else window.hi)


def _decoded(image: CachedImage) -> Pixels:
    stored = image.stored.numpy()
    return Pixels(
        stored if len(stored) == 1 else np.moveaxis(stored, 0, -1)[None], image.slope, image.intercept, image.window,
        inverted=image.inverted, valid=None if image.valid is None else image.valid.numpy()[None],
    )  # fmt: skip


def _evaluated(model: LoadedModel, deployed: Deployed, image: CachedImage) -> Tensor:
    """What `hilum evaluate` computes for this image, by the reference back-end."""
    from hilum.augment.augmenter import Augmenter
    from hilum.core.types import Meta, Sample
    from hilum.data.collate import collate
    from hilum.verbs.assembly import normalisation

    recipe, view = model.recipe, deployed.preprocessing.view
    norm = normalisation(recipe)
    augmenter = Augmenter(recipe["views"], recipe["augment"], norm=norm, backend="reference")  # as what is deployed
    about = {"slope": image.slope, "intercept": image.intercept, "window": image.window, "stats": image.stats}
    batch = collate([Sample({view: image.stored}, {}, Meta("00000000", "", extra={view: about}))])
    ready = augmenter.apply(batch, train=False)
    with torch.no_grad():
        if type(model.objective).predict is Objective.predict:
            pooled: Tensor = model.objective.exported()["encoder"](ready.views[view]).pooled[0]
            return pooled
        return model.objective.predict(ready).scores[0].float()
