"""How far a long job is: a bar on a terminal, a line a minute where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_EVERY = 60.0  # seconds between two lines


def following(results: Iterable[tuple[int, T]], total: int, *, name: str, shown: bool) -> Iterator[T]:
    """Results of (number of files, result), while how many of ``total`` are done and the time left is told."""
    if shown and total and sys.stderr.isatty():
        yield from _bar(results, total, name)
        return
    began = last = time.monotonic()
    done = 0
    for number, result in results:
        yield result
        done += number
        now = time.monotonic()
        if shown and now - last >= _EVERY:
            last = now
            left = (now - began) / max(done, 1) * (total - done)
            sys.stderr.write(f"hilum {name}: {done} of {total} files, about {_span(left)} left\n")


def _bar(results: Iterable[tuple[int, T]], total: int, name: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:  # its last column is the time left
        task = bar.add_task(name, total=total)
        for number, result in results:
            yield result
            bar.advance(task, number)


def _span(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else "a minute"
