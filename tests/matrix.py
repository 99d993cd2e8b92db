"""One declared tiny configuration for everything registered, and a feed of synthetic radiographs to try it on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hilum.augment.augmenter import Augmenter
from hilum.core.loop import Loop, LoopSettings
from hilum.core.objective import Objective, Parts
from hilum.core.types import BadSample, Batch, LabelSpace, Meta, SampleKey, Window
from hilum.data.collate import collate
from hilum.encoders.build import monai_encoder, timm_encoder
from hilum.heads.linear import LinearHead
from hilum.objectives.masked import Masked
from hilum.objectives.simmim import SimMIM
from hilum.objectives.supervised import Supervised

SIZE, NAMES = 32, ("left", "right", "both")
VIEWS = {"image": {"size": SIZE, "channels": 1}}
VIT = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm_encoder("vit_tiny_patch16_224", view=VIEWS["image"], **VIT, **options)


def labels(n: int = 24) -> LabelSpace:
    return LabelSpace(NAMES, "multilabel", counts={"train": dict.fromkeys(NAMES, (n // 3, n - n // 3, 0))})


def parts(encoder: nn.Module, *, head: bool = False) -> Parts:
    torch.manual_seed(1)
    linear = LinearHead(encoder.spec.pooled_dim, NAMES, "multilabel", init_std=0.02) if head else None  # type: ignore[union-attr]
    return Parts({"image": encoder}, linear, labels=labels(), views=VIEWS)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "masked": lambda: Masked(parts(vit()), ratio=0.75, decoder_depth=1, decoder_width=32, decoder_heads=2),
    "simmim": lambda: SimMIM(parts(vit(mask_token=True)), ratio=0.5, unit=2),
    "supervised": lambda: Supervised(parts(vit(), head=True), pos_weight="auto"),
}
ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "timm/vit": vit,
    "timm/resnet": lambda **options: timm_encoder("resnet10t", view=VIEWS["image"], **options),
    "timm/efficientnet": lambda **options: timm_encoder("efficientnet_lite0", view=VIEWS["image"], **options),
    "monai/resnet": lambda **options: monai_encoder("resnet10", view=VIEWS["image"], **options),
    "monai/segresnet": lambda **options: monai_encoder("segresnet", view=VIEWS["image"], **options),
}


def image(number: int) -> tuple[Tensor, Tensor]:
    """A 12-bit picture (1, H, W) of varying size with blobs where its labels say, and the labels (3,)."""
    g = torch.Generator().manual_seed(number)
    height, width = 40 + number % 5, 44 + number % 7
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    left, right = number % 2, (number // 2) % 2
    pixels = 800 + 400 * torch.rand(height, width, generator=g) + 10 * y
    for present, centre in ((left, 12), (right, 32)):
        pixels = pixels + present * 1800 * (((y - 20) ** 2 + (x - centre) ** 2) < 64)
    return pixels.to(torch.uint16)[None], torch.tensor([left, right, left * right], dtype=torch.float32)


def sample(number: int, epoch: int = 0) -> Any:
    from hilum.core.types import Sample

    pixels, target = image(number)
    if number % 4 == 3:
        target[2] = torch.nan  # unknown labels make counts uneven
    sample_id = f"{number * 2654435761 % 2**32:08x}"
    key = SampleKey.of(0, epoch, sample_id)
    about = {"slope": 1.0, "intercept": 0.0, "window": Window(500.0, 3300.0), "stats": {"mean": 1400.0}}
    return Sample(
        {"image": pixels}, {"labels": target}, Meta(sample_id, f"g{number // 2}", key=key, extra={"image": about})
    )


def batch(
    numbers: Sequence[int], *, train: bool = False, epoch: int = 0, config: dict[str, Any] | None = None
) -> Batch:
    """Collated, augmented, normalised."""
    return augmenter(config).apply(collate([sample(n, epoch) for n in numbers]), train=train)


def augmenter(config: dict[str, Any] | None = None) -> Augmenter:
    default = {"resized_crop": [0.7, 1.0], "brightness": [0.9, 1.1]}
    norm = {"image": ((0.4,), (0.25,))}
    return Augmenter(VIEWS, default if config is None else config, norm=norm, backend="reference")  # as goldens are


@dataclass
class MatrixFeed:
    """``n`` samples in keyed order, global steps of ``size``."""

    n: int = 24
    size: int = 8
    bad: list[BadSample] = field(default_factory=list)
    config: dict[str, Any] | None = None  # of the augmentation

    @property
    def steps_per_epoch(self) -> int:
        return self.n // self.size

    def train_loader(
        self, epoch: int, *, start_step: int, rank: int, world: int, accumulate: int
    ) -> Iterable[list[Batch]]:
        from hilum.parts.rng import permutation

        order = permutation(self.n, seed=0, epoch=epoch).tolist()
        steps = []
        for s in range(start_step, self.steps_per_epoch):
            own = order[s * self.size : (s + 1) * self.size][rank::world]
            cut = -(-len(own) // accumulate)
            steps.append([collate([sample(i, epoch) for i in own[a : a + cut]]) for a in range(0, len(own), cut)])
        return Steps(steps)

    def augment(self, batch: Batch, *, train: bool) -> Batch:
        return augmenter(self.config).apply(batch, train=train)

    def account(self, delivered: int, bad: Sequence[BadSample], *, epoch: int) -> None:
        self.bad += bad

    def check_account(self, *, epoch: int, final: bool) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class Steps:
    def __init__(self, steps: list[list[Batch]]) -> None:
        self.steps = steps

    def __iter__(self) -> Any:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def loop(
    objective: Objective, *, steps: int = 6, accumulate: int = 1, folder: Path | None = None, **changes: Any
) -> Loop:
    settings = LoopSettings(
        optimisers=lambda m: {
            "main": torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        },
        schedule=lambda step: 1.0,
        total_steps=steps,
        total_epochs=-(-steps // 3),
        accumulate=accumulate,
        log_every=1,
        **changes,
    )
    return Loop(objective, MatrixFeed(), settings, folder=folder)


def train(
    *, folder: Path, name: str, strategy: str = "auto", devices: int = 1, accumulate: int = 1, steps: int = 3
) -> dict[str, Any]:
    """Final weights and logged losses of a registered objective (run on ranks by name)."""
    from hilum.core.fit import fit

    made = loop(OBJECTIVES[name](), steps=steps, accumulate=accumulate)
    fit(made, devices=devices, strategy=strategy, accelerator="cpu")
    names = [k for k in made.history[0] if k.startswith("train/") and k not in ("train/lr",)]
    return {
        "weights": torch.cat([p.detach().reshape(-1) for p in made.objective.parameters() if p.requires_grad]),
        "losses": {n: [h[n] for h in made.history] for n in names},
    }
