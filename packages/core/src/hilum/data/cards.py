"""What is known of a published dataset before a byte of it is read: its card, and the class that reads its layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from hilum.core.errors import HilumError, nearest
from hilum.core.registry import registry

Terms = Literal["open", "registration", "credentialed"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Another collection whose images are among a dataset's own. ``name`` may be of a dataset that is registered or
    not; ``evidence`` says where that can be read."""

    name: str
    what: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Download:
    """One file that may be fetched without an agreement. ``checksum`` is ``md5:HEX`` or ``sha256:HEX`` as published, or
    blank; archives (.zip, .tar, .tar.gz) are unpacked. ``file`` is what it is called where the address does not say."""

    url: str
    checksum: str = ""
    file: str = ""

    @property
    def name(self) -> str:
        return self.file or self.url.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """``group`` says what the group id is and how it is derived, or that none exists; ``labels`` what values mean and
    what becomes of uncertain ones; ``split`` the official split; ``counts`` what was published (images, patients, and
    images of train, val, test); ``steps`` how to get it, ending where ``hilum index`` begins."""

    name: str
    title: str
    licence: str
    url: str
    citation: str
    terms: Terms
    group: str
    labels: str
    split: str
    steps: tuple[str, ...]
    files: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    draws_from: tuple[Origin, ...] = ()
    downloads: tuple[Download, ...] = ()
    traps: tuple[str, ...] = ()


class Dataset(ABC):
    """A published layout. ``table`` names every image; ``exclude`` are globs of files that are no images: its tables, and
    the AppleDouble twins (``._*``) that some archives hold."""

    card: ClassVar[DatasetCard]
    exclude: ClassVar[tuple[str, ...]] = ("*.csv", "*.csv.gz", "*.json", "*.txt", "*.parquet", "._*")

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def licence(self) -> str:
        return self.card.licence

    @property
    def group(self) -> str:
        return self.card.group

    @abstractmethod
    def table(self, root: Path) -> pa.Table:
        """One row a file: ``path`` and, where the set says so, ``issuer patient_id study_id image_id split view
        modality body_part role`` (image or label), then findings (1, 0, -1 uncertain, null unknown) or ``class``. A blank
        ``patient_id`` is an unknown group."""


def cards() -> dict[str, DatasetCard]:
    """Cards of the datasets that are installed, by name."""
    found = {name: getattr(kind, "card", None) for name, kind in registry.all("dataset").items()}
    return {name: card for name, card in found.items() if isinstance(card, DatasetCard)}


def card_of(name: str) -> DatasetCard:
    """The card of ``name``, with or without the part before the slash."""
    known = cards()
    full = [n for n in known if name in (n, n.rpartition("/")[2])]
    if len(full) != 1:
        near = nearest(name, [*known, *(n.rpartition("/")[2] for n in known)])
        raise HilumError(f"there is no dataset named {name!r}", where="the data set", fix=near or "hilum list datasets")
    return known[full[0]]


def differences(card: DatasetCard, study: Any) -> list[str]:
    """How the images, patients and official parts of a study differ from what was published: told, never an error."""
    image = np.asarray(study.column("role"), object) == "image"
    image &= np.asarray(study.column("status"), object) == "indexed"
    known = image & (np.asarray(study.column("group_known")) == True)  # noqa: E712  (null is not known)
    here = {"images": int(image.sum()), "patients": len(set(np.asarray(study.column("group_id"), object)[known]))}
    if study.labels is not None and "split" in study.labels.column_names:
        from hilum.data.tables import part_of

        parts = np.asarray(study.labels.column("split").to_pylist(), object)[image]
        here |= Counter(part for word in parts if word and (part := part_of(word)))
    return [
        f"{what}: {here.get(what, 0):,} indexed, {published:,} published"
        for what, published in card.counts.items()
        if here.get(what, 0) != published
    ]
