"""``views.NAME.voi``: which window of a file a recipe learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake.dicom import write
from PIL import Image
from pydicom.uid import CTImageStorage

from hilum.core.errors import HilumError
from hilum.data.cache import ShardCache
from hilum.data.index import index_archive
from hilum.data.ledger import Rejected
from hilum.data.source import StudySource
from hilum.data.study import Study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("windows")
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60
    write(
        root / "a" / "ct.dcm", ramp, sop_class=CTImageStorage, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024,
        RescaleType="HU", WindowCenter=[40, 400], WindowWidth=[401, 1801],
        WindowCenterWidthExplanation=["BRAIN", "BONE"],
    )  # fmt: skip
    Image.fromarray(ramp.astype(np.uint8)).save(root / "a" / "plain.png")
    index_archive(root / "a", root / "study", id_key=_key(root), workers=0, progress=False)
    return Study(root / "study")


def _key(root: Path) -> Path:
    (root / "key").write_bytes(b"7" * 32)
    return root / "key"


def _bounds(study: Study, voi: Any) -> tuple[float, float]:
    (row,) = study.rows("modality = 'CT'")
    cache = ShardCache(study, side="full", rows=np.array([row]), voi=voi, workers=0)
    cache.build()
    window = cache.get(int(row)).window
    cold = StudySource(study, rows=[int(row)], views={"image": {"voi": voi}})._image(int(row)).window
    assert window is not None and cold == window
    return window.lo, window.hi


@pytest.mark.parametrize(
    ("voi", "bounds"),
    [
        ("auto", (-160.5, 239.5)),  # LINEAR: centre - 0.5 -+ (width - 1) / 2, PS3.3 C.11.2.1.2.1
        (1, (-500.5, 1299.5)),
        ("bone", (-500.5, 1299.5)),  # the file's own explanation comes before the preset of that name
        ("lung", (-1350.0, 149.0)),  # -600.5 -+ 749.5
    ],
)
def test_a_recipe_names_its_window(study: Study, voi: Any, bounds: tuple[float, float]) -> None:
    assert _bounds(study, voi) == pytest.approx(bounds)


def test_caches_of_two_windows_are_two_caches_and_the_old_ones_stay(study: Study) -> None:
    names = {voi: ShardCache(study, side=16, voi=voi).fingerprint for voi in ("auto", 1, "lung")}
    assert len(set(names.values())) == 3
    assert names["auto"] == ShardCache(study, side=16).fingerprint


def test_a_file_without_that_window_is_a_bad_sample_and_not_another_window(study: Study) -> None:
    (ct,) = study.rows("modality = 'CT'")
    for row, voi in ((int(ct), 7), (int(ct), "nosuch"), (int(study.rows("source = 'image-files'")[0]), "lung")):
        cache = ShardCache(study, side="full", rows=np.array([row]), voi=voi, workers=0)
        assert [reason for reason, _ in cache.build().bad.values()] == ["no_such_window"]
        with pytest.raises(Rejected, match="window"):
            cache.get(row)


def test_views_of_one_image_share_a_window(study: Study) -> None:
    (row,) = study.rows("modality = 'CT'")
    source = StudySource(study, rows=[int(row)], views={"image": {"voi": "lung"}, "other": {"voi": "bone"}})
    with pytest.raises(HilumError, match="different windows"):
        source._image(int(row))
