"""The examples of CONTRIBUTING.md do what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake.archive import index
from PIL import Image

from hilum.core.contracts import check_expert
from hilum.core.encoder import check_encoder
from hilum.core.errors import HilumError, Unsupported
from hilum.core.types import Batch
from hilum.data.study import Study

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(heading: str) -> dict[str, Any]:
    """The names that the Python block under a heading defines."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    names: dict[str, Any] = {"__name__": "example"}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], names)  # type: ignore[index]  # our own page
    return names


def test_the_dataset(tmp_path: Path) -> None:
    clinic = example("Add a dataset")["Clinic"]()
    (tmp_path / "images").mkdir()
    lines, rng = ["file,case,effusion"], np.random.default_rng(0)
    for n in range(4):
        Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(tmp_path / "images" / f"{n}.png")
        lines.append(f"{n}.png,case{n // 2},{n % 2}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    study = Study(index(tmp_path, tmp_path / "study", dataset=clinic).study)
    assert study.label_names == ("effusion",) and study.about["licence"] == "CC BY 4.0"
    rows = study.rows("status = 'indexed'")
    assert len(rows) == 4 and len(set(np.asarray(study.column("group_id"), object)[rows])) == 2
    (tmp_path / "list.csv").write_text("file,effusion\n0.png,1")
    with pytest.raises(HilumError, match="case"):
        clinic.table(tmp_path)


def test_the_encoder() -> None:
    encoder = example("Add an encoder")["small_net"]("small", view={"channels": 1})
    check_encoder(encoder)
    out = encoder(torch.randn(2, 1, 32, 24))
    assert out.tokens.shape == (2, 12, 32) and out.map().shape == (2, 32, 4, 3)
    with pytest.raises(Unsupported, match="keep"):
        encoder(torch.randn(2, 1, 32, 24), keep=torch.zeros(2, 1, dtype=torch.long))


def test_the_expert() -> None:
    expert = example("Add an expert")["BrightSpots"]()
    check_expert(expert)
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 2] = 10
    (result,) = expert.run(Batch({"image": image}), share=0.5)
    assert result.text == "1 bright pixels" and result.masks["bright"][1, 2] == 1
