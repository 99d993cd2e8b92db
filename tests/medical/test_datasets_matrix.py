"""Every published set: index, counts, groups, labels, split, roles and views of a fake copy, against what its writer
says it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake.archive import by_path
from fake.brats import write_brats_2021, write_brats_2023
from fake.covidx import write_covidx
from fake.mimic_cxr import write_mimic_cxr
from fake.msd import write_msd
from fake.padchest import REPORT, write_padchest
from fake.pathvqa import write_pathvqa_parquet
from fake.rsna_pneumonia import write_rsna_pneumonia
from fake.siim_acr import write_siim_acr
from fake.slake import write_slake
from fake.totalsegmentator import write_totalsegmentator
from fake.truth import Held
from fake.vindr_cxr import write_vindr_cxr
from fake.vqa_rad import write_vqa_rad

from hilum.core.errors import HilumError
from hilum.core.registry import registry
from hilum.data.cards import DatasetCard
from hilum.data.image_files import ImageFilesIntake
from hilum.data.index import index_archive
from hilum.data.official import official_parts
from hilum.data.split import make_split
from hilum.data.study import Study
from hilum.medical.datasets.pathvqa import unpack
from hilum.medical.dicom.intake import DicomIntake
from hilum.medical.nifti import NiftiIntake

INTAKES = (DicomIntake(), ImageFilesIntake(), NiftiIntake())


def write_pathvqa(root: Path) -> list[Held]:
    """Unpacked from the Parquet release: the image that both training and test ask about is for training."""
    import hashlib

    names = [hashlib.sha256(data).hexdigest()[:24] for data in write_pathvqa_parquet(root.parent / "parquet")]
    assert unpack(root.parent / "parquet", root) == {"train": 2, "val": 1, "test": 1, "images": 3}
    splits = ("train", "train", "val")
    return [Held(f"images/{name}.jpg", None, split) for name, split in zip(names, splits, strict=True)]


SETS: dict[str, tuple[str, Callable[[Path], list[Held]]]] = {
    "mimic-jpg": ("medical/mimic-cxr-jpg", write_mimic_cxr),
    "mimic-negbio": ("medical/mimic-cxr-jpg", lambda root: write_mimic_cxr(root, labeller="negbio")),
    "mimic-dicom": ("medical/mimic-cxr", lambda root: write_mimic_cxr(root, jpg=False)),
    "rsna": ("medical/rsna-pneumonia", write_rsna_pneumonia),
    "rsna-unmapped": ("medical/rsna-pneumonia", lambda root: write_rsna_pneumonia(root, mapping=False)),
    "vindr": ("medical/vindr-cxr", write_vindr_cxr),
    "vindr-kaggle": ("medical/vindr-cxr", lambda root: write_vindr_cxr(root, kaggle=True)),
    "padchest": ("medical/padchest", write_padchest),
    "padchest-physician": ("medical/padchest-physician", lambda root: write_padchest(root, physician=True)),
    "siim": ("medical/siim-acr", write_siim_acr),
    "covidx": ("medical/covidx", write_covidx),
    "msd": ("medical/msd", write_msd),
    "totalsegmentator": ("medical/totalsegmentator", write_totalsegmentator),
    "brats-2021": ("medical/brats-2021", write_brats_2021),
    "brats-2023": ("medical/brats-2023", write_brats_2023),
    "vqa-rad": ("medical/vqa-rad", write_vqa_rad),
    "slake": ("medical/slake", write_slake),
    "pathvqa": ("medical/pathvqa", write_pathvqa),
}


def indexed(root: Path, out: Path, name: str, **options: Any) -> Study:
    result = index_archive(root, out, dataset=name, workers=0, intakes=INTAKES, progress=False, **options)
    assert result.exit_code == 0, result.counts
    return Study(result.study)


@pytest.mark.parametrize("case", SETS)
def test_a_published_set_indexes_as_it_is(tmp_path: Path, case: str) -> None:
    name, write = SETS[case]
    root = tmp_path / "root"
    root.mkdir()
    held = write(root)
    study = indexed(root, tmp_path / "s", name)
    files = by_path(study.path)
    rows = [files[h.path] for h in held]
    assert {r["status"] for r in rows} == {"indexed"}
    assert study.about["counts"]["indexed"] == len(held)
    assert study.about["counts"]["labels"] | {"rows": 0, "files": 0} == {
        "rows": 0, "rows_unmatched": 0, "files": 0, "files_unmatched": 0,
    }  # fmt: skip
    assert (study.about["dataset"], study.about["licence"]) == (name, registry.load("dataset", name).card.licence)
    assert [r["role"] for r in rows] == [h.role for h in held]
    assert [r["group_known"] for r in rows] == [h.patient is not None for h in held]
    same = {(a.patient == b.patient, x["group_id"] == y["group_id"]) for a, x in zip(held, rows, strict=True)
            for b, y in zip(held, rows, strict=True) if a.patient and b.patient}  # fmt: skip
    assert same <= {(True, True), (False, False)}
    assert all(h.view is None or r["view"] == h.view for h, r in zip(held, rows, strict=True))
    _check_labels(study, held, rows)
    card = registry.load("dataset", name).card
    assert isinstance(card, DatasetCard) and card.name == name and card.traps and card.steps and card.group


def _check_labels(study: Study, held: list[Held], rows: list[dict[str, Any]]) -> None:
    place = {sample: at for at, sample in enumerate(study.column("sample_id"))}
    labels = {r["sample_id"]: r for r in pq.read_table(study.path / "labels.parquet").to_pylist()}
    told = [labels[r["sample_id"]] for r in rows]
    assert [t.get("split") for t in told] == [h.split for h in held]
    assert [t.get("class") for t in told] == [h.kind for h in held]
    names = sorted({name for h in held for name in h.labels})
    assert sorted(study.label_names) == (names or sorted({h.kind for h in held if h.kind}))
    for h, r in zip(held, rows, strict=True):
        if names:
            wanted = np.float32([np.nan if (v := h.labels[name]) is None else v for name in names])
            np.testing.assert_array_equal(study.label_matrix(names, [place[r["sample_id"]]])[0], wanted)


@pytest.mark.parametrize("case", ["mimic-jpg", "totalsegmentator"])
def test_official_splits_hold_patients_apart(tmp_path: Path, case: str) -> None:
    name, write = SETS[case]
    (tmp_path / "root").mkdir()
    held = write(tmp_path / "root")
    study = indexed(tmp_path / "root", tmp_path / "s", name)
    part = official_parts(study, "", "split", warnings=[])
    files = by_path(study.path)
    assert [part[files[h.path]["group_id"]] for h in held] == [{"validate": "val"}.get(h.split, h.split) for h in held]


@pytest.mark.parametrize(("case", "group"), [("vindr", "image_id"), ("rsna-unmapped", "image_id")])
def test_without_patients_nothing_is_held_out_until_the_user_says_otherwise(
    tmp_path: Path, case: str, group: str
) -> None:
    name, write = SETS[case]
    (tmp_path / "root").mkdir()
    held = write(tmp_path / "root")
    study = indexed(tmp_path / "root", tmp_path / "s", name)
    with pytest.raises(HilumError, match="0 of known identity"):
        make_split(study, val=0.4, test=0.3, near=False)
    told = indexed(tmp_path / "root", tmp_path / "t", name, group=group)
    files = by_path(told.path)
    assert len({files[h.path]["group_id"] for h in held if files[h.path]["group_known"]}) == len(held)
    assert set(make_split(told, val=0.4, test=0.3, near=False).split) == {"train", "val", "test"}


def test_padchest_reports_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    write_padchest(tmp_path / "root")
    study = indexed(tmp_path / "root", tmp_path / "s", "medical/padchest")
    written = b"".join(p.read_bytes() for p in study.path.rglob("*") if p.is_file())
    assert REPORT.encode() not in written
