"""A VQA-RAD of three images of two MedPix cases; its test questions ask about images of the training questions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fake.pictures import grey
from fake.truth import Held

# image -> (case, organ); question: (image, phrase type, answer, answer type)
IMAGES = {"synpic54610.jpg": ("a1", "HEAD"), "synpic29265.jpg": ("a1", "CHEST"), "synpic31400.jpg": ("b2", "ABD")}
QUESTIONS = (
    ("synpic54610.jpg", "freeform", "Yes", "CLOSED"),
    ("synpic54610.jpg", "test_freeform", "no", "CLOSED "),
    ("synpic29265.jpg", "para", "right lower lobe", "OPEN"),
    ("synpic29265.jpg", "test_para", 2, "OPEN"),
    ("synpic31400.jpg", "freeform", "gallbladder", "OPEN"),
)


def write_vqa_rad(root: Path, *, seed: int = 0) -> list[Held]:
    rng, held, records = np.random.default_rng(seed), [], []
    for name, (case, _) in IMAGES.items():
        path = grey(root, f"VQA_RAD Image Folder/{name}", rng)
        held.append(Held(path, f"https://medpix.nlm.nih.gov/case?id={case}"))
    for number, (name, phrase, answer, kind) in enumerate(QUESTIONS):
        case, organ = IMAGES[name]
        records.append(
            {
                "qid": str(number), "phrase_type": phrase, "qid_linked_id": f"03f451ca-{number}",
                "image_case_url": f"https://medpix.nlm.nih.gov/case?id={case}", "image_name": name,
                "image_organ": organ, "evaluation": "not evaluated", "question": "Is  there a lesion?",
                "question_rephrase": "NULL", "question_relation": "NULL", "question_frame": "NULL",
                "question_type": "PRES", "answer": answer, "answer_type": kind,
            }
        )  # fmt: skip
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps(records))
    return held
