"""Recipes: every fault has file, line and the nearest key, and nothing heavy is imported to find it."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from hilum.core.errors import HilumError
from hilum.core.recipe import BUILT_IN, Recipe, load_recipe, merge, parse_recipe
from hilum.core.registry import Registry, registry

BASE = """\
recipe: test/one
schema: 1
verb: pretrain
views: {image: {size: 224, channels: 3, normalise: dataset}}
objective: {name: masked, ratio: 0.9}
encoders:
  image: {name: timm/vit_tiny_patch16_224, init: scratch}
augment: {resized_crop: [0.5, 1.0]}
optim:
  name: adamw
  lr: 1.0e-3
schedule: {name: cosine, epochs: 2}
batch: {size: 8}
"""


def parse(text: str = BASE, *sets: str) -> Recipe:
    return parse_recipe(text, origin="r.yaml", sets=sets)


def fault(text: str, *sets: str) -> HilumError:
    with pytest.raises(HilumError) as caught:
        parse(text, *sets)
    return caught.value


def put(old: str, new: str) -> str:
    assert BASE.count(old) == 1
    return BASE.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "line", "near"),
    [
        ("batch: {size: 8}", "bach: {size: 8}", 13, "batch"),
        ("batch: {size: 8}", "batch: {sise: 8}", 13, "size"),
        ("normalise: dataset", "normalize: dataset", 4, "normalise"),
        ("ratio: 0.9", "ration: 0.9", 5, "ratio"),
        ("  lr: 1.0e-3", "  base_rl: 1.0e-3", 11, "base_lr"),
        ("epochs: 2", "epoch: 2", 12, "epochs"),
        ("batch: {size: 8}", "probes: {rankmi: 2}", 13, "rankme"),
        ("batch: {size: 8}", "batch: {size: 8}\nstages:\n- {name: a}\n- {name: b, optm: {lr: 1.0}}", 16, "optim"),
        ("batch: {size: 8}", "batch: {size: 8}\nstages:\n- {name: a, optim: {lrr: 1.0}}", 15, "lr"),
        ("  lr: 1.0e-3", "  lr: 1.0e-3\n  groups:\n    one: {weight_decai: 1}", 13, "weight_decay"),
        ("batch: {size: 8}", "adapters: {a: {name: lora, rnk: 2}}", 13, "rank"),
        ("batch: {size: 8}", "adapters: {a: {name: lora, encoder: imag}}", 13, "image"),
        ("batch: {size: 8}", "head: {name: linear, init_stdd: 1}", 13, "init_std"),
    ],
)
def test_an_unknown_key_at_any_level_gives_file_line_and_nearest_key(old: str, new: str, line: int, near: str) -> None:
    error = fault(put(old, new))
    assert error.what.startswith("unknown key")
    assert error.where.startswith(f"r.yaml:{line} (")
    assert f"did you mean '{near}'" in error.fix


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{size: 8}", "8", "batch must be a mapping, got 8"),
        ("{size: 8}", "{size: many}", "batch.size must be a whole number of at least 1, got 'many'"),
        ("{size: 8}", "{size: true}", "batch.size must be a whole number of at least 1, got True"),
        ("{size: 8}", "{size: 8.5}", "batch.size must be a whole number of at least 1, got 8.5"),
        ("{size: 8}", "{size: 0}", "of at least 1, got 0"),
        ("{size: 8}", "{size: -4}", "of at least 1, got -4"),
        ("{size: 8}", "", "batch must be a mapping, got None"),
        ("1.0e-3", "fast", "optim.lr must be a number above 0, got 'fast'"),
        ("1.0e-3", ".nan", "optim.lr must be a number above 0, got nan"),
        ("1.0e-3", ".inf", "optim.lr must be a number above 0, got inf"),
        ("{image: {size: 224, channels: 3, normalise: dataset}}", "{image: 224}", "views.image must be a mapping"),
        ("{name: masked, ratio: 0.9}", "masked", "objective must be a mapping"),
        ("{name: masked, ratio: 0.9}", "{ratio: 0.9}", "objective needs a name"),
        ("{name: timm/vit_tiny_patch16_224, init: scratch}", "timm/x", "encoders.image must be a mapping"),
        ("timm/vit_tiny_patch16_224", '"timm/*"', "family"),
        ("schema: 1", "schema: 2", "schema 1, not 2"),
        (
            "verb: pretrain",
            "verb: pretrain\nprecision: fp8",
            "precision must be 32-true or bf16-mixed or 16-mixed, got 'fp8'",
        ),
        ("  name: adamw\n  lr: 1.0e-3", "  name: adamw", "no learning rate"),
        ("recipe: test/one", "on: test/one", "unknown key True"),
        ("recipe: test/one", "3: test/one", "unknown key 3"),
    ],
)
def test_wrong_types_and_values_are_named(old: str, new: str, told: str) -> None:
    error = fault(put(old, new))
    assert told in error.what
    assert error.where.startswith("r.yaml")


REFUSED = [  # setting, and what is told of it
    ("optim.clip=-1", "a number above 0"),
    ("optim.clip=0", "a number above 0"),
    ("optim.ema=2", "in (0, 1)"),
    ("optim.weight_decay=-1", "of at least 0"),
    ("optim.layer_decay=1.5", "in (0, 1]"),
    ("optim.momentum=1", "in [0, 1)"),
    ("optim.betas=[0.9]", "a list of 2 entries"),
    ("optim.betas=[0.9, 1]", "optim.betas.1 must be a number in [0, 1)"),
    ("optim.name=adamv", "adamw or adam or sgd or lars"),
    ("optim.rules=[5]", "optim.rules.0 must be a mapping"),
    ("optim.rules=[{match: head*, clip: 0}]", "optim.rules.0.clip must be a number above 0"),
    ("optim.rules=[{macth: head*}]", "unknown key 'macth'"),
    ("optim.groups={one: {clip: -1}}", "optim.groups.one.clip"),
    ("engine.workers=-1", "a whole number of at least 0 or auto"),
    ("engine.workers=foo", "a whole number of at least 0 or auto"),
    ("engine.devices=0", "of at least 1 or auto"),
    ("engine.strategy=dpp", "auto or single or ddp or fsdp2"),
    ("engine.max_bad=-1", "in [0, 1]"),
    ("engine.checkpoint_minutes=0", "above 0"),
    ("batch.size=0", "of at least 1"),
    ("batch.per_device=foo", "of at least 1 or auto"),
    ("cache.side=0", "of at least 1 or full"),
    ("schedule.warmup_epochs=-1", "of at least 0"),
    ("schedule.name=cosin", "cosine"),
    ("schedule.stop_after=0", "of at least 1"),
    ("seed=-1", "in [0, 4294967295]"),
    ("precision=bf16-true", "32-true or bf16-mixed or 16-mixed"),
    ("precision=16-true", "32-true or bf16-mixed or 16-mixed"),
    ("labels.names=[left, left]", "a list of different entries"),
    ("labels.uncertain=maybe", "ignore or zeros or ones"),
    ("labels.uncertain={left: maybe}", "labels.uncertain.left"),
    ("labels.pos_weight={left: -1}", "labels.pos_weight.left"),
    ("probes.rankme=-1", "of at least 0"),
    ("views.image.channels=0", "of at least 1"),
    ("views.image.size=[224, x]", "views.image.size.1"),
    ("views.image.normalise=dataste", "dataset or imagenet or none"),
    ("views.image.normalise=[[0.5]]", "a list of 2 entries"),
    ("views={}", "views names none"),
    ("encoders={}", "encoders names none"),
    ("encoders.image.init=null", "encoders.image.init must be text"),
    ("encoders.image.freeze=5", "a list or true or false"),
    ("encoders.image.view=imag", "unknown key 'imag' in views"),
    ("encoders.image.drop_path=high", "encoders.image.drop_path must be a number"),
    ("objective.ratio=high", "objective.ratio must be a number"),
    ("objective.decoder_depth=x", "objective.decoder_depth must be a whole number"),
    ("objective.norm_target=1", "objective.norm_target must be true or false"),
    ("head={name: linear, dropout: [1]}", "head.dropout must be a number"),
    ("adapters={a: {name: lora, roles: q}}", "adapters.a.roles must be a list"),
    ("adapters={a: {name: lora, alpha: x}}", "a number or null"),
    ("stages=[{name: a, batch: {size: 0}}]", "stages.0.batch.size"),
    ("stages=[{name: a, train: head}]", "stages.0.train must be a list"),
]


@pytest.mark.parametrize(("setting", "told"), REFUSED, ids=[s for s, _ in REFUSED])
def test_values_out_of_range_are_refused_with_what_is_allowed(setting: str, told: str) -> None:
    error = fault(BASE, setting)
    assert told in f"{error.what} {error.fix}"
    assert error.where.startswith(("--set ", "r.yaml"))


@pytest.mark.parametrize(
    ("setting", "neutral"),
    [
        ("link=[[image, text]]", "link=[]"),
        ("schedule.patience=5", ""),
        ("schedule.name=plateau", "schedule.name=step"),
        ("views.image.pick=one_of_study", ""),
        ("views.image.frames=16", ""),
        ("views.image.spacing_mm=1.0", ""),
    ],
)
def test_what_nothing_reads_yet_is_refused_unless_it_changes_nothing(setting: str, neutral: str) -> None:
    error = fault(BASE, setting)
    assert "is not available yet" in error.what
    assert error.fix
    parse(BASE, *[neutral] if neutral else [])


def test_a_source_may_read_a_key_that_waits() -> None:
    names = Registry()
    names.register("source", "test/video", object, view_keys=["frames"])
    recipe = parse_recipe(put("channels: 3,", "channels: 3, frames: 16,"), origin="r.yaml", names=names)
    assert recipe["views"]["image"]["frames"] == 16


def test_options_of_a_component_from_python_are_held_to_their_annotations() -> None:
    class Mine:
        def __init__(self, parts: object, *, kind: Literal["a", "b"] = "a", n: int | None = None, free=0) -> None: ...

    names = Registry()
    names.register("objective", "mine", Mine)

    def parsed(options: str) -> Recipe:
        text = put("{name: masked, ratio: 0.9}", f"{{name: mine, {options}}}")
        return parse_recipe(text, origin="r.yaml", names=names)

    parsed("kind: b, n: null, free: anything")
    for options, told in (("kind: c", "kind must be a or b"), ("n: x", "n must be a whole number or null")):
        with pytest.raises(HilumError, match=told) as caught:
            parsed(options)
        assert caught.value.where.startswith("r.yaml:5 (objective.")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("recipe: [1, 2\nschema: 1\n", 2),
        ("recipe: a\n\tschema: 1\n", 2),
        ("recipe: a\n--- \nrecipe: b\n", 2),
        ("recipe: !!python/object/apply:os.getcwd []\n", 1),
        ("recipe: &a x\npaper: *a\n", 1),
        ("a: &a {b: *a}\n", 1),
        ("? [1, 2]\n: 3\n", 1),
        ("recipe: \x07\n", 0),
    ],
)
def test_bad_yaml_is_one_message_with_its_line(text: str, line: int) -> None:
    error = fault(text)
    assert error.what.startswith("not valid YAML")
    assert error.where == (f"r.yaml:{line}" if line else "r.yaml")


@pytest.mark.parametrize("text", ["", "just words\n", "- a\n- b\n"])
def test_a_recipe_is_a_mapping(text: str) -> None:
    assert "mapping" in fault(text).what


def test_nesting_without_end_is_refused_not_a_crash() -> None:
    assert "YAML" in fault("a: " + "[" * 3000).what


def test_a_key_that_stands_twice_names_both_lines() -> None:
    error = fault(BASE + "schedule: {name: constant}\n")
    assert (error.where, error.fix) == ("r.yaml:14", "it first stands on line 12")
    assert "'batch.size' stands twice" in fault(put("{size: 8}", "{size: 8, size: 9}")).what


def test_two_levels_and_no_more() -> None:
    error = fault(put("{resized_crop: [0.5, 1.0]}", "{affine: {rotate: {deep: 1}}}"))
    assert error.what == "a recipe is two levels deep at most"
    assert error.where == "r.yaml:8 (augment.affine)"
    parse(put("{resized_crop: [0.5, 1.0]}", "{affine: {rotate: 20}}"))
    parse(put("  lr: 1.0e-3", "  lr: 1.0e-3\n  groups: {inner: {lr: 0.1}, outer: {lr: 0.2}}"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("optim.lr=1e-4", 1e-4),
        ("optim.lr=1.5E+1", 15.0),
        ("augment.shift=-2.e-3", -0.002),
        ("engine.max_bad=2.e-3", 0.002),
        ("optim.lr=3", 3),
        ("optim.betas=[0.9, 1e-1]", [0.9, 0.1]),
        ("batch.size=16", 16),
        ("engine.compile=true", True),
        ("where=modality = 'DX' and rows = 3", "modality = 'DX' and rows = 3"),
        ("run.name=1e", "1e"),
        ("run.name=nan", "nan"),
        ("run.name=infinity", "infinity"),
        ("run.name='1e-4'", "1e-4"),
        ("augment.hflip=0", 0),
        ("objective.mask=block", "block"),
    ],
)
def test_settings_from_the_command_line(setting: str, value: Any) -> None:
    at: Any = parse(BASE, setting).data
    for key in setting.partition("=")[0].split("."):
        at = at[key]
    assert (at, type(at)) == (value, type(value))


def test_numbers_without_a_dot_are_numbers_in_files_too() -> None:
    assert parse(put("1.0e-3", "1e-3"))["optim"]["lr"] == 0.001


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("optim.lr", "key=value"),
        ("=3", "key=value"),
        ("optim.lr=[1", "not valid YAML"),
        ("optim.lr.deep=1", "'lr' is not a section"),
        ("optim.rl=1", "unknown key 'rl'"),
        ("batch.size=x", "batch.size must be a whole number"),
        ("objective.ratoi=1", "unknown key 'ratoi'"),
    ],
)
def test_wrong_settings_point_at_the_command_line(setting: str, told: str) -> None:
    error = fault(BASE, setting)
    assert told in error.what
    assert "--set" in error.where + error.what


def test_settings_win_over_the_file_and_the_last_over_the_first() -> None:
    assert parse(BASE, "batch.size=16", "batch.size=32")["batch"]["size"] == 32


def test_a_place_is_the_line_of_the_file_or_the_setting_that_stands_for_it() -> None:
    recipe = parse(BASE, "objective={name: masked, ratio: 0.5}", "batch.size=16")
    assert recipe.where("objective.ratio") == "--set objective (objective.ratio)"
    assert recipe.where("batch.size") == "--set batch.size"
    assert recipe.where("batch") == "r.yaml:13 (batch)"
    assert recipe.with_({"batch": {"size": 4}}).where("optim.lr") == "r.yaml:11 (optim.lr)"
    error = fault(BASE, "shedule.epochs=2")  # a section that the file does not have
    assert error.where == "--set shedule.epochs (shedule)" and "'schedule'" in error.fix
    assert fault(BASE, "objective={name: masked, ratio: x}").where == "--set objective (objective.ratio)"


def test_merge_changes_neither_side() -> None:
    base, over = {"a": {"b": [1], "c": 2}}, {"a": {"b": [3]}, "d": {"e": 4}}
    merged = merge(base, over)
    merged["a"]["b"].append(9)
    merged["d"]["e"] = 9
    assert base == {"a": {"b": [1], "c": 2}}
    assert over == {"a": {"b": [3]}, "d": {"e": 4}}
    assert merged["a"] == {"b": [3, 9], "c": 2}


def test_unknown_components_give_the_nearest_name_or_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    error = fault(put("masked, ratio: 0.9", "maskd"))
    assert error.where == "r.yaml:5 (objective.name)"
    assert "did you mean 'masked'" in error.fix
    points = [importlib.metadata.EntryPoint("core", "hilum.core._manifest", "hilum.plugins")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: points)
    with pytest.raises(HilumError) as caught:
        parse_recipe(put("masked, ratio: 0.9", "medical/convirt"), origin="r.yaml", names=Registry())
    assert (caught.value.where, caught.value.fix) == ("r.yaml:5 (objective.name)", 'pip install "hilum[medical]"')


def test_a_source_may_declare_more_view_keys() -> None:
    text = put("channels: 3,", "channels: 3, stride: 4,")
    assert "unknown key 'stride'" in fault(text).what
    names = Registry()
    names.register("source", "test/video", object, view_keys=["stride"])
    assert parse_recipe(text, origin="r.yaml", names=names)["views"]["image"]["stride"] == 4


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00bad"])
def test_files_that_are_absent_or_no_text_are_one_message(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HilumError):
        load_recipe(path)
    with pytest.raises(HilumError, match="there is no recipe named"):
        load_recipe("medical/mae-cxr-xxl")


RECIPES = list(registry.entries("recipe"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_registered_recipe(name: str) -> None:
    text = registry.get("recipe", name).path.read_text()
    assert len(text.splitlines()) <= 40
    recipe = load_recipe(name)
    assert recipe.name == name
    assert yaml.safe_load(text)["recipe"] == name
    again = parse_recipe(recipe.to_yaml(), origin="config.yaml")
    assert again.data == recipe.data
    assert again.to_yaml() == recipe.to_yaml()
    assert again.sha256 == recipe.sha256
    assert load_recipe(name, sets=["seed=1"]).sha256 != recipe.sha256

    def depth(value: Any) -> int:
        return 1 + max(map(depth, value.values()), default=0) if isinstance(value, dict) else 0

    assert depth(yaml.safe_load(text)) <= 3  # the recipe itself, a section, a mapping in it


def test_what_builders_pass_themselves_exists_in_their_signatures() -> None:
    for kind, told in BUILT_IN.items():
        known = [registry.keywords(kind, n) for n in registry.entries(kind)]
        everything = set().union(*[k for k in known if k is not None])
        if everything and kind in ("objective", "head", "plan"):
            assert told <= everything, kind


@pytest.mark.parametrize(
    "code",
    [
        "from hilum.core.recipe import load_recipe; load_recipe('medical/mae-cxr-s', sets=['optim.base_lr=1e-4'])",
        "from hilum.core.cli import main; assert main(['--help']) == 0",
        "from hilum.core.cli import main; assert main(['list']) == 0",
        "from hilum.core.cli import main; assert main(['list', '--why', 'masked']) == 0",
    ],
)
def test_checking_and_listing_import_no_torch(code: str) -> None:
    heavy = "{'torch', 'timm', 'monai', 'pydicom', 'mlflow', 'lightning', 'transformers'}"
    code += f"\nimport sys\nsys.exit(' '.join(sorted({heavy} & set(sys.modules))) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
