"""Finds what installed distributions declare, by name, without importing it until it is asked for.

A distribution points the entry point group ``hilum.plugins`` at a data-only module ``_manifest`` with
``DISTRIBUTION: str`` and ``ENTRIES: {kind: {name: target | {"target", "help", ...}}}`` (:class:`Entry`). A target is
``package.module:attribute``, or for recipes a path beside the manifest. A name that ends in ``/*`` is a family: the rest
of the asked name is passed to the factory as its first argument.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError, MissingExtra, nearest

KINDS = [
    "recipe", "objective", "encoder", "language", "chat", "adapter", "head", "source", "plan", "intake", "dataset",
    "preset", "record-op", "benchmark", "probe", "expert", "reward", "verb",
]  # fmt: skip
GROUP = "hilum.plugins"


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered name. ``requires`` are import names that must be installed; ``extra`` installs them."""

    kind: str
    name: str
    target: Any
    owner: str
    folder: Path | None = None
    help: str = ""
    extra: str = ""
    requires: tuple[str, ...] = ()
    view_keys: tuple[str, ...] = ()  # of a source: keys that a recipe's view may have for it

    @property
    def path(self) -> Path:
        """File of a recipe."""
        assert isinstance(self.target, str)
        path = Path(self.target)
        return path if path.is_absolute() or self.folder is None else self.folder / path

    def missing(self) -> list[str]:
        """Required packages that are not installed."""
        return [name for name in self.requires if _spec(name) is None]

    def load(self) -> Any:
        """Import the target; :class:`MissingExtra` where a required package is absent."""
        for name in self.missing():
            raise MissingExtra(name, extra=self.extra or "all", wanted_by=f"{self.kind} {self.name!r}")
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            told = f"{self.kind} {self.name!r} is declared but cannot be imported: {error}"
            fix = "update that distribution, or correct its _manifest.py"
            raise HilumError(told, where=f"{self.owner}: {self.target}", fix=fix) from error


