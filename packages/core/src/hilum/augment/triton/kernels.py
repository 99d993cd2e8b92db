"""The two Triton kernels for images: :func:`fuse`, stored pixels to network input, and :func:`shrink`, one level of them.

Programs are tiles of output pixels of one sample. All that is known of a sample stands in one row of an int64 table
(:mod:`hilum.augment.triton.table`): whole numbers as they are, real ones as the bits of their float64.

Positions: u = (a q_y + c) + b q_x. Each summand is split into a whole number and a rest in float64, once a row and once a
column of the tile; a pixel adds whole numbers in int32 and rests in float32, so that a weight is good to 2^-22 at any size
of image. Nearest reads add in float64, in the reference's order, because a rounding there moves a whole pixel.
Loops whose length belongs to a sample are ``while`` loops: the interpreter of triton 3.6 takes no other.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from hilum.augment.triton import table as _t


def _columns(*names):
    """Where in a row these stand (table.WHOLE, table.REAL)."""
    return [tl.constexpr(_t.AT[name]) for name in names]


PIXELS, HEIGHT, WIDTH, LEVEL, ROW = _columns("pixels", "height", "width", "level", "row")
STRIDE_Y, STRIDE_X, STRIDE_C = _columns("stride_y", "stride_x", "stride_c")
BLOCK_Y, BLOCK_X, SHIFT_Y, SHIFT_X = _columns("block_y", "block_x", "shift_y", "shift_x")
REACH_Y, REACH_X, KERNEL_Y, KERNEL_X, MATRIX = _columns("reach_y", "reach_x", "kernel_y", "kernel_x", "matrix")
TARGET, LOW_Y, LOW_X = _columns("target", "low_y", "low_x")
LEVEL_HEIGHT, LEVEL_WIDTH = _columns("level_height", "level_width")
OUTSIDE, SLOPE, INTERCEPT, WINDOW, LOW, SPAN = _columns("outside", "slope", "intercept", "window", "low", "span")
CURVE, CURVE_SIZE = _columns("curve", "curve_size")
CURVE_CENTRE, CURVE_MOVED, CURVE_SCALE = _columns("curve_centre", "curve_moved", "curve_scale")
BRIGHTNESS, CONTRAST, GAMMA, PIVOT = _columns("brightness", "contrast", "gamma", "pivot")
NOISE, KEY_0, KEY_1, SAMPLE = _columns("noise", "key_0", "key_1", "sample")
COLUMNS = tl.constexpr(_t.COLUMNS)
NOISE_OP = tl.constexpr(_t.NOISE_OP)
CONSTANT, EDGE, REFLECT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _real(row, k):
    return tl.load(row + k).to(tl.float64, bitcast=True)


@triton.jit
def _single(row, k):
    return _real(row, k).to(tl.float32)


@triton.jit
def _whole(row, k):
    return tl.load(row + k).to(tl.int32)


@triton.jit
def _fold(at, n, BORDER: tl.constexpr):
    """Indices -> those of the pixels that stand there by the border rule, and which need no constant."""
    if BORDER == CONSTANT:
        inside = (at >= 0) & (at < n)
    else:
        inside = at == at
    if BORDER == EDGE:
        at = tl.minimum(tl.maximum(at, 0), n - 1)
    if BORDER == REFLECT:
        at = at % (2 * n)
        at = tl.where(at < 0, at + 2 * n, at)
        at = tl.minimum(at, 2 * n - 1 - at)
    return at, inside


@triton.jit
def _split(u):
    """float64 -> floor (int32) and the rest (float32)."""
    whole = tl.floor(u)
    return whole.to(tl.int32), (u - whole).to(tl.float32)


@triton.jit
def _position(matrix, y, x):
    """Of one source axis: (TH, TW) pixel below the read, and the read's share of the pixel above it."""
    y_whole, y_rest = _split(_real(matrix, 0) * y.to(tl.float64) + _real(matrix, 2))
    x_whole, x_rest = _split(_real(matrix, 1) * x.to(tl.float64))
    rest = y_rest[:, None] + x_rest[None, :]
    carry = tl.floor(rest)
    return y_whole[:, None] + x_whole[None, :] + carry.to(tl.int32), rest - carry


