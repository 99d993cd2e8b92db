"""From ops to numbers: how every parameter is drawn, and how geometry becomes ONE matrix.

Each op draws from its own Philox stream on the host in float64, so adding or dropping an op changes no other's draws.
Geometry is composed in the policy's order: what stands before ``resized_crop`` acts on the source's frame, what stands
after it on the output's; where there is no ``resized_crop``, the evaluation fit comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hilum.augment.ops import Op, Range
from hilum.parts import geometry as geo
from hilum.parts.rng import Stream

Size = tuple[int, int]
FIT_RATIO: Final = (
    256 / 224
)  # the shorter side is resized to size * 256 / 224, then the centre is cut (arXiv 2210.12843)
ATTEMPTS: Final = 10


@dataclass(slots=True)
class Chain:
    """What the ops of one sample add up to. ``frame`` is the size of the image that the next geometry op meets."""

    frame: Size
    out: Size
    fit: str
    matrices: list[geo.Matrix] = field(default_factory=lambda: [geo.identity(2)])
    flips: set[int] = field(default_factory=set)
    brightness: float = 1.0
    contrast: float = 1.0
    gamma: float = 1.0
    variance: float = 0.0  # of the blur, in output pixels squared
    noise: float = 0.0
    shift: float = 0.0
    width: float = 1.0

    def flip(self, axis: int) -> None:
        self.matrices.append(geo.flip(self.frame, axis))
        self.flips ^= {axis}

    def about_centre(self, *linear: geo.Matrix) -> None:
        self.matrices.append(geo.about_centre(geo.compose(*linear), self.frame))

    def translate(self, fractions: NDArray[np.float64]) -> None:
        self.matrices.append(geo.translation(fractions * self.frame))

    def resize(self, matrix: geo.Matrix | None = None) -> None:
        """Reaches the output's size: by this matrix, or by the evaluation fit."""
        self.matrices.append(fit(self.fit, self.frame, self.out) if matrix is None else matrix)
        self.frame = self.out

    def pointwise(self, name: str, value: float) -> None:
        setattr(self, name, getattr(self, name) * value)


def fit(how: str, source: Size, out: Size) -> geo.Matrix:
    """The evaluation geometry: ``crop`` (resize the shorter side, cut the centre), ``pad`` (whole image, proportions
    kept, border around it), ``squash`` (whole image, proportions lost)."""
    if how == "squash":
        return geo.crop_resize(out, (0.0, 0.0), source)
    steps = [n / m for n, m in zip(source, out, strict=True)]
    step = min(steps) / FIT_RATIO if how == "crop" else max(steps)
    return geo.about_centre(step * np.eye(2), out, source)


def apply_op(op: Op, stream: Stream, chain: Chain) -> None:
    """Draws one op; a gate that stays shut leaves the neutral parameters."""
    if op.name == "rand":
        return _rand(op, stream, chain)
    if op.p < 1.0 and not stream.bernoulli(f"{op.name}/p", op.p):
        return chain.resize() if op.name == "resized_crop" else None
    return _LAWS[op.name](op.ranges, stream, chain)


def _resized_crop(ranges: Mapping[str, Range], stream: Stream, chain: Chain) -> None:
    """Area uniform, aspect (width / height) log-uniform, position uniform over what fits; the crop is not rounded to
    whole pixels. A pair that does not fit is drawn again, ten times; then the largest centred crop of legal aspect."""
    height, width = chain.frame
    lo, hi = ranges["aspect"]
    for count in (1, ATTEMPTS):  # draws of an op do not depend on how many are taken: most often one attempt is enough
        u = stream.uniform("resized_crop", 2 + 2 * count)
        area = ranges["area"][0] + (ranges["area"][1] - ranges["area"][0]) * u[2::2]
        aspect = lo * (hi / lo) ** u[3::2]
        w, h = np.sqrt(area * height * width * aspect), np.sqrt(area * height * width / aspect)
        fits = (w <= width) & (h <= height)
        if fits.any():
            i = int(np.argmax(fits))
            extent = (float(h[i]), float(w[i]))
            origin = (u[0] * (height - extent[0]), u[1] * (width - extent[1]))
            return chain.resize(geo.crop_resize(chain.out, origin, extent))
    extent = (min(height, width / lo), min(width, height * hi))
    origin = ((height - extent[0]) / 2, (width - extent[1]) / 2)
    return chain.resize(geo.crop_resize(chain.out, origin, extent))


def _within(op: str, ranges: Mapping[str, Range], stream: Stream, *names: str) -> NDArray[np.float64]:
    """One draw for each name, in fixed slots; names without a range stay at 0 (at 1 for factors)."""
    bounds = np.array([ranges.get(name, (1.0, 1.0) if name in ("scale", "width") else (0.0, 0.0)) for name in names])
    drawn: NDArray[np.float64] = bounds[:, 0] + np.ptp(bounds, 1) * stream.uniform(op, len(names))
    return drawn


