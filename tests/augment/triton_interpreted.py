"""What test_triton_interpreter.py runs in a process of its own: the kernels in Triton's interpreter.

Expected values come from the numpy oracle below, written from the definition of the filters (float64, loops over taps of
whole extended images), and from the torch reference.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from hilum.augment import reference
from hilum.augment.filters import plan
from hilum.augment.policy import Policy
from hilum.augment.triton import backend, kernels, table
from hilum.core.errors import HilumError
from hilum.core.types import Meta, Ragged, SampleKey, Window
from hilum.parts import geometry as geo

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton_interpreter.py"

MEAN, STD, RANGE = 0.45, 0.25, 1e-5
DTYPES = [torch.uint8, torch.uint16, torch.int16, torch.float16, torch.float32]
BORDERS = ["background", "border", "reflect"]
POLICIES = int(os.environ.get("HILUM_TRITON_POLICIES", "15"))


@pytest.fixture(autouse=True, scope="session")
def _patched_once():
    """The interpreter patches triton's language at every call of a device function; once a launch is enough."""
    patch, active = interpreter._patch_lang, {}

    class Scope:
        def __init__(self, outermost: bool) -> None:
            self.outermost = outermost

        def restore(self) -> None:
            while self.outermost and active:
                active.popitem()[1].restore()

    def once(fn):
        outermost, seen = not active, id(fn.__globals__)
        if seen not in active:
            active[seen] = patch(fn)
        return Scope(outermost)

    interpreter._patch_lang = once
    yield
    interpreter._patch_lang = patch


# --- the oracle ------------------------------------------------------------------------------------------------


def extended(image: np.ndarray, y: np.ndarray, x: np.ndarray, border) -> np.ndarray:
    """(C, H, W) at whole rows and columns anywhere: (C, *y.shape)."""
    index, inside = [], np.ones(np.broadcast_shapes(y.shape, x.shape), bool)
    for at, n in ((y, image.shape[1]), (x, image.shape[2])):
        if border == "reflect":
            at = at % (2 * n)
            at = np.minimum(at, 2 * n - 1 - at)
        elif border != "border":
            inside = inside & (at >= 0) & (at < n)
        index.append(np.clip(at, 0, n - 1))
    value = image[:, index[0], index[1]]
    return value if isinstance(border, str) else np.where(inside, value, border)


