"""A ChestX-ray14 of a few small images, in the published layout and with the published, broken header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
FINDINGS = (
    "No Finding",
    "Cardiomegaly|Effusion",
    "Infiltration",
    "Pleural_Thickening|Nodule|Mass",
    "No Finding",
    "Hernia",
)


def write_nih_cxr14(
    root: Path, *, patients: int = 8, views: int = 2, lists: bool = True, seed: int = 0
) -> list[tuple[str, str, str]]:
    """Write the set; returns (file name, patient, finding labels) of every image."""
    rng = np.random.default_rng(seed)
    lines, rows, held_out, kept = [HEADER], [], [], []
    for patient in range(1, patients + 1):
        for visit in range(views):
            name = f"{patient:08}_{visit:03}.png"
            labels = FINDINGS[(patient * views + visit) % len(FINDINGS)]
            folder = root / f"images_{1 + patient % 3:03}" / "images"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8)).save(folder / name)
            person = f"{patient},{40 + patient},{'MF'[patient % 2]}"
            lines.append(f"{name},{labels},{visit},{person},{('PA', 'AP')[visit % 2]},2682,2749,0.143,0.143,")
            rows.append((name, str(patient), labels))
            (held_out if patient % 4 == 0 else kept).append(name)
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    if lists:
        (root / "train_val_list.txt").write_text("\n".join(kept))
        (root / "test_list.txt").write_text("\n".join(held_out))
    return rows
