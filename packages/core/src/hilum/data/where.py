"""A SQL predicate over index columns: parsed here, never handed to a database or to Python's ``eval``.

Grammar: ``or and not``, parentheses; ``= == != <> < <= > >=`` between columns and literals; ``[not] in (...)``,
``[not] between a and b``, ``[not] like 'p%_'``, ``is [not] null``; a bare boolean column. Logic is SQL's: a comparison
with null is unknown, and only rows that are true are selected.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hilum.core.errors import HilumError, nearest

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<text>'(?:[^']|'')*')|(?P<quoted>\"[^\"]+\")"
    r"|(?P<word>[A-Za-z_][\w.]*)|(?P<sign><=|>=|!=|<>|==|[=<>(),]))"
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_WORDS = frozenset(["and", "or", "not", "in", "is", "null", "between", "like", "true", "false"])


def select(table: pa.Table, predicate: str | None) -> NDArray[np.bool_]:
    """Mask (n,) of the rows for which ``predicate`` is true; all rows for None or a blank one."""
    if predicate is None or not predicate.strip():
        return np.ones(len(table), bool)
    mask = _Parser(table, predicate).parse()
    if isinstance(mask, pa.Scalar):
        return np.full(len(table), bool(mask.as_py()))
    chosen: NDArray[np.bool_] = np.asarray(pc.fill_null(mask, False))
    return chosen


class _Parser:
    """Recursive descent; evaluates while it parses, with pyarrow's three-valued (Kleene) logic."""

    def __init__(self, table: pa.Table, predicate: str) -> None:
        self.table, self.predicate = table, predicate
        self.tokens: list[tuple[str, str, int]] = []
        position, end = 0, len(predicate.rstrip())
        while position < end:
            match = _TOKEN.match(predicate, position)
            if match is None or match.lastgroup is None:
                self.position = position
                self.fail(f"cannot read {predicate[position:].strip()[:20]!r}", position)
            kind, text = match.lastgroup, match[match.lastgroup]
            if kind == "word" and text.lower() in _WORDS:
                kind, text = "key", text.lower()
            self.tokens.append((kind, text, match.start(match.lastgroup)))
            position = match.end()
        self.at = 0

    def fail(self, what: str, position: int | None = None, fix: str = "") -> NoReturn:
        if position is None:
            position = self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.predicate)
        raise HilumError(
            f"the predicate is not understood: {what}",
            where=f"{self.predicate!r}, character {position + 1}",
            fix=fix or "columns, literals, and or not = != < <= > >= in between like is null, parentheses",
        )

    def peek(self) -> str:
        return (
            self.tokens[self.at][1] if self.at < len(self.tokens) and self.tokens[self.at][0] in ("key", "sign") else ""
        )

    def take(self, *wanted: str) -> bool:
        if self.peek() in wanted and self.peek():
            self.at += 1
            return True
        return False

    def expect(self, sign: str) -> None:
        if not self.take(sign):
            self.fail(f"{sign!r} expected")

    def parse(self) -> Any:
        result = self.either()
        if self.at < len(self.tokens):
            self.fail(f"{self.tokens[self.at][1]!r} is left over")
        return result

    def either(self) -> Any:
        result = self.both()
        while self.take("or"):
            result = pc.or_kleene(result, self.both())
        return result

    def both(self) -> Any:
        result = self.negation()
        while self.take("and"):
            result = pc.and_kleene(result, self.negation())
        return result

    def negation(self) -> Any:
        if self.take("not"):
            return pc.invert(self.negation())
        if self.take("("):
            result = self.either()
            self.expect(")")
            return result
        return self.comparison()

    def comparison(self) -> Any:
        start = self.at
        left = self.operand()
        if self.take("is"):
            negated = self.take("not")
            self.expect("null")
            return pc.is_valid(left) if negated else pc.is_null(left)
        negated = self.take("not")
        try:
            result = self.test(left)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, TypeError):
            self.fail("text and numbers are compared", self.tokens[start][2])
        if result is None:
            if negated:
                self.fail("in, between or like expected after not")
            if not pa.types.is_boolean(left.type):
                self.fail(f"{self.tokens[start][1]!r} is not a condition", self.tokens[start][2])
            return left
        return pc.invert(result) if negated else result

    def test(self, left: Any) -> Any:
        """What follows an operand; None where nothing does."""
        if self.take("in"):
            self.expect("(")
            choices = [self.operand()]
            while self.take(","):
                choices.append(self.operand())
            self.expect(")")
            result = pc.equal(left, choices[0])
            for choice in choices[1:]:
                result = pc.or_kleene(result, pc.equal(left, choice))
            return result
        if self.take("between"):
            low = self.operand()
            self.expect("and")
            return pc.and_kleene(pc.greater_equal(left, low), pc.less_equal(left, self.operand()))
        if self.take("like"):
            pattern = self.operand()
            if not isinstance(pattern, pa.StringScalar):
                self.fail("like needs a quoted pattern")
            return pc.match_like(left, pattern.as_py())
        sign = self.peek()
        if sign in _COMPARE and self.take(sign):
            return _COMPARE[sign](left, self.operand())
        return None

    def operand(self) -> Any:
        if self.at >= len(self.tokens):
            self.fail("it ends too early")
        kind, text, _ = self.tokens[self.at]
        if kind == "sign" or (kind == "key" and text not in ("true", "false", "null")):
            self.fail(f"a column or a literal expected before {text!r}")
        if kind in ("word", "quoted"):
            value = self.column(text.strip('"'))
        elif kind == "text":
            value = pa.scalar(text[1:-1].replace("''", "'"))
        elif kind == "number":
            value = pa.scalar(float(text) if re.search(r"[.eE]", text) else int(text))
        else:
            value = pa.scalar(
                {"true": True, "false": False, "null": None}[text], pa.bool_() if text != "null" else None
            )
        self.at += 1
        return value

    def column(self, name: str) -> Any:
        if name not in self.table.column_names:
            self.fail(f"there is no column {name!r}", fix=nearest(name, self.table.column_names))
        values = self.table.column(name)
        if pa.types.is_list(values.type):
            texts = pc.cast(values, pa.list_(pa.string()))
            return pc.binary_join(texts, ";")
        if pa.types.is_dictionary(values.type):
            return pc.cast(values, values.type.value_type)
        return values
