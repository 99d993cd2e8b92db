"""NIfTI files for ``hilum index``: ``.nii`` and ``.nii.gz``, read within limits, placed in LPS mm."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from hilum.core.types import IndexRow, Limits, Pixels, Window
from hilum.data.ledger import Rejected
from hilum.data.measurement import Measurement
from hilum.medical.volumes.assemble import OPTIONS, assemble

Array = NDArray[Any]
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEADER = 544  # bytes that hold a header of either version
_MM: Final = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}
_APART = 0.1  # of a voxel: corners that two affines may place differently
_FLAT = 1e-3  # volume of three unit axes that lie in a plane
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
_SPARE = 1 << 16
_MOST_PLANES = 1 << 16  # with a place each; more are no volume
_COLOUR = (128, 2304)  # data types RGB24 and RGBA32
_AXES = ("component", "time", "depth")  # of frames, the last one fastest
PIXDIM = "pixdim_affine"


@dataclass
class Header:
    """``shape`` as in the file, i first; ``affine_lps`` maps (i, j, k) to LPS mm."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine_lps: NDArray[np.float64]
    problems: list[str] = field(default_factory=list)

    @property
    def planes(self) -> int:
        return int(np.prod(self.shape[2:], dtype=np.int64))


class NiftiIntake:
    """Reads NIfTI-1 and NIfTI-2 in one file. A row's frames are planes of constant k, all k of the first volume first.

    A file says nothing of patient, study or modality: those come from a table. No text of the header is kept.
    """

    name: ClassVar[str] = "nifti"
    version: ClassVar[str] = "1"  # raise when the same file would give other pixels: caches are then built again
    volume_options: ClassVar[dict[str, str]] = {
        **OPTIONS,
        PIXDIM: "place NIfTI files that state no orientation by their voxel sizes, axes taken as R, A, S",
    }

    def claims(self, path: Path, head: bytes) -> float:
        if path.name.startswith("._") and head.startswith(_APPLE_DOUBLE) and ".nii" in path.name:
            return 1.0
        return 0.9 if _magic(_first(head)) else 0.0

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        return [self._row(path, limits, pixels=True)]

    def read_header(self, path: Path, limits: Limits) -> list[IndexRow]:
        """What can be told without reading voxels."""
        return [self._row(path, limits, pixels=False)]

    def open(self, path: Path, row: Mapping[str, Any]) -> Pixels:
        """Stored values (F,J,I) of all planes, in file order."""
        header, stored = _read(path, Limits())
        lo, hi = (row.get(name) for name in ("lo", "hi"))
        if lo is None or hi is None:
            statistics = _measured(header, stored).statistics()
            lo, hi = statistics["p005"], statistics["p995"]
        return Pixels(
            stored,
            slope=header.slope,
            intercept=header.intercept,
            window=_window(lo, hi),
            spacing_mm=_spacing(header)[1:],
            valid=_valid(stored),
            provenance={
                "codec": "nifti",
                "codec_version": self.version,
                "window": "range p0.5-p99.5",
                "voi_lut": "none",
            },
        )

    def problems(
        self, rows: Sequence[Mapping[str, Any]], options: frozenset[str] = frozenset()
    ) -> list[dict[str, Any]]:
        """Rows of ``series.parquet``, one file a series: see :func:`~hilum.medical.volumes.assemble.assemble`."""
        return assemble(rows, options)

    def _row(self, path: Path, limits: Limits, *, pixels: bool) -> IndexRow:
        with path.open("rb") as file:
            if file.read(4) == _APPLE_DOUBLE:
                return IndexRow("quarantined", "not_dicom", "a resource file of macOS, not an image")
        header = read_header(path, limits)
        columns = _columns(header)
        if pixels:
            header, stored = _read(path, limits)
            measured = _measured(header, stored)
            statistics = measured.statistics()
            columns |= {"stored_sha256": measured.stored_sha256, "modality_sha256": measured.modality_sha256}
            columns |= {**statistics, "lo": statistics["p005"], "hi": statistics["p995"]}
            if measured.non_finite:
                header.problems.append(f"non_finite:{measured.non_finite}")
            if statistics["std"] == 0:
                header.problems.append("constant_values")
        return IndexRow("indexed", columns=columns, problems=header.problems)


