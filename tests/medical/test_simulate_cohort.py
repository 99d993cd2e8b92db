"""A cohort on disk: files that are read as they were meant, tables that join, damage that is damage."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from hilum.core.errors import HilumError
from hilum.medical.simulate import FINDINGS, Cohort, simulate_cohort
from hilum.medical.simulate.cases import draw_patient
from hilum.medical.simulate.damage import KINDS
from hilum.medical.simulate.vendors import VENDORS, write_pixels

SETTINGS = {"patients": 14, "seed": 5, "size": 96, "images_per_patient": (1, 2), "progress": False}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    out = tmp_path_factory.mktemp("simulated") / "cohort"
    return simulate_cohort(out, workers=2, broken=7, copies=2, masks=True, **SETTINGS)  # type: ignore[arg-type]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files(cohort: Cohort) -> list[Path]:
    damaged = {path for _, path in cohort.broken}
    found = (f for f in sorted(cohort.dicom.rglob("*")) if f.is_file())
    return [f for f in found if f.relative_to(cohort.dicom).as_posix() not in damaged]


def displayed(data: pydicom.Dataset) -> np.ndarray:
    """What a workstation shows, 0 dark to 1 bright, by pydicom's own LUTs."""
    values = apply_modality_lut(data.pixel_array, data)
    shown = apply_voi_lut(values, data, prefer_lut=True).astype(np.float64)
    if "VOILUTSequence" in data:
        low, high = 0.0, 2.0 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "WindowCenter" in data:
        slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
        low, high = intercept, intercept + slope * (2**data.BitsStored - 1)
    else:
        low, high = shown.min(), shown.max()
    shown = (shown - low) / (high - low)
    return np.asarray(1 - shown if data.PhotometricInterpretation == "MONOCHROME1" else shown)


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda v: v.model)
def test_every_vendors_file_shows_the_same_picture(vendor: object) -> None:
    rng = np.random.default_rng(0)
    picture = np.clip(rng.normal(0.5, 0.2, (48, 40)), 0, 1).astype(np.float32)
    picture[0, :2] = 0, 1
    data = pydicom.Dataset()
    stored = write_pixels(data, picture, vendor, rng)  # type: ignore[arg-type]
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    assert np.array_equal(data.pixel_array, stored) and stored.max() < 1 << vendor.bits  # type: ignore[attr-defined]
    shown = displayed(data)
    inner = (picture > 0.05) & (picture < 0.95)  # SIGMOID never reaches the ends
    assert np.abs(shown - picture)[inner].max() < 0.01


def test_files_are_valid_and_say_simulated(cohort: Cohort) -> None:
    seen, uids = set(), []
    for path in files(cohort):
        data = pydicom.dcmread(path)
        assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
        assert data.file_meta.MediaStorageSOPClassUID == data.SOPClassUID
        assert "SIMULATED" in data.ImageComments and "SIMULATED" in data.SeriesDescription
        assert str(data.PatientName).startswith("SIMULATED^") and data.Manufacturer.startswith("SIMULATED")
        assert all(
            u.is_valid and u.startswith("2.25.")
            for u in (data.SOPInstanceUID, data.SeriesInstanceUID, data.StudyInstanceUID)
        )
        pixels = data.pixel_array
        assert pixels.shape == (data.Rows, data.Columns) and pixels.max() < 1 << data.BitsStored
        shown = displayed(data)
        assert shown.std() > 0.08 and 0.2 < shown.mean() < 0.8
        seen.add((data.Manufacturer, data.file_meta.TransferSyntaxUID, data.PhotometricInterpretation, data.BitsStored))
        uids.append(data.SOPInstanceUID)
    assert len(uids) == len(set(uids)) == cohort.count
    assert len({v for v, *_ in seen}) >= 4 and len({s for _, s, *_ in seen}) >= 3
    assert {p for *_, p, _ in seen} == {"MONOCHROME1", "MONOCHROME2"}


def test_labels_reports_and_images_join(cohort: Cohort) -> None:
    labels, reports, images = (table(p) for p in (cohort.labels, cohort.reports, cohort.images))
    assert list(labels[0]) == ["sop_instance_uid", *FINDINGS]
    by_uid = {row["sop_instance_uid"]: row for row in labels}
    texts = {row["study_instance_uid"]: row["text"] for row in reports}
    assert len(labels) == len(images) == cohort.count and len(texts) == cohort.studies
    on_disk = {pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID: f for f in files(cohort)}
    for row in images:
        assert on_disk[row["sop_instance_uid"]] == cohort.dicom / row["path"]
        found = json.loads(row["findings"])
        assert {n for n in FINDINGS if by_uid[row["sop_instance_uid"]][n] == "1"} == set(found)
        impression = texts[row["study_instance_uid"]].split("IMPRESSION:")[1].lower()
        assert {n for n in FINDINGS if n in impression} == set(found)
    assert all(0 < sum(int(row[name]) for row in labels) < len(labels) for name in FINDINGS)


