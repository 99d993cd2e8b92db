"""Image files without a medical header: PNG, JPEG, TIFF; 8 and 16 bits, grey and colour."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hilum.core.types import IndexRow, Limits, Pixels, Window
from hilum.data.ledger import Rejected
from hilum.data.measurement import Measurement

_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}
_ORIENTATION = 0x0112
_COLOUR = {
    "RGB": "RGB",
    "RGBA": "RGB",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "P": "RGB",
    "PA": "RGB",
}


class ImageFilesIntake:
    """PNG, JPEG and TIFF through pillow. No EXIF value is kept; the orientation tag is reported, not applied."""

    name: ClassVar[str] = "image-files"
    version: ClassVar[str] = "1"  # raise when the same file would give other pixels: caches are then built again

    def claims(self, path: Path, head: bytes) -> float:
        return 0.8 if any(head.startswith(magic) for magic in _MAGIC) else 0.0

    def read(self, path: Path, limits: Limits) -> list[IndexRow]:
        columns, problems = self._header(path, limits)
        stored, shown = _decode(path, columns["frames"])
        columns["bits_stored"] = 8 * stored.dtype.itemsize
        grey = shown is stored and stored.ndim == 3
        measured = Measurement(modality=grey)
        measured.add(stored, shown=shown)
        columns |= {"stored_sha256": measured.stored_sha256, "modality_sha256": measured.modality_sha256}
        columns |= measured.statistics()
        if columns["std"] == 0:
            problems.append("constant_values")
        window = _window(shown.dtype, columns)
        columns |= {"lo": window.lo, "hi": window.hi, "window": window.source}
        return [IndexRow("indexed", columns=columns, problems=problems)]

    def read_header(self, path: Path, limits: Limits) -> list[IndexRow]:
        """What can be told without decoding pixels."""
        columns, problems = self._header(path, limits)
        return [IndexRow("indexed", columns=columns, problems=problems)]

    def open(self, path: Path, row: Mapping[str, Any]) -> Pixels:
        """Stored values (F,H,W) or (F,H,W,3); grey images of more than 8 bits get the row's percentile window."""
        columns, _ = self._header(path, Limits())
        stored, shown = _decode(path, columns["frames"])
        statistics = row if row.get("p995") is not None else {}
        if not statistics and shown.dtype != np.uint8:
            measured = Measurement(modality=False)
            measured.add(shown)
            statistics = measured.statistics()
        window = _window(shown.dtype, statistics)
        provenance = {
            "codec": columns["codec"],
            "codec_version": columns["codec_version"],
            "window": window.source,
            "voi_lut": "none",
        }
        if row.get("inverted") and stored is shown and shown.ndim == 3:  # a published table says so; the file cannot
            window = Window(-window.hi, -window.lo, source=window.source)
            return Pixels(shown, slope=-1.0, window=window, inverted=True, provenance=provenance)
        return Pixels(shown, window=window, provenance=provenance)

    def problems(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """No series: files without a header do not say what belongs together."""
        return []

    def _header(self, path: Path, limits: Limits) -> tuple[dict[str, Any], list[str]]:
        with _opened(path) as image:
            frames = int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1
            width, height = image.size
            if width * height * frames * len(image.getbands()) > limits.max_pixels:
                raise Rejected("resource_limit", f"{frames} x {height} x {width} pixels are more than the limit")
            if image.format == "PNG" and _png_loses_bits(path):
                raise Rejected(
                    "codec_error", "a 16-bit colour PNG would lose its low bits; convert it to TIFF or DICOM"
                )
            problems = ["exif_orientation"] if image.getexif().get(_ORIENTATION, 1) != 1 else []
            if image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema() != (255, 255):
                problems.append("alpha_ignored")
            from PIL import __version__

            columns = {
                "rows": height,
                "columns": width,
                "frames": frames,
                "photometric": _COLOUR.get(image.mode, "MONOCHROME2"),
                "role": "image",
                "codec": "pillow",
                "codec_version": __version__,
                "voi_lut": "none",
                "inverted": False,
                "frames_axis": "page" if frames > 1 else None,
            }
        return columns, problems


class _opened:
    """A pillow image whose every failure is a :class:`Rejected` with a stable reason."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        from PIL import Image

        self.silence = warnings.catch_warnings()
        self.silence.__enter__()
        warnings.simplefilter("ignore")
        try:
            self.image = Image.open(self.path, formats=sorted(set(_MAGIC.values())))
        except BaseException as error:
            self.silence.__exit__(None, None, None)
            self._reject(error)
            raise
        return self.image

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.image.close()
        self.silence.__exit__(kind, error, trace)
        if error is not None:
            self._reject(error)

    def _reject(self, error: BaseException) -> None:
        from PIL import Image, UnidentifiedImageError

        text = str(error)
        if isinstance(error, Image.DecompressionBombError):
            raise Rejected("resource_limit", "more pixels than the limit") from None
        if isinstance(error, UnidentifiedImageError):
            raise Rejected("parse_error", "its header is damaged") from None
        if isinstance(error, EOFError) or "truncated" in text or "ended" in text or "not enough" in text:
            raise Rejected("truncated_pixels", "the file ends before its pixels do") from None
        if isinstance(
            error, OSError | ValueError | SyntaxError | KeyError | IndexError | ZeroDivisionError | TypeError
        ):
            raise Rejected("codec_error", f"pillow cannot decode it ({type(error).__name__})") from None


def _png_loses_bits(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] == 16 and head[25] in (2, 4, 6)  # IHDR bit depth and colour type


def _decode(path: Path, frames: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """(stored, shown): the same array, except for palettes, where stored are indices and shown is RGB."""
    stored, shown = [], []
    with _opened(path) as image:
        for frame in range(frames):
            if frames > 1:
                image.seek(frame)
            mode = image.mode
            if mode in ("P", "PA"):
                stored.append(np.asarray(image.convert("P") if mode == "PA" else image))
                shown.append(np.asarray(image.convert("RGB")))
                continue
            wanted = {"1": "L", "LA": "L", "RGBA": "RGB", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB"}
            pixels = np.asarray(image.convert(wanted[mode]) if mode in wanted else image)
            stored.append(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))
    if len({s.shape for s in stored}) > 1:
        raise Rejected("inconsistent_attributes", "its pages differ in size")
    first = np.stack(stored)
    return first, np.stack(shown) if shown else first


def _window(dtype: np.dtype[Any], statistics: Mapping[str, Any]) -> Window:
    if dtype == np.uint8:
        return Window(0.0, 255.0, source="range full")
    low, high = statistics.get("p005"), statistics.get("p995")
    low, high = (0.0, 1.0) if low is None or high is None else (float(low), float(high))
    return Window(low, high if high > low else low + 1.0, source="range p0.5-p99.5")
