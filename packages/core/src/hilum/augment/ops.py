"""What a recipe's ``augment`` section may say: the ops, their classes and ranges, read and checked.

Classes (docs/augmentation.md): G geometry, S stencil, W window, P pointwise, N noise. Fields (F) belong to other domains.

Ranges are ``[lo, hi]``, drawn uniformly (a crop's aspect: log-uniformly). A single number ``a`` stands for ``[-a, a]``
(rotate and shear in degrees, translate as a fraction of the side, window shift as a fraction of its width),
``[1 - a, 1 + a]`` (scale, brightness, contrast, gamma, window width) or ``[0, a]`` (blur in output pixels, noise in
window units). A mapping ``{range: ..., p: 0.5}`` adds a probability.

A section is a mapping, whose order means nothing: ops act in the order of :data:`OPS`. Another order is asked for by
``order: [rotate, resized_crop, ...]``, a list of all declared ops, and refused where one pass cannot express it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from hilum.core.errors import HilumError, nearest

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Op:
    """One declared op: its class, its probability and a range for each parameter."""

    name: str
    kind: str
    p: float
    ranges: Mapping[str, Range]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = [f"{'' if k == 'range' else k + ' '}{lo:g}..{hi:g}" for k, (lo, hi) in self.ranges.items()]
        shown += [f"{k} {v}" for k, v in self.settings.items()]
        return " ".join([self.name, *shown, *([f"p {self.p:g}"] if self.p < 1 else [])])


# op -> (class, parameter -> how a single number is read), in the order in which ops act unless ``order`` says otherwise
OPS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = MappingProxyType(
    {
        "resized_crop": ("G", {"area": "share", "aspect": "ratio"}),
        "hflip": ("G", {}),
        "vflip": ("G", {}),
        "rotate": ("G", {"range": "symmetric"}),
        "translate": ("G", {"range": "symmetric"}),
        "scale": ("G", {"range": "factor"}),
        "shear": ("G", {"range": "angle"}),
        "affine": ("G", {"rotate": "symmetric", "translate": "symmetric", "scale": "factor", "shear": "angle"}),
        "blur": ("S", {"range": "positive"}),
        "window": ("W", {"shift": "symmetric", "width": "factor"}),
        "rand": ("GSP", {}),
        "brightness": ("P", {"range": "factor"}),
        "contrast": ("P", {"range": "factor"}),
        "gamma": ("P", {"range": "factor"}),
        "noise": ("N", {"range": "positive"}),
    }
)
RAND_OPS: Final = ("rotate", "shear", "translate", "brightness", "contrast", "gamma", "blur")
RAND: Final[Mapping[str, Any]] = MappingProxyType(
    {"ops": RAND_OPS, "n": 2, "magnitude": 6.0, "std": 0.5, "increasing": True, "p": 0.5}
)
CHOICES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "interpolation": ("linear", "nearest"),
        "fit": ("auto", "crop", "pad", "squash"),
        "border": ("background", "border", "reflect"),
    }
)
_LIMITS: Final = {
    "symmetric": (float("-inf"), float("inf")),
    "angle": (-89.0, 89.0),
    "factor": (0.0, float("inf")),
    "ratio": (0.0, float("inf")),
    "positive": (0.0, float("inf")),
    "share": (0.0, 1.0),
}


def read_ops(config: Mapping[str, Any]) -> tuple[Op, ...]:
    """The ops of an ``augment`` section, in acting order; anything unknown raises with the nearest key, ``where`` being the
    unknown key's place in a recipe."""
    known = [*OPS, *CHOICES, "hflip_with_sides", "order"]
    for name in config:
        if name not in known:
            fix = nearest(str(name), known) or f"known: {', '.join(known)}"
            raise HilumError(f"unknown key {name!r}", where=f"augment.{name}", fix=fix)
    for name, choices in CHOICES.items():
        value = config.get(name, choices[0])
        if value not in choices and not (name == "border" and _is_number(value)):
            extra = ", or a modality value" if name == "border" else ""
            raise _wrong(f"{name} is {value!r}", f"one of {', '.join(choices)}{extra}")
    if not isinstance(config.get("hflip_with_sides", False), bool):
        raise _wrong(f"hflip_with_sides is {config['hflip_with_sides']!r}", "true or false")
    # false, null or 0 switches an op off, as when a recipe's line is overridden on the command line
    ops = {name: _read(name, config[name]) for name in OPS if config.get(name) not in (None, False)}
    order = config.get("order", list(ops))
    if not isinstance(order, Sequence) or isinstance(order, str) or sorted(map(str, order)) != sorted(ops):
        raise _wrong(f"order is {order!r}", f"a list of every declared op, each once: {list(ops)}")
    return tuple(ops[name] for name in order)


