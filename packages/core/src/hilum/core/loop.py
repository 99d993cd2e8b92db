"""The one training loop.

``Loop`` is the only LightningModule. It drives the optimisers itself for every objective, so accumulation, exact means
over ranks and micro-batches, clipping, precision, schedules, averaging, the NaN guard, epoch accounting, checkpoints
and signals live here once. Lightning gives devices, strategies and precision; position, checkpoints and logs are ours:
Lightning 2.6 neither resumes inside an epoch nor saves on SIGTERM.

Randomness inside a step is a function of (seed, step, rank), so a resumed run needs no saved generator state.
"""

from __future__ import annotations

import math
import signal
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from hilum.core.checkpoint import append_row, load_checkpoint, save_checkpoint
from hilum.core.errors import HilumError, Unsupported
from hilum.core.objective import Objective
from hilum.core.types import BadSample, Batch, Progress, StepOutput
from hilum.parts.gather import all_names, all_reduce_sum, of_first_rank, rank, take_first_ranks_buffers, world
from hilum.parts.gradients import gradient_norm, scale_gradients

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Feed(Protocol):
    """What the loop asks of the data: global steps as lists of this rank's micro-batches, and plain loaders."""

    @property
    def steps_per_epoch(self) -> int: ...

    def train_loader(
        self, epoch: int, *, start_step: int, rank: int, world: int, accumulate: int
    ) -> Iterable[list[Batch]]: ...
    def augment(self, batch: Batch, *, train: bool) -> Batch: ...
    def account(self, delivered: int, bad: Sequence[BadSample], *, epoch: int) -> None: ...
    def check_account(self, *, epoch: int, final: bool) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Stopped(Exception):
    """Raised inside a hook that should not go on because the run was told to stop; it runs again on resume."""


class Hook:
    """Reads what happens; changes nothing. Any method may be left out."""

    def on_fit_start(self, loop: Loop) -> None: ...
    def on_step(self, loop: Loop, logs: Mapping[str, float]) -> None: ...
    def on_epoch_end(self, loop: Loop) -> Mapping[str, float] | None:
        """Runs on every rank after each epoch; returned numbers are logged and may be monitored."""
        return None

    def on_checkpoint(self, loop: Loop, path: Path, *, best: bool) -> None: ...
    def on_fit_end(self, loop: Loop) -> None: ...


@dataclass(slots=True)
class LoopSettings:
    """Everything the loop needs that is not the objective; resolved, no ``auto``.

    ``optimisers(objective) -> name -> Optimizer``; ``schedule(step) -> multiplier``; ``monitor`` is ("val/x", "max").
    """

    optimisers: Callable[[nn.Module], Mapping[str, torch.optim.Optimizer]]
    schedule: Callable[[int], float]
    total_steps: int
    total_epochs: int
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    seed: int = 0
    nan_guard: int = 5
    log_every: int = 10
    checkpoint_minutes: float = 15.0
    monitor: tuple[str, str] | None = None
    compile: bool = False
    shard: Callable[[nn.Module, Any], None] | None = None  # FSDP2: applies fully_shard with the device mesh
    stop_after: int | None = None  # epochs without improvement of the monitor


