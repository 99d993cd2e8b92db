"""TotalSegmentator v2 (Wasserthal et al. 2023): 1,228 CT volumes, 117 structures, a file a structure."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from hilum.core.errors import HilumError, nearest
from hilum.data.cards import Dataset, DatasetCard, Download
from hilum.medical.datasets.columns import MASKS, Rows, age, files_below, first_match, inside, read, sex

_SIDES = ("left", "right")
STRUCTURES = (
    *("spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas"),
    *("adrenal_gland_right", "adrenal_gland_left", "lung_upper_lobe_left", "lung_lower_lobe_left"),
    *("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right", "esophagus", "trachea"),
    *("thyroid_gland", "small_bowel", "duodenum", "colon", "urinary_bladder", "prostate"),
    *("kidney_cyst_left", "kidney_cyst_right", "sacrum", "vertebrae_S1"),
    *(f"vertebrae_{part}{n}" for part, count in (("L", 5), ("T", 12), ("C", 7)) for n in range(count, 0, -1)),
    *("heart", "aorta", "pulmonary_vein", "brachiocephalic_trunk"),
    *(f"{name}_{side}" for name in ("subclavian_artery", "common_carotid_artery") for side in ("right", "left")),
    *("brachiocephalic_vein_left", "brachiocephalic_vein_right", "atrial_appendage_left", "superior_vena_cava"),
    *("inferior_vena_cava", "portal_vein_and_splenic_vein"),
    *(
        f"{name}_{side}"
        for name in ("iliac_artery", "iliac_vena", "humerus", "scapula", "clavicula", "femur", "hip")
        for side in _SIDES
    ),
    "spinal_cord",
    *(f"gluteus_{name}_{side}" for name in ("maximus", "medius", "minimus") for side in _SIDES),
    *(f"{name}_{side}" for name in ("autochthon", "iliopsoas") for side in _SIDES),
    *("brain", "skull"),
    *(f"rib_{side}_{n}" for side in _SIDES for n in range(1, 13)),
    *("sternum", "costal_cartilages"),
)


class TotalSegmentator(Dataset):
    """``meta.csv`` (``;``-separated, with a byte order mark) beside ``sNNNN/{ct.nii.gz,segmentations/*.nii.gz}``."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/totalsegmentator",
        title="TotalSegmentator v2",
        licence="CC BY 4.0",
        url="https://doi.org/10.5281/zenodo.10047292",
        citation="Wasserthal et al., Radiology: AI 2023, doi 10.1148/ryai.230024",
        terms="open",
        group="image_id: one volume a subject",
        labels="a mask a structure (117 names); pathology and study_type as text (--finding pathology)",
        split="meta.csv: train, val, test",
        counts={"images": 1_228, "patients": 1_228, "train": 1_082, "val": 57, "test": 89},
        files=("meta.csv", "s0000/ct.nii.gz", "s0000/segmentations/"),
        steps=("hilum fetch totalsegmentator --out DIR downloads and unpacks the archive (22 GB).",),
        downloads=(Download("https://zenodo.org/records/10047292/files/Totalsegmentator_dataset_v201.zip"),),
        traps=("';' and a byte order mark", "a file a structure", "the small set holds 102 cases"),
    )
    columns: ClassVar[tuple[str, ...]] = (
        *("image_id", "age", "gender", "institute", "study_type", "split", "manufacturer", "scanner_model", "kvp"),
        *("pathology", "pathology_location"),
    )

    def table(self, root: Path) -> pa.Table:
        """One row a volume and one a mask: path, patient, study, split, modality, role, sex, age, pathology, study_type."""
        path = first_match(root, ("meta.csv",), dataset=self.name)
        columns = read(path, self.columns, dataset=self.name, licence=self.licence).columns
        base, rows, below = inside(root, path.parent), Rows(), _masks(path.parent)
        before = "" if base == "." else f"{base}/"
        for row, image in enumerate(columns["image_id"]):
            about = {
                "issuer": "totalsegmentator",
                "patient_id": image,
                "study_id": image,
                "split": columns["split"][row],
                "modality": "CT",
                "sex": sex(columns["gender"][row]),
                "age": age(columns["age"][row]),
                "pathology": columns["pathology"][row],
                "study_type": columns["study_type"][row],
            }
            rows.add(f"{before}{image}/ct.nii.gz", role="image", **about)
            for mask in below.get(image, ()):
                rows.add(before + mask, role="label", **about)
        return rows.table()

    def masks(self, root: Path) -> pa.Table:
        """MASKS, one row a structure; a file whose name is no structure is an error with the nearest name."""
        path = first_match(root, ("meta.csv",), dataset=self.name)
        base, found = path.parent.relative_to(root), []
        for image, masks in sorted(_masks(path.parent).items()):
            for mask in masks:
                name = mask.rpartition("/")[2].removesuffix(".nii.gz")
                if name not in STRUCTURES:
                    fix = nearest(name, STRUCTURES) or "the names are those of version 2"
                    raise HilumError(f"{self.name}: a mask is of no known structure", where=f"{image}, {name}", fix=fix)
                place = (base / image / "ct.nii.gz").as_posix()
                found.append({"path": place, "mask": (base / mask).as_posix(), "finding": name})
        return pa.Table.from_pylist(found, schema=MASKS)


def _masks(folder: Path) -> dict[str, list[str]]:
    """Case -> its mask files, from ``folder``."""
    found: dict[str, list[str]] = {}
    for path in files_below(folder, ".nii.gz"):
        parts = path.split("/")
        if len(parts) == 3 and parts[1] == "segmentations":
            found.setdefault(parts[0], []).append(path)
    return found
