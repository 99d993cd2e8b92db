"""BraTS 2021 and 2023 of a few small volumes; in 2023 one patient comes at two time points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake.pictures import mask, volume
from fake.truth import Held


def write_brats_2021(root: Path, *, seed: int = 0) -> list[Held]:
    """Two training cases and one of validation, which has no mask."""
    rng, held = np.random.default_rng(seed), []
    for number in (0, 2, 3):
        case = f"BraTS2021_{number:05}"
        split = None if number == 3 else "train"
        paths = [volume(root, f"{case}/{case}_{s}.nii.gz", rng) for s in ("flair", "t1", "t1ce", "t2")]
        held += [Held(path, case, split) for path in paths]
        if split:
            path = mask(root, f"{case}/{case}_seg.nii.gz", rng, values=(0, 1, 2, 4))
            held.append(Held(path, case, split, role="label"))
    return held


def write_brats_2023(root: Path, *, seed: int = 0) -> list[Held]:
    """BraTS-GLI-00006 twice (000 and 001), BraTS-GLI-00008 once."""
    rng, held = np.random.default_rng(seed), []
    for case in ("BraTS-GLI-00006-000", "BraTS-GLI-00006-001", "BraTS-GLI-00008-000"):
        paths = [volume(root, f"{case}/{case}-{s}.nii.gz", rng) for s in ("t1c", "t1n", "t2f", "t2w")]
        held += [Held(path, case[:15], "train") for path in paths]
        path = mask(root, f"{case}/{case}-seg.nii.gz", rng, values=(0, 1, 2, 3))
        held.append(Held(path, case[:15], "train", role="label"))
    return held
