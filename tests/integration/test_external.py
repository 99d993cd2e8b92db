"""A run on patients of another study: thresholds of the weights and rule in use, leaks that another key hides, names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hilum.core.errors import HilumError, LeakError
from hilum.verbs.evaluating import evaluate
from hilum.verbs.intake import index
from hilum.verbs.training import finetune

pytestmark = pytest.mark.integration
EXACT = "sensitivity>=0.9"


@pytest.fixture(scope="module")
def hospital(draw: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 24 patients that no run has seen."""
    root = tmp_path_factory.mktemp("hospital") / "archive"
    draw(root, range(100, 124), seed=7)
    return root


@pytest.fixture(scope="module")
def other(hospital: Path) -> Path:
    out = hospital.parent / "a" / "hospital"
    index(hospital, out=out, labels=hospital.parent / "labels.csv", workers=1)
    return out


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "other.key"
    path.write_bytes(b"k" * 32)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def run(study: Path, recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that lies beside its study, so that either may go."""
    root = tmp_path_factory.mktemp("external")
    shutil.copytree(study, root / "study", ignore=shutil.ignore_patterns("runs", "cache"))
    sets = ["schedule.epochs=2", "schedule.warmup_epochs=0"]
    finetune(str(recipes / "findings.yaml"), data=root / "study", out=root / "run", set=sets, track=False)
    return root / "run"


def judged(run: Path, **options: Any) -> Any:
    return evaluate(run, resamples=20, track=False, **options)


def points(report: Any) -> dict[str, tuple[str, float]]:
    return {f.name: (f.point.rule, f.point.threshold) for f in report.findings if f.point}


def test_thresholds_are_those_of_the_weights_and_the_rule_in_use(run: Path, other: Path) -> None:
    judged(run, checkpoint="last", rule=EXACT)
    external = judged(run, data=other)
    assert {rule for rule, _ in points(external).values()} == {"youden"}
    assert points(external) == points(judged(run))
    assert points(judged(run, data=other, rule=EXACT)) == points(judged(run, rule=EXACT))


def test_stored_thresholds_of_other_weights_or_another_rule_are_refused(run: Path, other: Path, tmp_path: Path) -> None:
    own = points(judged(run, rule=EXACT))
    study = run.parent / "study"
    study.rename(run.parent / "away")
    try:
        report = judged(run, data=other, rule=EXACT)
        assert points(report) == own and any("stored with eval/test" in w for w in report.warnings)
        with pytest.raises(HilumError, match="another rule") as caught:
            judged(run, data=other)
        assert "--rule" in str(caught.value)
        path = run / "eval" / "test" / "metrics.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "checkpoint": "0" * 64}))
        with pytest.raises(HilumError, match="another checkpoint"):
            judged(run, data=other, rule=EXACT)
    finally:
        (run.parent / "away").rename(study)


def test_another_key_hides_patients_but_not_pictures(
    run: Path, archive: Path, hospital: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index(archive, out=tmp_path / "again", labels=archive.parent / "labels.csv", id_key=key, workers=1)
    with pytest.raises(LeakError, match="pictures of again were used") as caught:
        judged(run, data=tmp_path / "again")
    assert "patients and" not in str(caught.value)
    index(hospital, out=tmp_path / "clean", labels=hospital.parent / "labels.csv", id_key=key, workers=1)
    report = judged(run, data=tmp_path / "clean")
    folder = run / "eval" / report.name
    assert any("another identity key" in w for w in report.warnings)
    assert "another identity key" in (folder / "report.html").read_text()
    assert "another identity key" in (folder / "metrics.json").read_text()
    assert "another identity key" in capsys.readouterr().out


def test_a_copy_of_the_run_s_own_study_is_refused_whatever_part_is_asked_for(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent / "study", tmp_path / "copy")
    for part in ("train", "val"):
        with pytest.raises(LeakError, match="were used"):
            judged(run, data=tmp_path / "copy", split=part)


def test_studies_of_one_name_do_not_overwrite_each_other_nor_the_run(run: Path, other: Path, hospital: Path) -> None:
    fewer = hospital.parent / "b" / "hospital"
    index(hospital, out=fewer, labels=hospital.parent / "labels.csv", exclude=["p100*"], workers=1)
    reports = [judged(run, data=data) for data in (other, fewer)]
    names = [r.name for r in reports]
    assert len(set(names)) == 2 and all(n.startswith("hospital-") and n.endswith("-test") for n in names)
    sizes = [json.loads((run / "eval" / n / "metrics.json").read_text())["n"] for n in names]
    assert sizes[0] == 36 and sizes[1] < 36
    assert all(k.startswith(f"{r.origin.study}/test/") for r in reports for k in r.scalars())
    assert all(k.startswith("test/") for k in judged(run, data=run.parent / "study").scalars())  # its own, by --data
