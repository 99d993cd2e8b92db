"""Radiographs with known text for the burned-in detector: simulated pictures, drawn letters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZES = (10, 14, 22)  # font sizes in pixels of an image of 320
PLACES = ("top left", "top right", "bottom left", "bottom right", "centre")
TEXTS = ("DOE JANE 1947-03-12", "ID 4471-0093 M", "SMITH^JOHN 12/03/1951", "ACC 8842017", "Mueller, Karl 07.11.1938")


@dataclass(frozen=True)
class Case:
    """``image`` (H, W) float32 in [0, 1]; ``box`` of its text (top, left, bottom, right), or None."""

    image: NDArray[np.float32]
    box: tuple[int, int, int, int] | None
    size: int = 0
    dark: bool = False
    place: str = ""


def radiographs(
    root: Path, *, patients: int, seed: int, size: int = 320, workers: int = 2
) -> list[NDArray[np.float32]]:
    """Displayed values of a simulated cohort, one array a file, in the order of paths."""
    from hilum.medical.dicom.decode import decode
    from hilum.medical.simulate import simulate_cohort

    cohort = simulate_cohort(
        root, patients=patients, seed=seed, size=size, workers=workers, images_per_patient=(1, 1), progress=False
    )
    images = []
    for path in sorted(p for p in cohort.dicom.rglob("*") if p.is_file()):
        pixels = decode(path)
        stored = pixels.stored[0].astype(np.float32)
        images.append((stored - stored.min()) / max(float(np.ptp(stored)), 1.0))
    return images


def with_text(image: NDArray[np.float32], *, size: int, dark: bool, place: str, seed: int) -> Case:
    """Burn a line of text in: bright or dark letters; dark ones get a light label where the picture is dark."""
    rng = np.random.default_rng(seed)
    font, text = ImageFont.load_default(size), TEXTS[seed % len(TEXTS)]
    left, top, right, bottom = (int(v) for v in font.getbbox(text))
    height, width = bottom - top, right - left
    rows, columns = image.shape
    width = min(width, columns - 8)
    y = {"t": 4, "b": rows - height - 5, "c": (rows - height) // 2}[place[0]]
    x = 4 if "left" in place else columns - width - 5 if "right" in place else (columns - width) // 2
    y, x = (
        int(np.clip(y + rng.integers(-3, 4), 1, rows - height - 1)),
        int(np.clip(x + rng.integers(-3, 4), 1, columns - width - 1)),
    )
    canvas = Image.new("L", (columns, rows))
    ImageDraw.Draw(canvas).text((x - left, y - top), text, fill=255, font=font)
    ink = np.asarray(canvas, np.float32) / 255
    out = image.copy()
    box = (y, x, y + height, x + width)
    around = out[max(y - 3, 0) : y + height + 3, max(x - 3, 0) : x + width + 3]
    if dark and float(np.percentile(around, 30)) < 0.3:
        around[:] = 0.85
    if not dark and float(np.percentile(around, 70)) > 0.75:
        around[:] = 0.2
    return Case(out * (1 - ink) + ink * (0.0 if dark else 1.0), box, size, dark, place)


def cases(images: list[NDArray[np.float32]], *, seed: int) -> Iterator[Case]:
    """Every image once with text, all sizes, polarities and places in turn."""
    kinds = [(s, d, p) for p in PLACES for d in (False, True) for s in SIZES]
    for number, image in enumerate(images):
        size, dark, place = kinds[number % len(kinds)]
        yield with_text(image, size=size, dark=dark, place=place, seed=seed + number)


def told(findings: list[Any], box: tuple[int, int, int, int]) -> bool:
    """Whether a text finding touches the box."""
    for finding in findings:
        a = finding.box
        rows, columns = min(a[2], box[2]) - max(a[0], box[0]), min(a[3], box[3]) - max(a[1], box[1])
        if finding.kind == "text" and rows > 0 and columns > 0:
            return True
    return False