@dataclass(slots=True)
class Position:
    """Where the run stands: ``step`` counts global steps, ``step_in_epoch`` those of the current epoch."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    samples: int = 0
    skipped: int = 0  # steps whose gradient was not finite
    consecutive_skips: int = 0
    best: float | None = None
    best_epoch: int = -1
    epochs_without_gain: int = 0
    hooks_due: bool = False  # the epoch is trained; validation, probes and the choice of the best are not done
    stage: int = 0
    task: int = 0


@dataclass(slots=True)
class Clock:
    """Host seconds since the last log line: waiting for the loader, augmenting, and in the step."""

    wait: float = 0.0
    augment: float = 0.0
    compute: float = 0.0
    samples: int = 0
    steps: int = 0
    since: float = field(default_factory=time.perf_counter)
    ended: float | None = None


class Loop(lightning.LightningModule):
    """Trains one objective on one feed. ``fit`` through :func:`fit`; ``stop_reason`` tells why it ended."""

    def __init__(
        self,
        objective: Objective,
        feed: Feed,
        settings: LoopSettings,
        *,
        folder: Path | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.objective = objective
        self.feed, self.settings, self.folder, self.hooks = feed, settings, folder, list(hooks)
        self.position = Position()
        self.history: list[dict[str, float]] = []
        self.bad_step_samples: list[str] = []
        self.stop_reason = ""
        self.stop_signal: int | None = None
        self.install_signals: Callable[[], None] = lambda: None
        self.failure: HilumError | None = None
        self._clock = Clock()
        self._saved_at = time.monotonic()
        self._restored: dict[str, Any] | None = None
        self._optimisers: dict[str, torch.optim.Optimizer] = {}
        self._step_function: Callable[[Batch], StepOutput] = objective
        self.average: Any = None
        self._names: dict[str, list[str]] = {}  # of what is summed over ranks, by kind; fixed by the first step
        self._last_norm = math.nan
        self._skips: dict[str, int] = {}  # consecutive, by optimiser group

    @property
    def progress(self) -> Progress:
        p, s = self.position, self.settings
        return Progress(p.step, s.total_steps, p.epoch, s.total_epochs, p.stage, p.task, p.samples)

    def configure_model(self) -> None:
        if self.settings.shard is not None and getattr(self, "device_mesh", None) is not None:
            self.settings.shard(self.objective, self.device_mesh)

    def configure_optimizers(self) -> Any:
        self._optimisers = dict(self.settings.optimisers(self.objective))
        for optimiser in self._optimisers.values():
            for group in optimiser.param_groups:
                group.setdefault("initial_lr", group["lr"])
        return list(self._optimisers.values())

    def train_dataloader(self) -> Any:
        p = self.position
        return self.feed.train_loader(
            p.epoch, start_step=p.step_in_epoch, rank=rank(), world=world(), accumulate=self.settings.accumulate
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if self._clock.ended is not None:
            self._clock.wait += time.perf_counter() - self._clock.ended
        return [b.to(device, non_blocking=True) for b in batch]

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        began = time.perf_counter()
        augmented = [self.feed.augment(b, train=True) if b.size else b for b in batch]
        self._clock.augment += time.perf_counter() - began
        return augmented

    def on_fit_start(self) -> None:
        if self._restored is not None:
            self._load_states(self._restored)
            self._restored = None
        if self.settings.ema is not None and self.average is None:
            from hilum.parts.teacher import EMA

            self.average = EMA(self.objective, momentum=self.settings.ema)
        if self.settings.compile:
            self._step_function = torch.compile(self.objective)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.install_signals()
        for hook in self.hooks:
            hook.on_fit_start(self)
        if self.position.hooks_due:  # the process ended between the last step of an epoch and its validation
            self.train_dataloader()  # makes the epoch's account
            self._end_epoch()

    def on_train_start(self) -> None:
        self.install_signals()  # Lightning sets its own handlers before this point

    def training_step(self, batch: list[Batch], batch_idx: int) -> None:
        began = time.perf_counter()
        self.bad_step_samples = [m.sample_id for part in batch for m in part.meta]
        self._seed()
        self._set_rates()
        micro = self._prepare(batch)
        moved, logs, outputs = self._advance(micro)
        if moved:
            self._after_step(outputs)
        delivered = sum(b.size for b in batch)
        self.feed.account(delivered, [b for part in batch for b in part.bad], epoch=self.position.epoch)
        self._finish_step(logs, began, delivered)

    def _prepare(self, batch: list[Batch]) -> list[Batch]:
        micro: list[Batch] = []
        with torch.no_grad():
            for part in batch:
                prepared = self.objective.prepare(part, self.progress) if part.size else part
                micro += prepared if isinstance(prepared, list) else [prepared]
        return micro

    def _advance(self, micro: list[Batch]) -> tuple[bool, dict[str, float], dict[str, Any]]:
        own_step = getattr(self.objective, "step", None)
        if callable(own_step):
            return self._own_step(own_step, micro)
        totals = self._totals(micro) if len(micro) > 1 else None
        sums: dict[str, Tensor] = {}
        logs: dict[str, list[Tensor]] = {}
        outputs: list[Mapping[str, Any]] = []
        for number, part in enumerate(micro):
            last = number == len(micro) - 1
            with ExitStack() as stack:
                if not last:
                    stack.enter_context(self._no_sync())
                output = self._step_function(part) if part.size else StepOutput({})
                if totals is None:
                    totals = self._summed("terms", {n: t.count for n, t in output.terms.items()})
                self.manual_backward(self._loss(output, totals))
            for name, term in output.terms.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + term.sum.detach()
            for name, value in output.logs.items():
                logs.setdefault(name, []).append(value.detach().float())
            outputs += [output.outputs] if part.size else []
        assert totals is not None
        counted = any(float(total) > 0 for total in totals.values())  # else every sample of the step was bad
        moved = self._move("main" if "main" in self._optimisers else None) if counted else self._drop()
        means = {name: torch.stack(values).mean() for name, values in logs.items()}
        return moved, self._numbers(sums, totals, means), _joined(outputs)

    def _drop(self) -> bool:
        self._last_norm = math.nan
        for optimiser in self._optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        return False

    def _totals(self, micro: list[Batch]) -> dict[str, Tensor]:
        counts: dict[str, Tensor] = {}
        for part in micro:
            told = self.objective.counts(part) if part.size else {}
            if part.size and not told:
                raise Unsupported(
                    f"{type(self.objective).__name__} does not say its counts, so several micro-batches cannot be averaged exactly",
                    fix="define counts(batch), or set batch.per_device so that one micro-batch makes a step",
                )
            for name, count in told.items():
                counts[name] = counts.get(name, torch.zeros((), device=self.device)) + count.to(self.device).float()
        return self._summed("terms", counts)

    def _summed(self, kind: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named numbers summed over ranks. A rank whose micro-batches are empty has none of them; other names than the
        first step's are refused by all ranks together, or each would wait for sums of another length."""
        if world() == 1:
            return {n: v.detach().float() for n, v in values.items()}
        if kind not in self._names:
            self._names[kind] = all_names(values)
        names, zero = self._names[kind], torch.zeros((), device=self.device)
        strange = sorted(set(values) - set(names))
        told = [values[n].detach().float().reshape(()) if n in values else zero for n in names]
        *sums, odd = all_reduce_sum(torch.stack([*told, zero + len(strange)])).unbind()
        if odd > 0:
            raise HilumError(
                f"step {self.position.step} has {kind} that the first step had not: {', '.join(strange) or 'on another rank'}",
                where=type(self.objective).__name__,
                fix="return them all in every step, with count 0 where there is nothing"
                if names
                else "no rank had a usable sample in the first step: look at bad_samples.parquet",
            )
        return dict(zip(names, sums, strict=True))

    def _loss(self, output: StepOutput, totals: Mapping[str, Tensor]) -> Tensor:
        """This micro-batch's share of the exact global mean, times the ranks that gradients are averaged over."""
        if lacking := sorted(output.terms.keys() - totals.keys()):
            raise HilumError(
                f"counts() told of {sorted(totals)}, forward returned also {lacking}",
                where=type(self.objective).__name__,
                fix="counts(batch) names the same terms as forward(batch)",
            )
        shares = [t.weight * t.sum / _counted(totals[n]) for n, t in output.terms.items()]
        if shares:
            return torch.stack([s.reshape(()) for s in shares]).sum() * world()
        # An empty micro-batch still takes part in the gradient exchange.
        return torch.stack([p.sum() * 0 for p in self.objective.parameters() if p.requires_grad]).sum()

    def _own_step(self, own_step: Any, micro: list[Batch]) -> tuple[bool, dict[str, float], dict[str, Any]]:
        moved: list[bool] = []
        sums, counts, logs = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
        outputs: dict[str, Any] = {}

        def take(output: StepOutput, group: str = "main") -> None:
            if group not in self._optimisers:
                raise HilumError(
                    f"take: there is no optimiser group {group!r}", fix=f"one of {sorted(self._optimisers)}"
                )
            totals = self._summed(f"terms {sorted(output.terms)}", {n: t.count for n, t in output.terms.items()})
            own = {id(p) for g in self._optimisers[group].param_groups for p in g["params"]}
            loss = self._loss(output, totals)
            if world() > 1:  # the gradient exchange waits for every parameter, also those of other groups
                loss = loss + self._loss(StepOutput({}), totals)
            with self._only(own):
                self.manual_backward(loss)
            moved.append(self._move(group))
            for name, term in output.terms.items():
                sums[name] = sums.get(name, torch.zeros((), device=self.device)) + term.sum.detach()
                counts[name] = counts.get(name, torch.zeros((), device=self.device)) + totals[name]
            logs.update({n: v.detach().float() for n, v in output.logs.items()})
            outputs.update(output.outputs)

        for part in micro:
            if part.size:
                own_step(part, take)
            elif world() > 1:
                raise HilumError(
                    f"step {self.position.step}: one rank's micro-batch has no usable sample", where="epoch accounting"
                )
        return any(moved), self._numbers(sums, counts, logs), outputs

    @contextmanager
    def _only(self, own: set[int]) -> Any:
        """Discard gradients that a group's loss leaves on other groups' parameters."""
        kept = {p: p.grad for p in self.objective.parameters() if id(p) not in own}
        yield
        for parameter, gradient in kept.items():
            parameter.grad = gradient

    def _no_sync(self) -> AbstractContextManager[Any]:
        model = self.trainer.strategy.model if self._trainer is not None else None
        if isinstance(model, nn.parallel.DistributedDataParallel):
            return model.no_sync()
        return nullcontext()

    def _move(self, group: str | None) -> bool:
        """Clip, guard and step one group's optimiser (all of them for None); True if parameters moved."""
        chosen = self._optimisers if group is None else {group: self._optimisers[group]}
        parameters = [p for o in chosen.values() for g in o.param_groups for p in g["params"] if p.grad is not None]
        norm = gradient_norm(parameters)
        scale = self._loss_scale()
        finite = bool(torch.isfinite(norm))
        self._last_norm = float(norm) / scale if finite else math.nan
        if finite or scale != 1.0:  # the fp16 scaler itself skips and lowers its scale
            if finite and self.settings.clip is not None:
                scale_gradients(parameters, self.settings.clip * scale / (norm + 1e-6 * scale))
            if finite:
                self._clip_groups(chosen, scale)
            wrapped = self.optimizers()
            wrapped = wrapped if isinstance(wrapped, list) else [wrapped]
            for name, optimiser in zip(self._optimisers, wrapped, strict=True):
                if name in chosen:
                    optimiser.step()
        for optimiser in chosen.values():
            optimiser.zero_grad(set_to_none=True)
        self._guard(finite or scale > 1.0, finite, group or "main")  # the fp16 scaler is still finding its scale
        return finite

    def _clip_groups(self, chosen: Mapping[str, torch.optim.Optimizer], scale: float) -> None:
        for optimiser in chosen.values():
            for settings in optimiser.param_groups:
                if settings.get("clip"):
                    own = [p for p in settings["params"] if p.grad is not None]
                    scale_gradients(own, settings["clip"] * scale / (gradient_norm(own) + 1e-6 * scale))

    def _loss_scale(self) -> float:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None) if self._trainer is not None else None
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def _guard(self, excused: bool, finite: bool, group: str) -> None:
        p = self.position
        p.skipped += not finite
        if not excused and self.folder is not None:
            append_row(
                self.folder / "logs" / "skipped_steps.csv",
                {"step": p.step, "rank": rank(), "sample_ids": " ".join(self.bad_step_samples)},
            )
        self._skips[group] = 0 if excused else self._skips.get(group, p.consecutive_skips) + 1
        p.consecutive_skips = max(self._skips.values())
        if p.consecutive_skips > self.settings.nan_guard and self.failure is None:
            self.failure = HilumError(
                f"the gradient was not finite {p.consecutive_skips} steps in a row (step {p.step})",
                where=f"samples of the last such step: {' '.join(self.bad_step_samples[:8])}",
                fix="lower the learning rate, clip (optim.clip), use bf16-mixed instead of 16-mixed; then `hilum resume`",
            )
            self.stop_reason = "nan"

    def _after_step(self, outputs: Mapping[str, Any]) -> None:
        for module in self.objective.modules():
            hook = getattr(module, "after_step", None)
            if callable(hook):
                hook(self.progress, outputs)
        if self.average is not None:
            self.average.update()

    def _seed(self) -> None:
        text = f"{self.settings.seed} {self.position.step} {rank()}".encode()
        torch.manual_seed(zlib.crc32(text))

    def _set_rates(self) -> None:
        factor = self.settings.schedule(self.position.step)
        for optimiser in self._optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def _numbers(
        self, sums: Mapping[str, Tensor], totals: Mapping[str, Tensor], logs: Mapping[str, Tensor]
    ) -> dict[str, float]:
        sums = self._summed("sums of terms", sums)
        means = {f"train/{n}": float(s / _counted(totals[n])) for n, s in sums.items()}
        ranks = {f"{n} of": torch.ones((), device=self.device) for n in logs}  # an empty rank has no logs
        logs = self._summed("logs", {**logs, **ranks})
        own = {n: v / logs[f"{n} of"].clamp(min=1) for n, v in logs.items() if f"{n} of" in logs}
        return means | {f"train/{n}": float(v) for n, v in own.items()}

    def _finish_step(self, logs: dict[str, float], began: float, delivered: int) -> None:
        p, clock = self.position, self._clock
        due = time.monotonic() - self._saved_at > 60 * self.settings.checkpoint_minutes
        told = [delivered, due, *(self.stop_signal == number for number in SIGNALS)]
        flags = torch.tensor(told, device=self.device, dtype=torch.float64)
        flags = all_reduce_sum(flags) if world() > 1 else flags
        p.samples += int(flags[0])
        p.step += 1
        p.step_in_epoch += 1
        clock.samples += int(flags[0])
        clock.steps += 1
        clock.ended = time.perf_counter()
        clock.compute += clock.ended - began
        if p.step % self.settings.log_every == 0 or p.step == self.settings.total_steps or p.step == 1:
            self._log(logs)
        for number, ranks in zip(SIGNALS, flags[2:].tolist(), strict=True):
            if ranks:  # one rank was told: all of them stop, and say so
                self.stop_signal = self.stop_signal or number
                self.stop_reason = self.stop_reason or "signal"
        self._check_account(final=False)
        if self.stop_reason or p.step >= self.settings.total_steps:
            self.stop_reason = self.stop_reason or "finished"
            self.trainer.should_stop = True
        p.hooks_due = p.step_in_epoch >= self.feed.steps_per_epoch or p.step >= self.settings.total_steps
        if flags[1] > 0 and not self.trainer.should_stop:  # every rank together: under FSDP2 saving is a collective
            self.save("last")

    def _check_account(self, *, final: bool) -> None:
        try:
            if self.failure is None:
                self.feed.check_account(epoch=self.position.epoch, final=final)
        except HilumError as error:
            self.failure, self.stop_reason = error, "bad samples"

    def _log(self, logs: dict[str, float]) -> None:
        clock, now = self._clock, time.perf_counter()
        seconds, busy = max(now - clock.since, 1e-9), max(clock.wait + clock.augment + clock.compute, 1e-9)
        first = next(iter(self._optimisers.values()))
        numbers = {
            **logs,
            "train/lr": max(g["lr"] for g in first.param_groups),
            "train/gradient_norm": self._last_norm,
            "speed/samples_per_second": clock.samples / seconds,
            "speed/data_wait_ms": 1000 * clock.wait / max(clock.steps, 1),
            "speed/data_wait_share": clock.wait / busy,
            "speed/augment_share": clock.augment / busy,
            "memory/peak_mib": peak_memory_mib(),
        }
        if self.position.skipped:
            numbers["train/skipped_steps"] = float(self.position.skipped)
        self.history.append({"step": float(self.position.step), **numbers})
        for hook in self.hooks:
            hook.on_step(self, numbers)
        self._clock = Clock(ended=clock.ended)

    def on_train_epoch_end(self) -> None:
        self.save("last")  # before what may take long, or fail: a run goes on from here
        if self.position.hooks_due and self.stop_reason != "signal":
            self._end_epoch()

    def _end_epoch(self) -> None:
        """Validation, probes, the choice of the best, and the position of the next epoch."""
        p = self.position
        whole = p.step_in_epoch >= self.feed.steps_per_epoch
        try:
            numbers = self._epoch_hooks()
        except Stopped:  # the state before the hooks is on disk, and says that they are due
            self.stop_reason, self.trainer.should_stop = "signal", True
            return
        self._check_account(final=whole)  # of what the hooks evaluated, too
        p.hooks_due = False
        if whole:
            p.epoch, p.step_in_epoch = p.epoch + 1, 0
        if self.failure is None and self._compare(numbers):  # nothing is chosen by half a validation set
            self.save("best")
        gain = p.epochs_without_gain
        if self.settings.stop_after is not None and gain >= self.settings.stop_after and not self.stop_reason:
            self.stop_reason = "no gain"
        if p.step >= self.settings.total_steps:
            self.stop_reason = self.stop_reason or "finished"
        if self.stop_reason and p.best is None and self.settings.monitor is not None:
            self.save("best")  # the monitor was never computable: the newest stands in
        self.save("last")
        self._clock = Clock(ended=time.perf_counter())  # the first step of an epoch waits for its data too
        if self.stop_reason:
            self.trainer.should_stop = True

    def _epoch_hooks(self) -> dict[str, float]:
        numbers: dict[str, float] = {}
        training = self.objective.training
        take_first_ranks_buffers(self.objective)
        self.objective.eval()
        with torch.no_grad(), self.averaged():
            for hook in self.hooks:
                numbers.update(hook.on_epoch_end(self) or {})
                self.stop_if_told()
        self.objective.train(training)
        # a difference in the last digit would send ranks different ways, each waiting for the other
        return dict(of_first_rank(numbers))

    def stop_if_told(self) -> None:
        """For long hooks, between their batches. Several ranks stop together, after the next step."""
        if self.stop_signal is not None and world() == 1:
            raise Stopped

    def averaged(self) -> AbstractContextManager[Any]:
        """The objective with its moving average swapped in, where one is kept."""
        return self.average.swap() if self.average is not None else nullcontext()

    def _compare(self, numbers: Mapping[str, float]) -> bool:
        p = self.position
        if self.settings.monitor is None:
            return True  # nothing to choose by: the newest is the best
        name, mode = self.settings.monitor
        value = numbers.get(name)
        if value is None or not math.isfinite(value):
            return False  # not computed in this epoch: neither gain nor loss
        better = p.best is None or (value > p.best if mode == "max" else value < p.best)
        if better:
            p.best, p.best_epoch, p.epochs_without_gain = value, p.epoch, 0
        else:
            p.epochs_without_gain += 1
        return better

    def save(self, name: str) -> None:
        """Write ``checkpoints/NAME.ckpt`` (every rank takes part, rank 0 writes) and tell the hooks."""
        if self.folder is None:
            return
        payload = self._states()
        path = self.folder / "checkpoints" / f"{name}.ckpt"
        if rank() == 0:
            save_checkpoint(path, payload)
            with self.averaged():
                for hook in self.hooks if self.settings.shard is None else ():  # a shard is nothing to export
                    hook.on_checkpoint(self, path, best=name == "best")
        if world() > 1:  # nobody goes on, or reads it, before it is whole
            all_reduce_sum(torch.zeros(1, device=self.device))
        self._saved_at = time.monotonic()

    def _states(self) -> dict[str, Any]:
        sharded = self.settings.shard is not None and world() > 1
        if sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            model, optimiser = get_state_dict(self.objective, list(self._optimisers.values()), options=options)
            states: dict[str, Any] = {"objective": model, "sharded_optimiser": optimiser}
        else:
            states = {
                "objective": self.objective.state_dict(),
                "optimisers": {n: o.state_dict() for n, o in self._optimisers.items()},
            }
        scaler = getattr(self.trainer.precision_plugin, "scaler", None) if self._trainer is not None else None
        return {
            "format": 1,
            "position": asdict(self.position),
            "feed": self.feed.state_dict(),
            "frozen": self._frozen(),
            "average": self.average.state_dict() if self.average is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            **states,
        }

    def _frozen(self) -> dict[str, str]:
        """Hashes of networks that a checkpoint leaves out because they never move."""
        told = ((name, getattr(module, "frozen_sha256", None)) for name, module in self.objective.named_modules())
        return {name: sha for name, sha in told if sha}

    def restore(self, saved: Path | dict[str, Any]) -> None:
        """Take a checkpoint, or read one; its states are loaded when ``fit`` starts."""
        payload = load_checkpoint(saved) if isinstance(saved, Path) else saved
        self._restored = payload
        known = {k: v for k, v in payload["position"].items() if k in Position.__dataclass_fields__}
        self.position = replace(Position(), **known)
        self.feed.load_state_dict(payload.get("feed", {}))

    def _load_states(self, payload: Mapping[str, Any]) -> None:
        if "sharded_optimiser" in payload:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

            set_state_dict(
                self.objective,
                list(self._optimisers.values()),
                model_state_dict=payload["objective"],
                optim_state_dict=payload["sharded_optimiser"],
                options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=False),
            )
        else:
            try:
                self.objective.load_state_dict(payload["objective"])
                for name, optimiser in self._optimisers.items():
                    optimiser.load_state_dict(payload["optimisers"][name])
            except (KeyError, ValueError, RuntimeError) as error:
                told = " ".join(str(error).split())[:300]
                raise HilumError(
                    f"the checkpoint does not belong to this recipe: {told}", where=str(self.folder)
                ) from error
        if moved := sorted(n for n, sha in payload.get("frozen", {}).items() if self._frozen().get(n) != sha):
            raise HilumError(
                f"the frozen {moved[0]} has other weights than when this run was saved",
                where=str(self.folder),
                fix="restore the start that the run's config.yaml names",
            )
        if payload.get("average") is not None and self.settings.ema is not None:
            from hilum.parts.teacher import EMA

            self.average = EMA(self.objective, momentum=self.settings.ema)
            self.average.load_state_dict(payload["average"])
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and payload.get("scaler"):
            scaler.load_state_dict(payload["scaler"])


def _joined(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Outputs of all micro-batches: tensors with rows end to end, anything else the last one's."""
    joined: dict[str, Any] = dict(outputs[-1]) if outputs else {}
    for name, value in joined.items():
        if isinstance(value, Tensor) and value.ndim and len(outputs) > 1:
            joined[name] = torch.cat([o[name] for o in outputs if name in o])
    return joined


def _counted(total: Tensor) -> Tensor:
    """The divisor of a mean: the count, or 1 where nothing counted. Counts may be fractional."""
    return torch.where(total > 0, total, torch.ones_like(total))


def peak_memory_mib() -> float:
    """Peak device memory where there is a GPU, else this process's peak resident size."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
