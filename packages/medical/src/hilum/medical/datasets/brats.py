"""BraTS glioma data of 2021 (Baid et al. 2021) and 2023: four MR sequences a case, and a mask."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from hilum.core.errors import HilumError
from hilum.data.cards import Dataset, DatasetCard, Origin
from hilum.medical.datasets.columns import MASKS, Rows, files_below

_YEARS = "Baid et al. 2021, arXiv 2107.02314, section 2"


class BraTS(Dataset):
    """Files ``CASE SEPARATOR SEQUENCE.nii.gz`` anywhere below the archive; the mask's sequence is ``seg``."""

    pattern: ClassVar[re.Pattern[str]]
    sequences: ClassVar[tuple[str, ...]]
    values: ClassVar[Mapping[int, str]]

    def table(self, root: Path) -> pa.Table:
        """One row a volume and one a mask: path, patient, study (the case), split, modality, body part, role."""
        rows = Rows()
        for case, files in self.cases(root).items():
            for sequence, path in files.items():
                rows.add(
                    path,
                    issuer="brats",
                    patient_id=self.patient(case),
                    study_id=case,
                    split="train" if "seg" in files else None,
                    modality="MR",
                    body_part="BRAIN",
                    role="label" if sequence == "seg" else "image",
                )
        return rows.table()

    def cases(self, root: Path) -> dict[str, dict[str, str]]:
        """Case -> sequence -> path. A case without all four sequences is an error that names it."""
        found: dict[str, dict[str, str]] = {}
        for path in files_below(root, (".nii.gz", ".nii")):
            match = self.pattern.fullmatch(path.rpartition("/")[2])
            if match is not None:
                found.setdefault(match["case"], {})[match["sequence"]] = path
        if not found:
            raise HilumError(
                f"{self.name}: no file is named as published",
                where=str(root),
                fix="keep the file names of the archives",
            )
        for case, files in found.items():
            lost = [sequence for sequence in self.sequences if sequence not in files]
            if lost:
                raise HilumError(f"{self.name}: a case lacks {', '.join(lost)}", where=case, fix="unpack it again")
        return found

    @abstractmethod
    def patient(self, case: str) -> str:
        """The group of a case."""

    def masks(self, root: Path) -> pa.Table:
        """MASKS: every sequence of a case with the case's mask."""
        cases = self.cases(root).values()
        found = [{"path": c[s], "mask": c["seg"]} for c in cases if "seg" in c for s in self.sequences]
        return pa.Table.from_pylist(found, schema=MASKS)

    def check_values(self, values: Iterable[int]) -> None:
        """HilumError where a mask holds a value this year does not have: 4 is enhancing tumour in 2021, 3 in 2023."""
        strange = sorted({int(v) for v in values} - set(self.values))
        if strange:
            other = {4: "2021", 3: "2023"}.get(strange[0])
            fix = f"{strange[0]} is of {other}: take medical/brats-{other}" if other else "restore the mask"
            known = ", ".join(f"{v} {name}" for v, name in self.values.items())
            raise HilumError(f"{self.name}: a mask holds {strange[0]}", where=f"values: {known}", fix=fix)


class BraTS2021(BraTS):
    """``BraTS2021_NNNNN/BraTS2021_NNNNN_{flair,t1,t1ce,t2,seg}.nii.gz``; mask values 0, 1, 2 and 4."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/brats-2021",
        title="RSNA-ASNR-MICCAI BraTS 2021, segmentation",
        licence="challenge rules: registration at Synapse (syn25829067); non-commercial",
        url="https://www.synapse.org/Synapse:syn25829067",
        citation="Baid et al., arXiv 2107.02314",
        terms="registration",
        group="case number: one time point a patient",
        labels="mask: 0 background, 1 necrotic core, 2 oedema, 4 enhancing tumour; no image-level labels",
        split="training (with masks), validation (without)",
        counts={"patients": 1_470},
        files=("BraTS2021_00000/BraTS2021_00000_flair.nii.gz", "BraTS2021_00000/BraTS2021_00000_seg.nii.gz"),
        steps=(
            "Register at Synapse, join the challenge, download the training (1,251) and validation (219) archives.",
        ),
        draws_from=(
            Origin("brats-2016-2017", "cases of earlier years are among the training cases", _YEARS),
            Origin("brats-2018-2020", "cases of earlier years are among the training cases", _YEARS),
            Origin("tcga-gbm-lgg", "pre-operative scans", _YEARS),
        ),
        traps=("enhancing tumour is 4, and there is no 3",),
    )
    pattern: ClassVar[re.Pattern[str]] = re.compile(
        r"(?P<case>BraTS2021_\d{5})_(?P<sequence>flair|t1|t1ce|t2|seg)\.nii(\.gz)?"
    )
    sequences: ClassVar[tuple[str, ...]] = ("flair", "t1", "t1ce", "t2")
    values: ClassVar[Mapping[int, str]] = {0: "background", 1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}

    def patient(self, case: str) -> str:
        return case


class BraTS2023(BraTS):
    """``BraTS-GLI-NNNNN-TTT/BraTS-GLI-NNNNN-TTT-{t1c,t1n,t2f,t2w,seg}.nii.gz`` (also MEN, MET, PED, SSA); values 0 to 3.

    The first number is the patient, the second the time point: a patient may have several.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="medical/brats-2023",
        title="ASNR-MICCAI BraTS 2023",
        licence="challenge rules: registration at Synapse (syn51156910); non-commercial",
        url="https://www.synapse.org/Synapse:syn51156910",
        citation="Adewole et al., arXiv 2305.19369; Baid et al., arXiv 2107.02314",
        terms="registration",
        group="first number of the case (the last is the time point), within its tumour type",
        labels="mask: 0 background, 1 necrotic core, 2 oedema, 3 enhancing tumour; no image-level labels",
        split="training (with masks), validation (without)",
        files=(
            "BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1c.nii.gz",
            "BraTS-GLI-00000-000/BraTS-GLI-00000-000-seg.nii.gz",
        ),
        steps=("Register at Synapse, join the challenge, download the archives of a tumour type.",),
        draws_from=(Origin("medical/brats-2021", "the GLI cases", "BraTS 2023 challenge, data description"),),
        traps=("enhancing tumour is 3, not 4", "several time points a patient"),
    )
    pattern: ClassVar[re.Pattern[str]] = re.compile(
        r"(?P<case>BraTS-(?:GLI|MEN|MET|PED|SSA)-\d{5}-\d{3})-(?P<sequence>t1c|t1n|t2f|t2w|seg)\.nii(\.gz)?"
    )
    sequences: ClassVar[tuple[str, ...]] = ("t1c", "t1n", "t2f", "t2w")
    values: ClassVar[Mapping[int, str]] = {0: "background", 1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}

    def patient(self, case: str) -> str:
        return case.rpartition("-")[0]