@dataclass
class Registry:
    """All entries of all installed distributions, plus those registered by Python code in this process."""

    local: dict[tuple[str, str], Entry] = field(default_factory=dict)
    distributions: set[str] = field(default_factory=set)  # whose manifests were read

    @cached_property
    def installed(self) -> dict[tuple[str, str], Entry]:
        found: dict[tuple[str, str], Entry] = {}
        points = {p.value: p for p in importlib.metadata.entry_points(group=GROUP)}
        for point in sorted(points.values(), key=lambda p: p.value):
            try:
                module = importlib.import_module(point.value)
                owner, entries = str(module.DISTRIBUTION), module.ENTRIES
            except (ImportError, AttributeError, SyntaxError) as error:
                fix = "update or uninstall that distribution"
                raise HilumError(f"a manifest cannot be read: {error}", where=point.value, fix=fix) from error
            self.distributions.add(owner)
            for entry in self.read_manifest(owner, entries, Path(module.__file__).parent if module.__file__ else None):
                self._add(found, entry)
        return found

    @staticmethod
    def read_manifest(owner: str, entries: Mapping[str, Mapping[str, Any]], folder: Path | None) -> Iterator[Entry]:
        """Entries of one manifest; an unknown kind is an error."""
        for kind, named in entries.items():
            _check_kind(kind, where=f"the manifest of {owner}")
            for name, value in named.items():
                options = {"target": value} if isinstance(value, str) else dict(value)
                yield _entry(kind, name, owner, folder, options)

    @staticmethod
    def _add(found: dict[tuple[str, str], Entry], entry: Entry) -> None:
        known = found.get((entry.kind, entry.name))
        if known is not None and (known.target, known.owner) != (entry.target, entry.owner):
            where, fix = f"{known.owner} and {entry.owner}", "rename one of them, or uninstall one distribution"
            raise HilumError(f"{entry.kind} {entry.name!r} is registered twice", where=where, fix=fix)
        found[entry.kind, entry.name] = entry

    def register(self, kind: str, name: str, target: Any, *, owner: str = "this process", **options: Any) -> Entry:
        """Register from Python: ``target`` may be the object itself."""
        _check_kind(kind)
        entry = _entry(kind, name, owner, None, {"target": target, **options})
        if (kind, name) in self.installed:
            self._add(dict(self.installed), entry)
        self._add(self.local, entry)
        return entry

    def entries(self, kind: str | None = None) -> dict[str, Entry]:
        """Entries of one kind by name, or of all kinds by ``kind name``."""
        both = {**self.installed, **self.local}
        if kind is None:
            return {f"{k} {n}": e for (k, n), e in sorted(both.items())}
        _check_kind(kind)
        return {n: e for (k, n), e in sorted(both.items()) if k == kind}

    def get(self, kind: str, name: str) -> Entry:
        """The entry, a family's entry, or an error with near names and the missing extra."""
        entry, _ = self._resolve(kind, name)
        return entry

    def named(self, name: str) -> list[Entry]:
        """Entries of any kind that stand for a name, families included, as :meth:`build` would find them."""
        found = []
        for kind in KINDS:
            with contextlib.suppress(HilumError):
                found.append(self.get(kind, name))
        return found

    def _resolve(self, kind: str, name: str) -> tuple[Entry, tuple[str, ...]]:
        known = self.entries(kind)
        if name in known:
            return known[name], ()
        for pattern in sorted(known, key=len, reverse=True):  # the narrowest family wins
            if pattern.endswith("/*") and name.startswith(pattern[:-1]) and len(name) >= len(pattern):
                return known[pattern], (name[len(pattern) - 1 :],)
        raise HilumError(f"there is no {kind} named {name!r}", fix=self._advice(kind, name, known))

    def _advice(self, kind: str, name: str, known: Mapping[str, Entry]) -> str:
        area = name.split("/")[0]
        try:
            extras = importlib.metadata.metadata("hilum").get_all("Provides-Extra") or []
        except importlib.metadata.PackageNotFoundError:
            extras = []
        if "/" in name and area in extras and f"hilum-{area}" not in self.distributions:
            return f'pip install "hilum[{area}]"'
        return nearest(name, known) or f"hilum list --kind {kind} shows what is installed"

    def load(self, kind: str, name: str) -> Any:
        """Import what is registered under a plain name."""
        return self.get(kind, name).load()

    def build(self, kind: str, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call what is registered; a family gets the rest of the name first."""
        entry, rest = self._resolve(kind, name)
        if name.endswith("/*"):
            raise HilumError(f"{name!r} is a family of {kind}s", fix=f"name one: {name[:-1]}NAME")
        return entry.load()(*rest, *args, **kwargs)

    def all(self, kind: str) -> dict[str, Any]:
        """Load every entry of a kind whose required packages are installed."""
        return {name: entry.load() for name, entry in self.entries(kind).items() if not entry.missing()}

    def keywords(self, kind: str, name: str) -> set[str] | None:
        """Keyword names the target accepts; None where it takes any."""
        known, takes_more = self.parameters(kind, name)
        return None if takes_more else set(known)

    def parameters(self, kind: str, name: str) -> tuple[dict[str, str], bool]:
        """Keyword names of the target with their annotations ("" where it has none), and whether it takes others too.

        Read from its source, without importing it.
        """
        entry = self.get(kind, name)
        if not isinstance(entry.target, str):
            return _live_parameters(entry.target)
        module, _, attribute = entry.target.partition(":")
        spec = _spec(module)
        if spec is None or spec.origin is None:
            return {}, True
        return _source_parameters(Path(spec.origin), attribute)


def _check_kind(kind: str, *, where: str = "") -> None:
    if kind not in KINDS:
        fix = nearest(str(kind), KINDS) or "one of " + " ".join(KINDS)
        raise HilumError(f"unknown kind {kind!r}", where=where, fix=fix)


def _entry(kind: str, name: str, owner: str, folder: Path | None, options: dict[str, Any]) -> Entry:
    known = {f.name for f in fields(Entry)} - {"kind", "name", "owner", "folder"}
    if "target" not in options or set(options) - known:
        wrong = ", ".join(sorted(set(options) - known)) or "no target"
        fix = f"target, and any of {' '.join(sorted(known - {'target'}))}"
        raise HilumError(f"{kind} {name!r} is not declared as it should be: {wrong}", where=owner, fix=fix)
    lists = {key: tuple(options.get(key, ())) for key in ("requires", "view_keys")}
    return Entry(kind=kind, name=name, owner=owner, folder=folder, **{**options, **lists})


def _spec(module: str) -> Any:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):  # a parent is absent
        return None


def _live_parameters(target: Any) -> tuple[dict[str, str], bool]:
    import inspect

    parameters = inspect.signature(target).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    told = {p.name: "" if p.annotation is p.empty else inspect.formatannotation(p.annotation) for p in named}
    return told, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _source_parameters(path: Path, attribute: str) -> tuple[dict[str, str], bool]:
    for node in ast.parse(path.read_bytes()).body:
        if getattr(node, "name", None) != attribute:
            continue
        functions = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in functions:
            if isinstance(function, ast.FunctionDef) and function.name in ("__init__", attribute):
                known = function.args
                named = [a for a in [*known.args, *known.kwonlyargs] if a.arg != "self"]
                told = {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in named}
                return told, known.kwarg is not None
    return {}, True


registry = Registry()
