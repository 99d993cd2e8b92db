"""Recipes: flat YAML that is checked, key by key, before anything heavy is imported.

A recipe is at most two levels deep. Every fault names file, line, key and the nearest valid key. ``RUN/config.yaml`` is
a recipe with every ``auto`` resolved and a section ``run`` that names the study, split and start; it alone
reproduces the run. Layout: FORMATS 8 and docs/decisions/0002.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from hilum.core.errors import HilumError
from hilum.core.registry import Registry, registry
from hilum.core.schema import (
    ANY,
    COUNT_OR_NONE,
    DEFAULTS,
    OPTIONS,
    RULE,
    SECTION,
    SECTIONS,
    STAGE,
    STAGE_KEYS,
    TOP,
    VIEW,
    Key,
    check_known,
    check_value,
    key_of_annotation,
)

Place = Callable[[str], str]
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


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. ``data`` holds defaults too; ``lines`` maps dotted keys to lines of ``origin``; ``settings`` are
    the keys that the command line set."""

    data: Mapping[str, Any]
    origin: str = "python"
    lines: Mapping[str, int] = field(default_factory=dict)
    settings: frozenset[str] = frozenset()

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
        """``file:line``, or the ``--set``, of a dotted key (or of its nearest parent)."""
        probe = key
        while probe not in {*self.lines, *self.settings} and "." in probe:
            probe = probe.rpartition(".")[0]
        if probe in self.settings:
            return f"--set {probe}" + f" ({key})" * (probe != key)
        if key not in self.lines and (inside := sorted(s for s in self.settings if s.startswith(f"{key}."))):
            return f"--set {inside[0]} ({key})"  # a section that the command line alone has
        return f"{self.origin}:{self.lines[probe]} ({key})" if probe in self.lines else f"{self.origin} ({key})"

    def with_(self, changes: Mapping[str, Any]) -> Recipe:
        """A copy with sections merged over this one's (unchecked: for values the code resolved)."""
        return replace(self, data=merge(self.data, changes))


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
    settings = frozenset(_apply_setting(data, setting) for setting in sets)
    stale = tuple(f"{key}." for key in settings)
    lines = {k: line for k, line in lines.items() if k not in settings and not k.startswith(stale)}
    recipe = Recipe(data, origin, lines, settings)
    check(recipe, names=names)
    if not {"lr", "base_lr"} & set(data.get("optim", {})):
        fix = "add optim.lr or optim.base_lr"
        raise HilumError("the recipe sets no learning rate", where=recipe.where("optim"), fix=fix)
    return replace(recipe, data=merge(DEFAULTS, data))


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


def check(recipe: Recipe, *, names: Registry = registry) -> None:
    """Raise a :class:`HilumError` with file, line and nearest key or allowed values at the first fault."""
    place = recipe.where
    _level("", recipe.data, TOP, place, names)
    if recipe.get("schema", 1) != 1:
        raise HilumError(f"this hilum reads recipe schema 1, not {recipe['schema']}", where=place("schema"))
    for list_ in ("stages", "tasks"):
        for number, stage in enumerate(recipe.get(list_, [])):
            check_value(f"{list_}.{number}", stage, SECTION, place(f"{list_}.{number}"))
            _level(f"{list_}.{number}.", stage, STAGE_KEYS, place, names)


def _level(at: str, data: Mapping[str, Any], known: Iterable[str], place: Place, names: Registry) -> None:
    """The recipe itself (``at`` is empty) or one of its stages, which may change a component without naming it."""
    for key, value in data.items():
        check_known(key, known, place(f"{at}{key}"), at.rstrip(".") or "recipe")
        check_value(f"{at}{key}", value, {**STAGE, **TOP}[key], place(f"{at}{key}"))
        if isinstance(value, dict):
            _depth(f"{at}{key}", value, place)
        if key in SECTIONS:
            _section(f"{at}{key}", value, SECTIONS[key], place)
        if key == "probes":  # every n epochs, of any that is registered
            _section(f"{at}{key}", value, dict.fromkeys(names.entries("probe"), COUNT_OR_NONE), place)
        if key in COMPONENTS and not (at and "name" not in value):
            _component(COMPONENTS[key], value, f"{at}{key}", place, names)
        if key in NESTED and not value:
            raise HilumError(f"{at}{key} names none", where=place(f"{at}{key}"), fix="name one, or leave the line out")
    more = {key: ANY for entry in names.entries("source").values() for key in entry.view_keys}
    for key, inner, content in [(k, i, c) for k in NESTED for i, c in data.get(k, {}).items()]:
        here = f"{at}{key}.{inner}"
        check_value(here, content, SECTION, place(here))
        if key == "views":
            _section(here, content, {**VIEW, **more}, place)
        elif not (at and "name" not in content):
            _component(NESTED[key], content, here, place, names)
        for told, among in (("encoder", "encoders"), ("view", "views")):
            if key != "views" and told in content and among in data:
                check_known(content[told], data[among], place(f"{here}.{told}"), among)
    _optimisers(f"{at}optim", data.get("optim", {}), place)


def _optimisers(at: str, section: Mapping[str, Any], place: Place) -> None:
    """The mappings inside ``optim``: its groups of parameters and its rules."""
    for group, content in section.get("groups", {}).items():
        check_value(f"{at}.groups.{group}", content, SECTION, place(f"{at}.groups.{group}"))
        _section(f"{at}.groups.{group}", content, SECTIONS["optim"], place)
    for number, rule in enumerate(section.get("rules", ())):
        _section(f"{at}.rules.{number}", rule, RULE, place)


def _section(at: str, section: Mapping[str, Any], known: Mapping[str, Key], place: Place) -> None:
    for key, value in section.items():
        check_known(key, known, place(f"{at}.{key}"), at)
        check_value(f"{at}.{key}", value, known[key], place(f"{at}.{key}"))


def _depth(key: str, value: dict[str, Any], place: Place) -> None:
    for inner, content in value.items():
        groups = key.endswith("optim") and inner == "groups"  # one mapping a group of parameters
        deeper = isinstance(content, dict) and any(isinstance(v, dict) for v in content.values())
        if deeper and not groups:
            fix = "move the settings into code that is registered by name"
            raise HilumError("a recipe is two levels deep at most", where=place(f"{key}.{inner}"), fix=fix)


def _component(kind: str, value: Mapping[str, Any], key: str, place: Place, names: Registry) -> None:
    """A component's name, and its options against the annotations of its constructor."""
    name = value.get("name")
    if not isinstance(name, str):
        raise HilumError(f"{key} needs a name", where=place(key), fix=f"hilum list --kind {kind}")
    try:
        parameters, takes_more = names.parameters(kind, name)
    except HilumError as error:
        raise HilumError(error.what, where=place(f"{key}.name"), fix=error.fix) from None
    if name.endswith("/*"):
        raise HilumError(f"{name!r} is a family of {kind}s", where=place(f"{key}.name"), fix=f"e.g. {name[:-1]}NAME")
    own = {n: key_of_annotation(text) for n, text in parameters.items() if n not in BUILT_IN.get(kind, set())}
    known = own | OPTIONS.get(kind, {})
    for option, content in value.items():
        if option == "name":
            continue
        if not takes_more:
            check_known(option, known, place(f"{key}.{option}"), f"{kind} {name!r}")
        check_value(f"{key}.{option}", content, known.get(option, ANY), place(f"{key}.{option}"))
