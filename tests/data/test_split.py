"""Splits: disjoint by group whatever the input, nested, the same everywhere, and refused where they would leak."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake.studies import NpyIntake, sample_id, write_study
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum.core.errors import HilumError, LeakError
from hilum.data.cache import ShardCache
from hilum.data.split import Split, make_split
from hilum.data.stratify import count_of, deal, keyed_order, nested_rank
from hilum.data.study import Study


def study_of(
    groups: int, per: int = 2, *, prevalence: tuple[float, ...] = (0.3, 0.1), seed: int = 0, folder: Path
) -> Study:
    rng = np.random.default_rng(seed)
    owners = [f"g{i:04d}" for i in range(groups) for _ in range(per)]
    labels = {f"f{k}": (rng.random(len(owners)) < p).astype(float).tolist() for k, p in enumerate(prevalence)}
    return write_study(folder, owners, labels=labels)


@st.composite
def archives(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(st.integers(8, 25))
    owners = [f"g{g:03d}" for g in range(groups) for _ in range(draw(st.integers(1, 3)))]
    unknown = draw(st.integers(0, 2))
    owners += [f"unknown-{i}" for i in range(unknown)]
    values = st.sampled_from([0.0, 1.0, -1.0, float("nan")])
    labels = {name: draw(st.lists(values, min_size=len(owners), max_size=len(owners))) for name in ("a", "b")}
    return {"owners": owners, "labels": labels, "seed": draw(st.integers(0, 3))}


@settings(max_examples=12)
@given(archives(), st.randoms(use_true_random=False))
def test_every_group_stands_on_one_side_whatever_the_order(archive: dict[str, Any], random: Any) -> None:
    owners, n = archive["owners"], len(archive["owners"])
    order = list(range(n))
    random.shuffle(order)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        study = write_study(Path(one), owners, labels=archive["labels"])
        mixed = write_study(Path(two), owners, labels=archive["labels"], order=order)
        options = {"val": 0.2, "test": 0.25, "seed": archive["seed"], "near": False, "folds": 3}
        split, again = make_split(study, **options), make_split(mixed, **options)
        split.check()
        parts = {p: split.groups(p) for p in ("train", "val", "test")}
        assert set.union(*parts.values()) == set(owners)
        assert sum(map(len, parts.values())) == len(set(owners))
        assert not any(g.startswith("unknown") for g in parts["val"] | parts["test"])
        n_groups = len(set(owners))
        assert len(parts["test"]) == max(1, math.floor(0.25 * n_groups + 0.5))
        assert len(parts["val"]) == max(1, math.floor(0.2 * n_groups + 0.5))
        assert (split.digest, split.rank.tolist(), split.fold.tolist()) == (
            again.digest,
            again.rank.tolist(),
            again.fold.tolist(),
        )
        rows = {p: set(split.rows(p).tolist()) for p in parts}
        assert sorted(r for part in rows.values() for r in part) == list(range(n))
        for p, mine in rows.items():
            assert {owners[r] for r in mine} == parts[p]
        for f in range(3):
            train, val, test = (split.groups(p, fold=f) for p in ("train", "val", "test"))
            assert test == parts["test"] and not (train & val) and train | val == set(owners) - test
        held = [split.groups("val", fold=f) for f in range(3)]
        assert not set.intersection(*held) and set.union(*held) == {
            g for g in set(owners) - parts["test"] if g[0] == "g"
        }


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 4), st.integers(0, 100))
def test_nested_fractions(n: int, labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.random((n, labels)) < 0.3
    names = [f"{i}" for i in rng.permutation(1000)[:n]]
    rank = nested_rank(matrix, keyed_order(names, seed=seed, purpose="rank"))
    assert sorted(rank.tolist()) == list(range(n))
    shuffle = rng.permutation(n)
    mixed = [names[i] for i in shuffle]
    again = nested_rank(matrix[shuffle], keyed_order(mixed, seed=seed, purpose="rank"))
    assert rank[shuffle].tolist() == again.tolist()


def test_fractions_are_nested_and_stratified(tmp_path: Path) -> None:
    split = make_split(study_of(400, 1, prevalence=(0.3, 0.05), folder=tmp_path), near=False)
    study, n = split.study, len(split.groups("train"))
    before: set[str] = set()
    for fraction in (0.05, 0.1, 0.17, 0.25, 0.5, 1.0):
        groups = split.groups("train", fraction=fraction)
        assert len(groups) == math.ceil(round(fraction * n, 9))
        assert before <= groups
        before = groups
    whole = study.label_matrix(None, split.rows("train")).mean(0)
    for fraction in (0.1, 0.25, 0.5):
        part = study.label_matrix(None, split.rows("train", fraction=fraction)).sum(0)
        assert np.abs(part - whole * fraction * n).max() <= 1.5  # as near as whole groups allow


def test_count_of_does_not_fall_for_floats() -> None:
    assert [count_of(f, 100) for f in (0.07, 0.29, 0.57, 0.1, 1.0)] == [7, 29, 57, 10, 100]
    assert count_of(0.01, 3) == 1


@settings(max_examples=40)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=4), st.integers(0, 3), st.integers(0, 50))
def test_deal_keeps_sizes(sizes: list[int], labels: int, seed: int) -> None:
    n = sum(sizes)
    rng = np.random.default_rng(seed)
    part = deal(rng.random((n, labels)) < 0.4, sizes, rng.permutation(n))
    assert np.bincount(part, minlength=len(sizes)).tolist() == sizes


def test_labels_are_dealt_evenly(tmp_path: Path) -> None:
    study = study_of(300, 1, prevalence=(0.5, 0.1, 0.03), folder=tmp_path)
    rare = []
    for seed in range(5):
        split = make_split(study, seed=seed, name=f"s{seed}", near=False)
        matrix = study.label_matrix(None, np.arange(300))
        for part, share in (("val", 0.15), ("test", 0.2), ("train", 0.65)):
            positives = study.label_matrix(None, split.rows(part)).sum(0)
            assert np.abs(positives - share * matrix.sum(0)).max() <= 1.0
        rare.append(frozenset(split.groups("test")))
    assert len(set(rare)) == 5, "another seed is another split"


def test_stored_as_the_format_says(tmp_path: Path) -> None:
    study = study_of(30, folder=tmp_path)
    split = make_split(study, name="mine", seed=7, folds=4, near=False)
    table = pq.read_table(study.path / "splits" / "mine.parquet")
    assert table.column_names == ["group_id", "split", "rank", "fold"]
    lines = sorted(f"{g},{s}\n" for g, s in zip(table["group_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    info = json.loads((study.path / "splits" / "mine.json").read_text())
    assert info["digest"] == hashlib.sha256("".join(lines).encode()).hexdigest() == split.digest
    assert info["index_digest"] == study.digest
    assert (info["seed"], info["fractions"], info["stratify"]) == (7, {"val": 0.15, "test": 0.2}, ["f0", "f1"])
    loaded = Split.load(Study(study.path), "mine")
    loaded.check()
    assert loaded.digest == split.digest and loaded.info == split.info
    assert sorted(table["rank"].to_pylist()) == sorted([*range(19), *[-1] * 6, *range(5)])


def test_table_counts_by_hand(tmp_path: Path) -> None:
    study = write_study(tmp_path, list("aabbccdd"), labels={"x": [1, 0, 1, 1, 0, 0, -1, float("nan")]})
    split = make_split(study, val=0.25, test=0.25, near=False)
    rows = {r["split"]: r for r in split.table().to_pylist()}
    expected = {"a": (1, 1), "b": (2, 1), "c": (0, 0), "d": (0, 0)}
    for part in ("train", "val", "test", "none"):
        groups = split.groups(part)
        assert rows[part]["groups"] == len(groups) and rows[part]["images"] == 2 * len(groups)
        assert rows[part]["positive.x"] == sum(expected[g][0] for g in groups)
        assert rows[part]["positive_groups.x"] == sum(expected[g][1] for g in groups)


def test_rows_within_a_selection(tmp_path: Path) -> None:
    study = study_of(20, 3, folder=tmp_path)
    split = make_split(study, near=False)
    among = np.arange(0, 60, 3)
    picked = split.rows("train", among=among)
    assert set(picked.tolist()) == set(split.rows("train").tolist()) & set(among.tolist())
    only_test = np.array([r for r in range(60) if r in set(split.rows("test").tolist())])
    with pytest.raises(HilumError, match=r"'train' .* holds none of the"):
        split.rows("train", among=only_test)


def test_a_fraction_that_loses_a_finding_is_refused_with_counts(tmp_path: Path) -> None:
    owners = [f"g{i:03d}" for i in range(100)]
    rare = {f"rare{k}": [float(i == 10 * k) for i in range(100)] for k in range(6)}
    common = {"common": [float(i % 2) for i in range(100)], "ill": [float(i % 25 != 3) for i in range(100)]}
    study = write_study(tmp_path, owners, labels={**common, **rare})
    split = make_split(study, val=0, test=0, near=False)
    kept = split.groups("train", fraction=0.02)
    lost = [f"rare{k} (1 positives in train, 0 left)" for k in range(6) if f"g{10 * k:03d}" not in kept]
    if not any(f"g{i:03d}" in kept for i in range(3, 100, 25)):
        lost.append("ill (4 negatives in train, 0 left)")
    with pytest.raises(HilumError) as caught:
        split.rows("train", fraction=0.02)
    assert len(lost) >= 4 and caught.value.what == f"0.02 of train, 2 of 100 images, loses {'; '.join(lost)}"
    assert len(split.rows("train", fraction=0.02, labels=["common"])) == 2
    assert len(split.rows("train", fraction=0.02, labels=())) == 2
    with pytest.raises(HilumError, match="taken of train"):
        split.groups("test", fraction=0.5)


def test_cross_validation_holds_out_every_group_once(tmp_path: Path) -> None:
    split = make_split(study_of(23, folder=tmp_path), val=0, test=0, folds=5, near=False)
    tests = [split.groups("test", fold=f) for f in range(5)]
    assert sorted(g for t in tests for g in t) == sorted(split.groups("train"))
    for f in range(5):
        train, val = split.groups("train", fold=f), split.groups("val", fold=f)
        assert (
            val == tests[(f + 1) % 5] and not train & (val | tests[f]) and len(train) + len(val) + len(tests[f]) == 23
        )
        half = split.groups("train", fraction=0.5, fold=f)
        assert half < train and len(half) == math.ceil(len(train) / 2)
    with pytest.raises(HilumError, match="5 folds, number 5"):
        split.groups("val", fold=5)


def test_stratifies_by_an_index_column(tmp_path: Path) -> None:
    sites = ["CR" if i % 4 == 0 else "DX" for i in range(80)]
    study = write_study(tmp_path, [f"g{i:03d}" for i in range(80)], modality=sites)
    split = make_split(study, stratify=["modality"], near=False)
    for part in ("train", "val", "test"):
        rows = split.rows(part)
        assert abs(sum(sites[r] == "CR" for r in rows) - len(rows) / 4) <= 1
    with pytest.raises(HilumError, match=r"no label or index column") as caught:
        make_split(study, stratify=["modalty"], near=False)
    assert "modality" in str(caught.value)


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_an_empty_part_is_an_error(tmp_path: Path) -> None:
    study = write_study(tmp_path, ["a", "a", "b", "unknown-1", "unknown-2", "unknown-3"])
    with pytest.raises(
        HilumError, match=r"leave a part empty: val 0.15 \(1\) and test 0.5 \(3\) of 5 groups, 2 of known"
    ):
        make_split(study, val=0.15, test=0.5, near=False)
    with pytest.raises(HilumError, match="leave nothing to train on"):
        make_split(study, val=0.5, test=0.5, near=False)
    assert not (study.path / "splits").exists(), "nothing is written on an error"
    with pytest.raises(HilumError, match="no split 'default'"):
        Split.load(study)


def test_rows_of_a_part_that_was_not_made(tmp_path: Path) -> None:
    split = make_split(study_of(10, folder=tmp_path), val=0, near=False)
    assert split.groups("val") == set()
    with pytest.raises(HilumError, match="'val' .* holds none"):
        split.rows("val")


def test_another_split_of_that_name_is_kept(tmp_path: Path) -> None:
    study = study_of(30, folder=tmp_path)
    first = make_split(study, near=False)
    assert make_split(study, near=False).digest == first.digest
    with pytest.raises(HilumError, match="already has a different split"):
        make_split(study, seed=1, near=False)
    assert Split.load(study).digest == first.digest
    assert make_split(study, seed=1, near=False, replace=True).digest != first.digest


def move_a_group(table: pa.Table) -> pa.Table:
    parts = table["split"].to_pylist()
    parts[parts.index("test")] = "train"
    return table.set_column(1, "split", pa.array(parts))


def repeat_a_group(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(0, 1)])


def change_a_rank(table: pa.Table) -> pa.Table:
    return table.set_column(2, "rank", pa.array(table["rank"].to_pylist()[::-1]))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (move_a_group, "changed after"),
        (repeat_a_group, "1 group stands .* more than once"),
        (change_a_rank, "changed after"),
    ],
)
def test_a_changed_file_is_noticed_at_the_start(tamper: Callable[..., Any], message: str, tmp_path: Path) -> None:
    study = study_of(30, folder=tmp_path)
    make_split(study, near=False)
    file = study.path / "splits" / "default.parquet"
    pq.write_table(tamper(pq.read_table(file)), file)
    with pytest.raises(LeakError, match=message):
        Split.load(study).check()


def test_damaged_files_are_one_clear_message(tmp_path: Path) -> None:
    study = study_of(30, folder=tmp_path)
    make_split(study, near=False)
    (study.path / "splits" / "default.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(HilumError, match="cannot be read"):
        Split.load(study)


def test_another_index_is_noticed_at_the_start(tmp_path: Path) -> None:
    study = study_of(30, folder=tmp_path)
    make_split(study, near=False)
    grown = study_of(33, folder=tmp_path)
    with pytest.raises(HilumError, match=r"another state of the index \(3 groups are new\)"):
        Split.load(grown).check()


def test_exact_copies_across_parts_are_an_error_and_can_be_grouped(tmp_path: Path) -> None:
    owners = [f"g{i:03d}" for i in range(40)]
    hashes = [f"h{i % 20}" for i in range(40)]  # every picture under two patients
    study = write_study(tmp_path, owners, stored_sha256=hashes)
    with pytest.raises(LeakError, match=r"pictures stand under several groups") as caught:
        make_split(study, near=False)
    assert "g0" in str(caught.value) and "--group-duplicates" in str(caught.value)
    assert not (study.path / "splits").exists()
    split = make_split(study, group_duplicates=True, folds=3, near=False)
    split.check()
    place = dict(zip(split.group_id, zip(split.split, split.fold, strict=True), strict=True))
    assert all(place[f"g{i:03d}"] == place[f"g{i + 20:03d}"] for i in range(20))
    assert all(split.groups(p) for p in ("train", "val", "test"))


def test_a_copy_of_an_unknown_patient_is_never_held_out(tmp_path: Path) -> None:
    owners = [f"g{i}" for i in range(10)] + ["unknown-a"]
    hashes = [f"h{i}" for i in range(10)] + ["h3"]
    study = write_study(tmp_path, owners, stored_sha256=hashes)
    for seed in range(8):
        split = make_split(study, seed=seed, name=f"s{seed}", group_duplicates=True, near=False)
        assert {"g3", "unknown-a"} <= split.groups("train")


def test_a_split_of_images_without_hashes_is_refused_at_the_start(tmp_path: Path) -> None:
    owners = [f"g{i:02d}" for i in range(20)]
    split = make_split(write_study(tmp_path, owners), near=False)
    study = write_study(tmp_path, owners, stored_sha256=[None] * 20)
    split.info["index_digest"] = study.digest
    with pytest.raises(HilumError, match="20 images of the index have no hash"):
        split.check(study)


def test_images_of_several_frames_are_in_no_part_and_told(tmp_path: Path) -> None:
    study = write_study(tmp_path, [f"g{i:02d}" for i in range(20)], frames=[1] * 17 + [9] * 3)
    split = make_split(study, near=False)
    assert split.groups("none") == {"g17", "g18", "g19"}
    assert split.warnings == ["left out: 3 images of several frames (2-D views take one)"]


def test_a_study_of_volumes_alone_is_split_over_them(tmp_path: Path) -> None:
    owners = [f"g{i // 2:02d}" for i in range(40)]
    volumes = make_split(write_study(tmp_path / "volumes", owners, frames=[9] * 40))
    flat = make_split(write_study(tmp_path / "flat", owners), near=False)
    assert volumes.split.tolist() == flat.split.tolist()  # the same groups, seed and strata: the same split
    assert volumes.warnings == [] and volumes.info["near_copies"] is None
    assert len(volumes.rows("test")) == 2 * len(volumes.groups("test")) > 0


def test_copies_that_appear_later_are_noticed(tmp_path: Path) -> None:
    """``duplicate_of`` and conflicts change no digest line; the check itself must find the leak."""
    owners = [f"g{i:02d}" for i in range(20)]
    split = make_split(write_study(tmp_path, owners), near=False)
    one, two = sorted(split.groups("train"))[0], sorted(split.groups("test"))[0]
    marks = [sample_id(f"img{owners.index(one):05d}") if g == two else None for g in owners]
    study = write_study(tmp_path, owners, duplicate_of=marks)
    with pytest.raises(LeakError, match=f"{one} .*{two}|{two} .*{one}"):
        Split.load(study).check()


# ---- official splits ---------------------------------------------------------------------------------------------


def official(folder: Path, rows: list[tuple[str, ...]], header: str) -> Path:
    path = folder / "official.csv"
    path.write_text(header + "\n" + "\n".join(",".join(r) for r in rows) + "\n")
    return path


def test_official_split_by_group(tmp_path: Path) -> None:
    study = write_study(tmp_path, list("aabbccddee"))
    words = {"a": "TRAIN", "b": "Validate", "c": "test", "d": "training", "e": ""}
    table = official(tmp_path, list(words.items()), "group_id,fold")
    split = make_split(study, from_table=(table, "fold"), near=False)
    assert {p: split.groups(p) for p in ("train", "val", "test", "none")} == {
        "train": {"a", "d"},
        "val": {"b"},
        "test": {"c"},
        "none": {"e"},
    }
    assert split.info["from"]["column"] == "fold"
    split.check()


def test_official_split_that_leaks_names_the_groups(tmp_path: Path) -> None:
    study = write_study(tmp_path, list("aabbcc"), names=[f"n{i}" for i in range(6)])
    parts = ["train", "test", "val", "val", "train", "val"]
    table = official(tmp_path, [(sample_id(f"n{i}"), p) for i, p in enumerate(parts)], "sample_id,split")
    with pytest.raises(
        LeakError, match=r"puts 2 groups in two parts \(1 in test and train, 1 in train and val\): a, c"
    ):
        make_split(study, from_table=(table, "split"), near=False)


def test_validation_is_taken_from_the_official_train(tmp_path: Path) -> None:
    owners = [f"g{i:02d}" for i in range(50)] + ["unknown-1"]
    study = write_study(tmp_path, owners)
    rows = [(g, "test" if i < 10 else "train") for i, g in enumerate(owners)]
    table = official(tmp_path, rows, "group_id,part")
    split = make_split(study, from_table=(table, "part"), val_from_train=0.1, near=False)
    assert split.groups("test") == set(owners[:10])
    assert len(split.groups("val")) == 4 and split.groups("val") <= set(owners[10:50])
    with pytest.raises(HilumError, match="out of an official split"):
        make_split(study, val_from_train=0.1, near=False)


def test_official_test_groups_of_unknown_identity_are_left_out_and_told(tmp_path: Path) -> None:
    study = write_study(tmp_path, ["a", "b", "unknown-1", "c"])
    table = official(tmp_path, [("a", "train"), ("b", "val"), ("unknown-1", "test"), ("zz", "test")], "group_id,part")
    split = make_split(study, from_table=(table, "part"), near=False)
    assert split.groups("none") == {"unknown-1", "c"}
    assert [w.split(" ")[0] for w in split.warnings] == ["1", "1", "1"]
    assert "unknown identity" in split.warnings[2] and "1 of 4 rows" in split.warnings[0]


def test_cells_of_a_wrong_split_column_are_not_printed(tmp_path: Path) -> None:
    study = write_study(tmp_path, list("ab"))
    table = official(tmp_path, [("a", "Doe-1"), ("b", "Doe-2")], "group_id,patient_name")
    with pytest.raises(HilumError, match="name no part") as caught:
        make_split(study, from_table=(table, "patient_name"), near=False)
    assert caught.value.where == "2 of 2, rows 2, 3" and "Doe" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "rows", "column", "message"),
    [
        ("group_id,part", [("a", "train"), ("b", "holdout")], "part", r"name no part"),
        ("group_id,part", [("a", "train")], "prt", r"no column 'prt'"),
        ("name,part", [("a", "train")], "part", r"no column that says which files"),
        ("group_id,part", [("x", "train"), ("y", "test")], "part", r"no row of official.csv fits"),
        ("group_id,part", [("a", "test"), ("b", "test")], "part", r"'train' of the official split would be empty"),
    ],
)
def test_official_tables_that_mean_nothing(
    header: str, rows: list[tuple[str, ...]], column: str, message: str, tmp_path: Path
) -> None:
    study = write_study(tmp_path, list("ab"))
    with pytest.raises(HilumError, match=message):
        make_split(study, from_table=(official(tmp_path, rows, header), column), near=False)


# ---- near copies -------------------------------------------------------------------------------------------------


def test_near_copies_across_parts_are_listed(tmp_path: Path) -> None:
    y, x = np.mgrid[0:96, 0:96]

    def picture(i: int, gain: float = 1.0) -> np.ndarray:
        rng = np.random.default_rng(i)
        image = sum(
            rng.uniform(-300, 300) * np.exp(-((x - rng.uniform(0, 96)) ** 2 + (y - rng.uniform(0, 96)) ** 2) / 30)
            for _ in range(40)
        )
        return np.clip(gain * image + 1500 + rng.normal(0, 2), 0, 4095).astype(np.uint16)

    owners = [f"g{i:02d}" for i in range(12)]
    images = [picture(i % 6, 1.0 if i < 6 else 0.9) for i in range(12)]  # g06 is a dimmer g00, and so on
    study = write_study(tmp_path, owners, images=images)
    cache = ShardCache(study, side=80, intakes=[NpyIntake()], workers=0)
    split = make_split(study, val=0.2, test=0.3, seed=1, near=cache)
    place = dict(zip(split.group_id, split.split, strict=True))
    expected = {frozenset((i, i + 6)) for i in range(6) if place[owners[i]] != place[owners[i + 6]]}
    ids = {sample_id(f"img{i:05d}"): i for i in range(12)}
    found = split.info["near_copies"]
    assert {frozenset((ids[p["first"]], ids[p["second"]])) for p in found["pairs"]} == expected
    assert expected and found["count"] == len(expected) and found["compared"] == 12
    assert "near-identical pictures stand in different parts" in split.warnings[-1]
