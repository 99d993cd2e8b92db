"""The compiled back-end gives the reference's numbers, whatever the policy, the stored type, the batch or the process."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hilum.augment import compiled, reference
from hilum.augment.draw import Draw
from hilum.augment.policy import Policy
from hilum.core.errors import HilumError
from hilum.core.types import Meta, Ragged, SampleKey, Window

pytest.importorskip("numba", reason="the extra cpu (numba) is not installed")

DTYPES = {torch.uint8: 255, torch.uint16: 60000, torch.int16: 4000, torch.float16: 1, torch.float32: 1}
TABLE = tuple(float(v) for v in np.linspace(0.0, 1.0, 301) ** 1.5)
EVERYTHING: dict[str, Any] = {
    "resized_crop": [0.3, 1.0], "hflip": 0.5, "affine": {"rotate": 25, "scale": [0.7, 1.2], "p": 0.7},
    "blur": {"range": [0.1, 1.5], "p": 0.5}, "window": {"shift": 0.05, "width": 0.1}, "brightness": 0.2,
    "contrast": 0.2, "gamma": 0.2, "noise": 0.03,
}  # fmt: skip


def policy(config: dict[str, Any], *, size: Any = 24, channels: int = 1, train: bool = True) -> Policy:
    return Policy(config, size=size, channels=channels, mean=0.0, std=1.0, train=train)


def picture(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    top = DTYPES[dtype]
    return ((values * 2 - 1 if dtype == torch.int16 else values) * top).to(dtype)


def meta(i: int = 0, **about: Any) -> Meta:
    return Meta(f"{i:08x}", "g", key=SampleKey(5, 1, i), extra={"image": about})


def draw(p: Policy, x: Tensor, m: Meta) -> Draw:
    return p.draw(m.key, source_size=x.shape[1:], stats=m.extra["image"].get("stats"))


def by_hand(matrix: list[list[float]], size: tuple[int, int], x: Tensor, **more: Any) -> Draw:
    return Draw(np.asarray(matrix, np.float64), size, tuple(x.shape[1:]), **more)  # type: ignore[arg-type]


def both(x: Tensor, d: Draw, m: Meta, p: Policy) -> tuple[Tensor, Tensor]:
    return compiled.apply([x], [d], [m], p), reference.apply([x], [d], [m], p)


# --- equal to the reference ----------------------------------------------------------------------------------

SIDES = st.integers(1, 97)
RANGES = {
    "resized_crop": st.sampled_from([[0.05, 0.3], [0.5, 1.0]]),
    "hflip": st.just(0.5),
    "rotate": st.sampled_from([5, 45, 180]),
    "affine": st.just({"rotate": 20, "translate": 0.3, "scale": [0.3, 3.0], "shear": 10}),
    "blur": st.sampled_from([[0.1, 0.6], [0.5, 3.0]]),
    "brightness": st.just(0.3),
    "contrast": st.just(0.3),
    "gamma": st.just(0.4),
    "noise": st.just(0.1),
}


@st.composite
def policies(draw_: st.DrawFn) -> tuple[dict[str, Any], str]:
    names = [n for n in RANGES if draw_(st.booleans())]
    order = draw_(st.permutations([n for n in names if n in ("brightness", "contrast", "gamma")]))
    config = {n: draw_(RANGES[n]) for n in [*(n for n in names if n not in (*order, "noise")), *order]}
    kind = draw_(st.sampled_from(["linear", "sigmoid", "inverted", "step", "table"]))
    if kind not in ("step", "table") and draw_(st.booleans()):
        config["window"] = {"shift": 0.1, "width": 0.2}
    if "noise" in names:
        config["noise"] = draw_(RANGES["noise"])
    late = {n: config.pop(n) for n in ("brightness", "contrast", "gamma", "noise") if n in config}
    config |= late  # after the window
    config["border"] = draw_(st.sampled_from(["background", "border", "reflect", 0.3]))
    config["interpolation"] = draw_(st.sampled_from(["linear", "linear", "linear", "nearest"]))
    return config, kind


@settings(max_examples=200)
@given(
    policies(), st.sampled_from(list(DTYPES)), st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES),
    st.sampled_from([(1, 1), (1, 3), (3, 1), (3, 3), (2, 2)]), st.sampled_from(["planes", "pixels", "cut"]),
    st.integers(0, 9999),
)  # fmt: skip
def test_random_policies_agree_with_the_reference(
    plan: tuple[dict[str, Any], str],
    dtype: torch.dtype,
    source: tuple[int, int],
    size: tuple[int, int],
    channels: tuple[int, int],
    layout: str,
    seed: int,
) -> None:
    """1e-5 of the window's range, every output pixel, and 0 and 1 alike where a window is a step or a table."""
    config, kind = plan
    top, (height, width) = DTYPES[dtype], source
    x = picture((channels[0], height, width + (3 if layout == "cut" else 0)), dtype, seed)
    x = {"planes": x, "pixels": x.permute(1, 2, 0).contiguous().permute(2, 0, 1), "cut": x[..., 1 : 1 + width]}[layout]
    window = {
        "linear": Window(0.1 * top, 0.9 * top), "inverted": Window(0.9 * top, 0.1 * top),
        "sigmoid": Window(0.2 * top, 0.7 * top, "sigmoid"), "step": Window(0.4 * top, 0.4 * top),
        "table": Window(-20.0, 280.0, "table", TABLE),
    }[kind]  # fmt: skip
    slope, intercept = (1.0, 0.0) if seed % 2 else (0.75, 0.05 * top)
    if isinstance(config["border"], float):
        config = {**config, "border": config["border"] * top}
    m = meta(seed, window=window, slope=slope, intercept=intercept, stats={"mean": 0.4 * top} if seed % 3 else {})
    p = policy(config, size=size, channels=channels[1])
    d = draw(p, x, m)
    got, want = both(x, d, m, p)
    assert got.shape == want.shape and got.dtype == want.dtype == torch.float32
    error = (got - want).abs()
    if kind in ("step", "table"):  # values within rounding of an edge may fall on either side of it
        tolerance = 1e-5 if kind == "step" else 1.3 / len(TABLE) * 1.5
        assert (error > 1e-5).float().mean() < 0.01 + 2 / error.numel() or float(error.max()) < tolerance
    else:
        assert float(error.max()) < 1e-5, (config, d)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("border", ["border", "reflect", 0.25])
