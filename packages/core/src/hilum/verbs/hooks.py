"""What watches a run: a progress line, MLflow, validation, probes, exports. Hooks read; they change nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hilum.core.contracts import check_probe
from hilum.core.loop import Hook, Loop
from hilum.core.objective import Objective
from hilum.core.registry import registry
from hilum.core.types import Batch, Prediction, Probe
from hilum.parts.gather import rank
from hilum.verbs.inference import predict_batches


class ProgressLine(Hook):
    """One line on a terminal that rewrites itself; elsewhere a line every ``seconds``."""

    def __init__(self, label: str, *, seconds: float = 20.0) -> None:
        self.label, self.seconds = label, seconds
        self.began = self.shown = time.monotonic()
        self.first_step = 0
        self.tty = sys.stderr.isatty()

    def on_fit_start(self, loop: Loop) -> None:
        self.began, self.first_step = time.monotonic(), loop.position.step

    def on_step(self, loop: Loop, logs: Mapping[str, float]) -> None:
        now = time.monotonic()
        last = loop.position.step >= loop.settings.total_steps
        if rank() or (not last and now - self.shown < (0.1 if self.tty else self.seconds)):
            return
        self.shown = now
        done, total = loop.position.step, loop.settings.total_steps
        left = (now - self.began) / max(done - self.first_step, 1) * (total - done)
        shown = {k.partition("/")[2]: v for k, v in logs.items() if k.startswith("train/")}
        loss = " ".join(f"{k} {v:.4f}" for k, v in shown.items() if k not in ("lr", "gradient_norm", "skipped_steps"))
        wait = logs.get("speed/data_wait_share", 0.0)
        text = (
            f"{self.label}  epoch {loop.position.epoch + 1}/{loop.settings.total_epochs}  step {done}/{total}  {loss}  "
            f"{logs.get('speed/samples_per_second', 0):.0f} samples/s  {duration(left)} left"
        )
        if wait > 0.2:
            text += f"  (waiting for data {wait:.0%})"
        self._write(text, last)

    def on_epoch_end(self, loop: Loop) -> None:
        return None

    def on_fit_end(self, loop: Loop) -> None:
        if self.tty and not rank():
            sys.stderr.write("\n")

    def _write(self, text: str, last: bool) -> None:
        sys.stderr.write(f"\r\x1b[2K{text}" if self.tty else text + "\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """``75`` -> ``1 min 15 s``."""
    seconds = max(seconds, 0.0)
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


class Tracking(Hook):
    """Sends numbers to the tracker."""

    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker

    def on_step(self, loop: Loop, logs: Mapping[str, float]) -> None:
        self.tracker.log_metrics(dict(logs), step=loop.position.step)


class Validation(Hook):
    """Loss terms and, where the objective predicts, the macro AUROC on the validation split, each ``every`` epochs."""

    def __init__(self, batches: Callable[[], Iterable[Batch]], *, every: int = 1, tracker: Any = None) -> None:
        self.batches, self.every, self.tracker = batches, every, tracker
        self.last: dict[str, float] = {}

    def on_epoch_end(self, loop: Loop) -> Mapping[str, float] | None:
        epoch = loop.position.epoch + 1
        if epoch % self.every and epoch < loop.settings.total_epochs:
            return None
        numbers = self.losses(loop)
        objective = loop.objective
        if type(objective).predict is not Objective.predict:
            numbers |= self.scores(loop)
        self.last = numbers
        if self.tracker is not None:
            self.tracker.log_metrics(numbers, step=loop.position.step)
        return numbers

    def losses(self, loop: Loop) -> dict[str, float]:
        sums: dict[str, list[float]] = {}
        for batch in _while_not_stopped(loop, self.batches()):
            if not batch.size:
                continue
            ready = loop.feed.augment(batch.to(loop.device), train=False)
            prepared = loop.objective.prepare(ready, loop.progress)
            for part in prepared if isinstance(prepared, list) else [prepared]:
                with _autocast(loop):
                    output = loop.objective(part)
                for name, term in output.terms.items():
                    total = sums.setdefault(name, [0.0, 0.0, term.weight])
                    total[0] += float(term.sum)
                    total[1] += float(term.count)
        means = {f"val/{n}": s / (c or 1.0) for n, (s, c, _) in sums.items()}
        weighted = sum(w * s / (c or 1.0) for s, c, w in sums.values())
        return {**means, "val/loss": weighted}

    def scores(self, loop: Loop) -> dict[str, float]:
        from hilum.evaluation.metrics import auroc

        collected: list[tuple[Batch, Prediction]] = []
        with _autocast(loop):
            collected += predict_batches(
                loop.objective, _while_not_stopped(loop, self.batches()), loop.feed, device=loop.device
            )
        if not collected:
            return {}
        scores = torch.cat([p.scores.float().cpu() for _, p in collected]).numpy()
        labels, valid = (
            torch.cat([t["labels"].cpu() for t in ts]).numpy()
            for ts in zip(*((b.targets, b.valid) for b, _ in collected), strict=True)
        )
        if labels.ndim == 1:
            hit = (scores.argmax(1) == labels)[valid.astype(bool)]
            return {"val/accuracy": float(hit.mean())} if len(hit) else {}
        values = [
            auroc(labels[v, f], scores[v, f])
            for f in range(scores.shape[1])
            if _both(labels[(v := valid[:, f].astype(bool)), f])
        ]
        return {"val/auroc_macro": float(np.mean(values))} if values else {}


def _while_not_stopped(loop: Loop, batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        loop.stop_if_told()
        yield batch


def _both(labels: Any) -> bool:
    return len(labels) > 0 and 0 < float(np.sum(labels)) < len(labels)


def _autocast(loop: Loop) -> Any:
    return loop.trainer.precision_plugin.forward_context()


class Exports(Hook):
    """Writes ``RUN/exported`` with every best checkpoint and the first time without one."""

    def __init__(self, write: Callable[[Objective], None]) -> None:
        self.write = write

    def on_checkpoint(self, loop: Loop, path: Path, *, best: bool) -> None:
        if best:
            self.write(loop.objective)


class Probes(Hook):
    """What registered probes say of the encoder's pooled feature, every n epochs (recipe section ``probes``)."""

    def __init__(
        self,
        schedule: Mapping[str, int],
        *,
        train: Callable[[], Iterable[Batch]],
        val: Callable[[], Iterable[Batch]],
        tracker: Any = None,
    ) -> None:
        self.schedule, self.train, self.val, self.tracker = dict(schedule), train, val, tracker
        for name in self.schedule:  # a wrong name, or a class that is no probe, ends a run before its first epoch
            self.build(name)

    @staticmethod
    def build(name: str) -> Probe:
        """A fresh probe of a registered name."""
        probe: Probe = registry.build("probe", name)
        check_probe(probe, where=f"probes.{name}")
        return probe

    def on_epoch_end(self, loop: Loop) -> Mapping[str, float] | None:
        epoch, last = loop.position.epoch + 1, loop.position.epoch + 1 >= loop.settings.total_epochs
        due = [name for name, every in self.schedule.items() if every and (epoch % every == 0 or last)]
        encoder = loop.objective.exported().get("encoder") if due else None
        if encoder is None:
            return None
        x, y, groups = embed(encoder, self.train(), loop)
        probes = {name: self.build(name) for name in due}
        labelled = y is not None and any(probe.labelled for probe in probes.values())
        judged = embed(encoder, self.val(), loop) if labelled else None
        numbers: dict[str, float] = {}
        for name, probe in probes.items():
            rows = judged if probe.labelled else (x, None, groups)
            if rows is None or not len(rows[0]) or (probe.labelled and rows[1] is None):
                continue
            told = probe.summary(probe.fit(x, y if probe.labelled else None, groups).score(*rows))
            numbers |= {f"probe/{name}_{key}".rstrip("_"): float(value) for key, value in told.items()}
        if self.tracker is not None:
            self.tracker.log_metrics(numbers, step=loop.position.step)
        return numbers


def embed(encoder: Any, batches: Iterable[Batch], loop: Loop) -> tuple[Tensor, Tensor | None, list[str]]:
    """Pooled features (n, E) with labels (n, F; NaN unknown) or None, and group ids."""
    features, labels, groups = [], [], []
    training = encoder.training
    encoder.eval()
    for batch in _while_not_stopped(loop, batches):
        if not batch.size:
            continue
        ready = loop.feed.augment(batch.to(loop.device), train=False)
        with torch.no_grad(), _autocast(loop):
            features.append(encoder(ready.views["image"]).pooled.float().cpu())
        if "labels" in ready.targets:
            target, valid = ready.targets["labels"].cpu().float(), ready.valid["labels"].cpu().bool()
            labels.append(torch.where(valid, target, torch.nan))
        groups += [m.group_id for m in ready.meta]
    encoder.train(training)
    return torch.cat(features), torch.cat(labels) if labels else None, groups
