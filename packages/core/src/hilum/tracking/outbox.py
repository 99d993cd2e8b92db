"""Calls of a server that may fail: kept in order, tried again, dropped only when the server refuses them by name."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

LOG = logging.getLogger("hilum.track")
WAIT_S, UPLOAD_WAIT_S, BACKOFF_S, LETTERS = 20, 600, 600.0, 500
# In force while a call is under way, and only where the user set nothing.
_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
_LEVELS = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "urllib3.connectionpool": logging.ERROR}

Action = Callable[[Any, str], object]  # (client, run id)


@contextlib.contextmanager
def calm(wait_s: int = WAIT_S) -> Iterator[None]:
    """Around every call of the client: no INFO lines, no retry warnings, no minutes of waiting."""
    before = {name: logging.getLogger(name).level for name in _LEVELS}
    settings = {**_SETTINGS, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(wait_s)}
    added = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(added)
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(max(level, before[name]))
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        for key in added:
            os.environ.pop(key, None)


def refused(error: Exception) -> bool:
    """The request itself is at fault (HTTP 4xx, a file that is gone): sending it again cannot help."""
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError)
    status = getattr(error, "get_http_status_code", lambda: 400)()
    return 400 <= status < 500 and status not in (408, 429)


def public(text: str) -> str:
    """Without user, password and query of the addresses in it."""
    return re.sub(r"(://[^\s?]*)\?\S*", r"\1", re.sub(r"://[^/@\s]*@", "://", text))


def brief(error: Exception) -> str:
    """One line, without credentials."""
    return public((str(error).splitlines() or [type(error).__name__])[0][:400])


class Outbox:
    """``connect`` returns (client, run id) or raises; it is called again until it has succeeded once.

    After a failure nothing is tried for 2, 4, 8 .. times ``retry_s``, ten minutes at most. A call that fails three
    times while the server answers others (or once, at the end) is dropped with a warning: it must not hold up the rest.
    """

    def __init__(self, connect: Callable[[], tuple[Any, str]], *, retry_s: float) -> None:
        self.connect, self.retry_s = connect, retry_s
        self.link: tuple[Any, str] | None = None
        self.letters: deque[tuple[str, Action, int]] = deque()
        self.busy = False
        self._failures, self._retry_at = 0, 0.0
        self._warned: set[str] = set()

    def warn(self, key: str, text: str) -> None:
        """A warning, once a key."""
        if key not in self._warned:
            self._warned.add(key)
            LOG.warning("%s", public(text))

    def put(self, what: str, action: Action, *, wait_s: int = WAIT_S) -> None:
        """``what`` names the call in messages. Beyond 500 waiting calls new ones are dropped, with a warning."""
        if len(self.letters) < LETTERS:
            self.letters.append((what, action, wait_s))
        else:
            self.warn("full", f"too much waits for the tracking store: {what} and what follows is not sent")

    @property
    def ready(self) -> bool:
        """Whether the last failure is long enough ago."""
        return time.monotonic() >= self._retry_at

    def send(self, *, last: bool = False) -> bool:
        """Sends what waits; False where something is left or a failure was too recent (``last``: try all the same)."""
        if self.busy or not (last or self.ready):
            return False
        self.busy = True  # a signal's handler may come back here
        try:
            while self.link is None or self.letters:
                if not self._next(last):
                    return False
            return True
        finally:
            self.busy = False

    def fail(self, error: Exception) -> None:
        """Notes a failure: waits before the next attempt, says so once."""
        self._failures += 1
        self._retry_at = time.monotonic() + min(BACKOFF_S, self.retry_s * 2**self._failures)
        self.warn("server", f"the tracking store fails; the run goes on, numbers are in its logs/: {brief(error)}")

    def _next(self, last: bool) -> bool:
        if self.link is None:
            try:
                self.link = self.connect()
            except Exception as error:
                self.fail(error)
            return self.link is not None
        what, action, wait_s = self.letters[0]
        try:
            with calm(wait_s):
                action(*self.link)
        except Exception as error:
            if not refused(error) and not ((last or self._failures >= 2) and self._answers()):
                self.fail(error)
                return False
            self.warn(what, f"{what}: refused by the tracking store and not in it: {brief(error)}")
        self.letters.popleft()
        self._failures = 0
        return True

    def _answers(self) -> bool:
        assert self.link is not None
        client, run_id = self.link
        try:
            with calm():
                return client.get_run(run_id) is not None
        except Exception:
            return False
