"""Collectives: identities alone, and two gloo processes against one."""

import subprocess
import sys
import textwrap

import torch

from hilum.parts import gather

WORKER = """
    import os, sys
    import torch
    import torch.distributed as dist
    import torch.multiprocessing as mp
    from hilum.parts import gather

    def rows():
        return torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(everything, start, n):
        mine = everything[start : start + n]
        weight = torch.arange(n, dtype=torch.float64) + start + 1
        return (weight[:, None] * (mine @ everything.T).softmax(1).log()).sum()

    def work(rank, path):
        dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
        sizes = [2, 3]
        start, n = sum(sizes[:rank]), sizes[rank]
        x = rows()[start : start + n].clone().requires_grad_()
        everything = gather.all_gather_with_grad(x)
        assert torch.equal(everything, rows()), "rows of all ranks in order"
        assert gather.world() == 2 and gather.rank() == rank
        assert gather.all_sizes(n) == sizes
        loss(everything, start, n).backward()

        whole = rows().requires_grad_()  # one process with both losses
        (loss(whole, 0, 2) + loss(whole, 2, 3)).backward()
        assert torch.allclose(x.grad, whole.grad[start : start + n], atol=1e-12), "gradient of the sum of losses"

        value = torch.full((2, 2), float(rank + 1), requires_grad=True)
        total = gather.all_reduce_sum(value.T)
        assert (total == 3).all() and not total.requires_grad and (value == rank + 1).all()
        ids = gather.all_gather_with_grad(torch.tensor([rank, 7]))
        assert ids.tolist() == [0, 7, 1, 7]
        dist.barrier()
        dist.destroy_process_group()

    mp.start_processes(work, args=(sys.argv[1],), nprocs=2, start_method="fork")
    print("both ranks agree")
"""


def test_two_processes_equal_one(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "rendezvous")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "both ranks agree" in done.stdout


def test_alone_they_are_identities():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather.all_gather_with_grad(x) is x
    assert (gather.world(), gather.rank(), gather.all_sizes(3)) == (1, 0, [3])
    total = gather.all_reduce_sum(x)
    assert torch.equal(total, x)
    assert not total.requires_grad
    assert total.data_ptr() != x.data_ptr()
