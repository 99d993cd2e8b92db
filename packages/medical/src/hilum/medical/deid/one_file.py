"""One file in, one file out, or a reason why not; runs in an isolated worker and raises nothing that names a value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID

from hilum.core.types import IndexRow, Limits, Pixels
from hilum.data.identity import IdentityKey
from hilum.data.ledger import Rejected
from hilum.medical.deid.burned_in import Finding, find_text, verdict
from hilum.medical.deid.pixels import blacken, clear_unused_bits, plain_syntax, without_excess
from hilum.medical.deid.profile import PIXELS, Options, Profile
from hilum.medical.deid.pseudonyms import IMPLEMENTATION, Pseudonyms
from hilum.medical.deid.rewrite import Rewriter, elements
from hilum.medical.dicom.decode import decode, open_image
from hilum.medical.dicom.header import Header, quiet, read_header
from hilum.medical.dicom.kinds import SEGMENTATION

BurnedIn = Literal["hold", "flag", "blacken"]
METHOD = "hilum.medical.deid 1"
FRAMES = 8  # of a multi-frame image that are looked at for burned-in text, evenly spread
_STORAGE = "1.2.840.10008.5.1.4.1.1."
REFUSED = {  # text that no table can clean, or pixels that cannot be looked at
    f"{_STORAGE}88.59": "key_object_selection",
    f"{_STORAGE}88.": "structured_report",
    f"{_STORAGE}11.": "presentation_state",
    f"{_STORAGE}104.": "encapsulated_document",
    f"{_STORAGE}9.": "waveform",
    f"{_STORAGE}66.4": "",  # a segmentation is an image
    f"{_STORAGE}66": "raw_data",
    f"{_STORAGE}66.": "derived_data",
    f"{_STORAGE}67": "real_world_values",
    f"{_STORAGE}481.1": "",  # RT images are images
    f"{_STORAGE}481.2": "",  # and so are dose grids
    f"{_STORAGE}481.": "radiotherapy_object",
    f"{_STORAGE}77.1.1.1": "video",
    f"{_STORAGE}77.1.2.1": "video",
    f"{_STORAGE}77.1.4.1": "video",
    "1.2.840.10008.5.1.4.38": "hanging_protocol",
    "1.2.840.10008.1.3.10": "dicomdir",
}


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know. ``out`` is the folder the files go to."""

    out: Path
    key: IdentityKey
    options: Options = field(default_factory=Options)
    burned_in: BurnedIn = "hold"


