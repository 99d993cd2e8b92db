"""One process works on a run: a living lock is respected, a stale one is taken over by exactly one."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from hilum.core.errors import HilumError
from hilum.verbs.folder import RunFolder


def attempt(folder: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    try:
        with RunFolder(folder).lock():
            results.put("held")
            time.sleep(0.5)
    except HilumError:
        results.put("refused")


def gone() -> int:
    process = multiprocessing.get_context("fork").Process(target=os.getpid)
    process.start()
    process.join()
    return int(process.pid or 0)


@pytest.mark.parametrize("stale", [True, False])
def test_of_many_that_come_at_once_one_gets_it(stale: bool, tmp_path: Path) -> None:
    if stale:
        (tmp_path / "lock.json").write_text(json.dumps({"pid": gone(), "host": socket.gethostname()}))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()
    processes = [context.Process(target=attempt, args=(tmp_path, barrier, results)) for _ in range(6)]
    for process in processes:
        process.start()
    told = sorted(results.get(timeout=30) for _ in processes)
    for process in processes:
        process.join()
    assert told == ["held", *["refused"] * 5]
    assert not (tmp_path / "lock.json").exists()


def test_a_lock_of_another_machine_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text(json.dumps({"pid": 1, "host": "another"}))
    with pytest.raises(HilumError, match="another process"), RunFolder(tmp_path).lock():
        pass
    assert (tmp_path / "lock.json").exists()
