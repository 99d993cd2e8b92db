"""Several frames at one position: the smallest set of keys that tells them apart (time, b-value, echo, ...)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

from hilum.medical.volumes.frames import Frame

# In the order in which they are tried; the gradient's three components are one key.
_ALL = """temporal temporal_s reference_ms cardiac trigger_ms b_value gradient echo echo_ms component dixon
    inversion_ms flip_deg kvp energy detector phase rotation rr time_slot view time_slice acquisition"""
_ORDER = _ALL.split()
_RANKED = (
    "temporal",
    "temporal_s",
    "reference_ms",
    "trigger_ms",
    "cardiac",
    "echo_ms",
)  # values drift along the slices
_MOST_KEYS = 3
# What one volume has one of, at whatever positions: slices of a series that lost files may all lie apart.
_CONTRASTS = ("temporal", "b_value", "echo", "component", "dixon", "energy")


@dataclass(frozen=True)
class Separation:
    """``labels[i]``: the volume that frame i belongs to, as text."""

    keys: tuple[str, ...]
    labels: Sequence[str]
    ranked: bool = False  # by order at each position, not by value

    @property
    def text(self) -> str:
        """``b_value,echo=6``: the keys and the number of volumes."""
        return f"{','.join(self.keys)}{' by rank' if self.ranked else ''}={len(set(self.labels))}"


def separate(frames: Sequence[Frame], bins: Sequence[int]) -> Separation | None:
    """Keys under which no two frames share a position (``bins[i]``), with as many volumes as frames at the fullest
    position; None where no set of up to three keys does it."""
    fullest = max(Counter(bins).values())
    values = {name: [_value(f, name) for f in frames] for name in _ORDER}
    varied = [name for name in _ORDER if 1 < len(set(values[name])) <= fullest]  # more values make more volumes
    for size in range(1, min(_MOST_KEYS, len(varied)) + 1):
        for names in combinations(varied, size):
            labels = list(zip(*(values[n] for n in names), strict=True))
            if len(set(labels)) == fullest and len(set(zip(labels, bins, strict=True))) == len(frames):
                return Separation(names, [_text(names, label) for label in labels])
    for name in _RANKED:
        ranks = _ranks(values[name], bins, fullest)
        if ranks is not None:
            return Separation((name,), [f"{name}#{rank}" for rank in ranks], ranked=True)
    return None


def mixed(frames: Sequence[Frame]) -> Separation | None:
    """Contrasts that differ among frames of different positions; None where all are of one volume. A ``temporal`` that
    no two frames share only counts them."""
    values = {name: [_value(f, name) for f in frames] for name in _CONTRASTS}
    if len(set(values["temporal"])) == len(frames):
        del values["temporal"]
    names = tuple(name for name in values if len(set(values[name])) > 1)
    labels = zip(*(values[n] for n in names), strict=True)
    return Separation(names, [_text(names, label) for label in labels]) if names else None


def _value(frame: Frame, name: str) -> Hashable:
    if name != "gradient":
        return frame.keys.get(name)
    return tuple(frame.keys.get(f"gradient_{axis}") for axis in "xyz")


def _text(names: Sequence[str], label: Sequence[Hashable]) -> str:
    return ",".join(f"{n}={_number(v)}" for n, v in zip(names, label, strict=True))


def _number(value: Hashable) -> str:
    if isinstance(value, tuple):
        return "none" if None in value else "/".join(f"{v:.15g}" for v in value)
    return "none" if value is None else f"{value:.15g}"


def _ranks(values: Sequence[Hashable], bins: Sequence[int], fullest: int) -> list[int] | None:
    """Order of each frame's value at its position; None unless every position has as many, all different."""
    at: dict[int, list[float]] = defaultdict(list)
    for value, place in zip(values, bins, strict=True):
        if not isinstance(value, float):
            return None
        at[place].append(value)
    if any(len(set(v)) != fullest or len(v) != fullest for v in at.values()):
        return None
    order = {place: {v: r for r, v in enumerate(sorted(v))} for place, v in at.items()}
    return [order[place][value] for value, place in zip(values, bins, strict=True)]  # type: ignore[index]
