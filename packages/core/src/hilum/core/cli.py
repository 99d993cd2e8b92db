"""``hilum VERB ...``: every registered verb is a public function, and its signature is its command line.

Positional parameters become arguments, keyword-only parameters become options (``fraction: float = 1.0`` is
``--fraction 0.1``; a list may be given several times; a bool is a switch). ``hilum --help`` reads manifests only.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hilum.core.errors import HilumError, UsageError, nearest
from hilum.core.privacy import install, trace
from hilum.core.registry import registry

SYSTEM = {errno.ENOSPC: "the disk is full", errno.EACCES: "no permission", errno.EROFS: "the disk is read-only"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (FORMATS: 0, 1 user error, 2 usage, 3, 4, 130, 143)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    unguard = install()  # no library quotes a value of a file aloud
    try:
        return _dispatch(arguments)
    except SystemExit as end:  # argparse, after --help
        return end.code if isinstance(end.code, int) else 1
    except HilumError as error:
        print(f"hilum: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("hilum: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        debug = os.environ.get("HILUM_DEBUG", "0")
        if debug == "raise":  # with its text, which may quote a header or a path
            raise
        if debug not in ("", "0"):
            print(trace(error), file=sys.stderr)
            return 1
        told, fix = "this should not have happened", "run again with HILUM_DEBUG=1 for the full trace, and report it"
        if isinstance(error, OSError) and error.errno in SYSTEM:
            told, fix = SYSTEM[error.errno], "mend that and run the command again"
        place = f"{type(error).__name__} in {_innermost(error)}"  # without its text, which may quote a header or a path
        print(f"hilum: {told}: {place}\n  fix:   {fix}", file=sys.stderr)
        return 1
    finally:
        if argv is not None:  # a process of its own stays guarded to its last word
            unguard()


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    place = "unknown"
    while trace is not None:
        code = trace.tb_frame.f_code
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith("hilum."):
            place = f"{Path(code.co_filename).name}:{trace.tb_lineno} ({code.co_name})"
        trace = trace.tb_next
    return place


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] in ("--version", "-V"):
        from importlib.metadata import version

        print(f"hilum {version('hilum')}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    verbs = registry.entries("verb")
    if verb not in verbs:
        raise UsageError(f"there is no command {verb!r}", fix=nearest(verb, verbs) or "hilum --help")
    function = verbs[verb].load()
    options = parser_of(function, prog=f"hilum {verb}").parse_args(getattr(function, "reword", list)(rest))
    result = call(function, vars(options))
    return int(getattr(result, "exit_code", 0) or 0)


def _overview() -> str:
    lines = ["usage: hilum COMMAND ...      hilum COMMAND --help tells more", ""]
    lines += ["From an archive of images to a pretrained, adapted, honestly evaluated, tracked model.", ""]
    entries = registry.entries("verb").values()
    width = max((len(e.name) for e in entries), default=0)
    lines += [f"  {e.name:<{width}}  {e.help}" for e in entries]
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Tells of a wrong command line in one message, with the nearest option."""

    def error(self, message: str) -> NoReturn:
        words = message.partition("unrecognized arguments: ")[2].split()
        options = [o for o in self._option_string_actions if o.startswith("--")]
        near = nearest(words[0].partition("=")[0], options) if words else ""
        raise UsageError(message, where=self.prog, fix=near or f"{self.prog} --help")


def parser_of(function: Callable[..., Any], *, prog: str) -> argparse.ArgumentParser:
    """A parser for a verb, from its signature, type hints and docstring (``name: text`` lines under ``Args:``)."""
    text = inspect.getdoc(function) or ""
    summary, _, rest = text.partition("Args:")
    told = dict(re.findall(r"^\s+(\w+): (.+(?:\n {8,}.+)*)", rest, flags=re.MULTILINE))
    parser = _Parser(prog=prog, description=summary.strip(), allow_abbrev=False)
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        help_text = " ".join(told.get(parameter.name, "").split()).replace("%", "%%")
        _add(parser, parameter, hints.get(parameter.name, str), help_text)
    return parser


def _add(parser: argparse.ArgumentParser, parameter: inspect.Parameter, hint: Any, text: str) -> None:
    kind, many, choices = _plain(hint)
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    shown = text if default in (None, False, (), "") else f"{text} (default {default})"
    how: dict[str, Any] = {"help": shown, "default": default, "type": kind, "choices": choices}
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        nargs = ("+" if required else "*") if many else (None if required else "?")
        parser.add_argument(parameter.name, metavar=parameter.name.upper(), nargs=nargs, **how)
        return
    how |= {"dest": parameter.name, "required": required}
    if kind is bool:
        how = {k: v for k, v in how.items() if k not in ("type", "choices")}
        how["action"] = argparse.BooleanOptionalAction
    elif many:
        how |= {"action": "append", "default": None, "help": f"{shown} (repeatable)"}
    parser.add_argument("--" + parameter.name.rstrip("_").replace("_", "-"), **how)


def _plain(hint: Any) -> tuple[Callable[[str], Any], bool, list[Any] | None]:
    """(converter, may be repeated, choices) of a type hint."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return type(arguments[0]), False, list(arguments)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        if set(inner) == {int, str}:
            return (lambda text: int(text) if text.removeprefix("-").isdecimal() else text), False, None
        return _plain(Path if Path in inner else inner[0])
    if origin in (list, tuple, Sequence, Iterable):
        kind, _, choices = _plain(arguments[0])
        return kind, True, choices
    return (hint if callable(hint) else str), False, None


def call(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    """Call a verb with parsed values: positionals by position, repeated options as lists (absent: the default)."""
    positional, keywords = [], {}
    for parameter in inspect.signature(function).parameters.values():
        value = values[parameter.name]
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            if value is not None or parameter.default is None:
                keywords[parameter.name] = value
        else:
            positional.append(value)
    return function(*positional, **keywords)


if __name__ == "__main__":
    sys.exit(main())
