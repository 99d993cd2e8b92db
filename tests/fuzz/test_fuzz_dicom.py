"""2,000 mutants with a fixed seed; ``python tests/fuzz/run.py --mutants 100000`` is the long run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fuzz.mutate import mutant
from fuzz.run import fuzz
from fuzz.seeds import LARGEST, write_seeds

from hilum.core.types import Limits
from hilum.data.isolation import read_file
from hilum.medical.dicom.codecs import NATIVE, ORDER
from hilum.medical.dicom.intake import DicomIntake

pytestmark = pytest.mark.filterwarnings("ignore")


def test_seeds_cover_every_syntax_and_kind_of_object(tmp_path: Path) -> None:
    files = write_seeds(tmp_path)
    assert all(0 < f.stat().st_size <= LARGEST for f in files)
    rows = [read_file(f, [DicomIntake()], Limits())[0] for f in files]
    read = {r.columns.get("codec") for r in rows if r.status == "indexed"}
    assert {"native", "rle", "pillow", "openjpeg", "pyjpegls", "gdcm", "imagecodecs"} <= read
    syntaxes = {r.columns.get("transfer_syntax") for r in rows}
    assert set(ORDER) <= syntaxes and set(NATIVE) <= syntaxes
    assert {r.columns["transfer_syntax"] for r in rows if r.status == "indexed"} >= set(ORDER)  # streams are valid
    stream = (tmp_path / "made-202.dcm").read_bytes()
    assert stream[stream.index(b"\xff\x52") + 5] == 2  # RPCL (ISO/IEC 15444-1 table A.16), as .202 demands
    kinds = {r.reason.removeprefix("non_image:") for r in rows if r.status == "skipped"}
    assert {"sr", "rtplan", "rtstruct", "waveform", "pdf", "ko", "pr"} <= kinds
    assert sum(r.columns.get("role") == "label" and r.status == "indexed" for r in rows) >= 2


def test_mutants_are_decided_by_their_number_and_differ_from_their_seed(tmp_path: Path) -> None:
    seeds = [f.read_bytes() for f in write_seeds(tmp_path)]
    numbers = range(200)
    first = [mutant(seeds, n) for n in numbers]
    assert first == [mutant(seeds, n) for n in numbers]
    assert np.mean([m != seeds[n % len(seeds)] for n, m in zip(numbers, first, strict=True)]) > 0.85
    assert [mutant(seeds, n, run=1) for n in numbers] != first


def test_a_reader_that_runs_out_of_memory_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(DicomIntake, "read", starve)
    assert fuzz(2, workers=0)["faults"] == ["0: ended for memory", "1: ended for memory"]


@pytest.mark.slow
def test_two_thousand_mutants() -> None:
    found = fuzz(2000)
    assert found["faults"] == []
    outcomes = found["outcomes"]
    assert isinstance(outcomes, dict) and sum(outcomes.values()) == 2000
    assert {"indexed", "skipped", "truncated_pixels", "inconsistent_attributes", "resource_limit"} <= set(outcomes)
