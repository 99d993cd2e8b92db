"""The augmenter: parameters in workers, pixels on the device, every view with its geometry."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from hilum.augment import paired
from hilum.augment.augmenter import Augmenter
from hilum.augment.sampling import sample
from hilum.core.errors import HilumError
from hilum.core.types import Batch, Meta, Ragged, Sample, SampleKey, ViewGeometry, Window

AUGMENT = {"resized_crop": [0.5, 1.0], "hflip": 0.5, "rotate": 10, "brightness": 0.2, "noise": 0.02}
VIEWS = {"image": {"size": 16, "channels": 3, "voi": "auto"}, "text": {"max_tokens": 3}}
NORM = {"image": ((0.5,), (0.25,))}


def stored(i: int, *, epoch: int = 0, **views: torch.Tensor) -> Sample:
    rng = np.random.default_rng(i)
    pixels = torch.from_numpy(rng.integers(0, 4000, (1, 20 + i % 5, 30 - i % 3)).astype(np.int16))
    extra = {"image": {"slope": 1.0, "intercept": 0.0, "window": Window(0, 4000), "stats": {"mean": 2000.0}}}
    return Sample({"image": pixels, **views}, {}, Meta(f"{i:08x}", f"g{i}", key=SampleKey(1, epoch, i), extra=extra))


def pack(tensors: list[torch.Tensor]) -> Ragged:
    return Ragged.of([t.permute(1, 2, 0).reshape(-1, len(t)) for t in tensors], grid=[t.shape[1:] for t in tensors])


def collate(samples: list[Sample]) -> Batch:
    views = {name: pack([s.views[name] for s in samples]) for name in samples[0].views}
    return Batch(views=views, meta=[s.meta for s in samples])


class Study(Dataset):
    def __init__(self, augmenter: Augmenter, epoch: int = 0) -> None:
        self.augmenter, self.epoch = augmenter, epoch

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Sample:
        return self.augmenter.draw(stored(i, epoch=self.epoch), train=True)


def outputs(augmenter: Augmenter, loader) -> dict[str, torch.Tensor]:
    done = [augmenter.apply(batch, train=True) for batch in loader]
    return {m.sample_id: x for batch in done for m, x in zip(batch.meta, batch.views["image"], strict=True)}


def test_workers_batches_order_and_resuming_do_not_matter() -> None:
    augmenter = Augmenter(VIEWS, AUGMENT, norm=NORM)
    study = Study(augmenter)
    whole = outputs(augmenter, DataLoader(study, batch_size=12, collate_fn=collate))
    assert len(whole) == 12
    order = [7, 3, 11, 0, 5, 1, 9, 2, 10, 4, 8, 6]
    loaders = {
        "two workers": DataLoader(study, batch_size=5, collate_fn=collate, num_workers=2),
        "another order": DataLoader(study, batch_size=1, sampler=order, collate_fn=collate),
        "resumed": DataLoader(study, batch_size=3, sampler=order[6:], collate_fn=collate),
        "drawn on the device's side": [collate([stored(i) for i in range(12)])],
    }
    for name, loader in loaders.items():
        for sample_id, x in outputs(augmenter, loader).items():
            assert torch.equal(x, whole[sample_id]), name
    next_epoch = outputs(augmenter, DataLoader(Study(augmenter, 1), batch_size=12, collate_fn=collate))
    assert all(not torch.equal(next_epoch[k], whole[k]) for k in whole)


def test_apply_gives_dense_views_norm_and_geometry() -> None:
    augmenter = Augmenter(VIEWS, AUGMENT, norm=NORM)
    samples = [augmenter.draw(stored(i), train=True) for i in range(3)]
    assert json.loads(json.dumps(samples[0].meta.extra["draws"])) == samples[0].meta.extra["draws"]
    samples[0].meta.geometry["image"] = ViewGeometry((1, 1), (1, 1), spacing_mm=(0.1, 0.2), unit="HU")
    batch = augmenter.apply(collate(samples), train=True)
    assert batch.views["image"].shape == (3, 3, 16, 16) and batch.views["image"].dtype == torch.float32
    assert batch.norm == {"image": ((0.5,), (0.25,))}
    for s, m in zip(samples, batch.meta, strict=True):
        geometry, drawn = m.geometry["image"], s.meta.extra["draws"]["image"]
        assert geometry.size == (16, 16) and geometry.source_size == tuple(s.views["image"].shape[1:])
        assert geometry.matrix.tolist() == drawn["matrix"] and list(geometry.flips) == drawn["flips"]
    assert batch.meta[0].geometry["image"].spacing_mm == (0.1, 0.2) and batch.meta[0].geometry["image"].unit == "HU"


def test_evaluation_has_no_chance_and_needs_no_key() -> None:
    augmenter = Augmenter(VIEWS, AUGMENT, norm=NORM)
    runs = []
    for epoch in (0, 1):
        samples = [augmenter.draw(stored(i, epoch=epoch), train=False) for i in range(3)]
        for s in samples:
            s.meta.key = None if epoch else s.meta.key
        runs.append(augmenter.apply(collate(samples), train=False).views["image"])
    assert torch.equal(runs[0], runs[1])


def test_two_views_of_one_stored_image_get_their_own_draws() -> None:
    views = {"image/0": {"size": 16, "channels": 1}, "image/1": {"size": 8, "channels": 1}}
    augmenter = Augmenter(views, AUGMENT, norm={"image": ((0.5,), (0.25,))})
    batch = augmenter.apply(collate([augmenter.draw(stored(i), train=True) for i in range(4)]), train=True)
    assert batch.views["image/0"].shape == (4, 1, 16, 16) and batch.views["image/1"].shape == (4, 1, 8, 8)
    for m in batch.meta:
        a, b = (m.geometry[v].matrix @ np.diag([s, s, 1.0]) for v, s in (("image/0", 16), ("image/1", 8)))
        assert not np.allclose(a[:2, :2], b[:2, :2])


def test_masks_boxes_and_keypoints_follow_the_image() -> None:
    views = {**VIEWS, "mask": {"ignore_index": 9}}
    augmenter = Augmenter(views, AUGMENT, norm=NORM, keypoint_swaps=[(0, 1)])
    samples = []
    for i in range(6):
        s = stored(i)
        s.views["mask"] = (s.views["image"] > 2000).to(torch.uint8)
        samples.append(augmenter.draw(s, train=True))
    batch = collate(samples)
    points = torch.tensor([[5.0, 6.0], [10.0, 20.0]]).expand(6, 2, 2)
    boxes = torch.tensor([[2.0, 3.0, 12.0, 14.0], [0.0, 0.0, 1.0, 1.0]]).expand(6, 2, 4)
    batch.targets.update(keypoints=points, boxes=boxes)
    batch.valid["keypoints"] = torch.tensor([[True, False]] * 6)
    done = augmenter.apply(batch, train=True)
    assert done.views["mask"].shape == (6, 1, 16, 16) and set(done.views["mask"].unique().tolist()) <= {0, 1, 9}
    for b, (s, m) in enumerate(zip(samples, done.meta, strict=True)):
        matrix = m.geometry["image"].matrix
        assert torch.equal(done.views["mask"][b], sample(s.views["mask"], matrix, (16, 16), border=9, nearest=True))
        moved, inside = paired.keypoints(points[b].numpy(), m.geometry["image"], swaps=[(0, 1)])
        np.testing.assert_allclose(done.targets["keypoints"][b], moved, atol=1e-5)
        mirrored = np.linalg.det(matrix) < 0  # then the known point stands in the other row
        assert done.valid["keypoints"][b].tolist() == [bool(n == mirrored and inside[n]) for n in (0, 1)]
        assert done.valid["boxes"][b].tolist() == paired.boxes(boxes[b].numpy(), m.geometry["image"])[1].tolist()
    assert done.targets["boxes"].shape == (6, 2, 4) and float(done.targets["boxes"].max()) <= 16


def test_wrong_views_are_named() -> None:
    with pytest.raises(HilumError, match="no mean and std"):
        Augmenter(VIEWS, AUGMENT, norm={"thermal": ((0.0,), (1.0,))})
    with pytest.raises(HilumError, match="no image to follow"):
        Augmenter({"mask": {}}, AUGMENT, norm={})
    with pytest.raises(HilumError, match="left into right"):
        Augmenter(VIEWS, AUGMENT, norm=NORM, lateral=True)
    augmenter = Augmenter(VIEWS, AUGMENT, norm=NORM)
    with pytest.raises(HilumError, match="no view 'image'"):
        augmenter.apply(Batch(views={"volume": torch.zeros(1, 1, 4, 4)}), train=True)
    told = augmenter.explain()
    assert told.startswith("image: train 16 x 16 x 3") and "image: eval" in told and "text" not in told


def test_what_belongs_to_several_views_is_refused() -> None:
    two = {"image": VIEWS["image"], "image/1": VIEWS["image"]}
    norm = {"image": ((0.5,), (0.25,))}
    flips = {"hflip": 0.5, "hflip_with_sides": True}
    with pytest.raises(HilumError, match="mirrored apart"):
        Augmenter(two, flips, norm=norm, side_pairs=[(0, 1)])
    with pytest.raises(HilumError, match="mirrored apart"):
        Augmenter({**two, "report": {"kind": "text"}}, flips, norm=norm)
    Augmenter(two, flips, norm=norm)
    for follower in ("flow", "disparity"):
        with pytest.raises(HilumError, match="two images"):
            Augmenter({**two, follower: {}}, {}, norm=norm)
    with pytest.raises(HilumError, match="other eye"):
        Augmenter({"image": VIEWS["image"], "disparity": {}}, {"hflip": 0.5}, norm=norm)


def test_sides_are_exchanged_where_a_sample_is_drawn() -> None:
    augmenter = Augmenter(VIEWS, {"hflip": 1.0, "hflip_with_sides": True}, norm=NORM, side_pairs=[(0, 1)])
    sample = stored(0)
    sample.targets["labels"] = torch.tensor([1.0, 0.0])
    assert augmenter.draw(sample, train=True).targets["labels"].tolist() == [0.0, 1.0]
    assert augmenter.draw(sample, train=False).targets["labels"].tolist() == [1.0, 0.0]
    with pytest.raises(HilumError, match="not"):
        augmenter.apply(collate([stored(1)]), train=True)
