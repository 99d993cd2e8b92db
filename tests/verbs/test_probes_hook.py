"""Probes over training: built from the registry by the recipe's names, with the numbers they always gave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from matrix import loop, parts, sample, vit

from hilum.core.errors import ContractError, HilumError
from hilum.core.fit import fit
from hilum.core.objective import Objective
from hilum.core.recipe import parse_recipe
from hilum.core.registry import registry
from hilum.core.types import Batch
from hilum.data.collate import collate
from hilum.evaluation.probes import KNNProbe, LinearProbe, rankme
from hilum.objectives.masked import Masked
from hilum.verbs.hooks import Probes, embed

MASKED = """recipe: test/probed
verb: pretrain
views: {image: {size: 32, channels: 1}}
objective: {name: masked}
encoders: {image: {name: timm/vit_tiny_patch16_224}}
optim: {name: adamw, lr: 1.0e-3}
"""


def raw(numbers: Iterable[int]) -> list[Batch]:
    return [collate([sample(n) for n in numbers])]


def hook(**schedule: int) -> Probes:
    return Probes(schedule, train=lambda: raw(range(24)), val=lambda: raw(range(24, 60)))


@pytest.fixture
def trained() -> Iterator[Any]:
    objective: Objective = Masked(parts(vit()), ratio=0.75, decoder_depth=1, decoder_width=32, decoder_heads=2)
    made = loop(objective, steps=3)
    fit(made)
    yield made


def test_the_numbers_are_those_of_the_probes_by_hand(trained: Any) -> None:
    numbers = hook(linear=1, knn=1, rankme=1).on_epoch_end(trained)
    x, y, groups = embed(trained.objective.encoder, raw(range(24)), trained)
    x_val, y_val, groups_val = embed(trained.objective.encoder, raw(range(24, 60)), trained)
    assert y is not None and y_val is not None and numbers is not None
    expected = {"probe/rankme": rankme(x)}
    for name, kind in (("linear", LinearProbe), ("knn", KNNProbe)):
        macro = kind().fit(x, y, groups).score(x_val, y_val, groups_val).macro["auroc"].value
        expected[f"probe/{name}_auroc_macro"] = macro
    assert numbers == pytest.approx(expected) and len(expected) == 3
    assert all(v is not None and v > 0 for v in expected.values())


def test_a_label_free_probe_reads_no_validation_images(trained: Any) -> None:
    def never() -> Any:
        raise AssertionError("not needed")

    watching = Probes({"rankme": 1, "knn": 0}, train=lambda: raw(range(8)), val=never)
    assert set(watching.on_epoch_end(trained) or {}) == {"probe/rankme"}


def test_an_unknown_probe_is_refused_with_the_nearest_before_training() -> None:
    with pytest.raises(HilumError, match="no probe named 'liner'") as refused:
        hook(liner=5)
    assert "'linear'" in refused.value.fix


def test_a_probe_of_somebody_else_s_runs_and_a_class_that_is_none_is_refused(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Norm:
        labelled = False

        def fit(self, x: Any, y: Any, groups: Any) -> Norm:
            assert y is None
            return self

        def score(self, x: Any, y: Any, groups: Any) -> torch.Tensor:
            return x.norm(dim=1)

        def summary(self, scored: torch.Tensor) -> dict[str, float]:
            return {"mean": float(scored.mean()), "max": float(scored.max())}

    monkeypatch.setattr(registry, "local", dict(registry.local))
    registry.register("probe", "theirs/norm", Norm)
    registry.register("probe", "theirs/odd", dict)
    recipe = parse_recipe(f"{MASKED}probes: {{theirs/norm: 1}}\n", origin="r.yaml")
    with pytest.raises(HilumError, match="'theirs/nrm'"):
        parse_recipe(f"{MASKED}probes: {{theirs/nrm: 1}}\n", origin="r.yaml")
    assert recipe["probes"] == {"theirs/norm": 1}
    x, _, _ = embed(trained.objective.encoder, raw(range(24)), trained)
    told = hook(**{"theirs/norm": 1}).on_epoch_end(trained)
    assert told == pytest.approx(
        {"probe/theirs/norm_mean": float(x.norm(dim=1).mean()), "probe/theirs/norm_max": float(x.norm(dim=1).max())}
    )
    with pytest.raises(ContractError, match="dict is not a probe") as refused:
        hook(**{"theirs/odd": 1})
    assert refused.value.where == "probes.theirs/odd" and len(refused.value.missing) == 4
