"""The only hand-written collectives. Without a process group they are identities.

Every rank must call them in the same order, as with any collective.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if _active() else 1


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if _active() else 0


def leave() -> None:
    """Close the process group, if there is one. Its threads must end before the interpreter does: one that still lets
    go of a Python object then aborts the process, now and then, after all its work was done."""
    if _active():
        dist.destroy_process_group()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """A new tensor: the sum over ranks, without gradient."""
    out = tensor.detach().clone(memory_format=torch.contiguous_format)
    if world() > 1:
        dist.all_reduce(out)
    return out


def all_sizes(n: int, *, device: Any = "cpu") -> list[int]:
    """Every rank's ``n`` in rank order; ``sum(all_sizes(n)[: rank()])`` is where this rank's rows start."""
    if world() == 1:
        return [n]
    mine = torch.tensor([n], device=device)
    sizes = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(sizes, mine)
    return [int(size) for size in sizes]


def all_names(names: Iterable[str]) -> list[str]:
    """The sorted union of every rank's names."""
    if world() == 1:
        return sorted(set(names))
    told: list[list[str]] = [[] for _ in range(world())]
    dist.all_gather_object(told, sorted(set(names)))
    return sorted({name for own in told for name in own})


def of_first_rank(value: Any) -> Any:
    """Rank 0's value on every rank; anything that pickles between processes of one run."""
    if world() == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


@torch.no_grad()
def take_first_ranks_buffers(module: torch.nn.Module) -> None:
    """Batch statistics and the like become rank 0's on every rank, so that all judge, and choose, the same network."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def all_gather_with_grad(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, (sum of B, ...); ranks may hold different B.

    The gradient is that of the SUM of all ranks' losses: each rank's share is summed back to the rank it came from.
    """
    if world() == 1:
        return x
    sizes = all_sizes(len(x), device=x.device)
    gathered: Tensor = _AllGather.apply(x, sizes)  # type: ignore[no-untyped-call]
    return gathered


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = x.new_zeros(max(sizes), *x.shape[1:])  # all_gather needs one shape on all ranks
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = all_reduce_sum(grads[0])
        start = sum(ctx.sizes[: rank()])
        return total[start : start + ctx.sizes[rank()]], None
