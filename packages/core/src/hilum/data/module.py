"""What feeds a run: steps of micro-batches for training, plain batches for evaluation, and the count of both."""

from __future__ import annotations

import itertools
import json
import logging
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
from hilum.parts.gather import all_names, all_reduce_sum
from hilum.parts.gather import rank as own_rank
from hilum.parts.gather import world as world_size

TRAIN: Final = "train"
AFTER: Final = -1  # the epoch of what is judged when training has ended
_TEXTS: Final = ("split", "sample_id", "reason", "message")
_BAD: Final = pa.schema([("epoch", pa.int64()), *((name, pa.string()) for name in _TEXTS)])
log = logging.getLogger(__name__)


@dataclass
class EpochAccount:
    """Of one pass over a split: ``expected`` samples were planned, ``delivered`` arrived, ``bad`` did not, and why.

    ``total`` is the planned number over all ranks and the whole pass, of which ``max_bad`` is a share. ``shared``: every
    rank counts its own part; else each counts all of it. ``told`` samples were reported by an earlier stop.
    """

    expected: int
    total: int
    epoch: int = 0
    split: str = TRAIN
    delivered: int = 0
    bad: list[BadSample] = field(default_factory=list)
    shared: bool = True
    told: int = 0

    def add(self, delivered: int, bad: Sequence[BadSample]) -> None:
        self.delivered += delivered
        self.bad += bad

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(b.reason for b in self.bad).most_common())

    @property
    def counts(self) -> dict[str, Any]:
        """``expected``, ``delivered`` and ``missing``, reason -> n: plain values for a report."""
        return {"expected": self.expected, "delivered": self.delivered, "missing": self.reasons}

    def __str__(self) -> str:
        """``val: 17 of 18 samples delivered, missing: 1 codec_error``"""
        counted = f"{self.split}: {self.delivered} of {self.expected} samples delivered"
        kinds = ", ".join(f"{n} {reason}" for reason, n in self.reasons.items())
        return f"{counted}, missing: {kinds}" if kinds else counted

    def check(self, max_bad: float, *, path: Path | None = None, final: bool = False) -> None:
        """TooManyBadSamples where more than ``max_bad`` of the pass is bad over all ranks; ``path`` is written first.

        Every rank must call it together. With ``final`` it also raises where delivered + bad is not expected. What one
        stop has reported does not end the run again: else no mended run could go on inside its epoch.
        """
        everywhere = _over_ranks(len(self.bad))
        over = everywhere - self.told > max_bad * self.total * (1 if self.shared else world_size())
        if path is not None and (over or final):
            self.write(path)
        of = f"epoch {self.epoch}" if self.split == TRAIN else f"{self.split} after epoch {self.epoch}"
        of = self.split if self.epoch == AFTER else of
        if over:
            self.told, bad = everywhere, everywhere if self.shared else len(self.bad)
            kinds = ", ".join(f"{n} {reason}" for reason, n in list(self.reasons.items())[:5])
            again = "evaluate again" if self.epoch == AFTER else "`hilum resume`"
            raise TooManyBadSamples(
                f"{bad} of {self.total} samples of {of} cannot be read; at most {max_bad:.2%} may fail",
                where=f"{path or 'epoch account'}: {kinds or 'on other ranks'}",
                fix=f"raise engine.max_bad in the run's config.yaml, then {again}; or mend the files, index, and start anew",
            )
        if final and self.delivered + len(self.bad) != self.expected:
            raise HilumError(
                f"{of} asked for {self.expected} samples, {self.delivered} came, {len(self.bad)} failed",
                where="epoch accounting",
                fix="this is a fault of a plan or source: report it with the recipe",
            )

    def rows(self) -> list[BadSample]:
        """The bad samples of all ranks, which must call this together."""
        if not self.shared or world_size() == 1:
            return self.bad
        # numbered: a plan may ask for a sample twice, and names are a set
        told = ([own_rank(), at, b.sample_id, b.reason, b.message] for at, b in enumerate(self.bad))
        return [BadSample(*json.loads(line)[2:]) for line in all_names(map(json.dumps, told))]

    def write(self, path: Path, bad: Sequence[BadSample] | None = None) -> None:
        """Add the bad samples, of all ranks if not given, to a Parquet table ``epoch split sample_id reason message``.

        Rank 0 writes. Of the evaluations after a run the last one of each split counts.
        """
        bad = self.rows() if bad is None else bad
        if own_rank():
            return
        known = pq.read_table(path).select(_BAD.names).to_pylist() if path.exists() else []
        stale = [r["epoch"] == self.epoch == AFTER and r["split"] == self.split for r in known]
        rows = {tuple(r.values()) for r, old in zip(known, stale, strict=True) if not old}
        rows |= {(self.epoch, self.split, b.sample_id, b.reason, b.message) for b in bad}
        if rows or known:
            columns = list(zip(*sorted(rows), strict=True)) or [()] * len(_BAD)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, _BAD, strict=True)]
            write_table(pa.Table.from_arrays(arrays, schema=_BAD), path)

    def state(self) -> dict[str, Any]:
        """What a checkpoint inside the epoch keeps, over all ranks, which must call this together."""
        bad = [[b.sample_id, b.reason, b.message] for b in self.rows()]
        return {"epoch": self.epoch, "delivered": _over_ranks(self.delivered), "bad": bad, "told": self.told}

    def go_on(self, state: Mapping[str, Any], *, before: int) -> None:
        """Take up the count of the ``before`` samples that all ranks had asked for: rank 0 carries it for them."""
        self.told = int(state["told"])
        if own_rank() == 0:
            self.expected += before
            self.add(int(state["delivered"]), [BadSample(*told) for told in state["bad"]])


