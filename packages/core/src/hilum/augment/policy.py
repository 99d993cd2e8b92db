"""The augmentation policy of one view: declared in a recipe, drawn per sample on the host, applied on the device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from hilum.augment.draw import Draw
from hilum.augment.filters import MOST_READS, plan, reads_of
from hilum.augment.laws import FIT_RATIO, Chain, apply_op
from hilum.augment.ops import Op, read_ops
from hilum.core.errors import HilumError
from hilum.core.types import SampleKey
from hilum.parts import geometry as geo
from hilum.parts.rng import Stream

POINTWISE = ("brightness", "contrast", "gamma")


class Policy:
    """What happens between stored pixels and a network's input (docs/augmentation.md), for images of one size.

    ``config`` is a recipe's ``augment`` section (see :mod:`hilum.augment.ops` for its grammar). Keys beside the ops:

    * ``interpolation``: linear (with minification filter) | nearest.
    * ``border``: what lies outside the image: ``background`` (the stored background value where the image has one,
      else black), a modality value, ``border`` (edge pixels go on) or ``reflect``.
    * ``fit``: how a whole image becomes the output where no random crop does (evaluation, and training without
      ``resized_crop``): ``crop`` resizes the shorter side to size * 256 / 224 and cuts the centre, ``pad`` keeps the
      whole image and its proportions, ``squash`` keeps the whole image only. ``auto``, the default, is ``crop`` for
      policies with ``resized_crop``, whose mean zoom it meets (arXiv 2210.12843), and ``pad`` otherwise: a radiograph's edges
      hold findings.
    * ``hflip_with_sides: true``: allow ``hflip`` and ``vflip`` although labels name a side; every flip is recorded in the draw and
      in ``meta.geometry[view].flips`` for whoever exchanges left and right.

    ``size`` is the output side or (height, width); ``mean`` and ``std`` normalise values in [0, 1].
    ``lateral``: labels change their meaning under a left-right flip.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        size: int | Sequence[int],
        channels: int,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        train: bool,
        lateral: bool = False,
    ) -> None:
        self.config = dict(config)
        self.size = _size(size)
        self.channels = channels
        self.mean, self.std = _per_channel(mean, channels, "mean"), _per_channel(std, channels, "std")
        self.train, self.lateral = train, lateral
        self.ops = read_ops(config)
        check_order(self.ops)
        names = {op.name for op in self.ops}
        mirrors = sorted(names & {"hflip", "vflip"})
        if lateral and mirrors and not config.get("hflip_with_sides", False):
            raise HilumError(
                f"{mirrors[0]} would turn left into right, and these labels name a side",
                where="the recipe's augment section",
                fix=f"{mirrors[0]}: 0, or hflip_with_sides: true if the labels are to be flipped or ignored with the image",
            )
        if lateral and train and mirrors:
            warnings.warn(
                "images are mirrored although labels name a side (hflip_with_sides: true): sides are exchanged only where "
                "names or words say them",
                stacklevel=2,
            )
        self.interpolation: str = config.get("interpolation", "linear")
        self.border: str | float = config.get("border", "background")
        how = config.get("fit", "auto")
        self.fit: str = how if how != "auto" else "crop" if "resized_crop" in names else "pad"
        ordered = [op.name for op in self.ops if op.name in POINTWISE]
        self.pointwise: tuple[str, ...] = tuple(dict.fromkeys([*ordered, *POINTWISE]))  # rand may use all of them

    def eval(self) -> Policy:
        """The same view without chance: resize and normalise through the same kernel."""
        kept = {name: getattr(self, name) for name in ("size", "channels", "mean", "std", "lateral")}
        return Policy(self.config, train=False, **kept)

    def draw(
        self,
        key: SampleKey | None,
        *,
        source_size: Sequence[int],
        view: int = 0,
        stats: Mapping[str, float | None] | None = None,
    ) -> Draw:
        """All parameters of one sample, float64, from Philox keyed by ``key`` and ``view`` (FORMATS 10).

        ``source_size`` (H, W); ``stats`` the image's stored statistics in modality values (``mean``: the contrast
        pivot, ``background``: the border). ``key`` may be None for evaluation only.
        """
        height, width = map(int, source_size)
        if min(height, width) < 1:
            raise HilumError(f"an image of size {height} x {width} has no pixels")
        chain = Chain(frame=(height, width), out=self.size, fit=self.fit)
        ops = self.ops if self.train else ()
        if not any(op.name == "resized_crop" for op in ops):
            chain.resize()
        if ops:
            if key is None:
                raise HilumError("a training draw needs the sample's key", fix="set meta.key")
            stream = Stream(key, view=view)
            for op in ops:
                apply_op(op, stream, chain)
        known = stats or {}
        number = self.border if not isinstance(self.border, str) else known.get("background")
        return Draw(
            matrix=geo.compose(*chain.matrices),
            size=self.size,
            source_size=(height, width),
            view=view,
            key=key,
            flips=tuple(sorted(chain.flips)),
            brightness=chain.brightness,
            contrast=chain.contrast,
            gamma=chain.gamma,
            sigma=math.sqrt(chain.variance),
            noise=chain.noise,
            window_shift=chain.shift,
            window_width=chain.width,
            pivot=_finite(known.get("mean")),
            fill=_finite(number),
        )

    def explain(self, source_size: Sequence[int] | None = None) -> str:
        """The plan in words: which declared op ends up in which stage of the one pass.

        With ``source_size`` (H, W) also level and kernel of both axes for the whole image of that size, without blur
        and with the strongest one declared.
        """
        ops = self.ops if self.train else ()

        def of(kind: str) -> list[str]:
            return [str(op) for op in ops if kind in op.kind]

        geometry = of("G")
        if not any(op.name == "resized_crop" for op in ops):
            ratio = f" (side x {FIT_RATIO:.4g})" if self.fit == "crop" else ""
            geometry.insert(0, f"fit {self.fit}{ratio}")
        nearest = self.interpolation == "nearest"
        taps = "nearest pixel"
        if not nearest:
            taps = "level 2^floor(log2 step), kernel of 1 or 3 taps an axis (7 under blur), one linear read"
        order = " > ".join(self.pointwise)
        lines = [
            f"{'train' if self.train else 'eval'} {self.size[0]} x {self.size[1]} x {self.channels}",
            f"G geometry   {' > '.join(geometry)} -> one matrix",
            f"S filter     {' | '.join([taps, *of('S')])}; border {self.border}",
            f"W window     slope, intercept > window{''.join(f' ({op})' for op in of('W'))} > [0, 1]",
            f"P pointwise  {' | '.join(of('P')) or 'none'}{f' (order {order})' if of('P') else ''}",
            "F fields     none",
            f"N noise      {' | '.join(of('N')) or 'none'}",
            f"  output     clip > {self.channels} channels > (x - {list(self.mean)}) / {list(self.std)} > float32",
        ]
        if source_size is not None and not nearest:
            lines[3:3] = self._filters(source_size)
        return "\n".join(lines)

    def _filters(self, source_size: Sequence[int]) -> list[str]:
        matrix = self.eval().draw(None, source_size=source_size).matrix
        blurs = [op.ranges["range"][1] for op in self.ops if op.name == "blur"] if self.train else []
        lines = []
        for sigma in (0.0, *blurs):
            filters = plan(matrix, sigma)
            told = [
                f"{axis}: step {math.hypot(*row):.4g}, level {f.factor}, kernel "
                + " ".join(f"{w:.4g}" for w in f.kernel)
                for axis, row, f in zip("yx", matrix[:2, :2].tolist(), filters, strict=True)
            ]
            reads = reads_of(filters)
            twice = reads > MOST_READS and any(f.factor > 1 for f in filters)
            told.append(f"{reads} reads a pixel" + (", on a GPU a second pass for the level" if twice else ""))
            lines.append(f"  {f'blur {sigma:g}' if sigma else 'no blur':<11}{'; '.join(told)}")
        return lines

    def __repr__(self) -> str:
        return f"Policy({self.config}, size={self.size}, channels={self.channels}, train={self.train})"


