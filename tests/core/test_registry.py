"""The registry: who declares what, found by name, imported only when asked for."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hilum.core.errors import HilumError, MissingExtra
from hilum.core.registry import KINDS, Entry, Registry, registry


def only(*modules: str) -> Any:
    """A stand-in for the installed entry points."""
    group = "hilum.plugins"
    return lambda **_: [importlib.metadata.EntryPoint(m.rpartition(".")[2], m, group) for m in modules]


def plugin(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(str(folder))
    return name


def local(**named: Any) -> Registry:
    """A registry without any installed distribution."""
    fresh = Registry()
    fresh.__dict__["installed"] = {}
    for name, target in named.items():
        fresh.register("encoder", name, target)
    return fresh


def test_two_distributions_with_one_name_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, target in (("hilum_a", "one:A"), ("hilum_b", "two:B")):
        body = f"DISTRIBUTION = {name!r}\nENTRIES = {{'encoder': {{'shared/net': {target!r}}}}}\n"
        plugin(tmp_path, name, body, monkeypatch)
    monkeypatch.setattr(importlib.metadata, "entry_points", only("hilum_a", "hilum_b"))
    with pytest.raises(HilumError) as caught:
        Registry().entries("encoder")
    assert "'shared/net' is registered twice" in caught.value.what
    assert caught.value.where == "hilum_a and hilum_b"


def test_an_editable_install_that_is_listed_twice_is_no_duplicate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path, "hilum_c", "DISTRIBUTION = 'c'\nENTRIES = {'head': {'c/h': 'm:H'}}\n", monkeypatch)
    monkeypatch.setattr(importlib.metadata, "entry_points", only("hilum_c", "hilum_c"))
    assert list(Registry().entries("head")) == ["c/h"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("DISTRIBUTION = 'd'\n", "ENTRIES"),
        ("ENTRIES = {}\n", "DISTRIBUTION"),
        ("import nothing_of_that_name\n", "nothing_of_that_name"),
        ("DISTRIBUTION = 'd'\nENTRIES = {'encodr': {'d/x': 'm:X'}}\n", "unknown kind 'encodr'"),
        ("DISTRIBUTION = 'd'\nENTRIES = {'encoder': {'d/x': {'help': 'no target'}}}\n", "no target"),
        ("DISTRIBUTION = 'd'\nENTRIES = {'encoder': {'d/x': {'target': 'm:X', 'colour': 1}}}\n", "colour"),
    ],
)
def test_a_broken_manifest_is_one_message(
    body: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = plugin(tmp_path, f"hilum_broken_{abs(hash(told))}", body, monkeypatch)
    monkeypatch.setattr(importlib.metadata, "entry_points", only(name))
    with pytest.raises(HilumError, match=told) as caught:
        Registry().entries()
    assert caught.value.where


def test_registering_from_python_refuses_to_replace_what_is_installed() -> None:
    fresh = Registry()
    with pytest.raises(HilumError) as caught:
        fresh.register("objective", "masked", object, owner="my notebook")
    assert caught.value.where == "hilum and my notebook"

    class Net:
        def __init__(self, size: int) -> None:
            self.size = size

    fresh.register("encoder", "mine/net", Net)
    fresh.register("encoder", "mine/net", Net)  # the same again is no fault: cells are run twice
    assert fresh.build("encoder", "mine/net", 3).size == 3
    assert fresh.load("encoder", "mine/net") is Net
    with pytest.raises(HilumError, match="registered twice"):
        fresh.register("encoder", "mine/net", object)
    assert ("encoder", "mine/net") not in registry.local


def test_a_family_passes_the_rest_of_the_name_and_the_narrowest_wins() -> None:
    fresh = local(**{"zoo/*": lambda rest, *a, **k: ("wide", rest, a, k), "zoo/big/*": lambda rest: ("narrow", rest)})
    assert fresh.build("encoder", "zoo/vit_s", 1, x=2) == ("wide", "vit_s", (1,), {"x": 2})
    assert fresh.build("encoder", "zoo/big/one") == ("narrow", "one")
    assert fresh.build("encoder", "zoo/bigger") == ("wide", "bigger", (), {})
    assert fresh.get("encoder", "zoo/vit_s").name == "zoo/*"
    for empty in ("zoo/", "zoo"):
        with pytest.raises(HilumError, match="there is no encoder"):
            fresh.build("encoder", empty)
    with pytest.raises(HilumError, match="family"):
        fresh.build("encoder", "zoo/*")


def test_unknown_names_get_near_ones_and_unknown_kinds_too() -> None:
    with pytest.raises(HilumError) as caught:
        registry.get("objective", "maskd")
    assert "did you mean 'masked'" in caught.value.fix
    with pytest.raises(HilumError) as caught:
        registry.get("objective", "zzzz")
    assert caught.value.fix == "hilum list --kind objective shows what is installed"
    for call in (lambda: registry.get("objectiv", "masked"), lambda: registry.register("objectiv", "x", object)):
        with pytest.raises(HilumError, match="unknown kind 'objectiv'") as caught:
            call()
        assert "did you mean 'objective'" in caught.value.fix


def test_a_name_of_a_domain_that_is_not_installed_gets_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", only("hilum.core._manifest"))
    with pytest.raises(HilumError) as caught:
        Registry().get("recipe", "medical/mae-cxr-s")
    assert caught.value.fix == 'pip install "hilum[medical]"'
    monkeypatch.undo()
    with pytest.raises(HilumError) as caught:
        registry.get("recipe", "medical/mae-cxr-z")  # installed: the name is what is wrong
    assert "pip install" not in caught.value.fix
    assert "medical/mae-cxr-s" in caught.value.fix


def test_a_missing_package_names_the_extra_that_brings_it() -> None:
    fresh = local()
    fresh.register("encoder", "far/net", "no_such_package.net:Net", requires=["no_such_package.part"], extra="medical")
    assert fresh.get("encoder", "far/net").missing() == ["no_such_package.part"]
    with pytest.raises(MissingExtra) as caught:
        fresh.load("encoder", "far/net")
    assert str(caught.value) == (
        "encoder 'far/net' needs the package 'no_such_package.part', which is not installed\n"
        '  fix:   pip install "hilum[medical]"'
    )
    assert fresh.all("encoder") == {}


@pytest.mark.parametrize("target", ["hilum.core.errors:Absent", "hilum.core.absent:X", "hilum.core.errors"])
def test_a_target_that_is_not_there_is_one_message(target: str) -> None:
    with pytest.raises(HilumError, match="cannot be imported") as caught:
        Entry("encoder", "x/y", target, "somebody").load()
    assert caught.value.where == f"somebody: {target}"


CLASSES = [(e.kind, e.name) for e in registry.entries().values() if e.kind not in ("recipe", "verb")]


@pytest.mark.parametrize(("kind", "name"), CLASSES, ids=[f"{k} {n}" for k, n in CLASSES])
def test_keywords_read_from_source_equal_the_real_signature(kind: str, name: str) -> None:
    found = registry.keywords(kind, name)
    target = registry.load(kind, name)
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        assert found is None
    elif inspect.isclass(target) and "__init__" not in vars(target):
        assert found is None or found == {p.name for p in parameters}
    else:
        assert found == {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def test_keywords_of_python_objects() -> None:
    def factory(one: int, /, two: int, *rest: int, three: int) -> None: ...

    fresh = local(f=factory, g=lambda **anything: None)
    assert fresh.keywords("encoder", "f") == {"two", "three"}
    assert fresh.keywords("encoder", "g") is None


def test_manifests_are_data_and_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from hilum.core.registry import registry\n"
        "assert len(registry.entries()) > 20 and registry.keywords('objective', 'masked')\n"
        "heavy = {'torch', 'numpy', 'timm', 'monai', 'pydicom', 'mlflow', 'pyarrow', 'lightning'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_kind_is_listed_once() -> None:
    assert len(KINDS) == len(set(KINDS)) == 18
    assert {e.kind for e in registry.entries().values()} <= set(KINDS)