def _affine(ranges: Mapping[str, Range], stream: Stream, chain: Chain) -> None:
    drawn = _within("affine", ranges, stream, "rotate", "translate", "translate", "scale", "shear", "shear")
    _turn(chain, *np.radians(drawn[[0, 5]]), zoom=drawn[3], shear_y=math.radians(drawn[4]))
    chain.translate(drawn[1:3])


def _turn(chain: Chain, rotate: float, shear_x: float, *, zoom: float = 1.0, shear_y: float = 0.0) -> None:
    shears = (geo.shear(shear_x), geo.shear(shear_y, axis=-2, along=-1))
    chain.about_centre(*shears, geo.scaling(zoom), geo.rotation(rotate))


def _translate(ranges: Mapping[str, Range], stream: Stream, chain: Chain) -> None:
    chain.translate(_within("translate", ranges, stream, "range", "range"))


def _window(ranges: Mapping[str, Range], stream: Stream, chain: Chain) -> None:
    chain.shift, chain.width = map(float, _within("window", ranges, stream, "shift", "width"))


def _blur(ranges: Mapping[str, Range], stream: Stream, chain: Chain) -> None:
    chain.variance += float(_within("blur", ranges, stream, "range")[0]) ** 2


def _noise(ranges: Mapping[str, Range], stream: Stream, chain: Chain) -> None:
    chain.noise = float(_within("noise", ranges, stream, "range")[0])


def _one(name: str, act: Callable[[Chain, float], None]) -> Callable[[Mapping[str, Range], Stream, Chain], None]:
    return lambda ranges, stream, chain: act(chain, float(_within(name, ranges, stream, "range")[0]))


_LAWS: Final[Mapping[str, Callable[[Mapping[str, Range], Stream, Chain], None]]] = {
    "resized_crop": _resized_crop,
    "hflip": lambda ranges, stream, chain: chain.flip(1),
    "vflip": lambda ranges, stream, chain: chain.flip(0),
    "rotate": _one("rotate", lambda chain, degrees: chain.about_centre(geo.rotation(math.radians(degrees)))),
    "scale": _one("scale", lambda chain, zoom: chain.about_centre(geo.scaling(zoom))),
    "shear": _one("shear", lambda chain, degrees: chain.about_centre(geo.shear(math.radians(degrees)))),
    "translate": _translate,
    "affine": _affine,
    "blur": _blur,
    "window": _window,
    "brightness": _one("brightness", lambda chain, factor: chain.pointwise("brightness", factor)),
    "contrast": _one("contrast", lambda chain, factor: chain.pointwise("contrast", factor)),
    "gamma": _one("gamma", lambda chain, exponent: chain.pointwise("gamma", exponent)),
    "noise": _noise,
}


def _rand(op: Op, stream: Stream, chain: Chain) -> None:
    """A policy in the manner of RandAugment (Cubuk et al. 2020): ``n`` layers, each with probability ``p`` one op
    chosen with replacement, its strength from ``magnitude`` + ``std`` * normal, clipped to 0..10.

    The mapping is ours, set to the strengths that timm's ``rand-m6-mstd0.5-inc1`` gives the ops both share (m is the
    magnitude / 10; signs and axes by a fair coin): rotate 30 m degrees; shear tan 0.3 m; translate 0.45 m of the side;
    brightness and contrast 1 +- 0.9 m, at least 0.1 (without ``increasing``: 0.1 + 1.8 m); blur sigma 0.1 + 1.9 m
    output pixels. Gamma, which timm lacks, is 2 ** +-m. Unlike there, all geometry interpolates once, values are
    clipped once, shears are centred, contrast turns about the stored mean, and posterize, solarize, invert,
    equalize and autocontrast, which destroy radiographic grey values, are left out.
    """
    s = op.settings
    for layer in range(s["n"]):
        gate, pick, sign, axis = stream.uniform("rand", 4, occurrence=layer).tolist()
        if gate >= op.p:
            continue
        z = float(stream.normal("rand/magnitude", occurrence=layer)[0])
        m = min(max(s["magnitude"] + s["std"] * z, 0.0), 10.0) / 10.0
        signed = m if sign < 0.5 else -m
        name = s["ops"][int(pick * len(s["ops"]))]
        if name == "rotate":
            chain.about_centre(geo.rotation(math.radians(30.0 * signed)))
        elif name == "shear":
            on = (-1, -2) if axis < 0.5 else (-2, -1)
            chain.about_centre(geo.shear(math.atan(0.3 * signed), axis=on[0], along=on[1]))
        elif name == "translate":
            chain.translate(0.45 * signed * np.eye(2)[int(axis < 0.5)])
        elif name == "blur":
            chain.variance += (0.1 + 1.9 * m) ** 2
        elif name == "gamma":
            chain.pointwise("gamma", 2.0**signed)
        else:
            chain.pointwise(name, max(0.1, 1.0 + 0.9 * signed) if s["increasing"] else 0.1 + 1.8 * m)
