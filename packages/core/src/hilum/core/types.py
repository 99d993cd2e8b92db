"""Every contract of hilum in one place: data that flows, and Protocols that give it shape.

Letters in shapes: B batch, T frames, V views, C channels, D/H/W voxels or pixels, N tokens, P prefix
tokens, E width, S text tokens, K kept tokens. Importing this module imports torch and numpy, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# ---------------------------------------------------------------------------------------------------------
# Samples
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SampleKey:
    """What every random draw for a sample is keyed by (FORMATS 10).

    ``sample`` is the first 32 bits of ``sample_id``, not a row number, so subsets and replays keep their draws.
    """

    run_seed: int
    epoch: int
    sample: int

    @staticmethod
    def of(run_seed: int, epoch: int, sample_id: str) -> SampleKey:
        return SampleKey(run_seed, epoch, int(sample_id[:8], 16))


@dataclass(frozen=True, slots=True)
class Request:
    """One sample asked of a source. ``partners`` are rows chosen by the plan (mixup, pairs), never by permuting a batch."""

    row: int
    key: SampleKey
    partners: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """How modality values become [0, 1], polarity included.

    ``linear``: (x - lo) / (hi - lo), clipped. ``sigmoid``: 1 / (1 + exp(-4 (x - (lo+hi)/2) / (hi-lo))).
    ``table``: ``table[clip(round(x) - lo, 0, len-1)]``, entries already in [0, 1].
    DICOM's LINEAR (centre c, width w) is lo = c - 0.5 - (w-1)/2, hi = c - 0.5 + (w-1)/2 (PS3.3 C.11.2.1.2).
    """

    lo: float
    hi: float
    kind: Literal["linear", "sigmoid", "table"] = "linear"
    table: tuple[float, ...] = ()
    source: str = ""  # "window 0 (NORMAL)", "voi lut 0", "range p0.5-p99.5"


@dataclass(frozen=True, slots=True)
class Pixels:
    """A decoded image: stored values beside the affine that makes them physical.

    ``stored`` (F,H,W) or (F,H,W,C) in the stored dtype (palette expanded, colour RGB). Modality values are
    ``stored * slope + intercept``. Polarity is folded in: for an image that displays inverted, slope and intercept
    are negated and the window mirrored, so larger always means brighter.
    """

    stored: NDArray[Any]
    slope: float = 1.0
    intercept: float = 0.0
    window: Window | None = None
    spacing_mm: tuple[float, ...] | None = None  # (row, column)
    unit: str | None = None
    valid: NDArray[np.bool_] | None = None  # (F,H,W), False on padding
    inverted: bool = False
    provenance: Mapping[str, str] = field(default_factory=dict)  # codec, codec_version, window, voi_lut


@dataclass(slots=True)
class ViewGeometry:
    """How a view came from its source: ``matrix`` maps output pixel centres to source pixel centres, homogeneous."""

    size: tuple[int, ...]
    source_size: tuple[int, ...]
    matrix: NDArray[np.float64] | None = None
    flips: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] | None = None
    affine: NDArray[np.float64] | None = None  # LPS mm
    unit: str | None = None
    K: NDArray[np.float64] | None = None
    world_to_camera: NDArray[np.float64] | None = None


@dataclass(slots=True)
class Meta:
    """Plain Python beside the tensors. Holds no header value and no path."""

    sample_id: str
    group_id: str
    site: str = ""
    key: SampleKey | None = None
    geometry: dict[str, ViewGeometry] = field(default_factory=dict)
    time_s: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)  # "slope" "intercept" "window" per view, "draws" of the policy


@dataclass(slots=True)
class Sample:
    """One sample on the CPU: un-normalised, physical units. Strings are tokenised in collate."""

    views: dict[str, Any]  # Tensor | str | list[str]
    targets: dict[str, Tensor]
    meta: Meta


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that could not be delivered: a recorded failure, never a shorter epoch."""

    sample_id: str
    reason: str
    message: str = ""


@dataclass(slots=True)
class Ragged:
    """Packed rows of different length: tokens, tiles, RoIs, points, or images of different size.

    ``data`` (sum N, ...); ``lengths`` (B,). For images ``grid`` (B,2) holds (H, W) and data is (sum H*W, C).
    """

    data: Tensor
    lengths: Tensor
    grid: Tensor | None = None
    positions: Tensor | None = None

    @staticmethod
    def of(rows: Sequence[Tensor], *, grid: Sequence[Sequence[int]] | None = None) -> Ragged:
        """Pack tensors (N_b, ...) that agree on all but their first dimension."""
        lengths = torch.tensor([len(r) for r in rows])
        return Ragged(torch.cat(list(rows)), lengths, None if grid is None else torch.as_tensor(grid))

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self) -> list[Tensor]:
        return list(torch.split(self.data, self.lengths.tolist()))

    def to(self, device: Any, **kwargs: Any) -> Ragged:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Ragged(**{k: v.to(device, **kwargs) if isinstance(v, Tensor) else v for k, v in moved.items()})

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Ragged)
            and torch.equal(self.lengths, other.lengths)
            and torch.equal(self.data, other.data)
        )


