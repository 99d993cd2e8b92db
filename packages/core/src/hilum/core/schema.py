"""Which keys a recipe has and what each may hold. Data first; the few functions below read it.

A key that the layout of recipes promises and nothing reads yet is marked ``waits``: a recipe may hold it only with the
value that changes nothing, so no setting is ever accepted and then ignored.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hilum.core.errors import HilumError, nearest

WORDS = {
    dict: "a mapping",
    list: "a list",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    str: "text",
}


@dataclass(frozen=True)
class Key:
    """What a value may be: one of ``types``, numbers from ``low`` to ``high``, texts among ``choices``.

    An end of the range is left out where ``open_`` names it. ``items`` is what a list's entries and a mapping's values
    may be, ``length`` how many there are. Where the key ``waits``, only the values in ``neutral`` pass.
    """

    types: tuple[type, ...]
    low: float = -math.inf
    high: float = math.inf
    open_: str = ""
    choices: tuple[str, ...] = ()
    items: Key | None = None
    length: int | None = None
    distinct: bool = False
    waits: str = ""
    neutral: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether ``value`` itself, apart from what is in it, is allowed."""
        if object in self.types:
            return True
        if isinstance(value, bool):
            return bool in self.types
        if isinstance(value, int | float):
            kinds = (int, float) if float in self.types else (int,) if int in self.types else ()
            return isinstance(value, kinds) and math.isfinite(value) and self._in_range(value)
        if isinstance(value, str) and self.choices:
            return value in self.choices
        if isinstance(value, list) and list in self.types:
            return (self.length is None or len(value) == self.length) and not (self.distinct and _repeats(value))
        return isinstance(value, self.types)

    def _in_range(self, value: float) -> bool:
        above = value > self.low if "low" in self.open_ else value >= self.low
        return above and (value < self.high if "high" in self.open_ else value <= self.high)

    def __str__(self) -> str:
        """``a whole number of at least 1 or auto``"""
        words = []
        for kind, word in WORDS.items():
            if kind not in self.types or (kind is int and float in self.types):
                continue
            if kind is list and (self.length is not None or self.distinct):
                word = f"a list of {self.length or 'different'} entries"
            words += [word + self._range()] if kind in (int, float) else list(self.choices) if kind is str else []
            words += [word] if kind not in (int, float) and not (kind is str and self.choices) else []
        return " or ".join(words)

    def _range(self) -> str:
        low, high = math.isfinite(self.low), math.isfinite(self.high)
        if low and high:
            ends = ("(" if "low" in self.open_ else "[", ")" if "high" in self.open_ else "]")
            return f" in {ends[0]}{self.low:.10g}, {self.high:.10g}{ends[1]}"
        if low:
            return f" above {self.low:g}" if "low" in self.open_ else f" of at least {self.low:g}"
        return ""


def _repeats(values: list[Any]) -> bool:
    return any(value in values[:at] for at, value in enumerate(values))


def _number(low: float = -math.inf, high: float = math.inf, open_: str = "", **more: Any) -> Key:
    return Key((float,), low, high, open_, **more)


def _whole(low: float = -math.inf, high: float = math.inf, **more: Any) -> Key:
    return Key((int,), low, high, **more)


def _one_of(*choices: str) -> Key:
    return Key((str,), choices=choices)


def _waits(*types: type, neutral: tuple[Any, ...] = (), fix: str = "leave the line out") -> Key:
    return Key(types, waits=fix, neutral=neutral)


ANY, TEXT, FLAG, SECTION = Key((object,)), Key((str,)), Key((bool,)), Key((dict,))
POSITIVE, NOT_NEGATIVE, SHARE = _number(0, open_="low"), _number(0), _number(0, 1, open_="low")
COUNT, COUNT_OR_NONE, BELOW_ONE = _whole(1), _whole(0), _number(0, 1, open_="high")
COUNT_OR_AUTO = Key((int, str), 1, choices=("auto",))
TEXTS = Key((list,), items=TEXT, distinct=True)
NUMBERS = Key((list,), items=_number())
SIZE = Key((int, list), 1, items=COUNT)
SCHEDULES = ("cosine", "constant", "step")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
UNCERTAIN = ("ignore", "zeros", "ones")
WEIGHING = Key((float, str), 0, open_="low", choices=("auto", "none"))

