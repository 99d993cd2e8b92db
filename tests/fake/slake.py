"""A SLAKE of four images in three parts, questions in English and Chinese, a mask beside each image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fake.pictures import grey
from fake.truth import Held

PARTS = {"train": (0, 1), "validate": (2,), "test": (3,)}
MODALITIES = ("MRI", "CT", "X-Ray", "CT")


def write_slake(root: Path, *, seed: int = 0) -> list[Held]:
    rng, held = np.random.default_rng(seed), []
    for part, images in PARTS.items():
        records, split = [], {"validate": "val"}.get(part, part)
        for image in images:
            held.append(Held(grey(root, f"imgs/xmlab{image}/source.jpg", rng), None, split))
            held.append(Held(grey(root, f"imgs/xmlab{image}/mask.png", rng), None, split, role="label"))
            for language, question, answer in (("en", "Is the lung healthy?", "No"), ("zh", "肺部健康吗？", "不是")):
                records.append(
                    {
                        "img_id": image, "img_name": f"xmlab{image}/source.jpg", "question": question, "answer": answer,
                        "q_lang": language, "location": "Lung", "modality": MODALITIES[image], "answer_type": "CLOSED",
                        "base_type": "vqa", "content_type": "Abnormality", "triple": ["vhead", "_", "_"],
                        "qid": 100 * image + len(records),
                    }
                )  # fmt: skip
        (root / f"{part}.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return held
