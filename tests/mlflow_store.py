"""Ways to read back what a tracker wrote, and a client that can be made to fail."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from hilum.tracking.tracker import Tracker


def fetch(tracker: Tracker) -> Any:
    assert tracker.outbox.link is not None
    return tracker.outbox.link[0].get_run(tracker.run_id)


def history(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    assert tracker.outbox.link is not None
    found = tracker.outbox.link[0].get_metric_history(tracker.run_id, key)
    return sorted((metric.step, metric.value) for metric in found)


def artifact(tracker: Tracker, file: str) -> bytes:
    return (Path(fetch(tracker).info.artifact_uri.removeprefix("file://")) / file).read_bytes()


def lines(tracker: Tracker) -> list[dict[str, Any]]:
    text = (tracker.run_dir / "logs" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


class Flaky:
    """A client whose named calls fail while ``error`` is set; counts the calls."""

    def __init__(self, client: Any, *names: str) -> None:
        self.client, self.names, self.calls = client, names, 0
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in self.names:
            return getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.error is not None:
                raise self.error
            return getattr(self.client, name)(*args, **kwargs)

        return call


def flaky(tracker: Tracker, *names: str) -> Flaky:
    assert tracker.outbox.link is not None
    client = Flaky(tracker.outbox.link[0], *names)
    tracker.outbox.link = (client, tracker.outbox.link[1])
    return client


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
