"""Planted identifiers, and a search for them in anything that was written: whatever the container or the encoding.

Words share a marker and numbers share another one, so that a search for two markers in every encoding finds them all.
"""

from __future__ import annotations

import base64
import io
import sqlite3
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fake.dicom import ROOT, dataset
from PIL import Image
from pydicom.dataset import Dataset

WORD, NUMBER, YEAR = "Qxzvwkjq", "90719307", "1907"
_TEXTS = """InstitutionName StudyDescription SeriesDescription PatientComments ImageComments StationName
    DeviceSerialNumber ManufacturerModelName Manufacturer ProtocolName StudyID PatientAddress
    OtherPatientIDs WindowCenterWidthExplanation RescaleType PatientTelephoneNumbers"""
DATES = [f"{YEAR}{month:02d}{day:02d}" for month, day in ((2, 13), (4, 17), (5, 23), (8, 29), (11, 30), (12, 19))]


class Planted:
    """Hands out identifiers and remembers them."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.numbers: list[str] = []

    def word(self, kind: str) -> str:
        self.words.append(f"{WORD}{len(self.words):03d}{kind}")
        return self.words[-1]

    def name(self, kind: str) -> str:
        return f"{self.word(kind)}^Erika^{self.word(kind)}"

    def number(self) -> str:
        self.numbers.append(f"{NUMBER}{len(self.numbers):04d}")
        return self.numbers[-1]

    def uid(self) -> str:
        return ROOT + self.number()

    @property
    def all(self) -> list[str]:
        return [*self.words, *self.numbers, *DATES]


def spellings(text: str) -> list[bytes]:
    """The bytes of a text in every encoding it may hide in; of base64 the part that neighbours do not change."""
    forms = []
    for said in dict.fromkeys((text, text.lower(), text.upper())):
        raw = said.encode()
        wide = [said.encode(code) for code in ("utf-16-le", "utf-16-be")]
        forms += [raw, raw[::-1], *wide, raw.hex().encode(), raw.hex().upper().encode()]
        forms += ["".join(f"%{byte:02x}" for byte in raw).encode(), "".join(f"%{byte:02X}" for byte in raw).encode()]
        for shift in range(3):
            whole = base64.b64encode(b"\0" * shift + raw)
            forms.append(whole[-(-8 * shift // 6) : len(whole) - 4 if (shift + len(raw)) % 3 else None])
    return list(dict.fromkeys(forms))


def found_in(blobs: Iterable[tuple[str, bytes]]) -> dict[str, list[str]]:
    """Marker -> where it stands."""
    wanted = {marker: spellings(marker) for marker in (WORD, NUMBER, *DATES)}
    hits: dict[str, list[str]] = {}
    for where, blob in blobs:
        for marker, forms in wanted.items():
            if any(form in blob for form in forms):
                hits.setdefault(marker, []).append(where)
    return hits


def everything(root: Path, *, without: Sequence[Path] = ()) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files below a folder, containers opened; what lies in ``without`` is left out."""
    for path in sorted(root.rglob("*")):
        if any(path == left or left in path.parents for left in without):
            continue
        yield f"name of {path}", str(path.relative_to(root)).encode("utf-8", "surrogateescape")
        if path.is_file() and not path.is_symlink():
            yield from unpacked(str(path), path.read_bytes())


def unpacked(where: str, blob: bytes) -> Iterator[tuple[str, bytes]]:
    """The bytes as they are and, of containers, what they hold: Parquet columns, tables, members, text of pictures."""
    yield where, blob
    if blob[:4] == b"PAR1":
        table = pq.read_table(pa.BufferReader(blob))
        yield f"{where} schema", str(table.schema.metadata).encode() + " ".join(table.column_names).encode()
        for name in table.column_names:
            yield f"{where}:{name}", "\n".join(map(str, table[name].to_pylist())).encode("utf-8", "backslashreplace")
    elif blob[:16] == b"SQLite format 3\0":
        yield from _rows(where, blob)
    elif blob[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(blob)) as members:
            for member in members.namelist():
                yield from unpacked(f"{where}!{member}", members.read(member))
    elif blob[:8] == b"\x89PNG\r\n\x1a\n":
        with Image.open(io.BytesIO(blob)) as picture:
            picture.load()
            yield f"{where} text", str(picture.info).encode()
    for piece in blob.split(b"data:image/png;base64,")[1:]:
        yield from unpacked(f"{where} picture", base64.b64decode(piece[: piece.index(b'"')]))


