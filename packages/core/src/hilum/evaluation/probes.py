"""Frozen features judged: a linear probe, a nearest-neighbour probe, and the effective rank of the features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hilum.core.errors import HilumError, LeakError
from hilum.evaluation.predictions import Predictions
from hilum.evaluation.report import Report, evaluate

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def rankme(x: Tensor) -> float:
    """exp of the entropy of the normalised singular values of ``x`` (N,E): RankMe (Garrido et al. 2023, eq. 1 and 2).

    Between 1 (all rows on one line) and min(N, E). Not centred, as published. Raises for NaN or an all-zero matrix.
    """
    values = torch.linalg.svdvals(x.detach().to(torch.float64))
    if not torch.isfinite(values).all() or values.sum() == 0:
        raise HilumError("the rank of these features is not defined", fix="they are all zero or hold NaN")
    p = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(p, p).sum()))


class RankMe:
    """:func:`rankme` of the rows it is given; needs no labels and learns nothing."""

    labelled = False

    def fit(self, x: Tensor, y: Tensor | None = None, groups: Sequence[str] = ()) -> RankMe:
        return self

    def score(self, x: Tensor, y: Tensor | None = None, groups: Sequence[str] = ()) -> float:
        return rankme(x)

    def summary(self, scored: float) -> dict[str, float]:
        return {"": scored}


def _checked(x: Tensor, y: Tensor, groups: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Features float64 (N,E), targets with 0 for unknown (N,F), known (N,F)."""
    y = y[:, None] if y.ndim == 1 else y
    if x.ndim != 2 or len(x) != len(y) or len(groups) != len(y):
        raise HilumError(f"features {tuple(x.shape)}, targets {tuple(y.shape)} and {len(groups)} groups do not fit")
    if not torch.isfinite(x).all():
        raise HilumError("features hold NaN or infinite values", fix="the encoder has diverged: nothing can be probed")
    known = (y == 0) | (y == 1)
    return x.detach().to(torch.float64), torch.where(known, y, 0).to(torch.float64), known


class _Fitted:
    """Names, groups and refusals that both probes share."""

    labelled = True
    groups: frozenset[str]
    refused: dict[int, str]

    def predict(self, x: Tensor) -> Tensor:
        raise AttributeError("a probe defines predict")

    def _remember(self, y: Tensor, known: Tensor, groups: Sequence[str]) -> None:
        self.groups = frozenset(groups)
        positive, negative = ((known & (y == c)).any(0) for c in (1, 0))
        self.refused = {
            f: f"never trained: no {'positive' if not positive[f] else 'negative'} row to learn from"
            for f in range(y.shape[1])
            if not (positive[f] and negative[f])
        }

    def score(
        self,
        x: Tensor,
        y: Tensor,
        groups: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        split: str = "val",
        n: int = 1000,
        seed: int = 0,
    ) -> Report:
        """The report on rows whose groups the probe has not seen; a shared group raises :class:`LeakError`."""
        if shared := self.groups & frozenset(groups):
            raise LeakError(
                f"{len(shared)} groups are both fitted and scored", fix="probe on groups that stand in another split"
            )
        y = y[:, None] if y.ndim == 1 else y
        labels = tuple(names) if names is not None else tuple(str(f) for f in range(y.shape[1]))
        made = Predictions.of(
            sample_id=[f"{i:08x}" for i in range(len(x))],
            group_id=groups,
            split=split,
            names=labels,
            targets=y.cpu().numpy(),
            scores=self.predict(x).cpu().numpy(),
        )
        return evaluate(made, n=n, seed=seed, refused={labels[f]: reason for f, reason in self.refused.items()})

    def summary(self, scored: Report) -> dict[str, float]:
        """The macro AUROC, where it is computable."""
        macro = scored.macro["auroc"].value
        return {} if macro is None else {"auroc_macro": macro}


