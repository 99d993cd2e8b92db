"""The readers on original tables, as the torchxrayvision package carries them; read in place, without their images."""

from __future__ import annotations

import gzip
import importlib.util
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake.padchest import COLUMNS
from scipy.ndimage import label

from hilum.core.registry import registry
from hilum.medical.datasets.siim_acr import decode
from hilum.medical.datasets.vindr_cxr import KAGGLE

PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"


@pytest.fixture
def originals() -> Path:
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package torchxrayvision, which carries original tables, is not installed")
    return Path(spec.submodule_search_locations[0]) / "data"


def build(name: str) -> Any:
    return registry.build("dataset", f"medical/{name}")


def test_rsna(originals: Path, tmp_path: Path) -> None:
    """26,684 labelled images, 9,555 boxes on 6,012 of them."""
    with zipfile.ZipFile(originals / "kaggle_stage_2_train_labels.csv.zip") as bundle:
        bundle.extract("stage_2_train_labels.csv", tmp_path)
    dataset = build("rsna-pneumonia")
    table, boxes = dataset.table(tmp_path), dataset.boxes(tmp_path)
    assert len(table) == 26_684 and Counter(table["Target"].to_pylist())[1.0] == 6_012
    assert len(boxes) == 9_555 and len(set(boxes["path"].to_pylist())) == 6_012
    assert not any(table["patient_id"].to_pylist())


def test_siim(originals: Path, tmp_path: Path) -> None:
    (tmp_path / "train-rle.csv").write_bytes(
        gzip.decompress((originals / "siim-pneumothorax-train-rle.csv.gz").read_bytes())
    )
    encoded = build("siim-acr").encoded(tmp_path)
    assert len(encoded) == 12_047 and sum(bool(masks) for masks in encoded.values()) == 2_669
    marked = [masks for masks in encoded.values() if masks][:20]
    for runs in (runs for masks in marked for runs in masks):
        mask = decode(runs, 1024, 1024)
        assert mask.sum() == sum(int(n) for n in runs.split()[1::2])
        assert label(mask, np.ones((3, 3)))[1] <= 10  # a few patches: absolute gaps would scatter it


NAMES = {  # dataset: (file of the package, what the set calls it)
    "nih-cxr14": ("Data_Entry_2017_v2020.csv.gz", "Data_Entry_2017_v2020.csv"),
    "chexpert": ("chexpert_train.csv.gz", "train.csv"),
    "vindr-cxr": ("vinbigdata-train.csv.gz", "train.csv"),
    "padchest": (f"{PADCHEST}.gz", PADCHEST),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_first_rows(originals: Path, tmp_path: Path, name: str) -> None:
    """The whole tables take long: see the slow test."""
    source, target = NAMES[name]
    with gzip.open(originals / source, "rt", encoding="utf-8") as file:
        head = [next(file) for _ in range(1500)]
    if name == "padchest":
        assert head[0].strip().split(",") == COLUMNS and len(COLUMNS) == 36
    (tmp_path / target).write_text("".join(head))
    if name == "chexpert":
        (tmp_path / "valid.csv").write_text("".join(head[:1] + head[1:3]).replace("/train/", "/valid/"))
    table = build(name).table(tmp_path)
    assert 900 < len(table) <= 1502
    assert all(table["patient_id"].to_pylist()) != (name == "vindr-cxr")


@pytest.mark.slow
def test_whole_tables(originals: Path, tmp_path: Path) -> None:
    """Numbers of images, patients, boxes and readings as the sets' own papers say."""
    nih = build("nih-cxr14")
    table, boxes = nih.table(originals), nih.boxes(originals)
    assert len(table) == 112_120 and len(set(table["patient_id"].to_pylist())) == 30_805
    assert Counter(table["Hernia"].to_pylist())[1.0] == 227
    assert len(boxes) == 984 and set(boxes["finding"].to_pylist()) <= set(nih.findings)
    (tmp_path / "train.csv").write_bytes(gzip.decompress((originals / "vinbigdata-train.csv.gz").read_bytes()))
    vindr = build("vindr-cxr").table(tmp_path)
    assert len(vindr) == 15_000 and set(KAGGLE) < set(vindr.column_names)
    assert Counter(vindr["No finding"].to_pylist())[1.0] == 10_606
    assert len(build("vindr-cxr").boxes(tmp_path)) == 67_914 - 31_818  # rows less those of class 14
    padchest = build("padchest").table(originals)
    assert len(padchest) == 160_861 and len(set(padchest["patient_id"].to_pylist())) == 67_625
    assert Counter(padchest["method_label"].to_pylist()) == {"RNN_model": 121_808, "Physician": 39_053}
    assert {"cardiomegaly", "normal", "pleural effusion", "COPD signs"} <= set(padchest.column_names)
