"""Recipes: flat YAML that is checked, key by key, before anything heavy is imported.

A recipe is at most two levels deep. Every fault names file, line, key and the nearest valid key. ``RUN/config.yaml`` is
a recipe with every ``auto`` resolved and a section ``run`` that names the study, split and start; it alone
reproduces the run. Layout: FORMATS 8 and docs/decisions/0002.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hilum.core.errors import HilumError, nearest
from hilum.core.registry import Registry, registry

NUMBER = (int, float)
ANY: tuple[type, ...] = (object,)

TOP: dict[str, tuple[type, ...]] = {
    "recipe": (str,), "schema": (int,), "paper": (str, int), "verb": (str,), "where": (str,), "views": (dict,),
    "cache": (dict,), "objective": (dict,), "encoders": (dict,), "adapters": (dict,), "head": (dict,), "task": (str,),
    "labels": (dict,), "augment": (dict,), "link": (list, dict), "plan": (dict,), "optim": (dict,), "schedule": (dict,),
    "batch": (dict,), "precision": (str,), "probes": (dict,), "seed": (int,), "engine": (dict,), "stages": (list,),
    "tasks": (list,), "run": (dict,),
}  # fmt: skip
SECTIONS: dict[str, dict[str, tuple[type, ...]]] = {
    "cache": {"side": (int, str)},
    "labels": {"names": (list,), "uncertain": (str, dict), "pos_weight": (str, dict), "lateral": (list,)},
    "optim": {
        "name": (str,), "lr": NUMBER, "base_lr": NUMBER, "lr_per": (int,), "betas": (list,), "momentum": NUMBER,
        "weight_decay": NUMBER, "layer_decay": NUMBER, "clip": NUMBER, "ema": NUMBER, "eps": NUMBER, "rules": (list,),
        "groups": (dict,),
    },
    "schedule": {
        "name": (str,), "epochs": NUMBER, "warmup_epochs": NUMBER, "min_lr": NUMBER, "factor": NUMBER, "patience": (int,),
        "stop_after": (int,), "monitor": (str,), "milestones": (list,),
    },
    "batch": {"size": (int,), "per_device": (int, str)},
    "engine": {
        "devices": (int, str), "strategy": (str,), "workers": (int, str), "compile": (bool,), "checkpointing": (bool,),
        "max_bad": NUMBER, "checkpoint_minutes": NUMBER, "nan_guard": (int,), "deterministic": (bool,),
        "validate_epochs": (int,), "log_every": (int,),
    },
    "run": {
        "study": (str,), "split": (str,), "fraction": NUMBER, "fold": (int,), "init": (str,), "index_digest": (str,),
        "split_digest": (str,), "hilum": (str,), "name": (str,), "rows": (dict,), "threads": (int,),
    },
}  # fmt: skip
STAGE_KEYS = frozenset({"name", "init", "train", "eval_mode", *TOP} - {"recipe", "schema", "stages", "tasks", "run"})
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
        "log_every": 10,
    },
}  # fmt: skip
COMPONENTS = {"objective": "objective", "head": "head", "plan": "plan"}  # one mapping with ``name``
NAMED_COMPONENTS = {"encoders": "encoder", "adapters": "adapter"}  # name -> mapping with ``name``
BUILT_IN = {  # keyword names that the builders pass themselves
    "objective": {"parts"}, "encoder": {"name", "view", "init"}, "adapter": {"module"}, "head": {"dim", "names", "task"},
    "plan": {"rows", "sample_ids", "batch_size", "seed"},
}  # fmt: skip
ENCODER_OPTIONS = frozenset({"init", "freeze", "view"})
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. ``data`` holds defaults too; ``lines`` maps dotted keys to lines of ``origin``."""

    data: Mapping[str, Any]
    origin: str = "python"
    lines: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.data.get(key, default)

    @property
    def name(self) -> str:
        return str(self.data.get("recipe", Path(self.origin).stem))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, in a fixed key order."""
        ordered = {k: self.data[k] for k in TOP if k in self.data}
        return yaml.safe_dump(ordered, sort_keys=False, default_flow_style=None, width=120)

    def where(self, key: str) -> str:
        """``file:line`` of a dotted key (or of its nearest parent)."""
        probe = key
        while probe not in self.lines and "." in probe:
            probe = probe.rpartition(".")[0]
        return f"{self.origin}:{self.lines[probe]} ({key})" if probe in self.lines else f"{self.origin} ({key})"

    def with_(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with sections merged over this one's (unchecked: for values the code resolved)."""
        return Recipe(merge(self.data, changes), self.origin, self.lines)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``, mapping by mapping; neither is changed."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merge(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def load_recipe(name: str | Path, *, sets: Sequence[str] = (), names: Registry = registry) -> Recipe:
    """Read a registered recipe or a YAML file, apply ``key=value`` settings, check everything."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise HilumError(
                f"there is no recipe file {path}", fix="give a path to a YAML file or a name of `hilum list`"
            )
    else:
        path = names.get("recipe", str(name)).path
    text = path.read_text(encoding="utf-8")
    return parse_recipe(text, origin=path.name, sets=sets, names=names)


def parse_recipe(text: str, *, origin: str, sets: Sequence[str] = (), names: Registry = registry) -> Recipe:
    """Check YAML text; see :func:`load_recipe`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{origin}:{mark.line + 1}" if mark else origin
        raise HilumError(f"not valid YAML: {getattr(error, 'problem', error)}", where=place) from error
    if not isinstance(data, dict):
        raise HilumError("a recipe is a mapping of keys", where=origin)
    lines: dict[str, int] = {}
    _collect_lines(node, "", lines)
    for setting in sets:
        key = _apply_setting(data, setting)
        lines.pop(key, None)
    recipe = Recipe(data, origin, lines)
    check(recipe, names=names, from_settings={s.partition("=")[0].strip() for s in sets})
    filled = merge(DEFAULTS, data)
    if "lr" not in filled.get("optim", {}) and "base_lr" not in filled.get("optim", {}):
        raise HilumError(
            "the recipe sets no learning rate", where=recipe.where("optim"), fix="add optim.lr or optim.base_lr"
        )
    return Recipe(filled, origin, lines)


