"""Run every benchmark and write docs/benchmarks.md: `make bench`, or `python benchmarks/run.py --quick`.

Claims that do not hold are written down like the others. Sections between `<!-- hand-written: NAME -->` and
`<!-- end: NAME -->` are kept as they stand. A script that fails makes the exit code 1; a claim that does not hold does not.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from claims import arguments, cores, machine

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
SCRIPTS = (
    "index",
    "volumes",
    "mae_step",
    "cache",
    "loader",
    "start",
    "simulator",
    "augment",
    "augment_traffic",
)  # data_wait.py is for a GPU, radiographs.py trains for long
LIMIT_S = 3600


@dataclass
class Result:
    """What one script printed. ``error`` is the end of its complaint where it failed."""

    name: str
    about: str
    lines: list[str] = field(default_factory=list)
    claims: list[dict] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0


def run(name: str, *, quick: bool) -> Result:
    """One script in its own process; its last lines are its claims."""
    script = HERE / f"{name}.py"
    result = Result(name, ast.get_docstring(ast.parse(script.read_text())) or "")
    began = time.monotonic()
    command = [sys.executable, str(script), *(["--quick"] if quick else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        output, code, complaint = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        output, code, complaint = "", 1, f"it did not end within {LIMIT_S} s"
    result.seconds = time.monotonic() - began
    for line in output.splitlines():
        if line.startswith("{"):
            result.claims.append(json.loads(line))
        elif line.startswith("- "):
            result.lines.append(line)
    if code or not result.claims:
        result.error = (complaint.strip().splitlines() or ["it printed no claim"])[-1]
        told = {"claim": name, "value": None, "unit": "", "goal": "to run", "holds": False}
        result.claims.append(told)
    return result


def table(claims: list[dict]) -> list[str]:
    rows = [
        f"| {c['claim']} | {_value(c['value'])} | {c['unit']} | {c['goal']} | {_word(c['holds'])} |" for c in claims
    ]
    return ["| claim | measured | unit | goal | holds |", "|---|---|---|---|---|", *rows]


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _word(holds: bool) -> str:
    return "yes" if holds else "**no**"


def kept(name: str) -> list[str]:
    """A hand-written section of the page, with its markers."""
    text = PAGE.read_text() if PAGE.is_file() else ""
    found = re.search(rf"<!-- hand-written: {name} -->\n(.*?)\n?<!-- end: {name} -->", text, re.DOTALL)
    return [f"<!-- hand-written: {name} -->", found[1] if found else "Nothing yet.", f"<!-- end: {name} -->"]


def page(results: list[Result], *, quick: bool, load: tuple[float, float], threads: str) -> str:
    """The whole page."""
    busy = max(load) > 0.5 * cores() and "The machine was **shared with other work** while this was measured" or ""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`python benchmarks/run.py`); only the sections marked hand-written are kept. Each script",
        "in `benchmarks/` runs ours and its peer in the same run; a ratio is the median of at least five interleaved",
        "repeats, and holds only where the lower quartile of the repeats reaches the goal too, so that the noise of a busy",
        "machine is no success. A claim that does not hold stays here. No test asserts speed.",
        "",
        f"Measured {datetime.now(UTC):%Y-%m-%d}{' with `--quick` (small settings)' if quick else ''}. "
        + (
            f"{busy} (load {load[0]:.1f} before, {load[1]:.1f} after): absolute rates are low, ratios scatter."
            if busy
            else ""
        ),
        "",
        *(f"- {line}" for line in machine()),
        f"- {threads}",
        "",
        "## All claims",
        "",
        *table([claim for result in results for claim in result.claims]),
        "",
    ]
    for result in results:
        lines += [f"## {result.name}", "", result.about, "", *result.lines]
        lines += [f"- The script failed: `{result.error}`"] if result.error else []
        lines += [f"- The script took {result.seconds:.0f} s.", "", *table(result.claims), ""]
    lines += ["## On a GPU, measured and owed", "", *kept("gpu"), ""]
    lines += ["## On real radiographs", "", *kept("radiographs"), ""]
    return "\n".join(line.rstrip() for line in lines)


def main() -> int:
    only = ("--only", {"nargs": "+", "choices": SCRIPTS, "help": "print these; the page is not written"})
    options = arguments(__doc__, only)
    before, results = os.getloadavg()[0], []
    for name in options.only or SCRIPTS:
        results.append(run(name, quick=options.quick))
        print(
            "\n".join(
                [f"{name} ({results[-1].seconds:.0f} s)", *results[-1].lines, *map(json.dumps, results[-1].claims)]
            )
        )
        if results[-1].error:
            print(f"{name} failed: {results[-1].error}", file=sys.stderr)
    if not options.only:
        told = os.environ.get("OMP_NUM_THREADS")
        threads = f"{told} compute thread(s) a process, on both sides (OMP_NUM_THREADS)" if told else "a thread a core"
        load = (before, os.getloadavg()[0])
        PAGE.write_text(page(results, quick=options.quick, load=load, threads=threads))
        print(f"wrote {PAGE.relative_to(HERE.parent)}")
    return int(any(result.error for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
