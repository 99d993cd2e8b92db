"""Stored losses of three steps of every objective: a change of numerics must be meant.

Reference augmentation, one thread. Keyed by CPU capability: 1e-6 relative on a known class, 1e-5 on an unknown one.
`python tests/golden/test_losses.py` (with tests/ on PYTHONPATH) writes the file anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from matrix import OBJECTIVES, train

STORE = Path(__file__).parent / "losses.json"


def measure(name: str) -> dict[str, list[float]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        losses: dict[str, list[float]] = train(folder=Path(), name=name)["losses"]
    finally:
        torch.set_num_threads(threads)
    return losses


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_losses_are_the_stored_ones(name: str) -> None:
    stored = json.loads(STORE.read_text())
    here = torch.backends.cpu.get_cpu_capability()
    expected, tolerance = (stored[here], 1e-6) if here in stored else (next(iter(stored.values())), 1e-5)
    got = measure(name)
    assert set(got) == set(expected[name])
    for term, values in expected[name].items():
        assert got[term] == pytest.approx(values, rel=tolerance), term


if __name__ == "__main__":
    known = json.loads(STORE.read_text()) if STORE.exists() else {}
    known[torch.backends.cpu.get_cpu_capability()] = {name: measure(name) for name in sorted(OBJECTIVES)}
    STORE.write_text(json.dumps(known, indent=1) + "\n")