def _collect_lines(node: Any, prefix: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = f"{prefix}{key_node.value}"
            if key in seen:
                raise HilumError(f"key {key!r} stands twice", where=f"line {key_node.start_mark.line + 1}")
            seen.add(key)
            lines[key] = key_node.start_mark.line + 1
            _collect_lines(value_node, f"{key}.", lines)


def _apply_setting(data: dict[str, Any], setting: str) -> str:
    key, equals, text = setting.partition("=")
    key = key.strip()
    if not equals or not key:
        raise HilumError(f"--set takes key=value, got {setting!r}", fix="e.g. --set optim.lr=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise HilumError(f"--set {key}: the value {text!r} is not valid YAML", where="--set") from error
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        try:
            value = float(value)
        except ValueError:
            pass
    at = data
    *parents, last = key.split(".")
    for parent in parents:
        child = at.setdefault(parent, {})
        if not isinstance(child, dict):
            raise HilumError(f"--set {key}: {parent!r} is not a section", where="--set")
        at = child
    at[last] = value
    return key


def check(recipe: Recipe, *, names: Registry = registry, from_settings: Iterable[str] = ()) -> None:
    """Raise a :class:`HilumError` with file, line and nearest key at the first fault."""
    settings = set(from_settings)

    def place(key: str) -> str:
        return f"--set {key}" if key in settings else recipe.where(key)

    for key, value in recipe.data.items():
        _known(key, TOP, place(key), "recipe")
        _typed(key, value, TOP[key], place(key))
        if isinstance(value, dict):
            _depth(key, value, place)
        for inner, content in value.items() if key in SECTIONS and isinstance(value, dict) else ():
            _known(inner, SECTIONS[key], place(f"{key}.{inner}"), key)
            _typed(f"{key}.{inner}", content, SECTIONS[key][inner], place(f"{key}.{inner}"))
    if recipe.get("schema", 1) != 1:
        raise HilumError(f"this hilum reads recipe schema 1, not {recipe['schema']}", where=place("schema"))
    precision = recipe.get("precision", "32-true")
    if precision not in PRECISIONS:
        raise HilumError(
            f"unknown precision {precision!r}", where=place("precision"), fix="one of " + " ".join(PRECISIONS)
        )
    for key, kind in COMPONENTS.items():
        if key in recipe.data:
            _component(kind, recipe[key], key, place, names)
    for key, kind in NAMED_COMPONENTS.items():
        for inner, content in recipe.get(key, {}).items():
            _typed(f"{key}.{inner}", content, (dict,), place(f"{key}.{inner}"))
            _component(kind, content, f"{key}.{inner}", place, names)
    for number, stage in enumerate([*recipe.get("stages", []), *recipe.get("tasks", [])]):
        _typed("stages", stage, (dict,), place("stages"))
        for key in stage:
            _known(key, STAGE_KEYS, place("stages" if recipe.get("stages") else "tasks"), f"stage {number}")


def _known(key: str, known: Iterable[str], where: str, section: str) -> None:
    if key not in known:
        raise HilumError(
            f"unknown key {key!r} in {section}",
            where=where,
            fix=nearest(key, known) or "known keys: " + " ".join(sorted(known)),
        )


def _typed(key: str, value: Any, types: tuple[type, ...], where: str) -> None:
    if types is ANY or (isinstance(value, types) and not (isinstance(value, bool) and bool not in types)):
        return
    wanted = " or ".join(
        {
            "dict": "a mapping",
            "list": "a list",
            "str": "text",
            "int": "a whole number",
            "float": "a number",
            "bool": "true or false",
        }[t.__name__]
        for t in types
    )
    hint = "write 1.0e-4, not 1e-4 (YAML reads the latter as text)" if isinstance(value, str) and float in types else ""
    raise HilumError(f"{key} must be {wanted}, got {value!r}", where=where, fix=hint)


def _depth(key: str, value: dict[str, Any], place: Any) -> None:
    for inner, content in value.items():
        for innermost in content.values() if isinstance(content, dict) else ():
            if isinstance(innermost, dict):
                raise HilumError(
                    "a recipe is two levels deep at most",
                    where=place(f"{key}.{inner}"),
                    fix="move the settings into code that is registered by name",
                )


def _component(kind: str, value: Mapping[str, Any], key: str, place: Any, names: Registry) -> None:
    name = value.get("name")
    if not isinstance(name, str):
        raise HilumError(f"{key} needs a name", where=place(key), fix=f"hilum list --kind {kind}")
    try:
        accepted = names.keywords(kind, name)
    except HilumError as error:
        raise HilumError(error.what, where=place(f"{key}.name"), fix=error.fix) from None
    if accepted is None:
        return
    accepted = (accepted - BUILT_IN.get(kind, set())) | (ENCODER_OPTIONS if kind == "encoder" else set())
    for option in value:
        if option != "name":
            _known(option, accepted, place(f"{key}.{option}"), f"{kind} {name!r}")