View: TypeAlias = "Tensor | Ragged"


@dataclass(slots=True)
class Batch:
    """What an objective sees.

    ``views``: "image" (B,C,H,W), "volume" (B,C,D,H,W), "video" (B,T,C,H,W), "depth" metres, "thermal" kelvin,
    "points" metres, "text" (B,S) or (B,M,S); "image/0", "image/1", ... are crops of any size. ``valid`` says which
    entries of a target (same shape) or tokens of a view count. ``norm`` holds the (mean, std) a view was normalised
    with. ``bad`` lists samples that were asked for and could not be delivered; ``expected`` counts both.
    """

    views: dict[str, View]
    targets: dict[str, Tensor] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    meta: list[Meta] = field(default_factory=list)
    cameras: dict[str, Tensor] = field(default_factory=dict)
    streams: dict[str, Batch] = field(default_factory=dict)
    norm: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    bad: list[BadSample] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)  # tensors an objective's prepare adds: masks, teacher features

    @property
    def size(self) -> int:
        if self.meta:
            return len(self.meta)
        return next((len(v) for v in self.views.values()), 0)

    @property
    def expected(self) -> int:
        return self.size + len(self.bad)

    def with_(self, **changes: Any) -> Batch:
        return replace(self, **changes)

    def to(self, device: Any, **kwargs: Any) -> Batch:
        def move(value: Any) -> Any:
            if isinstance(value, Tensor | Ragged | Batch):
                return value.to(device, **kwargs)
            if isinstance(value, dict):
                return {k: move(v) for k, v in value.items()}
            return value

        moved = {n: move(getattr(self, n)) for n in ("views", "targets", "valid", "cameras", "streams", "extra")}
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        def pin(value: Any) -> Any:
            if isinstance(value, Ragged):
                return replace(value, data=value.data.pin_memory())
            if isinstance(value, Tensor | Batch):
                return value.pin_memory()
            if isinstance(value, dict):
                return {k: pin(v) for k, v in value.items()}
            return value

        return replace(self, **{n: pin(getattr(self, n)) for n in ("views", "targets", "valid", "cameras", "streams")})


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """Names of findings or classes, with what a text encoder needs and the counts that weighting needs.

    ``counts[split][name]`` = (positive, negative, unknown) over the rows that the source really serves.
    """

    names: tuple[str, ...]
    task: str = "multilabel"  # multilabel | multiclass | binary
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[str, tuple[int, int, int]]] = field(default_factory=dict)
    lateral: frozenset[str] = frozenset()  # names whose meaning changes under a left-right flip


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """What an objective asks of a view: ``kind`` (image, volume, video, depth, thermal, points, text), axes, unit."""

    kind: str
    axes: str = "CHW"
    unit: str | None = None


# ---------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What must be known of an encoder without running it. ``supports`` lists optional arguments of ``forward``."""

    embed_dim: int
    pooled_dim: int
    kind: str = "image"
    patch: tuple[int, ...] | None = None
    in_channels: int = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    value_range: tuple[float, float] = (0.0, 1.0)  # before mean/std
    layer_dims: tuple[int, ...] = ()
    num_prefix: int = 0
    licence: str = "unknown"
    source: str = "random initialisation"
    sha256: str | None = None
    supports: frozenset[str] = frozenset()  # of: keep fill valid context layers taps stop checkpointing export


@dataclass(slots=True)
class FeatureMap:
    """Tokens (B, N_l, E_l) of one layer before the final norm, with their grid."""

    tokens: Tensor
    grid: tuple[int, ...] | None = None

    def map(self) -> Tensor:
        """(B, E, *grid)."""
        assert self.grid is not None, "these tokens have no grid"
        batch, _, width = self.tokens.shape
        return self.tokens.transpose(1, 2).reshape(batch, width, *self.grid)


@dataclass(slots=True)
class Features:
    """An encoder's result. ``tokens`` (B,N,E) after the final norm, without prefix; ``prefix`` (B,P,E);
    ``pooled`` (B, pooled_dim); ``ids`` (B,K) positions of the tokens where only some were kept;
    ``taps`` block name -> (B, heads, N, N) pre-softmax attention; ``layers`` before the final norm."""

    tokens: Tensor
    pooled: Tensor
    grid: tuple[int, ...] | None = None
    valid: Tensor | None = None
    lengths: Tensor | None = None
    prefix: Tensor | None = None
    ids: Tensor | None = None
    taps: dict[str, Tensor] = field(default_factory=dict)
    layers: list[FeatureMap] = field(default_factory=list)

    def map(self) -> Tensor:
        """(B, E, *grid)."""
        return FeatureMap(self.tokens, self.grid).map()


