"""The cache serves bit for bit what reading the file would, survives bad files, kills, damage and a full disk."""

from __future__ import annotations

import errno
import pickle
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fake.archive import INTAKES
from fake.studies import NpyIntake, write_study

from hilum.core.errors import HilumError
from hilum.core.types import Pixels, Window
from hilum.data import cache as cache_module
from hilum.data import ledger, shards
from hilum.data.cache import ShardCache
from hilum.data.image import CachedImage, installed_intakes, open_image, reduce_pixels
from hilum.data.ledger import Rejected
from hilum.data.study import Study
from hilum.medical.dicom.voi import mirrored
from hilum.parts.window import apply_window

KINDS = [np.uint8, np.int16, np.uint16, np.int32, np.float32]


def images(n: int = 10) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    out = []
    for i in range(n):
        kind = KINDS[i % len(KINDS)]
        shape = (40 + 3 * i, 50 - 2 * i, 3) if i % 7 == 5 else (40 + 3 * i, 50 - 2 * i)
        info = (0, 1000) if kind == np.float32 else (np.iinfo(kind).min // 2, np.iinfo(kind).max // 2)
        out.append(rng.integers(*info, shape).astype(kind))
    return out


def study_of(folder: Path, n: int = 10, **options: object) -> Study:
    names = [("voi" if i % 3 == 0 else "img") + f"{i:04d}" for i in range(n)]
    options = {"images": images(n), "names": names, "inverted": [i % 4 == 1 for i in range(n)], **options}
    return write_study(folder, [f"g{i}" for i in range(n)], **options)  # type: ignore[arg-type]


def cache_of(study: Study, **options: object) -> ShardCache:
    return ShardCache(study, **{"side": 16, "workers": 0, "intakes": [NpyIntake()], **options})  # type: ignore[arg-type]


def same(a: CachedImage, b: CachedImage) -> bool:
    plain = all(
        getattr(a, n) == getattr(b, n)
        for n in [
            "slope",
            "intercept",
            "window",
            "source_size",
            "spacing_mm",
            "unit",
            "inverted",
            "stats",
            "provenance",
            "factor",
        ]
    )
    masks = (a.valid is None) == (b.valid is None) and (a.valid is None or torch.equal(a.valid, b.valid))
    pixels = a.stored.dtype == b.stored.dtype and a.stored.numpy().tobytes() == b.stored.numpy().tobytes()
    return plain and masks and pixels and a.stored.shape == b.stored.shape


@pytest.mark.parametrize("side", [16, 30, "full"])
def test_warm_equals_cold_bit_for_bit(side: int | str, tmp_path: Path) -> None:
    study = study_of(tmp_path)
    valid = np.ones((40, 50), bool)
    valid[:, :9] = False
    np.save(tmp_path / "root" / "voi0000.valid.npy", valid)
    cache = cache_of(study, side=side)
    assert cache.build().images == 10
    for warm in (cache, pickle.loads(pickle.dumps(cache)), cache_of(Study(study.path), side=side)):
        for row in range(10):
            cold = open_image(study, row, side=cache.side, intakes=installed_intakes([NpyIntake()]))
            assert same(cold, warm.get(row))
    assert cache.get(0).valid is not None and cache.get(1).valid is None
    assert cache.get(0).window is not None and cache.get(0).window.table == (0.0, 0.25, 0.5, 0.75, 1.0)
    if side == 16:
        assert min(cache.get(3).size) == 16


WINDOWS = [
    Window(200.0, 800.0),
    Window(1300.0, 1900.0, "sigmoid"),
    Window(0.0, 1023.0, "table", tuple(np.linspace(0, 1, 1024).tolist())),
    Window(0.0, 1023.0, "table", tuple(np.linspace(1, 0, 1024).tolist())),
    Window(0.0, 1023.0, "table", tuple(np.abs(np.linspace(-1, 1, 1024)).tolist())),
    None,
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.float32])
def test_padding_displays_black(window: Window | None, flipped: bool, kind: type) -> None:
    stored = np.random.default_rng(0).integers(300, 700, (1, 20, 30)).astype(kind)
    valid = np.ones((1, 20, 30), bool)
    valid[:, :, :7] = False
    stored[~valid] = 0
    sign = -1.0 if flipped else 1.0
    seen = mirrored(window) if flipped and window is not None else window
    for side in (None, 10):
        image = reduce_pixels(Pixels(stored, sign, 0.0, seen, valid=valid, inverted=flipped), side=side)
        shown = image.stored.numpy()[0] * image.slope + image.intercept
        assert image.stored.numpy().dtype == kind and image.valid is not None
        inside = image.valid.numpy()
        assert image.stats["min"] == shown[inside].min() and image.stats["mean"] == pytest.approx(shown[inside].mean())
        if seen is None:
            assert shown[~inside].max() <= shown[inside].min()
        else:
            assert apply_window(shown[~inside], seen).max() < 2e-3


