"""Predictions on disk, the report made of them, and what it refuses."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from hilum.core.errors import HilumError, LeakError
from hilum.evaluation.metrics import auroc
from hilum.evaluation.predictions import Predictions
from hilum.evaluation.report import Origin, evaluate

NAMES = ("edema", "nodule", "hernia")


def predictions(split="test", seed=0, n_groups=120, run=0, fold=-1, noise=0.0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), 2)
    y = (rng.random((n_groups, 3)) < [0.4, 0.2, 0.0])[group].astype(float)
    y[:4, 2] = 1  # two patients with a hernia
    y[rng.random(y.shape) < 0.05] = np.nan
    y[10, 0] = -1
    known = np.where(y == 1, 1, 0)
    s = 1 / (1 + np.exp(-(rng.normal(size=y.shape) + 1.4 * known - 1)))
    s = np.clip(s + noise * np.random.default_rng(run + 50).normal(size=s.shape), 0, 1)
    return Predictions.of(
        sample_id=[f"{split}-{i:05d}" for i in range(len(group))],
        group_id=[f"{split}-{g}" for g in group],
        split=split,
        names=NAMES,
        targets=y,
        scores=s,
        seed=run,
        fold=fold,
    )


def joined(*parts):
    kwargs = {
        k: np.concatenate([getattr(p, k) for p in parts]) for k in ("sample_id", "group_id", "split", "fold", "seed")
    }
    return Predictions.of(
        **kwargs,
        names=NAMES,
        targets=np.concatenate([p.targets for p in parts]),
        scores=np.concatenate([p.scores for p in parts]),
    )


def test_predictions_round_trip_and_have_the_columns_of_the_format(tmp_path):
    p = predictions()
    path = p.write(tmp_path / "eval" / "predictions.parquet")
    columns = [
        "sample_id",
        "group_id",
        "split",
        *(f"target.{n}" for n in NAMES),
        *(f"score.{n}" for n in NAMES),
        "fold",
        "seed",
    ]
    assert pq.read_schema(path).names == columns
    back = Predictions.read(path)
    for name in ("sample_id", "group_id", "split", "targets", "scores", "fold", "seed"):
        assert np.array_equal(getattr(back, name), getattr(p, name), equal_nan=name in ("targets", "scores"))
    assert not list(path.parent.glob("*.partial"))


def test_bad_predictions_are_refused(tmp_path):
    with pytest.raises(HilumError, match="predicted more than once"):
        joined(predictions(), predictions())
    with pytest.raises(HilumError, match="do not fit"):
        Predictions.of(sample_id=["a"], group_id=["g"], split="test", names=["x"], targets=[[1, 0]], scores=[[0.1]])
    with pytest.raises(HilumError, match="could not be read"):
        Predictions.read(tmp_path / "absent.parquet")
    table = pq.read_table(predictions().write(tmp_path / "p.parquet")).drop_columns(["score.nodule"])
    pq.write_table(table, tmp_path / "q.parquet")
    with pytest.raises(HilumError, match=r"score\.nodule is missing"):
        Predictions.read(tmp_path / "q.parquet")
    with pytest.raises(HilumError, match="no predictions for the split 'val'"):
        predictions().of_split("val")


def test_report_counts_and_refusals(tmp_path):
    test, val = predictions(), predictions("val", seed=1)
    report = evaluate(test, validation=val, n=100)
    edema, hernia = report.finding("edema"), report.finding("hernia")
    y = test.targets[:, 0]
    assert (edema.n, edema.n_positive, edema.n_unknown) == ((y >= 0).sum(), (y == 1).sum(), 240 - (y >= 0).sum())
    assert edema.n_positive_groups == len({g for g, v in zip(test.group_id, y) if v == 1})
    assert edema.metrics["auroc"].value == pytest.approx(auroc(y, test.scores[:, 0]))
    assert edema.point.split == "val" and edema.at.counts.tp > 0
    assert hernia.metrics["auroc"].value is None and hernia.point is None and hernia.point_reason == hernia.reason
    assert report.covered == ("edema", "nodule") and list(report.left_out) == ["hernia"]
    assert any("1 of 3 findings" in w and "hernia" in w for w in report.warnings)
    assert "test/auroc/hernia" not in report.scalars() and "test/auroc/macro" in report.scalars()
    with pytest.raises(HilumError, match="no finding"):
        report.finding("oedema")

    folder = report.write(tmp_path / "eval" / "test")
    written = json.loads((folder / "metrics.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} in JSON"))
    assert written["findings"][2]["metrics"]["auroc"]["value"] is None
    assert "at least 5" in written["macro"]["left_out"]["hernia"]
    assert written["findings"][0]["point"]["split"] == "val"
    # the same numbers come from the predictions that were written beside them
    again = evaluate(Predictions.read(folder / "predictions.parquet"), validation=val, n=100)
    assert again.to_json() == report.to_json()


def test_thresholds_never_come_from_the_rows_judged():
    test = predictions()
    with pytest.raises(HilumError, match="validation predictions only"):
        evaluate(test, validation=test, n=5)
    point = evaluate(test, validation=predictions("val", seed=1), n=5).finding("edema").point
    forged = {"edema": type(point)(**{**point.to_json(), "split": "test"})}
    with pytest.raises(HilumError, match="chosen on 'test'"):
        evaluate(test, points=forged, n=5)
    kept = evaluate(test, points={"edema": point}, n=5)
    assert kept.finding("edema").at is not None
    assert kept.finding("nodule").point_reason == "no threshold was given"
    assert evaluate(test, n=5).finding("edema").point_reason == "no validation predictions"


def test_validation_patients_in_the_test_set_are_a_leak():
    val = predictions("val", seed=1)
    val.group_id[0] = "test-7"
    with pytest.raises(LeakError, match="1 groups stand both"):
        evaluate(predictions(), validation=val, n=5)


def test_judging_validation_by_its_own_threshold_is_said():
    val = predictions("val", seed=1)
    report = evaluate(val, validation=val, n=5)
    assert any("optimistic" in w for w in report.warnings)


def test_rules_by_finding():
    rule = {"edema": "sensitivity>=0.95"}
    report = evaluate(predictions(), validation=predictions("val", seed=1), rule=rule, n=5)
    assert report.finding("edema").point.rule == "sensitivity>=0.95"
    assert report.finding("nodule").point.rule == "youden"


def test_a_report_is_about_one_split():
    with pytest.raises(HilumError, match="one split"):
        evaluate(joined(predictions(), predictions("val", seed=1)), n=5)


def test_seeds_are_averaged_and_have_no_threshold():
    runs = [predictions(run=r, noise=0.2) for r in range(3)]
    report = evaluate(joined(*runs), validation=predictions("val", seed=1), n=50)
    want = np.mean([auroc(r.targets[:, 0], r.scores[:, 0]) for r in runs])
    assert report.finding("edema").metrics["auroc"].value == pytest.approx(want)
    assert report.finding("edema").n == (runs[0].targets[:, 0] >= 0).sum()
    assert "one model" in report.finding("edema").point_reason
    runs[1].targets[0] = 1 - np.nan_to_num(runs[1].targets[0])
    with pytest.raises(HilumError, match="disagree on targets"):
        evaluate(joined(*runs), n=5)


def test_compare_is_paired_by_sample_whatever_the_order():
    a, b = predictions(), predictions(noise=0.4)
    order = np.random.default_rng(0).permutation(len(b))
    first = evaluate(a, n=100).compare(evaluate(b, n=100))
    second = evaluate(a, n=100).compare(evaluate(b.rows(order), n=100))
    assert first.to_json() == second.to_json()
    assert first.mean.difference.value > 0 and first.covered == ("edema", "nodule")
    with pytest.raises(HilumError, match="different samples: 2 only in the first"):
        evaluate(a, n=5).compare(evaluate(b.rows(slice(2, None)), n=5))
    b.group_id[3] = "somebody else"
    with pytest.raises(HilumError, match="disagree on groups"):
        evaluate(a, n=5).compare(evaluate(b, n=5))


def test_where_predictions_come_from_is_written_and_told_apart():
    counts = {"expected": 250, "delivered": 240, "missing": {"codec_error": 10}}
    origin = Origin("ab" * 32, "site-0123abcd", {"site-0123abcd-test": counts, "val": counts}, ("A note.",))
    report = evaluate(predictions(), validation=predictions("val", 1), n=10, rule="sensitivity>=0.8", origin=origin)
    assert report.name == "site-0123abcd-test"
    assert set(report.scalars()) == {f"site-0123abcd/{k}" for k in evaluate(predictions(), n=10).scalars()}
    stored = report.to_json()
    assert (stored["study"], stored["checkpoint"], stored["rule"]) == ("site-0123abcd", "ab" * 32, "sensitivity>=0.8")
    assert stored["delivery"]["val"] == counts
    assert report.warnings[:3] == [
        "A note.",
        "10 of 250 rows of site-0123abcd-test could not be read (10 codec_error): they are not judged.",
        "10 of 250 rows of val could not be read (10 codec_error): thresholds were chosen without them.",
    ]
    # the validation rows of another study are not those that thresholds were chosen on
    other = evaluate(predictions("val", 2), validation=predictions("val", 1), n=10, origin=Origin(study="site-0"))
    assert not any("these very validation rows" in w for w in other.warnings)