def test_whole_matrices_far_off_and_large_reductions_agree(dtype: torch.dtype, border: Any) -> None:
    """Beyond what policies draw: 40-fold reductions, images seen from outside, one pixel, shear and mirror."""
    x = picture((1, 97, 61), dtype)
    top = DTYPES[dtype]
    p = policy({"border": border * top if isinstance(border, float) else border}, size=(33, 18), train=False)
    m = meta(window=Window(0.0, float(top)))
    for sigma in (0.0, 0.4, 2.5):
        for matrix in (
            [[40.0, 3.0, -50.0], [-2.0, 25.3, 11.0], [0, 0, 1]],
            [[0.0, 4.0, -7.5], [-4.0, 0.0, 90.5], [0, 0, 1]],
            [[0.01, 0.0, -3.0], [0.0, -0.02, 60.2], [0, 0, 1]],
            [[1.0, 0.5, 300.0], [0.5, -1.0, -200.0], [0, 0, 1]],
            [[2.0, 0.0, 0.5], [0.0, 4.0, 1.5], [0, 0, 1]],
            [[0.0, 0.0, 5.25], [0.0, 0.0, 7.5], [0, 0, 1]],
        ):
            got, want = both(x, by_hand(matrix, (33, 18), x, sigma=sigma), m, p)
            assert float((got - want).abs().max()) < 1e-5, (matrix, sigma)


@pytest.mark.parametrize("angle", [0.0, 7.0])
def test_positions_hold_at_the_far_corner_of_4096_pixels(angle: float) -> None:
    """White noise, where a position that is off by 1e-5 pixels shows."""
    x = picture((1, 4096, 4096), torch.float32)
    p, m = policy({"border": "border"}, size=150, train=False), meta(window=Window(0.0, 1.0))
    c, s = 1.3 * math.cos(math.radians(angle)), 1.3 * math.sin(math.radians(angle))
    got, want = both(x, by_hand([[c, -s, 3890.123], [s, c, 3860.456], [0, 0, 1]], (150, 150), x), m, p)
    assert float((got - want).abs().max()) < 1e-5


