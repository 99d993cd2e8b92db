"""How long the command line takes to answer: whole processes, interpreter start included, median of five.

There is no peer to divide by: the goals are seconds. A process that only starts the interpreter is timed beside them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from claims import arguments, claim, interleaved, spread, tell, versions

HILUM = [sys.executable, "-m", "hilum.core.cli"]
GOALS = {"help": (["--help"], 0.5), "list": (["list"], 1.0)}


def command() -> list[str]:
    """The installed command, as a user calls it."""
    installed = Path(sys.executable).with_name("hilum")
    return [str(installed)] if installed.is_file() else HILUM


def process(words: list[str]) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    arguments(__doc__)
    sides = {name: (lambda words=words: process([*command(), *words])) for name, (words, _) in GOALS.items()}
    sides["interpreter"] = lambda: process([sys.executable, "-c", "pass"])
    for run in sides.values():
        run()
    taken = interleaved(sides)
    tell(
        f"hilum {versions('hilum').removeprefix('hilum ')}; an interpreter that does nothing takes "
        f"{statistics.median(taken['interpreter']):.3f} s"
    )
    for name, (words, goal) in GOALS.items():
        tell(f"`hilum {' '.join(words)}`: {spread(taken[name])} s")
        claim(f"start_{name}", statistics.median(taken[name]), "s", goal, below=True)


if __name__ == "__main__":
    main()
