"""Samples/s from the warm shard cache (side 256) against decoding and reducing 2048 x 2048 files every epoch.

Both sides are `StudySource` behind the same `DataModule` in one process on one thread, augmentation drawn, not applied; the
peer is the source without its cache, which serves the same bits (asserted). The files are in the page cache, so the
peer reads no disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import arguments, claim_ratio, interleaved, ratios, tell, versions
from phantoms import SYNTAXES, study_of

from hilum.augment.augmenter import Augmenter
from hilum.data.cache import ShardCache
from hilum.data.module import DataModule
from hilum.data.plan import Shuffle
from hilum.data.source import StudySource

SIDE = 256
GOALS = {"jpeg2000": 20.0, "jpeg_lossless": 20.0, "jpeg_ls": 20.0, "uncompressed": 5.0}
CODECS = "pydicom, pylibjpeg-openjpeg, python-gdcm, pyjpegls"


def module(source: StudySource) -> DataModule:
    """The loader of both sides."""
    augmenter = Augmenter(
        {"image": {"size": 224, "channels": 3}},
        {"resized_crop": [0.5, 1.0], "hflip": 0.5},
        norm={"image": ((0.5,) * 3, (0.25,) * 3)},
    )
    plan = Shuffle(source.rows, source.sample_ids, batch_size=min(4, len(source)))
    return DataModule({"train": source}, {"train": plan}, augmenter=augmenter, workers=0)


def epochs(feed: DataModule, count: int) -> Callable[[], int]:
    """``count`` whole epochs; the number of samples that came, all of them or an error."""

    def run() -> int:
        came = 0
        for epoch in range(count):
            came += sum(batch.size for step in feed.train_loader(epoch) for batch in step)
        if came != count * len(feed.sources["train"]):
            raise SystemExit(f"{came} samples came")
        return came

    return run


def same(a: Any, b: Any) -> bool:
    """Whether two sources serve the same first image."""
    request = next(iter(a.plan("train").steps(0)))["main"][0]
    pictures = [m.sources["train"][request].views["image"] for m in (a, b)]
    return torch.equal(*pictures)


def main() -> None:
    options = arguments(__doc__, ("--count", {"type": int}), ("--pixels", {"type": int, "default": 2048}))
    torch.set_num_threads(1)
    count = options.count or (3 if options.quick else 16)
    tell(f"{count} files of {options.pixels} x {options.pixels}, 12 bits, a syntax; {versions(*CODECS.split(', '))}")
    with tempfile.TemporaryDirectory() as folder:
        study = study_of(Path(folder), size=(options.pixels, options.pixels), count=count)
        written = np.asarray(study.column("transfer_syntax"), object)
        cache = ShardCache(study, side=SIDE)
        built = cache.build()
        if built.bad:
            raise SystemExit(f"the cache could not be built: {built.bad}")
        for name, syntax in SYNTAXES.items():
            rows = np.array([r for r in study.rows(None).tolist() if written[r] == str(syntax)])
            warm = module(StudySource(study, rows=rows, cache=cache))
            decoded = module(StudySource(study, rows=rows, side=SIDE))
            assert same(warm, decoded), f"{name}: the cache serves other pixels"
            many = max(1, 60 // count)
            epochs(warm, 2)()
            taken = interleaved({"decoded": epochs(decoded, 1), "warm": epochs(warm, many)})
            seconds = {"decoded": taken["decoded"], "warm": [t / many for t in taken["warm"]]}
            rates = {k: count / float(np.median(t)) for k, t in seconds.items()}
            told = f"warm cache {rates['warm']:.0f} samples/s, decoding and reducing {rates['decoded']:.2f}"
            tell(f"{name} ({syntax.name}): {told}")
            claim_ratio(f"cache_{name}", ratios(seconds["decoded"], seconds["warm"]), "x", GOALS[name])


if __name__ == "__main__":
    main()