@triton.jit
def _load(image, at, wanted, inside, outside, BORDER: tl.constexpr):
    """(TH, TW, CP) float32: pixels at offsets ``at`` where ``wanted``, else 0; the constant where they lie outside."""
    if BORDER == CONSTANT:
        value = tl.load(image + at, mask=wanted & inside, other=0).to(tl.float32)
        value = tl.where(inside, value, outside)
    else:
        value = tl.load(image + at, mask=wanted, other=0).to(tl.float32)
    return value


@triton.jit
def _filtered(pixels, row, y, x, c, SOURCE: tl.constexpr, BORDER: tl.constexpr):
    """linear((K_y x K_x) * L)(u) as one sum over source pixels: tap t of a level is ``block`` rows of the source.

    Tap t weighs K[t] (1 - share) + K[t - 1] share; the table has a 0 on both sides of K, divided by the block.
    """
    first_y, share_y = _position(row + MATRIX, y, x)
    first_x, share_x = _position(row + MATRIX + 3, y, x)
    block_y, block_x = _whole(row, BLOCK_Y), _whole(row, BLOCK_X)
    shift_y, shift_x = _whole(row, SHIFT_Y), _whole(row, SHIFT_X)
    reach_y, reach_x = _whole(row, REACH_Y), _whole(row, REACH_X)
    first_y, first_x = (first_y - reach_y) * block_y, (first_x - reach_x) * block_x
    rows, columns = (2 * reach_y + 2) * block_y, (2 * reach_x + 2) * block_x
    image, height, width = tl.load(row + PIXELS).to(tl.pointer_type(SOURCE)), _whole(row, HEIGHT), _whole(row, WIDTH)
    stride_y, stride_x, outside = _whole(row, STRIDE_Y), _whole(row, STRIDE_X), _single(row, OUTSIDE)
    channel = (c * _whole(row, STRIDE_C))[None, None, :]
    total = tl.zeros(pixels.shape, tl.float32)
    i = rows - rows
    while i < rows:
        tap_y = row + KERNEL_Y + (i >> shift_y)
        w_y = _single(tap_y, 1) * (1.0 - share_y) + _single(tap_y, 0) * share_y
        at_y, inside_y = _fold(first_y + i, height, BORDER)
        start = (at_y * stride_y)[:, :, None] + channel
        wanted_y = pixels & (w_y != 0.0)[:, :, None]  # copies read one pixel each, and none that might not be finite
        line = tl.zeros(pixels.shape, tl.float32)
        j = columns - columns
        while j < columns:
            for k in tl.static_range(2):  # two reads under way at a time; ``columns`` is even
                tap_x = row + KERNEL_X + ((j + k) >> shift_x)
                w_x = (_single(tap_x, 1) * (1.0 - share_x) + _single(tap_x, 0) * share_x)[:, :, None]
                at_x, inside_x = _fold(first_x + j + k, width, BORDER)
                at, inside = start + (at_x * stride_x)[:, :, None], (inside_y & inside_x)[:, :, None]
                line += w_x * _load(image, at, wanted_y & (w_x != 0.0), inside, outside, BORDER)
            j += 2
        total += w_y[:, :, None] * line
        i += 1
    return total


@triton.jit
def _nearest(pixels, row, y, x, c, SOURCE: tl.constexpr, BORDER: tl.constexpr):
    matrix, y, x = row + MATRIX, y.to(tl.float64)[:, None], x.to(tl.float64)[None, :]
    u_y = _real(matrix, 2) + _real(matrix, 0) * y + _real(matrix, 1) * x
    u_x = _real(matrix, 5) + _real(matrix, 3) * y + _real(matrix, 4) * x
    at_y, inside_y = _fold(tl.floor(u_y + 0.5).to(tl.int32), _whole(row, HEIGHT), BORDER)
    at_x, inside_x = _fold(tl.floor(u_x + 0.5).to(tl.int32), _whole(row, WIDTH), BORDER)
    image = tl.load(row + PIXELS).to(tl.pointer_type(SOURCE))
    at = (at_y * _whole(row, STRIDE_Y) + at_x * _whole(row, STRIDE_X))[:, :, None]
    at = at + (c * _whole(row, STRIDE_C))[None, None, :]
    return _load(image, at, pixels, (inside_y & inside_x)[:, :, None], _single(row, OUTSIDE), BORDER)


