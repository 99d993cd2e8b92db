"""Ranks that differ do not go different ways: none waits for another for ever, and all stop for one reason."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from ranks import run_on_ranks

pytestmark = pytest.mark.integration


def test_ranks_that_judge_differently_choose_alike(tmp_path: Path) -> None:
    told = run_on_ranks("core_ranks_apart:judge", tmp_path)
    assert told == {"reason": "no gain", "best": 0.5, "epoch": 1}


def test_batch_statistics_are_one_network_s_when_it_is_judged(tmp_path: Path) -> None:
    told = run_on_ranks("core_ranks_apart:batch_norm", tmp_path)
    assert told["equal"] and told["moved"] > 0


def test_a_signal_to_one_rank_stops_all_and_all_know_it(tmp_path: Path) -> None:
    told = run_on_ranks("core_ranks_apart:stop_one", tmp_path)
    assert told == {"reason": "signal", "signal": int(signal.SIGTERM), "step": 6}


def test_a_term_that_appears_later_on_one_rank_is_refused_by_all(tmp_path: Path) -> None:
    told = run_on_ranks("core_ranks_apart:surprise", tmp_path, later=True)
    assert "step 2 has terms" in told["told"] and "on another rank" in told["told"]


def test_logs_are_means_over_ranks(tmp_path: Path) -> None:
    told = run_on_ranks("core_ranks_apart:surprise", tmp_path, later=False)
    assert told["told"] == "" and set(told["ranks"]) == {0.5}
