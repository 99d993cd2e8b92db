"""DICOM files for ``hilum index``: which are images, what their headers say, what their pixels are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydicom.uid import UID_dictionary

from hilum.core.types import IndexRow, Limits, Pixels
from hilum.data.ledger import Rejected
from hilum.medical.dicom.codecs import inventory
from hilum.medical.dicom.decode import SEGMENTATION, Image, decode, inverted, measure, open_image, spacing_of
from hilum.medical.dicom.header import DICOMDIR, Header, looks_like_dicom, quiet, read_header
from hilum.medical.dicom.layout import COLOUR, GREY, PALETTE, missing
from hilum.medical.dicom.voi import fallback, window_of

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NON_IMAGES = {
    f"{_STORAGE}88.59": "ko",
    f"{_STORAGE}88.": "sr",
    f"{_STORAGE}11.": "pr",
    f"{_STORAGE}104.1": "pdf",
    f"{_STORAGE}104.": "document",
    f"{_STORAGE}481.3": "rtstruct",
    f"{_STORAGE}481.5": "rtplan",
    f"{_STORAGE}481.8": "rtplan",
    f"{_STORAGE}481.4": "rt_record",
    f"{_STORAGE}481.6": "rt_record",
    f"{_STORAGE}481.7": "rt_record",
    f"{_STORAGE}481.9": "rt_record",
    f"{_STORAGE}9.": "waveform",
    f"{_STORAGE}66.1": "registration",
    f"{_STORAGE}66.2": "fiducials",
    f"{_STORAGE}66.3": "registration",
    f"{_STORAGE}66.5": "surface",
    f"{_STORAGE}66.6": "tractography",
    f"{_STORAGE}66": "raw_data",
    f"{_STORAGE}67": "real_world_values",
    "1.2.840.10008.5.1.4.38": "hanging_protocol",
    "1.2.840.10008.5.1.4.39": "color_palette",
    DICOMDIR: "dicomdir",
}
_TIME = frozenset({"US", "XA", "RF", "ES", "IVUS", "OPT", "GM", "XC"})


class DicomIntake:
    """Reads DICOM. Rows carry no header text except codes that look like codes."""

    name: ClassVar[str] = "dicom"
    version: ClassVar[str] = "1"  # raise when the same file would give other pixels: caches are then built again

    def claims(self, path: Path, head: bytes) -> float:
        return looks_like_dicom(head) or (0.1 if path.suffix.lower() in (".dcm", ".dicom") else 0.0)

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        return [self._row(path, limits, pixels=True)]

    def read_header(self, path: Path, limits: Limits) -> list[IndexRow]:
        """What can be told without decoding pixels."""
        return [self._row(path, limits, pixels=False)]

    def open(self, path: Path, row: Mapping[str, Any]) -> Pixels:
        """See :func:`~hilum.medical.dicom.decode.decode`."""
        return decode(path, row=row)

    def problems(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The ``series.parquet`` row of one series. A single 2-D image is usable; several are not assembled here."""
        first, frames = rows[0], sum(int(r["frames"] or 0) for r in rows)
        alone = len(rows) == 1 and frames == 1
        return [
            {
                "series_id": first["series_id"],
                "volume_id": first["series_id"],
                "group_id": first["group_id"],
                "study_id": first["study_id"],
                "modality": first["modality"],
                "sample_ids": [r["sample_id"] for r in rows],
                "frames": frames,
                "shape_kji": [1, first["rows"], first["columns"]] if alone else None,
                "split_key": "",
                "problems": [] if alone else [f"not_assembled:{len(rows)} files, {frames} frames"],
                "usable": alone,
            }
        ]

    def codecs(self) -> dict[str, str]:
        """For the doctor: compressed syntaxes, and what reads them here."""
        return inventory()

    def _row(self, path: Path, limits: Limits, *, pixels: bool) -> IndexRow:
        with quiet():
            header = read_header(path, limits)
            row = IndexRow("indexed", columns=_attributes(header), identity=_identity(header))
            try:
                kind = _non_image(header.sop_class)
                if kind is not None:
                    row.status, row.reason = "skipped", f"non_image:{kind}"
                else:
                    self._image(header, row, limits, pixels=pixels)
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

    def _image(self, header: Header, row: IndexRow, limits: Limits, *, pixels: bool) -> None:
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
            if statistics["std"] == 0:
                header.note("constant_values")
            if measured.non_finite:
                header.note(f"non_finite:{measured.non_finite}")
        row.columns |= _described(image, statistics)
        if not pixels and row.columns["window"] == "range p0.5-p99.5":
            row.columns |= {"lo": None, "hi": None}


def _described(image: Image, statistics: Mapping[str, Any]) -> dict[str, Any]:
    header, layout = image.header, image.layout
    window, function = window_of(header, layout, image.modality)
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
        "role": "label" if header.sop_class == SEGMENTATION else "image",
        "frames_axis": _axis(header) if layout.frames > 1 else None,
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
        "transfer_syntax": header.syntax if header.syntax in UID_dictionary else "private",
        "spacing_mm": None if spacing is None else list(spacing),
    }


def _identity(header: Header) -> dict[str, Any]:
    return {
        "group": (header.identifier("IssuerOfPatientID"), header.identifier("PatientID")),
        "study": header.identifier("StudyInstanceUID"),
        "series": header.identifier("SeriesInstanceUID"),
        "sop_instance_uid": header.identifier("SOPInstanceUID"),
        "accession": header.identifier("AccessionNumber"),
    }


def _non_image(sop_class: str) -> str | None:
    exact = _NON_IMAGES.get(sop_class)
    if exact is not None:
        return exact
    return next(
        (kind for prefix, kind in _NON_IMAGES.items() if prefix.endswith(".") and sop_class.startswith(prefix)), None
    )


def _axis(header: Header) -> str:
    """What successive frames are: time, depth, or unknown."""
    if any(header.has(k) for k in ("FrameTime", "FrameTimeVector")) or header.code("Modality") in _TIME:
        return "time"
    if header.has("GridFrameOffsetVector") or header.functional(0, "PlanePositionSequence") is not None:
        return "depth"
    return "unknown"
