"""What feeds a run: steps of micro-batches for training, plain batches for evaluation, and the count of both."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from hilum.core.errors import HilumError, TooManyBadSamples, nearest
from hilum.core.types import BadSample, Batch, Plan, Request, Source, Tokenizer
from hilum.data.delivery import Augmenting, Fetch, Task
from hilum.data.ledger import write_table
from hilum.data.pump import Pump, auto_workers
from hilum.parts.gather import all_reduce_sum
from hilum.parts.gather import rank as own_rank
from hilum.parts.gather import world as world_size

TRAIN: Final = "train"
_TEXTS: Final = ("split", "sample_id", "reason", "message")
_BAD: Final = pa.schema([("epoch", pa.int64()), *((name, pa.string()) for name in _TEXTS)])


@dataclass
class EpochAccount:
    """Of one epoch on one rank: ``expected`` samples were planned, ``delivered`` arrived, ``bad`` did not, and why.

    ``total`` is the planned number over all ranks and the whole epoch, of which ``max_bad`` is a share.
    """

    expected: int
    total: int
    epoch: int = 0
    split: str = TRAIN
    delivered: int = 0
    bad: list[BadSample] = field(default_factory=list)

    def add(self, delivered: int, bad: Sequence[BadSample]) -> None:
        self.delivered += delivered
        self.bad += bad

    def check(self, max_bad: float, *, path: Path | None = None, final: bool = False) -> None:
        """TooManyBadSamples where more than ``max_bad`` of the epoch is bad over all ranks; ``path`` is written first.

        Every rank must call it together. With ``final`` it also raises where delivered + bad is not expected.
        """
        bad = _over_ranks(len(self.bad))
        over = bad > max_bad * self.total
        if path is not None and self.bad and (over or final):
            self.write(path)
        if over:
            kinds = ", ".join(f"{n} {reason}" for reason, n in Counter(b.reason for b in self.bad).most_common(5))
            raise TooManyBadSamples(
                f"{bad} of {self.total} samples of epoch {self.epoch} cannot be read; at most {max_bad:.2%} may fail",
                where=f"{path or 'epoch account'}: {kinds or 'on other ranks'}",
                fix="mend or exclude these files (where), or raise max_bad; then `hilum resume`",
            )
        if final and self.delivered + len(self.bad) != self.expected:
            raise HilumError(
                f"epoch {self.epoch} asked for {self.expected} samples, {self.delivered} came, {len(self.bad)} failed",
                where="epoch accounting",
                fix="this is a fault of a plan or source: report it with the recipe",
            )

    def write(self, path: Path) -> None:
        """Add this epoch's bad samples to a Parquet table ``epoch split sample_id reason message``."""
        rows = [(self.epoch, self.split, b.sample_id, b.reason, b.message) for b in self.bad]
        if path.exists():
            known = pq.read_table(path).select(_BAD.names).to_pylist()
            rows = [*(tuple(row.values()) for row in known), *rows]
        columns = zip(*sorted(set(rows)), strict=True)
        write_table(
            pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, _BAD, strict=True)], schema=_BAD), path
        )


