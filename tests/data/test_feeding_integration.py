"""From files to batches through the real index, intake and study."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hilum.core.errors import HilumError, LeakError
from hilum.core.types import Batch, Ragged
from hilum.data.cache import ShardCache
from hilum.data.index import index_archive
from hilum.data.module import DataModule
from hilum.data.plan import Sequential, Shuffle
from hilum.data.reduce import area_average, reduced_size
from hilum.data.source import StudySource
from hilum.data.split import Split, make_split
from hilum.data.study import Study

pytestmark = pytest.mark.integration


def archive(root: Path, n: int = 24) -> Path:
    """Grey 8 and 16 bit and colour pictures of n / 2 patients, and a table."""
    rng = np.random.default_rng(0)
    root.mkdir()
    rows = []
    for i in range(n):
        shape = (40 + i, 64) if i % 5 else (40 + i, 64, 3)
        image = rng.integers(0, 65536 if i % 3 == 0 and i % 5 else 256, shape)
        mode = np.uint16 if image.max() > 255 else np.uint8
        Image.fromarray(image.astype(mode)).save(root / f"p{i // 2:02d}_{i % 2}.png")
        part = "test" if i // 2 % 3 == 0 else "train"
        rows.append([f"p{i // 2:02d}_{i % 2}.png", f"p{i // 2:02d}", i // 2 % 2, "" if i % 7 == 0 else i % 2, part])
    table = root.parent / "labels.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "patient_id", "a", "b", "split"], *rows])
    return table


def module_of(study: Study, split: Split, cache: ShardCache) -> DataModule:
    names = list(study.label_names)
    sources = {
        part: StudySource(study, rows=split.rows(part), cache=cache, label_names=names, split=part)
        for part in ("train", "test")
    }
    plans = {
        "train": Shuffle(sources["train"].rows, sources["train"].sample_ids, batch_size=5, seed=1),
        "test": Sequential(sources["test"].rows, sources["test"].sample_ids, batch_size=5),
    }
    return DataModule(sources, plans, workers=0, max_bad=0.5)


def pictures(batch: Batch) -> list[torch.Tensor]:
    view = batch.views["image"]
    if isinstance(view, Ragged):
        assert view.grid is not None
        return [r.T.reshape(-1, *g) for r, g in zip(view.rows(), view.grid.tolist(), strict=True)]
    return list(view)


def test_files_to_batches(tmp_path: Path) -> None:
    table = archive(tmp_path / "root")
    result = index_archive(tmp_path / "root", tmp_path / "study", labels=table, workers=0, progress=False)
    assert result.counts["indexed"] == 24
    study = Study(tmp_path / "study")
    cache = ShardCache(study, side=32, workers=0)
    assert cache.build().images == 24
    split = make_split(study, from_table=(table, "split"), val_from_train=0.25, near=cache)
    Split.load(study).check()
    told = {r[0]: r for r in list(csv.reader(table.open()))[1:]}
    by_file = {study.file(row)[0].name: row for row in study.rows(None)}
    assert {n for n, row in by_file.items() if row in split.rows("test")} == {
        n for n, r in told.items() if r[4] == "test"
    }
    assert len(split.groups("val")) == 2

    module = module_of(study, split, cache)
    name_of_sample = {study.column("sample_id")[row]: name for name, row in by_file.items()}
    seen = []
    for batch in [b for micro in module.train_loader(0) for b in micro] + list(module.loader("test")):
        for at, (meta, shown) in enumerate(zip(batch.meta, pictures(batch), strict=True)):
            name = name_of_sample[meta.sample_id]
            seen.append(name)
            stored = np.asarray(Image.open(tmp_path / "root" / name))
            expected = area_average(stored, reduced_size(*stored.shape[:2], 32))
            expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
            assert torch.equal(shown.double(), torch.from_numpy(expected.astype(np.float64)).expand_as(shown))
            a, b = told[name][2], told[name][3]
            assert batch.targets["labels"][at].tolist() == [float(a), float(b or 0)]
            assert batch.valid["labels"][at].tolist() == [True, b != ""]
    parts = [set(split.rows(p).tolist()) for p in ("train", "test")]
    assert sorted(by_file[n] for n in seen) == sorted(set.union(*parts))


def test_a_file_that_is_damaged_after_indexing_is_a_named_bad_sample(tmp_path: Path) -> None:
    table = archive(tmp_path / "root")
    index_archive(tmp_path / "root", tmp_path / "study", labels=table, workers=0, progress=False)
    study = Study(tmp_path / "study")
    split = make_split(study, val=0, near=False)
    victim = int(split.rows("train")[3])
    file = study.file(victim)[0]
    file.write_bytes(file.read_bytes()[:200])
    cache = ShardCache(study, side=32, workers=0)
    assert set(cache.build().bad) == {victim}
    module = module_of(study, split, cache)
    bad = [b for micro in module.train_loader(0) for batch in micro for b in batch.bad]
    assert [(b.sample_id, b.reason) for b in bad] == [(study.column("sample_id")[victim], "truncated_pixels")]
    assert file.name not in bad[0].message


def test_an_official_split_joined_by_patient(tmp_path: Path) -> None:
    table = archive(tmp_path / "root")
    index_archive(tmp_path / "root", tmp_path / "study", labels=table, workers=0, progress=False)
    study = Study(tmp_path / "study")
    rows = [[r[1], r[4]] for r in csv.reader(table.open())]
    leaking = tmp_path / "leaking.csv"
    with leaking.open("w", newline="") as file:
        whole = [[r[0], "test" if r[0] == "p04_1.png" else "train"] for r in list(csv.reader(table.open()))[1:]]
        csv.writer(file).writerows([["path", "part"], *whole])
    with pytest.raises(LeakError, match=r"1 groups in two parts") as caught:
        make_split(study, from_table=(leaking, "part"), near=False)
    row = next(r for r in study.rows(None) if study.file(r)[0].name == "p04_1.png")
    assert study.column("group_id")[row] in str(caught.value) and "p04" not in str(caught.value)
    by_patient = tmp_path / "patients.csv"
    with by_patient.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *sorted({tuple(r) for r in rows[1:]})])
    split = make_split(study, from_table=(by_patient, "split"), name="official", near=False)
    assert {p: len(split.groups(p)) for p in ("train", "test")} == {"train": 8, "test": 4}
    own = make_split(study, from_table=("", "split"), name="labels", near=False)
    assert own.digest == split.digest and own.info["from"] == {"table": "labels.parquet", "column": "split"}
    with pytest.raises(HilumError, match="no column 'fold'"):
        make_split(study, from_table=("", "fold"), near=False)


def test_real_radiographs(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "medical" / "cxr_kermany"
    (tmp_path / "root" / "images").mkdir(parents=True)
    for file in sorted((folder / "images").iterdir())[:24]:
        shutil.copy(file, tmp_path / "root" / "images")
    kept = {f"images/{f.name}" for f in (tmp_path / "root" / "images").iterdir()}
    table = tmp_path / "labels.csv"
    lines = list(csv.reader((folder / "labels.csv").open()))
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([lines[0], *(r for r in lines[1:] if r[0] in kept)])
    index_archive(tmp_path / "root", tmp_path / "study", labels=table, workers=0, progress=False)
    study = Study(tmp_path / "study")
    cache = ShardCache(study, side=64, workers=0)
    split = make_split(study, val=0.1, near=cache)
    split.check()
    steps = list(module_of(study, split, cache).train_loader(0))
    assert sum(b.size for micro in steps for b in micro) == len(split.rows("train"))
    assert all(min(p.shape[1:]) == 64 for micro in steps for b in micro for p in pictures(b))
