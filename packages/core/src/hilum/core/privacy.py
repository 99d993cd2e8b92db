"""What may be said aloud while files are read: nothing that a library makes up from their values.

Libraries quote what they stumble over ("Invalid value for VR PN: ..."), in log records, warnings and exceptions. Text
that stands as it is in a program's code cannot hold a value of a file; text made while the program ran can. So of what
others say only literals pass, without the arguments that would be filled into them; hilum's own words pass whole, and
are written to name no value.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TextIO

from hilum.core.errors import HilumError

OWN = "hilum"  # loggers and modules whose words pass whole
_DEPTH = 16  # frames looked at for a literal: a library's own logging wrappers lie between


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """While it lasts, no log record, warning or unhandled exception of another library quotes a value."""
    undo = install()
    try:
        yield
    finally:
        undo()


def install() -> Callable[[], None]:
    """Guard this process: every logger, ``warnings``, threads and destructors that fail. Returns what undoes it.

    Loggers that exist, that are made later, and those with handlers of their own are all covered, because records are
    reduced where they are made.
    """
    factory, show, thread, unraisable = (
        logging.getLogRecordFactory(),
        warnings.showwarning,
        threading.excepthook,
        sys.unraisablehook,
    )
    if getattr(factory, "guards", False):
        return lambda: None
    logging.setLogRecordFactory(_reducing(factory))
    warnings.showwarning = _show
    threading.excepthook = lambda failure: _tell(f"a thread ended ({_named(failure.thread)})", failure.exc_value)
    sys.unraisablehook = lambda failure: _tell("an error while cleaning up", failure.exc_value)

    def undo() -> None:
        logging.setLogRecordFactory(factory)
        warnings.showwarning = show
        threading.excepthook = thread
        sys.unraisablehook = unraisable

    return undo


def _reducing(factory: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    def make(
        name: str, level: int, path: str, line: int, message: Any, args: Any, exc_info: Any, *rest: Any, **more: Any
    ) -> logging.LogRecord:
        if not _is_own(str(name)):  # None: logging makes an empty record first, to fill it in later
            message = _allowed(message, f"{_place(path)}:{line}")
            if isinstance(exc_info, tuple) and exc_info[0] is not None:
                message += f" ({exc_info[0].__name__})"
            args, exc_info, rest, more = (), None, rest[:1], {"func": more.get("func")} if not rest else {}
        return factory(name, level, path, line, message, args, exc_info, *rest, **more)

    make.guards = True  # type: ignore[attr-defined]
    return make


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") == "warnings":
        frame = frame.f_back
    # Not `filename`: that is whom the warning blames (stacklevel), which may be us.
    speaker = str(frame.f_globals.get("__name__", "")) if frame is not None else ""
    place = f"{_place(filename)}:{lineno}"
    text = str(message) if _is_own(speaker) else _allowed(str(message), place)
    stream = file or sys.stderr
    if stream is not None:  # a program without a console
        stream.write(f"{place}: {category.__name__}: {text}\n")


def _allowed(message: Any, place: str) -> str:
    text = message if isinstance(message, str) else ""
    return text if text and _is_literal(text) else f"a message made while it ran is not repeated ({place})"


def _is_literal(text: str) -> bool:
    """Whether it stands in the code of one of the functions that are being run."""
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if _holds(frame.f_code, text):
            return True
        frame = frame.f_back
    return False


def _holds(code: CodeType, text: str) -> bool:
    return any(isinstance(constant, str) and constant == text for constant in code.co_consts)


def _is_own(name: str) -> bool:
    return name == OWN or name.startswith(OWN + ".")


def _place(path: str) -> str:
    """The last two parts: which library's which file."""
    return "/".join(Path(path).parts[-2:])


def _named(thread: threading.Thread | None) -> str:
    return type(thread).__name__  # its name may have been made of anything


def _tell(what: str, error: BaseException | None) -> None:
    if error is not None and sys.stderr is not None:
        sys.stderr.write(f"{what}:\n{trace(error)}\n")


def trace(error: BaseException) -> str:
    """A traceback that shows code and types of exceptions; their text only where it is ours or a literal."""
    lines: list[str] = []
    seen: set[int] = set()
    failure: BaseException | None = error
    while failure is not None and id(failure) not in seen:
        seen.add(id(failure))
        frames = traceback.extract_tb(failure.__traceback__)
        told = [*traceback.format_list(frames), f"{type(failure).__name__}{_said(failure)}\n"]
        lines = [*told, "caused\n", *lines] if lines else told
        hidden = failure.__suppress_context__
        failure = failure.__cause__ or (None if hidden else failure.__context__)
    return "".join(lines).rstrip()


def _said(error: BaseException) -> str:
    if isinstance(error, HilumError):
        return f": {error}"
    text = error.args[0] if len(error.args) == 1 and isinstance(error.args[0], str) else None
    step = error.__traceback__
    while text and step is not None:
        if _holds(step.tb_frame.f_code, text):
            return f": {text}"
        step = step.tb_next
    return " (its text is not shown: it may quote a file)"
