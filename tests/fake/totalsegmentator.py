"""A TotalSegmentator v2 of three cases and two structures: ``;`` and a byte order mark in its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake.pictures import mask, volume
from fake.truth import Held

HEADER = "image_id;age;gender;institute;study_type;split;manufacturer;scanner_model;kvp;pathology;pathology_location"
CASES = {
    "s0000": ("train", "25.0;m;D;ct pelvis;train;philips;Brilliance 64;120.0;no_pathology;"),
    "s0001": ("val", "82.0;f;A;ct abdomen;val;siemens;Sensation 64;120.0;tumor;pelvis"),
    "s0002": ("test", "76.0;m;A;ct thorax;test;siemens;Definition AS;100.0;no_pathology;"),
}


def write_totalsegmentator(
    root: Path, *, structures: tuple[str, ...] = ("liver", "rib_left_1"), seed: int = 0
) -> list[Held]:
    rng, held = np.random.default_rng(seed), []
    for case, (split, _) in CASES.items():
        held.append(Held(volume(root, f"{case}/ct.nii.gz", rng), case, split))
        masks = [mask(root, f"{case}/segmentations/{name}.nii.gz", rng) for name in structures]
        held += [Held(path, case, split, role="label") for path in masks]
    lines = [HEADER, *(f"{case};{rest}" for case, (_, rest) in CASES.items())]
    (root / "meta.csv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return held
