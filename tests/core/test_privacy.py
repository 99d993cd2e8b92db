"""The guard: of what other libraries say only text that stands in their code passes, whoever logs it and how."""

from __future__ import annotations

import gc
import io
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from hilum.core.errors import HilumError
from hilum.core.privacy import guarded, install, trace

NAME = "^".join(["Muster", "Erika"])  # not a literal of any function below


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    """What reaches the root's handler while the guard holds."""
    stream = io.StringIO()
    handler, root = logging.StreamHandler(stream), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    with guarded():
        yield stream
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.mark.parametrize("logger", ["pydicom", "mlflow.tracking", "pynetdicom.acse", "py.warnings", "root", "hilumina"])
def test_what_libraries_put_together_is_not_repeated(
    said: io.StringIO, logger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in {logger, logger.partition(".")[0]} - {"root"}:  # where it was imported, mlflow keeps its records
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    log = logging.getLogger(None if logger == "root" else logger)
    log.warning(f"Invalid value for VR PN: {NAME!r}")
    log.warning("Invalid value for VR PN: %s", NAME)
    log.warning("Invalid value: " + NAME)
    log.warning(NAME)
    log.warning("%(name)s is odd", {"name": NAME})
    log.error("it failed", exc_info=ValueError(NAME))
    log.error("where", stack_info=True)
    try:
        raise KeyError(NAME)
    except KeyError:
        log.exception("while reading %s", NAME)
    told = said.getvalue()
    assert NAME not in told and "Traceback" not in told and "Stack" not in told
    lines = told.splitlines()
    assert lines[1] == "Invalid value for VR PN: %s" and lines[5] == "it failed (ValueError)"
    assert lines[7] == "while reading %s (KeyError)"
    assert lines[0].startswith("a message made while it ran is not repeated (core/test_privacy.py:")


def test_our_own_words_pass_whole(said: io.StringIO) -> None:
    logging.getLogger("hilum.data").warning("read %d of %d files", 3, 4)
    logging.getLogger("hilum").warning(f"{1 + 1} warnings")
    assert said.getvalue().splitlines() == ["read 3 of 4 files", "2 warnings"]


def test_handlers_and_loggers_made_earlier_are_covered_too() -> None:
    stream = io.StringIO()
    own = logging.getLogger("library.with.handlers")
    own.addHandler(logging.StreamHandler(stream))
    own.propagate = False
    with guarded():
        own.warning(f"patient {NAME}")
    assert NAME not in stream.getvalue() and stream.getvalue()
    own.warning(f"patient {NAME}")
    assert NAME in stream.getvalue()  # the guard ends with its block


def test_a_broken_call_of_a_library_does_not_print_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(io.StringIO())
    log = logging.getLogger("library.broken")
    log.addHandler(handler)
    with guarded():
        log.warning("two %s %s", NAME)  # logging itself would print "Arguments: ..."
    log.removeHandler(handler)
    assert NAME not in capsys.readouterr().err


def test_records_that_are_filled_in_later_can_be_made() -> None:
    with guarded():
        assert logging.makeLogRecord({"name": "library", "msg": "x"}).name == "library"


def test_warnings_say_where_and_what_kind_and_only_literals(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with guarded():
            warnings.warn(f"Invalid value for VR DA: {NAME}", stacklevel=1)
            warnings.warn("this option goes away", DeprecationWarning, stacklevel=1)
            exec(  # blames us, speaks itself
                compile("import warnings\ndef f(n): warnings.warn('odd: ' + n, stacklevel=2)\n", "lib.py", "exec"),
                space := {"__name__": "library"},
            )
            exec(compile("f(n)", "ours.py", "exec"), {"__name__": "hilum.data", "f": space["f"], "n": NAME})
            exec(compile("import warnings\nwarnings.warn(f'{2} files')", "ours.py", "exec"), {"__name__": "hilum.data"})
    told = capsys.readouterr().err
    assert NAME not in told
    lines = told.splitlines()
    assert "UserWarning: a message made while it ran is not repeated" in lines[0]
    assert lines[1].endswith("DeprecationWarning: this option goes away")
    assert "not repeated" in lines[2] and lines[3].endswith("UserWarning: 2 files")


def test_threads_and_destructors_that_fail_do_not_quote(capsys: pytest.CaptureFixture[str]) -> None:
    class Loud:
        def __del__(self) -> None:
            raise ValueError(NAME)

    def body() -> None:
        raise ValueError(f"bad {NAME}")

    with guarded():
        thread = threading.Thread(target=body, name=NAME)
        thread.start()
        thread.join()
        Loud()
        gc.collect()
    told = capsys.readouterr().err
    assert NAME not in told and told.count("ValueError (its text is not shown") == 2


def _fails(value: str) -> None:
    try:
        int(value)
    except ValueError as error:
        raise RuntimeError("the table is odd") from error


def test_a_trace_shows_code_and_not_values() -> None:
    with pytest.raises(RuntimeError) as caught:
        _fails(NAME)
    told = trace(caught.value)
    assert NAME not in told and "Muster" not in told
    assert "RuntimeError: the table is odd" in told and "in _fails" in told and "caused" in told
    assert "ValueError (its text is not shown" in told
    assert trace(HilumError("no such study", fix="hilum index")).endswith("hilum index")
    loop = ValueError(NAME)
    loop.__context__ = other = KeyError(NAME)
    other.__context__ = loop
    assert NAME not in trace(loop)


def test_a_second_guard_changes_nothing_and_undoes_nothing() -> None:
    before = logging.getLogRecordFactory()
    with guarded():
        inside = logging.getLogRecordFactory()
        install()()
        assert logging.getLogRecordFactory() is inside is not before
    assert logging.getLogRecordFactory() is before


def test_a_command_is_guarded_to_its_last_word(tmp_path: Any) -> None:
    """In a process of its own also after the verb has ended, where exit handlers of libraries speak."""
    script = (
        "import atexit, logging, sys\n"
        "name = '^'.join(['Muster', 'Erika'])\n"
        "atexit.register(lambda: logging.getLogger('library').warning(f'closing {name}'))\n"
        "sys.argv = ['hilum', '--version']\n"
        "from hilum.core.cli import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hilum ") and "not repeated" in done.stderr and "Muster^" not in done.stderr
