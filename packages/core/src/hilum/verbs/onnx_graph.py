"""The evaluation transform as tensor operations alone, so that it can stand inside an exported graph; and the graph.

Both reductions of hilum (area average to the cache's side, then the fit with its minification filter) are linear and
separable: y = W_y x W_x^T, with W built from the image's height and width inside the graph. Positions are float64, as
in :mod:`hilum.augment.sampling`; only weights are float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from hilum.augment.laws import FIT_RATIO
from hilum.core.errors import HilumError, MissingExtra
from hilum.core.objective import Objective
from hilum.core.types import Batch
from hilum.verbs.deployed import Preprocessing

OPSET: Final = 18
INPUTS: Final = ("image", "window_centre", "window_width")
ONE_FILE: Final = 1_800_000_000  # bytes of weights; protobuf ends at 2 GiB, larger weights go into a second file
WHOLE: Final = 1e-9  # a number this little above a whole one is that whole one, as in sampling


class ExportedModel(nn.Module):
    """(image (N,1,H,W) modality values, window_centre (N,), window_width (N,)) -> scores (N,F)."""

    def __init__(self, objective: Objective, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.objective, self.preprocessing = objective, InGraph(preprocessing)

    def forward(self, image: Tensor, window_centre: Tensor, window_width: Tensor) -> Tensor:
        x = self.preprocessing(image, window_centre, window_width)
        return self.objective.predict(Batch({self.preprocessing.view: x})).scores


class InGraph(nn.Module):
    """:class:`Preprocessing` for a batch of one-channel images of equal size, at least 2 x 2."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        p = self.p = preprocessing
        self.view = p.view
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(p, name)).reshape(1, -1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, image: Tensor, window_centre: Tensor, window_width: Tensor) -> Tensor:
        x = image[:, 0]
        axes = self._axes(x.shape[1], x.shape[2])
        rows, columns = (axis.weights(self.p.border, nearest=self.p.interpolation == "nearest") for axis in axes)
        low = (window_centre - 0.5 * window_width)[:, None, None]
        width = window_width[:, None, None]
        if self.p.border in ("border", "reflect"):
            y = rows @ x @ columns.T
        else:  # inside weights sum to less than 1 at the border; what they lack sees the fill value
            fill = background(x, *axes) if self.p.border == "background" else torch.full_like(low, float(self.p.border))
            y = rows @ (x - fill) @ columns.T + fill
        step = (y > low).to(y.dtype)
        shown = torch.where(width == 0, step, (y - low) / torch.where(width == 0, torch.ones_like(width), width))
        return (shown.clamp(0, 1)[:, None].expand(-1, self.p.channels, -1, -1) - self.mean) / self.std

    def _axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        """Both axes: source size, size after the area average, output size, and the fit's scale and offset."""
        source = [torch.full((1,), n, dtype=torch.int64) for n in (height, width)]
        cached, out = self._cached(*source), self.p.size
        sizes = [c.double() for c in cached]
        steps = [c / m for c, m in zip(sizes, out, strict=True)]
        if self.p.fit == "squash":
            offsets = [0.5 * step - 0.5 for step in steps]
        else:
            crop = self.p.fit == "crop"
            step = torch.minimum(*steps) / FIT_RATIO if crop else torch.maximum(*steps)
            steps = [step, step]
            offsets = [(c - 1.0) / 2.0 - step * ((m - 1.0) / 2.0) for c, m in zip(sizes, out, strict=True)]
        y, x = (Axis(*told) for told in zip((height, width), sizes, out, steps, offsets, strict=True))
        return y, x

    def _cached(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`hilum.data.reduce.reduced_size` in whole numbers."""
        if self.p.cache_side is None:
            return height, width
        side = torch.full_like(height, self.p.cache_side)
        short, long = torch.minimum(height, width), torch.maximum(height, width)
        other = torch.div(2 * long * side + short, 2 * short, rounding_mode="floor")
        kept = short <= side
        return (
            torch.where(kept, height, torch.where(height <= width, side, other)),
            torch.where(kept, width, torch.where(height <= width, other, side)),
        )


class Axis:
    """One axis: ``source`` pixels become ``cached`` ones, which are read at ``step`` q + ``offset`` for output q."""

    def __init__(self, source: int, cached: Tensor, out: int, step: Tensor, offset: Tensor) -> None:
        self.cached, self.out, self.step, self.offset = cached, out, step, offset
        self.pixels = torch.arange(source, dtype=torch.int64)
        self.k = self.pixels.float()
        self.n = torch.full((1,), source, dtype=torch.float64)
        self.share = self.n / cached  # source pixels under one cached pixel

    def weights(self, border: str | float, *, nearest: bool) -> Tensor:
        """(out, source) float32: how much each source pixel counts in each output pixel; what lies outside is left
        out, or folded in where ``border`` is ``border`` or ``reflect``."""
        q = torch.arange(self.out, dtype=torch.float64)
        if nearest:
            at = torch.floor(self.step * q + self.offset + 0.5)
            at = at.clamp(torch.zeros_like(self.cached), self.cached - 1.0) if border == "border" else at
            edges = [self._covered(place * self.share, border) for place in (at, at + 1.0)]
            return (edges[1] - edges[0]) / self.share.float()
        factor, side, centre = self._filter()
        u = (self.step * q + self.offset + 0.5) / factor - 0.5
        left, block = torch.floor(u), factor * self.share  # source pixels under one pixel of the level
        far, zero = u - left, torch.zeros_like(u)
        pair = torch.stack([zero, 1.0 - far, far, zero])  # of the four pixels left - 1 .. left + 2
        shares = centre * pair + side * torch.stack([1.0 - far, far, 1.0 - far, far])
        edges = [self._covered((left + i) * block, border) for i in range(-1, 4)]
        read = torch.zeros_like(edges[0])
        for share, before, after in zip(shares, edges, edges[1:], strict=False):
            read = read + (share / block).float()[:, None] * (after - before)
        return read + self._folded(left, shares, factor) if border == "border" else read

    def _filter(self) -> tuple[Tensor, Tensor, Tensor]:
        """:func:`hilum.augment.filters.axis_filter` without blur: block, and the kernel's side and centre weight."""
        levels = 2.0 ** torch.arange(17, dtype=torch.float64)
        factor = torch.where(self.step >= levels * (1.0 - WHOLE), levels, torch.ones_like(levels)).amax(0, keepdim=True)
        rho = self.step / factor
        t = torch.where(rho > 1.0 + WHOLE, (rho * rho - 1.0) / 6.0, torch.zeros_like(rho))
        return factor, t / 2.0, 1.0 - t

    def _covered(self, place: Tensor, border: str | float) -> Tensor:
        """(out, source) how much of each source pixel lies before ``place`` (out,), in edge coordinates; of the image
        repeated in mirrors where ``border`` is ``reflect``. Whole and fractional part are split for float32's sake."""
        turns = torch.zeros_like(place)
        if border == "reflect":
            turns = torch.floor(place / (2.0 * self.n))
            place = place - 2.0 * self.n * turns
        whole = torch.floor(place)
        part, whole = (place - whole).float()[:, None], whole.float()[:, None]
        before = ((whole - self.k) + part).clamp(0.0, 1.0)
        if border != "reflect":
            return before
        mirrored = ((whole - (2.0 * self.n.float() - 1.0 - self.k)) + part).clamp(0.0, 1.0)
        return before + mirrored + 2.0 * turns.float()[:, None]

    def _folded(self, left: Tensor, shares: Tensor, factor: Tensor) -> Tensor:
        """What the four blocks from left - 1 see beyond the image, given to the first and the last cached pixel."""
        block = left + torch.arange(-1.0, 3.0, dtype=torch.float64)[:, None]
        below = (shares * (block < 0).double()).sum(0)
        above = (shares * (block + 1.0 - self.cached / factor).clamp(0.0, 1.0)).sum(0)
        return torch.stack([below, above], 1).float() @ self.edges()

    def edges(self) -> Tensor:
        """(2, source) weights of the first and of the last cached pixel."""
        start = torch.cat([torch.zeros_like(self.n), self.n - self.share])
        return (self._covered(start + self.share, 0.0) - self._covered(start, 0.0)) / self.share.float()

    def along(self, lines: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 2, source) averaged to cached pixels along this axis: (N, 2, source), of which those in the mask
        (source,) exist. Through running sums, so that no matrix of source x source is made."""
        values = lines.double()
        sums = torch.cat([torch.zeros_like(values[:, :, :1]), values], 2).cumsum(2)
        place = torch.arange(lines.shape[2] + 1, dtype=torch.float64) * self.share
        at = torch.minimum(torch.floor(place), self.n - 1.0)
        before = sums[:, :, at.long()] + (torch.minimum(place, self.n) - at) * values[:, :, at.long()]
        return before.diff(dim=2) / self.share, self.pixels.double() < self.cached


def background(x: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """(N, 1, 1) median of the outermost pixels of the area-averaged image."""
    across, there = columns.along(rows.edges() @ x)
    down, exists = rows.along((x @ columns.edges().T).transpose(1, 2))
    inner = exists & (rows.pixels > 0) & (rows.pixels.double() < rows.cached - 1.0)  # corners stand in ``across``
    ring = torch.cat([across.flatten(1), down.flatten(1)], 1)
    mask = torch.cat([there, there, inner, inner])
    count = mask.long().sum()
    ordered = torch.sort(torch.where(mask, ring, torch.full_like(ring, torch.inf)), dim=1).values
    middle = torch.stack([torch.div(count - 1, 2, rounding_mode="floor"), torch.div(count, 2, rounding_mode="floor")])
    return ordered[:, middle].mean(1).float()[:, None, None]


def write_graph(objective: Objective, preprocessing: Preprocessing, path: Path, *, about: Mapping[str, str]) -> None:
    """``path``: an ONNX file of :class:`ExportedModel` with dynamic N, H, W and ``about`` as its metadata.

    Above 1.8 GB of weights they stand beside it in ``PATH.data``.
    """
    _needs("onnx", "onnxscript")
    graph = ExportedModel(objective, preprocessing).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        program = torch.onnx.export(
            _traced(graph), dynamo=True, opset_version=OPSET, input_names=INPUTS, output_names=["scores"], verbose=False,
            dynamic_shapes=_shapes(),  # known already; gives the axes their names
        )  # fmt: skip
        assert program is not None
        program.model.metadata_props.update(about)
        weights = sum(p.numel() * p.element_size() for p in graph.parameters())
        program.save(path, external_data=weights > ONE_FILE)


def _traced(graph: ExportedModel) -> Any:
    """Traced with free N, H and W: by running the Python once, or where that fixes a size, from its bytecode."""
    example = (torch.zeros(2, 1, 53, 71), torch.zeros(2), torch.ones(2))
    for strict in (False, True):
        try:
            return torch.export.export(graph, example, dynamic_shapes=_shapes(), strict=strict)
        except Exception as error:  # the tracers raise kinds of their own for what they cannot follow
            reason = error
    raise HilumError(
        f"this model cannot be written as an ONNX graph: {str(reason).strip().splitlines()[0]}",
        where=type(graph.objective).__name__, fix="hilum export RUN --to safetensors",
    ) from reason  # fmt: skip


def _shapes() -> tuple[dict[int, Any], ...]:
    batch, height, width = (
        torch.export.Dim(name, min=low, max=65535) for name, low in (("batch", 1), ("height", 2), ("width", 2))
    )
    return {0: batch, 2: height, 3: width}, {0: batch}, {0: batch}


def open_graph(path: Path) -> Any:
    """An onnxruntime session on the CPU."""
    _needs("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(session: Any, image: Tensor, centre: Tensor, width: Tensor) -> Tensor:
    """Scores (N, F) of images (N, 1, H, W) under windows (N,)."""
    feed = zip(INPUTS, (image, centre, width), strict=True)
    return torch.from_numpy(session.run(["scores"], {name: value.float().numpy() for name, value in feed})[0])


def _needs(*packages: str) -> None:
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, extra="export", wanted_by="hilum export --to onnx")
