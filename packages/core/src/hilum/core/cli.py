"""``hilum VERB ...``: every registered verb is a public function, and its signature is its command line.

Positional parameters become arguments, keyword-only parameters become options (``fraction: float = 1.0`` is
``--fraction 0.1``; a list may be given several times; a bool is a switch). ``hilum --help`` reads manifests only.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError, UsageError, nearest
from hilum.core.registry import registry


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (FORMATS: 0, 1 user error, 2 usage, 3, 4, 130, 143)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
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
        if os.environ.get("HILUM_DEBUG"):
            raise
        place = _innermost(error)
        print(
            f"hilum: this should not have happened: {type(error).__name__} in {place}\n"
            "  fix:   run again with HILUM_DEBUG=1 for the full trace, and report it",
            file=sys.stderr,
        )
        return 1


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    place = "unknown"
    while trace is not None:
        code = trace.tb_frame.f_code
        if "hilum" in code.co_filename:
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
    options = parser_of(function, prog=f"hilum {verb}").parse_args(rest)
    result = call(function, vars(options))
    return int(getattr(result, "exit_code", 0) or 0)


def _overview() -> str:
    lines = [
        "usage: hilum COMMAND ...      hilum COMMAND --help tells more",
        "",
        "From an archive of images to a pretrained, adapted, honestly evaluated, tracked model.",
        "",
    ]
    entries = registry.entries("verb").values()
    width = max((len(e.name) for e in entries), default=0)
    lines += [f"  {e.name:<{width}}  {e.help}" for e in entries]
    return "\n".join(lines)


def parser_of(function: Callable[..., Any], *, prog: str) -> argparse.ArgumentParser:
    """A parser for a verb, from its signature, type hints and docstring (``name: text`` lines under ``Args:``)."""
    text = inspect.getdoc(function) or ""
    summary, _, rest = text.partition("Args:")
    told = dict(re.findall(r"^\s+(\w+): (.+(?:\n {8,}.+)*)", rest, flags=re.MULTILINE))
    parser = argparse.ArgumentParser(prog=prog, description=summary.strip(), allow_abbrev=False)
    hints = typing.get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        help_text = " ".join(told.get(parameter.name, "").split()).replace("%", "%%")
        _add(parser, parameter, hints.get(parameter.name, str), help_text)
    return parser


def _add(parser: argparse.ArgumentParser, parameter: inspect.Parameter, hint: Any, text: str) -> None:
    kind, many, choices = _plain(hint)
    required = parameter.default is inspect.Parameter.empty
    shown = text if required or parameter.default in (None, False, ()) else f"{text} (default {parameter.default})"
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        extra: dict[str, Any] = {} if required else {"nargs": "?", "default": parameter.default}
        parser.add_argument(parameter.name, type=kind, help=shown, metavar=parameter.name.upper(), **extra)
        return
    flag = "--" + parameter.name.rstrip("_").replace("_", "-")
    if kind is bool:
        parser.add_argument(
            flag, dest=parameter.name, action=argparse.BooleanOptionalAction, default=parameter.default, help=shown
        )
    elif many:
        parser.add_argument(
            flag, dest=parameter.name, type=kind, action="append", default=None, help=shown + " (repeatable)"
        )
    else:
        parser.add_argument(
            flag,
            dest=parameter.name,
            type=kind,
            choices=choices,
            required=required,
            default=None if required else parameter.default,
            help=shown,
        )


def _plain(hint: Any) -> tuple[Callable[[str], Any], bool, list[str] | None]:
    """(converter, may be repeated, choices) of a type hint."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return str, False, [str(a) for a in arguments]
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        if set(inner) == {int, str}:
            return _int_or_text, False, None
        return _plain(Path if Path in inner else inner[0])
    if origin in (list, tuple, Sequence) or str(origin).endswith("Sequence'>"):
        return _plain(arguments[0])[0], True, None
    return (hint if callable(hint) else str), False, None


def _int_or_text(text: str) -> int | str:
    return int(text) if text.isdigit() else text


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
