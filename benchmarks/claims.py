"""What every benchmark shares: interleaved timing, the JSON line of a claim, the description of the machine."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

REPEATS = 5  # the fewest interleaved repeats that a ratio is the median of


def arguments(description: str | None, *extra: tuple[str, dict]) -> argparse.Namespace:
    """The command line of a benchmark: ``--quick`` and what it adds."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 50 s on two cores")
    for flag, options in extra:
        parser.add_argument(flag, **options)
    return parser.parse_args()


def interleaved(sides: Mapping[str, Callable[[], object]], *, repeats: int = REPEATS) -> dict[str, list[float]]:
    """Seconds of every side in each of ``repeats`` rounds; who goes first changes from round to round."""
    names, taken = list(sides), {name: list[float]() for name in sides}
    for number in range(max(repeats, REPEATS)):
        for name in names if number % 2 == 0 else names[::-1]:
            gc.collect()
            began = time.perf_counter()
            sides[name]()
            taken[name].append(time.perf_counter() - began)
    return taken


def ratios(peer: Sequence[float], own: Sequence[float]) -> list[float]:
    """peer / own of every round: how many times faster ours is, for equal work."""
    return [p / o for p, o in zip(peer, own, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Smallest to largest."""
    return f"{min(values):.3g} to {max(values):.3g}"


def tell(*lines: str) -> None:
    """Lines that the documentation repeats above the claims."""
    for line in lines:
        print(f"- {line}", flush=True)


def claim(
    name: str, value: float | None, unit: str, goal: float, *, below: bool = False, at_least: float | None = None
) -> bool:
    """Print one claim. ``below`` where small is good; a missing value (an absent peer) never holds.

    ``at_least`` is a second number that must reach the goal.
    """
    holds = value is not None and (
        value < goal if below else min(value, value if at_least is None else at_least) >= goal
    )
    shown = None if value is None else float(f"{value:.4g}")
    told = {"claim": name, "value": shown, "unit": unit, "goal": f"{'<' if below else '>='} {goal:g}", "holds": holds}
    print(json.dumps(told), flush=True)
    return holds


def claim_ratio(name: str, rounds: Sequence[float], unit: str, goal: float) -> bool:
    """A claim whose value is the median of ``rounds``; it holds where their lower quartile reaches the goal too.

    On a busy machine the median of a few rounds can pass a goal near 1 by chance; the quartile then does not.
    """
    quartile = statistics.quantiles(rounds, n=4, method="inclusive")[0]
    tell(f"{name}: rounds {spread(rounds)}, lower quartile {quartile:.4g}")
    return claim(name, statistics.median(rounds), unit, goal, at_least=quartile)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Compute threads of a process, on both sides: OMP_NUM_THREADS where it is set, else one a core."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) else cores()


def versions(*names: str) -> str:
    """``name version`` of installed distributions."""
    known = []
    for name in names:
        try:
            known.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            known.append(f"{name} absent")
    return ", ".join(known)


def machine() -> list[str]:
    """Cores, instruction set and versions; no name of a host or a user."""
    import psutil
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return [
        f"{cores()} cores ({platform.machine()}, {_processor()}), torch's CPU capability "
        f"{torch.backends.cpu.get_cpu_capability()}, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory, GPU: {gpu}",
        f"Python {platform.python_version()}, {versions('torch', 'timm', 'pydicom', 'numpy')}",
    ]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"
