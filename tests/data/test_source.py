"""A study's images and labels as samples: units, unknowns, policies and counts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake.studies import NpyIntake, sample_id, write_study

from hilum.core.errors import HilumError, Unsupported
from hilum.core.types import Request, SampleKey
from hilum.data.cache import ShardCache
from hilum.data.source import StudySource
from hilum.data.study import Study

NAN = float("nan")
LABELS = {"x": [1, 0, -1, NAN, 1], "y": [-1, -1, 0, 1, 0]}


def study_of(folder: Path, **options: Any) -> Study:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 4096, (24 + i, 20)).astype(np.uint16) for i in range(5)]
    return write_study(
        folder, list("aabbc"), images=images, **{"labels": LABELS, "inverted": [i == 1 for i in range(5)], **options}
    )


def ask(source: StudySource, row: int) -> Any:
    return source[Request(row, SampleKey.of(3, 1, sample_id(f"img{row:05d}")))]


def source_of(study: Study, **options: Any) -> StudySource:
    return StudySource(study, **{"rows": np.arange(5), "side": 10, "intakes": [NpyIntake()], **options})


def test_samples_are_what_the_file_holds(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    sample = ask(source_of(study, side=None), 1)
    stored = np.load(tmp_path / "root" / "img00001.npy")
    assert sample.views["image"].dtype == torch.uint16
    np.testing.assert_array_equal(sample.views["image"][0].numpy(), stored)
    about = sample.meta.extra["image"]
    assert (about["slope"], about["intercept"], about["inverted"]) == (-0.5, 3.25, True)
    assert about["window"].source == "window 0 (NORMAL)"
    assert about["stats"]["max"] == -0.5 * stored.min() + 3.25
    assert (sample.meta.sample_id, sample.meta.group_id) == (sample_id("img00001"), "a")
    assert sample.meta.key == SampleKey(3, 1, int(sample_id("img00001")[:8], 16))


def test_cached_and_read_samples_are_equal(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    cache = ShardCache(study, side=10, workers=0, intakes=[NpyIntake()])
    cache.build()
    warm = StudySource(study, rows=np.arange(5), cache=cache, label_names=["x"])
    cold = source_of(study, label_names=["x"])
    for row in range(5):
        a, b = ask(warm, row), ask(pickle.loads(pickle.dumps(cold)), row)
        assert torch.equal(a.views["image"], b.views["image"]) and a.views["image"].dtype == b.views["image"].dtype
        assert a.meta.extra == b.meta.extra
        geometry = a.meta.geometry["image"]
        assert geometry.source_size == (24 + row, 20) and geometry.size == tuple(a.views["image"].shape[1:])
        np.testing.assert_array_equal(geometry.matrix, b.meta.geometry["image"].matrix)


def test_a_source_travels_light_and_answers_the_same(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    source = source_of(study, label_names=["x", "y"])
    before = ask(source, 2)
    copy = pickle.loads(pickle.dumps(source))
    assert "index" not in copy.study.__dict__ and "index" in study.__dict__
    after = ask(copy, 2)
    assert torch.equal(before.views["image"], after.views["image"])
    assert torch.equal(before.targets["labels"].nan_to_num(7), after.targets["labels"].nan_to_num(7))


@pytest.mark.parametrize(
    ("uncertain", "expected"),
    [
        ("ignore", [[1, NAN], [0, NAN], [NAN, 0], [NAN, 1], [1, 0]]),
        ("zeros", [[1, 0], [0, 0], [0, 0], [NAN, 1], [1, 0]]),
        ("ones", [[1, 1], [0, 1], [1, 0], [NAN, 1], [1, 0]]),
        ({"y": "ones"}, [[1, 1], [0, 1], [NAN, 0], [NAN, 1], [1, 0]]),
        ({"x": "zeros", "y": "ignore"}, [[1, NAN], [0, NAN], [0, 0], [NAN, 1], [1, 0]]),
    ],
)
def test_uncertain_policies_and_counts(uncertain: Any, expected: list[list[float]], tmp_path: Path) -> None:
    source = source_of(study_of(tmp_path), label_names=["x", "y"], uncertain=uncertain, split="val")
    told = np.stack([ask(source, r).targets["labels"].numpy() for r in range(5)])
    assert told.dtype == np.float32
    np.testing.assert_array_equal(told, np.array(expected, np.float32))
    assert source.labels is not None and source.labels.names == ("x", "y")
    columns = np.array(expected)
    assert source.labels.counts["val"] == {
        n: (int((columns[:, f] == 1).sum()), int((columns[:, f] == 0).sum()), int(np.isnan(columns[:, f]).sum()))
        for f, n in enumerate("xy")
    }


def test_counts_are_of_the_rows_served(tmp_path: Path) -> None:
    source = source_of(study_of(tmp_path), rows=np.array([4, 0]), label_names=["x"])
    assert source.labels is not None and source.labels.counts["train"] == {"x": (2, 0, 0)}
    assert len(source) == 2 and source.sample_id(4) == sample_id("img00004")
    with pytest.raises(HilumError, match="row 1 is not among the 2 rows"):
        ask(source, 1)


def test_classes_become_numbers(tmp_path: Path) -> None:
    study = study_of(tmp_path, labels={"class": ["cat", None, "bird", "cat", "dog"]})
    source = source_of(study, label_names=["bird", "cat", "dog"], task="multiclass")
    assert [ask(source, r).targets["labels"].item() for r in range(5)] == [1, -1, 0, 1, 2]
    assert ask(source, 0).targets["labels"].dtype == torch.int64
    assert source.labels is not None and source.labels.counts["train"]["cat"] == (2, 2, 1)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    with pytest.raises(HilumError, match="more than one of the classes"):
        source_of(
            study_of(tmp_path / "b", labels={"x": [1] * 5, "y": [1] * 5}), label_names=["x", "y"], task="multiclass"
        )
    for options, message in [
        ({"label_names": ["x"], "uncertain": "maybe"}, "cannot be 'maybe'"),
        ({"label_names": ["x"], "uncertain": {"z": "ones"}}, "names 'z', which is not a label"),
        ({"label_names": ["x", "y"], "task": "binary"}, "binary cannot take 2"),
        ({"label_names": ["x"], "task": "multiclass"}, "multiclass cannot take 1"),
        ({"label_names": ["x"], "task": "regress"}, "no label task 'regress'"),
        ({"label_names": ["q"]}, "no label 'q'"),
        ({"rows": []}, "no images to serve"),
    ]:
        with pytest.raises(HilumError, match=message):
            source_of(study, **options)
    with pytest.raises(Unsupported, match="view 'text'"):
        source_of(study, views={"image": {}, "text": {}})
    with pytest.raises(Unsupported, match="one row a request"):
        source_of(study)[Request(0, SampleKey(0, 0, 0), (1,))]