@dataclass(slots=True)
class State:
    """What flows between the blocks of a token model. ``x`` (B, P+N, E)."""

    x: Tensor
    num_prefix: int = 0
    grid: tuple[int, ...] | None = None
    positions: Tensor | None = None
    valid: Tensor | None = None  # (B, P+N) bool
    attention: Tensor | None = None  # additive bias broadcastable to (B, heads, N, N)
    modality: Tensor | None = None
    context: Any = None
    cache: dict[str, Any] | None = None
    taps: dict[str, Tensor] | None = None  # names asked for, filled by attend


@runtime_checkable
class Block(Protocol):
    """One residual block, split so that a second reader can stand between attention and feed-forward."""

    def attend(self, state: State, *, mix: Any = None) -> State: ...
    def feed(self, state: State) -> State: ...


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a network that adapters, merging and routing address by role ("q", "v", "ffn", "block"...).

    ``rows`` is the slice of the output rows where the role is part of a fused projection (fused qkv), else None.
    """

    path: str
    parent: nn.Module
    name: str
    module: nn.Module
    rows: slice | None = None


@runtime_checkable
class Encoder(Protocol):
    """A network that turns one view into :class:`Features`. ``forward`` IS the call: sharding, compile and export see only it.

    ``keep`` (B,K) long: visible tokens only; ``fill``: (B,N) bool, replaced by a mask token after patch embedding;
    ``context``: cross-attention input, timestep, selection; ``layers``: block indices to return; ``taps``: block names
    whose pre-softmax attention is returned; ``stop``: run only blocks below this index.
    What an encoder does not support raises :class:`~hilum.core.errors.Unsupported`.
    """

    spec: EncoderSpec

    def __call__(
        self,
        x: Any,
        *,
        valid: Tensor | None = None,
        keep: Tensor | None = None,
        fill: Tensor | None = None,
        context: Any = None,
        layers: Sequence[int] = (),
        taps: Sequence[str] = (),
        stop: int | None = None,
    ) -> Features: ...


@dataclass(slots=True)
class Prediction:
    """What evaluate, predict and export read: ``logits`` before and ``scores`` after the link, each (B, F)."""

    scores: Tensor
    logits: Tensor | None = None
    names: tuple[str, ...] = ()
    maps: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------
# Learning
# ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Term:
    """One loss term as an unnormalised ``sum`` over ``count`` items; the loop forms the exact mean over ranks and
    micro-batches. ``count`` is a tensor without gradient."""

    sum: Tensor
    count: Tensor
    weight: float = 1.0

    @property
    def mean(self) -> Tensor:
        """sum / count, and 0 where nothing counted; counts may be fractional (token weights)."""
        return self.sum / torch.where(self.count > 0, self.count, torch.ones_like(self.count))


@dataclass(slots=True)
class StepOutput:
    """What an objective's forward returns. ``logs`` are scalars to record (their mean over micro-batches is);
    ``outputs`` go to ``after_step``, tensors of several micro-batches end to end. Term names never change."""

    terms: dict[str, Term]
    logs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)

    def loss(self) -> Tensor:
        """The local weighted mean (what one process without accumulation would minimise)."""
        total: Tensor = sum((t.weight * t.mean for t in self.terms.values()), start=torch.zeros(()))
        return total


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. ``step`` counts optimiser steps, ``samples`` delivered samples over all ranks."""

    step: int = 0
    total_steps: int = 1
    epoch: int = 0
    total_epochs: int = 1
    stage: int = 0
    task: int = 0
    samples: int = 0

    @property
    def fraction(self) -> float:
        return self.step / max(self.total_steps, 1)


class Source(Protocol):
    """A map-style collection of samples over an index."""

    labels: LabelSpace | None

    @property
    def index(self) -> Any: ...
    def __len__(self) -> int: ...
    def __getitem__(self, request: Request) -> Sample: ...


class Plan(Protocol):
    """Which samples make up each GLOBAL step, free of world size."""

    def steps(self, epoch: int) -> Iterator[dict[str, list[Request]]]: ...
    def steps_per_epoch(self, epoch: int = 0) -> int: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


