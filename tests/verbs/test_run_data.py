"""Which images a run reads: limits, labels that must exist, and what a dry run leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake.studies import NpyIntake, write_study
from matrix import loop

from hilum.core.errors import ContractError, HilumError
from hilum.core.objective import Objective
from hilum.core.recipe import Recipe, parse_recipe
from hilum.core.registry import registry
from hilum.data.split import Split, make_split
from hilum.data.study import Study
from hilum.verbs.dryrun import rehearse
from hilum.verbs.networks import build_objective
from hilum.verbs.resolving import resolve
from hilum.verbs.run_data import feed_of, largest_rows, lowest_ranked, open_data, open_rows
from hilum.verbs.splitting import split

YAML = """
recipe: test/findings
verb: finetune
views: {image: {size: 16, channels: 1, normalise: dataset}}
cache: {side: 16}
objective: {name: supervised}
encoders: {image: {name: timm/vit_tiny_patch16_224, patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}}
head: {name: linear}
optim: {name: adamw, lr: 1.0e-3}
schedule: {name: constant, epochs: 4}
batch: {size: 4, per_device: 4}
engine: {devices: 1, workers: 0, validate_epochs: 2}
"""


def recipe_of(*sets: str) -> Recipe:
    return parse_recipe(YAML, origin="findings.yaml", sets=sets)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """40 patients of one image each, in folders by class: the first half healthy, the rest with a finding."""
    rng = np.random.default_rng(0)
    known = dict(registry.local)
    registry.register("intake", "npy", NpyIntake)
    images = [rng.integers(0, 255, (20 + i % 7, 24)).astype(np.uint8) for i in range(40)]
    made = write_study(
        tmp_path_factory.mktemp("data"),
        [f"g{i:02d}" for i in range(40)],
        names=[f"{'healthy' if i < 20 else 'sick'}-{i:02d}" for i in range(40)],
        labels={"sick": [0.0] * 20 + [1.0] * 20, "old": [float(i % 2) for i in range(40)]},
        images=images,
    )
    make_split(made, val=0.2, test=0.2, near=False, folds=3)
    yield made
    registry.local.clear()
    registry.local.update(known)


def opened(study: Study, *sets: str, **options: Any) -> Any:
    told = {"split_name": "default", "need_labels": True, "quiet": True, **options}
    return open_data(recipe_of(*sets), study, **told)


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_below_one_is_refused(study: Study, limit: int) -> None:
    with pytest.raises(HilumError, match="--limit must be at least 1"):
        opened(study, limit=limit)


@pytest.mark.parametrize("fold", [None, 1])
def test_a_limit_takes_the_lowest_ranks_so_every_finding_is_in_it(study: Study, fold: int | None) -> None:
    split = Split.load(study)
    whole = split.rows("train", fold=fold)
    some, again = (lowest_ranked(split, rows, 8) for rows in (whole, whole[::-1]))
    assert some.tolist() == again.tolist() == sorted(some.tolist())
    assert set(some) <= set(whole) and len(some) == 8
    positive = study.label_matrix(["sick"], some)[:, 0]
    assert 3 <= positive.sum() <= 5  # half of the archive
    assert set(lowest_ranked(split, whole, 4)) < set(some)  # nested
    assert lowest_ranked(split, whole, 1000).tolist() == whole.tolist()
    if fold is None:
        groups = split.groups("train", fraction=8 / len(whole))
        assert {f"g{row:02d}" for row in some.tolist()} == groups  # as a label fraction of that size


def test_a_limit_holds_for_every_part(study: Study) -> None:
    data = opened(study, limit=3)
    assert {name: len(rows) for name, rows in data.rows.items()} == {"train": 3, "val": 3}


def test_lateral_findings_must_be_labels_of_the_run(study: Study) -> None:
    assert opened(study, "labels.lateral=[sick]", limit=2).labels.lateral == {"sick"}
    for sets in (["labels.lateral=[nonsense]"], ["labels={names: [sick], lateral: [old]}"]):
        with pytest.raises(HilumError, match="no label of this run") as caught:
            opened(study, *sets)
        assert caught.value.where.startswith("--set labels")


def test_findings_whose_names_have_a_side_are_lateral_unasked(tmp_path: Path, study: Study) -> None:
    odd = [float(i % 2) for i in range(20)]
    labels = {"left effusion": odd, "right effusion": odd[::-1], "leftover": odd}
    made = write_study(
        tmp_path, [f"g{i:02d}" for i in range(20)], names=[f"img-{i:02d}" for i in range(20)], labels=labels
    )
    make_split(made, val=0.2, test=0.2, near=False)
    assert opened(made, limit=4).labels.lateral == {"left effusion", "right effusion"}


def test_a_finding_that_training_sees_on_one_side_only_is_refused(study: Study, tmp_path: Path) -> None:
    odd = [float(i % 2) for i in range(40)]
    made = write_study(
        tmp_path,
        [f"g{i:02d}" for i in range(40)],
        names=[f"img-{i:02d}" for i in range(40)],
        labels={
            "fine": odd,
            "rare": [0.0] * 38 + [float("nan")] * 2,
            "always": [1.0] * 40,
            "unsure": [-x for x in odd],
        },
        images=[np.random.default_rng(i).integers(0, 255, (20, 24)).astype(np.uint8) for i in range(40)],
    )
    n = len(make_split(made, val=0.2, test=0.2, near=False, stratify="none").rows("train"))
    for purpose in ("train", "dry run"):
        with pytest.raises(HilumError, match=f"3 of 4 labels have no positive or no negative among the {n}") as caught:
            opened(made, purpose=purpose)
    assert f"always ({n} positive, 0 negative, 0 unknown)" in caught.value.what
    assert "rare (0 positive, " in caught.value.what
    assert "labels.names=[fine]" in caught.value.fix
    assert opened(made, "labels.names=[fine]", purpose="train").labels.names == ("fine",)
    assert opened(made, "labels={names: [fine, unsure], uncertain: ones}", purpose="train").rows
    assert opened(made, purpose="evaluate").rows and opened(made, purpose="train", need_labels=False).rows
    with pytest.raises(HilumError) as caught:
        opened(made, "labels.names=[rare, always]", purpose="train")
    assert "labels.names" in caught.value.where and "another split" in caught.value.fix


def test_a_split_says_which_part_lacks_a_side_of_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = [f"g{i:02d}" for i in range(20)]
    made = write_study(tmp_path, groups, labels={"fine": [float(i % 2) for i in range(20)], "rare": [0.0] * 19 + [1.0]})
    split(made.path, near=False)
    told = capsys.readouterr().out
    holder = next(p for p in ("train", "val", "test") if "g19" in Split.load(made).groups(p))
    assert {p for p in ("train", "val", "test") if f"note: {p} holds no positive of rare\n" in told} == {
        "train",
        "val",
        "test",
    } - {holder}
    assert "fine" not in "".join(line for line in told.splitlines() if "note:" in line)


def test_a_split_tells_of_an_official_one_that_it_did_not_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = [f"g{i:02d}" for i in range(20)]
    words = ["train"] * 12 + ["valid"] * 4 + ["test"] * 4
    made = write_study(tmp_path, groups, labels={"fine": [float(i % 2) for i in range(20)], "split": words})
    split(made.path, near=False)
    told = capsys.readouterr().out
    assert "a column 'split' (train, val, test), which was not used" in told
    assert f"hilum split {made.path} --from split --name official" in told
    split(made.path, near=False, from_="split", name="official")
    assert "column 'split'" not in capsys.readouterr().out
    assert Split.load(made, "official").groups("val") == set(groups[12:16])


def test_to_train_in_half_precision_on_a_cpu_is_refused_before_anything_is_read(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for purpose in ("train", "dry run"):
        with pytest.raises(HilumError, match="16-mixed needs a GPU"):
            opened(study, "precision=16-mixed", purpose=purpose, split_name="there-is-none")
    assert opened(study, "precision=16-mixed", limit=1).rows  # such a run can be judged here


def files(study: Study) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in study.path.rglob("*")}


def test_a_dry_run_reads_the_largest_images_and_leaves_nothing(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = files(study)
    recipe = recipe_of("cache.side=12")  # nothing of this size is cached
    data = open_data(recipe, study, split_name="default", need_labels=True, purpose="dry run", quiet=True)
    assert data.rehearsal is not None and data.rehearsal.missing == 32 and data.rehearsal.seconds_per_image > 0
    expected = {int(r) for rows in data.rows.values() for r in largest_rows(study, rows, 4)}
    assert set(data.cache.rows.tolist()) == expected and len(expected) == 8
    recipe = resolve(recipe, data, devices=1)
    objective: Objective = build_objective(recipe, data.labels)[0]
    rehearsed = loop(objective)
    rehearsed.feed = feed_of(recipe, data)  # type: ignore[assignment]
    rehearsed.settings.total_steps = 100
    rehearse(rehearsed, data, recipe)
    told = capsys.readouterr().out
    assert "100 steps (4 epochs)" in told and "2 validations" in told and "reading 32 images once" in told
    assert "left out:" in told
    assert files(study) == before
    assert not list(tmp_path.iterdir())


def test_a_run_caches_every_image_in_the_study(study: Study) -> None:
    data = opened(study, "cache.side=14", purpose="train")
    assert data.rehearsal is None
    assert data.cache.folder.parent == study.path / "cache"
    assert not len(data.cache.missing())


def test_rows_without_a_split_are_served_with_their_labels(study: Study) -> None:
    data = open_rows(recipe_of(), study, {"all": np.arange(5)}, labelled=True)
    assert data.labels is not None and data.labels.names == ("sick", "old")
    assert data.split_digest == "none"
    assert open_rows(recipe_of(), study, {"all": np.arange(5)}, labelled=False).labels is None


def test_options_that_a_plan_or_policy_cannot_use_are_told_with_their_line(study: Study) -> None:
    data = opened(study, limit=4)
    recipe = resolve(recipe_of(), data, devices=1)
    with pytest.raises(HilumError) as caught:
        feed_of(recipe.with_({"augment": {"hflip": "often"}}), data)
    assert caught.value.where.startswith("findings.yaml")
    with pytest.raises(HilumError, match="unknown key 'hflp'") as caught:
        feed_of(resolve(recipe_of("augment.hflp=0.5"), data, devices=1), data)
    assert caught.value.where == "--set augment.hflp"


def test_a_source_that_is_none_is_refused_where_it_is_fed(study: Study) -> None:
    data = opened(study, limit=4)
    data.sources["train"] = object()
    with pytest.raises(ContractError, match="is not a source"):
        feed_of(recipe_of("views.image.normalise=none"), data)
