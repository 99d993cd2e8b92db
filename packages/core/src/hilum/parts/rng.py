"""Counter-based randomness: Philox4x32-10, keyed by sample, equal on every device and in every batch.

Sources: Salmon et al. 2011 (Random123), *Parallel random numbers: as easy as 1, 2, 3*; FORMATS section 10.

* key = (run_seed low 32 bits, crc32(epoch u32 LE || view u32 LE)).
* counter = (k, frame, op_id, sample).
* op_id = crc32(op name in UTF-8 || occurrence u32 LE), its top bit cleared for pixel noise and set for host draws.
* Pixel noise: pixel ``i`` is word ``i % 4`` of block ``k = i // 4``.
* Host draw number ``k`` owns block ``k``: a uniform is word 0, a normal is Box-Muller on words 0 and 1, an integer uses
  words 0 and 1 as 64 bits. A beta variate owns 32 consecutive blocks (16 attempts at each of its two gammas).
* A uniform is ``(word >> 8) * 2**-24``, 24 bits, for host (float64) and pixel (float32) draws alike.

No draw depends on another: adding an op, reordering ops or batching samples otherwise changes nothing.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hilum.core.errors import HilumError
from hilum.core.types import SampleKey

ROUNDS: Final = 10
LOW32: Final = 0xFFFFFFFF
HOST_BIT: Final = 0x80000000
UNIT: Final = 2.0**-24
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_CHUNK: Final = 1 << 14  # blocks at a time: the working set stays in the L2 cache
_SCALAR: Final = 24  # below this many blocks Python integers beat numpy's call overhead
_ATTEMPTS: Final = 16  # at >= 95 % acceptance each, a gamma without an accepted attempt has probability < 1e-20


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32. ``counter`` (...,4) and ``key`` (...,2) of 32-bit words broadcast; returns (...,4)."""
    counter, key = np.asarray(counter, np.uint64), np.asarray(key, np.uint64)
    _check_words(counter.shape, key.shape)
    shape = np.broadcast_shapes(counter.shape[:-1], key.shape[:-1])
    words = [np.broadcast_to(counter[..., i], shape).reshape(-1) for i in range(4)]
    keys = [np.broadcast_to(key[..., i], shape).reshape(-1) for i in range(2)]
    out = np.empty((math.prod(shape), 4), np.uint32)
    for start in range(0, len(out), _CHUNK):
        part = slice(start, start + _CHUNK)
        _rounds(out[part], [w[part] for w in words], [k[part] for k in keys])
    return out.reshape(*shape, 4)


def _rounds(out: NDArray[np.uint32], words: list[NDArray[np.uint64]], keys: list[NDArray[np.uint64]]) -> None:
    low, shift = np.uint64(LOW32), np.uint64(32)
    m0, m1 = (np.uint64(m) for m in _MULTIPLIERS)
    c0, c1, c2, c3 = words
    k0, k1 = (k if np.ptp(k) else k[:1] for k in keys)
    for _ in range(ROUNDS):
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & low, (p0 >> shift) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(_WEYL[0])) & low, (k1 + np.uint64(_WEYL[1])) & low
    for i, word in enumerate((c0, c1, c2, c3)):
        out[:, i] = word


def philox4x32_torch(counter: Tensor, key: Tensor) -> Tensor:
    """:func:`philox4x32` on any device: int64 in (values of 32 bits), int64 out, bit for bit the same.

    int64 products wrap modulo 2**64, so the upper half of a 32 x 32 bit product is right after masking the shift.
    """
    _check_words(tuple(counter.shape), tuple(key.shape))
    c0, c1, c2, c3 = (w & LOW32 for w in counter.long().unbind(-1))
    k0, k1 = (w & LOW32 for w in key.long().unbind(-1))
    for _ in range(ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) & LOW32) ^ c1 ^ k0, p1 & LOW32
        c2, c3 = ((p0 >> 32) & LOW32) ^ c3 ^ k1, p0 & LOW32
        k0, k1 = (k0 + _WEYL[0]) & LOW32, (k1 + _WEYL[1]) & LOW32
    return torch.stack((c0, c1, c2, c3), -1)  # every word has met every other by now, so the shapes agree


