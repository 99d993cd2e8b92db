"""What a DIMSE peer may make us hold, and how pynetdicom is set while we use it."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pynetdicom import _config

PDU = 1 << 16  # bytes of a protocol data unit that we accept


class Guard:
    """Bounds what a peer makes us hold: the length that a unit claims, and the bytes of one message.

    The protocol's machine believes any claimed length of up to 4 GiB; here it is compared with what was negotiated
    before anything is read, and a connection that breaks the bound is treated as closed.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.broken, self._most, self._seconds = "", most, seconds
        self.restart()

    def restart(self) -> None:
        """A message is complete; the next may be as long."""
        self._left, self._until = self._most, time.monotonic() + self._seconds

    def attach(self, event: Any) -> None:
        transport = event.assoc.dul.socket
        transport.socket.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # a request is two units: 40 ms each else
        read = transport.recv

        def bounded(size: int) -> Any:
            if size > PDU + 4096:
                self.broken = "pdu_too_long"
            elif size > self._left:
                self.broken = "too_large"
            elif time.monotonic() > self._until:
                self.broken = "timeout"
            if self.broken:
                raise OSError(self.broken)
            self._left -= size
            return read(size)

        transport.recv = bounded


@contextlib.contextmanager
def streaming(folder: Path | None) -> Iterator[None]:
    """pynetdicom's settings while we use it: data sets pass through files (in ``folder``), nothing is logged."""
    wanted = {
        "LOG_HANDLER_LEVEL": "none",
        "STORE_RECV_CHUNKED_DATASET": True,
        "STORE_SEND_CHUNKED_DATASET": True,
    }
    before, place = {name: getattr(_config, name) for name in wanted}, tempfile.tempdir
    for name, value in wanted.items():
        setattr(_config, name, value)
    tempfile.tempdir = place if folder is None else str(folder)  # images never lie outside OUT, not for a moment
    try:
        yield
    finally:
        tempfile.tempdir = place
        for name, value in before.items():
            setattr(_config, name, value)