@triton.jit
def _unit_clip(x):
    """[0, 1]; what is not a number stays so."""
    return tl.where(x < 0.0, 0.0, tl.where(x > 1.0, 1.0, x))


@triton.jit
def _windowed(x, table, row, CURVES: tl.constexpr):
    kind, low, span = _whole(row, WINDOW), _single(row, LOW), _single(row, SPAN)
    step = tl.where(x == x, (x > low).to(tl.float32), x)
    safe = tl.where(span == 0.0, 1.0, span)
    if kind == 0:
        y = _unit_clip(tl.div_rn(x - low, safe))
    else:
        y = 1.0 / (1.0 + tl.exp(-4.0 * (x - low - 0.5 * span) / safe))
    y = tl.where(span == 0.0, step, y)
    if CURVES:  # noqa: SIM102 - known when compiled
        if kind == 2:
            centre = _single(row, CURVE_CENTRE)
            at = (x - centre - _single(row, CURVE_MOVED)) / _single(row, CURVE_SCALE) + centre
            at = tl.where(_single(row, CURVE_SCALE) == 0.0, x, at)  # 0 stands for: not moved
            whole = tl.floor(at)
            even = whole - 2.0 * tl.floor(0.5 * whole)  # 1 where the pixel below is odd: halves go to even
            up = (at - whole > 0.5) | ((at - whole == 0.5) & (even == 1.0))
            nearest = whole + up.to(tl.float32) - low
            last = _whole(row, CURVE_SIZE) - 1
            index = tl.minimum(tl.maximum(nearest, 0.0), last.to(tl.float32)).to(tl.int32)
            index = tl.where(at == at, index, 0)
            y = tl.where(at == at, _single(table + tl.load(row + CURVE), index), at)
    return y