def _check_words(counter: tuple[int, ...], key: tuple[int, ...]) -> None:
    if counter[-1:] != (4,) or key[-1:] != (2,):
        raise HilumError(f"Philox4x32 takes counters (...,4) and keys (...,2), got {counter} and {key}")


def _philox_scalar(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> tuple[int, int, int, int]:
    for _ in range(ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & LOW32, (p0 >> 32) ^ c3 ^ k1, p0 & LOW32
        k0, k1 = (k0 + _WEYL[0]) & LOW32, (k1 + _WEYL[1]) & LOW32
    return c0, c1, c2, c3


@lru_cache(4096)
def op_id(op: str, *, occurrence: int = 0, host: bool = True) -> int:
    """The third counter word of an op (FORMATS 10)."""
    code = zlib.crc32(op.encode() + struct.pack("<I", occurrence))
    return code | HOST_BIT if host else code & ~HOST_BIT


@lru_cache(4096)
def philox_key(run_seed: int, epoch: int, view: int = 0) -> tuple[int, int]:
    """The two key words (FORMATS 10)."""
    return run_seed & LOW32, zlib.crc32(struct.pack("<II", epoch & LOW32, view & LOW32))


class Stream:
    """Every random number of one sample, view and frame. Cheap; holds no state, so calls may come in any order.

    Draws are float64 arrays; ``occurrence`` tells apart two uses of one op in a policy.
    """

    __slots__ = ("frame", "key", "sample")

    def __init__(self, key: SampleKey, *, view: int = 0, frame: int = 0) -> None:
        self.key = philox_key(key.run_seed, key.epoch, view)
        self.sample = key.sample & LOW32
        self.frame = frame & LOW32

    def words(self, op: str, n: int, *, occurrence: int = 0) -> NDArray[np.uint32]:
        """(n,4): host block k = 0 .. n-1 of an op."""
        op_word = op_id(op, occurrence=occurrence)
        if n <= _SCALAR:
            blocks = [_philox_scalar(k, self.frame, op_word, self.sample, *self.key) for k in range(n)]
            return np.array(blocks, np.uint32).reshape(n, 4)
        counter = np.empty((n, 4), np.uint64)
        counter[:] = (0, self.frame, op_word, self.sample)
        counter[:, 0] = np.arange(n)
        return philox4x32(counter, self.key)

    def uniform(
        self, op: str, n: int = 1, *, lo: float = 0.0, hi: float = 1.0, occurrence: int = 0
    ) -> NDArray[np.float64]:
        """(n,) uniform on [lo, hi)."""
        return lo + (hi - lo) * _unit(self.words(op, n, occurrence=occurrence)[:, 0])

    def normal(
        self, op: str, n: int = 1, *, mean: float = 0.0, std: float = 1.0, occurrence: int = 0
    ) -> NDArray[np.float64]:
        """(n,) normal (Box-Muller; 1 - u keeps the logarithm finite, so |z| <= 5.77)."""
        return mean + std * _box_muller(self.words(op, n, occurrence=occurrence))

    def bernoulli(self, op: str, p: float, *, occurrence: int = 0) -> bool:
        """True with probability p."""
        return bool(self.uniform(op, occurrence=occurrence)[0] < p)

    def integers(self, op: str, n: int, high: int, *, occurrence: int = 0) -> NDArray[np.int64]:
        """(n,) integers on [0, high), high <= 2**32: floor(64 random bits * high / 2**64)."""
        if not 0 < high <= 1 << 32:
            raise HilumError(f"integers below {high} cannot be drawn", fix="0 < high <= 2**32")
        words = self.words(op, n, occurrence=occurrence).astype(np.uint64)
        bound, shift = np.uint64(high), np.uint64(32)
        return ((words[:, 0] * bound + (words[:, 1] * bound >> shift)) >> shift).astype(np.int64)

    def beta(self, op: str, a: float, b: float, *, occurrence: int = 0) -> float:
        """One Beta(a, b) variate from two gammas, in logarithms so that small a and b do not underflow."""
        if not (a > 0 and b > 0):
            raise HilumError(f"Beta({a}, {b}) does not exist", fix="both parameters must be above 0")
        words = self.words(op, 2 * _ATTEMPTS, occurrence=occurrence)
        difference = _log_gamma(words[_ATTEMPTS:], b) - _log_gamma(words[:_ATTEMPTS], a)
        return 1.0 / (1.0 + math.exp(min(difference, 700.0)))

    def pixels(self, op: str, shape: Sequence[int], *, occurrence: int = 0, device: Any = "cpu") -> Tensor:
        """Uniform float32 noise of a shape, one number a pixel."""
        return _pixel_noise([self], op, shape, occurrence, device)[0]


def pixel_noise(
    keys: Sequence[SampleKey],
    op: str,
    shape: Sequence[int],
    *,
    view: int = 0,
    frame: int = 0,
    occurrence: int = 0,
    device: Any = "cpu",
) -> Tensor:
    """:meth:`Stream.pixels` of many samples in one pass: (len(keys), *shape) float32 on ``device``.

    With ``shape=(N,)`` this is the keyed noise of random masking: the same image gets the same mask in any batch.
    """
    return _pixel_noise([Stream(key, view=view, frame=frame) for key in keys], op, shape, occurrence, device)


def _pixel_noise(streams: Sequence[Stream], op: str, shape: Sequence[int], occurrence: int, device: Any) -> Tensor:
    size = math.prod(shape)
    blocks = -(-size // 4)
    op_word = op_id(op, occurrence=occurrence, host=False)
    heads = [(0, s.frame, op_word, s.sample) for s in streams]
    if torch.device(device).type == "cpu":
        counter = np.empty((len(streams), blocks, 4), np.uint64)
        counter[:] = np.array(heads, np.uint64).reshape(-1, 1, 4)
        counter[..., 0] = np.arange(blocks)
        key = np.array([s.key for s in streams], np.uint64).reshape(-1, 1, 2)
        words = torch.from_numpy((philox4x32(counter, key) >> np.uint32(8)).astype(np.float32))
    else:
        counter_t = torch.tensor(heads, dtype=torch.int64, device=device).reshape(-1, 1, 4).repeat(1, blocks, 1)
        counter_t[..., 0] = torch.arange(blocks, device=device)
        key_t = torch.tensor([s.key for s in streams], dtype=torch.int64, device=device).reshape(-1, 1, 2)
        words = (philox4x32_torch(counter_t, key_t) >> 8).float()
    return (words * UNIT).reshape(len(streams), -1)[:, :size].reshape(len(streams), *shape)


def permutation(n: int, *, seed: int, epoch: int, name: str = "permutation") -> NDArray[np.int64]:
    """(n,) a uniform permutation: argsort of 64 Philox bits per position, the same on every platform.

    ``name`` gives independent orders under one seed and epoch.
    """
    blocks = -(-n // 2)
    counter = np.zeros((blocks, 4), np.uint64)
    counter[:, 0] = np.arange(blocks)
    counter[:, 2] = op_id(name)
    words = philox4x32(counter, philox_key(seed, epoch)).astype(np.uint64)
    bits = (words[:, 0::2] << np.uint64(32) | words[:, 1::2]).reshape(-1)[:n]
    return np.argsort(bits, kind="stable").astype(np.int64, copy=False)


def _unit(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    return (words >> np.uint32(8)).astype(np.float64) * UNIT


def _box_muller(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    radius = np.sqrt(-2.0 * np.log(1.0 - _unit(words[:, 0])))
    normal: NDArray[np.float64] = radius * np.cos(2.0 * math.pi * _unit(words[:, 1]))
    return normal


def _log_gamma(words: NDArray[np.uint32], shape: float) -> float:
    """Logarithm of one Gamma(shape, 1) variate: the first accepted attempt of Marsaglia and Tsang (2000).

    Gamma(a) = Gamma(a + 1) * u**(1/a) serves shapes below 1. Words 0, 1: normal; 2: acceptance; 3 of block 0: u.
    """
    d = (shape + 1.0 if shape < 1.0 else shape) - 1.0 / 3.0
    x = _box_muller(words)
    cube = (1.0 + x / math.sqrt(9.0 * d)) ** 3
    with np.errstate(invalid="ignore", divide="ignore"):
        bound = 0.5 * x * x + d - d * cube + d * np.log(cube)
        accepted = (cube > 0.0) & (np.log(1.0 - _unit(words[:, 2])) < bound)
    log_gamma = math.log(d) + math.log(cube[int(np.argmax(accepted))])
    boost = math.log(1.0 - float(_unit(words[:1, 3])[0])) / shape if shape < 1.0 else 0.0
    return log_gamma + boost
