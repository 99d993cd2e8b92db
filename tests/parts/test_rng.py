"""Philox: published vectors, an independent scalar reference, FORMATS 10 keying, laws of the draws."""

import math
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hilum.core.errors import HilumError
from hilum.core.types import SampleKey
from hilum.parts import rng

VECTORS = [  # Random123's kat_vectors: counter, key, result
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
KEY = SampleKey(run_seed=7, epoch=3, sample=0xDEADBEEF)
word = st.integers(0, 2**32 - 1)


def reference(counter, key):
    """Philox as in Salmon et al. figure 2, one block, Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        hi0, lo0 = divmod(0xD2511F53 * c[0], 2**32)
        hi1, lo1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [hi1 ^ c[1] ^ k[0], lo1, hi0 ^ c[3] ^ k[1], lo0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def host_block(key, op, k, *, view=0, frame=0, occurrence=0):
    """Block k of an op straight from the text of FORMATS 10."""
    code = zlib.crc32(op.encode() + occurrence.to_bytes(4, "little")) | 1 << 31
    philox_key = (key.run_seed % 2**32, zlib.crc32(key.epoch.to_bytes(4, "little") + view.to_bytes(4, "little")))
    return reference((k, frame, code, key.sample), philox_key)


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_published_vectors(counter, key, result):
    assert tuple(rng.philox4x32(counter, key)) == result
    assert tuple(rng.philox4x32_torch(torch.tensor(counter), torch.tensor(key)).tolist()) == result
    assert rng._philox_scalar(*counter, *key) == result
    assert tuple(reference(counter, key)) == result


@given(st.tuples(word, word, word, word), st.tuples(word, word))
@settings(max_examples=60)
def test_three_implementations_agree(counter, key):
    expected = reference(counter, key)
    assert rng.philox4x32(counter, key).tolist() == expected
    assert rng.philox4x32_torch(torch.tensor(counter), torch.tensor(key)).tolist() == expected


def test_counter_and_key_broadcast_and_chunks_do_not_show():
    counters = np.random.default_rng(0).integers(0, 2**32, (5, rng._CHUNK // 2 + 3, 4), dtype=np.uint64)
    keys = np.random.default_rng(1).integers(0, 2**32, (5, 1, 2), dtype=np.uint64)
    words = rng.philox4x32(counters, keys)
    assert words.shape == counters.shape
    for b, i in ((0, 0), (2, 17), (4, counters.shape[1] - 1)):
        assert words[b, i].tolist() == reference(counters[b, i].tolist(), keys[b, 0].tolist())
    on_torch = rng.philox4x32_torch(
        torch.from_numpy(counters.astype(np.int64)), torch.from_numpy(keys.astype(np.int64))
    )
    assert np.array_equal(on_torch.numpy(), words)
    fanned = rng.philox4x32_torch(torch.tensor([1, 2, 3, 4]), torch.arange(6).reshape(3, 2))
    assert fanned.shape == (3, 4)
    assert fanned[2].tolist() == reference((1, 2, 3, 4), (4, 5))


def test_wrong_word_counts_are_named():
    with pytest.raises(HilumError, match="counters"):
        rng.philox4x32(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize(
    ("key", "op", "first"),
    [  # fixed for ever: changing them would change every run's augmentation
        (SampleKey(0, 0, 0), "hflip", (0xC47464D3, 0x066DC6AB)),
        (SampleKey(1234, 7, 0x0BADF00D), "resized_crop", (0x93B4F178, 0xC5B6F46F)),
        (SampleKey(2**40 + 5, 799, 0xFFFFFFFF), "noise", (0x857994C7, 0x552163D1)),
    ],
)
def test_pinned_vectors(key, op, first):
    assert rng.Stream(key).words(op, 1)[0, :2].tolist() == list(first) == host_block(key, op, 0)[:2]


@pytest.mark.parametrize("n", [3, 50])
def test_host_words_follow_formats_10(n):
    stream = rng.Stream(KEY, view=1, frame=9)
    words = stream.words("rotate", n, occurrence=2)
    expected = [host_block(KEY, "rotate", k, view=1, frame=9, occurrence=2) for k in range(n)]
    assert words.tolist() == expected
    assert stream.uniform("rotate", n, occurrence=2).tolist() == [(b[0] >> 8) / 2**24 for b in expected]


def test_pixels_follow_formats_10():
    noise = rng.Stream(KEY, frame=2).pixels("noise", (3, 7), occurrence=1)
    code = zlib.crc32(b"noise" + struct.pack("<I", 1)) & 0x7FFFFFFF
    key = (KEY.run_seed, zlib.crc32(struct.pack("<II", KEY.epoch, 0)))
    flat = [reference((i // 4, 2, code, KEY.sample), key)[i % 4] for i in range(21)]
    assert noise.dtype == torch.float32
    assert noise.shape == (3, 7)
    assert noise.flatten().tolist() == [(r >> 8) / 2**24 for r in flat]


def test_pixel_noise_of_many_samples_is_that_of_each(monkeypatch):
    keys = [SampleKey(1, 2, s) for s in (5, 2**32 - 1, 77)]
    batch = rng.pixel_noise(keys, "mask", (10,), view=3)
    for row, key in zip(batch, keys):
        assert torch.equal(row, rng.Stream(key, view=3).pixels("mask", (10,)))
    # the path that a GPU takes gives the same bits
    real, calls = torch.device, []
    monkeypatch.setattr(rng.torch, "device", lambda d: calls.append(d) or type("Device", (), {"type": "other"}))
    other = rng.pixel_noise(keys, "mask", (10,), view=3)
    monkeypatch.setattr(rng.torch, "device", real)
    assert calls
    assert torch.equal(other, batch)


@pytest.mark.gpu
def test_gpu_draws_the_same_bits():
    keys = [SampleKey(1, 2, s) for s in range(4)]
    on_gpu = rng.pixel_noise(keys, "noise", (3, 33, 31), device="cuda")
    assert torch.equal(on_gpu.cpu(), rng.pixel_noise(keys, "noise", (3, 33, 31)))


def test_ops_views_frames_epochs_samples_and_occurrences_are_independent():
    base = {"run_seed": 0, "epoch": 0, "sample": 0}
    rows = [rng.Stream(SampleKey(**base)).uniform("a", 400)]
    rows += [rng.Stream(SampleKey(**{**base, field: 1})).uniform("a", 400) for field in base]
    rows += [
        rng.Stream(SampleKey(**base), view=1).uniform("a", 400),
        rng.Stream(SampleKey(**base), frame=1).uniform("a", 400),
    ]
    rows += [
        rng.Stream(SampleKey(**base)).uniform("a", 400, occurrence=1),
        rng.Stream(SampleKey(**base)).uniform("b", 400),
    ]
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 0.2  # 4 standard deviations of 400 pairs


def test_draws_are_stateless_and_a_longer_draw_extends_a_shorter():
    stream = rng.Stream(KEY)
    first = stream.uniform("x", 4)
    stream.normal("y", 100)
    assert np.array_equal(stream.uniform("x", 40)[:4], first)
    assert np.array_equal(rng.Stream(KEY).normal("y", 3), stream.normal("y", 30)[:3])


def test_laws():
    """KS and chi-squared at 1e-3 over 20,000 draws from distinct samples or one stream."""
    stream, n = rng.Stream(KEY), 20_000
    assert stats.kstest(stream.uniform("u", n, lo=-1.0, hi=3.0), stats.uniform(-1, 4).cdf).pvalue > 1e-3
    assert stats.kstest(stream.normal("n", n, mean=2.0, std=0.5), stats.norm(2, 0.5).cdf).pvalue > 1e-3
    assert stats.chisquare(np.bincount(stream.integers("i", n, 7), minlength=7)).pvalue > 1e-3
    flips = sum(rng.Stream(SampleKey(0, 0, s)).bernoulli("flip", 0.3) for s in range(n // 4))
    assert stats.binomtest(flips, n // 4, 0.3).pvalue > 1e-3


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.2), (0.8, 0.8), (2.0, 5.0), (1e-3, 1e-3)])
def test_beta_law(a, b):
    draws = np.array([rng.Stream(SampleKey(0, 0, s)).beta("mix", a, b) for s in range(1500)])
    assert ((draws >= 0) & (draws <= 1)).all()
    if a > 0.01:
        assert stats.kstest(draws, stats.beta(a, b).cdf).pvalue > 1e-3
    else:  # nearly a coin
        assert stats.binomtest(int((draws > 0.5).sum()), len(draws), 0.5).pvalue > 1e-3


def test_integers_cover_their_whole_range_and_refuse_the_impossible():
    draws = rng.Stream(KEY).integers("i", 2000, 2**32)
    assert draws.min() < 2**24 < 2**32 - 2**24 < draws.max() < 2**32
    assert set(rng.Stream(KEY).integers("one", 9, 1)) == {0}
    words = [host_block(KEY, "i", k) for k in range(3)]
    assert rng.Stream(KEY).integers("i", 3, 10).tolist() == [(w[0] << 32 | w[1]) * 10 >> 64 for w in words]
    with pytest.raises(HilumError):
        rng.Stream(KEY).integers("i", 1, 0)
    with pytest.raises(HilumError):
        rng.Stream(KEY).beta("b", 0.0, 1.0)


def test_permutation_is_a_permutation_from_philox_alone():
    order = rng.permutation(9, seed=3, epoch=2)
    code = zlib.crc32(b"permutation" + bytes(4)) | 1 << 31
    key = (3, zlib.crc32(struct.pack("<II", 2, 0)))
    blocks = [reference((i // 2, 0, code, 0), key) for i in range(9)]
    bits = [b[2 * (i % 2)] << 32 | b[2 * (i % 2) + 1] for i, b in enumerate(blocks)]
    assert order.tolist() == sorted(range(9), key=bits.__getitem__)
    assert order.dtype == np.int64
    assert rng.permutation(0, seed=0, epoch=0).tolist() == []
    assert sorted(rng.permutation(100_001, seed=1, epoch=0)) == list(range(100_001))


def test_permutations_are_uniform_and_independent_between_epochs():
    orders = np.array([rng.permutation(4, seed=11, epoch=e) for e in range(4800)])
    counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == math.factorial(4)
    assert stats.chisquare(counts).pvalue > 1e-3
    table = np.zeros((4, 4))
    np.add.at(table, (orders[:-1, 0], orders[1:, 0]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3
    a, b = (rng.permutation(2000, seed=0, epoch=0, name=name) for name in ("permutation", "other"))
    assert abs(stats.spearmanr(a, b).statistic) < 0.1