def _read(name: str, value: Any) -> Op:
    kind, parameters = OPS[name]
    if name == "rand":
        return _read_rand(value)
    if name in ("hflip", "vflip"):
        return Op(name, kind, _probability(name, value["p"] if _only_p(value) else value), {})
    if not isinstance(value, Mapping):
        if name == "affine":
            raise _wrong(f"affine is {value!r}", "a mapping of rotate, translate, scale, shear")
        value = {"area": value} if name == "resized_crop" else dict.fromkeys(parameters, value)
    known = [*parameters, "p"]
    for key in value:
        if key not in known:
            raise _wrong(f"unknown key {key!r} in {name}", nearest(key, known) or f"known: {', '.join(known)}")
    if name == "resized_crop":
        value = {"area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3), **value}
    ranges = {key: _range(f"{name}.{key}", value[key], how) for key, how in parameters.items() if key in value}
    if not ranges:
        raise _wrong(f"{name} names no range", f"give at least one of {', '.join(parameters)}")
    return Op(name, kind, _probability(name, value.get("p", 1.0)), ranges)


def _read_rand(value: Any) -> Op:
    if not isinstance(value, Mapping):
        raise _wrong(f"rand is {value!r}", f"a mapping of {', '.join(RAND)}")
    for key in value:
        if key not in RAND:
            raise _wrong(f"unknown key {key!r} in rand", nearest(key, RAND) or f"known: {', '.join(RAND)}")
    settings = {**RAND, **value}
    if isinstance(settings["ops"], str) or not isinstance(settings["ops"], Sequence) or not settings["ops"]:
        raise _wrong(f"rand.ops is {settings['ops']!r}", f"a list out of {', '.join(RAND_OPS)}")
    for op in settings["ops"]:
        if op not in RAND_OPS:
            raise _wrong(f"unknown op {op!r} in rand.ops", nearest(str(op), RAND_OPS) or f"known: {RAND_OPS}")
    if not isinstance(settings["n"], int) or settings["n"] < 0:
        raise _wrong(f"rand.n is {settings['n']!r}", "a whole number of layers, 0 or more")
    for key, highest in (("magnitude", 10.0), ("std", 10.0)):
        if not _is_number(settings[key]) or not 0 <= settings[key] <= highest:
            raise _wrong(f"rand.{key} is {settings[key]!r}", f"a number from 0 to {highest:g}")
    if not isinstance(settings["increasing"], bool):
        raise _wrong(f"rand.increasing is {settings['increasing']!r}", "true or false")
    p = _probability("rand", settings.pop("p"))
    return Op("rand", OPS["rand"][0], p, {}, settings | {"ops": tuple(settings["ops"])})


def _range(where: str, value: Any, how: str) -> Range:
    if _is_number(value) and how not in ("share", "ratio"):
        a = float(value)
        value = {"factor": (1 - a, 1 + a), "positive": (0.0, a)}.get(how, (-a, a))
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2 or not all(map(_is_number, value)):
        raise _wrong(
            f"{where} is {value!r}", "a range [lo, hi]" + ("" if how in ("share", "ratio") else " or a number")
        )
    lo, hi = float(value[0]), float(value[1])
    lowest, highest = _LIMITS[how]
    open_below = how in ("share", "ratio", "factor")
    if not (lowest <= lo <= hi <= highest) or (open_below and lo <= lowest):
        bounds = f"{'above' if open_below else 'from'} {lowest:g} to {highest:g}"
        raise _wrong(f"{where} is [{lo:g}, {hi:g}]", f"lo <= hi, both {bounds}")
    return lo, hi


def _probability(name: str, value: Any) -> float:
    if not _is_number(value) or not 0.0 <= value <= 1.0:
        raise _wrong(f"the probability of {name} is {value!r}", "a number from 0 to 1")
    return float(value)


def _only_p(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"p"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(what: str, fix: str) -> HilumError:
    return HilumError(what, where="the recipe's augment section", fix=fix)
