"""The images of a series say nearly everything in the same bytes: what follows from those bytes is worked out once.

For rows without pixels alone, where it is most of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hilum.core.types import IndexRow, Limits
from hilum.medical.dicom.geometry import geometry_of
from hilum.medical.dicom.header import Header
from hilum.medical.dicom.layout import Layout
from hilum.medical.dicom.tags import TAGS

# What differs from image to image, and is read by nothing but `geometry_of` and, the first one, as an identifier.
VARYING = (
    *("SOPInstanceUID", "ImagePositionPatient", "InstanceNumber", "SliceLocation"),
    *("AcquisitionTime", "ContentTime", "TriggerTime", "FrameReferenceTime"),
)
_VARYING = frozenset(TAGS[keyword] for keyword in VARYING)
_OF_FRAMES = frozenset(TAGS[k] for k in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"))
_GEOMETRY = frozenset(("orientation", "positions", "frame_keys"))


@dataclass(frozen=True)
class Common:
    """What follows from what headers of one series ``said``: a row but for geometry and the image's own identifier."""

    said: tuple[Any, ...]
    layout: Layout
    columns: dict[str, Any]
    identity: dict[str, Any]
    problems: tuple[str, ...]

    @classmethod
    def of(cls, said: tuple[Any, ...], layout: Layout, row: IndexRow) -> Common | None:
        """From the row of one image; None where what varies had a fault, which need not be the next one's."""
        if any(problem.endswith(VARYING) for problem in row.problems):
            return None
        columns = {name: value for name, value in row.columns.items() if name not in _GEOMETRY}
        return cls(said, layout, columns, dict(row.identity), tuple(row.problems))

    def row(self, header: Header) -> IndexRow:
        """Of another header that says the same."""
        columns = self.columns | geometry_of(header, self.layout)
        identity = self.identity | {"sop_instance_uid": header.identifier("SOPInstanceUID")}
        problems = list(dict.fromkeys((*self.problems, *header.problems)))
        return IndexRow("indexed", columns=columns, identity=identity, problems=problems)


def said(header: Header, limits: Limits) -> tuple[Any, ...] | None:
    """All that a row without pixels depends on, but what varies; None where frames may speak for themselves, or the
    row depends on the pixel element's own bytes."""
    pixels = header.pixels
    if pixels is None or pixels.length is None or header.inflated is not None or header.elements.keys() & _OF_FRAMES:
        return None
    there = min(pixels.length, header.size - pixels.offset)
    values = tuple([(tag, e.VR, e.value if tag not in _VARYING else None) for tag, e in header.elements.items()])
    about = header.syntax, header.sop_class, header.cut, tuple(header.problems), limits
    return (values, pixels.keyword, pixels.vr, pixels.length, there, *about)