def test_a_filtered_read_is_its_closed_form() -> None:
    """Not through the reference: a ramp stays a ramp under every level and kernel, rotated or not."""
    y, x = torch.meshgrid(torch.arange(600.0), torch.arange(700.0), indexing="ij")
    ramp = (0.001 * x - 0.0004 * y)[None]
    p, m = policy({"border": "border"}, size=64, train=False), meta(window=Window(-1.0, 1.0))
    for step, angle, sigma in (
        (1.0, 0, 1.0),
        (1.7, 0, 0.0),
        (2.0, 0, 0.5),
        (3.1, 30, 0.0),
        (4.0, 12, 1.0),
        (0.4, -70, 0),
    ):
        c, s = step * math.cos(math.radians(angle)), step * math.sin(math.radians(angle))
        a = np.array([[c, -s], [s, c]])
        b = np.array([300.0, 350.0]) - a @ [31.5, 31.5]
        got = compiled.apply(
            [ramp], [by_hand([[*a[0], b[0]], [*a[1], b[1]], [0, 0, 1]], (64, 64), ramp, sigma=sigma)], [m], p
        )
        q = np.mgrid[:64, :64].reshape(2, -1)
        u = a @ q + b[:, None]
        np.testing.assert_allclose(got[0, 0].flatten(), (0.001 * u[1] - 0.0004 * u[0] + 1) / 2, atol=3e-6)


# --- exact copies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_flips_turns_and_crops_are_copies(dtype: torch.dtype) -> None:
    x = picture((1, 70, 90), dtype)
    if dtype.is_floating_point:
        x[0, 20, 30], x[0, 21, 31], x[0, 50, 60] = math.nan, math.inf, -math.inf
    p, m = policy({}, size=(65, 66), train=False), meta(window=Window(0.0, float(DTYPES[dtype])))
    array = x[0].float().numpy()
    turned = np.rot90(array, 1)
    for matrix, want in (
        ([[1, 0, 2], [0, 1, 5], [0, 0, 1]], array[2:67, 5:71]),
        ([[1, 0, 2], [0, -1, 80], [0, 0, 1]], array[2:67, 80:14:-1]),
        ([[-1, 0, 69], [0, 1, 0], [0, 0, 1]], array[69:4:-1, :66]),
        ([[0, 1, 0], [-1, 0, 89], [0, 0, 1]], turned[:65, :66]),
    ):
        got = compiled.apply([x], [by_hand(matrix, (65, 66), x)], [m], p)[0, 0].numpy()
        shown = np.clip(want / np.float32(DTYPES[dtype]), 0, 1)
        assert np.array_equal(got, shown, equal_nan=True)


def test_whole_reductions_are_area_means() -> None:
    x = picture((3, 128, 96), torch.uint8)
    p, m = policy({}, size=(32, 24), channels=3, train=False), meta()
    got = compiled.apply([x], [by_hand([[4, 0, 1.5], [0, 4, 1.5], [0, 0, 1]], (32, 24), x)], [m], p)[0]
    want = x.float().reshape(3, 32, 4, 24, 4).mean((2, 4)) / 255
    assert torch.equal(got, want)


# --- independence ----------------------------------------------------------------------------------------------


def cohort(n: int = 64) -> tuple[list[Tensor], list[Meta]]:
    images = [picture((1, 40 + 3 * (i % 7), 61 - 2 * (i % 5)), torch.int16, i) for i in range(n)]
    return images, [meta(i, window=Window(-3000, 3500), stats={"mean": 100.0 + i}) for i in range(n)]


def test_a_sample_knows_neither_its_batch_nor_threads_nor_packing() -> None:
    """64 keyed samples in batches of 64, 7 and 1, shuffled, on 1 and 3 threads, as a list and packed: the same bytes."""
    p, (images, metas) = policy(EVERYTHING, size=(70, 80), channels=3), cohort()
    drawn = [draw(p, x, m) for x, m in zip(images, metas, strict=True)]

    def run(numbers: list[int]) -> Tensor:
        return compiled.apply([images[i] for i in numbers], [drawn[i] for i in numbers], [metas[i] for i in numbers], p)

    threads, everyone = torch.get_num_threads(), list(range(64))
    whole = run(everyone)
    assert len({row.numpy().tobytes() for row in whole}) == 64
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for size in (64, 7, 1):
                parts = [run(everyone[i : i + size]) for i in range(0, 64, size)]
                assert torch.equal(torch.cat(parts), whole)
    finally:
        torch.set_num_threads(threads)
    order = np.random.default_rng(0).permutation(64).tolist()
    assert torch.equal(run(order), whole[order])
    packed = Ragged.of([x.permute(1, 2, 0).reshape(-1, 1) for x in images], grid=[x.shape[1:] for x in images])
    assert torch.equal(compiled.apply(packed, [d.to_json() for d in drawn], metas, p), whole)
    dense = torch.stack([images[0], images[0]])
    twice = compiled.apply(dense, [drawn[0], drawn[0]], [metas[0], metas[0]], p)
    assert torch.equal(twice, whole[[0, 0]])


