"""Findings go where disease goes, patients and reports say what was put in."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hilum.medical.simulate.anatomy import Chest, load_chest
from hilum.medical.simulate.cases import BLOCK, body, draw_patient, has
from hilum.medical.simulate.chance import generator, uid
from hilum.medical.simulate.findings import FINDINGS, Finding, draw_finding, insert
from hilum.medical.simulate.reports import write_report


@pytest.fixture(scope="module")
def chest() -> Chest:
    return load_chest()


def put(chest: Chest, name: str, seed: int) -> tuple[Finding, np.ndarray, np.ndarray]:
    finding = draw_finding(name, chest, generator("test", name, seed), salt=f"test/{seed}")
    density, masks = insert(chest.density, chest, {name: finding})
    return finding, density - chest.density, masks[name]


@pytest.mark.parametrize("seed", range(3))
def test_nodules_are_dense_balls_in_their_lung(chest: Chest, seed: int) -> None:
    finding, change, mask = put(chest, "nodule", seed)
    voxel = np.prod(chest.spacing_mm)
    ball = np.pi / 6 * finding.size_mm**3
    count = len(finding.centres_mm)
    assert 0.6 * ball < mask.sum() * voxel < 1.4 * ball * count
    assert (change[mask] >= -0.5).all() and change[mask].mean() > 0.4
    for centre in finding.centres_mm:
        index = tuple(int(np.argmin(np.abs(a.ravel() - c))) for a, c in zip(chest.axes_mm, centre, strict=True))
        assert chest.lung[finding.side][index] and mask[index]


@pytest.mark.parametrize("seed", range(3))
def test_fluid_lies_at_the_bottom_of_one_lung(chest: Chest, seed: int) -> None:
    finding, change, mask = put(chest, "effusion", seed)
    lung = chest.lung[finding.side]
    assert mask.sum() > 100 and not (mask & ~lung).any() and not change[~lung].any()
    z = np.broadcast_to(chest.axes_mm[1], mask.shape)
    assert z[mask].mean() > z[lung & ~mask].mean() + 40
    assert (chest.density + change)[mask].min() > 0.5
    # The meniscus: along the wall the fluid stands higher than in the middle.
    wall, middle = (mask & (chest.depth_mm < 6), mask & (chest.depth_mm > 25))
    if middle.any():
        assert z[wall].min() < z[middle].min() - 10


@pytest.mark.parametrize("seed", range(3))
def test_air_lies_under_the_wall_and_most_at_the_apex(chest: Chest, seed: int) -> None:
    finding, change, mask = put(chest, "pneumothorax", seed)
    lung = chest.lung[finding.side]
    assert not (mask & ~lung).any() and not change[~lung].any()
    assert (chest.density + change)[mask & (chest.depth_mm < 3)].max() < 0.01
    assert chest.depth_mm[mask].mean() < chest.depth_mm[lung & ~mask].mean()
    rows = np.flatnonzero(lung.any(axis=(0, 2)))
    for k, row in enumerate(rows):  # its width falls from the apex to a fifth at the base
        width = finding.size_mm * (1 - 0.8 * k / (len(rows) - 1))
        assert not (mask[:, row] & (chest.depth_mm[:, row] > width + 0.1)).any()
        assert mask[:, row][lung[:, row] & (chest.depth_mm[:, row] < width - 0.1)].all()
    kept = lung & ~mask & (chest.depth_mm > finding.size_mm + 3)
    assert change[kept].mean() > 0  # what is left of the lung is compressed


@pytest.mark.parametrize("seed", range(3))
def test_consolidation_keeps_to_its_lobe(chest: Chest, seed: int) -> None:
    finding, change, mask = put(chest, "consolidation", seed)
    lobe = chest.mask([finding.lobe])
    assert finding.lobe.startswith(finding.side)
    assert mask.sum() > 500 and not (mask & ~lobe).any() and not change[~lobe].any()
    assert change[mask].mean() > 0.3


def test_findings_are_dealt_evenly_and_independently() -> None:
    table = np.array([[has(7, n, name, 0.3) for name in FINDINGS] for n in range(400)])
    assert (table.reshape(-1, BLOCK, len(FINDINGS)).sum(1) == 6).all()
    correlation = np.corrcoef(table.T.astype(float)) - np.eye(len(FINDINGS))
    assert np.abs(correlation).max() < 0.15
    assert not any(has(7, n, "nodule", 0.0) for n in range(BLOCK)) and all(
        has(7, n, "nodule", 1.0) for n in range(BLOCK)
    )


def test_what_a_patient_is_does_not_depend_on_what_a_patient_has(chest: Chest) -> None:
    none, all_ = (
        [draw_patient(1, n, chest, prevalence=dict.fromkeys(FINDINGS, p), images=(2, 2)) for n in range(8)]
        for p in (0.0, 1.0)
    )
    for healthy, ill in zip(none, all_, strict=True):
        assert healthy.vendor == ill.vendor and healthy.bone == ill.bone and healthy.shape.scale == ill.shape.scale
        assert np.array_equal(body(healthy, chest), body(ill, chest))
        assert not healthy.studies[0].findings and set(ill.studies[0].findings) == set(FINDINGS)
        assert ill.studies[0].heart > 1.2 * healthy.studies[0].heart
        assert healthy.studies[0].images[0] == ill.studies[0].images[0]
    assert len({p.vendor.name for p in none}) > 2


def test_lasting_findings_stay_where_they_are(chest: Chest) -> None:
    for number in range(12):
        patient = draw_patient(2, number, chest, prevalence=dict.fromkeys(FINDINGS, 0.5), images=(3, 3))
        for name in ("nodule", "cardiomegaly"):
            assert len({name in s.findings for s in patient.studies}) == 1
        places = {s.findings["nodule"].centres_mm for s in patient.studies if "nodule" in s.findings}
        assert len(places) <= 1


STATED = {
    "nodule": r"nodules?\b",
    "effusion": r"effusion|meniscus",
    "cardiomegaly": r"enlarged|cardiomegaly",
    "pneumothorax": r"pneumothorax|air in the",
    "consolidation": r"consolidation",
}
DENIED = r"^(no|the heart size is normal|normal|the heart is not|the costo|the pleural spaces are free|there is no)\b"


def test_reports_state_what_is_there_and_deny_the_rest(chest: Chest) -> None:
    texts = set()
    for number in range(40):
        rng = generator("reports", number)
        findings = {n: draw_finding(n, chest, rng, salt="t") for n in FINDINGS if rng.random() < 0.4}
        text = write_report(findings, rng, views=["PA"])
        texts.add(text)
        assert "{" not in text and "simulated" in text.lower()
        body_text, impression = text.split("FINDINGS: ")[1].split("\nIMPRESSION: ")
        sentences = [s.strip().lower() for s in re.split(r"(?<=\.)\s", body_text)]
        positive = " ".join(s for s in sentences if not re.match(DENIED, s))
        for name in FINDINGS:
            assert bool(re.search(STATED[name], positive)) == (name in findings), (name, text)
            assert (name in impression.lower()) == (name in findings)
        for finding in findings.values():
            if finding.side:
                assert finding.side in text.lower()
    assert len(texts) == 40


def test_identifiers_are_valid_unique_and_repeatable() -> None:
    from pydicom.uid import UID

    uids = [uid(0, n, "image") for n in range(200)]
    assert all(UID(u).is_valid and u.startswith("2.25.") for u in uids) and len(set(uids)) == 200
    assert uid(0, 5, "image") == uids[5] != uid(1, 5, "image")
    first, again, other = (generator(0, *names).random(4) for names in (("a", 1), ("a", 1), ("a", 2)))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