class DataModule:
    """Feeds a loop. ``sources`` and ``plans`` by split: "train" is for :meth:`train_loader`, others for :meth:`loader`.

    A plan's streams beside "main" read from ``streams[name]`` and arrive in ``Batch.streams``. ``augmenter`` draws in
    the worker and is applied by :meth:`augment`. ``max_bad`` is the share of an epoch that may fail; ``bad_path`` is
    where the list goes. ``workers`` "auto" leaves one core to the run and respects memory. ``evaluated`` are the
    accounts of the passes of :meth:`loader` that came to their end and are not yet checked.
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
        augment_in_workers: bool = False,
    ) -> None:
        lacking = sorted(set(sources) ^ set(plans))
        if lacking:
            raise HilumError(f"{', '.join(lacking)}: every split needs both a source and a plan")
        self.sources, self.plans, self.augmenter = dict(sources), dict(plans), augmenter
        self.workers = auto_workers() if workers == "auto" else workers
        self.max_bad, self.bad_path = max_bad, None if bad_path is None else Path(bad_path)
        applies = augment_in_workers and self.workers > 0
        self._fetch = Fetch({**sources, **(streams or {})}, augmenter, dict(tokenizers or {}), applies)
        self._options: dict[str, Any] = {
            "prefetch": prefetch,
            "pin_memory": pin_memory,
            "sample_seconds": sample_seconds,
        }
        self._pumps = {kind: self._pump() for kind in (TRAIN, "evaluation")}
        self.evaluated: list[EpochAccount] = []
        self._account: EpochAccount | None = None
        self._earlier: Mapping[str, Any] = {}
        self._said: dict[str, dict[str, int]] = {}

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
        if start_step and self._earlier.get("epoch") == epoch:
            self._account.go_on(self._earlier, before=loader.before)
        return loader

    def loader(self, split: str, *, epoch: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches of a split, this rank's share; samples that fail are named in ``Batch.bad`` and in :attr:`evaluated`."""
        steps = self.plan(split).steps(epoch)
        account = EpochAccount(0, 0, self._account.epoch if self._account else AFTER, split, shared=world > 1)
        return self._counted(account, steps, rank, world)

    def _counted(
        self, account: EpochAccount, steps: Iterable[Mapping[str, list[Request]]], rank: int, world: int
    ) -> Iterator[Batch]:
        def tasks() -> Iterator[Task]:
            for step in steps:
                own = {name: requests[rank::world] for name, requests in step.items()}
                account.total += len(step["main"])
                account.expected += len(own["main"])
                yield Task(account.split, own)

        for _, batch in self.run("evaluation", tasks()):
            account.add(batch.size, batch.bad)
            yield batch
        self.evaluated.append(account)

    def run(self, kind: str, tasks: Iterable[Task]) -> Iterator[tuple[Task, Batch]]:
        """Tasks through the workers of a kind; through others where those are in use."""
        pump = self._pumps[kind]
        yield from (self._pump() if pump.busy else pump).run(tasks)

    def augment(self, batch: Batch, *, train: bool) -> Batch:
        """The augmenter on the batch's device, with the parameters drawn by the worker; nothing where the worker
        applied them already."""
        done = self.augmenter is None or not batch.size or bool(batch.norm)
        return batch if done else self.augmenter.apply(batch, train=train)  # type: ignore[union-attr]

    def account(self, delivered: int, bad: Sequence[BadSample], *, epoch: int) -> None:
        """Count a step of the training epoch."""
        if self._account is None or self._account.epoch != epoch:
            raise HilumError(f"a step of epoch {epoch} is counted, whose loader was not made")
        self._account.add(delivered, bad)

    def check_account(self, *, epoch: int, final: bool) -> None:
        """See :meth:`EpochAccount.check`: the training epoch and what was evaluated since; all ranks together."""
        own = [(self._account, final)] if self._account is not None and self._account.epoch == epoch else []
        self._check([*own, *((account, True) for account in self.evaluated)])

    def check_evaluated(self) -> None:
        """See :meth:`EpochAccount.check`, of every pass in :attr:`evaluated`."""
        self._check([(account, True) for account in self.evaluated])

    def _check(self, due: Sequence[tuple[EpochAccount, bool]]) -> None:
        """All of them, so that all are written, before the first failure is raised."""
        self.evaluated, failures = [], list[HilumError]()
        for account, final in due:
            try:
                account.check(self.max_bad, path=self.bad_path, final=final)
            except HilumError as error:
                failures.append(error)
            if final and account.epoch != AFTER and account.reasons != self._said.get(account.split, {}):
                self._said[account.split] = account.reasons  # the same loss is not told again after every epoch
                log.warning("epoch %d, %s", account.epoch, account)
        if failures:
            raise failures[0]

    def state_dict(self) -> dict[str, Any]:
        """The plan's state and the account of the running epoch, for a checkpoint; what is bad in it is written. All
        ranks together."""
        state: dict[str, Any] = {"plan": self.plan(TRAIN).state_dict()}
        if self._account is not None:
            state["account"] = self._account.state()
            if state["account"]["bad"] and self.bad_path is not None:
                self._account.write(self.bad_path, [BadSample(*told) for told in state["account"]["bad"]])
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The plan goes on (or refuses other samples than it had); the account does when the loader of its epoch is made."""
        if "plan" in state:
            self.plan(TRAIN).load_state_dict(state["plan"])
        self._earlier = dict(state.get("account", {}))

    def close(self) -> None:
        """End the workers; what was bad in an epoch that did not end is written all the same."""
        if self._account is not None and self._account.bad and self.bad_path is not None:
            self._account.write(self.bad_path, self._account.bad)  # alone: other ranks may be gone
        for pump in self._pumps.values():
            pump.close()

    def _pump(self) -> Pump:
        return Pump(self._fetch, workers=self.workers, **self._options)


class StepLoader:
    """Global steps of one epoch for one rank; ``len`` is the number left, ``expected`` this rank's requests in them.

    ``before`` counts the requests of all ranks in the steps before ``start``.
    """

    def __init__(self, module: DataModule, epoch: int, start: int, rank: int, world: int, accumulate: int) -> None:
        if not 0 <= rank < world or accumulate < 1 or start < 0:
            raise HilumError(f"rank {rank} of {world}, accumulate {accumulate}, step {start} make no loader")
        self.module, self.epoch, self.start = module, epoch, start
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.plan = module.plan(TRAIN)
        sizes = getattr(self.plan, "sizes", None)
        self._sizes = sizes(epoch) if callable(sizes) else [len(step["main"]) for step in self.plan.steps(epoch)]
        self.total, self.before = sum(self._sizes), sum(self._sizes[:start])
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
