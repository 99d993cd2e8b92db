"""Learning from labels: closed forms of the loss, weights of rare findings, frozen encoders, adapters, exports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hilum.adapters.lora import LoRA
from hilum.adapters.vpt import VPT
from hilum.core.adapter import state_sha256
from hilum.core.errors import ContractError, HilumError
from hilum.core.objective import Parts, check_objective
from hilum.core.types import Batch, LabelSpace, Progress
from hilum.encoders.build import timm_encoder
from hilum.heads.linear import LinearHead
from hilum.objectives.supervised import Supervised

NAMES = ("effusion", "nodule", "fracture")
COUNTS = {
    "train": {"effusion": (20, 80, 5), "nodule": (50, 50, 0), "fracture": (0, 100, 3)},
    "val": {"effusion": (9, 1, 0)},
}


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    small = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4, "pooling": "avg", **options}
    return timm_encoder("vit_tiny_patch16_224", view={"size": 16, "channels": 3}, **small)


def supervised(
    task: str = "multilabel", *, encoder: Any = None, adapters: dict[str, nn.Module] | None = None, **options: Any
) -> Supervised:
    names = NAMES if task != "binary" else NAMES[:1]
    labels = LabelSpace(names, task, counts=COUNTS)
    head = LinearHead(32, names, task, init_std=0.5)
    parts = Parts({"image": encoder or vit()}, head=head, adapters=adapters or {}, labels=labels)
    return Supervised(parts, task=task, **options)


def batch_of(n: int = 6, *, targets: Tensor | None = None, valid: Tensor | None = None) -> Batch:
    g = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, 16, 16, generator=g)
    labels = (torch.rand(n, 3, generator=g) < 0.5).float() if targets is None else targets
    return Batch(views={"image": images}, targets={"labels": labels}, valid={} if valid is None else {"labels": valid})


def explicit(z: Tensor, y: Tensor, valid: Tensor, w: Tensor) -> Tensor:
    """arXiv 2308.07688: mean over known entries of -w y log s(z) - (1 - y) log(1 - s(z)), entry by entry."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b in range(z.shape[0]):
        for c in range(z.shape[1]):
            if valid[b, c]:
                s = 1 / (1 + torch.exp(-z[b, c].double()))
                total = total - w[c] * y[b, c] * torch.log(s) - (1 - y[b, c]) * torch.log(1 - s)
                count += 1
    return total / count


def test_loss_equals_the_explicit_formula() -> None:
    """arXiv 2308.07688."""
    valid = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]]).bool()
    objective = supervised(pos_weight="auto").eval()
    check_objective(objective)
    batch = batch_of(valid=valid)
    batch.targets["labels"][2] = float("nan")  # unknown entries may hold anything
    logits = objective.predict(batch).logits
    weights = torch.tensor([80 / 20, 1.0, 1.0])
    loss = objective(batch).loss()
    assert torch.allclose(loss.double(), explicit(logits, batch.targets["labels"], valid, weights), rtol=1e-6)
    assert objective.counts(batch)["classification"] == 13 == objective(batch).terms["classification"].count
    unweighted = supervised(encoder=objective.encoder).eval()
    unweighted.head = objective.head
    plain = unweighted(batch).loss()
    assert torch.allclose(plain.double(), explicit(logits, batch.targets["labels"], valid, torch.ones(3)), rtol=1e-6)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