RULE: dict[str, Key] = {
    "match": TEXT, "lr": Key((float, str), 0), "weight_decay": NOT_NEGATIVE, "clip": POSITIVE, "freeze": FLAG,
    "depth_decay": SHARE,
}  # fmt: skip
TOP: dict[str, Key] = {
    "recipe": TEXT, "schema": _whole(), "paper": Key((str, int)), "verb": TEXT, "where": TEXT, "views": SECTION,
    "cache": SECTION, "objective": SECTION, "encoders": SECTION, "adapters": SECTION, "head": SECTION, "task": TEXT,
    "labels": SECTION, "augment": SECTION,
    "link": _waits(list, dict, neutral=([], {}), fix="leave it out: each view is augmented on its own"),
    "plan": SECTION, "optim": SECTION, "schedule": SECTION, "batch": SECTION, "precision": _one_of(*PRECISIONS),
    "probes": SECTION, "seed": _whole(0, 2**32 - 1), "engine": SECTION, "stages": Key((list,)), "tasks": Key((list,)),
    "run": SECTION,
}  # fmt: skip
SECTIONS: dict[str, dict[str, Key]] = {
    "cache": {"side": Key((int, str), 1, choices=("full",))},
    "labels": {
        "names": TEXTS, "uncertain": Key((str, dict), choices=UNCERTAIN, items=_one_of(*UNCERTAIN)),
        "pos_weight": Key((str, dict), choices=("auto", "none"), items=WEIGHING), "lateral": TEXTS,
    },
    "optim": {
        "name": _one_of("adamw", "adam", "sgd", "lars"), "lr": POSITIVE, "base_lr": POSITIVE, "lr_per": COUNT,
        "betas": Key((list,), items=BELOW_ONE, length=2), "momentum": BELOW_ONE, "eps": POSITIVE,
        "weight_decay": NOT_NEGATIVE, "layer_decay": SHARE, "clip": POSITIVE, "ema": _number(0, 1, "low high"),
        "rules": Key((list,), items=SECTION), "groups": SECTION,
    },
    "schedule": {
        "name": Key((str,), choices=(*SCHEDULES, "plateau"), neutral=SCHEDULES, waits="one of " + " ".join(SCHEDULES)),
        "epochs": POSITIVE, "warmup_epochs": NOT_NEGATIVE, "min_lr": NOT_NEGATIVE, "factor": SHARE,
        "patience": _waits(int, fix="it belongs to the schedule plateau; schedule.stop_after ends a run without gain"),
        "stop_after": COUNT, "monitor": TEXT, "milestones": Key((list,), items=NOT_NEGATIVE),
    },
    "batch": {"size": COUNT, "per_device": COUNT_OR_AUTO},
    "engine": {
        "devices": COUNT_OR_AUTO, "strategy": _one_of("auto", "single", "ddp", "fsdp2"),
        "workers": Key((int, str), 0, choices=("auto",)), "compile": FLAG, "checkpointing": FLAG,
        "max_bad": _number(0, 1), "checkpoint_minutes": POSITIVE, "nan_guard": COUNT_OR_NONE, "deterministic": FLAG,
        "validate_epochs": COUNT, "log_every": COUNT, "augment": _one_of("auto", "device", "workers"),
        "backend": _one_of("auto", "reference", "compiled", "triton"),
    },
    "run": {
        "study": TEXT, "split": TEXT, "fraction": SHARE, "fold": COUNT_OR_NONE, "init": TEXT, "index_digest": TEXT,
        "split_digest": TEXT, "hilum": TEXT, "name": TEXT, "rows": SECTION, "threads": _whole(),
        "allow_overlap": Key((list,), items=TEXT),
    },
}  # fmt: skip
VIEW: dict[str, Key] = {
    "kind": TEXT, "size": SIZE, "channels": COUNT, "ignore_index": _whole(), "interpolation": TEXT, "camera": TEXT,
    "swaps": Key((list,), items=Key((list,))),
    "normalise": Key((str, list), choices=("dataset", "imagenet", "none"), items=NUMBERS, length=2),
    "voi": Key((str, int), 0),
    "pick": _waits(str, fix="leave it out: every image is a sample"), "sections": _waits(list),
    "min_tokens": _waits(int), "max_tokens": _waits(int), "unit": _waits(str), "axes": _waits(str),
    "frames": _waits(int), "spacing_mm": _waits(float, list),
}  # fmt: skip
OPTIONS = {  # of a component's section, beside its constructor's: what assembly reads itself
    "encoder": {"init": TEXT, "freeze": Key((bool, list), items=TEXT), "view": TEXT},
    "adapter": {"encoder": TEXT},
}
STAGE_KEYS = frozenset({"name", "init", "train", "eval_mode", *TOP} - {"recipe", "schema", "stages", "tasks", "run"})
STAGE: dict[str, Key] = {"name": TEXT, "init": TEXT, "train": TEXTS, "eval_mode": TEXTS}
DEFAULTS: dict[str, Any] = {
    "schema": 1,
    "where": "status = 'indexed'",
    "cache": {"side": 512},
    "labels": {"uncertain": "ignore", "pos_weight": "none"},
    "augment": {},
    "schedule": {"name": "cosine", "epochs": 10, "warmup_epochs": 0, "min_lr": 0.0},
    "batch": {"size": 32, "per_device": "auto"},
    "precision": "32-true",
    "seed": 0,
    "engine": {
        "devices": "auto", "strategy": "auto", "workers": "auto", "compile": False, "checkpointing": False,
        "max_bad": 0.01, "checkpoint_minutes": 15, "nan_guard": 5, "deterministic": False, "validate_epochs": 1,
        "log_every": 10, "augment": "auto", "backend": "auto",
    },
}  # fmt: skip


