"""Sets that share images: who is refused as a judge of whom, why, and what is recorded where it was allowed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hilum.core.errors import HilumError, LeakError
from hilum.core.registry import registry
from hilum.data.cards import DatasetCard, Origin, card_of, cards
from hilum.data.overlaps import find_overlap, refuse_overlap
from hilum.verbs.opening import _refuse_shared
from hilum.verbs.starts import datasets_of, learned_from

SHARED = [
    ("rsna-pneumonia", "nih-cxr14"), ("covidx", "rsna-pneumonia"), ("covidx", "nih-cxr14"), ("siim-acr", "nih-cxr14"),
    ("siim-acr", "rsna-pneumonia"), ("mimic-cxr", "mimic-cxr-jpg"), ("padchest", "padchest-physician"),
    ("brats-2021", "brats-2023"), ("msd", "brats-2021"), ("msd", "brats-2023"), ("slake", "nih-cxr14"), ("slake", "msd"),
    ("slake", "rsna-pneumonia"),
]  # fmt: skip
APART = [
    ("chexpert", "nih-cxr14"), ("vindr-cxr", "nih-cxr14"), ("padchest", "chexpert"), ("mimic-cxr", "chexpert"),
    ("totalsegmentator", "msd"), ("vqa-rad", "slake"), ("pathvqa", "vqa-rad"), ("nih-cxr14", "nih-cxr14"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), SHARED)
def test_sets_that_share_images_do_so_both_ways(first: str, second: str) -> None:
    there, back = (find_overlap(f"medical/{a}", f"medical/{b}") for a, b in ((first, second), (second, first)))
    assert there and back and there.common == back.common and there.why and " draws on " in there.why


@pytest.mark.parametrize(("first", "second"), APART)
def test_sets_that_are_not_known_to(first: str, second: str) -> None:
    assert find_overlap(f"medical/{first}", f"medical/{second}") is None


def card(name: str, *origins: str) -> DatasetCard:
    drawn = tuple(Origin(o, "images", "a paper") for o in origins)
    return DatasetCard(name, name, "", "", "", "open", "", "", "", (), draws_from=drawn)


def test_the_shortest_trail_and_circles() -> None:
    known = {c.name: c for c in (card("a", "b", "x"), card("b", "c"), card("c", "a"), card("d", "x"), card("e"))}
    found = find_overlap("a", "d", known)
    assert found is not None and found.common == "x" and found.why.count("draws on") == 2
    assert find_overlap("c", "b", known) is not None and find_overlap("e", "a", known) is None
    assert find_overlap("nobody", "a", known) is None


def test_refusal_names_both_sets_the_evidence_and_the_way_out() -> None:
    with pytest.raises(LeakError, match="medical/rsna-pneumonia shares images with medical/nih-cxr14") as caught:
        refuse_overlap(["medical/chexpert", "medical/nih-cxr14"], "medical/rsna-pneumonia")
    assert "Shih" in caught.value.where and "--allow-overlap medical/nih-cxr14" in caught.value.fix
    told = refuse_overlap(["medical/nih-cxr14"], "medical/rsna-pneumonia", allowed=["medical/nih-cxr14"])
    assert len(told) == 1 and "was allowed" in told[0]
    assert refuse_overlap(["medical/chexpert"], "medical/rsna-pneumonia") == []
    assert refuse_overlap(["medical/nih-cxr14"], None) == []
    with pytest.raises(LeakError):  # allowing one set is not allowing another
        refuse_overlap(["medical/nih-cxr14"], "medical/rsna-pneumonia", allowed=["medical/siim-acr"])


def study(dataset: str | None) -> Any:
    return SimpleNamespace(about={"dataset": dataset})


def test_an_external_study_of_a_sharing_set_is_refused() -> None:
    model = SimpleNamespace(facts={"datasets": ["medical/nih-cxr14", "medical/mimic-cxr"]})
    with pytest.raises(LeakError, match="medical/covidx shares images with medical/nih-cxr14"):
        _refuse_shared(model, study("medical/covidx"), [])
    assert _refuse_shared(model, study("medical/chexpert"), []) == [] == _refuse_shared(model, study(None), [])
    assert len(_refuse_shared(model, study("medical/covidx"), ["medical/nih-cxr14"])) == 1
    assert _refuse_shared(SimpleNamespace(facts={}), study("medical/covidx"), []) == []  # a run from before


class Recipe(dict):  # type: ignore[type-arg]
    """Enough of a recipe: sections by name."""


def test_a_start_hands_on_what_it_learned_from(tmp_path: Path) -> None:
    exported = tmp_path / "run" / "exported"
    exported.mkdir(parents=True)
    (exported / "encoder.json").write_text(json.dumps({"datasets": ["medical/nih-cxr14", "medical/chexpert"]}))
    recipe = Recipe(encoders={"image": {"init": "scratch"}}, run={})
    starts = {"image": str(tmp_path / "run")}
    assert datasets_of(starts, recipe) == ["medical/nih-cxr14", "medical/chexpert"]
    assert datasets_of({"image": str(tmp_path / "run") + "#encoder"}, recipe) == datasets_of(starts, recipe)
    assert datasets_of({}, recipe) == []
    split = SimpleNamespace(split=np.array(["train", "val", "test"], object))
    data = SimpleNamespace(study=study("medical/rsna-pneumonia"), split=split, split_digest="d")
    with pytest.raises(LeakError):
        learned_from(starts, recipe, data, before={})
    own = SimpleNamespace(study=study("medical/chexpert"), split=split, split_digest="d")
    with pytest.raises(LeakError, match="under another split"):  # the card names none
        learned_from(starts, recipe, own, before={})
    recipe["run"] = {"allow_overlap": ["medical/nih-cxr14"]}
    assert learned_from(starts, recipe, data, before={}) == {
        "datasets": ["medical/nih-cxr14", "medical/chexpert", "medical/rsna-pneumonia"],
        "allowed_overlaps": {"init": ["medical/nih-cxr14"]},
    }
    untested = SimpleNamespace(study=data.study, split=SimpleNamespace(split=np.array(["train", "val"], object)))
    recipe["run"] = {}
    assert "medical/rsna-pneumonia" in learned_from(starts, recipe, untested, before={})["datasets"]
    noted = {"datasets": ["a"], "seconds": 3}
    assert learned_from(starts, recipe, data, before=noted) == {"datasets": ["a"]}  # resumed: as it began


def test_every_set_has_a_card_and_origins_have_evidence() -> None:
    known = cards()
    assert len(known) >= 17 and set(known) == set(registry.entries("dataset"))
    for name, found in known.items():
        assert found.name == name and found.url.startswith("http") and found.citation and found.labels and found.split
        assert all(origin.what and origin.evidence for origin in found.draws_from)
        assert found.terms in ("open", "registration", "credentialed")
        assert found.terms == "open" or not found.downloads
    assert card_of("vindr-cxr") is known["medical/vindr-cxr"]
    with pytest.raises(HilumError, match="no dataset named") as caught:
        card_of("vindr")
    assert "vindr-cxr" in caught.value.fix
