"""What is odd in each published set: every trap that its card names, and headers that are not as published."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake.archive import by_path, index
from fake.brats import write_brats_2021, write_brats_2023
from fake.chexpert import write_chexpert
from fake.covidx import write_covidx
from fake.mimic_cxr import write_mimic_cxr
from fake.msd import write_msd
from fake.nih_cxr14 import HEADER, write_nih_cxr14
from fake.padchest import write_padchest
from fake.pathvqa import write_pathvqa_parquet
from fake.rsna_pneumonia import IMAGES, write_rsna_pneumonia
from fake.siim_acr import write_siim_acr
from fake.slake import write_slake
from fake.totalsegmentator import write_totalsegmentator
from fake.vindr_cxr import write_vindr_cxr
from fake.vqa_rad import write_vqa_rad

from hilum.core.errors import HilumError
from hilum.core.registry import registry
from hilum.data.cards import differences
from hilum.data.image_files import ImageFilesIntake
from hilum.data.official import official_parts
from hilum.data.study import Study
from hilum.medical.datasets.columns import age, listed, value
from hilum.medical.datasets.pathvqa import unpack
from hilum.medical.datasets.questions import in_both
from hilum.medical.datasets.siim_acr import decode
from hilum.medical.datasets.totalsegmentator import STRUCTURES
from hilum.medical.datasets.vindr_cxr import agreed


def build(name: str) -> Any:
    return registry.build("dataset", f"medical/{name}")


HEADERS = {  # dataset: (writer, table, column, what a changed header calls it)
    "chexpert": (write_chexpert, "train.csv", "Support Devices", "Support Device"),
    "nih-cxr14": (write_nih_cxr14, "Data_Entry_2017.csv", "Finding Labels", "Finding Label"),
    "mimic-cxr-jpg": (write_mimic_cxr, "mimic-cxr-2.0.0-metadata.csv.gz", "ViewPosition", "View Position"),
    "rsna-pneumonia": (write_rsna_pneumonia, "stage_2_train_labels.csv", "Target", "target_"),
    "vindr-cxr": (write_vindr_cxr, "annotations/image_labels_train.csv", "Lung Opacity", "Lung opacity"),
    "padchest": (write_padchest, "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "MethodLabel", "Method_Label"),
    "siim-acr": (write_siim_acr, "train-rle.csv", "EncodedPixels", "EncodedPixel"),
    "msd": (write_msd, "Task09_Spleen/dataset.json", "numTraining", "num_training"),
    "totalsegmentator": (write_totalsegmentator, "meta.csv", "pathology_location", "pathology_locations"),
    "vqa-rad": (write_vqa_rad, "VQA_RAD Dataset Public.json", "image_case_url", "image_case"),
    "slake": (write_slake, "validate.json", "answer_type", "answertype"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_changed_header_is_named(tmp_path: Path, name: str) -> None:
    write, table, column, other = HEADERS[name]
    write(tmp_path)
    file = tmp_path / table
    zipped = file.suffix == ".gz"
    text = (gzip.decompress(file.read_bytes()) if zipped else file.read_bytes()).decode()
    text = text.replace(column, other, -1 if file.suffix == ".json" else 1)
    file.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    with pytest.raises(HilumError, match=f"no column '{column}'") as caught:
        build(name).table(tmp_path)
    assert f"{other!r}" in caught.value.fix


@pytest.mark.parametrize("name", [*HEADERS, "mimic-cxr", "covidx", "brats-2021", "brats-2023", "pathvqa"])
def test_an_empty_folder_is_an_error_that_says_what_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(HilumError, match=f"medical/{name}: no "):
        build(name).table(tmp_path)


def test_ages_and_values() -> None:
    assert [age(t) for t in ("61", "061Y", "0", "18M", "411", "25.0", "", "x")] == [
        "061Y", "061Y", "000Y", "018M", None, "025Y", None, None,
    ]  # fmt: skip
    assert [value(t, dataset="d", where="w") for t in ("", "1", "-1.0", " 0.0")] == [None, 1.0, -1.0, 0.0]
    with pytest.raises(HilumError, match="none of 1, 0, -1 and blank") as caught:
        value("Doe^Jane", dataset="d", where="row 3")
    assert "Doe" not in str(caught.value)


def test_lists_as_python_writes_them_are_matched_and_never_evaluated() -> None:
    def told(text: str) -> list[str] | None:
        return listed(text, dataset="d", where="row 2")

    assert told("['pleural effusion', ' cardiomegaly ', '', \"adam's sign\", nan]") == [
        "pleural effusion", "cardiomegaly", "adam's sign",
    ]  # fmt: skip
    assert told("") is None and told("nan") is None and told("[]") == [] and told("['a', 'a']") == ["a"]
    for text in ("__import__('os').system('true')", "['a'] + ['b']", "['a', b]", "['a'", "[lambda: 0]"):
        with pytest.raises(HilumError, match="no list of names"):
            told(text)


def test_chexpert_age_0_is_unknown_and_lateral_views_have_no_projection(tmp_path: Path) -> None:
    write_chexpert(tmp_path)
    table = build("chexpert").table(tmp_path)
    assert set(table["age"].to_pylist()) == {None} and set(table["view"].to_pylist()) == {"AP", "PA", "LATERAL"}


def test_nih_boxes_are_called_as_in_the_labels_and_impossible_ages_are_unknown(tmp_path: Path) -> None:
    write_nih_cxr14(tmp_path)
    (tmp_path / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_000.png,Infiltrate,2.5,3,4,5.5,,,\n"
    )
    boxes = build("nih-cxr14").boxes(tmp_path).to_pylist()
    assert boxes == [
        {"path": "images_002/images/00000001_000.png", "finding": "Infiltration", "reader": None,
         "x0": 2.5, "y0": 3.0, "x1": 6.5, "y1": 8.5}
    ]  # fmt: skip
    file = tmp_path / "Data_Entry_2017.csv"
    assert file.read_text().startswith(HEADER)
    file.write_text(file.read_text().replace(",1,41,", ",1,414,"))
    table = build("nih-cxr14").table(tmp_path)
    assert [a for p, a in zip(table["patient_id"].to_pylist(), table["age"].to_pylist(), strict=True) if p == "1"] == [
        None, None,
    ]  # fmt: skip


def test_mimic_labels_are_of_the_study_and_dates_are_not_read(tmp_path: Path) -> None:
    write_mimic_cxr(tmp_path)
    table = build("mimic-cxr-jpg").table(tmp_path)
    of = dict(zip(table["path"].to_pylist(), table["Edema"].to_pylist(), strict=True))
    assert sorted(map(str, of.values())) == ["-1.0", "-1.0", "0.0", "0.0", "1.0", "1.0", "None", "None"]
    assert "StudyDate" not in table.column_names and "21800506" not in str(table.to_pylist())


def test_rsna_headers_name_images_and_the_mapping_names_patients(tmp_path: Path) -> None:
    """Two images of one NIH patient: the headers would have told them apart, and a split could have."""
    held = write_rsna_pneumonia(tmp_path)
    study = index(tmp_path, tmp_path.parent / "s", dataset="medical/rsna-pneumonia").study
    groups = [by_path(study)[h.path]["group_id"] for h in held[:2]]
    assert groups[0] == groups[1]
    (tmp_path.parent / "nih").mkdir()
    write_nih_cxr14(tmp_path.parent / "nih")
    nih = by_path(index(tmp_path.parent / "nih", tmp_path.parent / "n", dataset="medical/nih-cxr14").study)
    assert nih["images_003/images/00000005_000.png"]["group_id"] == groups[0]  # the same person in both sets


def test_rsna_boxes_and_what_contradicts_them(tmp_path: Path) -> None:
    write_rsna_pneumonia(tmp_path)
    boxes = build("rsna-pneumonia").boxes(tmp_path).to_pylist()
    image = "00436515-870c-4b36-a041-de91049b9ab4"
    assert [(b["path"], b["x0"], b["y0"], b["x1"], b["y1"]) for b in boxes if image in b["path"]] == [
        (f"stage_2_train_images/{image}.dcm", 264, 152, 264 + 213, 152 + 379),
        (f"stage_2_train_images/{image}.dcm", 562, 152, 562 + 256, 152 + 453),
    ]
    assert len(boxes) == sum(len(found) for _, found, _ in IMAGES.values())
    file = tmp_path / "stage_2_train_labels.csv"
    good = file.read_text()
    file.write_text(good.replace(",,,,,0\n", ",,,,,1\n", 1))
    with pytest.raises(HilumError, match="contradict"):
        build("rsna-pneumonia").boxes(tmp_path)
    file.write_text(good + f"{image},,,,,0\n")
    with pytest.raises(HilumError, match="differ in Target"):
        build("rsna-pneumonia").table(tmp_path)


def test_vindr_readers_boxes_and_class_14(tmp_path: Path) -> None:
    assert [agreed(said) for said in ((1, 1, 1), (1, 1, 0), (1, 0, 0), (0, 0, 0), ())] == [1, 1, -1, 0, None]
    write_vindr_cxr(tmp_path, kaggle=True)
    boxes = build("vindr-cxr").boxes(tmp_path).to_pylist()
    assert {b["finding"] for b in boxes} == {"Cardiomegaly", "ILD", "Aortic enlargement"}
    assert sorted(b["reader"] for b in boxes) == ["R10", "R10", "R8", "R9"]
    assert {(b["x0"], b["y0"], b["x1"], b["y1"]) for b in boxes} == {(2, 3, 12, 18)}
    file = tmp_path / "train.csv"
    file.write_text(file.read_text().replace("No finding,14", "No finding,13", 1))
    with pytest.raises(HilumError, match="do not belong together"):
        build("vindr-cxr").table(tmp_path)


def test_vindr_monochrome1_shows_bright_what_is_bright(tmp_path: Path) -> None:
    held = write_vindr_cxr(tmp_path)
    rows = by_path(index(tmp_path, tmp_path.parent / "s", dataset="medical/vindr-cxr").study)
    assert [(rows[h.path]["photometric"], rows[h.path]["inverted"]) for h in held] == [
        ("MONOCHROME2", False), ("MONOCHROME1", True), ("MONOCHROME2", False),
    ]  # fmt: skip


def test_padchest_polarity_of_a_png_comes_from_the_table(tmp_path: Path) -> None:
    """The PNG of a MONOCHROME1 image holds stored values: served, its darkest stored value is the brightest."""
    from PIL import Image

    held = write_padchest(tmp_path)
    rows = by_path(index(tmp_path, tmp_path.parent / "s", dataset="medical/padchest").study)
    assert [rows[h.path]["photometric"] for h in held].count("MONOCHROME1") == 1
    for h in held[1:3]:
        stored = np.asarray(Image.open(tmp_path / h.path), float)
        pixels = ImageFilesIntake().open(tmp_path / h.path, rows[h.path])
        sign = -1 if h is held[2] else 1
        np.testing.assert_array_equal(pixels.stored[0] * pixels.slope + pixels.intercept, sign * stored)
        assert pixels.window.lo < pixels.window.hi and (pixels.window.hi < 0) == (sign < 0)


def test_siim_run_lengths_are_relative_and_run_down_the_columns() -> None:
    """3 x 4: skip 1, 2 pixels; skip 2, 1 pixel: cells 1, 2 and 5 counted down the columns from the left."""
    expected = np.zeros((3, 4), bool)
    expected[1, 0] = expected[2, 0] = expected[2, 1] = True
    np.testing.assert_array_equal(decode("1 2 2 1", 3, 4), expected)
    assert not decode("", 3, 4).any() and decode("0 12", 3, 4).all()
    for runs in ("1 2 2", "0 13", "-1 2", "a b"):
        with pytest.raises(HilumError, match="run lengths"):
            decode(runs, 3, 4)


def test_siim_masks_of_one_image(tmp_path: Path) -> None:
    write_siim_acr(tmp_path)
    encoded = build("siim-acr").encoded(tmp_path)
    assert sorted(map(len, encoded.values())) == [0, 1, 2]
    masks = next(m for m in encoded.values() if len(m) == 2)
    assert sum(decode(m, 24, 20).sum() for m in masks) == 5


def test_covidx_lines(tmp_path: Path) -> None:
    write_covidx(tmp_path)
    file = tmp_path / "test_COVIDx9A.txt"
    good = file.read_text()
    file.write_text(good.replace(" COVID-19 ", " COVID19 "))
    with pytest.raises(HilumError, match="unknown class") as caught:
        build("covidx").table(tmp_path)
    assert "COVID-19" in caught.value.fix and "line 1" in caught.value.where
    file.write_text(good + "36 lonely.png\n")
    with pytest.raises(HilumError, match="patient file class source"):
        build("covidx").table(tmp_path)


def test_covidx_lists_of_two_releases_are_refused(tmp_path: Path) -> None:
    write_covidx(tmp_path)
    (tmp_path / "train_COVIDx2.txt").write_text((tmp_path / "train_COVIDx9A.txt").read_text())
    with pytest.raises(HilumError, match="several releases"):
        build("covidx").table(tmp_path)


def test_a_table_of_patient_numbers_finds_the_patients_of_a_published_set(tmp_path: Path) -> None:
    """Their groups are of the set's issuer, which a user's own table does not name."""
    (tmp_path / "nih").mkdir()
    write_nih_cxr14(tmp_path / "nih")
    study = Study(index(tmp_path / "nih", tmp_path / "s", dataset="medical/nih-cxr14").study)
    lines = [f"{n},{('train', 'test')[n % 2]}" for n in range(1, 9)]
    (tmp_path / "mine.csv").write_text("\n".join(["patient_id,split", *lines]))
    warnings: list[str] = []
    parts = official_parts(study, tmp_path / "mine.csv", "split", warnings=warnings)
    assert sorted(parts.values()) == ["test"] * 4 + ["train"] * 4 and not warnings
    assert by_path(study.path)["images_002/images/00000001_000.png"]["group_id"] in {
        group for group, part in parts.items() if part == "test"
    }


def test_msd_masks_and_paths_that_leave_the_folder(tmp_path: Path) -> None:
    write_msd(tmp_path)
    masks = build("msd").masks(tmp_path).to_pylist()
    assert len(masks) == 4 and masks[0]["mask"] == masks[0]["path"].replace("imagesTr", "labelsTr")
    assert all((tmp_path / m["mask"]).is_file() for m in masks)
    file = tmp_path / "Task09_Spleen/dataset.json"
    good = json.loads(file.read_text())
    file.write_text(json.dumps(good | {"numTraining": 3}))
    with pytest.raises(HilumError, match="numTraining"):
        build("msd").table(tmp_path)
    for path in ("../../secret.nii.gz", "/etc/passwd"):
        file.write_text(json.dumps(good | {"test": [path]}))
        with pytest.raises(HilumError, match="outside its folder"):
            build("msd").table(tmp_path)


def test_totalsegmentator_has_a_file_a_structure_and_may_be_the_small_set(tmp_path: Path) -> None:
    assert len(STRUCTURES) == len(set(STRUCTURES)) == 117
    write_totalsegmentator(tmp_path)
    dataset = build("totalsegmentator")
    masks = dataset.masks(tmp_path).to_pylist()
    assert {m["finding"] for m in masks} == {"liver", "rib_left_1"} and len(masks) == 6
    assert dataset.table(tmp_path)["age"].to_pylist()[0] == "025Y"
    (tmp_path / "s0000/segmentations/liver.nii.gz").rename(tmp_path / "s0000/segmentations/livers.nii.gz")
    with pytest.raises(HilumError, match="no known structure") as caught:
        dataset.masks(tmp_path)
    assert "'liver'" in caught.value.fix


def test_brats_values_of_the_years_and_time_points(tmp_path: Path) -> None:
    new, old = build("brats-2023"), build("brats-2021")
    old.check_values([0, 1, 2, 4])
    new.check_values(np.array([0, 1, 2, 3]))
    with pytest.raises(HilumError, match="holds 4") as caught:
        new.check_values([0, 4])
    assert "brats-2021" in caught.value.fix
    with pytest.raises(HilumError, match="holds 3"):
        old.check_values([3])
    write_brats_2023(tmp_path)
    table = new.table(tmp_path)
    assert len(set(table["patient_id"].to_pylist())) == 2 and len(set(table["study_id"].to_pylist())) == 3
    assert len(new.masks(tmp_path)) == 12
    (tmp_path / "BraTS-GLI-00008-000/BraTS-GLI-00008-000-t2f.nii.gz").unlink()
    with pytest.raises(HilumError, match="lacks t2f"):
        new.table(tmp_path)
    with pytest.raises(HilumError, match="no file is named as published"):
        old.table(tmp_path)
    write_brats_2021(tmp_path)
    assert set(old.table(tmp_path)["role"].to_pylist()) == {"image", "label"}


def test_vqa_rad_tests_on_its_training_images_and_answers_are_text(tmp_path: Path) -> None:
    write_vqa_rad(tmp_path)
    dataset = build("vqa-rad")
    questions = dataset.questions(tmp_path)
    assert in_both(questions) == (2, 2) and "split" not in dataset.table(tmp_path).column_names
    assert questions["answer_type"].to_pylist() == ["CLOSED", "CLOSED", "OPEN", "OPEN", "OPEN"]
    assert questions["answer"].to_pylist()[3] == "2"


def test_slake_questions_in_two_languages_and_a_split_by_image(tmp_path: Path) -> None:
    write_slake(tmp_path)
    questions = build("slake").questions(tmp_path)
    assert sorted(questions["language"].to_pylist()) == ["en"] * 4 + ["zh"] * 4 and in_both(questions) == (0, 1)
    assert build("slake").table(tmp_path)["modality"].to_pylist()[::2] == ["MR", "CT", "DX", "CT"]


def test_pathvqa_pickles_are_refused_unread(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path(tmp_path / "was-run").touch, ()

    (tmp_path / "train").mkdir()
    (tmp_path / "train/train_vqa.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(HilumError, match=r"train_vqa\.pkl is a pickle, which runs code") as caught:
        build("pathvqa").table(tmp_path)
    assert "Parquet" in caught.value.fix and not (tmp_path / "was-run").exists()
    write_pathvqa_parquet(tmp_path / "release")
    unpack(tmp_path / "release", tmp_path / "root")
    questions = build("pathvqa").questions(tmp_path / "root")
    assert (
        in_both(questions) == (1, 1) and sorted(questions["answer_type"].to_pylist()) == ["CLOSED"] * 2 + ["OPEN"] * 2
    )
    assert all((tmp_path / "root" / path).is_file() for path in questions["path"].to_pylist())


def test_differences_from_the_published_counts_are_told(tmp_path: Path) -> None:
    write_mimic_cxr(tmp_path)
    study = Study(index(tmp_path, tmp_path.parent / "s", dataset="medical/mimic-cxr-jpg").study)
    assert differences(build("mimic-cxr-jpg").card, study) == [
        "images: 8 indexed, 377,110 published", "patients: 3 indexed, 65,379 published",
        "train: 4 indexed, 368,960 published", "val: 2 indexed, 2,991 published", "test: 2 indexed, 5,159 published",
    ]  # fmt: skip
