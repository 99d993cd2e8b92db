"""Images a second from stored 512 x 512 uint8 to normalised 224 x 224 float32: the compiled back-end and its peers.

Chain: random resized crop (area 0.5-1, aspect 3/4-4/3), flip, rotation of up to 10 degrees, Gaussian blur (sigma 0.1-1.0) on
half of the images (in a second chain on none), brightness and contrast 0.8-1.2, normalisation. Every side gets the same
decoded arrays, a sample at a time or, where it takes batches, a batch; antialiasing is on (albumentations INTER_AREA,
torchvision antialias; kornia and MONAI as their transforms are built). Threads are the same on every side. Where others use the
machine, wall time says little: processor time an image is given beside it, and ratios of both.
"""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from claims import REPEATS, arguments, claim, claim_ratio, ratios, spread, tell, threads, versions
from torch import Tensor

from hilum.augment import compiled, reference
from hilum.augment.policy import Policy
from hilum.core.types import Meta, SampleKey

SIDE, OUT, MEAN, STD = 512, 224, 0.5, 0.25
PEERS = {"albumentations": 2.0, "torchvision": 6.0, "kornia": 6.0, "monai": 6.0}  # goals: how many times faster ours is


def pictures(count: int, channels: int) -> np.ndarray:
    """(count, 512, 512, channels) uint8, smooth with a little noise."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(size=(count, channels, 32, 32)))
    smooth = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").permute(0, 2, 3, 1).numpy()
    return (128 + 45 * smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def ours(images: np.ndarray, *, blur: bool, back_end: Any = compiled) -> Callable[[], Tensor]:
    """A batch at a time, drawing included."""
    channels, epoch = images.shape[-1], iter(range(10**9))
    config: dict[str, Any] = {"resized_crop": [0.5, 1.0], "hflip": 0.5, "rotate": 10}
    config |= ({"blur": {"range": [0.1, 1.0], "p": 0.5}} if blur else {}) | {"brightness": 0.2, "contrast": 0.2}
    policy = Policy(config, size=OUT, channels=channels, mean=MEAN, std=STD, train=True)
    rows = [torch.from_numpy(x).permute(2, 0, 1) for x in images]

    def run() -> Tensor:
        number = next(epoch)
        metas = [Meta(f"{k:08x}", "g", key=SampleKey(0, number, k)) for k in range(len(rows))]
        draws = [policy.draw(m.key, source_size=(SIDE, SIDE)) for m in metas]
        return back_end.apply(rows, draws, metas, policy)

    return run


def albumentations(images: np.ndarray, *, blur: bool) -> Callable[[], Tensor]:
    import albumentations as A
    import cv2

    cv2.setNumThreads(threads())
    chain = A.Compose(
        [
            A.RandomResizedCrop((OUT, OUT), scale=(0.5, 1.0), interpolation=cv2.INTER_AREA),
            A.HorizontalFlip(p=0.5),
            A.Rotate(limit=10, interpolation=cv2.INTER_LINEAR, border_mode=cv2.BORDER_CONSTANT, p=1.0),
            *([A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 1.0), p=0.5)] if blur else []),
            A.RandomBrightnessContrast(0.2, 0.2, brightness_by_max=False, p=1.0),
            A.Normalize(mean=[MEAN] * images.shape[-1], std=[STD] * images.shape[-1]),
        ]
    )

    def run() -> Tensor:
        done = [chain(image=x)["image"] for x in images]
        return torch.from_numpy(np.ascontiguousarray(np.stack(done).transpose(0, 3, 1, 2)))

    return run


def torchvision(images: np.ndarray, *, blur: bool) -> Callable[[], Tensor]:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import v2 as T

    chain = T.Compose(
        [
            T.RandomResizedCrop(OUT, scale=(0.5, 1.0), antialias=True),
            T.RandomHorizontalFlip(0.5),
            T.RandomRotation(10, interpolation=InterpolationMode.BILINEAR),
            *([T.RandomApply([T.GaussianBlur(5, (0.1, 1.0))], p=0.5)] if blur else []),
            T.ColorJitter(brightness=0.2, contrast=0.2),
            T.ToDtype(torch.float32, scale=True),
            T.Normalize([MEAN] * images.shape[-1], [STD] * images.shape[-1]),
        ]
    )
    rows = [torch.from_numpy(x).permute(2, 0, 1).contiguous() for x in images]
    return lambda: torch.stack([chain(x) for x in rows])


def kornia(images: np.ndarray, *, blur: bool) -> Callable[[], Tensor]:
    import kornia.augmentation as K

    chain = K.AugmentationSequential(
        K.RandomResizedCrop((OUT, OUT), scale=(0.5, 1.0), p=1.0),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomRotation(10.0, p=1.0),
        *([K.RandomGaussianBlur((5, 5), (0.1, 1.0), p=0.5)] if blur else []),
        K.RandomBrightness((0.8, 1.2), p=1.0),
        K.RandomContrast((0.8, 1.2), p=1.0),
        K.Normalize(torch.tensor([MEAN] * images.shape[-1]), torch.tensor([STD] * images.shape[-1])),
        data_keys=["input"],
    )
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def run() -> Tensor:
        with torch.no_grad():
            done: Tensor = chain(batch.float() / 255)
        return done

    return run


def monai(images: np.ndarray, *, blur: bool) -> Callable[[], Tensor]:
    import monai.transforms as M

    chain = M.Compose(
        [
            M.ScaleIntensityRange(0, 255, 0, 1),
            M.RandSpatialCrop((int(SIDE * 0.5**0.5),) * 2, max_roi_size=(SIDE, SIDE), random_size=True),
            M.Resize((OUT, OUT), mode="area"),
            M.RandFlip(prob=0.5, spatial_axis=1),
            M.RandRotate(range_x=np.pi / 18, prob=1.0, padding_mode="zeros"),
            *([M.RandGaussianSmooth((0.1, 1.0), (0.1, 1.0), prob=0.5)] if blur else []),
            M.RandScaleIntensity(0.2, prob=1.0),
            M.RandAdjustContrast(prob=1.0, gamma=(0.8, 1.2)),
            M.NormalizeIntensity(subtrahend=MEAN, divisor=STD),
        ]
    )
    rows = [torch.from_numpy(x).permute(2, 0, 1).contiguous() for x in images]
    return lambda: torch.stack([torch.as_tensor(chain(x)) for x in rows])


def clocked(sides: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of the wall clock and of all processors, side by side in every round; who goes first alternates."""
    names, taken = list(sides), {n: {"wall": list[float](), "cpu": list[float]()} for n in sides}
    for number in range(max(repeats, REPEATS)):
        for name in names if number % 2 == 0 else names[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            sides[name]()
            taken[name]["cpu"].append(time.process_time() - cpu)
            taken[name]["wall"].append(time.perf_counter() - wall)
    return taken


def main() -> None:
    options = arguments(__doc__, ("--count", {"type": int}), ("--repeats", {"type": int}))
    torch.set_num_threads(threads())
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    count, repeats = options.count or (8 if options.quick else 32), options.repeats or REPEATS
    peers = {"albumentations": albumentations, "torchvision": torchvision, "kornia": kornia, "monai": monai}
    there = {}
    for name, make in peers.items():
        try:
            importlib.import_module(name)
            there[name] = make
        except ImportError:
            tell(f"{name} is not installed: no figure")
    tell(
        f"{count} images a batch, {torch.get_num_threads()} threads; "
        f"{versions('numba', 'albumentations', 'opencv-python-headless', 'torchvision', 'kornia', 'monai', 'torch')}"
    )
    for channels, kind in ((3, "RGB"), (1, "1-channel")):
        images = pictures(count, channels)
        for blur in (True, False):
            chain = f"{'' if blur else 'no_'}blur_{'rgb' if channels == 3 else 'grey'}"
            sides = {"hilum": ours(images, blur=blur)} | {n: m(images, blur=blur) for n, m in there.items()}
            sides["reference"] = ours(images, blur=blur, back_end=reference)
            for name, side in sides.items():
                done = side()
                assert done.shape == (count, channels, OUT, OUT) and done.dtype == torch.float32, name
            taken = clocked(sides, repeats)
            for name, clocks in taken.items():
                rates = [count / t for t in clocks["wall"]]
                cost = statistics.median(clocks["cpu"]) / count * 1e3
                tell(
                    f"{kind}, {'blur on half' if blur else 'no blur'}, {name}: {statistics.median(rates):.4g} images/s "
                    f"({spread(rates)}), {cost:.3g} ms of processor an image"
                )
            for name, goal in PEERS.items():
                if name not in taken:
                    claim(f"augment_{chain}_over_{name}", None, f"x {name}", goal)
                    continue
                cpu = statistics.median(ratios(taken[name]["cpu"], taken["hilum"]["cpu"]))
                tell(f"{chain}: {cpu:.3g} times less processor time than {name}")
                claim_ratio(
                    f"augment_{chain}_over_{name}",
                    ratios(taken[name]["wall"], taken["hilum"]["wall"]),
                    f"x {name}",
                    goal,
                )


if __name__ == "__main__":
    main()
