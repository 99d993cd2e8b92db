"""Left and right in labels, masks and text under a mirror."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hilum.augment import sides
from hilum.core.errors import HilumError
from hilum.core.types import Meta, Sample


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Left pleural effusion; the RIGHT lung is clear.", "Right pleural effusion; the LEFT lung is clear."),
        (
            "left-sided, leftover, kidney_left, left2, copyright",
            "right-sided, leftover, kidney_right, left2, copyright",
        ),
        (
            "Erguss links, Infiltrat im rechten Unterlappen. Linksseitig.",
            "Erguss rechts, Infiltrat im linken Unterlappen. Rechtsseitig.",
        ),
        ("épanchement à droite, poumon gauche", "épanchement à gauche, poumon droite"),
        ("poumon droit, hémithorax gauche", "poumon gauche, hémithorax droite"),
        ("derrame izquierdo; base derecha", "derrame derecho; base izquierda"),
        ("versamento a sinistra, lobo inferiore Destro", "versamento a destra, lobo inferiore Sinistro"),
        ("no side", "no side"),
        ("", ""),
    ],
)
def test_side_words_exchange_whole_and_in_their_case(text: str, mirrored: str) -> None:
    assert sides.exchange_words(text) == mirrored


def test_a_language_is_chosen_and_another_lexicon_may_be_given() -> None:
    assert sides.exchange_words("the links are left", languages=["en"]) == "the links are right"
    assert sides.exchange_words("the links are left", languages=["de"]) == "the rechts are left"
    assert sides.exchange_words("LLL opacity, L4", lexicon={"x": [("LLL", "RLL"), ("L", "R")]}) == "RLL opacity, L4"
    with pytest.raises(HilumError, match="no language 'eng'"):
        sides.exchange_words("left", languages=["eng"])


_WORDS = ["left", "Right", "LEFT", "RIGHT", "x", "leftover", "-", "_", "é", "left_", "-right.", "1", "rightleft"]


@given(st.lists(st.sampled_from(_WORDS), max_size=12), st.sampled_from([" ", "-", "_", ", ", "\n", ""]))
def test_twice_mirrored_is_the_text_itself(words: list[str], between: str) -> None:
    text = between.join(words)
    once = sides.exchange_words(text, languages=["en"])
    assert sides.exchange_words(once, languages=["en"]) == text or between == ""  # joined, case may be mixed: lEFT
    if between == " " and set(words) & {"left", "Right", "LEFT", "RIGHT"}:
        assert once != text and once.lower().count("left") + once.lower().count("right") == sum(
            w.lower().count("left") + w.lower().count("right") for w in words
        )


def test_label_rows_exchange_along_any_dimension() -> None:
    labels = torch.tensor([[1.0, 0.0, float("nan"), 0.5], [0.0, 1.0, 1.0, 0.25]])
    out = sides.exchange(labels, [(0, 1), (2, 3)], dim=1)
    torch.testing.assert_close(out, labels[:, [1, 0, 3, 2]], equal_nan=True)
    assert sides.exchange(labels[0], [(0, 3)]).tolist()[0] == 0.5
    assert sides.exchange(labels, []) is labels
    for bad, message in (([(0, 1), (1, 2)], "more than one"), ([(0, 0)], "more than one"), ([(0, 4)], "row 4 of 4")):
        with pytest.raises(HilumError, match=message):
            sides.exchange(labels, bad, dim=-1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.uint16])
def test_label_maps_exchange_their_values(dtype: torch.dtype) -> None:
    mask = torch.tensor([[0, 1, 2], [3, 255, 1]]).to(dtype)
    assert sides.exchange_values(mask, [(1, 2)]).tolist() == [[0, 2, 1], [3, 255, 2]]
    assert mask.tolist() == [[0, 1, 2], [3, 255, 1]]
    with pytest.raises(HilumError, match="masks hold labels"):
        sides.exchange_values(mask.float(), [(1, 2)])


def test_pairs_are_found_by_name() -> None:
    names = ["heart", "kidney_right", "Left Effusion", "kidney_left", "Right effusion"]
    assert sides.pairs_of(names) == [(3, 1), (2, 4)]
    assert sides.pairs_of(["rein gauche", "rein droite"], languages=["fr"]) == [(0, 1)]
    assert sides.pairs_of(["edema", "copyright"]) == []
    with pytest.raises(HilumError, match="there is no 'lung left'"):
        sides.pairs_of(["lung right", "heart"])


def sampled(**flips: tuple[int, ...]) -> Sample:
    draws = {
        view: {"flips": list(f), "matrix": np.diag([-1.0 if a in f else 1.0 for a in (0, 1)] + [1.0]).tolist()}
        for view, f in flips.items()
    }
    return Sample(
        {"text": "Left effusion", "notes": ["right", "none"], "image": torch.zeros(1, 2, 2)},
        {"labels": torch.tensor([1.0, 0.0, 0.5])},
        Meta("abc", "g", extra={"draws": draws}),
    )


def test_a_mirrored_sample_turns_once_and_a_turned_one_never() -> None:
    for flips, turned in (((1,), True), ((0, 1), False), ((0,), True), ((), False)):
        before = sampled(image=flips)
        after = sides.exchange_sample(before, [(0, 1)])
        assert after.views["text"] == ("Right effusion" if turned else "Left effusion")
        assert after.views["notes"] == (["left", "none"] if turned else ["right", "none"])
        assert after.targets["labels"].tolist() == ([0, 1, 0.5] if turned else [1, 0, 0.5])
        assert before.views["text"] == "Left effusion" and before.targets["labels"].tolist() == [1, 0, 0.5]
        again = sides.exchange_sample(after, [(0, 1)])
        assert again.views["text"] == after.views["text"] and torch.equal(
            again.targets["labels"], after.targets["labels"]
        )


def test_classes_turn_and_what_cannot_be_true_is_refused() -> None:
    sample = sampled(image=(1,))
    sample.targets["labels"] = torch.tensor(2)
    assert sides.exchange_sample(sample, [(0, 2)]).targets["labels"].item() == 0
    with pytest.raises(HilumError, match="one view is mirrored") as caught:
        sides.exchange_sample(sampled(**{"image": (1,), "image/1": ()}))
    assert "hflip_with_sides, sample abc" in str(caught.value)
    with pytest.raises(HilumError, match="row 7 of 3") as caught:
        sides.exchange_sample(sampled(image=(1,)), [(0, 7)])
    assert "sample abc" in str(caught.value)