class Deidentifier:
    """Writes the de-identified copy of a file. Has the shape of an intake, so that core's isolated readers run it."""

    def __init__(self, settings: Settings) -> None:
        self.name, self.settings = "deid", settings

    def claims(self, path: Path, head: bytes) -> float:
        return 1.0

    def open(self, path: Path, row: Mapping[str, Any]) -> Pixels:
        return decode(path, row=row)

    def problems(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return []

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        """One row: ``indexed`` with what was done in ``columns["deid"]``, else ``skipped`` (refused) or
        ``quarantined`` (held back or failed) with its reason."""
        done: dict[str, Any] = {"action": "failed", "output": "", "burned_in": "not_examined", "declared": ""}
        row = IndexRow("quarantined", columns={"deid": done})
        with quiet():
            try:
                self._file(path, limits, row, done)
            except Rejected as error:
                row.reason, row.message = error.reason, error.what
            except (MemoryError, RecursionError):
                row.reason, row.message = "resource_limit", "it needs more memory or depth than the limit"
            except Exception as error:
                row.reason, row.message = "parse_error", f"it could not be rewritten ({type(error).__name__})"
        return [row]

    def _file(self, path: Path, limits: Limits, row: IndexRow, done: dict[str, Any]) -> None:
        header = read_header(path, limits)
        kind = refusal(header)
        if kind:
            row.status, row.reason, done["action"] = "skipped", f"non_image:{kind}", "refused"
            return
        if UID(header.syntax).is_private:
            raise Rejected("unsupported_transfer_syntax", "files of a private transfer syntax are not written")
        image = open_image(path, limits, header)
        done["declared"] = declaration(path)
        findings: list[Finding] = []
        if header.sop_class != SEGMENTATION:  # masks are drawn by programs and look like anything
            findings = examine(path, image.layout.frames, limits)
            done["burned_in"] = verdict(findings)
        text = [f for f in findings if f.kind == "text"]
        declared = done["declared"] == "YES"
        if (text or declared) and self.settings.burned_in == "hold":
            row.reason, row.message, done["action"] = "burned_in_text", "it seems to have text in its pixels", "held"
            return
        if declared and not text and self.settings.burned_in == "blacken":
            row.reason, row.message = "burned_in_text", "its header declares text that was not found in its pixels"
            done["action"] = "held"
            return
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        source = dcmread(path, force=True)
        _check_unique(source, header)
        rewriter = self._rewriter(source, limits)
        out = rewriter.dataset(source)
        out.file_meta = _meta(source, out, header.syntax)
        _check_instance(out)
        _only_pixels(out, header)
        done["excess_removed"] = without_excess(out, image.layout)
        done["bits_cleared"] = "PixelData" in out and clear_unused_bits(out, image.layout)
        blackened = bool(text) and self.settings.burned_in == "blacken"
        if blackened:
            blacken(out, image.layout, [f.box for f in text])
            out.BurnedInAnnotation = "NO"
        _mark(out, rewriter.profile, pixels=blackened)
        done["blackened"] = len(text) if blackened else 0
        done["counts"] = {f"{keyword}:{action}": n for (keyword, action), n in rewriter.counts.items()}
        self._write(out, source, digest, rewriter, done)
        row.status, done["action"] = "indexed", "written"

    def _rewriter(self, source: Dataset, limits: Limits) -> Rewriter:
        rewriter = Rewriter(Profile.load(self.settings.options), self._pseudonyms(source), limits.depth)
        for keyword in ("PatientID", "AccessionNumber", "StudyID"):
            rewriter.needles.add_identifier(_text(source, keyword))
        return rewriter

    def _pseudonyms(self, source: Dataset) -> Pseudonyms:
        issuer, patient = (_text(source, k) for k in ("IssuerOfPatientID", "PatientID"))
        study = _text(source, "StudyInstanceUID") or _text(source, "SOPInstanceUID")  # of no study: a file of its own
        return Pseudonyms.of(self.settings.key, issuer, patient, study)

    def _write(self, out: Dataset, source: Dataset, digest: bytes, rewriter: Rewriter, done: dict[str, Any]) -> None:
        """Write under a temporary name, search the bytes and the re-read values, then name the file."""
        name = self._name(source, digest)
        target = self.settings.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            dcmwrite(partial, out, enforce_file_format=True)
            hits = found(partial, rewriter)
            if hits:
                raise Rejected("identifier_left", f"{hits} of its identifiers were found in the written file")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        done["output"] = name

    def _name(self, source: Dataset, digest: bytes) -> str:
        key = self.settings.key
        folders = [
            self._pseudonyms(source).patient[:16],
            key.digest("deid-study", _text(source, "StudyInstanceUID"))[:16],
            key.digest("deid-series", _text(source, "SeriesInstanceUID"))[:16],
        ]
        # The bytes are part of the name: differing copies of one instance keep apart, whatever the order.
        instance = key.digest("deid-file", _text(source, "SOPInstanceUID"), digest)
        return "/".join([*folders, f"{instance}.dcm"])


def refusal(header: Header) -> str:
    """Why an object is not de-identified at all, or an empty text."""
    exact = REFUSED.get(header.sop_class)
    prefixes = (k for p, k in REFUSED.items() if p.endswith(".") and header.sop_class.startswith(p))
    kind = exact if exact is not None else next(prefixes, "")
    if kind:
        return kind
    if header.pixels is None and not header.cut:
        return "no_pixels"
    return ""


def examine(path: Path, frames: int, limits: Limits) -> list[Finding]:
    """Text-like regions of up to :data:`FRAMES` frames."""
    findings: list[Finding] = []
    for at in sorted({int(i) for i in np.linspace(0, frames - 1, min(frames, FRAMES))}):
        stored = decode(path, frames=range(at, at + 1), limits=limits).stored[0]
        grey = stored.mean(axis=-1) if stored.ndim == 3 else stored
        findings += [f for f in find_text(grey) if f not in findings]
    return findings


def declaration(path: Path) -> str:
    """BurnedInAnnotation as YES or NO; an empty text for anything else, which is not the same as NO."""
    try:
        data = dcmread(path, force=True, stop_before_pixels=True, specific_tags=["BurnedInAnnotation"])
        value = str(data.get("BurnedInAnnotation") or "").strip().upper()
    except Exception:
        value = ""
    return value if value in ("YES", "NO") else ""


def found(path: Path, rewriter: Rewriter) -> int:
    """How many of the input's identifiers stand in a written file: header bytes, pixel bytes, decoded values."""
    data = path.read_bytes()
    written = dcmread(path, force=True)
    pixels = bytes(written.get("PixelData") or b"")
    start = data.rfind(pixels) if len(pixels) > 4096 else len(data)
    header = data[:start] + b"\0" * 8 + data[start + len(pixels) :] if start < len(data) else data
    hits = rewriter.needles.in_bytes(header)
    if start < len(data):
        hits += rewriter.needles.in_bytes(pixels, longest=32)
    values = (v for e in elements(written) if e.VR != "SQ" and e.tag >> 16 != 0x7FE0 for v in _texts(e.value))
    return hits + rewriter.needles.in_text(values)


def _texts(value: Any) -> list[str]:
    if value is None or isinstance(value, bytes | int | float):
        return []
    if isinstance(value, str):
        return [value]
    return [str(v) for v in value] if hasattr(value, "__iter__") else [str(value)]


def _meta(source: Dataset, out: Dataset, syntax: str) -> FileMetaDataset:
    """File meta information made anew: no AE title, no private information, our implementation."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = out.get("SOPClassUID", "")
    meta.MediaStorageSOPInstanceUID = out.get("SOPInstanceUID", "")
    meta.TransferSyntaxUID = plain_syntax(syntax)
    meta.ImplementationClassUID = UID(IMPLEMENTATION)
    meta.ImplementationVersionName = "HILUM_DEID_1"
    return meta


def _check_unique(source: Dataset, header: Header) -> None:
    """Two readers of one file must have read the same of it: what was looked at is what is written. Where an attribute
    stands twice, one takes the first and the other the last."""
    for tag, mine in header.elements.items():
        theirs = source.get_item(tag)
        if isinstance(theirs, RawDataElement) and (theirs.value or b"") != (mine.value or b""):
            raise Rejected("inconsistent_attributes", f"{keyword_for_tag(tag) or 'an attribute'} stands in it twice")
    if header.pixels is not None:
        pixels = source.get_item(header.pixels.keyword)
        if pixels is None:
            raise Rejected("truncated_pixels", "the file ends inside its pixels")
        if not isinstance(pixels, RawDataElement) or pixels.value_tell != header.pixels.offset:
            raise Rejected("inconsistent_attributes", "its pixels stand in it twice")


def _only_pixels(out: Dataset, header: Header) -> None:
    """One pixel element, the one that was looked at."""
    kept = header.pixels.keyword if header.pixels is not None else ""
    for tag in sorted(out.keys()):
        if tag >> 16 == 0x7FE0 and keyword_for_tag(tag) != kept:
            del out[tag]


def _check_instance(out: Dataset) -> None:
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not out.get(keyword):
            raise Rejected("missing_attribute", f"{keyword} is missing")


def _mark(out: Dataset, profile: Profile, *, pixels: bool) -> None:
    """Say what was done (PS3.15 E.1.1 step 6, PS3.3 C.7.1.1): flag, method, codes of CID 7050, what became of dates."""
    out.PatientIdentityRemoved = "YES"
    out.DeidentificationMethod = [METHOD, f"{profile.edition}"[:64]]
    items = []
    for value, meaning in [*profile.options.codes, *([PIXELS] if pixels else [])]:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning[:64]
        items.append(item)
    out.DeidentificationMethodCodeSequence = Items(items)
    retain = profile.options.retain
    shifted = "MODIFIED" if "dates-shifted" in retain else "REMOVED"
    out.LongitudinalTemporalInformationModified = "UNMODIFIED" if "dates" in retain else shifted


def _text(data: Dataset, keyword: str) -> str:
    try:
        return str(data.get(keyword) or "").strip(" \0")
    except Exception:
        return ""
