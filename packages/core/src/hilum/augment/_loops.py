# mypy: ignore-errors
"""The numba loops of :mod:`hilum.augment.compiled`: one kernel, compiled once for all stored types, nothing image-sized.

An output is made tile by tile. What a tile reads of the image lies in a small scratch: block means of the stored pixels
(the level), there the short kernel along y and x, then one linear read an output pixel; a row of the tile at a time goes
through window, pointwise ops, noise and normalisation and is stored.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
from numba import njit

from hilum.augment import _lanes, _levels
from hilum.augment._lanes import GREY, clipped, loop, normals, pointwise
from hilum.augment._levels import LINE, fold, means, value_at

BAND = 8  # rows of a tile that go through the pointwise ops together
TILE = 64  # output pixels a side: scratch within the L2 cache, little read twice
NEAREST, GENERAL, ALIGNED = range(3)

# --- the filter and the reads -------------------------------------------------------------------------------


@loop
def _three(a, b, c, k, out):
    k0, k1 = np.float32(k[0]), np.float32(k[1])
    for i in range(len(out)):
        out[i] = k0 * b[i] + k1 * (a[i] + c[i])


@loop
def _seven(a, b, c, d, e, f, g, k, out):
    k0, k1, k2, k3 = np.float32(k[0]), np.float32(k[1]), np.float32(k[2]), np.float32(k[3])
    for i in range(len(out)):
        out[i] = k0 * d[i] + k1 * (c[i] + e[i]) + k2 * (b[i] + f[i]) + k3 * (a[i] + g[i])


@loop
def _fir(x, step, reach, k, out):
    """out[i] = sum over |j| <= reach of k[|j|] x[i + (j + reach) step]."""
    n, s = len(out), step
    if reach == 0:
        for i in range(n):
            out[i] = x[i]
    elif reach == 1:
        _three(x[:n], x[s : s + n], x[2 * s : 2 * s + n], k, out)
    else:
        a, b, c, d = x[:n], x[s : s + n], x[2 * s : 2 * s + n], x[3 * s : 3 * s + n]
        _seven(a, b, c, d, x[4 * s : 4 * s + n], x[5 * s : 5 * s + n], x[6 * s : 6 * s + n], k, out)


@loop
def _filter(x, wide, group, rows, reach_y, reach_x, taps, line, out):
    """Both kernels over ``rows`` rows of ``wide`` values, some rows at a time; the last 2 reach_x pixels of each mean nothing."""
    part = max(1, len(line) // wide)
    for i in range(0, rows, part):
        n = min(part, rows - i) * wide
        _fir(x[i * wide :], wide, reach_y, taps[0], line[:n])
        _fir(line, group, reach_x, taps[1], out[i * wide : i * wide + n - 2 * reach_x * group])


@loop
def _combine(x, step, reach, k, rest, out):
    """One linear read along y of the filtered level: rows 0 .. 2 reach + 1 of ``x`` into one."""
    n = len(out)
    for j in range(2 * reach + 2):
        here = k[abs(j - reach)] if j <= 2 * reach else 0.0
        before = k[abs(j - 1 - reach)] if j > 0 else 0.0
        weight = np.float32((1.0 - rest) * here + rest * before)
        row = x[j * step : j * step + n]
        if j == 0:
            for i in range(n):
                out[i] = weight * row[i]
        else:
            for i in range(n):
                out[i] += weight * row[i]


@loop
def _read(x, width, group, m, u_y, u_x, q, low_y, low_x, n, step, at, share, row):
    """Linear reads at output pixels q .. q + n - 1 of a line of a scratch (.., width * group), a channel each ``step``.

    ``u_y``, ``u_x``: the part of the position that the line gives; ``low_y``, ``low_x``: where the scratch begins.
    ``at`` and ``share`` are room for places and shares.
    """
    line = np.int32(width * group)
    right, below = share[:n], share[n : 2 * n]
    d_y, d_x, e_y, e_x = m[0, 1], m[1, 1], m[0, 2], m[1, 2]
    for i in range(n):
        y = u_y + (d_y * (q + i) + e_y) - low_y
        x_ = u_x + (d_x * (q + i) + e_x) - low_x
        j, k = np.int32(y), np.int32(x_)
        below[i], right[i] = np.float32(y - j), np.float32(x_ - k)
        at[i] = j * line + k * np.int32(group)
    under, beside = np.uint64(line), np.uint64(group)
    if group == 1:
        for i in range(n):
            k, d, b = np.uint64(at[i]), right[i], below[i]
            v = x[k] + (x[k + beside] - x[k]) * d
            w = x[k + under] + (x[k + under + beside] - x[k + under]) * d
            row[i] = v + (w - v) * b
    elif group == 3:
        for i in range(n):
            k, d, b = np.uint64(at[i]), right[i], below[i]
            for g in range(3):
                h = k + np.uint64(g)
                v = x[h] + (x[h + np.uint64(3)] - x[h]) * d
                w = x[h + under] + (x[h + under + np.uint64(3)] - x[h + under]) * d
                row[g * step + i] = v + (w - v) * b
    else:
        for i in range(n):
            k, d, b = np.uint64(at[i]), right[i], below[i]
            for g in range(group):
                h = k + np.uint64(g)
                v = x[h] + (x[h + beside] - x[h]) * d
                w = x[h + under] + (x[h + under + beside] - x[h + under]) * d
                row[g * step + i] = v + (w - v) * b


@loop
def _read_line(x, group, m, q, low, n, step, row):
    """:func:`_read` along x alone."""
    one, d_x, e_x = np.float32(1.0), m[1, 1], m[1, 2]
    for i in range(n):
        x_ = d_x * (q + i) + e_x - low
        k = np.int32(x_)
        d, at = np.float32(x_ - k), np.uint32(k * group)
        for g in range(group):
            row[g * step + i] = x[at + np.uint32(g)] * (one - d) + x[at + np.uint32(group + g)] * d


@loop
def _read_nearest(stored, about, fill, m, q_y, q_x, n, step, row):
    code, base, height, width, channels, stride, plane_stride, group, border, _, _, _, _, _ = about
    u_y, u_x = m[0, 2] + m[0, 0] * q_y, m[1, 2] + m[1, 0] * q_y
    for i in range(n):
        y = fold(np.int64(math.floor(u_y + m[0, 1] * (q_x + i) + 0.5)), height, border)
        x = fold(np.int64(math.floor(u_x + m[1, 1] * (q_x + i) + 0.5)), width, border)
        for c in range(channels):
            at = base + y * stride + (x * group + c if group > 1 else x + c * plane_stride)
            row[c * step + i] = fill if min(x, y) < 0 else value_at(stored, code, at)


# --- values -------------------------------------------------------------------------------------------------


@loop
def _finish(band, count, rows, n, y, x, codes, params, table, loud, key, words, noise, norm, out):
    """Sampled values (count, rows, n) through everything after sampling, stored at out[:, y : y + rows, x : x + n]."""
    channels, height, width = out.shape
    step = rows * n
    for k in range(len(codes)):
        if codes[k] == GREY:
            red, green, blue = band[:step], band[step : 2 * step], band[2 * step : 3 * step]
            for i in range(step):
                red[i] = red[i] * params[k, 0] + green[i] * params[k, 1] + blue[i] * params[k, 2]
            count = 1
        else:
            pointwise(band[: count * step], codes[k], params[k], table)
    for c in range(channels):
        mean, std = norm[0, c], norm[1, c]
        for r in range(rows):
            begin = (c * step if count > 1 else 0) + r * n
            values, target = band[begin : begin + n], out[c, y + r, x : x + n]
            if loud != np.float32(0.0) and c < count:
                first = (c * height + y + r) * width + x
                normals(first, n, key, words, noise[len(words) :], noise)
                field = noise[first & 3 : (first & 3) + n]
                for i in range(n):
                    values[i] += loud * field[i]
            for i in range(n):
                target[i] = (clipped(values[i]) - mean) / std


@loop
def _corners(m, y, x, rows, columns):
    """Lowest and highest level pixel of one axis that a tile reads: the sums of the reads, which round alike."""
    top, bottom = m[0] * y, m[0] * (y + rows - 1)
    left, right = m[1] * x + m[2], m[1] * (x + columns - 1) + m[2]
    low, high = min(top, bottom) + min(left, right), max(top, bottom) + max(left, right)
    return np.int64(math.floor(low)), np.int64(math.floor(high)) + 1


def _versioned(version):
    """The kernel. ``version`` is part of the key of the compiled code on disk, which else sees changes of this file only."""

    def kernel(stored, about, fill, m, taps, codes, params, table, loud, key, norm, first, last, out):
        """Tiles ``first`` .. ``last`` of one sample's output ``out`` (channels, H, W) float32.

        ``stored``: flat arrays (u8, u16, i16, f32), of which the one that ``about`` names holds the image. ``m`` (2, 3):
        output pixel -> pixel of the level, float64. ``taps`` (2, 4): the kernels of y and x from their centre on.
        ``codes`` (n,) and ``params`` (n, 3): ops on values; ``norm`` (2, channels): mean and deviation.
        """
        if version < 0:
            return
        channels, group, mode, reach_y, reach_x = about[4], about[7], about[9], about[12], about[13]
        height, width = out.shape[1], out.shape[2]
        planes, across = channels // group, -(-width // TILE)
        side_y, side_x = 0, 0
        if mode != NEAREST:
            side_y = np.int64(math.ceil((abs(m[0, 0]) + abs(m[0, 1])) * TILE)) + 2 * reach_y + 3
            side_x = np.int64(math.ceil((abs(m[1, 0]) + abs(m[1, 1])) * TILE)) + 2 * reach_x + 3
        size = side_y * side_x * group
        level = np.empty(size * planes, np.float32)
        filtered = mode == GENERAL and reach_y + reach_x > 0
        fine = np.empty(size * planes if filtered else side_x * group, np.float32)
        # A row of the level in stored values: of inner rows no more than the image has, at any reduction.
        stretch = min(side_x * about[11], about[3]) * group
        line = np.empty(max(2 * max(max(LINE, about[11] * group), side_x * group), stretch), np.float32)
        band, noise = np.empty(channels * BAND * TILE, np.float32), np.empty(2 * TILE + 16, np.float32)
        words = np.empty(TILE + 8, np.uint32)
        places, shares = np.empty(TILE, np.uint32), np.empty(2 * TILE, np.float32)
        for tile in range(first, last):
            y0, x0 = tile // across * TILE, tile % across * TILE
            rows, n = min(TILE, height - y0), min(TILE, width - x0)
            low_y, h, low_x, w, full_w = 0, 0, 0, 0, 0
            source = level
            if mode != NEAREST:
                low_y, high_y = _corners(m[0], y0, x0, rows, n)
                low_x, high_x = _corners(m[1], y0, x0, rows, n)
                h, w = high_y - low_y + 1, high_x - low_x + 1
                full_h, full_w = h + 2 * reach_y, w + 2 * reach_x
                for p in range(planes):
                    target = level[p * size : p * size + full_h * full_w * group]
                    means(stored, about, p, fill, low_y - reach_y, low_x - reach_x, full_h, full_w, line, target)
                if filtered:
                    source = fine
                    for p in range(planes):
                        _filter(
                            level[p * size :], full_w * group, group, h, reach_y, reach_x, taps, line, fine[p * size :]
                        )
            for q_y in range(y0, y0 + rows, BAND):
                deep = min(BAND, y0 + rows - q_y)
                step = deep * n
                for r in range(deep):
                    q = q_y + r
                    if mode == NEAREST:
                        _read_nearest(stored, about, fill, m, q, x0, n, step, band[r * n :])
                        continue
                    u_y, u_x = m[0, 0] * q, m[1, 0] * q
                    for p in range(planes):
                        target = band[p * group * step + r * n :]
                        if mode == GENERAL:
                            x, wide = source[p * size : (p + 1) * size], full_w
                            _read(x, wide, group, m, u_y, u_x, x0, low_y, low_x, n, step, places, shares, target)
                        else:
                            u = u_y + m[0, 2] - low_y
                            k, wide = np.int64(u), full_w * group
                            mixed, done = line[:wide], fine[: w * group]
                            _combine(level[p * size + k * wide : (p + 1) * size], wide, reach_y, taps[0], u - k, mixed)
                            _fir(mixed, group, reach_x, taps[1], done)
                            _read_line(done, group, m, x0, low_x, n, step, target)
                _finish(band, channels, deep, n, q_y, x0, codes, params, table, loud, key, words, noise, norm, out)

    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(kernel)
    except RuntimeError:  # nowhere to keep it: a read-only installation without a home; compiled in every process
        return njit(**options)(kernel)


kernel = _versioned(zlib.crc32(b"".join(Path(module.__file__).read_bytes() for module in (_lanes, _levels))))
