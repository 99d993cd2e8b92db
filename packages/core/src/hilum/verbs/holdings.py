"""What a study holds, gathered once for the terminal and for the page of ``hilum doctor``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hilum.data.inventory import inventory, volumes
from hilum.data.study import Study


@dataclass
class Syntax:
    """``files`` of one transfer syntax, those ``unread`` for want of a codec, and the codecs that read the others."""

    uid: str
    name: str
    files: int = 0
    unread: int = 0
    codecs: Counter[str] = field(default_factory=Counter)


@dataclass
class Archive:
    """Numbers of a study as the page and the terminal show them."""

    study: Study
    numbers: dict[str, Any]
    volumes: dict[str, Any]
    usable: int
    patients: int
    left: dict[str, int]
    labels: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # positive, negative, uncertain
    names: dict[str, str] = field(default_factory=dict)  # of transfer syntaxes, by UID

    @staticmethod
    def of(study: Study) -> Archive:
        index, rows = study.index, study.rows(None)
        groups = index["group_id"].take(pa.array(rows)) if len(rows) else pa.array([], pa.string())
        matrix = study.label_matrix(None, rows) if study.label_names else np.zeros((0, 0), np.float32)
        labels = {
            name: (int((column == 1).sum()), int((column == 0).sum()), int((column == -1).sum()))
            for name, column in zip(study.label_names, matrix.T, strict=True)
        }
        return Archive(
            study,
            inventory(study),
            volumes(study),
            len(rows),
            int(pc.count_distinct(groups).as_py()),
            study.left_out(),
            labels,
            _syntax_names(),
        )

    @property
    def counts(self) -> dict[str, Any]:
        return dict(self.numbers["counts"])

    @property
    def headers_only(self) -> bool:
        return bool(self.study.about.get("headers_only"))

    def syntaxes(self) -> list[Syntax]:
        """Transfer syntaxes of the files, most frequent first."""
        found: dict[str, Syntax] = {}
        for (uid, _, reason, codec, version), n in self.numbers["syntaxes"].items():
            one = found.setdefault(uid, Syntax(uid, self.names.get(uid, uid)))
            one.files += n
            one.unread += n if reason == "unsupported_transfer_syntax" else 0
            if codec:
                one.codecs["none needed" if codec == "native" else f"{codec} {version or ''}".strip()] += n
        return sorted(found.values(), key=lambda s: (-s.files, s.uid))

    def waiting(self) -> dict[str, int]:
        """What is said of files that no installed codec reads -> how many; it names the codec to install."""
        said = self.numbers["messages"].items()
        return {message: n for (reason, message), n in said if reason == "unsupported_transfer_syntax"}


def _syntax_names() -> dict[str, str]:
    """Names of transfer syntaxes, as installed intakes know them."""
    from hilum.core.registry import registry

    names: dict[str, str] = {}
    for entry in registry.entries("intake").values():
        told = getattr(entry.load()(), "syntaxes", None) if not entry.missing() else None
        names |= told() if callable(told) else {}
    return names