def read_header(path: Path, limits: Limits) -> Header:
    """Parse and check a header; :class:`Rejected` before memory is asked for."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    buffer = bytearray(_HEADER)
    with _opened(path) as file:
        head = bytes(buffer[: _taken(file, memoryview(buffer))])
    version = _magic(head)
    if not version:
        raise Rejected("parse_error", "its first bytes are no NIfTI header")
    kind = Nifti1Header if version == 1 else Nifti2Header
    try:
        raw = kind.from_fileobj(io.BytesIO(head), check=False)
        if int(raw["datatype"]) in _COLOUR:
            raise Rejected("unsupported_photometric", "voxels of colour are not read")
        shape, dtype = tuple(int(n) for n in raw.get_data_shape()), raw.get_data_dtype()
        slope, intercept = (float(v) for v in (raw["scl_slope"], raw["scl_inter"]))
        offset = int(raw["vox_offset"])
    except Rejected:
        raise
    except Exception as error:
        raise Rejected("parse_error", f"its header cannot be parsed ({type(error).__name__})") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise Rejected("unsupported_pixel_type", "voxels are complex, or wider than 64 bits")
    if offset < int(raw["sizeof_hdr"]):
        raise Rejected("inconsistent_attributes", "vox_offset lies inside of the header")
    _check(path, shape, dtype, offset, limits)
    shape = shape + (1,) * (3 - len(shape))
    if not (np.isfinite(slope) and slope != 0):  # a slope of 0 says: no scaling
        slope, intercept = 1.0, 0.0
    problems: list[str] = []
    if not np.isfinite(intercept):
        intercept = 0.0
        problems.append("bad_value:scl_inter")
    affine = _LPS @ _affine_ras(raw, shape, problems)
    return Header(shape, dtype, offset, slope, intercept, affine, problems)


def _check(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int, limits: Limits) -> None:
    if not 1 <= len(shape) <= 7 or min(shape, default=0) < 1:
        raise Rejected("inconsistent_attributes", "its dimensions are no numbers of voxels")
    voxels = 1
    for n in shape:
        voxels *= n
    wanted = voxels * dtype.itemsize + offset
    if voxels > limits.max_pixels or wanted > limits.max_bytes or max(shape) >= 1 << 31:
        raise Rejected("resource_limit", f"{' x '.join(map(str, shape))} voxels are more than the limit")
    if not 0 <= offset <= limits.max_bytes:
        raise Rejected("inconsistent_attributes", "vox_offset lies outside of the file")
    size = path.stat().st_size
    packed = _packed(path)
    if packed and wanted > size * limits.inflate_ratio:
        raise Rejected("resource_limit", "it would unpack to more than the limit")
    if not packed and size < wanted:
        raise Rejected("truncated_pixels", f"{max(0, size - offset)} of {wanted - offset} bytes of voxels are there")


def _affine_ras(raw: Any, shape: tuple[int, ...], problems: list[str]) -> NDArray[np.float64]:
    """NIfTI-1 standard, "3D image (volume) orientation": sform where its code says so, else qform; without either the
    voxel sizes, which place nothing: a problem."""
    try:
        scale = _MM.get(str(raw.get_xyzt_units()[0]), 0.0)
    except KeyError:
        scale = 0.0
    if not scale:
        scale = 1.0
        problems.append("assumed:spatial_unit")
    elif scale != 1.0:
        problems.append("converted:spatial_unit")
    unit = np.diag([scale, scale, scale, 1.0])
    sform, qform = _usable(raw, "sform", problems), _usable(raw, "qform", problems)
    if sform is not None and qform is not None:
        corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
        apart = np.linalg.norm(((sform - qform) @ corners.T)[:3], axis=0).max()
        if apart > _APART * np.linalg.norm(sform[:3, :3], axis=0).min():
            problems.append(f"affine_disagreement:{apart * scale:.4g} mm")
    best = sform if sform is not None else qform
    if best is not None:
        return unit @ best
    problems.append("affine_from_pixdim")
    sizes = np.abs(np.array(raw["pixdim"][1:4], np.float64))
    return unit @ np.diag([*np.where((sizes > 1e-9) & (sizes < 1e7), sizes, 1.0), 1.0])


def _usable(raw: Any, name: str, problems: list[str]) -> NDArray[np.float64] | None:
    try:
        affine, code = getattr(raw, f"get_{name}")(coded=True)
    except Exception:
        affine, code = None, 1
    if not code:
        return None
    if affine is not None and np.isfinite(affine).all():
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        sane = sizes.min() > 1e-9 and sizes.max() < 1e7 and np.abs(affine[:3, 3]).max() < 1e9
        if sane and abs(np.linalg.det(affine[:3, :3] / sizes)) > _FLAT:
            return np.asarray(affine, np.float64)
    problems.append(f"bad_value:{name}")
    return None


def _read(path: Path, limits: Limits) -> tuple[Header, Array]:
    """(header, stored (F,J,I)); of what stands behind the voxels no more than a checksum is looked for."""
    header = read_header(path, limits)
    size = int(np.prod(header.shape, dtype=np.int64)) * header.dtype.itemsize
    data = bytearray(size)
    with _opened(path) as file:
        _skip(file, header.offset)
        view, at = memoryview(data), 0
        while at < size:
            got = _taken(file, view[at : at + (1 << 24)])
            if not got:
                raise Rejected("truncated_pixels", f"{at} of {size} bytes of voxels are there")
            at += got
        if _packed(path) and _taken(file, memoryview(bytearray(_SPARE))):  # its end holds the checksum
            header.problems.append("excess_pixel_bytes")
    stored = np.frombuffer(data, header.dtype).reshape(header.planes, header.shape[1], header.shape[0])
    return header, stored.astype(header.dtype.newbyteorder("="), copy=False)


def _skip(file: Any, count: int) -> None:
    while count > 0:
        part = _taken(file, memoryview(bytearray(min(count, 1 << 20))))
        if not part:
            raise Rejected("truncated_pixels", "the file ends before its voxels")
        count -= part


def _taken(file: Any, into: memoryview) -> int:
    try:
        return int(file.readinto(into))
    except EOFError:
        raise Rejected("truncated_pixels", "its compressed data end too early") from None
    except (gzip.BadGzipFile, zlib.error):
        raise Rejected("parse_error", "its compressed data are damaged") from None


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if _packed(path) else path.open("rb")


def _packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _first(head: bytes) -> bytes:
    """The first bytes of what a file holds."""
    if not head.startswith(b"\x1f\x8b"):
        return head
    try:
        return zlib.decompressobj(31).decompress(head, _HEADER)
    except zlib.error:
        return b""


def _magic(head: bytes) -> int:
    """1 or 2, the version of a NIfTI header in one file; 0 of anything else."""
    if head[344:348] == b"n+1\0" and 348 in (int.from_bytes(head[:4], order) for order in ("little", "big")):
        return 1
    if head[4:12] == b"n+2\0\r\n\x1a\n" and 540 in (int.from_bytes(head[:4], order) for order in ("little", "big")):
        return 2
    return 0


def _measured(header: Header, stored: Array) -> Measurement:
    measured = Measurement(slope=header.slope, intercept=header.intercept)
    for plane in range(0, len(stored), 64):
        part = stored[plane : plane + 64]
        measured.add(part, valid=_valid(part))
    return measured


def _valid(stored: Array) -> NDArray[np.bool_] | None:
    """False where a voxel is no number."""
    if stored.dtype.kind != "f":
        return None
    finite = np.isfinite(stored)
    return None if finite.all() else finite


def _window(lo: float | None, hi: float | None) -> Window | None:
    return None if lo is None or hi is None else Window(lo, hi, source="range p0.5-p99.5")


def _spacing(header: Header) -> tuple[float, float, float]:
    """(k, j, i) mm along the axes."""
    i, j, k = (float(n) for n in np.linalg.norm(header.affine_lps[:3, :3], axis=0))
    return k, j, i


def _extents(header: Header) -> tuple[int, int, int]:
    """How many components, times and slices; slices run fastest."""
    depth, time, *rest = (*header.shape[2:], 1)
    return int(np.prod(rest, dtype=np.int64)), time, depth


def _columns(header: Header) -> dict[str, Any]:
    """A plane's row runs along i, its column along j."""
    _, j, i = _spacing(header)
    return {
        "rows": header.shape[1],
        "columns": header.shape[0],
        "frames": header.planes,
        "bits_stored": header.dtype.itemsize * 8,
        "photometric": "MONOCHROME2",
        "spacing_mm": [j, i],
        "role": "image",
        "codec": "nifti",
        "codec_version": NiftiIntake.version,
        "window": "range p0.5-p99.5",
        "voi_lut": "none",
        "inverted": False,
        "frames_axis": ",".join(name for name, n in zip(_AXES, _extents(header), strict=True) if n > 1) or None,
        **_geometry(header),
    }


def _geometry(header: Header) -> dict[str, Any]:
    """``orientation``, ``positions`` and ``frame_keys`` of the index. The fourth axis is time, what lies beyond it
    (vectors, tensors, coefficients) are components (NIfTI-1 standard, "dimensions")."""
    if header.planes > _MOST_PLANES:
        header.problems.append("geometry_of_too_many_frames")
        return {}
    k, j, i = _spacing(header)
    affine, (parts, times, depth) = header.affine_lps, _extents(header)
    places = affine[:3, 3] + np.outer(np.arange(depth), affine[:3, 2])
    keys = [{"name": "thickness_mm", "values": [k]}]
    for name, count, inner in (("temporal", times, depth), ("component", parts, depth * times)):
        if count > 1:
            values = np.arange(header.planes) // inner % count
            keys.append({"name": name, "values": values.astype(np.float64).tolist()})
    return {
        "orientation": [float(v) for v in (*(affine[:3, 0] / i), *(affine[:3, 1] / j))],
        "positions": np.tile(places.ravel(), times * parts).tolist(),
        "frame_keys": keys,
    }
