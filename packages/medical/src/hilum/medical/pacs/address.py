"""Where an archive answers: ``https://host/dicom-web`` or ``dimse://AET@host:port?calling=HILUM``."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from hilum.core.errors import HilumError, nearest

TOKEN = "HILUM_DICOMWEB_TOKEN"
WEB, DIMSE = "https://host/dicom-web", "dimse://AET@host:port?calling=HILUM"


@dataclass(frozen=True)
class WebAddress:
    """The base URL of a DICOMweb service (PS3.18), without a trailing slash."""

    url: str
    host: str
    loopback: bool
    secure: bool


@dataclass(frozen=True)
class DimseAddress:
    """An application entity (PS3.8). ``move`` is where our own receiver listens, for archives without C-GET."""

    called: str
    host: str
    port: int
    calling: str = "HILUM"
    move: tuple[str, int] | None = None


@dataclass(frozen=True)
class Certificates:
    """PEM files: authorities to trust, our certificate and its key. Any of them turns TLS on for DIMSE."""

    authorities: Path | None = None
    own: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        for option, file in (("--tls-ca", self.authorities), ("--tls-cert", self.own), ("--tls-key", self.key)):
            if file is not None and not file.is_file():
                raise HilumError("there is no such certificate file", where=option, fix="the path of a PEM file")
        if self.key is not None and self.own is None:
            raise HilumError("--tls-key needs --tls-cert", fix="give both, or neither")

    def __bool__(self) -> bool:
        return self.authorities is not None or self.own is not None


def parse_address(text: str, *, allow_http: bool = False) -> WebAddress | DimseAddress:
    """The address that a user wrote; :class:`HilumError` says what is wrong with it, and never repeats it."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _wrong("its port or host cannot be read") from None
    if parts.scheme in ("http", "https"):
        return _web(text, allow_http)
    if parts.scheme == "dimse":
        return _dimse(text, port)
    raise _wrong(f"the scheme {parts.scheme!r} is not known" if parts.scheme else "it has no scheme")


def _web(text: str, allow_http: bool) -> WebAddress:
    parts = urlsplit(text)
    if parts.username or parts.password:
        raise HilumError("credentials do not belong on a command line", fix=f"set {TOKEN}, or use ~/.netrc")
    if not parts.hostname or parts.query or parts.fragment:
        raise _wrong("it is not a base URL")
    local, secure = is_loopback(parts.hostname), parts.scheme == "https"
    if not secure and not local and not allow_http:
        raise HilumError("http sends patients' images in clear", fix="an https address, or --allow-http")
    if not secure and not local and os.environ.get(TOKEN):
        raise HilumError("the token would travel in clear", fix=f"an https address, or unset {TOKEN}")
    return WebAddress(text.rstrip("/"), parts.hostname, local, secure)


def _dimse(text: str, port: int | None) -> DimseAddress:
    parts = urlsplit(text)
    options = parse_qs(parts.query, keep_blank_values=True)
    for name in options:
        if name not in ("calling", "move"):
            raise _wrong(f"the option {name!r} is not known", nearest(name, ("calling", "move")))
    if not parts.hostname or not port or parts.path not in ("", "/") or parts.password:
        raise _wrong("it needs AE title, host and port, and nothing else")
    called, calling = unquote(parts.username or ""), options.get("calling", ["HILUM"])[-1]
    for title in (called, calling):
        if not re.fullmatch(r"[ -\[\]-~]{1,16}", title) or not title.strip():
            raise _wrong("an AE title has 1 to 16 printable characters without backslash (PS3.5 6.2)")
    move = None
    if "move" in options:
        host, _, number = options["move"][-1].rpartition(":")
        if not host or not number.isdecimal() or not 0 < int(number) < 65536:
            raise _wrong("move is one address of this machine and a port, e.g. move=10.0.0.7:11112")
        if host in ("0.0.0.0", "::", "*"):
            raise _wrong("our receiver listens on one address, not on all")
        move = (host, int(number))
    return DimseAddress(called, parts.hostname, port, calling, move)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wrong(why: str, near: str = "") -> HilumError:
    return HilumError(f"the address cannot be used: {why}", where="SOURCE or DEST", fix=near or f"{WEB} or {DIMSE}")