class DataModule:
    """Feeds a loop. ``sources`` and ``plans`` by split: "train" is for :meth:`train_loader`, others for :meth:`loader`.

    A plan's streams beside "main" read from ``streams[name]`` and arrive in ``Batch.streams``. ``augmenter`` draws in
    the worker and is applied by :meth:`augment`. ``max_bad`` is the share of an epoch that may fail; ``bad_path`` is
    where the list goes. ``workers`` "auto" leaves one core to the run and respects memory.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        plans: Mapping[str, Plan],
        *,
        augmenter: Augmenting | None = None,
        streams: Mapping[str, Source] | None = None,
        tokenizers: Mapping[str, Tokenizer] | None = None,
        workers: int | Literal["auto"] = "auto",
        prefetch: int = 2,
        pin_memory: bool = False,
        sample_seconds: float = 300.0,
        max_bad: float = 0.01,
        bad_path: Path | str | None = None,
    ) -> None:
        lacking = sorted(set(sources) ^ set(plans))
        if lacking:
            raise HilumError(f"{', '.join(lacking)}: every split needs both a source and a plan")
        self.sources, self.plans, self.augmenter = dict(sources), dict(plans), augmenter
        self.workers = auto_workers() if workers == "auto" else workers
        self.max_bad, self.bad_path = max_bad, None if bad_path is None else Path(bad_path)
        self._fetch = Fetch({**sources, **(streams or {})}, augmenter, dict(tokenizers or {}))
        self._options: dict[str, Any] = {
            "prefetch": prefetch,
            "pin_memory": pin_memory,
            "sample_seconds": sample_seconds,
        }
        self._pumps = {kind: self._pump() for kind in (TRAIN, "evaluation")}
        self._account: EpochAccount | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Global steps of a training epoch."""
        return self.plan(TRAIN).steps_per_epoch(0)

    def plan(self, split: str) -> Plan:
        if split not in self.plans:
            known = sorted(self.plans)
            raise HilumError(
                f"there is no data for {split!r}", fix=nearest(split, known) or f"one of {', '.join(known)}"
            )
        return self.plans[split]

    def train_loader(
        self, epoch: int, *, start_step: int = 0, rank: int = 0, world: int = 1, accumulate: int = 1
    ) -> StepLoader:
        """This rank's share of the global steps ``start_step`` .. of an epoch, each a list of micro-batches.

        Requests go to ranks in turn (``requests[rank::world]``) and are cut into ``accumulate`` micro-batches. Every
        rank gets equally many micro-batches a step; where samples run out, or all are bad, one is empty (``size`` 0).
        """
        loader = StepLoader(self, epoch, start_step, rank, world, accumulate)
        self._account = EpochAccount(loader.expected, loader.total, epoch)
        return loader

    def loader(self, split: str, *, epoch: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches of a split, this rank's share; samples that fail are named in ``Batch.bad``."""
        plan = self.plan(split)
        tasks = (Task(split, {n: r[rank::world] for n, r in step.items()}) for step in plan.steps(epoch))
        return (batch for _, batch in self.run("evaluation", tasks))

    def run(self, kind: str, tasks: Iterable[Task]) -> Iterator[tuple[Task, Batch]]:
        """Tasks through the workers of a kind; through others where those are in use."""
        pump = self._pumps[kind]
        yield from (self._pump() if pump.busy else pump).run(tasks)

    def augment(self, batch: Batch, *, train: bool) -> Batch:
        """The augmenter on the batch's device, with the parameters drawn by the worker."""
        return batch if self.augmenter is None or not batch.size else self.augmenter.apply(batch, train=train)

    def account(self, delivered: int, bad: Sequence[BadSample], *, epoch: int) -> None:
        """Count a step of the training epoch."""
        if self._account is None or self._account.epoch != epoch:
            raise HilumError(f"a step of epoch {epoch} is counted, whose loader was not made")
        self._account.add(delivered, bad)

    def check_account(self, *, epoch: int, final: bool) -> None:
        """See :meth:`EpochAccount.check`; all ranks together."""
        if self._account is None or self._account.epoch != epoch:
            return
        path = self.bad_path
        if path is not None and own_rank():
            path = path.with_suffix(f".rank{own_rank()}{path.suffix}")
        self._account.check(self.max_bad, path=path, final=final)

    def close(self) -> None:
        """End the workers; what was bad in an epoch that did not end is written all the same."""
        if self._account is not None and self._account.bad and self.bad_path is not None and own_rank() == 0:
            self._account.write(self.bad_path)
        for pump in self._pumps.values():
            pump.close()

    def _pump(self) -> Pump:
        return Pump(self._fetch, workers=self.workers, **self._options)


class StepLoader:
    """Global steps of one epoch for one rank; ``len`` is the number left, ``expected`` this rank's requests in them."""

    def __init__(self, module: DataModule, epoch: int, start: int, rank: int, world: int, accumulate: int) -> None:
        if not 0 <= rank < world or accumulate < 1 or start < 0:
            raise HilumError(f"rank {rank} of {world}, accumulate {accumulate}, step {start} make no loader")
        self.module, self.epoch, self.start = module, epoch, start
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.plan = module.plan(TRAIN)
        sizes = getattr(self.plan, "sizes", None)
        self._sizes = sizes(epoch) if callable(sizes) else [len(step["main"]) for step in self.plan.steps(epoch)]
        self.total = sum(self._sizes)
        self.expected = sum(len(range(rank, size, world)) for size in self._sizes[start:])

    def __len__(self) -> int:
        return max(len(self._sizes) - self.start, 0)

    def __iter__(self) -> Iterator[list[Batch]]:
        steps, micro = 0, list[Batch]()
        for task, batch in self.module.run(TRAIN, self._tasks()):
            micro.append(batch)
            if task.last:
                yield micro
                steps, micro = steps + 1, []
        if steps != len(self) or micro:
            raise HilumError(f"epoch {self.epoch} ended after {steps} of its {len(self)} steps", where="data loading")

    def _tasks(self) -> Iterator[Task]:
        size = _ceil(_ceil(max(self._sizes), self.world), self.accumulate)
        for step in itertools.islice(self.plan.steps(self.epoch), self.start, None):
            pieces = max(1, _ceil(_ceil(len(step["main"]), self.world), size))
            cut = {n: self._cut(r, pieces, size if n == "main" else None) for n, r in step.items()}
            for at in range(pieces):
                requests = {name: parts[at] for name, parts in cut.items()}
                yield Task(TRAIN, requests, train=True, last=at == pieces - 1)

    def _cut(self, requests: list[Request], pieces: int, size: int | None) -> list[list[Request]]:
        own = requests[self.rank :: self.world]
        size = size or max(1, _ceil(len(own), pieces))
        return [own[at * size : (at + 1) * size] for at in range(pieces)]


def _ceil(a: int, b: int) -> int:
    return (a + b - 1) // b


def _over_ranks(count: int) -> int:
    if world_size() == 1:
        return count
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    return int(all_reduce_sum(torch.tensor([count], device=device)))
