"""Collate packs without loss and names what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.core.errors import HilumError
from hilum.core.types import BadSample, Meta, Ragged, Sample
from hilum.data.collate import collate


def sample(name: str = "a", targets: dict[str, Any] | None = None, **views: Any) -> Sample:
    return Sample(views, targets or {}, Meta(name, f"group of {name}"))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3])), min_size=1, max_size=5))
def test_images_come_back_as_they_went_in(shapes: list[tuple[int, int, int]]) -> None:
    images = [torch.randint(0, 60000, (c, h, w)).to(torch.uint16) for h, w, c in shapes]
    view = collate([sample(image=i) for i in images]).views["image"]
    channels = max(c for _, _, c in shapes)
    wanted = [i if len(i) == channels else i.expand(channels, -1, -1) for i in images]
    if isinstance(view, Ragged):
        assert view.grid is not None and view.grid.tolist() == [[h, w] for h, w, _ in shapes]
        assert view.lengths.tolist() == [h * w for h, w, _ in shapes]
        back = [r.T.reshape(channels, *g) for r, g in zip(view.rows(), view.grid.tolist(), strict=True)]
    else:
        assert len({s[:2] for s in shapes}) == 1
        back = list(view)
    assert all(b.dtype == torch.uint16 and torch.equal(b, w) for b, w in zip(back, wanted, strict=True))


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        ((torch.uint8, torch.uint8), torch.uint8),
        ((torch.int16, torch.uint16), torch.int32),
        ((torch.uint8, torch.uint16), torch.int32),
        ((torch.uint16, torch.float32), torch.float32),
        ((torch.uint8, torch.int16), torch.int16),
    ],
)
def test_dtypes_meet_without_loss(kinds: tuple[torch.dtype, ...], common: torch.dtype) -> None:
    top = [255 if k == torch.uint8 else 32000 if k == torch.int16 else 65535 for k in kinds]
    images = [torch.full((1, 2, 2), t).to(k) for t, k in zip(top, kinds, strict=True)]
    view = collate([sample(image=i) for i in images]).views["image"]
    assert isinstance(view, torch.Tensor) and view.dtype == common
    assert view.flatten(1)[:, 0].tolist() == top


def test_volumes_and_rows_of_different_size() -> None:
    volumes = [torch.rand(2, d, 3, 4) for d in (1, 2)]
    points = [torch.rand(n, 5) for n in (3, 1)]
    batch = collate([sample(volume=v, points=p) for v, p in zip(volumes, points, strict=True)])
    volume, rows = batch.views["volume"], batch.views["points"]
    assert isinstance(volume, Ragged) and volume.grid is not None and volume.grid.tolist() == [[1, 3, 4], [2, 3, 4]]
    assert torch.equal(volume.rows()[1].T.reshape(2, 2, 3, 4), volumes[1])
    assert isinstance(rows, Ragged) and rows.grid is None and torch.equal(rows.data, torch.cat(points))


def test_unknown_targets_are_marked_and_read_zero() -> None:
    nan = float("nan")
    labels = [torch.tensor([1.0, nan, 0.0]), torch.tensor([nan, nan, -2.5])]
    kinds = [torch.tensor(2), torch.tensor(-1)]
    batch = collate([sample(targets={"labels": a, "kind": b}) for a, b in zip(labels, kinds, strict=True)])
    assert batch.targets["labels"].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, -2.5]]
    assert batch.valid["labels"].tolist() == [[True, False, True], [False, False, True]]
    assert (batch.targets["kind"].tolist(), batch.valid["kind"].tolist()) == ([2, 0], [True, False])


def test_bad_samples_are_listed_and_counted() -> None:
    bad = [BadSample("x", "stop_iteration"), BadSample("y", "memory_error")]
    batch = collate([bad[0], sample("a", image=torch.ones(1, 2, 2)), bad[1]])
    assert (batch.size, batch.expected, batch.bad) == (1, 3, bad)
    assert [m.sample_id for m in batch.meta] == ["a"]
    empty = collate(bad)
    assert (empty.size, empty.expected, empty.views, empty.targets) == (0, 2, {}, {})
    assert collate([]).expected == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"image": torch.ones(2, 2)},
        {"other": torch.ones(1, 2, 2)},
        {"image": torch.ones(5, 2, 2)},
        {"image": "text"},
    ],
)
def test_one_odd_sample_does_not_spoil_the_batch(odd: dict[str, Any]) -> None:
    usual = [sample(n, image=torch.ones(1, 2, 2)) for n in "abc"]
    batch = collate([usual[0], sample("odd", **odd), *usual[1:]])
    assert [m.sample_id for m in batch.meta] == ["a", "b", "c"]
    assert [(b.sample_id, b.reason) for b in batch.bad] == [("odd", "inconsistent")]


def test_targets_of_another_width_are_odd() -> None:
    usual = [sample(n, targets={"labels": torch.zeros(3)}) for n in "ab"]
    batch = collate([*usual, sample("c", targets={"labels": torch.zeros(2)})])
    assert batch.size == 2 and batch.bad[0].sample_id == "c"


class Letters:
    fingerprint = "letters"

    def __call__(self, texts: Any) -> tuple[torch.Tensor, torch.Tensor, None]:
        longest = max(map(len, texts))
        ids = torch.tensor([[ord(c) for c in t.ljust(longest, "\0")] for t in texts])
        return ids, ids > 0, None


def test_text_is_tokenised_here() -> None:
    tokenizers = {"text": Letters()}
    batch = collate([sample(text="ab"), sample(text="c")], tokenizers=tokenizers)
    assert batch.views["text"].tolist() == [[97, 98], [99, 0]]
    assert batch.valid["text"].tolist() == [[True, True], [True, False]]
    several = collate([sample(text=["a", "bcd"]), sample(text=["", "e"])], tokenizers=tokenizers)
    assert tuple(several.views["text"].shape) == tuple(several.valid["text"].shape) == (2, 2, 3)
    assert several.views["text"][0, 1].tolist() == [98, 99, 100]
    with pytest.raises(HilumError, match="has no tokenizer"):
        collate([sample(text="ab")])
