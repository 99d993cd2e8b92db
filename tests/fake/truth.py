"""What a fake published set really holds, file by file, said by its writer and not by the code under test."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Held:
    """One image or mask. ``patient`` None: nobody knows whose it is. ``labels`` by finding, None unknown; ``kind`` is a
    class."""

    path: str
    patient: str | None = None
    split: str | None = None
    labels: dict[str, float | None] = field(default_factory=dict)
    kind: str | None = None
    view: str | None = None
    role: str = "image"
