"""Who is in a cohort: patients, their studies and exposures, drawn from the seed.

What a patient is (body, texture, vendor) never depends on what a patient has. Findings are dealt in blocks of 20
patients so that small cohorts have both classes; nodules and large hearts stay, the others come and go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .anatomy import Chest, Volume
from .appearance import Exposure, draw_exposure
from .chance import cohort_mark, generator
from .findings import FINDINGS, Finding, draw_finding
from .projection import Pose, Shape
from .vendors import VENDORS, Vendor

BLOCK = 20
LASTING = ("nodule", "cardiomegaly")


@dataclass(frozen=True)
class Image:
    number: int
    pose: Pose
    exposure: Exposure


@dataclass(frozen=True)
class Study:
    number: int
    findings: Mapping[str, Finding]
    images: tuple[Image, ...]
    heart: float  # linear size, the finding included


@dataclass(frozen=True)
class Patient:
    """``bone`` and ``lung_gain`` scale skeleton and vessels, ``lung_grain`` adds texture, ``breast_mm`` soft tissue."""

    seed: int
    number: int
    shape: Shape
    vendor: Vendor
    bone: float
    lung_gain: float
    lung_grain: float
    breast_mm: float
    sex: Literal["F", "M"]
    age: int
    studies: tuple[Study, ...]

    @property
    def patient_id(self) -> str:
        return f"SIM{cohort_mark(self.seed)}{self.number:06d}"

    def shape_at(self, study: Study) -> Shape:
        return replace(self.shape, heart=study.heart)


def has(seed: int, number: int, name: str, prevalence: float) -> bool:
    """Whether patient ``number`` is dealt ``name``: ``prevalence * 20`` of each block of 20 are, the rest by chance."""
    rng = generator(seed, "block", number // BLOCK, name)
    count = int(np.floor(prevalence * BLOCK + rng.random()))
    return int(np.flatnonzero(rng.permutation(BLOCK) == number % BLOCK)[0]) < count


def _shape(rng: np.random.Generator) -> Shape:
    frequency = sum(np.meshgrid(np.arange(3), np.arange(4), np.arange(4), indexing="ij"))
    waves = rng.normal(size=(2, 3, 4, 4)) * 7.0 / (1 + frequency)
    thick, size, high, wide = (float(v) for v in rng.normal(0, (0.1, 0.035, 0.03, 0.03)))
    return Shape((float(np.exp(thick)), float(np.exp(size + high)), float(np.exp(size + wide))), waves)


def _pose(rng: np.random.Generator) -> Pose:
    ap = bool(rng.random() < 0.35)
    sway = 1.5 if ap else 1.0
    yaw, lean, roll = (float(v) for v in rng.normal(0, sway, 3) * (1.6, 1.6, 1.2))
    shift = tuple(float(v) for v in rng.normal(0, 4 * sway, 2))
    breath = -float(rng.gamma(2.0, 4.0 * sway))
    source = float(rng.uniform(1000, 1300) if ap else rng.uniform(1700, 2000))
    return Pose("AP" if ap else "PA", yaw, lean, roll, shift, breath, source)  # type: ignore[arg-type]


def draw_patient(
    seed: int, number: int, chest: Chest, *, prevalence: Mapping[str, float], images: tuple[int, int]
) -> Patient:
    """Patient ``number`` of the cohort ``seed``; the same whatever the cohort's size."""
    rng = generator(seed, "patient", number, "habitus")
    shape = _shape(rng)
    heart = float(rng.uniform(0.9, 1.04))
    bone, gain, grain = (float(np.exp(v)) for v in rng.normal(0, (0.2, 0.2, 0.3)))
    sex: Literal["F", "M"] = "F" if rng.random() < 0.5 else "M"
    breast = float(rng.gamma(4, 4.5)) if sex == "F" else 0.0
    age = int(rng.integers(20, 90))
    vendor = VENDORS[int(generator(seed, "patient", number, "vendor").integers(len(VENDORS)))]

    drawn = {
        name: draw_finding(name, chest, generator(seed, "patient", number, name), salt=f"{seed}/{number}")
        for name in FINDINGS
    }
    present = {name: has(seed, number, name, prevalence[name]) for name in FINDINGS}
    course = generator(seed, "patient", number, "course")
    total = int(course.integers(images[0], images[1] + 1))
    studies: list[Study] = []
    made = 0
    while made < total:
        if studies:
            present = {
                name: bool(course.random() < prevalence[name])
                if name not in LASTING and course.random() < 0.25
                else now
                for name, now in present.items()
            }
        count = min(total - made, 2 if course.random() < 0.25 else 1)
        findings = {
            name: replace(drawn[name], size_mm=drawn[name].size_mm * float(course.uniform(0.9, 1.1)))
            for name in FINDINGS
            if present[name]
        }
        growth = 1 + findings["cardiomegaly"].size_mm / 100 if "cardiomegaly" in findings else 1.0
        exposures = []
        for k in range(count):
            stream = generator(seed, "patient", number, "image", made + k)
            exposures.append(Image(made + k, _pose(stream), draw_exposure(stream)))
        studies.append(Study(len(studies), findings, tuple(exposures), heart * growth))
        made += count
    return Patient(seed, number, shape, vendor, bone, gain, grain, breast, sex, age, tuple(studies))


def grain(chest: Chest, rng: np.random.Generator) -> NDArray[np.float32]:
    """Lung texture of unit variance, (K, Z, X): streaks and lobules of two sizes, drawn in a few thick layers."""
    layers, (planes, *plane) = 6, chest.density.shape
    noise = np.zeros((layers, *plane), np.float32)
    for sigma_mm, weight in ((3.0, 1.0), (9.0, 0.8)):
        white = rng.standard_normal((layers, *plane), dtype=np.float32)
        smooth = ndimage.gaussian_filter(
            white, [0, *(sigma_mm / s for s in chest.spacing_mm[1:])], mode="nearest", truncate=2.5
        )
        noise += weight * smooth / smooth.std()
    return np.repeat(noise / noise.std(), -(-planes // layers), axis=0)[:planes]


def body(patient: Patient, chest: Chest) -> Volume:
    """The patient's own chest (K, Z, X) before any finding: skeleton, lung texture and soft tissue of their own."""
    rng = generator(patient.seed, "patient", patient.number, "texture")
    density = chest.density.copy()
    density[chest.bone] = 1 + patient.bone * (density[chest.bone] - 1)
    lung = chest.both_lungs
    typical = float(np.median(chest.density[lung]))
    texture = 1 + 0.15 * patient.lung_grain * grain(chest, rng)[lung]
    density[lung] = ((typical + patient.lung_gain * (density[lung] - typical)) * texture).clip(min=0.01)
    if patient.breast_mm:
        _, z, x = chest.axes_mm
        low, apart = rng.normal(62, 8), rng.normal(72, 6)
        for side in (-1, 1):
            r2 = ((z - low) / rng.normal(52, 5)) ** 2 + ((x - side * apart) / rng.normal(58, 5)) ** 2
            density[0] += (patient.breast_mm / chest.spacing_mm[0] * np.clip(1 - r2, 0, None))[0]
    return density