@triton.jit
def _pointwise(x, row, OP: tl.constexpr):
    """Brightness, contrast, gamma; a neutral one leaves every bit alone."""
    if OP == BRIGHTNESS:
        x = x * _single(row, BRIGHTNESS)
    if OP == CONTRAST:
        factor, pivot = _single(row, CONTRAST), _single(row, PIVOT)
        x = tl.where(factor == 1.0, x, (x - pivot) * factor + pivot)
    if OP == GAMMA:
        power = _single(row, GAMMA)
        if power != 1.0:
            x = tl.where(x > 0.0, tl.exp2(power * tl.log2(tl.where(x > 0.0, x, 1.0))), tl.where(x == x, 0.0, x))
    return x


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on uint32."""
    for _ in tl.static_range(10):
        a, b = c0, c2
        c0 = tl.umulhi(b, tl.full(b.shape, 0xCD9E8D57, tl.uint32)) ^ c1 ^ k0
        c2 = tl.umulhi(a, tl.full(a.shape, 0xD2511F53, tl.uint32)) ^ c3 ^ k1
        c1 = b * tl.full(b.shape, 0xCD9E8D57, tl.uint32)
        c3 = a * tl.full(a.shape, 0xD2511F53, tl.uint32)
        k0 = k0 + tl.full(k0.shape, 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full(k1.shape, 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _turned(turn):
    """cos and sin of 2 pi ``turn`` to 1e-7: quadrant and rest are exact, so no long reduction of the angle is needed."""
    quadrant = tl.floor(4.0 * turn + 0.5)
    a = 6.2831855 * (turn - 0.25 * quadrant)
    z = a * a
    cos = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    sin = a + a * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4))
    quadrant = quadrant.to(tl.int32)
    odd = quadrant % 2 == 1
    cos_sign, sin_sign = tl.where((quadrant == 1) | (quadrant == 2), -1.0, 1.0), tl.where(quadrant >= 2, -1.0, 1.0)
    sin_sign = tl.where(quadrant == 4, 1.0, sin_sign)
    return tl.where(odd, sin, cos) * cos_sign, tl.where(odd, cos, sin) * sin_sign


@triton.jit
def _pair(radius_word, turn_word):
    """Two normal numbers of two words."""
    u = (radius_word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
    radius = tl.sqrt(-2.0 * tl.log(1.0 - u))
    cos, sin = _turned((turn_word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08)
    return radius * cos, radius * sin


@triton.jit
def _block(row, block):
    """The four normal numbers of blocks of four neighbouring output pixels."""
    zero = block.to(tl.uint32) * 0
    c3 = zero + tl.load(row + SAMPLE).to(tl.uint32)
    k0, k1 = zero + tl.load(row + KEY_0).to(tl.uint32), zero + tl.load(row + KEY_1).to(tl.uint32)
    w0, w1, w2, w3 = philox(block.to(tl.uint32), zero, zero + NOISE_OP, c3, k0, k1)
    n0, n1 = _pair(w0, w1)
    n2, n3 = _pair(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def _normal(
    row, y, x, first_x, c, height, width, TH: tl.constexpr, TW: tl.constexpr, CP: tl.constexpr, FOURS: tl.constexpr
):
    """(TH, TW, CP) standard normal numbers: pixel i of (channel, y, x) is number i % 4 of block i // 4.

    FOURS: every line of the output is a whole number of blocks, so that a block is worked out once, not four times.
    """
    if FOURS:
        fours = first_x // 4 + tl.arange(0, TW // 4)
        line = (y[:, None, None] + (c * height)[None, None, :]) * (width // 4)
        n0, n1, n2, n3 = _block(row, line + fours[None, :, None])
        four = tl.join(tl.join(n0, n2), tl.join(n1, n3))  # (TH, TW / 4, CP, i // 2, i % 2)
        normal = tl.reshape(tl.permute(four, (0, 1, 3, 4, 2)), (TH, TW, CP))
    else:
        index = (y[:, None] * width + x[None, :])[:, :, None] + (c * (height * width))[None, None, :]
        n0, n1, n2, n3 = _block(row, index // 4)
        at = index % 4
        normal = tl.where(at < 2, tl.where(at == 0, n0, n1), tl.where(at == 2, n2, n3))
    return normal


@triton.jit
def _rounded(x, OUT: tl.constexpr):
    """float32 -> OUT, to nearest even; written out for bfloat16, which the interpreter would cut."""
    if OUT == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        x = tl.where(x == x, bits, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        x = x.to(OUT)
    return x


@triton.jit(do_not_specialize=["norm"])
def fuse(
    table,
    norm,
    out,
    height,
    width,
    SOURCE: tl.constexpr,
    BORDER: tl.constexpr,
    NEAREST: tl.constexpr,
    LEVELS: tl.constexpr,
    CURVES: tl.constexpr,
    CHANNELS: tl.constexpr,
    CP: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    OUT_CP: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    FOURS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """One read, one write. ``table`` int64: a row a sample, then its constants; ``norm`` is where in it stand
    OUT_CHANNELS means and as many deviations. ``out`` (B, H, W, C). CP, OUT_CP: channels up to a power of two. LEVELS: the
    type of the levels, None where there are none."""
    across = tl.cdiv(width, TW)
    tiles = tl.cdiv(height, TH) * across
    sample, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    row = table + sample.to(tl.int64) * COLUMNS
    first_x = (tile % across) * TW
    y, x = (tile // across) * TH + tl.arange(0, TH), first_x + tl.arange(0, TW)
    c = tl.arange(0, CP)
    here = (y < height)[:, None] & (x < width)[None, :]
    pixels = here[:, :, None] & (c < CHANNELS)[None, None, :]
    if NEAREST:
        value = _nearest(pixels, row, y, x, c, SOURCE, BORDER)
    elif LEVELS is not None:
        if tl.load(row + LEVEL) != 0:
            value = _filtered(pixels, row, y, x, c, LEVELS, EDGE)
        else:
            value = _filtered(pixels, row, y, x, c, SOURCE, BORDER)
    else:
        value = _filtered(pixels, row, y, x, c, SOURCE, BORDER)
    if CHANNELS == 3 and OUT_CHANNELS == 1:
        luma = tl.where(c == 0, 0.299, tl.where(c == 1, 0.587, tl.where(c == 2, 0.114, 0.0)))
        value = tl.sum(value * luma[None, None, :], 2)[:, :, None]
    value = value * _single(row, SLOPE) + _single(row, INTERCEPT)
    value = _windowed(value, table, row, CURVES)
    value = _pointwise(value, row, FIRST)
    value = _pointwise(value, row, SECOND)
    value = _pointwise(value, row, THIRD)
    deviation = _single(row, NOISE)
    if deviation != 0.0:
        if CHANNELS == OUT_CHANNELS:
            normal = _normal(row, y, x, first_x, c, height, width, TH, TW, CP, FOURS)
        else:
            normal = _normal(row, y, x, first_x, tl.arange(0, 1), height, width, TH, TW, 1, FOURS)
        value = value + deviation * normal
    value = _unit_clip(value)
    k = tl.arange(0, OUT_CP)
    given = k < OUT_CHANNELS
    mean = tl.load(table + norm + k, mask=given, other=0).to(tl.float64, bitcast=True).to(tl.float32)
    std = tl.load(table + norm + OUT_CHANNELS + k, mask=given, other=0).to(tl.float64, bitcast=True).to(tl.float32)
    std = tl.where(given, std, 1.0)
    value = value - mean[None, None, :]
    value = tl.div_rn(value, std[None, None, :])
    target = out + tl.load(row + ROW) * height * width * OUT_CHANNELS
    at = (y[:, None] * width + x[None, :])[:, :, None] * OUT_CHANNELS + k[None, None, :]
    tl.store(target + at, _rounded(value, out.dtype.element_ty), mask=here[:, :, None] & given[None, None, :])


@triton.jit(do_not_specialize=["tiles"])
def shrink(
    table,
    tiles,
    SOURCE: tl.constexpr,
    BORDER: tl.constexpr,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CP: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """A window (h, w, CHANNELS) of a level of the image that goes on by the border rule: means over blocks in float32,
    or sums in uint16, as LEVELS says. ``tiles``: of the largest window in the table.
    """
    row, tile = table + (tl.program_id(0) // tiles).to(tl.int64) * COLUMNS, tl.program_id(0) % tiles
    height, width = _whole(row, LEVEL_HEIGHT), _whole(row, LEVEL_WIDTH)
    across = tl.cdiv(width, TW)
    y, x = (tile // across) * TH + tl.arange(0, TH), (tile % across) * TW + tl.arange(0, TW)
    c = tl.arange(0, CP)
    here = (y < height)[:, None] & (x < width)[None, :]
    pixels = here[:, :, None] & (c < CHANNELS)[None, None, :]
    block_y, block_x = _whole(row, BLOCK_Y), _whole(row, BLOCK_X)
    image, n_y, n_x = tl.load(row + PIXELS).to(tl.pointer_type(SOURCE)), _whole(row, HEIGHT), _whole(row, WIDTH)
    stride_y, stride_x, outside = _whole(row, STRIDE_Y), _whole(row, STRIDE_X), _single(row, OUTSIDE)
    channel = (c * _whole(row, STRIDE_C))[None, None, :]
    total = tl.zeros((TH, TW, CP), tl.float32)
    i = block_y - block_y
    while i < block_y:
        at_y, inside_y = _fold((y + _whole(row, LOW_Y)) * block_y + i, n_y, BORDER)
        start = (at_y * stride_y)[:, None, None] + channel
        j = block_x - block_x
        while j < block_x:
            at_x, inside_x = _fold((x + _whole(row, LOW_X)) * block_x + j, n_x, BORDER)
            inside = (inside_y[:, None] & inside_x[None, :])[:, :, None]
            total += _load(image, start + (at_x * stride_x)[None, :, None], pixels, inside, outside, BORDER)
            j += 1
        i += 1
    if LEVELS == tl.float32:  # noqa: SIM300
        total = total / (block_y * block_x).to(tl.float32)
    target = tl.load(row + TARGET).to(tl.pointer_type(LEVELS))
    at = (y[:, None] * width + x[None, :])[:, :, None] * CHANNELS + c[None, None, :]
    tl.store(target + at, total.to(LEVELS), mask=pixels)
