"""Whether an archive holds what it was sent: the data set without group 2, and the stored pixel values."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from hilum.core.types import Limits
from hilum.data.ledger import Rejected
from hilum.data.measurement import hashable
from hilum.medical.dicom.decode import open_image
from hilum.medical.dicom.header import Header, quiet, read_header

_PADDING = 0xFFFCFFFC
_DEPTH = 32


def differences(sent: Path, returned: Path, limits: Limits) -> list[str]:
    """Keywords (tags where there is none) of what differs; empty where the archive returned what it was sent.

    Equal bytes after the file meta information settle it. Else elements are compared by value and pixels by the SHA-256
    of their stored values (FORMATS 5), so another transfer syntax or another length encoding is no difference.
    """
    with quiet():
        if _same_bytes(sent, returned):
            return []
        try:
            headers = [read_header(p, limits) for p in (sent, returned)]  # before pydicom inflates without a limit
            one, other = (dcmread(p, stop_before_pixels=True, defer_size=1 << 20) for p in (sent, returned))
            return _elements(one, other, 0) + _pixels(headers, limits)
        except Exception:  # Rejected, and whatever pydicom makes of a damaged answer
            return ["unreadable"]


def _same_bytes(sent: Path, returned: Path) -> bool:
    with sent.open("rb") as one, returned.open("rb") as other:
        if _skip_meta(one) != _skip_meta(other):
            return False
        while True:
            a, b = one.read(1 << 20), other.read(1 << 20)
            if a != b:
                return False
            if not a:
                return True


def _skip_meta(file: Any) -> str:
    """Move behind group 2; the transfer syntax it names."""
    if file.read(132)[128:] != b"DICM":
        file.seek(0)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    return str(meta.get("TransferSyntaxUID") or "")


def _elements(one: Dataset, other: Dataset, depth: int) -> list[str]:
    if depth > _DEPTH:
        return ["nesting"]
    found: list[str] = []
    for tag in sorted(set(one.keys()) | set(other.keys())):
        if tag.element == 0 or tag == _PADDING or tag.group == 2:
            continue  # lengths and padding are encoding
        if tag not in one or tag not in other or not _equal(one, other, tag, depth):
            found.append(keyword_for_tag(tag) or f"({tag.group:04x},{tag.element:04x})")
    return found


def _equal(one: Dataset, other: Dataset, tag: Any, depth: int) -> bool:
    raw = [data.get_item(tag) for data in (one, other)]
    if all(isinstance(r, RawDataElement) and isinstance(r.value, bytes) for r in raw):
        orders = {r.is_little_endian for r in raw}
        if len(orders) == 1 and raw[0].value.rstrip(b" \0") == raw[1].value.rstrip(b" \0"):
            return True
    a, b = one[tag], other[tag]
    if a.VR == "SQ" and b.VR == "SQ":
        items = list(a.value or ()), list(b.value or ())
        return len(items[0]) == len(items[1]) and not any(
            _elements(x, y, depth + 1) for x, y in zip(*items, strict=True)
        )
    return bool(a.value == b.value) or (not a.value and not b.value and a.value != 0 and b.value != 0)


def _pixels(headers: list[Header], limits: Limits) -> list[str]:
    names = [h.pixels.keyword if h.pixels is not None else "" for h in headers]
    if names[0] != names[1]:
        return ["PixelData"]
    try:
        return [names[0]] if names[0] and len({_digest(h, limits) for h in headers}) > 1 else []
    except (Rejected, RecursionError, MemoryError):  # not equal bytes, and no codec to tell whether equal pixels
        return [names[0]]


def _digest(header: Header, limits: Limits) -> str:
    digest = hashlib.sha256()
    for _, stored in open_image(header.path, limits, header).stored.chunks():
        digest.update(hashable(stored))
    return digest.hexdigest()
