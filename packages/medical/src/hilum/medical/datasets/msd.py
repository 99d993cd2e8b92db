"""Medical Segmentation Decathlon (Antonelli et al. 2022): ten tasks of CT and MR volumes with masks, as NIfTI."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.data.cards import Dataset, DatasetCard, Download, Origin
from hilum.medical.datasets.columns import MASKS, Rows, inside, need_columns

_PAPER = "Antonelli et al., Nature Communications 2022"
_ARCHIVES = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}
_STORE = "https://msd-for-monai.s3-us-west-2.amazonaws.com"


class MSD(Dataset):
    """``TaskNN_Name/{dataset.json,imagesTr,labelsTr,imagesTs}``; one task, or a folder of several.

    ``dataset.json`` decides which volumes there are; ``._*`` twins that the archives hold are left out.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/msd",
        title="Medical Segmentation Decathlon",
        licence="CC BY-SA 4.0",
        url="http://medicaldecathlon.com/",
        citation=f"{_PAPER}, doi 10.1038/s41467-022-30695-9",
        terms="open",
        group="none exists: cases are numbered, patients are not named (--group case_id assumes one case a patient)",
        labels="masks by value, named in dataset.json; no image-level labels",
        split="training (with masks) and test (without)",
        files=("TaskNN_Name/dataset.json", "TaskNN_Name/imagesTr/", "TaskNN_Name/labelsTr/"),
        steps=("hilum fetch msd --out DIR --only Task09 downloads one task (1.5 GB; all ten: 100 GB).",),
        draws_from=(
            Origin("brats-2016-2017", "Task01_BrainTumour", _PAPER),
            Origin("lits", "Task03_Liver", _PAPER),
        ),
        downloads=tuple(Download(f"{_STORE}/{name}.tar", f"md5:{md5}") for name, md5 in _ARCHIVES.items()),
        traps=("the archives hold ._* files", "Task01 and Task05 are 4-D: channels, not time"),
    )
    keys: ClassVar[tuple[str, ...]] = ("name", "modality", "labels", "numTraining", "training", "test")

    def table(self, root: Path) -> pa.Table:
        """One row a volume and one a mask: path, case_id, study_id, split, modality, role."""
        rows = Rows()
        for path, told in self.tasks(root):
            base = inside(root, path.parent)
            before = "" if base == "." else f"{base}/"
            modality = "CT" if "CT" in told["modality"].values() else "MR"
            pairs = [(e["image"], e["label"], "train") for e in told["training"]]
            for image, label, split in [*pairs, *((t, None, None) for t in told["test"])]:
                case = f"{told['name']}/{PurePosixPath(image).name.removesuffix('.gz').removesuffix('.nii')}"
                about = {"case_id": case, "study_id": case, "split": split, "modality": modality}
                rows.add(before + _plain(image), role="image", **about)
                if label is not None:
                    rows.add(before + _plain(label), role="label", **about)
        return rows.table()

    def tasks(self, root: Path) -> list[tuple[Path, dict[str, Any]]]:
        """Every ``dataset.json``, checked: keys, the number of training pairs, paths that stay below their folder."""
        paths = [p for depth in ("", "*/", "*/*/") for p in sorted(root.glob(f"{depth}dataset.json"))]
        if not paths:
            raise HilumError(f"{self.name}: no dataset.json below the archive", where=str(root))
        found = []
        for path in paths:
            try:
                told = json.loads(path.read_text(encoding="utf-8-sig"))
                need_columns(path, self.keys, told, dataset=self.name)
                named = [name for e in told["training"] for name in (e["image"], e["label"])] + list(told["test"])
                if not isinstance(told["modality"], dict):
                    raise TypeError
                wrong = int(told["numTraining"]) != len(told["training"])
                outside = any(".." in PurePosixPath(n).parts or PurePosixPath(n).is_absolute() for n in named)
            except (ValueError, TypeError, KeyError, RecursionError):
                raise HilumError(f"{self.name}: dataset.json is not as published", where=str(path)) from None
            if outside:
                raise HilumError(f"{self.name}: dataset.json names files outside its folder", where=str(path))
            if wrong:
                raise HilumError(f"{self.name}: numTraining is not the number of training pairs", where=str(path))
            found.append((path, told))
        return found

    def masks(self, root: Path) -> pa.Table:
        """MASKS: every training volume and its mask."""
        found = []
        for path, told in self.tasks(root):
            base = path.parent.relative_to(root)
            for e in told["training"]:
                image, mask = ((base / _plain(e[key])).as_posix() for key in ("image", "label"))
                found.append({"path": image, "mask": mask})
        return pa.Table.from_pylist(found, schema=MASKS)


def _plain(name: str) -> str:
    return PurePosixPath(name).as_posix().removeprefix("./")