class Applied(Dataset[Tensor]):
    """Augments in the worker."""

    def __init__(self) -> None:
        self.policy = policy(EVERYTHING, size=32)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Tensor:
        x, m = picture((1, 50, 60), torch.uint16, i), meta(i, window=Window(0, 60000))
        return compiled.apply([x], [draw(self.policy, x, m)], [m], self.policy)[0]


@pytest.mark.parametrize(
    "how", ["fork", pytest.param("forkserver", marks=pytest.mark.slow), pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_data_workers_of_every_kind_give_the_same_bytes(how: str) -> None:
    data, threads = Applied(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)  # the parent's pool is running when it forks
        alone = torch.stack([data[i] for i in range(len(data))])
        loader = DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=how)
        assert torch.equal(torch.cat(list(loader)), alone)
    finally:
        torch.set_num_threads(threads)


# --- random numbers ---------------------------------------------------------------------------------------------


def test_philox_vectors() -> None:
    from numba import njit

    from hilum.augment import _lanes

    philox = njit(lambda a, b, c, d, e, f: _lanes.philox(a, b, c, d, e, f))  # the loops' own are not callable from here
    zero, full, pi = [0] * 6, [0xFFFFFFFF] * 6, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    for words, want in (
        (zero, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (full, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (pi, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        got = philox(*(np.uint64(w) for w in words))
        assert " ".join(f"{int(w):08x}" for w in got) == want


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (64, 65), (3, 130)])
@pytest.mark.parametrize("channels", [1, 3])
def test_noise_is_the_references_number_by_number(size: tuple[int, int], channels: int) -> None:
    x = torch.full((channels, *size), 0.5)
    p, m = policy({"noise": [0.05, 0.05], "fit": "squash"}, size=size, channels=channels), meta(3, window=Window(0, 1))
    got, want = both(x, draw(p, x, m), m, p)
    assert float((got - want).abs().max()) < 1e-6
    assert size == (1, 1) or 0.03 < float((got - 0.5).std()) < 0.09


def test_elementary_functions() -> None:
    """Of float64's, relative: logarithm 4e-7, exponential 1e-5 at its far ends; halves of all 65536 patterns exactly."""
    from numba import njit

    from hilum.augment import _lanes

    def over(f: Any, *more: Any) -> Any:  # the loops' own functions cannot be called from here
        return njit(lambda x: np.array([f(v, *more) for v in x]))

    log, exp, half, power = over(_lanes.log), over(_lanes.exp), over(_lanes.half), over(_lanes.power, np.float32(0.7))
    x = np.concatenate([np.geomspace(1e-30, 1e30, 500), np.linspace(0.5, 2, 501)]).astype(np.float32)
    np.testing.assert_allclose(log(x), np.log(x.astype(np.float64)), rtol=4e-7, atol=1e-9)
    x = np.linspace(-80, 80, 999).astype(np.float32)
    np.testing.assert_allclose(exp(x), np.exp(x.astype(np.float64)), rtol=1e-5)
    bits = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(half(bits), bits.view(np.float16).astype(np.float32), equal_nan=True)
    x = np.array([0.0, 1e-20, 0.3, 1.0, 1.9, math.nan], np.float32)
    np.testing.assert_allclose(power(x), x.astype(np.float64) ** np.float64(np.float32(0.7)), rtol=2e-6)


# --- no image-sized intermediate ------------------------------------------------------------------------------


def peak_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("matrix", [[[6.0, 0.0, 1.0], [0.0, 6.1, 2.0]], [[6.0, 1.0, 1.0], [-1.0, 6.1, 900.0]]])
def test_memory_does_not_grow_with_the_image(matrix: list[list[float]]) -> None:
    """Of 36 M pixels as uint8, float32 would be 144 MB; 4 MB are allowed."""
    p, m = policy({}, size=900, train=False), meta()
    x = torch.full((1, 6000, 6000), 7, dtype=torch.uint8)
    d = by_hand([*matrix, [0, 0, 1]], (900, 900), x, sigma=0.5)
    small = x[:, :900, :900]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compiled.apply([small], [by_hand([*matrix, [0, 0, 1]], (900, 900), small, sigma=0.5)], [m], p)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        pytest.skip("the kernel does not tell peaks")
    finally:
        torch.set_num_threads(threads)
    before = peak_kib()
    out = compiled.apply([x], [d], [m], p)
    assert peak_kib() - before < (out.numel() * 4 >> 10) + 4096


# --- what is refused and what is left to the reference ---------------------------------------------------------


def test_bad_input_gives_the_references_errors() -> None:
    x, m = picture((1, 10, 12), torch.int16), meta(window=Window(0, 100))
    p, noisy = policy({}), policy({"noise": 0.1})
    d = draw(p, x, m)
    eye = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1]]
    cases: list[tuple[Any, Any, Any, Policy]] = [
        ([x.mT], [d], [m], p),
        ([x], [d, d], [m], p),
        ([picture((2, 10, 12), torch.int16)], [d], [m], policy({}, channels=3)),
        ([x[:, :0]], [by_hand(eye, (24, 24), x[:, :0])], [m], p),
        ([x], [by_hand([[math.nan, 0, 0], *eye[1:]], (24, 24), x)], [m], p),
        ([x], [by_hand([[1.0, 0, math.inf], *eye[1:]], (24, 24), x)], [m], p),
        ([x], [d], [meta(window=Window(0, 100), slope=0.0)], p),
        ([x], [d], [meta(window=Window(0, 100), intercept=math.nan)], p),
        ([x], [d], [meta()], p),
        ([x], [d], [meta(window={"lo": 0, "hi": 1, "kind": "cubic"})], p),
        ([x], [d], [meta(window=Window(0, 1, "table", ()))], p),
        ([x], [by_hand(eye, (24, 24), x, noise=0.1)], [m], noisy),
        ([x[0]], [d], [m], p),
        (Ragged.of([torch.zeros(120, 1)]), [d], [m], p),
    ]
    for images, draws, metas, pol in cases:
        told = []
        for back_end in (reference, compiled):
            with pytest.raises(HilumError) as caught:
                back_end.apply(images, draws, metas, pol)
            told.append(str(caught.value))
        assert told[0] == told[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bfloat16])
