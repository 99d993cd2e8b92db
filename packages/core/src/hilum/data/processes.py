"""The fork server that data processes come from, and what a signal to the whole process group does to them."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing import forkserver
from typing import Any

_heard: list[int] = []


def fork_server(preload: Sequence[str]) -> Any:
    """The ``forkserver`` context, its server started with SIGTERM blocked, as its children inherit.

    Schedulers and terminals signal whole process groups. The run itself stops after its step, for which it still needs
    data: whoever feeds it must not be gone before.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        return context
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def outlive_one_signal() -> None:
    """In a data worker: Ctrl-C is for the main process, and so is the first SIGTERM; a second one ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _hear)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _hear(number: int, frame: Any) -> None:
    if _heard:
        os._exit(0)
    _heard.append(number)
