"""The fork server that data processes come from, and what a signal to the whole process group does to them."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import wait
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


def end_with_parent() -> None:
    """In a child: end when the run that started it does, even within a codec that never returns (where the system can).

    The system is asked to signal the end of the pipe that the parent holds open: no thread could while a codec holds
    the interpreter, and the server that children are forked from lives as long as they do.
    """
    parent = mp.parent_process()
    if parent is None or not hasattr(signal, "SIGIO"):
        return
    with contextlib.suppress(OSError, AttributeError):
        import fcntl

        held = parent.sentinel
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(held, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(held, fcntl.F_SETFL, fcntl.fcntl(held, fcntl.F_GETFL) | os.O_ASYNC)
        if wait([held], timeout=0):  # it ended before the system was asked
            os._exit(1)


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM, whose number is ``signal``."""

    def __init__(self, signal: int) -> None:
        self.signal = signal
        super().__init__()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises :class:`Stopped` here, so that work can be kept; a second one acts as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def stop(number: int, frame: Any) -> None:
        restore()
        raise Stopped(number)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


@contextlib.contextmanager
def bare_main() -> Iterator[None]:
    """Workers need nothing of the user's script: not running it again spares scripts the ``__main__`` guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


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
