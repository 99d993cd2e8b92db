# mypy: ignore-errors
"""Functions of single values for :mod:`hilum.augment._loops`, in float32 and without branches, so that loops over them
become vector code: the exponential and its kin, Philox4x32-10 with Box-Muller, and the pointwise ops of a policy.

No fast-math anywhere: the same operations in the same order on every value, in any batch. Polynomials are Taylor series
cut where the next term is below float32.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

GREY, AFFINE, LINEAR, STEP, SIGMOID, TABLE, MOVED, SCALE, GAMMA, TURN = range(10)

loop = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


@intrinsic
def _as_int(typing, value):
    """The bits of a float32 as int32."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), code


@intrinsic
def _as_float(typing, value):
    """A float32 of the given bits."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), code


# --- elementary functions in float32: branchless, so that loops over them become vector code ---------------


@loop
def single(value):
    return np.float32(value)


@loop
def half(bits):
    """A float32 of the bits of a float16."""
    b = np.int32(bits)
    size = np.int32((b & np.int32(0x7FFF)) << np.int32(13))
    x = _as_float(size) * np.float32(2.0**112)  # moves the exponent's bias; denormals come out right
    x = _as_float(np.int32(size | np.int32(0x7F800000))) if size >= np.int32(0x0F800000) else x
    return -x if b & np.int32(0x8000) else x


@loop
def log(x):
    """Natural logarithm of a positive float32: 2 artanh((m - 1) / (m + 1)) + e ln 2 with m in [0.7, 1.42)."""
    bits = _as_int(x)
    shifted = np.int32(bits - np.int32(0x3F3504F3))
    e = np.int32(shifted >> np.int32(23))
    m = _as_float(np.int32(bits - np.int32(e << np.int32(23))))
    s = (m - np.float32(1.0)) / (m + np.float32(1.0))
    z = s * s
    series = np.float32(1 / 7) + z * np.float32(1 / 9)
    series = np.float32(1 / 3) + z * (np.float32(1 / 5) + z * series)
    small = np.float32(2.0) * s + np.float32(2.0) * s * z * series
    return small + np.float32(e) * np.float32(0.6931471805599453)


@loop
def exp(x):
    """Exponential of a float32: 2^n times the Taylor series on |r| <= 0.35; 0 below -87, infinity above 88."""
    t = x * np.float32(1.4426950408889634)
    t = np.float32(-127.0) if t < np.float32(-127.0) else t
    t = np.float32(128.0) if t > np.float32(128.0) else t
    n = np.int32(math.floor(t + np.float32(0.5)))
    r = (t - np.float32(n)) * np.float32(0.6931471805599453)
    y = np.float32(1 / 120) + r * (np.float32(1 / 720) + r * np.float32(1 / 5040))
    y = np.float32(1 / 2) + r * (np.float32(1 / 6) + r * (np.float32(1 / 24) + r * y))
    y = np.float32(1.0) + r * (np.float32(1.0) + r * y)
    return y * _as_float(np.int32((n + np.int32(127)) << np.int32(23)))


@loop
def power(x, g):
    """x^g of x >= 0, g > 0; NaN stays NaN."""
    y = exp(g * log(x))
    y = np.float32(0.0) if x <= np.float32(0.0) else y
    return y if x == x else x


@loop
def _round(c0, c1, c2, c3, k0, k1):
    p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    return (p1 >> shift) ^ c1 ^ (k0 & low), p1 & low, (p0 >> shift) ^ c3 ^ (k1 & low), p0 & low


@loop
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32 (hilum.parts.rng) on 32-bit words held in uint64; written out, for vector code."""
    w0, w1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + w0, k1 + w1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + np.uint64(2) * w0, k1 + np.uint64(2) * w1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + np.uint64(3) * w0, k1 + np.uint64(3) * w1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + np.uint64(4) * w0, k1 + np.uint64(4) * w1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + np.uint64(5) * w0, k1 + np.uint64(5) * w1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + np.uint64(6) * w0, k1 + np.uint64(6) * w1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + np.uint64(7) * w0, k1 + np.uint64(7) * w1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0 + np.uint64(8) * w0, k1 + np.uint64(8) * w1)
    return _round(c0, c1, c2, c3, k0 + np.uint64(9) * w0, k1 + np.uint64(9) * w1)