def test_masks_lie_on_the_picture_and_the_heart_on_the_left(cohort: Cohort) -> None:
    images = {row["sop_instance_uid"]: row for row in table(cohort.images)}
    for path in files(cohort):
        data = pydicom.dcmread(path)
        if str(data.PatientID).startswith("SIMCOPY"):
            continue
        masks = np.load(cohort.masks / f"{data.SOPInstanceUID}.npz")
        lungs = {side: masks[f"{side}_lung"].astype(bool) for side in ("left", "right")}
        heart = masks["heart"].astype(bool)
        columns = np.arange(data.Columns)[None]
        middle = np.mean([columns.repeat(data.Rows, 0)[m].mean() for m in lungs.values()])
        assert (columns * heart).sum() / heart.sum() > middle + 0.02 * data.Columns
        assert (columns * lungs["left"]).sum() / lungs["left"].sum() > middle
        found = json.loads(images[data.SOPInstanceUID]["findings"])
        assert set(masks) == {"left_lung", "right_lung", "heart", *found}
        for name, finding in found.items():
            mask = masks[name].astype(bool)
            assert mask.any()
            if finding.get("side"):
                assert (mask & lungs[finding["side"]]).sum() > 0.8 * mask.sum()
        if not found:
            shown = displayed(data)
            field = shown > 0
            clear = (lungs["left"] | lungs["right"]) & ~heart & field
            assert shown[clear].mean() < shown[heart & field].mean() - 0.1  # lungs are dark


def test_the_same_seed_gives_the_same_bytes(cohort: Cohort, tmp_path: Path) -> None:
    few = {**SETTINGS, "patients": 3}
    again = simulate_cohort(tmp_path / "again", workers=1, **few)  # type: ignore[arg-type]
    for path in files(again):
        assert path.read_bytes() == (cohort.dicom / path.relative_to(again.dicom)).read_bytes()
    other = simulate_cohort(tmp_path / "other", workers=1, **{**few, "patients": 1, "seed": 6})  # type: ignore[arg-type]
    assert not {f.read_bytes() for f in files(other)} & {f.read_bytes() for f in files(cohort)}


def test_damaged_files_fail_as_they_should(cohort: Cohort) -> None:
    assert [kind for kind, _ in cohort.broken] == [KINDS[n % len(KINDS)] for n in range(7)]
    good = {f.read_bytes() for f in files(cohort)}
    labelled = {row["sop_instance_uid"] for row in table(cohort.labels)}
    for kind, name in cohort.broken:
        path = cohort.dicom / name
        if kind == "empty":
            assert path.stat().st_size == 0
        elif kind == "not_dicom":
            with pytest.raises(pydicom.errors.InvalidDicomError):
                pydicom.dcmread(path)
        elif kind == "duplicate":
            assert path.read_bytes() in good
        else:
            data = pydicom.dcmread(path)
            assert data.SOPInstanceUID not in labelled
            with pytest.raises((StopIteration, ValueError)) as caught:
                data.pixel_array
            assert (caught.type is StopIteration) == (kind == "missing_frames")


def test_labels_can_be_uncertain_or_missing(tmp_path: Path) -> None:
    cohort = simulate_cohort(
        tmp_path / "c",
        patients=40,
        size=40,
        workers=2,
        images_per_patient=(1, 1),
        uncertain=0.2,
        missing=0.1,
        progress=False,
    )
    entries = np.array([[row[n] for n in FINDINGS] for row in table(cohort.labels)])
    assert set(entries.ravel()) == {"0", "1", "-1", ""}
    assert 0.1 < (entries == "-1").mean() < 0.3 and 0.03 < (entries == "").mean() < 0.2


def test_bad_arguments_are_told_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(HilumError, match="not empty"):
        simulate_cohort(tmp_path / "full", patients=1, progress=False)
    with pytest.raises(HilumError, match="'nodle'(.|\n)*'nodule'"):
        simulate_cohort(tmp_path / "a", patients=1, prevalence={"nodle": 0.1}, progress=False)
    with pytest.raises(HilumError, match="patients >= 1"):
        simulate_cohort(tmp_path / "b", patients=0, progress=False)
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_a_patients_vendor_and_views_vary(cohort: Cohort) -> None:
    from hilum.medical.simulate.anatomy import load_chest

    chest, prevalence = load_chest(), dict.fromkeys(FINDINGS, 0.3)
    people = [draw_patient(0, n, chest, prevalence=prevalence, images=(1, 3)) for n in range(120)]
    counts = [sum(p.vendor is v for p in people) for v in VENDORS]
    assert min(counts) >= 8
    views = [i.pose.view for p in people for s in p.studies for i in s.images]
    assert 0.2 < np.mean([v == "AP" for v in views]) < 0.5


def test_cohorts_of_two_seeds_share_no_identifier(cohort: Cohort, tmp_path: Path) -> None:
    def identifiers(made: Cohort) -> set[str]:
        heads = [pydicom.dcmread(f, stop_before_pixels=True) for f in files(made)]
        names = ("PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        assert all(len(str(head.AccessionNumber)) <= 16 for head in heads)
        return {str(head[name].value) for head in heads for name in names}

    told = {**SETTINGS, "patients": 2, "copies": 1}
    others = [identifiers(simulate_cohort(tmp_path / str(s), **{**told, "seed": s})) for s in (0, 6, 10**12)]
    seen = [identifiers(cohort), *others]
    assert len(set.union(*seen)) == sum(map(len, seen))
    assert {"SIM000000", "SIM000001", "SIMCOPY00000"} < others[0]  # what is published for seed 0 stays
