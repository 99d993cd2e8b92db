"""The command line: signatures become parsers, faults become one message and an exit code."""

from __future__ import annotations

import argparse
import inspect
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from hilum.core import cli
from hilum.core.cli import call, main, parser_of
from hilum.core.errors import HilumError, TooManyBadSamples, UsageError
from hilum.core.registry import registry


def verb(
    root: Path,
    extra: str | None = None,
    *,
    out: Path,
    names: list[str] | None = None,
    sizes: Sequence[int] = (1, 2),
    mode: Literal["fast", "slow"] = "fast",
    level: Literal[1, 2] = 1,
    share: float = 0.5,
    workers: int | str = "auto",
    limit: int | None = None,
    track: bool = True,
    dry_run: bool = False,
    from_: str = "",
    to: list[Literal["a", "b"]] | None = None,
) -> dict[str, Any]:
    """Do something with 100% care.

    Args:
        root: the place
        share: how much, e.g. 10%,
            and more of that
        limit: at most so many
    """
    return dict(locals().items())


def parsed(*arguments: str) -> Any:
    return call(verb, vars(parser_of(verb, prog="hilum verb").parse_args(list(arguments))))


def test_defaults_are_the_signature_s_own() -> None:
    defaults = {n: p.default for n, p in inspect.signature(verb).parameters.items() if p.default is not p.empty}
    assert parsed("x", "--out", "y") == {"root": Path("x"), "out": Path("y"), **defaults}


