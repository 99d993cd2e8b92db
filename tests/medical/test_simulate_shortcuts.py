"""What a cohort must not give away, and what it must let a model learn."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from hilum.medical.simulate import FINDINGS, Cohort, simulate_cohort
from hilum.medical.simulate.vendors import VENDORS


@dataclass
class Table:
    """Per image: headers and statistics (n, ·), thumbnails (n, 64, 64), labels (n, F), patients (n,)."""

    shortcuts: np.ndarray
    pictures: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    paths: list[str]


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Area averages: the mean of each cell of a size x size grid."""
    total = np.pad(image, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    grid = np.linspace(0, 1, size + 1)
    rows, columns = np.meshgrid(grid * image.shape[0], grid * image.shape[1], indexing="ij")
    corners = ndimage.map_coordinates(total, [rows, columns], order=1)
    area = np.prod(image.shape) / size**2
    return np.asarray((corners[1:, 1:] - corners[:-1, 1:] - corners[1:, :-1] + corners[:-1, :-1]) / area)


def displayed(data: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Brightness by the file's own VOI, written out here from PS3.3 C.11.2."""
    values = stored * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
    if "VOILUTSequence" in data:
        item = data.VOILUTSequence[0]
        entries, first, bits = item.LUTDescriptor
        table = (
            np.frombuffer(item["LUTData"].value, "<u2")
            if isinstance(item["LUTData"].value, bytes)
            else np.array(item.LUTData)
        )
        shown = table[np.clip(values - first, 0, entries - 1).astype(int)] / (2**bits - 1)
    elif "WindowCenter" in data:
        centre, width = (float(np.atleast_1d(v)[0]) for v in (data.WindowCenter, data.WindowWidth))
        if data.get("VOILUTFunction") == "SIGMOID":
            shown = 1 / (1 + np.exp(-4 * (values - centre) / width))
        elif data.get("VOILUTFunction") == "LINEAR_EXACT":
            shown = np.clip((values - centre) / width + 0.5, 0, 1)
        else:
            shown = np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    else:
        low, high = np.quantile(values, [0.002, 0.998])
        shown = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(1 - shown if data.PhotometricInterpretation == "MONOCHROME1" else shown)


def read(cohort: Cohort, *, size: int = 64) -> Table:
    with cohort.labels.open(newline="") as file:
        labels = {row["sop_instance_uid"]: [int(row[n]) for n in FINDINGS] for row in csv.DictReader(file)}
    rows, pictures, targets, patients, paths = [], [], [], [], []
    makers = [v.name for v in VENDORS]
    for path in sorted(f for f in Path(cohort.dicom).rglob("*") if f.is_file()):
        data = pydicom.dcmread(path)
        stored = data.pixel_array.astype(np.float64)
        shown = displayed(data, stored)
        window = [
            float(np.atleast_1d(data.get(k, 0))[0])
            for k in ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept")
        ]
        tags = [makers.index(data.Manufacturer) == k for k in range(len(makers))] + [
            data.ViewPosition == "AP",
            float(data.KVP),
        ]
        statistics = [stored.mean(), stored.std(), shown.mean(), shown.std(), data.Rows, data.Columns, data.BitsStored]
        rows.append([*statistics, *window, *map(float, tags)])
        pictures.append(resize(shown, size))
        targets.append(labels[data.SOPInstanceUID])
        patients.append(str(data.PatientID))
        paths.append(path.relative_to(cohort.dicom).as_posix())
    return Table(np.array(rows), np.array(pictures), np.array(targets), np.array(patients), paths)


def auroc(y: np.ndarray, s: np.ndarray) -> float:
    """Probability that a positive scores above a negative (Mann-Whitney)."""
    from scipy.stats import rankdata

    ranks, n = rankdata(s), int(y.sum())
    return float((ranks[y == 1].sum() - n * (n + 1) / 2) / (n * (len(y) - n)))


def logistic(x: np.ndarray, y: np.ndarray, groups: np.ndarray, *, strength: float, folds: int = 5) -> np.ndarray:
    """AUROC of each finding of a logistic regression, scored on patients it has not seen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = np.unique(groups)
    fold = dict(zip(names, np.random.default_rng(0).permutation(len(names)) % folds, strict=True))
    held = np.array([fold[g] for g in groups])
    scores = np.zeros(y.shape)
    for k in range(folds):
        for f in range(y.shape[1]):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
            scores[held == k, f] = model.fit(x[held != k], y[held != k, f]).decision_function(x[held == k])
    return np.array([auroc(y[:, f], scores[:, f]) for f in range(y.shape[1])])


def near_duplicates(pictures: np.ndarray) -> np.ndarray:
    """(n, n) bool: difference hash of 16 x 16 bits within 26 bits, and NCC > 0.97 of high-passed 64 x 64 pictures."""
    bits = np.array(
        [
            (np.diff(ndimage.zoom(p, (16 / 64, 17 / 64), order=1, grid_mode=True, mode="nearest"), axis=1) > 0).ravel()
            for p in pictures
        ]
    )
    distance = (bits[:, None] != bits[None]).sum(-1)
    high = np.array([p - ndimage.gaussian_filter(p, 4, mode="nearest") for p in pictures]).reshape(len(pictures), -1)
    high -= high.mean(1, keepdims=True)
    high /= np.linalg.norm(high, axis=1, keepdims=True)
    return np.asarray((distance <= 26) & (high @ high.T > 0.97))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Table]:
    out = tmp_path_factory.mktemp("simulated") / "cohort"
    cohort = simulate_cohort(out, patients=100, size=64, seed=1, images_per_patient=(1, 1), copies=6, progress=False)
    return cohort, read(cohort)


def test_headers_and_statistics_tell_nothing(small: tuple[Cohort, Table]) -> None:
    table = small[1]
    own = np.array([not p.startswith("SIMCOPY") for p in table.patients])
    scores = logistic(table.shortcuts[own], table.labels[own], table.patients[own], strength=1.0)
    assert scores.max() <= 0.65 and scores.mean() <= 0.58, dict(zip(FINDINGS, scores.round(3), strict=True))


def test_patients_differ_and_copies_are_caught(small: tuple[Cohort, Table]) -> None:
    cohort, table = small
    alike = near_duplicates(table.pictures)
    index = {path: k for k, path in enumerate(table.paths)}
    pairs = {frozenset((index[copy], index[original])) for copy, original in cohort.copies}
    assert len(pairs) == 6 and all(alike[tuple(pair)] for pair in pairs)
    first, second = np.triu_indices(len(alike), 1)
    planted = {frozenset(index[p] for p in group) for group in _families(cohort)}
    stranger = np.array([not any({a, b} <= family for family in planted) for a, b in zip(first, second, strict=True)])
    assert alike[first, second][stranger].mean() < 0.01


def _families(cohort: Cohort) -> list[set[str]]:
    """Originals with all of their copies."""
    families: dict[str, set[str]] = {}
    for copy, original in cohort.copies:
        families.setdefault(original, {original}).add(copy)
    return list(families.values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_findings_can_be_learnt_but_not_from_shortcuts(tmp_path: Path) -> None:
    """At the size of the demo: shortcuts <= 0.65 a finding; a small convolutional net on 96 pixels >= 0.75 macro and
    above a logistic regression on 16 x 16 thumbnails."""
    import torch
    from torch import nn

    table = read(simulate_cohort(tmp_path / "c", patients=300, size=160, progress=False), size=96)
    shortcut = logistic(table.shortcuts, table.labels, table.patients, strength=1.0, folds=3)
    thumbs = np.array([resize(p, 16).ravel() for p in table.pictures])
    thumbnail = max(
        (logistic(thumbs, table.labels, table.patients, strength=c, folds=3) for c in (1e-3, 1e-2, 1e-1)), key=np.mean
    )

    held = np.array([int(p[3:]) % 3 == 0 for p in table.patients])
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for wide, narrow in ((16, 1), (32, 16), (48, 32), (64, 48)):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(64 * 36, len(FINDINGS)))
    x = torch.from_numpy((table.pictures - 0.5) / 0.22).float()[:, None]
    y, train, epochs = torch.from_numpy(table.labels).float(), np.flatnonzero(~held), 35
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, epochs * (len(train) // 32))
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        for rows in rng.permutation(train)[: len(train) // 32 * 32].reshape(-1, 32):
            shift = tuple(int(v) for v in rng.integers(-6, 7, 2))
            batch = torch.roll(x[rows], shift, (2, 3)) * float(rng.uniform(0.8, 1.2))
            optimiser.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(net(batch), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        scores = torch.cat([net(part) for part in torch.split(x[held], 64)]).numpy()
    learnt = np.array([auroc(table.labels[held, f], scores[:, f]) for f in range(len(FINDINGS))])
    print("shortcut", shortcut.round(3), "thumbnail", thumbnail.round(3), "network", learnt.round(3))
    assert shortcut.max() <= 0.65
    assert learnt.mean() >= 0.75 and learnt.mean() > thumbnail.mean() + 0.03