class LinearProbe(_Fitted):
    """L2-regularised logistic regression, one column a finding, unknown labels masked.

    Each column minimises mean BCE over its known rows + ``strength`` / 2 |w|^2 on standardised features, intercept free
    (scikit-learn's C = 1 / (n strength)). The strength is chosen per finding by log loss on validation groups: those
    given to ``fit``, else ``holdout`` of the groups, after which it is fitted again on all rows.
    """

    name = "linear"

    def __init__(
        self, strengths: Sequence[float] = STRENGTHS, *, holdout: float = 0.2, seed: int = 0, max_iter: int = 300
    ) -> None:
        self.strengths, self.holdout, self.seed, self.max_iter = tuple(strengths), holdout, seed, max_iter

    def fit(
        self, x: Tensor, y: Tensor, groups: Sequence[str], *, validation: tuple[Tensor, Tensor] | None = None
    ) -> LinearProbe:
        """``x`` (N,E), ``y`` (N,F) 1, 0, -1 or NaN unknown; ``validation``: features and targets of other groups."""
        features, targets, known = _checked(x, y, groups)
        self._remember(targets, known, groups)
        self.mean, self.std = features.mean(0), features.std(0, correction=0).clamp(min=1e-8)
        z = (features - self.mean) / self.std
        rows = known.sum(0).clamp(min=1)
        chosen = torch.full((targets.shape[1],), self.strengths[0], dtype=torch.float64, device=z.device)
        if len(self.strengths) > 1:
            if validation is not None:
                held, held_y, held_known = _checked(*validation, [""] * len(validation[0]))
                parts = z, targets, known, (held - self.mean) / self.std, held_y, held_known
            else:
                out = self._held_out(groups).to(z.device)
                parts = z[~out], targets[~out], known[~out], z[out], targets[out], known[out]
            chosen = self._choose(*parts)
        self.strength = chosen
        self.weight, self.bias = self._solve(z, targets, known / rows, chosen)
        return self

    def _held_out(self, groups: Sequence[str]) -> Tensor:
        names, codes = np.unique(np.asarray(groups), return_inverse=True)
        if len(names) < 2:
            raise HilumError("a probe needs at least two groups to choose its regularisation")
        order = np.random.Generator(np.random.Philox(self.seed)).permutation(len(names))
        held = np.zeros(len(names), dtype=bool)
        held[order[: max(1, round(self.holdout * len(names)))]] = True
        return torch.from_numpy(held[codes])

    def _choose(self, z: Tensor, y: Tensor, known: Tensor, held: Tensor, held_y: Tensor, held_known: Tensor) -> Tensor:
        """The strength with the least validation log loss, per finding; all strengths are solved side by side."""
        s, f = len(self.strengths), y.shape[1]
        grid = torch.tensor(self.strengths, dtype=torch.float64, device=z.device)
        share = known / known.sum(0).clamp(min=1)
        # a rough solution tells strengths a decade apart; the one kept is solved to the end
        weight, bias = self._solve(
            z.float(), y.repeat(1, s).float(), share.repeat(1, s).float(), grid.repeat_interleave(f).float(), rough=True
        )
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            held @ weight.double() + bias.double(), held_y.repeat(1, s), reduction="none"
        )
        return grid[(loss * held_known.repeat(1, s)).sum(0).view(s, f).argmin(0)]

    def _solve(
        self, z: Tensor, y: Tensor, share: Tensor, strength: Tensor, *, rough: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Full-batch L-BFGS; columns are independent problems solved in one go. Weight (E,F), bias (F,).

        Solved along the principal axes of the features, each scaled by the largest curvature the loss can have there
        (a quarter of the variance, plus the penalty): a rotation keeps |w|, and the problem becomes well conditioned.
        """
        variance, axes = torch.linalg.eigh(z.T @ z / len(z))
        turned, scale = z @ axes, (variance.clamp(min=0)[:, None] / 4 + strength).rsqrt()
        theta = torch.zeros(z.shape[1] + 1, y.shape[1], dtype=z.dtype, device=z.device, requires_grad=True)
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        optimiser = torch.optim.LBFGS(
            [theta],
            max_iter=min(self.max_iter, 30) if rough else self.max_iter,
            history_size=20,
            tolerance_grad=1e-4 if rough else 1e-7,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            weight, bias = theta[:-1] * scale, theta[-1] * 2
            value: Tensor = bce(turned @ weight + bias, y, weight=share, reduction="sum")
            value = value + (strength / 2 * weight.square().sum(0)).sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with torch.enable_grad():
            optimiser.step(loss)  # type: ignore[no-untyped-call]
        solved = theta.detach()
        return axes @ (solved[:-1] * scale), solved[-1] * 2

    def logits(self, x: Tensor) -> Tensor:
        """(N,F)."""
        return (x.to(torch.float64) - self.mean) / self.std @ self.weight + self.bias

    def predict(self, x: Tensor) -> Tensor:
        """Probabilities (N,F)."""
        return torch.sigmoid(self.logits(x))


class KNNProbe(_Fitted):
    """Nearest neighbours by cosine: the mean label of the ``k`` nearest, weighted by exp(similarity / temperature).

    The weighting is that of Wu et al. 2018 (eq. in section 3.4), with 0.07 as in DINO. Unknown labels weigh nothing;
    where all k are unknown the score is the training prevalence.
    """

    name = "knn"

    def __init__(self, k: int = 20, *, temperature: float = 0.07, chunk: int = 1024) -> None:
        self.k, self.temperature, self.chunk = k, temperature, chunk

    def fit(self, x: Tensor, y: Tensor, groups: Sequence[str], **_: Any) -> KNNProbe:
        features, self.targets, self.known = _checked(x, y, groups)
        self._remember(self.targets, self.known, groups)
        self.bank = torch.nn.functional.normalize(features.float(), dim=1)
        self.prior = (self.targets * self.known).sum(0) / self.known.sum(0).clamp(min=1)
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Probabilities (N,F)."""
        out = []
        for rows in torch.nn.functional.normalize(x.detach().float(), dim=1).split(self.chunk):  # type: ignore[no-untyped-call]
            similarity, at = (rows @ self.bank.T).topk(min(self.k, len(self.bank)), dim=1)
            # the largest similarity cancels in the quotient; without it exp overflows at small temperatures
            weight = (
                torch.exp((similarity - similarity[:, :1]).double() / self.temperature)[:, :, None] * self.known[at]
            )
            total = weight.sum(1)
            score = (weight * self.targets[at]).sum(1) / total.clamp(min=1e-300)
            out.append(torch.where(total > 0, score.clamp(0, 1), self.prior))
        return torch.cat(out) if out else self.prior.new_zeros(0, len(self.prior))