def check_order(ops: Sequence[Op]) -> None:
    """Refuses an order that one pass cannot express.

    Geometry commutes with everything that acts on values; blur also with brightness and contrast (affine, unclipped),
    not with gamma. The window comes before what acts on [0, 1], output-pixel noise after everything else.
    """
    late = {"blur": ("gamma", "noise"), "window": (*POINTWISE, "rand", "noise"), "rand": ("noise",)}
    late |= {op.name: ("noise",) for op in ops if op.kind in ("G", "P")}
    seen: list[str] = []
    for op in ops:
        if wrong := [name for name in seen if name in late.get(op.name, ())]:
            raise HilumError(
                f"{op.name} after {wrong[0]} cannot be done in one pass",
                where="the recipe's augment section",
                fix=f"write {op.name} before {wrong[0]}",
            )
        seen.append(op.name)


def _size(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else (int(n) for n in size)
    if min(height, width) < 1:
        raise HilumError(f"the output size is {height} x {width}", fix="both sides at least 1")
    return height, width


def _per_channel(values: float | Sequence[float], channels: int, name: str) -> tuple[float, ...]:
    row = tuple(float(v) for v in (values if isinstance(values, Sequence) else (values,)))
    if len(row) not in (1, channels) or (name == "std" and not min(row) > 0):
        raise HilumError(
            f"{name} is {list(row)} for {channels} channels", fix="one number, or one a channel; std above 0"
        )
    return row


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