def test_every_kind_of_parameter() -> None:
    found = parsed(
        "x", "more", "--out", "y", "--names", "a", "--names", "b", "--sizes", "3", "--mode", "slow", "--level", "2",
        "--share", "1e-1", "--workers", "4", "--limit", "7", "--no-track", "--dry-run", "--from", "T.csv:c",
        "--to", "b", "--to", "a",
    )  # fmt: skip
    assert found == {
        "root": Path("x"), "extra": "more", "out": Path("y"), "names": ["a", "b"], "sizes": [3], "mode": "slow",
        "level": 2, "share": 0.1, "workers": 4, "limit": 7, "track": False, "dry_run": True, "from_": "T.csv:c",
        "to": ["b", "a"],
    }  # fmt: skip
    assert parsed("x", "--out", "y", "--workers", "-1")["workers"] == -1
    assert parsed("x", "--out", "y", "--workers", "all")["workers"] == "all"
    assert parsed("x", "--out=y")["out"] == Path("y")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "ROOT"),
        (["x"], "--out"),
        (["x", "--out", "y", "--share", "much"], "--share"),
        (["x", "--out", "y", "--mode", "warp"], "--mode"),
        (["x", "--out", "y", "--level", "3"], "--level"),
        (["x", "--out", "y", "--to", "c"], "--to"),
        (["x", "--out", "y", "--dry"], "did you mean '--dry-run'"),
        (["x", "--out", "y", "--limt", "3"], "did you mean '--limit'"),
        (["x", "--out", "y", "--limt=3"], "did you mean '--limit'"),
    ],
)
def test_usage_errors_are_messages_with_exit_2(arguments: list[str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(*arguments)
    assert told in str(caught.value)
    assert caught.value.exit_code == 2


def test_several_positionals() -> None:
    def many(runs: list[Path], *, sort: bool = False) -> list[Path]:
        return runs

    parser = parser_of(many, prog="hilum many")
    assert call(many, vars(parser.parse_args(["a", "b"]))) == [Path("a"), Path("b")]
    with pytest.raises(UsageError):
        parser.parse_args([])


def test_help_comes_from_the_docstring() -> None:
    text = " ".join(parser_of(verb, prog="hilum verb").format_help().split())
    assert "Do something with 100% care." in text
    assert "how much, e.g. 10%, and more of that (default 0.5)" in text
    assert "{fast,slow}" in text
    assert "--track, --no-track" in text


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a function as a verb; (exit code)."""

    def go(function: Any, *arguments: str) -> int:
        kept = {key: entry for key, entry in registry.local.items() if key != ("verb", "toy")}
        monkeypatch.setattr(registry, "local", kept)
        registry.register("verb", "toy", function)
        return main(["toy", *arguments])

    return go


@dataclass
class Result:
    exit_code: int = 0


def fail(error: BaseException) -> Any:
    def toy() -> None:
        raise error

    return toy


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HilumError("no such study", where="here", fix="do that"), 1),
        (UsageError("say more"), 2),
        (TooManyBadSamples("too many"), 4),
    ],
)
def test_user_errors_are_one_message_without_a_trace(
    error: HilumError, code: int, run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for debug in ("", "1"):
        monkeypatch.setenv("HILUM_DEBUG", debug)
        assert run(fail(error)) == code
        out, told = capsys.readouterr()
        assert (out, told) == ("", f"hilum: {error}\n")


def test_exit_codes_of_results_and_signals(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert [run(lambda c=c: Result(c)) for c in (0, 3, 4, 143)] == [0, 3, 4, 143]
    assert run(lambda: None) == 0
    assert run(fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "hilum: interrupted\n"
    assert run(verb) == 2
    assert run(verb, "--help") == 0
    assert main(["nosuch"]) == 2
    assert main(["tooy"]) == 2


def test_an_unexpected_fault_is_one_message_that_quotes_nothing(
    run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HILUM_DEBUG", raising=False)
    assert run(fail(ValueError("DOE^JANE"))) == 1
    told = capsys.readouterr().err
    assert told.startswith("hilum: this should not have happened: ValueError in cli.py:")
    assert "HILUM_DEBUG=1" in told
    assert "Traceback" not in told
    assert "DOE" not in told
    monkeypatch.setenv("HILUM_DEBUG", "0")
    assert run(fail(ValueError("x"))) == 1
    monkeypatch.setenv("HILUM_DEBUG", "1")
    capsys.readouterr()
    assert run(fail(ValueError("DOE^JANE"))) == 1
    told = capsys.readouterr().err
    assert "test_cli.py" in told and "ValueError (its text is not shown" in told
    monkeypatch.setenv("HILUM_DEBUG", "raise")
    with pytest.raises(ValueError, match="DOE"):
        run(fail(ValueError("DOE^JANE")))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (PermissionError(13, "Permission denied", "/private/DOE"), "no permission"),
    ],
)
def test_the_system_s_refusals_are_told_as_such(
    error: OSError, told: str, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(fail(error)) == 1
    message = capsys.readouterr().err
    assert told in message
    assert "DOE" not in message
    assert "should not have happened" not in message


def test_overview_lists_every_verb_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-h"], ["--help"], ["help"]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        for name, entry in registry.entries("verb").items():
            assert f"  {name}" in out
            assert entry.help in out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hilum ")


@pytest.mark.parametrize("name", list(registry.entries("verb")))
def test_every_verb_has_a_parser_and_says_what_each_parameter_is(name: str) -> None:
    function = registry.load("verb", name)
    parser = parser_of(function, prog=f"hilum {name}")
    assert isinstance(parser, argparse.ArgumentParser)
    assert parser.description
    for action in parser._actions:
        if action.dest != "help":
            assert (action.help or "").replace("(repeatable)", "").strip(" )").partition("(default")[0].strip(), (
                f"{name}: {action.dest} is not explained"
            )
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        assert not (parameter.kind is not parameter.KEYWORD_ONLY and isinstance(parameter.default, bool))


def test_a_closed_pipe_is_no_error() -> None:
    code = "import sys; from hilum.core.cli import main; sys.exit(main(['list']))"
    command = f'"{sys.executable}" -c "{code}" | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hilum.core.cli", "splt"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ},
    )
    assert done.returncode == 2
    assert "did you mean 'split'" in done.stderr
    assert cli.main is main