def _rows(where: str, blob: bytes) -> Iterator[tuple[str, bytes]]:
    with closing(sqlite3.connect(":memory:")) as base:
        base.deserialize(blob)
        for (name,) in base.execute("select name from sqlite_master where type = 'table'").fetchall():
            yield f"{where}:{name}", str(base.execute(f'select * from "{name}"').fetchall()).encode()


def person(planted: Planted) -> tuple[str, str, str]:
    """PatientID, IssuerOfPatientID, PatientName."""
    return planted.word("id"), planted.word("issuer"), planted.name("name")


def radiograph(planted: Planted, patient: int, image: int, who: tuple[str, str, str]) -> Any:
    """A DX image whose findings are discs (left: odd patients; right: every second pair), full of identifiers."""
    y, x = np.mgrid[:40, :48]
    rng = np.random.default_rng(100 * patient + image)
    pixels = 8000 + 3000 * rng.random((40, 48)) + 60 * y
    for present, centre in ((patient % 2, 12), (patient // 2 % 2, 36)):
        pixels += present * 12000 * ((y - 20) ** 2 + (x - centre) ** 2 < 64)
    data = dataset(pixels.astype(np.uint16), patient=who[0], issuer=who[1])
    data.PatientName, data.AccessionNumber = who[2], planted.word("acc")
    data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID = (planted.uid() for _ in range(3))
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.PatientBirthDate = data.StudyDate = DATES[patient % len(DATES)]
    return data


def deepen(planted: Planted, data: Any) -> None:
    """Identifiers in every other place that a header has for them."""
    data.preamble = planted.word("preamble").encode().ljust(128, b"\0")
    for keyword in _TEXTS.split():
        short = keyword in ("StationName", "StudyID")  # 16 characters at most
        setattr(data, keyword, planted.word("text")[: 16 if short else None])
    data.WindowCenter, data.WindowWidth, data.RescaleSlope, data.RescaleIntercept = 20000, 20000, 1, 0
    for keyword in ("ReferringPhysicianName", "OperatorsName", "PerformingPhysicianName", "RequestingPhysician"):
        setattr(data, keyword, planted.name("doctor"))
    for keyword in ("BodyPartExamined", "ViewPosition", "PresentationLUTShape"):
        setattr(data, keyword, planted.word("code").upper())
    data.ImageType = ["ORIGINAL", "PRIMARY", planted.word("type").upper()]
    data.AcquisitionDateTime, data.ContentDate, data.AcquisitionDate = DATES[2] + "101530", DATES[0], DATES[1]
    item = Dataset()
    item.RequestedProcedureDescription, item.RequestedProcedureID = planted.word("nested"), planted.word("nest")
    data.RequestAttributesSequence = [item]
    block = data.private_block(0x0019, planted.word("creator"), create=True)
    block.add_new(0x01, "PN", planted.name("private"))
    block.add_new(0x02, "UN", planted.word("unknown").encode())
    data.add_new(0x60000010, "US", 40)
    data.add_new(0x60000011, "US", 48)
    data.add_new(0x60000040, "CS", "G")
    data.add_new(0x60000050, "SS", [1, 1])
    data.add_new(0x60000100, "US", 1)
    data.add_new(0x60000102, "US", 0)
    data.add_new(0x60003000, "OW", planted.word("overlay").encode().ljust(240, b"\0"))
    data.add_new(0x60000022, "LO", planted.word("overlay"))
    data.add_new(0x60001500, "LO", planted.word("overlay"))
    data.add_new(0xFFFCFFFC, "OB", planted.word("padding").encode().ljust(32, b"\0"))