def test_other_types_are_the_references(dtype: torch.dtype) -> None:
    x = (torch.rand(1, 30, 40) * 100).to(dtype)
    p, m = policy({"resized_crop": [0.3, 1.0], "rotate": 20}), meta(window=Window(0, 100))
    got, want = both(x, draw(p, x, m), m, p)
    assert torch.equal(got, want)


def test_sources_may_be_strided_or_ask_for_gradients() -> None:
    whole = picture((1, 60, 80), torch.float32)
    x = whole[:, ::2, ::2]
    p, m = policy({"rotate": 20}, size=30), meta(window=Window(0, 1))
    d = draw(p, x, m)
    want = compiled.apply([x.contiguous()], [d], [m], p)
    assert torch.equal(compiled.apply([x], [d], [m], p), want)
    assert torch.equal(compiled.apply([x.contiguous().requires_grad_()], [d], [m], p), want)
    flat = torch.tensor([[[0.25]]]).expand(1, 30, 40)
    assert torch.equal(compiled.apply([flat], [d], [m], p), compiled.apply([flat.contiguous()], [d], [m], p))


@pytest.mark.parametrize(
    ("shape", "step", "turn"),
    [
        ((2200, 2200, 3), 24.0, 0.0),
        ((2300, 2300, 3), 31.0, 0.0),
        ((2100, 2100, 3), 16.5, 0.4),
        ((300, 4700, 1), 66.0, 0.0),
        ((900, 900, 9), 12.0, 0.1),
    ],
)
def test_large_reductions_inside_of_an_image(shape: tuple[int, int, int], step: float, turn: float) -> None:
    """A row of the level may be longer in stored pixels than any scratch of a small image."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).permute(2, 0, 1)
    size = tuple(max(1, int(n / step) - 4) for n in shape[:2])
    out = (min(size[0], 70), min(size[1], 70))
    seen = policy({"fit": "squash"}, size=out, channels=shape[2], train=False)
    turned = step * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = np.eye(3)
    matrix[:2, :2] = turned
    matrix[:2, 2] = (np.array(shape[:2]) - 1) / 2 - turned @ ((np.array(out) - 1) / 2)
    draw = replace(seen.draw(None, source_size=shape[:2]), matrix=matrix)
    for image in (pixels, pixels.contiguous()):
        made, expected = (b.apply([image], [draw], [meta()], seen) for b in (compiled, reference))
        assert (made - expected).abs().max() < 1e-5
