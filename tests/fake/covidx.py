"""A COVIDx of a few small images: blank-separated lists, a file name with a blank, patients of several sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake.pictures import grey
from fake.truth import Held

# part -> (patient, file, class, source)
LISTS = {
    "train": (
        ("3", "COVID-00003b.jpg", "COVID-19", "cohen"),
        ("3", "SARS-10.1148rg.242035193-g04mr34g0-Fig8a.jpeg", "pneumonia", "fig1"),
        ("419639-000025", "MIDRC RICORD-1C-419639-000025.png", "COVID-19", "ricord"),
        ("0004cfab-14fd-4e49-80ba-63a80b6bddd6", "0004cfab-14fd-4e49-80ba-63a80b6bddd6.png", "normal", "rsna"),
    ),
    "test": (
        ("36", "COVID-00036.jpg", "COVID-19", "cohen"),
        ("00436515-870c-4b36-a041-de91049b9ab4", "00436515-870c-4b36-a041-de91049b9ab4.png", "pneumonia", "rsna"),
    ),
}


def write_covidx(root: Path, *, seed: int = 0) -> list[Held]:
    """The patient 3 of cohen is not the patient 3 of fig1; rsna's patients are images."""
    rng, held = np.random.default_rng(seed), []
    for part, lines in LISTS.items():
        for patient, file, kind, source in lines:
            path = grey(root, f"{part}/{file}", rng)
            held.append(Held(path, None if source == "rsna" else f"{source} {patient}", part, kind=kind))
        text = "\n".join(" ".join(line) for line in lines)
        (root / f"{part}_COVIDx9A.txt").write_text(text + "\n")
    return held
