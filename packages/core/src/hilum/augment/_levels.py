# mypy: ignore-errors
"""The level of :mod:`hilum.augment._loops`: stored pixels of any compiled type, going on by the border rule, to block means."""

from __future__ import annotations

import numpy as np

from hilum.augment._lanes import half, loop, single

LINE = 2048  # stored values at a time that are summed into blocks
U8, U16, I16, F16, F32 = range(5)
CONSTANT, EDGE, REFLECT = range(3)


@loop
def fold(at, n, border):
    """Where a border rule finds pixel ``at`` of ``n``; -1 where a constant stands."""
    if 0 <= at < n:
        return at
    if border == EDGE:
        return 0 if at < 0 else n - 1
    if border == REFLECT:
        at %= 2 * n  # mirrored about -0.5 and n - 0.5
        return min(at, 2 * n - 1 - at)
    return -1


def _summing(value):
    @loop
    def summed(source, at, stride, f, n, out):
        """Rows of ``n`` sums over f rows of ``source``, the first at ``at``."""
        for r in range(len(out) // n):
            target, first = out[r * n : (r + 1) * n], at + r * f * stride
            a = source[first : first + n]
            if f == 1:
                for k in range(n):
                    target[k] = value(a[k])
                continue
            b = source[first + stride : first + stride + n]
            for k in range(n):
                target[k] = value(a[k]) + value(b[k])
            for j in range(2, f):
                c = source[first + j * stride : first + j * stride + n]
                for k in range(n):
                    target[k] += value(c[k])

    return summed


_plain, _halves = _summing(single), _summing(half)


@loop
def _sums(stored, code, at, stride, f, n, out):
    """Stored values, f rows at a time, as float32: rows of ``n`` of them, the first at ``at``."""
    u8, u16, i16, f32 = stored
    if code == U8:
        _plain(u8, at, stride, f, n, out)
    elif code == U16:
        _plain(u16, at, stride, f, n, out)
    elif code == I16:
        _plain(i16, at, stride, f, n, out)
    elif code == F16:
        _halves(u16, at, stride, f, n, out)
    else:
        _plain(f32, at, stride, f, n, out)


@loop
def value_at(stored, code, at):
    u8, u16, i16, f32 = stored
    if code == U8:
        return np.float32(u8[at])
    if code == U16:
        return np.float32(u16[at])
    if code == I16:
        return np.float32(i16[at])
    if code == F16:
        return half(u16[at])
    return f32[at]


@loop
def _outside(stored, code, at, width, group, border, fill, start, out):
    """:func:`_line` where no pixel is inside the image, or the row is not (``at`` below 0)."""
    for k in range(len(out)):
        x = fold(start + k // group, width, border) if at >= 0 else -1
        out[k] = fill if x < 0 else value_at(stored, code, at + x * group + k % group)


@loop
def _line(stored, code, at, width, group, border, fill, start, out):
    """Pixels ``start`` ... of a row of the image as float32, going on by the border rule.

    ``at``: where the row begins in ``stored``, -1 where it is all border; ``group``: values a pixel.
    """
    stop = start + len(out) // group
    first, last = max(start, 0), min(stop, width)
    if at < 0 or first >= last:
        _outside(stored, code, at, width, group, border, fill, start, out)
        return
    head, tail = (first - start) * group, (last - start) * group
    _sums(stored, code, at + first * group, np.int64(0), np.int64(1), tail - head, out[head:tail])
    if head:
        _outside(stored, code, at, width, group, border, fill, start, out[:head])
    if tail < len(out):
        _outside(stored, code, at, width, group, border, fill, last, out[tail:])


@loop
def _blocks(line, factor, group, scale, out):
    """Sums of ``factor`` neighbouring pixels of ``line`` times ``scale``."""
    if group == 1 and factor == 2:
        for x in range(len(out)):
            out[x] = (line[2 * x] + line[2 * x + 1]) * scale
    elif group == 3 and factor == 2:
        n = len(line) - 3
        beside = line[3 : 3 + n]
        for k in range(n):  # in vectors, every other pixel in vain
            line[k] = (line[k] + beside[k]) * scale
        for x in range(len(out) // 3):
            a, b = out[3 * x : 3 * x + 3], line[6 * x : 6 * x + 3]
            a[0], a[1], a[2] = b[0], b[1], b[2]
    else:
        for x in range(len(out) // group):
            for g in range(group):
                total = line[x * factor * group + g]
                for k in range(1, factor):
                    total += line[(x * factor + k) * group + g]
                out[x * group + g] = total * scale


@loop
def means(stored, about, plane, fill, low_y, low_x, h, w, line, out):
    """(h, w * group) block means of the level from pixel (low_y, low_x) on, of one plane of the stored image."""
    code, base, height, width, _, stride, plane_stride, group, _, _, f_y, f_x, _, _ = about
    base, scale, n = base + plane * plane_stride, np.float32(1.0 / (f_y * f_x)), w * group
    first, last = h, h  # rows of the level whose pixels are all inside the image
    if low_x >= 0 and (low_x + w) * f_x <= width:
        first, last = min(max(-low_y, 0), h), max(min(height // f_y - low_y, h), 0)
        last = max(last, first)
    at = base + (low_y + first) * f_y * stride + low_x * f_x * group
    rows = last - first if f_x == 1 else max(1, LINE // (n * f_x))
    for i in range(first, last, max(rows, 1)):
        target = out[i * n : min(i + rows, last) * n]
        summed = target if f_x == 1 else line[: len(target) * f_x]
        _sums(stored, code, at + (i - first) * f_y * stride, stride, f_y, n * f_x, summed)
        if f_x > 1:
            _blocks(summed, f_x, group, scale, target)
        elif f_y > 1:
            for k in range(len(target)):
                target[k] *= scale
    for i in range(h):
        if not first <= i < last:
            _edge_row(stored, about, base, fill, low_y + i, low_x, line, out[i * n : (i + 1) * n])


@loop
def _edge_row(stored, about, base, fill, low_y, low_x, line, out):
    """A row of the level, from pixel (low_y, low_x) on, that reaches beyond the image."""
    code, _, height, width, _, stride, _, group, border, _, f_y, f_x, _, _ = about
    scale, n = np.float32(1.0 / (f_y * f_x)), len(out)
    part = n if f_x == 1 else max(1, LINE // (f_x * group)) * group
    for c in range(0, n, part):
        target = out[c : min(c + part, n)]
        size, start = len(target) * f_x, (low_x + c // group) * f_x
        summed, more = target if f_x == 1 else line[:size], line[-size:]
        for j in range(f_y):
            y = fold(low_y * f_y + j, height, border)
            at = base + y * stride if y >= 0 else -1
            _line(stored, code, at, width, group, border, fill, start, more if j else summed)
            if j:
                for k in range(size):
                    summed[k] += more[k]
        if f_x > 1:
            _blocks(summed, f_x, group, scale, target)
        elif f_y > 1:
            for k in range(n):
                target[k] *= scale