def check_known(key: Any, known: Iterable[str], where: str, section: str) -> None:
    """Raise where ``section`` has no such key."""
    if key not in known:
        fix = nearest(str(key), known) or "known keys: " + " ".join(sorted(known))
        raise HilumError(f"unknown key {key!r} in {section}", where=where, fix=fix)


def check_value(name: str, value: Any, key: Key, where: str) -> None:
    """Raise where ``value``, or what is in it, is not what ``key`` allows."""
    if not key.holds(value):
        hint = "leave the line out for the default" if value is None else ""
        if isinstance(value, str) and key.choices:
            hint = nearest(value, key.choices)
        raise HilumError(f"{name} must be {key}, got {value!r}", where=where, fix=hint)
    if key.waits and value not in key.neutral:
        raise HilumError(f"{name} is not available yet, got {value!r}", where=where, fix=key.waits)
    if key.items is not None and isinstance(value, list | dict):
        for inner, content in value.items() if isinstance(value, dict) else enumerate(value):
            check_value(f"{name}.{inner}", content, key.items, where)


def key_of_annotation(text: str) -> Key:
    """What a parameter with this annotation takes from YAML; anything where the annotation is none of YAML's kinds."""
    try:
        return _key_of(ast.parse(text, mode="eval").body)
    except SyntaxError:
        return ANY


PLAIN: Mapping[str, tuple[type, ...]] = {
    "int": (int,), "float": (float,), "bool": (bool,), "str": (str,), "list": (list,), "tuple": (list,),
    "Sequence": (list,), "dict": (dict,), "Mapping": (dict,),
}  # fmt: skip


def _key_of(node: ast.expr) -> Key:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _key_of(node.left), _key_of(node.right)
        # with a bare text beside it, a Literal's texts are no limit
        free = any(str in side.types and not side.choices for side in (left, right))
        return Key((*left.types, *right.types), choices=() if free else (*left.choices, *right.choices))
    if isinstance(node, ast.Constant) and node.value is None:
        return Key((type(None),))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # of a live object, a quoted annotation
        return key_of_annotation(node.value)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id == "Literal":
            values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            texts = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
            return Key((str,), choices=tuple(texts)) if len(texts) == len(values) else ANY
        node = node.value
    return Key(PLAIN[node.id]) if isinstance(node, ast.Name) and node.id in PLAIN else ANY
