"""Which codec decodes which transfer syntax: permissive ones only, in a pinned order, named with their version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid

from hilum.data.ledger import Rejected

JPEG_XL = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
}
GE_PRIVATE = "1.2.840.113619.5.2"  # implicit little-endian header, big-endian pixels (GE's conformance statements)
NATIVE = frozenset(
    map(
        str,
        (
            uid.ImplicitVRLittleEndian,
            uid.ExplicitVRLittleEndian,
            uid.ExplicitVRBigEndian,
            uid.DeflatedExplicitVRLittleEndian,
            GE_PRIVATE,
        ),
    )
)
_VIDEO = (*(f"1.2.840.10008.1.2.4.10{n}" for n in range(9)), "1.2.840.10008.1.2.7.")
_ELSEWHERE = ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.204", "1.2.840.10008.1.2.4.205")


@dataclass(frozen=True)
class Codec:
    """``plugin`` is pydicom's name of it, None where the codec is called directly."""

    name: str
    package: str  # what pip installs
    plugin: str | None
    module: str

    @property
    def version(self) -> str | None:
        """Of the installed package, or None."""
        return _version(self.module, self.package)


@cache
def _version(module: str, package: str) -> str | None:
    try:
        import_module(module)
        return version(package)
    except (ImportError, PackageNotFoundError):
        return None


PILLOW = Codec("pillow", "pillow", "pillow", "PIL.Image")
GDCM = Codec("gdcm", "python-gdcm", "gdcm", "gdcm")
CHARLS = Codec("pyjpegls", "pyjpegls", "pyjpegls", "jpeg_ls")
OPENJPEG = Codec("openjpeg", "pylibjpeg-openjpeg", "pylibjpeg", "openjpeg")
RLE = Codec("rle", "pylibjpeg-rle", "pylibjpeg", "rle")
PYDICOM = Codec("pydicom-rle", "pydicom", "pydicom", "pydicom")
IMAGECODECS = Codec("imagecodecs", "imagecodecs", None, "imagecodecs")

ORDER: dict[str, tuple[Codec, ...]] = {
    str(uid.RLELossless): (RLE, PYDICOM),
    str(uid.JPEGBaseline8Bit): (PILLOW, GDCM),
    str(uid.JPEGExtended12Bit): (IMAGECODECS, PILLOW),  # pillow and gdcm know its 8-bit form only
    str(uid.JPEGLossless): (GDCM, IMAGECODECS),
    str(uid.JPEGLosslessSV1): (GDCM, IMAGECODECS),
    str(uid.JPEGLSLossless): (CHARLS, GDCM),
    str(uid.JPEGLSNearLossless): (CHARLS, GDCM),
    str(uid.JPEG2000Lossless): (OPENJPEG, GDCM, PILLOW),
    str(uid.JPEG2000): (OPENJPEG, GDCM, PILLOW),
    str(uid.HTJ2KLossless): (OPENJPEG,),
    str(uid.HTJ2KLosslessRPCL): (OPENJPEG,),
    str(uid.HTJ2K): (OPENJPEG,),
    **dict.fromkeys(JPEG_XL, (IMAGECODECS,)),
}
"""First installed one decodes; a second one is asked only where the first fails. pylibjpeg-libjpeg (GPL) never is."""


@lru_cache(256)
def known_syntax(syntax: str) -> str:
    """The UID of a published syntax, else ``private``: anything could stand there."""
    return syntax if syntax in uid.UID_dictionary or syntax in ORDER or syntax in NATIVE else "private"


def _name(syntax: str) -> str:
    return JPEG_XL.get(syntax) or str(uid.UID(syntax).name)


@cache
def installed(syntax: str) -> tuple[tuple[Codec, str], ...]:
    """Codecs of a compressed syntax that are here, with versions; :class:`Rejected` names what to install."""
    if syntax not in ORDER:
        raise Rejected("unsupported_transfer_syntax", _refusal(syntax))
    found = tuple((codec, v) for codec in ORDER[syntax] if (v := codec.version) is not None)
    if not found:
        names = " or ".join(f"pip install {codec.package}" for codec in ORDER[syntax])
        raise Rejected("unsupported_transfer_syntax", f"{_name(syntax)} needs a codec: {names}")
    return found


def _refusal(syntax: str) -> str:
    if known_syntax(syntax) == "private":
        return "no codec reads its transfer syntax (a private or unknown one)"
    if syntax.startswith(_VIDEO):
        return f"{_name(syntax)} is a video, no image format that is decoded here"
    if syntax in _ELSEWHERE:
        return f"{_name(syntax)}: its pixels are on a server, not in the file"
    return f"no codec reads its transfer syntax ({_name(syntax)})"


def inventory() -> dict[str, str]:
    """Name of each compressed syntax -> the codec that would decode it, or what to install."""
    lines = {}
    for syntax, order in ORDER.items():
        first = next((codec for codec in order if codec.version is not None), None)
        lines[_name(syntax)] = f"{first.name} {first.version}" if first else f"missing: pip install {order[0].package}"
    return lines


def direct(syntax: str) -> Callable[[bytes], NDArray[Any]]:
    """imagecodecs' decoder of one frame; colour transforms are undone only where the stream itself asks for it."""
    import imagecodecs

    if syntax in JPEG_XL:
        decode: Callable[[bytes], NDArray[Any]] = imagecodecs.jpegxl_decode
        return decode
    return lambda frame: np.asarray(imagecodecs.jpeg_decode(frame))
