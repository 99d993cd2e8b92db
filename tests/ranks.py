"""Run a function on two gloo ranks in a process of its own and bring back what rank 0 returned."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parent


def run_on_ranks(target: str, folder: Path, *, world: int = 2, seconds: float = 120.0, **kwargs: Any) -> Any:
    """``target`` is ``module:function`` importable from tests/; its tensors-and-plain-values result is returned."""
    torch.save(kwargs, folder / "arguments.pt")
    with socket.socket() as probe:  # a free port: two launches at once must not meet
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-port", str(port),
        str(Path(__file__)), target, str(folder),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise AssertionError(f"{target} failed on {world} ranks:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return torch.load(folder / "result.pt", weights_only=True)


def main() -> None:
    target, folder = sys.argv[1], Path(sys.argv[2])
    module, _, name = target.partition(":")
    result = getattr(importlib.import_module(module), name)(
        folder=folder, **torch.load(folder / "arguments.pt", weights_only=True)
    )
    if int(os.environ["RANK"]) == 0:
        torch.save(result, folder / "result.pt")


if __name__ == "__main__":
    main()
