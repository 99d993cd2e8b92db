"""The contracts' checkers list exactly what a third party's class lacks, and everything registered passes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch
from torch import nn

from hilum.core.adapter import Adapter, check_adapter, delta_base, state_sha256
from hilum.core.contracts import check_expert, check_probe, check_source
from hilum.core.encoder import FORWARD_ARGUMENTS, check_encoder, refuse, sites
from hilum.core.errors import ContractError, HilumError, Unsupported
from hilum.core.head import Head, check_head
from hilum.core.objective import Objective, Parts, check_objective
from hilum.core.registry import Entry, registry
from hilum.core.types import (
    Batch,
    EncoderSpec,
    ExpertCard,
    ExpertResult,
    Features,
    Intake,
    LabelSpace,
    Plan,
    Prediction,
    Source,
    StepOutput,
    ViewSpec,
)


def gaps(check: Callable[..., None], candidate: Any) -> list[str]:
    """What the checker lists; its message shows the same, with the place."""
    try:
        check(candidate, where="their manifest")
    except ContractError as error:
        assert error.where == "their manifest"
        assert type(candidate).__name__ in error.what
        assert all(f"    - {gap}" in str(error) for gap in error.missing)
        return error.missing
    return []


class Net(nn.Module):
    def __init__(self, **spec: Any) -> None:
        super().__init__()
        self.spec = EncoderSpec(4, 4, **{"licence": "MIT", **spec})

    def forward(self, x, *, valid=None, keep=None, fill=None, context=None, layers=(), taps=(), stop=None):  # type: ignore[no-untyped-def]
        return Features(x, x.mean(1))


def test_an_encoder_s_gaps() -> None:
    class Narrow(Net):
        def forward(self, x, *, valid=None, keep=None, fill=None):  # type: ignore[no-untyped-def]
            return x

    class Wide(Net):
        def forward(self, x, **anything):  # type: ignore[no-untyped-def]
            return x

    class Silent(nn.Module):
        spec = EncoderSpec(4, 4, licence="MIT")

    assert gaps(check_encoder, Net()) == gaps(check_encoder, Wide()) == []
    assert gaps(check_encoder, Narrow()) == [
        f"forward must accept {name}=" for name in ("context", "layers", "taps", "stop")
    ]
    assert gaps(check_encoder, Net(licence="unknown")) == ["spec.licence (state the licence of code and weights)"]
    assert [g[:27] for g in gaps(check_encoder, Net(supports=frozenset({"kep", "keep"})))] == [
        "spec.supports knows no ['ke"
    ]
    assert [g.partition("(")[0] for g in gaps(check_encoder, Silent())] == ["method forward"]
    assert [g.partition(" ")[0] for g in gaps(check_encoder, object())] == ["must", "attribute", "method"]
    assert all(f"{name}" in gaps(check_encoder, Silent())[0] for name in FORWARD_ARGUMENTS)


def test_an_adapter_s_gaps() -> None:
    class Scale(Adapter):
        def attach(self, module: nn.Module) -> nn.Module:
            return module

    class Stray(nn.Module):
        slot, scale, delta, load = "blocks", 1.0, dict, dict

    assert gaps(check_adapter, Scale()) == []
    assert gaps(check_adapter, Adapter()) == ["method attach(module)"]
    assert [g.split()[1] for g in gaps(check_adapter, Stray())] == ["attach", "trainable", "merged", "merge"]
    assert len(gaps(check_adapter, object())) == 9
    odd = Scale()
    odd.slot, odd.scale = "somewhere", True  # type: ignore[assignment]
    assert [g.split()[1] for g in gaps(check_adapter, odd)] == ["slot:", "scale:"]
    for call in (odd.merged, odd.merge):
        with pytest.raises(HilumError, match="cannot be merged"):
            call()


def test_a_head_s_gaps() -> None:
    class Fine(Head):
        needs = ("pooled", "tokens")

        def forward(self, features: Features, batch: Batch | None = None) -> Prediction:
            return Prediction(features.pooled)

    class Odd(Fine):
        needs = ("poled",)

    class Texts(Fine):
        needs = "pooled"  # type: ignore[assignment]

    assert gaps(check_head, Fine()) == []
    assert gaps(check_head, Head()) == ["method forward(features, batch=None) -> Prediction"]
    assert [g.split()[1] for g in gaps(check_head, Odd())] == ["needs:"]
    assert [g.split()[1] for g in gaps(check_head, Texts())] == ["needs:"]
    assert len(gaps(check_head, object())) == 2


def test_an_objective_s_gaps() -> None:
    class Fine(Objective):
        def forward(self, batch: Batch) -> StepOutput:
            return StepOutput({})

    class Ordered(Objective):
        def step(self, batch: Batch, take: Any) -> None: ...

    class Plain(nn.Module):
        def forward(self, batch: Batch) -> StepOutput:
            return StepOutput({})

        def predict(self, batch: Batch) -> None: ...

    class OddViews(Fine):
        views = {"image": "CHW"}  # type: ignore[assignment]

    assert gaps(check_objective, Fine()) == gaps(check_objective, Ordered()) == []
    assert gaps(check_objective, Objective()) == ["method forward(batch) -> StepOutput"]
    assert [g.split()[1] for g in gaps(check_objective, Plain())] == [
        "prepare", "counts", "after_step", "exported", "views",
    ]  # fmt: skip
    assert gaps(check_objective, OddViews()) == ["property views -> Mapping[str, ViewSpec]"]
    assert len(gaps(check_objective, object())) == 8
    assert Fine().views == {"image": ViewSpec("image")}
    with pytest.raises(Unsupported, match="makes no predictions"):
        Fine().predict(Batch({}))


def test_a_probe_s_gaps() -> None:
    class Fine:
        labelled = False

        def fit(self, x: Any, y: Any, groups: Any, *, rounds: int = 3) -> Any:
            return self

        def score(self, x: Any, y: Any, groups: Any) -> float:
            return 0.0

        def summary(self, scored: float) -> dict[str, float]:
            return {}

    class Swapped(Fine):
        labelled = 1

        def score(self, x: Any, groups: Any, y: Any) -> float:
            return 0.0

    assert gaps(check_probe, Fine()) == []
    assert gaps(check_probe, Swapped()) == [
        "attribute labelled: bool (needs targets)",
        "method score(x, y, groups) -> a report or a number, not (x, groups, y)",
    ]
    assert [g.split("(")[0] for g in gaps(check_probe, object())] == [
        "attribute labelled: bool ", "method fit", "method score", "method summary",
    ]  # fmt: skip


def test_an_expert_s_gaps() -> None:
    class Fine:
        card = ExpertCard("lungs", "outlines the lungs", ("DX",), {"side": "left or right"}, licence="MIT")

        def run(self, batch: Batch, *, side: str = "left") -> list[ExpertResult]:
            return []

    class Silent(Fine):
        card = ExpertCard("", "outlines the lungs", (), {"side": "left", "level": "0 to 1"})

    class Deaf(Fine):
        def run(self, sample: Any) -> list[ExpertResult]:  # type: ignore[override]
            return []

    class Open(Silent):
        card = Fine.card

        def run(self, batch: Batch, **anything: Any) -> list[ExpertResult]:
            return []

    assert gaps(check_expert, Fine()) == gaps(check_expert, Open()) == []
    assert gaps(check_expert, Silent()) == [
        "card.name (say it in a few words)",
        "card.modality: tuple of the modalities it reads, e.g. ('DX',)",
        "card.licence (state the licence of code and weights)",
        "run must accept level=",
    ]
    assert gaps(check_expert, Deaf()) == ["method run(batch, side) -> list[ExpertResult], not (sample)"]
    assert gaps(check_expert, object()) == [
        "attribute card: hilum.core.types.ExpertCard", "method run(batch) -> list[ExpertResult]",
    ]  # fmt: skip


def test_a_source_s_gaps() -> None:
    class Fine:
        labels = LabelSpace(("a",))
        index = None

        def __len__(self) -> int:
            return 0

        def __getitem__(self, request: Any) -> Any: ...

    class ByRow(Fine):
        labels = ("a",)  # type: ignore[assignment]

        def __getitem__(self, row: int) -> Any: ...

    assert gaps(check_source, Fine()) == []
    assert gaps(check_source, ByRow()) == [
        "attribute labels: hilum.core.types.LabelSpace or None",
        "method __getitem__(request) -> Sample, not (row)",
    ]
    assert [g.split("(")[0].split(":")[0] for g in gaps(check_source, [1, 2])] == [
        "attribute labels", "property index", "method __getitem__",
    ]  # fmt: skip
    assert len(gaps(check_source, object())) == 4


def test_what_is_not_supported_is_refused_only_where_it_was_asked_for() -> None:
    encoder = Net(supports=frozenset({"keep"}))
    refuse(encoder, keep=torch.zeros(1), fill=None, layers=(), taps=[])
    for asked in ({"fill": torch.zeros(1)}, {"layers": (1,)}, {"taps": ["a"]}, {"stop": 0}):
        with pytest.raises(Unsupported, match=f"does not support {next(iter(asked))}=") as caught:
            refuse(encoder, **asked)
        assert "['keep']" in caught.value.fix


class TimmLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Module(), nn.Linear(4, 4)
        self.attn.qkv, self.attn.proj = nn.Linear(4, 12), nn.Linear(4, 4)


class BertLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.query, self.attention.key, self.attention.value = (nn.Linear(4, 4) for _ in range(3))


def test_sites_by_structure() -> None:
    net = nn.Sequential(TimmLike(), TimmLike())
    for index, role in enumerate("qkv"):
        found = list(sites(net, role))
        assert [s.path for s in found] == ["0.attn.qkv", "1.attn.qkv"]
        assert {(s.rows.start, s.rows.stop) for s in found} == {(4 * index, 4 * index + 4)}
        assert all(getattr(s.parent, s.name) is s.module for s in found)
    assert {r: [s.path for s in sites(net, r)] for r in ("block", "attn", "ffn", "o")} == {
        "block": ["0", "1"], "attn": ["0.attn", "1.attn"], "ffn": ["0.mlp", "1.mlp"], "o": ["0.attn.proj", "1.attn.proj"],
    }  # fmt: skip
    bert = nn.Sequential(BertLike())
    assert [[s.path for s in sites(bert, r)] for r in "qkv"] == [
        [f"0.attention.{n}"] for n in ("query", "key", "value")
    ]
    assert all(s.rows is None for s in sites(bert, "q"))
    with pytest.raises(HilumError, match="unknown site role 'w'"):
        list(sites(net, "w"))


def test_the_hash_of_a_module_sees_names_types_shapes_and_bits() -> None:
    def made(**tensors: torch.Tensor) -> str:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return state_sha256(module)

    one = torch.arange(6.0)
    same = [
        made(a=one, b=one),
        made(b=one, a=one),
        made(a=one.reshape(3, 2).T.contiguous().T.reshape(6), b=one.clone()),
    ]
    assert len(set(same)) == 1
    bits = torch.nextafter(one, one + 1)
    others = [
        made(a=one),
        made(a=one, c=one),
        made(a=one.double(), b=one),
        made(a=one[None], b=one),
        made(a=bits, b=one),
    ]
    assert len({same[0], *others}) == 6
    halves = [made(a=one.to(t)) for t in (torch.bfloat16, torch.float16, torch.bool, torch.int8)]
    assert len(set(halves)) == 4
    assert made(a=torch.tensor(1.0)) != made(a=torch.ones(1))
    assert len(made(a=torch.zeros(0))) == 64


def test_a_delta_carries_its_base_and_is_refused_on_another() -> None:
    adapter, base = Adapter(), nn.Linear(2, 2)
    adapter.weight = nn.Parameter(torch.ones(2))
    adapter.base = (base,)
    assert list(adapter.state_dict()) == ["weight"] and delta_base(adapter.delta()) == state_sha256(base)
    delta = adapter.delta() | {"weight": torch.zeros(2)}
    adapter.load(delta)
    adapter.load({"weight": torch.zeros(2)}, base_sha256=state_sha256(base))
    assert adapter.delta()["weight"].tolist() == [0.0, 0.0]
    with pytest.raises(HilumError, match="does not say its base"):
        adapter.load({"weight": torch.zeros(2)})
    with pytest.raises(HilumError, match="not of this Adapter: 1 tensors are lacking, 1 unknown"):
        adapter.load({"heavy" if name == "weight" else name: value for name, value in delta.items()})
    with pytest.raises(HilumError, match="other shapes than this Adapter"):
        adapter.load(delta | {"weight": torch.zeros(3)})
    with torch.no_grad():
        base.weight += 1
    with pytest.raises(HilumError, match="other base weights"):
        adapter.load(delta)
    with pytest.raises(HilumError, match="attach the adapter first"):
        Adapter().load(delta)


# --- everything registered ---------------------------------------------------------------------------------

ENTRIES = registry.entries()


def protocol_gaps(candidate: Any, protocol: Any) -> list[str]:
    """Methods of a Protocol that a class lacks, or whose leading parameters have other names."""
    lacking = []
    for name, wanted in vars(protocol).items():
        if name.startswith("_") and name not in ("__len__", "__getitem__") or not inspect.isfunction(wanted):
            continue
        own = getattr(candidate, name, None)
        if not callable(own):
            lacking.append(name)
            continue
        has, wants = (list(inspect.signature(f).parameters) for f in (own, wanted))
        if has[: len(wants)] != wants:
            lacking.append(f"{name}({', '.join(wants)}), not ({', '.join(has)})")
    return lacking


PROTOCOLS: dict[str, type[Protocol]] = {"source": Source, "plan": Plan, "intake": Intake}  # type: ignore[valid-type]


@pytest.mark.parametrize("key", list(ENTRIES))
def test_every_manifest_entry_imports_and_meets_its_contract(key: str) -> None:
    entry: Entry = ENTRIES[key]
    assert entry.help, "say in a few words what it is"
    assert len(entry.help) <= 70
    if entry.kind == "recipe":
        assert entry.path.is_file()
        return
    if entry.missing() and entry.extra:
        pytest.fail(f"the development environment lacks {entry.missing()}")
    target = entry.load()
    assert callable(target)
    if entry.kind in PROTOCOLS:
        assert protocol_gaps(target, PROTOCOLS[entry.kind]) == []
    if entry.kind == "intake":
        assert isinstance(target(), Intake)
        assert isinstance(target().name, str)
    base = {"objective": Objective, "adapter": Adapter, "head": Head}.get(entry.kind)
    if base is not None:
        assert issubclass(target, base)
    if entry.kind == "objective":
        assert base in target.__bases__, "an objective composes parts and subclasses no other objective"
        assert target.forward is not Objective.forward or hasattr(target, "step")
        arguments = list(inspect.signature(target).parameters.values())
        assert arguments[0].name == "parts"
        assert len(arguments) - 1 <= 8
        assert all(p.kind is p.KEYWORD_ONLY for p in arguments[1:])
    if entry.kind == "verb":
        assert inspect.isfunction(target)


SMALL = {
    "timm/*": ("timm/vit_tiny_patch16_224", {"view": {"size": 32, "channels": 1}, "depth": 1, "embed_dim": 24}),
    "monai/*": ("monai/ResNet", {"view": {"size": 32, "channels": 1}}),
}


def built(kind: str, name: str) -> Any:
    spec = EncoderSpec(24, 24, licence="MIT")
    if kind == "encoder":
        full, options = SMALL.get(name, (name, {"view": {"size": 32, "channels": 1}}))
        return registry.build("encoder", full, **options)
    if kind == "head":
        return registry.build("head", name, dim=spec.pooled_dim, names=("a", "b"), task="multilabel")
    return registry.build(kind, name)


CHECKS: dict[str, Callable[..., None]] = {
    "encoder": check_encoder, "head": check_head, "adapter": check_adapter, "probe": check_probe, "expert": check_expert,
}  # fmt: skip
BUILDABLE = [(k, n) for k in CHECKS for n in registry.entries(k) if n != "monai/*"]


@pytest.mark.parametrize(("kind", "name"), BUILDABLE)
def test_every_component_passes_its_checker_once_built(kind: str, name: str) -> None:
    CHECKS[kind](built(kind, name))
    with pytest.raises(ContractError):
        CHECKS[kind](object())  # the checker that passed it can refuse


def test_parts_give_the_only_encoder_or_say_which_there_are() -> None:
    net = Net()
    assert Parts({"image": net}).encoder is net
    with pytest.raises(ContractError, match=r"\['a', 'b'\]"):
        _ = Parts({"a": net, "b": net}).encoder