def test_what_is_served_is_a_copy(tmp_path: Path) -> None:
    cache = cache_of(study_of(tmp_path, 2))
    cache.build()
    cache.get(0).stored.zero_()
    assert cache.get(0).stored.any()


def test_a_second_build_reads_nothing_and_more_rows_read_only_those(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    assert cache_of(study, rows=np.arange(4)).build().read == 4
    assert cache_of(study, rows=np.arange(7)).build().read == 3
    again = cache_of(study).build()
    assert (again.read, again.images) == (3, 10)
    assert cache_of(study).build().read == 0


def test_one_folder_a_fingerprint(tmp_path: Path) -> None:
    study = study_of(tmp_path, 2)
    newer = type("Newer", (NpyIntake,), {"version": "2"})
    folders = [cache_of(study, **o).folder for o in ({}, {"side": 17}, {"side": "full"}, {"intakes": [newer()]})]
    assert len(set(folders)) == 4 and all(f.parent == study.path / "cache" for f in folders)
    assert cache_of(study, rows=np.array([1])).folder == folders[0]
    assert all(hasattr(reader, "version") for reader in INTAKES)


def test_changed_pixels_are_read_again(tmp_path: Path) -> None:
    cache_of(study_of(tmp_path, 3)).build()
    changed = images(3)
    changed[1] = changed[1][::-1].copy()
    study = study_of(tmp_path, 3, images=changed)
    cache = cache_of(study)
    assert cache.build().read == 1
    fresh = open_image(study, 1, side=16, intakes=installed_intakes([NpyIntake()]))
    assert same(fresh, cache.get(1))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_rows_with_a_reason(workers: int, tmp_path: Path) -> None:
    names = ["img0", "stop1", "deep2", "img3", "gone4", "img5"] + (["die6"] if workers else ["img6"])
    study = study_of(tmp_path, 7, names=names)
    (tmp_path / "root" / "gone4.npy").unlink()
    (tmp_path / "root" / "img5.npy").write_bytes(b"")
    cache = cache_of(study, workers=workers)
    built = cache.build()
    reasons = {row: reason for row, (reason, _) in built.bad.items()}
    expected = {1: "parse_error", 2: "resource_limit", 4: "unreadable", 5: "empty_file"}
    assert reasons == expected | ({6: "codec_error"} if workers else {})
    assert built.images == 7 - len(reasons) and built.read == 7
    with pytest.raises(Rejected) as caught:
        cache.get(1)
    assert caught.value.reason == "parse_error" and str(tmp_path) not in str(caught.value)
    assert not any(str(tmp_path) in m for _, m in built.bad.values())
    # Tried again by the next build, without piling up records; mended files join.
    np.save(tmp_path / "root" / "img5.npy", images()[5])
    again = cache.build()
    assert set(again.bad) == set(reasons) - {5} and 5 in cache
    before = sorted(cache.folder.iterdir())
    assert cache.build().images == again.images and sorted(cache.folder.iterdir()) == before


def test_a_missing_reader_is_named(tmp_path: Path) -> None:
    built = cache_of(study_of(tmp_path, 2), intakes=[]).build()
    assert {r for r, _ in built.bad.values()} == {"missing_reader"}
    assert "'npy'" in built.bad[0][1]


def test_a_row_that_was_not_built_says_so(tmp_path: Path) -> None:
    cache = cache_of(study_of(tmp_path, 3), rows=np.array([0]))
    cache.build()
    with pytest.raises(HilumError, match="not in the cache"):
        cache.get(2)


def test_full_disk_is_told_before_and_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(study_of(tmp_path), side="full")
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(cache_module.shutil, "disk_usage", lambda p: usage(1, 1, 1 << 20))
        with pytest.raises(HilumError, match=r"10 images needs about \d+ MiB, the disk has 1 MiB free"):
            cache.build()
    assert not list(cache.folder.glob("*.parquet"))

    def full(table: object, path: Path, **options: object) -> None:
        with ledger.replacing(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_table", full)
        with pytest.raises(HilumError, match="the disk is full: 10 images could not be cached"):
            cache.build()
    assert not [f for f in cache.folder.iterdir() if f.name != ".lock"]
    assert cache.build().images == 10


def test_the_estimate_is_what_is_written(tmp_path: Path) -> None:
    study = study_of(tmp_path, 10, images=[i.astype(np.uint16) for i in images()])
    cache = cache_of(study)
    estimate = cache.estimate()
    cache.build()
    written = sum(f.stat().st_size for f in cache.folder.glob("*.bin"))
    assert written <= estimate <= written + 10 * shards.ALIGN
    assert cache.estimate() == 0


def test_damaged_shards_are_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path)
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    cache = cache_of(study)
    cache.build()
    pixels = sorted(cache.folder.glob("*.bin"))
    assert len(pixels) > 3
    pixels[0].write_bytes(pixels[0].read_bytes()[:100])
    pixels[1].unlink()
    table = pixels[2].with_suffix(".parquet")
    table.write_bytes(table.read_bytes()[: table.stat().st_size // 2])
    lost = sum(len(pq.read_table(p.with_suffix(".parquet"))) for p in pixels[:2])
    fresh = cache_of(study)
    built = fresh.build()
    assert built.images == 10 and built.read > lost
    for row in range(10):
        assert same(fresh.get(row), open_image(study, row, side=16, intakes=installed_intakes([NpyIntake()])))


def test_an_interrupted_build_keeps_what_it_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path)
    opened = []

    class Interrupted(NpyIntake):
        def open(self, path: Path, row: object) -> object:  # type: ignore[override]
            opened.append(path)
            if len(opened) == 7:
                raise KeyboardInterrupt
            return super().open(path, row)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        cache_of(study, intakes=[Interrupted()]).build()
    assert cache_of(study).build().read == 4


def test_two_builders_at_once_read_every_file_once(tmp_path: Path) -> None:
    """Locks are per open file, so two threads stand for two processes."""
    study = study_of(tmp_path)

    class Slow(NpyIntake):
        def open(self, path: Path, row: object) -> object:  # type: ignore[override]
            time.sleep(0.02)
            return super().open(path, row)  # type: ignore[arg-type]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: cache_of(Study(study.path), intakes=[Slow()]).build(), range(2)))
    assert [r.images for r in results] == [10, 10]
    assert sum(r.read for r in results) == 10


def test_side_must_mean_something(tmp_path: Path) -> None:
    study = study_of(tmp_path, 1)
    for side in (0, -3, "512", 2.5):
        with pytest.raises(HilumError, match=r"cache.side"):
            cache_of(study, side=side)


def test_many_small_reads_do_not_open_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    monkeypatch.setattr(cache_module, "_OPEN", 3)
    cache = cache_of(study_of(tmp_path))
    cache.build()
    assert len(list(cache.folder.glob("*.bin"))) == 10
    began = time.monotonic()
    for row in list(range(10)) * 3:
        assert cache.get(row).stored.ndim == 3
    assert len(cache._maps) == 3 and time.monotonic() - began < 5
