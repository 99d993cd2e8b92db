"""The loader alone (warm cache at side 256, augmentation drawn and applied) against what ViT-S/16 training consumes.

The loader is the one of a run: `DataModule`, with the workers the recipe `medical/cxr-multilabel` resolves to on this
machine and its augmentation, ending in normalised (B, 3, 224, 224) float32. The consumer trains timm's ViT-S/16 on
tensors in memory (forward, backward, fused AdamW), in whichever of fp32 and bf16 autocast is faster here; same cores.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from claims import arguments, claim_ratio, interleaved, ratios, spread, tell, threads, versions
from phantoms import SYNTAXES, study_of

from hilum.augment.augmenter import Augmenter
from hilum.core.recipe import load_recipe
from hilum.data.cache import ShardCache
from hilum.data.module import DataModule
from hilum.data.plan import Shuffle
from hilum.data.source import StudySource

BATCH = 16


def loading(feed: DataModule) -> Callable[[], int]:
    """One epoch of augmented batches; the number of images."""
    epoch = iter(range(10**6))

    def run() -> int:
        images = 0
        for step in feed.train_loader(next(epoch)):
            for batch in step:
                views = feed.augment(batch, train=True).views["image"]
                assert isinstance(views, torch.Tensor) and views.shape[1:] == (3, 224, 224), "not augmented"
                images += len(views)
        return images

    return run


def training(batch: int, *, half: bool) -> Callable[[], float]:
    """One step of ViT-S/16 on a batch in memory."""
    import timm

    net = timm.create_model("vit_small_patch16_224", num_classes=14).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(0, 2, (batch, 14)).float()

    def run() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(net(images), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    return run


def seconds(run: Callable[[], object]) -> float:
    run()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    options = arguments(__doc__, ("--count", {"type": int}), ("--batch", {"type": int}))
    torch.set_num_threads(threads())
    count = options.count or (32 if options.quick else 256)
    batch = options.batch or (4 if options.quick else BATCH)
    recipe = load_recipe("medical/cxr-multilabel")
    with tempfile.TemporaryDirectory() as folder:
        one = {"uncompressed": SYNTAXES["uncompressed"]}
        study = study_of(Path(folder), size=(320, 280), count=count, syntaxes=one)
        cache = ShardCache(study, side=256)
        cache.build()
        source = StudySource(study, rows=study.rows(None), views=recipe["views"], cache=cache)
        norm = {"image": ((0.5,) * 3, (0.25,) * 3)}
        feed = DataModule(
            {"train": source},
            {"train": Shuffle(source.rows, source.sample_ids, batch_size=BATCH)},
            augmenter=Augmenter(recipe["views"], recipe["augment"], norm=norm),
            workers=0,
        )
        load, steps = loading(feed), {half: training(batch, half=half) for half in (False, True)}
        assert load() == count, "the loader left images out"
        half = seconds(steps[True]) < seconds(steps[False])
        taken = interleaved({"loader": load, "training": steps[half]})
    delivered = [count / t for t in taken["loader"]]
    consumed = [batch / t for t in taken["training"]]
    tell(
        f"{count} images of side 256; loader: workers 0 (what the recipe resolves to without a GPU), "
        f"{torch.get_num_threads()} threads; training: batch {batch}, {'bf16' if half else 'fp32'}; {versions('torch', 'timm')}",
        f"loader {statistics.median(delivered):.4g} images/s ({spread(delivered)}), "
        f"ViT-S/16 training {statistics.median(consumed):.3g} images/s ({spread(consumed)})",
    )
    claim_ratio("loader_over_training", ratios(delivered, consumed), "x ViT-S/16 training", 5.0)


if __name__ == "__main__":
    main()
