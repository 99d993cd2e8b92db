"""Errors that tell a user what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HilumError(Exception):
    """A fault in input or use: ``what`` happened, ``where``, and the ``fix``.

    The command line prints it as one message and exits with ``exit_code``.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.what
        if self.where:
            text += f"\n  where: {self.where}"
        if self.fix:
            text += f"\n  fix:   {self.fix}"
        return text


class UsageError(HilumError):
    """The command line could not be understood."""

    exit_code = 2


class TooManyBadSamples(HilumError):
    """More samples failed to load than ``max_bad`` allows; a checkpoint and the list were written first."""

    exit_code = 4


class MissingExtra(HilumError):
    """An optional package is needed that is not installed."""

    def __init__(self, needs: str, *, extra: str, wanted_by: str) -> None:
        super().__init__(
            f"{wanted_by} needs the package {needs!r}, which is not installed",
            fix=f'pip install "hilum[{extra}]"',
        )


class Unsupported(HilumError):
    """A contract's optional capability was asked of an implementation that lacks it."""


class ContractError(HilumError):
    """A third-party class does not meet the contract it was registered for; ``missing`` lists every gap."""

    def __init__(self, what: str, missing: list[str], *, where: str = "") -> None:
        self.missing = missing
        super().__init__(what + ":\n" + "\n".join(f"    - {gap}" for gap in missing), where=where)


class LeakError(HilumError):
    """A group or an exact duplicate stands in more than one split."""


def nearest(name: str, known: Iterable[str], *, n: int = 3) -> str:
    """A hint such as ``did you mean 'optim'?``, or an empty string where nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=n, cutoff=0.5)
    return "did you mean " + " or ".join(repr(c) for c in close) + "?" if close else ""
