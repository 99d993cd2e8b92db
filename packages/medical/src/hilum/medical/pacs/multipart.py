"""multipart/related, streamed (PS3.18 8.6.1.2): one part to a file, one file as a body of known length."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from hilum.medical.pacs.transfer import Trouble

CHUNK = 1 << 16
_HEAD = 1 << 14  # bytes of a part's header, and of what stands before the first part


def boundary_of(content_type: str) -> bytes | None:
    """The boundary of a multipart/related answer; None where it is a single part."""
    message = Message()
    message["content-type"] = content_type
    if message.get_content_type() != "multipart/related":
        return None
    boundary = str(message.get_param("boundary", ""))
    if not 0 < len(boundary) <= 200 or not boundary.isascii():
        raise Trouble("unexpected_answer", detail="multipart boundary")
    return boundary.encode()


def copy_part(chunks: Iterable[bytes], boundary: bytes | None, out: BinaryIO, most: int) -> int:
    """Write the only part's content and return its bytes.

    :class:`Trouble`: ``truncated_answer`` where the closing delimiter is missing, ``unexpected_answer`` for none or
    several parts, ``too_large`` beyond ``most`` bytes.
    """
    pieces = iter(chunks)
    if boundary is None:
        return _copy(pieces, out, most)
    delimiter = b"\r\n--" + boundary
    buffer = _until(pieces, b"\r\n", delimiter)  # the first delimiter need not follow a line end
    buffer = _until(pieces, buffer, b"\r\n\r\n")
    written, keep = 0, len(delimiter) - 1
    while (at := buffer.find(delimiter)) < 0:
        written = _write(out, buffer[: max(0, len(buffer) - keep)], written, most)
        buffer = buffer[max(0, len(buffer) - keep) :] + _next(pieces)
    written = _write(out, buffer[:at], written, most)
    rest = buffer[at + len(delimiter) :]
    while len(rest) < 2:
        rest += _next(pieces)
    if rest[:2] != b"--":
        raise Trouble("unexpected_answer", detail="several parts")
    return written


def _until(pieces: Iterator[bytes], buffer: bytes, mark: bytes) -> bytes:
    """What follows ``mark``."""
    while (at := buffer.find(mark)) < 0:
        if len(buffer) > _HEAD + CHUNK:
            raise Trouble("unexpected_answer", detail="multipart header")
        buffer += _next(pieces)
    return buffer[at + len(mark) :]


def _next(pieces: Iterator[bytes]) -> bytes:
    for piece in pieces:
        if piece:
            return piece
    raise Trouble("truncated_answer", again=True)


def _copy(pieces: Iterator[bytes], out: BinaryIO, most: int) -> int:
    written = 0
    for piece in pieces:
        written = _write(out, piece, written, most)
    return written


def _write(out: BinaryIO, data: bytes, written: int, most: int) -> int:
    if written + len(data) > most:
        raise Trouble("too_large")
    out.write(data)
    return written + len(data)


class FileBody:
    """The body of a STOW request with one instance. Its length is known, so it is not sent chunked: some archives
    answer a chunked one with 200 and store nothing."""

    def __init__(self, file: Path) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
        self._file = file
        self._head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()

    def __len__(self) -> int:
        return len(self._head) + self._file.stat().st_size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        with self._file.open("rb") as opened:
            while piece := opened.read(CHUNK):
                yield piece
        yield self._tail
