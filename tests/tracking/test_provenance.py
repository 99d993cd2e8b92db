"""Names, parameters and words that may leave the machine."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hilum.tracking.provenance import Names, flatten, is_dead, legal_name, process_tags, redact, sha


def test_the_documented_name_and_names_that_are_legal_already() -> None:
    assert legal_name("AUROC (val)@0.5") == "AUROC _val_ at 0.5"
    for name in ("val/auroc", "time: read", "a.b-c_d", "_x", "a b"):
        assert legal_name(name) == name


@given(st.lists(st.text(max_size=300), unique=True, max_size=12))
def test_any_name_is_accepted_by_mlflow_and_none_fall_together(texts: list[str]) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag

    names = Names()
    legal = [names[text] for text in texts]
    for name in legal:
        _validate_metric_name(name)
        _validate_param_name(name)
        _validate_tag(f"hilum.nonfinite.{name}", "x")
        assert len(f"hilum.nonfinite.{name}") <= 250
        assert legal_name(name) == name
    assert len(set(legal)) == len(texts)


def test_flatten_loses_nothing() -> None:
    config = {"a": {"b": 1, "c.d": [1, 2]}, "stages": [{"lr": 0.1}, {"lr": 0.2}], "e": {}, "f": None, "g": []}
    assert dict(flatten(config)) == {
        "a.b": 1, "a.c\\.d": [1, 2], "stages.0.lr": 0.1, "stages.1.lr": 0.2, "e": {}, "f": None, "g": []
    }  # fmt: skip


def test_paths_are_replaced_and_only_paths(tmp_path: Path) -> None:
    known = {"RUN": tmp_path / "run", "STUDY": tmp_path}
    clean = partial(redact, known=known)
    for secret in ("/data/Mueller^Eva/ct 1.dcm", "~eva/ct 1.dcm", "C:\\scans\\ct 1.dcm", "\\\\nas\\pacs\\ct 1.dcm"):
        assert clean(secret) == sha("ct 1.dcm", 8)
    assert clean("sqlite:////home/someone/x.db") == clean("file:///home/someone/x.db") == sha("x.db", 8)
    assert clean(f"{tmp_path}/run/checkpoints/last.ckpt") == "RUN/checkpoints/last.ckpt"
    assert clean(f"{tmp_path}/run/../splits/default.json") == "STUDY/splits/default.json"
    assert clean(f"{tmp_path}/../x") == sha("x", 8)
    assert clean("read '/data/eva/ct.dcm', then=/mnt/b") == f"read '{sha('ct.dcm', 8)}', then={sha('b', 8)}"
    for plain in ("timm/vit_small", "http://host:80/a/b", "1/2", "km/h and/or", "./a/b", "val/auroc", "~0.5", "a: b"):
        assert clean(plain) == plain


def test_who_counts_as_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    own = process_tags()
    assert not is_dead(own) and not is_dead({})
    assert is_dead({**own, "hilum.pid": str(child.pid)})
    assert not is_dead({**own, "hilum.pid": str(child.pid), "hilum.host": "another"})
    assert is_dead({**own, "hilum.started": str(int(own["hilum.started"]) - 3600)})  # the number was given out again