# ---------------------------------------------------------------------------------------------------------
# Intake
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that are checked before memory is asked for."""

    max_pixels: int = 1 << 29  # rows x columns x frames x samples
    max_bytes: int = 4 << 30
    seconds: float = 60.0
    inflate_ratio: float = 1000.0
    depth: int = 32


@dataclass(slots=True)
class IndexRow:
    """One file's row of ``index.parquet`` before identifiers are keyed.

    ``columns`` holds FORMATS 5 columns. ``identity`` holds what must be hashed and dropped, by role: "group" ((issuer,
    patient id) or None), "study", "series", "sample", and join keys "sop_instance_uid" "study_instance_uid" "accession"
    "patient_id" "issuer", and "refers_to" (list of the series that a label marks).
    """

    status: Literal["indexed", "skipped", "quarantined"]
    reason: str = ""
    message: str = ""
    columns: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    member: str = ""  # path inside an archive
    thumbnail: NDArray[np.uint8] | None = None


@runtime_checkable
class Intake(Protocol):
    """Reads one family of files. Core's ``index`` runs it in isolated workers under :class:`Limits`.

    ``problems`` sees of the rows of one series who they are and where they lie, not their statistics. An intake may have
    ``volume_options`` (name -> help, for ``hilum index --volumes``); ``problems`` then takes those that the user
    named as a second argument, a frozenset.
    """

    name: str

    def claims(self, path: Path, head: bytes) -> float: ...
    def read(self, path: Path, limits: Limits) -> list[IndexRow]: ...
    def open(self, path: Path, row: Mapping[str, Any]) -> Pixels: ...
    def problems(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]: ...


# ---------------------------------------------------------------------------------------------------------
# Language, experts, once-per-sample work, evaluation
# ---------------------------------------------------------------------------------------------------------


class Tokenizer(Protocol):
    fingerprint: str

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Any]: ...  # ids (B,S), valid (B,S), offsets


@dataclass(slots=True)
class LMOutput:
    """Hidden states (B,S,E) after the final norm; ``cache`` to go on from; ``layers`` and ``taps`` as for encoders."""

    hidden: Tensor
    cache: Any = None
    layers: list[Tensor] = field(default_factory=list)
    taps: dict[str, Tensor] = field(default_factory=dict)


class LanguageModel(Protocol):
    spec: EncoderSpec
    tokenizer: Tokenizer

    def embed(self, ids: Tensor) -> Tensor: ...
    def __call__(self, x_BSE: Tensor, *, valid: Tensor | None = None, **kwargs: Any) -> LMOutput: ...
    def logits(self, hidden: Tensor) -> Tensor: ...
    def generate(
        self, batch: Batch, *, num: int, max_new: int, temperature: float, key: SampleKey, **kwargs: Any
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class Reply:
    text: str
    provenance: Mapping[str, str] = field(default_factory=dict)


class ChatModel(Protocol):
    def reply(
        self, messages: Sequence[Mapping[str, Any]], *, media: Any = None, key: SampleKey | None = None, **decoding: Any
    ) -> Reply: ...


@dataclass(frozen=True, slots=True)
class ExpertCard:
    """What a model that others call must declare of itself."""

    name: str
    does: str
    modality: tuple[str, ...]
    arguments: Mapping[str, str] = field(default_factory=dict)
    licence: str = "unknown"
    sha256: str | None = None


@dataclass(slots=True)
class ExpertResult:
    text: str
    maps: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)


class Expert(Protocol):
    card: ExpertCard

    def run(self, batch: Batch, **args: Any) -> list[ExpertResult]: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """One record's result of a :class:`RecordOp`: new values, whether to keep the record, and why not."""

    values: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = True
    reason: str = ""
    raw: str = ""


class RecordOp(Protocol):
    name: str
    version: str
    cost: str  # cheap | model | set

    def run(self, records: Sequence[Mapping[str, Any]]) -> list[Outcome]: ...


class SampleStore(Protocol):
    """Per-sample tensors kept beside a study under a fingerprint; a wrong fingerprint raises."""

    fingerprint: str

    def get(self, sample_id: str, slot: str = "") -> Tensor: ...
    def put(self, sample_id: str, value: Tensor, slot: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Metric:
    """A number with its 95 % interval, or the reason why there is none."""

    value: float | None
    lo: float | None = None
    hi: float | None = None
    n: int = 0
    n_groups: int = 0
    reason: str = ""  # why not computable


class Probe(Protocol):
    """Judges frozen features (N,E): ``fit`` on training rows, ``score`` on rows of other groups.

    ``labelled``: whether it needs targets ``y`` (N,F); one that does not gets None, and scores the rows it is given.
    ``summary`` picks of what ``score`` returned the numbers worth a curve over training, by name ("" for the only one).
    """

    labelled: bool

    def fit(self, x: Tensor, y: Tensor | None, groups: Sequence[str]) -> Probe: ...
    def score(self, x: Tensor, y: Tensor | None, groups: Sequence[str]) -> Any: ...
    def summary(self, scored: Any) -> Mapping[str, float]: ...


class Benchmark(Protocol):
    roles: tuple[str, ...]

    def run(self, roles: Mapping[str, Any], source: Source, *, split: str, seed: int) -> Any: ...


class Inferer(Protocol):
    """Windows, flips or views around ``predict``."""

    def __call__(self, predict: Any, batch: Batch) -> Prediction: ...
