"""The chest volume and its projection: orientation, magnification, path lengths, bends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hilum.medical.simulate.anatomy import Chest, load_chest
from hilum.medical.simulate.projection import AIR_GAP_MM, Pose, Shape, bend, project, sampling


@pytest.fixture(scope="module")
def chest() -> Chest:
    return load_chest()


def centre_of(mask: np.ndarray) -> np.ndarray:
    return np.asarray(np.argwhere(mask).mean(0))


def test_the_shipped_file_is_small_and_names_its_source() -> None:
    from hilum.medical.simulate.anatomy import FILE

    assert FILE.stat().st_size <= 3_000_000
    notice = FILE.with_name("NOTICE").read_text()
    assert "LIDC-IDRI-0001" in notice and "Creative Commons Attribution 3.0" in notice and "10.7937/K9" in notice


def test_axes_point_to_posterior_foot_and_left(chest: Chest) -> None:
    heart, spine = centre_of(chest.mask(["heart"])), chest.origin[2]
    assert heart[2] > spine + 5  # the heart lies on the patient's left
    left, right = centre_of(chest.lung["left"]), centre_of(chest.lung["right"])
    assert left[2] > right[2]
    bone = np.argwhere(chest.bone & (np.abs(chest.axes_mm[2]) < 25))
    assert np.median(bone[:, 0]) > heart[0]  # the spine lies behind the heart
    airway, abdomen = centre_of(chest.mask(["airway"])), centre_of(chest.mask(["abdomen"]))
    assert airway[1] < heart[1] < abdomen[1]
    liver_side = np.argwhere(chest.mask(["abdomen"]))
    top = liver_side[liver_side[:, 1] < np.quantile(liver_side[:, 1], 0.1)]
    assert top[:, 2].mean() < spine  # the right dome of the diaphragm stands higher


def test_the_real_nodule_and_the_contrast_medium_are_gone(chest: Chest) -> None:
    # No compact soft tissue of 8 mm or more within the left lower lobe, where the scan had its nodule.
    from scipy import ndimage

    lobe = chest.mask(["left lower lobe"]) & (chest.depth_mm > 8)
    inner = ndimage.binary_erosion(lobe, iterations=2)
    dense = (chest.density > 0.7) & inner
    parts, count = ndimage.label(dense)
    largest = max(ndimage.sum_labels(dense, parts, range(1, count + 1)))
    assert largest * np.prod(chest.spacing_mm) < 1000  # vessels; the nodule filled 7,000 mm3
    blood = chest.mask(["heart"])
    assert chest.density[blood].max() < 1.15


def flat(chest: Chest) -> Chest:
    """A chest of the same geometry in which only the planes' thickness matters."""
    return replace(chest, density=np.ones_like(chest.density))


def test_uniform_slab_has_the_path_length_of_its_thickness(chest: Chest) -> None:
    slab, size = flat(chest), (40, 44)
    water = project(slab.density, sampling(chest, Shape(), Pose(), size, 5.0), size, step_mm=chest.spacing_mm[0])
    assert np.allclose(water, slab.density.shape[0] * chest.spacing_mm[0], rtol=1e-5)


@pytest.mark.parametrize("view", ["PA", "AP"])
def test_a_ball_is_magnified_by_its_distance_from_the_detector(chest: Chest, view: str) -> None:
    y, z, x = chest.axes_mm
    depth, radius, source = float(y.ravel()[10]), 24.0, 1200.0
    centre = (depth, -40.0, 50.0)
    ball = ((y - centre[0]) ** 2 + (z - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2).astype(np.float32)
    size, pixel = (300, 300), 1.2
    seen = project(
        ball,
        sampling(chest, Shape(), Pose("PA" if view == "PA" else "AP", source_mm=source), size, pixel),
        size,
        step_mm=chest.spacing_mm[0],
    )
    skin = y.min() if view == "PA" else y.max()
    magnification = source / (source - abs(depth - skin) - AIR_GAP_MM[view])
    v, u = ((np.arange(n) - (n - 1) / 2) * pixel for n in size)
    weight = seen / seen.sum()
    assert (weight.sum(1) * v).sum() == pytest.approx(-40 * magnification, abs=1.0)
    assert (weight.sum(0) * u).sum() == pytest.approx(50 * magnification, abs=1.0)
    volume = 4 / 3 * np.pi * radius**3
    assert seen.sum() * pixel**2 == pytest.approx(volume * magnification**2, rel=0.06)
    assert seen.max() == pytest.approx(2 * radius, rel=0.15)  # planes are 5.6 mm thick


def test_turning_moves_what_lies_behind_against_what_lies_in_front(chest: Chest) -> None:
    size, yaw = (60, 240), 5.0

    def column(plane: int) -> float:
        volume = np.zeros_like(chest.density)
        volume[plane, :, 126:133] = 1
        seen = project(volume, sampling(chest, Shape(), Pose(yaw=yaw, source_mm=1e7), size, 1.5), size, step_mm=1.0)
        return float((seen.sum(0) * (np.arange(240) - 119.5) * 1.5).sum() / seen.sum())

    y = chest.axes_mm[0].ravel()
    moved = column(40) - column(4)
    assert moved == pytest.approx(-(y[40] - y[4]) * np.tan(np.deg2rad(yaw)), abs=0.7)


def test_no_bend_is_the_identity_and_bends_do_not_fold(chest: Chest) -> None:
    y, z, x = (a.astype(np.float64) for a in np.meshgrid(*(np.linspace(-100, 100, 21),) * 3, indexing="ij"))
    same = bend(chest, Shape(), Pose(), y, z, x)
    assert np.array_equal(same[0], z) and np.array_equal(same[1], x)
    from hilum.medical.simulate.cases import draw_patient
    from hilum.medical.simulate.findings import FINDINGS

    prevalence = dict.fromkeys(FINDINGS, 0.5)
    for number in range(20):
        patient = draw_patient(3, number, chest, prevalence=prevalence, images=(1, 1))
        study = patient.studies[0]
        bz, bx = bend(chest, patient.shape_at(study), study.images[0].pose, y, z, x)
        jacobian = np.gradient(bz, 10.0, axis=1) * np.gradient(bx, 10.0, axis=2)
        jacobian -= np.gradient(bz, 10.0, axis=2) * np.gradient(bx, 10.0, axis=1)
        assert jacobian.min() > 0.05


def test_a_larger_heart_is_wider_and_leaves_the_chest_wall_alone(chest: Chest) -> None:
    size, pixel = (120, 120), 2.6

    def outline(names: list[str], heart: float) -> np.ndarray:
        positions = sampling(chest, Shape(heart=heart), Pose(), size, pixel)
        return project(chest.mask(names).astype(np.float32), positions, size, step_mm=chest.spacing_mm[0]) > 6

    normal, large = (outline(["heart"], s) for s in (1.0, 1.4))
    width = [np.ptp(np.nonzero(o.any(0))[0]) for o in (normal, large)]
    assert 1.1 < width[1] / width[0] < 1.45
    ribs = [outline(["bone"], s) for s in (1.0, 1.4)]
    assert (ribs[0] ^ ribs[1])[:, :20].mean() < 0.01 and (ribs[0] ^ ribs[1])[:, -20:].mean() < 0.02