@loop
def box_muller(first, second):
    """Two normals of two 32-bit words: 24 bits each, radius of the first, angle of the second."""
    unit = np.float32(2.0**-24)
    rest = np.float32(1.0) - np.float32(np.int32(first >> np.uint32(8))) * unit  # exact, above 0
    radius = np.float32(math.sqrt(np.float32(-2.0) * log(rest)))
    quarter = np.float32(np.int32(second >> np.uint32(8))) * np.float32(2.0**-22)
    n = np.int32(quarter + np.float32(0.5))
    r = (quarter - np.float32(n)) * np.float32(math.pi / 2)
    z = r * r
    sine = np.float32(-1 / 5040) + z * np.float32(1 / 362880)
    sine = r + r * z * (np.float32(-1 / 6) + z * (np.float32(1 / 120) + z * sine))
    cosine = np.float32(-1 / 720) + z * (np.float32(1 / 40320) - z * np.float32(1 / 3628800))
    cosine = np.float32(1.0) + z * (np.float32(-1 / 2) + z * (np.float32(1 / 24) + z * cosine))
    turned = n & np.int32(1)
    a = sine if turned else cosine
    b = cosine if turned else sine
    a = -a if (n + np.int32(1)) & np.int32(2) else a
    b = -b if n & np.int32(2) else b
    return radius * a, radius * b


@loop
def _words(start, key, a, b, c, d):
    for i in range(len(a)):
        block = np.uint64(start + i) & np.uint64(0xFFFFFFFF)
        w0, w1, w2, w3 = philox(block, key[2], key[3], key[4], key[0], key[1])
        a[i], b[i], c[i], d[i] = np.uint32(w0), np.uint32(w1), np.uint32(w2), np.uint32(w3)


@loop
def _pairs(first, second, cosine, sine):
    for i in range(len(first)):
        cosine[i], sine[i] = box_muller(first[i], second[i])


@loop
def normals(first, count, key, words, planes, out):
    """Standard normals of the pixels 4 * (first // 4) ... of a sample, at least ``count`` beyond ``first``, into ``out``.

    ``key``: two key words, then frame, op and sample of the counter; ``words`` and ``planes``: room for four a block.
    """
    start = first >> 2
    n = ((first + count - 1) >> 2) - start + 1
    _words(start, key, words[:n], words[n : 2 * n], words[2 * n : 3 * n], words[3 * n : 4 * n])
    _pairs(words[:n], words[n : 2 * n], planes[:n], planes[n : 2 * n])
    _pairs(words[2 * n : 3 * n], words[3 * n : 4 * n], planes[2 * n : 3 * n], planes[3 * n : 4 * n])
    for i in range(n):
        for k in range(4):
            out[4 * i + k] = planes[k * n + i]


# --- windows and pointwise ops: x in place, parameters p (3,) ------------------------------------------------


@loop
def _affine(x, a, b):
    for i in range(len(x)):
        x[i] = x[i] * a + b


@loop
def clipped(v):
    """v within [0, 1]; NaN stays NaN."""
    v = np.float32(0.0) if v < np.float32(0.0) else v
    return np.float32(1.0) if v > np.float32(1.0) else v


@loop
def _linear(x, low, width):
    for i in range(len(x)):
        x[i] = clipped((x[i] - low) / width)


@loop
def _step(x, low):
    for i in range(len(x)):
        v = x[i]
        x[i] = (np.float32(1.0) if v > low else np.float32(0.0)) if v == v else v


@loop
def _sigmoid(x, low, width, half_width):
    for i in range(len(x)):
        v = x[i]
        z = np.float32(4.0) * (v - low - half_width) / width
        x[i] = np.float32(1.0) / (np.float32(1.0) + exp(-z)) if v == v else v


@loop
def _look_up(x, low, table):
    for i in range(len(x)):
        at = np.float32(np.rint(x[i])) - low
        at = at if at > np.float32(0.0) else np.float32(0.0)
        at = min(at, np.float32(len(table) - 1))
        x[i] = table[np.int64(at)] if x[i] == x[i] else x[i]


@loop
def _moved(x, centre, shift, width):
    for i in range(len(x)):
        x[i] = (x[i] - centre - shift) / width + centre


@loop
def _gamma(x, g):
    for i in range(len(x)):
        v = x[i]
        x[i] = power(np.float32(0.0) if v < np.float32(0.0) else v, g)


@loop
def _turned(x, pivot, c):
    for i in range(len(x)):
        x[i] = (x[i] - pivot) * c + pivot


@loop
def pointwise(x, op, p, table):
    """One op on a row of values."""
    if op == AFFINE:
        _affine(x, p[0], p[1])
    elif op == LINEAR:
        _linear(x, p[0], p[1])
    elif op == STEP:
        _step(x, p[0])
    elif op == SIGMOID:
        _sigmoid(x, p[0], p[1], p[2])
    elif op == TABLE:
        _look_up(x, p[0], table)
    elif op == MOVED:
        _moved(x, p[0], p[1], p[2])
    elif op == SCALE:
        for i in range(len(x)):
            x[i] = x[i] * p[0]
    elif op == GAMMA:
        _gamma(x, p[0])
    elif op == TURN:
        _turned(x, p[0], p[1])