def test_balanced_findings_weigh_one_and_a_rare_positive_pulls_w_times() -> None:
    """arXiv 2308.07688: w = (N - n) / n over the rows that train serves, unknown rows left out."""
    objective = supervised(pos_weight="auto")
    assert torch.allclose(objective.pos_weight, torch.tensor([4.0, 1.0, 1.0]))
    labels = LabelSpace(("nodule",), counts={"train": {"nodule": (7, 7, 99)}})
    even = Supervised(Parts({"image": vit()}, head=LinearHead(32, ("nodule",)), labels=labels), pos_weight="auto")
    assert even.pos_weight.tolist() == [1.0]
    weighted, plain = torch.zeros(1, 3, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
    from hilum.parts.losses import binary_cross_entropy

    ones = torch.ones(1, 3)
    binary_cross_entropy(weighted, ones, pos_weight=objective.pos_weight).sum.backward()
    binary_cross_entropy(plain, ones).sum.backward()
    assert torch.allclose(weighted.grad, plain.grad * torch.tensor([4.0, 1.0, 1.0]))


def test_weights_by_finding_and_their_mistakes() -> None:
    objective = supervised(pos_weight={"nodule": 2.5, "effusion": "auto"})
    assert objective.pos_weight.tolist() == [4.0, 2.5, 1.0]
    assert "pos_weight" in objective.state_dict() and supervised().pos_weight is None
    with pytest.raises(HilumError, match="did you mean 'nodule'"):
        supervised(pos_weight={"nodul": 2.0})
    with pytest.raises(HilumError, match="is no number"):
        supervised(pos_weight={"nodule": "heavy"})
    labels = LabelSpace(("nodule",), counts={"val": {"nodule": (1, 1, 0)}})
    with pytest.raises(HilumError, match="not counted"):
        Supervised(Parts({"image": vit()}, head=LinearHead(32, ("nodule",)), labels=labels), pos_weight="auto")


@pytest.mark.parametrize("form", ["index", "column", "one-hot"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classes_in_every_form(form: str, smoothing: float) -> None:
    index = torch.tensor([0, 2, 1, 1, 0, 2])
    valid = torch.tensor([1, 1, 0, 1, 1, 1]).bool()
    forms = {
        "index": (index.float(), valid),
        "column": (index.float()[:, None], valid[:, None]),
        "one-hot": (F.one_hot(index, 3).float(), valid[:, None].expand(-1, 3)),
    }
    objective = supervised("multiclass", label_smoothing=smoothing).eval()
    targets, known = forms[form]
    batch = batch_of(targets=targets.clone(), valid=known)
    out = objective(batch)
    reference = F.cross_entropy(objective.predict(batch).logits[valid], index[valid], label_smoothing=smoothing)
    assert torch.allclose(out.loss(), reference, rtol=1e-5)
    assert out.terms["classification"].count == 5 == objective.counts(batch)["classification"]
    assert torch.allclose(objective.predict(batch).scores.sum(1), torch.ones(6))


def test_binary_and_smoothed_findings() -> None:
    y = torch.tensor([[1.0], [0.0], [1.0], [1.0], [0.0], [0.0]])
    objective = supervised("binary", label_smoothing=0.2).eval()
    batch = batch_of(targets=y)
    z = objective.predict(batch).logits
    assert torch.allclose(objective(batch).loss(), F.binary_cross_entropy_with_logits(z, y * 0.8 + 0.1), rtol=1e-5)


def test_a_frozen_encoder_stands_still_in_eval_mode() -> None:
    encoder = vit(drop_path=0.5)
    objective = supervised(encoder=encoder, frozen=True).train()
    assert objective.head.training and not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    batch, digest = batch_of(), state_sha256(encoder)
    assert torch.equal(objective.features(batch).pooled, objective.features(batch).pooled)  # no stochastic depth
    assert objective.features(batch).pooled.grad_fn is None
    optimiser = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(20):
        loss = objective(batch).loss()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0] and state_sha256(encoder) == digest
    tuned = supervised(encoder=vit(drop_path=0.5)).train()
    assert tuned.encoder.training and not torch.equal(tuned.features(batch).pooled, tuned.features(batch).pooled)


def test_overfits_eight_samples_and_predicts_them() -> None:
    objective = supervised().train()
    batch = batch_of(8)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        objective(objective.prepare(batch, Progress())).loss().backward()
        optimiser.step()
    with torch.no_grad():
        prediction = objective.eval().predict(batch)
    assert prediction.names == NAMES and torch.equal((prediction.scores > 0.5).float(), batch.targets["labels"])


@pytest.mark.parametrize("kind", ["lora", "vpt"])
def test_adapters_learn_while_the_base_stands_still(kind: str) -> None:
    """Card 47: the frozen set's checksum is unchanged and the backbone is in eval mode during fit."""
    encoder = vit(drop_path=0.2)
    adapter = LoRA(rank=2) if kind == "lora" else VPT(tokens=3)
    adapter.attach(encoder)
    objective = supervised(encoder=encoder, adapters={kind: adapter}).train()
    digest, batch = state_sha256(encoder), batch_of(8)
    names = {n for n, p in objective.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in objective.named_parameters() if n.startswith(("adapters.", "head."))}
    optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-2)
    before = {k: v.clone() for k, v in adapter.state_dict().items()}
    losses = []
    for _ in range(15):
        loss = objective(batch).loss()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert not encoder.training and state_sha256(encoder) == digest and losses[-1] < losses[0]
    assert any(not torch.equal(v, before[k]) for k, v in adapter.state_dict().items())
    live = objective.eval().predict(batch).logits
    exported = objective.exported()
    assert list(exported["encoder"].state_dict()) == list(vit().state_dict())
    again = vit()
    again.load_state_dict(exported["encoder"].state_dict())
    if kind == "vpt":
        assert set(exported) == {"encoder", "head", "vpt"}
        fresh = VPT(tokens=3)
        fresh.attach(again)
        fresh.load(exported["vpt"].state_dict(), base_sha256=exported["vpt"].base_sha256)
    assert torch.allclose(exported["head"](again.eval()(batch.views["image"])).logits, live, atol=1e-4)
    assert torch.equal(objective.predict(batch).logits, live)  # exporting changed nothing here


def test_exports_and_refusals() -> None:
    objective = supervised()
    exported = objective.exported()
    assert exported["encoder"] is objective.encoder and exported["head"] is objective.head and len(exported) == 2
    with pytest.raises(HilumError, match="no labels"):
        objective(Batch(views=batch_of().views))
    with pytest.raises(HilumError, match="did you mean 'multilabel'"):
        supervised("multilable")
    with pytest.raises(ContractError, match="lacks parts"):
        Supervised(Parts({"image": vit()}))
