"""Which back-end augments: what is installed, where the pixels lie, and what was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hilum.augment import compiled
from hilum.augment.augmenter import Augmenter, resolve_backend
from hilum.core.errors import HilumError, MissingExtra
from hilum.core.types import Batch, Meta, SampleKey, Window

pytest.importorskip("numba", reason="the extra cpu (numba) is not installed")

AUGMENT = {
    "resized_crop": [0.3, 1.0],
    "rotate": 20,
    "blur": {"range": [0.1, 1.5], "p": 0.5},
    "gamma": 0.2,
    "noise": 0.03,
}


def test_the_back_end_is_chosen_by_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_backend("auto", cpu=True) == "compiled"
    assert resolve_backend("auto", cpu=False) == "reference"
    assert resolve_backend("reference", cpu=True) == "reference"
    with pytest.raises(HilumError, match="unknown augmentation back-end") as caught:
        resolve_backend("compild", cpu=True)
    assert "compiled" in caught.value.fix
    monkeypatch.setattr(compiled, "installed", lambda: False)
    assert resolve_backend("auto", cpu=True) == "reference"
    with pytest.raises(MissingExtra, match="numba") as missing:
        resolve_backend("compiled", cpu=True)
    assert "[cpu]" in missing.value.fix


def test_the_augmenter_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def augmented(backend: str) -> Tensor:
        x = torch.rand((1, 50, 60), generator=torch.Generator().manual_seed(0))
        meta = Meta("00000000", "g", key=SampleKey(5, 1, 0), extra={"image": {"window": Window(0.0, 1.0)}})
        batch = Batch(views={"image": x[None]}, meta=[meta])
        views, norm = {"image": {"size": 32, "channels": 1}}, {"image": ((0.0,), (1.0,))}
        made = Augmenter(views, AUGMENT, norm=norm, backend=backend)
        out = made.apply(batch, train=True).views["image"]
        assert isinstance(out, Tensor)
        return out

    fast, plain, auto = (augmented(name) for name in ("compiled", "reference", "auto"))
    assert torch.equal(fast, auto) and not torch.equal(fast, plain)
    assert float((fast - plain).abs().max()) < 1e-5
    with pytest.raises(HilumError, match="unknown augmentation back-end"):
        augmented("fast")
    monkeypatch.setattr(compiled, "installed", lambda: False)
    assert torch.equal(augmented("auto"), plain)
