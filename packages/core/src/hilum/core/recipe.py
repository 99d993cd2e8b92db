"""Recipes: flat YAML that is checked, key by key, before anything heavy is imported.

A recipe is at most two levels deep. Every fault names file, line, key and the nearest valid key. ``RUN/config.yaml`` is
a recipe with every ``auto`` resolved and a section ``run`` that names the study, split and start; it alone
reproduces the run. Layout: FORMATS 8 and docs/decisions/0002.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hilum.core.errors import HilumError, nearest
from hilum.core.registry import Registry, registry

Place = Callable[[str], str]
NUMBER = (int, float)
ANY: tuple[type, ...] = (object,)
WORDS = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}

TOP: dict[str, tuple[type, ...]] = {
    "recipe": (str,), "schema": (int,), "paper": (str, int), "verb": (str,), "where": (str,), "views": (dict,),
    "cache": (dict,), "objective": (dict,), "encoders": (dict,), "adapters": (dict,), "head": (dict,), "task": (str,),
    "labels": (dict,), "augment": (dict,), "link": (list, dict), "plan": (dict,), "optim": (dict,), "schedule": (dict,),
    "batch": (dict,), "precision": (str,), "probes": (dict,), "seed": (int,), "engine": (dict,), "stages": (list,),
    "tasks": (list,), "run": (dict,),
}  # fmt: skip
SECTIONS: dict[str, dict[str, tuple[type, ...]]] = {
    "cache": {"side": (int, str)},
    "probes": {"linear": (int,), "knn": (int,), "rankme": (int,)},
    "labels": {"names": (list,), "uncertain": (str, dict), "pos_weight": (str, dict), "lateral": (list,)},
    "optim": {
        "name": (str,), "lr": NUMBER, "base_lr": NUMBER, "lr_per": (int,), "betas": (list,), "momentum": NUMBER, "eps": NUMBER,
        "weight_decay": NUMBER, "layer_decay": NUMBER, "clip": NUMBER, "ema": NUMBER, "rules": (list,), "groups": (dict,),
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
VIEW: dict[str, tuple[type, ...]] = {
    "kind": (str,), "size": (int, list), "channels": (int,), "voi": (str,), "normalise": (str, list), "pick": (str,),
    "sections": (list,), "min_tokens": (int,), "max_tokens": (int,), "ignore_index": (int,), "unit": (str,),
    "axes": (str,), "frames": (int,), "spacing_mm": (int, float, list),
}  # fmt: skip
POSITIVE = ("batch.size", "cache.side", "schedule.epochs", "optim.lr_per", "engine.log_every", "engine.validate_epochs")
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
NESTED = {
    "encoders": "encoder",
    "adapters": "adapter",
    "views": "source",
}  # name -> mapping; all but views with ``name``
BUILT_IN = {  # keyword names that the builders pass themselves
    "objective": {"parts"}, "encoder": {"name", "view", "init"}, "adapter": {"module"}, "head": {"dim", "names", "task"},
    "plan": {"rows", "sample_ids", "batch_size", "seed"},
}  # fmt: skip
OPTIONS = {"encoder": frozenset({"init", "freeze", "view"}), "adapter": frozenset({"encoder"})}  # that assembly reads
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
            raise HilumError(f"there is no recipe file {path}", fix="a path to a YAML file, or a name of `hilum list`")
    else:
        path = names.get("recipe", str(name)).path
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise HilumError(f"the recipe cannot be read: {told}", where=str(path)) from error
    return parse_recipe(text, origin=path.name, sets=sets, names=names)


def parse_recipe(text: str, *, origin: str, sets: Sequence[str] = (), names: Registry = registry) -> Recipe:
    """Check YAML text; see :func:`load_recipe`."""
    lines: dict[str, int] = {}
    try:
        _collect_lines(yaml.compose(text, Loader=_Loader), "", lines, origin)
        data = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{origin}:{mark.line + 1}" if mark else origin
        problem = getattr(error, "problem", None) or getattr(error, "reason", "it cannot be read")
        raise HilumError(f"not valid YAML: {problem}", where=place) from error
    except RecursionError:
        raise HilumError("not valid YAML: nested too deeply", where=origin) from None
    if not isinstance(data, dict):
        raise HilumError("a recipe is a mapping of keys", where=origin)
    for setting in sets:
        key = _apply_setting(data, setting)
        lines.pop(key, None)
    recipe = Recipe(data, origin, lines)
    check(recipe, names=names, from_settings={s.partition("=")[0].strip() for s in sets})
    if not {"lr", "base_lr"} & set(data.get("optim", {})):
        fix = "add optim.lr or optim.base_lr"
        raise HilumError("the recipe sets no learning rate", where=recipe.where("optim"), fix=fix)
    return Recipe(merge(DEFAULTS, data), origin, lines)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-4`` as the number it is (YAML 1.2; 1.1 wants ``1.0e-4``) and knows no anchors."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(None, None, "a recipe has no anchors and aliases", event.start_mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _collect_lines(node: Any, prefix: str, lines: dict[str, int], origin: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[f"{prefix}{number}"] = item.start_mark.line + 1
            _collect_lines(item, f"{prefix}{number}.", lines, origin)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = f"{prefix}{key_node.value}"
            if key in seen:
                here, fix = f"{origin}:{key_node.start_mark.line + 1}", f"it first stands on line {lines[key]}"
                raise HilumError(f"key {key!r} stands twice", where=here, fix=fix)
            seen.add(key)
            lines[key] = key_node.start_mark.line + 1
            _collect_lines(value_node, f"{key}.", lines, origin)


def _apply_setting(data: dict[str, Any], setting: str) -> str:
    key, equals, text = setting.partition("=")
    key = key.strip()
    if not equals or not key:
        raise HilumError(f"--set takes key=value, got {setting!r}", fix="e.g. --set optim.lr=1e-4")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise HilumError(f"--set {key}: {text!r} is not valid YAML", where="--set") from error
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

    _level("", recipe.data, TOP, place, names)
    if recipe.get("schema", 1) != 1:
        raise HilumError(f"this hilum reads recipe schema 1, not {recipe['schema']}", where=place("schema"))
    for list_ in ("stages", "tasks"):
        for number, stage in enumerate(recipe.get(list_, [])):
            _typed(f"{list_}.{number}", stage, (dict,), place(f"{list_}.{number}"))
            _level(f"{list_}.{number}.", stage, STAGE_KEYS, place, names)


def _level(at: str, data: Mapping[str, Any], known: Iterable[str], place: Place, names: Registry) -> None:
    """The recipe itself (``at`` is empty) or one of its stages, which may change a component without naming it."""
    for key, value in data.items():
        _known(key, known, place(f"{at}{key}"), at.rstrip(".") or "recipe")
        _typed(f"{at}{key}", value, TOP.get(key, ANY), place(f"{at}{key}"))
        if isinstance(value, dict):
            _depth(f"{at}{key}", value, place)
        if key in SECTIONS:
            _section(f"{at}{key}", value, SECTIONS[key], place)
        if key in COMPONENTS and not (at and "name" not in value):
            _component(COMPONENTS[key], value, f"{at}{key}", place, names)
    more = {key: ANY for entry in names.entries("source").values() for key in entry.view_keys}
    for key, inner, content in [(k, i, c) for k in NESTED for i, c in (data.get(k) or {}).items()]:
        here = f"{at}{key}.{inner}"
        _typed(here, content, (dict,), place(here))
        if key == "views":
            _section(here, content, {**VIEW, **more}, place)
        elif not (at and "name" not in content):
            _component(NESTED[key], content, here, place, names)
        if key == "adapters" and "encoder" in content and "encoders" in data:
            _known(str(content["encoder"]), data["encoders"], place(f"{here}.encoder"), "encoders")
    for group, content in data.get("optim", {}).get("groups", {}).items():
        _typed(f"{at}optim.groups.{group}", content, (dict,), place(f"{at}optim.groups.{group}"))
        _section(f"{at}optim.groups.{group}", content, SECTIONS["optim"], place)
    if data.get("precision", "32-true") not in PRECISIONS:
        wrong, fix = data["precision"], "one of " + " ".join(PRECISIONS)
        raise HilumError(f"unknown precision {wrong!r}", where=place(f"{at}precision"), fix=fix)


def _section(at: str, section: Mapping[str, Any], known: Mapping[str, tuple[type, ...]], place: Place) -> None:
    for key, value in section.items():
        where = place(f"{at}.{key}")
        _known(key, known, where, at)
        _typed(f"{at}.{key}", value, known[key], where)
        if type(value) in NUMBER and (not math.isfinite(value) or (f"{at}.{key}" in POSITIVE and value <= 0)):
            raise HilumError(f"{at}.{key} must be a usual number{' above 0' * (value <= 0)}, got {value}", where=where)


def _known(key: str, known: Iterable[str], where: str, section: str) -> None:
    if key not in known:
        fix = nearest(str(key), known) or "known keys: " + " ".join(sorted(known))
        raise HilumError(f"unknown key {key!r} in {section}", where=where, fix=fix)


def _typed(key: str, value: Any, types: tuple[type, ...], where: str) -> None:
    if types is ANY or (isinstance(value, types) and not (isinstance(value, bool) and bool not in types)):
        return
    wanted = " or ".join(WORDS[t] for t in types)
    hint = "leave the line out for the default" if value is None else ""
    raise HilumError(f"{key} must be {wanted}, got {value!r}", where=where, fix=hint)


def _depth(key: str, value: dict[str, Any], place: Place) -> None:
    for inner, content in value.items():
        groups = key.endswith("optim") and inner == "groups"  # one mapping a group of parameters
        deeper = isinstance(content, dict) and any(isinstance(v, dict) for v in content.values())
        if deeper and not groups:
            fix = "move the settings into code that is registered by name"
            raise HilumError("a recipe is two levels deep at most", where=place(f"{key}.{inner}"), fix=fix)


def _component(kind: str, value: Mapping[str, Any], key: str, place: Place, names: Registry) -> None:
    name = value.get("name")
    if not isinstance(name, str):
        raise HilumError(f"{key} needs a name", where=place(key), fix=f"hilum list --kind {kind}")
    try:
        accepted = names.keywords(kind, name)
    except HilumError as error:
        raise HilumError(error.what, where=place(f"{key}.name"), fix=error.fix) from None
    if name.endswith("/*"):
        raise HilumError(f"{name!r} is a family of {kind}s", where=place(f"{key}.name"), fix=f"e.g. {name[:-1]}NAME")
    if accepted is None:
        return
    accepted = (accepted - BUILT_IN.get(kind, set())) | OPTIONS.get(kind, frozenset())
    for option in value:
        if option != "name":
            _known(option, accepted, place(f"{key}.{option}"), f"{kind} {name!r}")
