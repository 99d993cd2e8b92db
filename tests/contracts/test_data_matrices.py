"""Behaviour matrices of what feeds a run: every augmentation op and every registered source keeps the same promises."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fake.studies import NpyIntake, write_study
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hilum.augment.augmenter import Augmenter
from hilum.augment.ops import OPS
from hilum.core.contracts import check_source
from hilum.core.errors import LeakError
from hilum.core.registry import registry
from hilum.core.types import Batch, Meta, Request, Sample, SampleKey, Window
from hilum.data.collate import collate
from hilum.data.source import StudySource
from hilum.data.split import Split, make_split
from hilum.data.study import Study

# --- augmentations -----------------------------------------------------------------------------------------

AUGMENTATIONS: dict[str, Any] = {
    "resized_crop": [0.5, 1.0], "hflip": 0.5, "vflip": 0.5, "rotate": 20, "translate": 0.1, "scale": [0.8, 1.2],
    "shear": 10, "affine": {"rotate": 10, "translate": 0.05, "scale": [0.9, 1.1], "shear": 5}, "blur": [0.4, 0.9],
    "window": {"shift": 0.05, "width": [0.9, 1.1]}, "rand": {"n": 2, "magnitude": 6}, "brightness": 0.2,
    "contrast": 0.2, "gamma": 0.2, "noise": 0.03,
}  # fmt: skip
GEOMETRIC = {name for name, (kind, _) in OPS.items() if kind == "G"}
SIZE = 24


def test_every_augmentation_is_in_the_matrix() -> None:
    assert set(AUGMENTATIONS) == set(OPS)


@pytest.fixture(params=sorted(AUGMENTATIONS))
def op(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stored(number: int, *, epoch: int = 0) -> Sample:
    """A picture of two values, a mask that says where the brighter one is, and the picture again as a second view."""
    rng = np.random.default_rng(number)
    height, width = 30 + number % 4, 34 - number % 3
    y, x = np.mgrid[:height, :width]
    centre = rng.uniform(8, 22, 2)
    mask = torch.from_numpy(((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 49).astype(np.uint8))[None]
    pixels = (600 + 1800 * mask.int()).to(torch.int16)
    about = {"slope": 1.0, "intercept": 0.0, "window": Window(0.0, 3000.0), "stats": {"mean": 1000.0}}
    meta = Meta(
        f"{number:08x}", f"g{number}", key=SampleKey(7, epoch, number), extra={"image": about, "thermal": about}
    )
    return Sample({"image": pixels, "thermal": pixels.clone(), "mask": mask}, {}, meta)


def augmenter(op: str) -> Augmenter:
    view = {"size": SIZE, "channels": 1}
    views = {"image": view, "image/1": view, "thermal": view, "mask": {}}
    sampling = "linear" if op == "blur" else "nearest"  # nearest has no kernel that a blur could widen
    options = {op: AUGMENTATIONS[op], "interpolation": sampling, "border": 0.0, "fit": "squash"}
    return Augmenter(views, options, norm=dict.fromkeys(("image", "thermal"), ((0.0,), (1.0,))))


def augmented(op: str, numbers: list[int], *, epoch: int = 0, train: bool = True) -> Batch:
    return augmenter(op).apply(collate([stored(n, epoch=epoch) for n in numbers]), train=train)


def rows(batch: Batch, view: str = "image") -> Tensor:
    images = batch.views[view]
    assert isinstance(images, Tensor)
    return images


class TestAugmentations:
    def test_a_sample_does_not_depend_on_its_batch(self, op: str) -> None:
        whole = augmented(op, [0, 1, 2, 3, 4, 5])
        mixed = augmented(op, [4, 1, 5])
        for at, number in enumerate((4, 1, 5)):
            for view in ("image", "image/1", "thermal", "mask"):
                assert torch.equal(rows(mixed, view)[at], rows(whole, view)[number]), (view, number)
            assert torch.equal(rows(augmented(op, [number]))[0], rows(whole)[number])

    def test_it_is_a_function_of_the_key(self, op: str) -> None:
        numbers = list(range(8))
        first, again, later = (rows(augmented(op, numbers, epoch=epoch)) for epoch in (0, 0, 1))
        assert torch.equal(first, again)
        changed = [i for i in numbers if not torch.equal(first[i], later[i])]
        assert len(changed) >= 2, "the next epoch draws anew"
        plain = rows(augmented(op, numbers, train=False))
        assert torch.equal(plain, rows(augmented(op, numbers, epoch=1, train=False)))
        assert not torch.equal(plain, first)

    def test_draws_made_in_a_worker_are_those_made_on_the_device(self, op: str) -> None:
        made, samples = augmenter(op), [stored(n) for n in range(4)]
        drawn = pickle.loads(pickle.dumps([made.draw(s, train=True) for s in samples]))
        assert torch.equal(rows(made.apply(collate(drawn), train=True)), rows(augmented(op, list(range(4)))))

    def test_views_of_one_number_and_the_mask_move_together(self, op: str) -> None:
        batch = augmented(op, list(range(12)))
        assert torch.equal(rows(batch, "image"), rows(batch, "thermal"))
        assert not torch.equal(rows(batch, "image"), rows(batch, "image/1"))
        for meta in batch.meta:
            assert np.array_equal(meta.geometry["image"].matrix, meta.geometry["thermal"].matrix)  # type: ignore[arg-type]
        mask = rows(batch, "mask")
        inside = mask != 255
        bright = rows(batch) > 0.5

        def agreement(a: Tensor) -> float:
            return float((bright == (a == 1))[inside & (a != 255)].float().mean())

        # a blurred rim, and what rand makes of brightness, are no shift of the mask
        assert agreement(mask) >= {"blur": 0.97, "rand": 0.9}.get(op, 1.0)
        assert agreement(mask.roll(1, 0)) < 0.9, "a stranger's mask does not fit"
        if op in GEOMETRIC:
            still = rows(augmented(op, list(range(12)), train=False), "mask")
            assert agreement(still) < agreement(mask), "the mask that did not move does not fit"


# --- sources -----------------------------------------------------------------------------------------------

GROUPS = [f"{i % 12:032x}" for i in range(30)]


def study_of(folder: Path) -> Study:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 4096, (20 + i % 3, 18)).astype(np.uint16) for i in range(len(GROUPS))]
    labels = {"a": [int(g[-1], 16) % 2 for g in GROUPS], "b": [1, 0, float("nan")] * 10}
    return write_study(folder, GROUPS, images=images, labels=labels)


def study_source(study: Study, rows: Any, split: str) -> StudySource:
    kind: Callable[..., StudySource] = registry.load("source", "study")
    return kind(study, rows=rows, side=16, intakes=[NpyIntake()], label_names=["a", "b"], split=split)


SOURCES: dict[str, Callable[[Study, Any, str], Any]] = {"study": study_source}


def test_every_registered_source_is_in_the_matrix() -> None:
    assert set(SOURCES) == set(registry.entries("source"))


class Served(Dataset[Sample]):
    """What a worker process holds of a source."""

    def __init__(self, source: Any, rows: list[int]) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> Sample:
        return ask(self.source, self.rows[at])


def ask(source: Any, row: int) -> Sample:
    found: Sample = source[Request(row, SampleKey.of(0, 0, source.sample_id(row)))]
    return found


def same(a: Sample, b: Sample) -> bool:
    return (
        torch.equal(a.views["image"], b.views["image"])
        and torch.equal(a.targets["labels"].nan_to_num(9), b.targets["labels"].nan_to_num(9))
        and (a.meta.sample_id, a.meta.group_id, a.meta.extra) == (b.meta.sample_id, b.meta.group_id, b.meta.extra)
    )


@pytest.mark.parametrize("kind", sorted(SOURCES))
class TestSources:
    def parts(self, kind: str, folder: Path) -> tuple[Study, Split, dict[str, Any]]:
        study = study_of(folder)
        split = make_split(study, val=0.25, test=0.25, near=False)
        return study, split, {p: SOURCES[kind](study, split.rows(p), p) for p in ("train", "val", "test")}

    def test_it_serves_every_row_of_made_up_data(self, kind: str, tmp_path: Path) -> None:
        study, split, made = self.parts(kind, tmp_path)
        for part, source in made.items():
            check_source(source)
            wanted = split.rows(part)
            served = [ask(source, int(row)) for row in wanted]
            assert len(source) == len(served) == len({s.meta.sample_id for s in served}) > 0
            known = torch.stack([s.targets["labels"] for s in served])
            counts = source.labels.counts[part]
            for f, name in enumerate(source.labels.names):
                column = known[:, f]
                told = (int((column == 1).sum()), int((column == 0).sum()), int(column.isnan().sum()))
                assert counts[name] == told
            for sample, row in zip(served, wanted, strict=True):
                assert sample.meta.group_id == study.column("group_id")[int(row)]
                assert sample.meta.key == SampleKey(0, 0, int(sample.meta.sample_id[:8], 16))

    def test_no_patient_and_no_picture_is_in_two_parts(self, kind: str, tmp_path: Path) -> None:
        study, split, made = self.parts(kind, tmp_path)
        groups = {part: set(source.group_ids) for part, source in made.items()}
        ids = {part: set(source.sample_ids) for part, source in made.items()}
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            assert not groups[one] & groups[other] and not ids[one] & ids[other]
        assert sum(len(i) for i in ids.values()) == len(GROUPS)
        path = study.path / "splits" / f"{split.name}.parquet"
        table = pq.read_table(path).to_pydict()
        table["split"][table["split"].index("train")] = "test"
        pq.write_table(pa.table(table), path)
        with pytest.raises(LeakError, match="digest differs"):
            Split.load(study, split.name).check(study)

    def test_it_survives_the_way_to_a_worker(self, kind: str, tmp_path: Path) -> None:
        _, split, made = self.parts(kind, tmp_path)
        chosen = [int(row) for row in split.rows("train")[:4]]
        here = [ask(made["train"], row) for row in chosen]
        copy = pickle.loads(pickle.dumps(made["train"]))
        assert all(same(ask(copy, row), sample) for row, sample in zip(chosen, here, strict=True))
        loader = DataLoader(
            Served(made["train"], chosen), batch_size=None, num_workers=1, multiprocessing_context="spawn"
        )
        assert all(same(there, sample) for there, sample in zip(loader, here, strict=True))
