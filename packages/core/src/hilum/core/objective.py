"""The seam of learning: an objective maps a batch to loss terms; the one loop does everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hilum.core.errors import ContractError, Unsupported
from hilum.core.types import Batch, LabelSpace, Prediction, Progress, StepOutput, ViewSpec

Take = Callable[[StepOutput, str], None]
"""``take(output, group)``: backward, mean over ranks, clip, guard and optimiser step of one parameter group."""


METHODS = ("prepare", "counts", "forward", "after_step", "predict", "exported")


@dataclass(slots=True)
class Parts:
    """What a recipe hands an objective: built encoders, head and adapters, the label space and the views' settings.

    ``views[name]`` is the recipe's view section (size, channels, ...); ``norm[name]`` the (mean, std) it is normalised
    with. ``seed`` seeds what the objective initialises itself.
    """

    encoders: dict[str, nn.Module]
    head: nn.Module | None = None
    adapters: dict[str, nn.Module] = field(default_factory=dict)
    labels: LabelSpace | None = None
    views: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    norm: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    seed: int = 0

    @property
    def encoder(self) -> nn.Module:
        """The only encoder; an error where a recipe declares several."""
        if len(self.encoders) != 1:
            raise ContractError("this objective takes one encoder", [f"the recipe declares {sorted(self.encoders)}"])
        return next(iter(self.encoders.values()))


class Objective(nn.Module):
    """Base of every objective. Subclasses define :meth:`forward`, :meth:`exported` and, if they can, :meth:`predict`.

    Compose parts; never subclass a concrete objective. Constructors take ``(parts: Parts, *, ...)`` with at most eight
    keyword arguments and call ``super().__init__(parts)``, which makes the recipe's adapters part of what is trained.
    """

    def __init__(self, parts: Parts | None = None) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict(parts.adapters if parts is not None else {})

    @property
    def views(self) -> Mapping[str, ViewSpec]:
        """The views this objective reads."""
        return {"image": ViewSpec("image")}

    def prepare(self, batch: Batch, progress: Progress) -> Batch | list[Batch]:
        """Work without gradient before the forward pass: keyed noise, teacher features, expert calls, roll-outs.

        A list is the micro-batches of one step.
        """
        return batch

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The ``count`` of each term of :meth:`forward`, known before it runs.

        Needed only where a step has several micro-batches: exact means need the total first.
        """
        return {}

    def forward(self, batch: Batch) -> StepOutput:
        """Loss terms of one micro-batch."""
        raise Unsupported(f"{type(self).__name__} cannot be trained: it defines no forward")

    def after_step(self, progress: Progress, outputs: Mapping[str, Any]) -> None:
        """Called on every submodule that defines it, only when the optimiser moved."""

    def predict(self, batch: Batch) -> Prediction:
        """The one thing evaluate, predict and export run."""
        raise Unsupported(
            f"{type(self).__name__} makes no predictions",
            fix="fine-tune an encoder from this run first: hilum finetune RECIPE --init RUN",
        )

    def exported(self) -> dict[str, nn.Module]:
        """What survives training, by name ("encoder" first), adapters merged, original keys.

        ``hilum.objectives.merging.merged`` does this for every objective whose encoder may carry adapters.
        """
        return {}

    # ``step(batch, take)`` is looked up by the loop; only methods that must order their updates define it.


def check_objective(candidate: Any, *, where: str = "") -> None:
    """Raise :class:`ContractError` naming everything that is missing of the objective contract."""
    gaps = [] if isinstance(candidate, nn.Module) else ["must be a torch.nn.Module"]
    absent = [n for n in METHODS if not callable(getattr(candidate, n, None))]
    gaps += [f"method {n} (subclass hilum.core.objective.Objective to inherit it)" for n in absent]
    ordered = callable(getattr(candidate, "step", None))  # calls take(output, group) itself
    if not gaps and not ordered and type(candidate).forward in (nn.Module.forward, Objective.forward):
        gaps.append("method forward(batch) -> StepOutput")
    views = getattr(candidate, "views", None)
    if not isinstance(views, Mapping) or not all(isinstance(v, ViewSpec) for v in views.values()):
        gaps.append("property views -> Mapping[str, ViewSpec]")
    if gaps:
        raise ContractError(f"{type(candidate).__name__} is not an objective", gaps, where=where)
