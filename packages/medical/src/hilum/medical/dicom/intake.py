"""DICOM files for ``hilum index``: which are images, what their headers say, what their pixels are."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydicom.uid import UID

from hilum.core.types import IndexRow, Limits, Pixels
from hilum.data.ledger import Rejected
from hilum.medical.dicom.alike import Common, said
from hilum.medical.dicom.axes import frames_axis
from hilum.medical.dicom.codecs import NATIVE, ORDER, inventory, known_syntax
from hilum.medical.dicom.decode import Image, decode, inverted, measure, open_image, spacing_of
from hilum.medical.dicom.dicomdir import check_dicomdir
from hilum.medical.dicom.geometry import SEGMENTATIONS, geometry_of, references_of
from hilum.medical.dicom.header import Header, looks_like_dicom, quiet, read_header
from hilum.medical.dicom.kinds import non_image
from hilum.medical.dicom.layout import COLOUR, GREY, PALETTE, Layout, missing
from hilum.medical.dicom.terms import vendor_of
from hilum.medical.dicom.voi import differs_by_frame, fallback, window_of
from hilum.medical.volumes.assemble import OPTIONS, assemble


class DicomIntake:
    """Reads DICOM. Rows carry no header text except codes that look like codes."""

    name: ClassVar[str] = "dicom"
    chooses_window: ClassVar[bool] = True  # open takes voi
    version: ClassVar[str] = "3"  # raise when the same file would give other pixels: caches are then built again
    volume_options: ClassVar[dict[str, str]] = dict(OPTIONS)
    _common: Common | None = None  # with the last header that was read

    def claims(self, path: Path, head: bytes) -> float:
        return looks_like_dicom(head) or (0.1 if path.suffix.lower() in (".dcm", ".dicom") else 0.0)

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        return [self._row(path, limits, pixels=True)]

    def read_header(self, path: Path, limits: Limits) -> list[IndexRow]:
        """What can be told without decoding pixels."""
        return [self._row(path, limits, pixels=False)]

    def open(
        self, path: Path, row: Mapping[str, Any], *, voi: str | int = "auto", frames: range | None = None
    ) -> Pixels:
        """See :func:`~hilum.medical.dicom.decode.decode`."""
        return decode(path, row=row, voi=voi, frames=frames)

    def problems(
        self, rows: Sequence[Mapping[str, Any]], options: frozenset[str] = frozenset()
    ) -> list[dict[str, Any]]:
        """Rows of ``series.parquet`` of one series: :func:`~hilum.medical.volumes.assemble.assemble`."""
        return assemble(rows, options)

    def codecs(self) -> dict[str, str]:
        """For the doctor: compressed syntaxes, and what reads them here."""
        return inventory()

    def syntaxes(self) -> dict[str, str]:
        """For the doctor: names of transfer syntaxes by UID."""
        return {uid: str(UID(uid).name) for uid in (*NATIVE, *ORDER)}

    def _row(self, path: Path, limits: Limits, *, pixels: bool) -> IndexRow:
        with quiet():
            header = read_header(path, limits)
            same = None if pixels else said(header, limits)
            if same is not None and self._common is not None and self._common.said == same:
                with contextlib.suppress(Exception):  # a fault is told below, with whose it is
                    return self._common.row(header)
            row = IndexRow("indexed", columns=_attributes(header), identity=_identity(header))
            try:
                kind = non_image(header.sop_class)
                if kind is not None:
                    row.status, row.reason = "skipped", f"non_image:{kind}"
                    if kind == "rtstruct":
                        row.columns["role"] = "label"
                    if kind == "dicomdir":
                        check_dicomdir(header, limits)
                else:
                    layout = self._image(header, row, limits, pixels=pixels)
                    row.problems = header.problems
                    self._common = Common.of(same, layout, row) if same is not None else self._common
            except Rejected as error:
                row.status, row.reason, row.message = "quarantined", error.reason, error.what
            except (MemoryError, RecursionError):
                row.status, row.reason = "quarantined", "resource_limit"
                row.message = "reading it needs more memory or depth than the limit"
            except Exception as error:
                row.status, row.reason = "quarantined", "codec_error"
                row.message = f"its pixels cannot be decoded ({type(error).__name__})"
            row.problems = header.problems
            return row

    def _image(self, header: Header, row: IndexRow, limits: Limits, *, pixels: bool) -> Layout:
        if not header.sop_class:
            if header.pixels is None:
                raise missing("SOPClassUID")
            header.note("assumed:SOPClassUID")
        image = open_image(header.path, limits, header)
        statistics: dict[str, Any] = {}
        if pixels:
            measured = measure(image)
            statistics = measured.statistics(background=_padding_value(image))
            row.columns |= {
                "stored_sha256": measured.stored_sha256,
                "modality_sha256": measured.modality_sha256,
                **statistics,
            }
            if statistics["min"] is not None and statistics["min"] == statistics["max"]:
                header.note("constant_values")
            if measured.non_finite:
                header.note(f"non_finite:{measured.non_finite}")
        row.columns |= _described(image, statistics)
        if not pixels and row.columns["window"] == "range p0.5-p99.5":
            row.columns |= {"lo": None, "hi": None}
        return image.layout


def _described(image: Image, statistics: Mapping[str, Any]) -> dict[str, Any]:
    header, layout = image.header, image.layout
    window, function = window_of(header, layout, image.modality)
    if window is not None and differs_by_frame(header, layout.frames):
        header.note("window_differs_by_frame")
    window = window or fallback(layout, image.modality, statistics, wide_palette=(statistics.get("max") or 0) > 255)
    return {
        "bits_stored": layout.stored,
        "frames": layout.frames,
        "rows": layout.rows,
        "columns": layout.columns,
        "unit": image.modality.unit,
        "codec": image.stored.codec,
        "codec_version": image.stored.codec_version,
        "lo": window.lo,
        "hi": window.hi,
        "window": window.source,
        "voi_lut": function if not window.table else f"lut {_digest(window.table)}",
        "inverted": inverted(header, layout),
        "role": "label" if header.sop_class in SEGMENTATIONS else "image",
        "frames_axis": frames_axis(header, layout.frames),
        **geometry_of(header, layout),
    }


def _digest(table: Sequence[float]) -> str:
    """Tells two look-up tables of one range apart, so that a corrected one is noticed."""
    return hashlib.sha256(np.asarray(table, "<f8").tobytes()).hexdigest()[:8]


def _padding_value(image: Image) -> float | None:
    if image.padding is None or image.modality.line is None:
        return None
    slope, intercept = image.modality.line
    return image.padding[0] * slope + intercept


def _attributes(header: Header) -> dict[str, Any]:
    photometric = " ".join(str(header.value("PhotometricInterpretation") or "").upper().split())
    spacing = spacing_of(header)
    return {
        "modality": header.code("Modality"),
        "body_part": header.code("BodyPartExamined"),
        "view": header.code("ViewPosition"),
        "laterality": header.code("ImageLaterality") or header.code("Laterality"),
        "photometric": photometric if photometric in (*GREY, *COLOUR, PALETTE) else None,
        "transfer_syntax": known_syntax(header.syntax),
        "vendor": vendor_of(str(header.value("Manufacturer") or "")),
        "spacing_mm": None if spacing is None else list(spacing),
    }


def _identity(header: Header) -> dict[str, Any]:
    return {
        "group": (header.identifier("IssuerOfPatientID"), header.identifier("PatientID")),
        "study": header.identifier("StudyInstanceUID"),
        "series": header.identifier("SeriesInstanceUID"),
        "sop_instance_uid": header.identifier("SOPInstanceUID"),
        "accession": header.identifier("AccessionNumber"),
        "refers_to": references_of(header) if _marks(header) else [],
    }


def _marks(header: Header) -> bool:
    """Whether it is a label of other images; plain images name series they were planned on, too."""
    return header.sop_class in SEGMENTATIONS or non_image(header.sop_class) == "rtstruct"