def filtered(image: np.ndarray, matrix: np.ndarray, size, border, sigma: float) -> np.ndarray:
    """linear((K_y x K_x) * L)(u_L), tap by tap."""
    (fy, ky), (fx, kx) = ((f.factor, np.asarray(f.kernel)) for f in plan(matrix, sigma))
    q = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    u = np.einsum("ab,bij->aij", matrix[:2, :2], q) + matrix[:2, 2, None, None]
    y, x = (u[0] + 0.5) / fy - 0.5, (u[1] + 0.5) / fx - 0.5
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    low, high = [int(n.min()) - 4 for n in (y0, x0)], [int(n.max()) + 6 for n in (y0, x0)]
    rows, columns = (np.arange(lo * f, hi * f) for lo, hi, f in zip(low, high, (fy, fx), strict=True))
    level = extended(image, rows[:, None], columns[None, :], border)
    level = level.reshape(len(image), high[0] - low[0], fy, high[1] - low[1], fx).mean((2, 4))
    out = np.zeros((len(image), *size))
    for j, wj in enumerate(ky, -(len(ky) // 2)):
        for i, wi in enumerate(kx, -(len(kx) // 2)):
            for a, wa in ((0, 1 - (y - y0)), (1, y - y0)):
                for b, wb in ((0, 1 - (x - x0)), (1, x - x0)):
                    out += wj * wi * wa * wb * level[:, y0 + j + a - low[0], x0 + i + b - low[1]]
    return out


# --- samples ----------------------------------------------------------------------------------------------------


def policy(config: dict, size, channels: int = 1, *, train: bool = True) -> Policy:
    return Policy(config, size=size, channels=channels, mean=MEAN, std=STD, train=train)


def stored(shape, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).random(shape)
    return torch.from_numpy(
        values * (1.0 if dtype.is_floating_point else 255.0 if dtype == torch.uint8 else 4000.0)
    ).to(dtype)


def top(dtype: torch.dtype) -> float:
    return 1.0 if dtype.is_floating_point else 255.0 if dtype == torch.uint8 else 4000.0


def meta(dtype: torch.dtype, seed: int = 0, window: Window | None = None, **more) -> Meta:
    hi = top(dtype)
    extra = {
        "window": window or Window(0.03 * hi, 0.92 * hi),
        "stats": {"mean": 0.4 * hi, "background": 0.1 * hi},
    } | more
    return Meta(f"s{seed}", "g", key=SampleKey(11, 2, seed), extra={"image": extra})


def drawn(p: Policy, images, metas):
    return [p.draw(m.key, source_size=x.shape[1:], stats=m.extra["image"]["stats"]) for x, m in zip(images, metas)]


def assert_equal_to_reference(p: Policy, images, metas, draws=None) -> None:
    draws = draws or drawn(p, images, metas)
    want, got = reference.apply(images, draws, metas, p), backend.apply(images, draws, metas, p)
    assert got.is_contiguous(memory_format=torch.channels_last) and got.dtype == torch.float32
    assert float((got - want).abs().max()) * STD <= RANGE


def chance(n: int):
    """A random policy and one or two random samples for it."""
    rng = np.random.default_rng(n)
    config: dict = {"border": BORDERS[n % 3]}
    if rng.random() < 0.7:
        config["resized_crop"] = sorted(rng.uniform(0.2, 1.0, 2).tolist())
    some = {
        "hflip": 0.5, "vflip": 0.3, "rotate": 180.0, "shear": 20.0, "translate": 0.2, "scale": [0.6, 1.5],
        "window": {"shift": 0.1, "width": 0.2}, "brightness": 0.3, "contrast": 0.3, "gamma": 0.2, "noise": 0.1,
    }  # fmt: skip
    config |= {name: value for name, value in some.items() if rng.random() < 0.4}
    if rng.random() < 0.3:
        config["blur"] = [0.1, 3.0]
    if n % 7 == 0:
        config["interpolation"] = "nearest"
    config["order"] = [name for name in table_order(rng) if name in config]
    dtype, channels = DTYPES[n % 5], [(1, 1), (1, 3), (3, 3), (3, 1), (2, 2)][(n // 5) % 5]
    p = policy(config, tuple(rng.integers(1, 21, 2).tolist()), channels[1])
    sizes = [
        (channels[0], *np.exp(rng.uniform(0, math.log(97), 2)).round().astype(int).tolist()) for _ in range(1 + n % 2)
    ]
    images = [stored(s, dtype, n + k) for k, s in enumerate(sizes)]
    more = {"slope": 1.5, "intercept": -20.0} if n % 4 == 0 else {}
    return p, images, [meta(dtype, 100 * n + k, **more) for k in range(len(images))]


def table_order(rng: np.random.Generator) -> list[str]:
    """Ops in an order that one pass allows: pointwise ones in any."""
    first = ["resized_crop", "hflip", "vflip", "rotate", "translate", "scale", "shear", "blur", "window"]
    return [*first, *rng.permutation(["brightness", "contrast", "gamma"]).tolist(), "noise"]


# --- tests ------------------------------------------------------------------------------------------------------


@triton.jit
def _philox_kernel(words, out):
    word = [tl.load(words + k + tl.arange(0, 1)).to(tl.uint32) for k in range(6)]
    a, b, c, d = kernels.philox(word[0], word[1], word[2], word[3], word[4], word[5])
    at = out + tl.arange(0, 1)
    tl.store(at, a.to(tl.int64))
    tl.store(at + 1, b.to(tl.int64))
    tl.store(at + 2, c.to(tl.int64))
    tl.store(at + 3, d.to(tl.int64))


@pytest.mark.parametrize(
    "counter_and_key, want",
    [
        ([0] * 6, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 6, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_vectors(counter_and_key: list[int], want: str) -> None:
    out = torch.zeros(4, dtype=torch.int64)
    _philox_kernel[(1,)](torch.tensor(counter_and_key, dtype=torch.int64), out)
    assert " ".join(f"{word:08x}" for word in out.tolist()) == want


@pytest.mark.parametrize("n", range(POLICIES))
def test_random_policies_equal_the_reference(n: int) -> None:
    p, images, metas = chance(n)
    assert_equal_to_reference(p, images, metas)


WAYS = [  # scale, sigma, angle, passes of its level
    (1.6, 0.0, 0.4, 0),
    (2.0, 0.0, 0.0, 0),
    (3.1, 0.0, 0.3, 0),
    (5.0, 0.0, 0.0, 1),
    (19.0, 0.0, 0.2, 2),
    (0.4, 2.5, 0.3, 0),
    (1.7, 1.2, 0.5, 1),
]


@pytest.mark.parametrize(
    "border, way", [(b, w) for k, b in enumerate(BORDERS) for w in (WAYS if k == 0 else WAYS[k::2])]
)
def test_filters_equal_their_definition(border: str, way: tuple[float, float, float, int]) -> None:
    """In one pass, from a level, and from a level made in two passes; against loops over taps in float64."""
    scale, sigma, angle, passes = way
    dtype = torch.uint8 if angle == 0.0 else torch.uint16  # levels of bytes are sums
    image, size, hi = stored((2, 61, 47), dtype, 5), (7, 6), top(dtype)
    matrix = geo.about_centre(geo.compose(scale * geo.rotation(angle), np.diag([1.0, 0.8])), size, (61, 47))
    p = policy({"border": border, "blur": [sigma, sigma]}, size, 2)
    m = meta(dtype, window=Window(0.0, hi), stats={"background": 40.0})
    (d,) = drawn(p, [image], [m])
    d = type(d).from_json({**d.to_json(), "matrix": matrix.tolist()})
    got = backend.apply([image], [d], [m], p)[0].double().numpy() * STD + MEAN
    rule = {"background": 40.0}.get(border, border)
    want = filtered(image.numpy().astype(np.float64), matrix, size, rule, sigma) / hi
    assert np.abs(got - want).max() <= RANGE
    assert len(table.reading(matrix, d, False, border, "").passes) == passes


def test_far_from_the_origin_weights_keep_their_digits() -> None:
    """4096 pixels from the first one, a view turned and enlarged: float32 positions would be off by 2e-4 of a pixel."""
    image, size = stored((1, 24, 4096), torch.float32, 3), (6, 40)
    matrix = geo.about_centre(geo.compose(geo.rotation(0.013), np.diag([0.9, 0.37])), size, (24, 4096))
    matrix[1, 2] += 4096 / 2 - 17.3
    p, m = policy({}, size), meta(image.dtype, window=Window(0.0, 1.0))
    (d,) = drawn(p, [image], [m])
    d = type(d).from_json({**d.to_json(), "matrix": matrix.tolist()})
    got = backend.apply([image], [d], [m], p)[0].double().numpy() * STD + MEAN
    want = filtered(image.numpy().astype(np.float64), matrix, size, 0.1, 0.0)
    assert np.abs(got - want).max() <= 2e-6
    wide = (1, 4096)  # a line of output, no part of which is near its start
    matrix = geo.about_centre(geo.compose(geo.rotation(0.002), np.diag([1.0, 0.73])), wide, (24, 4096))
    p = policy({}, wide)
    (d,) = drawn(p, [image], [m])
    d = type(d).from_json({**d.to_json(), "matrix": matrix.tolist()})
    got = backend.apply([image], [d], [m], p)[0].double().numpy() * STD + MEAN
    assert np.abs(got - filtered(image.numpy().astype(np.float64), matrix, wide, 0.1, 0.0)).max() <= 2e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_are_exact(dtype: torch.dtype) -> None:
    image, m = stored((3, 12, 9), dtype, 1), meta(dtype)
    image.view(-1)[5] = 0
    if dtype.is_floating_point:
        image[0, 3, 3], image[1, 5, 5] = math.inf, math.nan  # what is not read cannot spoil a neighbour
    p = policy({}, (12, 9), 3)
    moves = {
        "identity": geo.identity(2),
        "mirrors": geo.compose(geo.flip((12, 9), 0), geo.flip((12, 9), 1)),
        "quarter turn": geo.about_centre(geo.rotation(math.pi / 2), (12, 9), (12, 9))
        + [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]],
        "crop beyond the edge": geo.crop_resize((12, 9), (-2, 3), (12, 9)),
    }
    (d,) = drawn(p, [image], [m])
    draws = [type(d).from_json({**d.to_json(), "matrix": move.tolist()}) for move in moves.values()]
    images, metas = [image] * len(draws), [m] * len(draws)
    got, want = backend.apply(images, draws, metas, p), reference.apply(images, draws, metas, p)
    assert torch.equal(got.nan_to_num(9.0), want.nan_to_num(9.0)), list(moves)
    assert bool(want.isnan().any()) == dtype.is_floating_point


EVERYTHING = {
    "resized_crop": [0.3, 1.0],
    "rotate": 20,
    "hflip": 0.5,
    "contrast": 0.2,
    "noise": 0.03,
}


def test_a_sample_knows_neither_its_batch_nor_how_it_is_stored() -> None:
    p = policy(EVERYTHING, 12, 3)
    images = [stored((3, 12 + 2 * k, 19 - 2 * k), torch.uint8, k) for k in range(4)]
    metas = [meta(torch.uint8, k) for k in range(4)]
    draws = drawn(p, images, metas)
    whole = backend.apply(images, draws, metas, p)
    assert len({row.numpy().tobytes() for row in whole}) == 4
    packed = Ragged.of([x.permute(1, 2, 0).reshape(-1, 3) for x in images], grid=[x.shape[1:] for x in images])
    assert torch.equal(backend.apply(packed, draws, metas, p), whole)
    for part in ([2, 0, 3], [1]):
        got = backend.apply(*([x[i] for i in part] for x in (images, draws, metas)), p)
        assert torch.equal(got, whole[part])
    assert torch.equal(backend.apply(images, [d.to_json() for d in draws], metas, p), whole)
    assert backend.apply([], [], [], p).shape == (0, 3, 12, 12)


def test_stored_types_may_differ_within_a_batch() -> None:
    p = policy(EVERYTHING, 8, 3)
    images = [stored((1 + 2 * (k % 2), 9, 13), dtype, k) for k, dtype in enumerate([*DTYPES, torch.uint8])]
    assert_equal_to_reference(p, images, [meta(x.dtype, k) for k, x in enumerate(images)])


@pytest.mark.parametrize("size, source, tile", [((11, 13), (50, 40), (16, 8)), ((10, 16), (15, 21), (4, 16))])
def test_tiles_leave_no_seam(size, source, tile, monkeypatch: pytest.MonkeyPatch) -> None:
    p = policy({"rotate": [20, 30], "noise": 0.1}, size, 3)
    images, metas = [stored((1, *source), torch.int16, 2)], [meta(torch.int16, 2)]
    draws = drawn(p, images, metas)
    whole = backend.apply(images, draws, metas, p)
    monkeypatch.setattr(backend, "_tile", lambda height, width: tile)
    assert torch.equal(backend.apply(images, draws, metas, p), whole)
    assert_equal_to_reference(p, images, metas, draws)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_one_rounding_to_nearest_even(dtype: torch.dtype) -> None:
    p = policy(EVERYTHING, 16, 3)
    images, metas = [stored((1, 30, 30), torch.uint8, 1)], [meta(torch.uint8, 1)]
    draws = drawn(p, images, metas)
    got, exact = (backend.apply(images, draws, metas, p, dtype=d) for d in (dtype, torch.float32))
    assert got.dtype == dtype and torch.equal(got, exact.to(dtype))


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("kind", ["sigmoid", "table", "step", "inverted"])
def test_windows(kind: str, moved: bool) -> None:
    curve = tuple((np.linspace(0, 1, 301) ** 2).tolist())
    window = {
        "sigmoid": Window(600.0, 3000.0, "sigmoid"),
        "table": Window(900.0, 1200.0, "table", curve),
        "step": Window(2000.0, 2000.0),
        "inverted": Window(3000.0, 500.0),
    }[kind]
    config = {"contrast": [0.8, 0.8], "fit": "squash"} | ({"window": {"shift": 0.1, "width": 0.3}} if moved else {})
    # values are halves of whole numbers: no rounding decides about a step
    image = (torch.arange(1, 1 + 15 * 14).reshape(1, 15, 14) * 19.5).to(torch.float32)
    assert_equal_to_reference(policy(config, (15, 14)), [image], [meta(torch.uint16, window=window)])


def test_what_cannot_be_done_is_named() -> None:
    p, image, m = policy(EVERYTHING, 8, 3), stored((1, 10, 12), torch.uint8), meta(torch.uint8, 7)
    (d,) = drawn(p, [image], [m])
    cases = [
        ("float64 is not read", [image.double()], [d], {}),
        ("does not fit its draw", [image[:, :, :5]], [d], {}),
        ("2 channels cannot become 3", [image.expand(2, 10, 12)], [d], {}),
        ("1 images, 2 draws", [image], [d, d], {}),
        ("float64 is not written", [image], [d], {"dtype": torch.float64}),
        (
            "2\\^30 pixels",
            [image],
            [type(d).from_json(d.to_json() | {"matrix": [[1, 0, 2e9], [0, 1, 0], [0, 0, 1]]})],
            {},
        ),
    ]
    for match, images, draws, more in cases:
        with pytest.raises(HilumError, match=match) as caught:
            backend.apply(images, draws, [m], p, **more)
        assert "images" in match or "written" in match or "sample s7" in caught.value.where
    with pytest.raises(HilumError, match="a level of"):
        far = type(d).from_json(d.to_json() | {"matrix": [[1e5, 3e4, 0], [3e4, 1e5, 0], [0, 0, 1]]})
        backend.apply([image], [far], [m], policy({"border": "reflect"}, 8, 3))


def test_traffic_is_near_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unique source bytes and levels and output bytes, over the least there can be; table of parameters left out."""
    path = Path(__file__).parents[2] / "benchmarks" / "augment_traffic.py"
    spec = importlib.util.spec_from_file_location("augment_traffic", path)
    traffic = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setitem(sys.modules, "augment_traffic", traffic)
    spec.loader.exec_module(traffic)
    for name in ("crop", "turned"):
        assert 1.0 <= traffic.measure(*traffic.chain(name, 96, 48)).ratio <= 1.5, name
