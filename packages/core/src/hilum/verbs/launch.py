"""How a run was launched: by itself, by torchrun, or by SLURM's srun. Reads the environment, imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hilum.core.errors import HilumError


@dataclass(frozen=True, slots=True)
class Launch:
    """``world`` processes, ``local`` of them on each of ``nodes`` machines; this one is number ``rank``."""

    world: int = 1
    local: int = 1
    nodes: int = 1
    rank: int = 0


def own_rank() -> int:
    """0 where this process was not launched as one of several."""
    names = ["RANK", "LOCAL_RANK"]
    if _by_slurm():
        names.insert(1, "SLURM_PROCID")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))


def launched() -> Launch | None:
    """None where nothing launched this process as one of several: then the run starts its own, one a device."""
    if "WORLD_SIZE" in os.environ:
        world = int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    elif _by_slurm():
        world = int(os.environ["SLURM_NTASKS"])
        local = world // max(int(os.environ.get("SLURM_NNODES", "1")), 1)
    else:
        return None
    if local < 1 or world % local:
        raise HilumError(
            f"{world} processes cannot stand evenly on machines of {local}",
            where="the launcher's environment",
            fix="the same number of processes on every machine",
        )
    return Launch(world, local, world // local, own_rank())


def _by_slurm() -> bool:
    """Whether srun started this process as a task; a shell inside an allocation has no step of its own."""
    return (
        int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ
    )
