"""Seams: what the planned methods need, each shown by a toy of at most 40 lines that uses public contracts only."""

from __future__ import annotations

import ast
import copy
import inspect
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import seam_ranks
import torch
import torch.nn.functional as F
from ranks import run_on_ranks
from torch import Tensor, nn
from toys import ToyFeed, make_loop, rows

from hilum.adapters.lora import LoRA
from hilum.core.adapter import Adapter, state_sha256
from hilum.core.encoder import check_encoder, sites
from hilum.core.fit import fit
from hilum.core.loop import Hook, Loop
from hilum.core.objective import Objective, check_objective
from hilum.core.types import Batch, Block, Features, Meta, Progress, Ragged, State, StepOutput, Term
from hilum.encoders.build import timm_encoder
from hilum.parts.predictors import TransformerBlock
from hilum.parts.queues import Queue
from hilum.parts.ragged import block_diagonal_mask
from hilum.parts.teacher import Teacher

HEADS = 2


def vit(seed: int = 0) -> Any:
    """A small ViT in float64 whose every parameter is away from its initial zeros."""
    torch.manual_seed(seed)
    shape = {"patch_size": 4, "depth": 3, "embed_dim": 16, "num_heads": HEADS}
    encoder = timm_encoder("vit_tiny_patch16_224", view={"size": 16, "channels": 1}, **shape).double().eval()
    check_encoder(encoder)
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return encoder


def images(n: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embedded(encoder: Any, x: Tensor) -> Tensor:
    """timm's own way to the tokens before the first block."""
    return encoder.net.norm_pre(encoder.net._pos_embed(encoder.net.patch_embed(x)))


# --- prompts, inserted and dropped per block ---------------------------------------------------------------


@dataclass
class Prompted:
    """A block that sees prompts of its own and hands on without them."""

    row: Tensor
    block: Block

    def attend(self, state: State, *, mix: Any = None) -> State:
        p, prompts = state.num_prefix, self.row.expand(len(state.x), -1, -1)
        x = torch.cat([state.x[:, :p], prompts, state.x[:, p:]], 1)
        return self.block.attend(replace(state, x=x, num_prefix=p + len(self.row)), mix=mix)

    def feed(self, state: State) -> State:
        state = self.block.feed(state)
        p = state.num_prefix - len(self.row)
        return replace(state, x=torch.cat([state.x[:, :p], state.x[:, state.num_prefix :]], 1), num_prefix=p)


class BlockPrompts(nn.Module):
    """Prompts for every block of a frozen encoder."""

    def __init__(self, encoder: Any, tokens: int) -> None:
        super().__init__()
        self.rows = nn.ParameterList(torch.randn(tokens, e, dtype=torch.float64) for e in encoder.spec.layer_dims)
        encoder.requires_grad_(False)
        encoder.wraps.append(lambda index, block: Prompted(self.rows[index], block))


@pytest.mark.parametrize("tokens", [0, 3])
def test_prompts_live_inside_their_block_only(tokens: int) -> None:
    encoder, plain, x = vit(), vit(), images()
    prompts = BlockPrompts(encoder, tokens)
    h = embedded(plain, x)
    for row, block in zip(prompts.rows, plain.net.blocks, strict=True):
        h = torch.cat([h[:, :1], row.expand(2, -1, -1), h[:, 1:]], 1)
        h = block(h)
        h = torch.cat([h[:, :1], h[:, 1 + tokens :]], 1)
    h = plain.net.norm(h)
    found = encoder(x, layers=(0, 2))
    torch.testing.assert_close(found.tokens, h[:, 1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.prefix, h[:, :1], rtol=0, atol=1e-12)
    assert [m.tokens.shape[1] for m in found.layers] == [16, 16]
    if tokens:
        found.pooled.sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in prompts.rows)
        assert all(p.grad is None for p in encoder.parameters())


# --- an attention-logit tap --------------------------------------------------------------------------------


class AttentionDistillation(Objective):
    """The student's attention of one block follows that of a frozen teacher."""

    def __init__(self, student: Any, teacher: Any, block: str) -> None:
        super().__init__()
        self.student, self.teacher, self.block = student, Teacher({"net": teacher}, momentum=None), block

    def prepare(self, batch: Batch, progress: Progress) -> Batch:
        told = self.teacher["net"](batch.views["image"], taps=(self.block,)).taps[self.block]
        return batch.with_(extra={"attention": told.softmax(-1)})

    def forward(self, batch: Batch) -> StepOutput:
        own = self.student(batch.views["image"], taps=(self.block,)).taps[self.block].log_softmax(-1)
        loss = F.kl_div(own, batch.extra["attention"], reduction="sum")
        return StepOutput({"attention": Term(loss, torch.tensor(own.shape[:-1].numel()))})


def test_a_tap_changes_no_bit_and_is_the_attention_that_was_used() -> None:
    encoder, x = vit(), images()
    plain, tapped = encoder(x), encoder(x, taps=("blocks.0", "blocks.2"))
    for name in ("tokens", "prefix", "pooled"):
        assert torch.equal(getattr(plain, name), getattr(tapped, name))
    assert set(tapped.taps) == {"blocks.0", "blocks.2"}
    block, h = encoder.net.blocks[0], embedded(encoder, x)
    value = block.attn.qkv(block.norm1(h))[..., 32:].unflatten(-1, (HEADS, 8)).transpose(1, 2)
    mixed = (tapped.taps["blocks.0"].softmax(-1) @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.attn.proj(mixed), block.attn(block.norm1(h)), rtol=0, atol=1e-12)


def test_attention_can_be_distilled_through_the_tap() -> None:
    objective = AttentionDistillation(vit(0), vit(7), "blocks.1")
    check_objective(objective)
    assert not any("teacher" in name for name, _ in objective.named_parameters())
    batch = Batch({"image": images(4)})
    optimiser = torch.optim.Adam(objective.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = objective(objective.prepare(batch, Progress())).loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert objective.student.net.blocks[1].attn.proj.weight.grad is None  # nothing behind the tap takes part


# --- two encoders exchanging states between blocks ---------------------------------------------------------


@dataclass
class Door:
    """Stands for a block and lets a state out or in."""

    through: Callable[[State], State]

    def attend(self, state: State, *, mix: Any = None) -> State:
        return self.through(state)

    def feed(self, state: State) -> State:
        return state


class Exchange(nn.Module):
    """Encoders side by side: after each block every state gets a gated summary of the others' states."""

    def __init__(self, encoders: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        depth = min(len(e.spec.layer_dims) for e in encoders.values())
        self.gates = nn.ParameterDict({n: torch.zeros(depth, dtype=torch.float64) for n in encoders})

    def through(self, name: str, x: Tensor, door: Callable[[State], State]) -> Features:
        encoder = self.encoders[name]
        encoder.wraps.append(lambda index, block: Door(door))
        try:
            return encoder(x, stop=1)
        finally:
            encoder.wraps.pop()

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Features]:
        states: dict[str, State] = {}
        for name, x in views.items():
            self.through(name, x, lambda s, name=name: states.setdefault(name, s))
        for i in range(len(self.gates[next(iter(views))])):
            blocks = {n: self.encoders[n].block(i) for n in states}
            states = {n: blocks[n].feed(blocks[n].attend(s)) for n, s in states.items()}
            told = {n: s.x.mean(1, keepdim=True) for n, s in states.items()}  # all from before the exchange
            states = {n: self.receive(n, i, s, told) for n, s in states.items()}
        return {n: self.through(n, views[n], lambda s, n=n: states[n]) for n in states}

    def receive(self, name: str, i: int, state: State, told: Mapping[str, Tensor]) -> State:
        others = torch.stack([told[n] for n in sorted(told) if n != name]).sum(0)
        return replace(state, x=state.x + self.gates[name][i] * others)


def test_exchange_with_zero_gates_is_each_encoder_alone_and_gates_learn() -> None:
    encoders, views = {"a": vit(0), "b": vit(1)}, {"a": images(seed=1), "b": images(seed=2)}
    both = Exchange(encoders)
    found = both(views)
    for name, encoder in encoders.items():
        alone = encoder(views[name])
        assert torch.equal(found[name].tokens, alone.tokens)
        assert torch.equal(found[name].pooled, alone.pooled)
    (found["a"].pooled ** 2).sum().backward()
    assert (both.gates["a"].grad[:3].abs() > 0).all()


def test_exchange_does_not_depend_on_the_order_of_encoders() -> None:
    both, views = Exchange({"a": vit(0), "b": vit(1)}), {"a": images(seed=1), "b": images(seed=2)}
    with torch.no_grad():
        both.gates["a"].fill_(0.3)
        both.gates["b"].fill_(-0.2)
    forth, back = both(views), both(dict(reversed(views.items())))
    h = {n: embedded(both.encoders[n], x) for n, x in views.items()}
    for i in range(3):
        h = {n: both.encoders[n].net.blocks[i](x) for n, x in h.items()}
        mean = {n: x.mean(1, keepdim=True) for n, x in h.items()}
        h = {"a": h["a"] + 0.3 * mean["b"], "b": h["b"] - 0.2 * mean["a"]}
    for name in views:
        assert torch.equal(forth[name].tokens, back[name].tokens)
        expected = both.encoders[name].net.norm(h[name])[:, 1:]
        torch.testing.assert_close(forth[name].tokens, expected, rtol=0, atol=1e-12)


# --- keys and values kept between two passes ---------------------------------------------------------------


class Memory:
    """First pass: every block keeps its keys and values. Second pass: queries read those instead of their own."""

    def __init__(self, encoder: Any) -> None:
        self.cache: dict[str, Any] = {}
        self.reading = False
        blocks = [site.module for site in sites(encoder, "block")]
        slices = {role: next(sites(encoder, role)).rows for role in ("q", "k", "v")}
        encoder.wraps.append(lambda i, block: Remembering(self, f"blocks.{i}", block, blocks[i], slices))


@dataclass
class Remembering:
    memory: Memory
    name: str
    block: Block
    own: Any
    slices: Mapping[str, slice]

    def attend(self, state: State, *, mix: Any = None) -> State:
        return self.block.attend(replace(state, cache=self.memory.cache), mix=self.cross)

    def feed(self, state: State) -> State:
        return self.block.feed(state)

    def cross(self, y: Tensor, state: State) -> Tensor:
        normed = self.own.norm1(state.x)
        if not self.memory.reading:
            state.cache[self.name] = (self.project("k", normed), self.project("v", normed))
            return y
        mixed = F.scaled_dot_product_attention(self.project("q", normed), *state.cache[self.name])
        return self.own.attn.proj(mixed.transpose(1, 2).flatten(2))

    def project(self, role: str, x: Tensor) -> Tensor:
        qkv, at = self.own.attn.qkv, self.slices[role]
        return F.linear(x, qkv.weight[at], qkv.bias[at]).unflatten(-1, (HEADS, -1)).transpose(1, 2)


def test_a_second_pass_reads_the_first_ones_keys_and_values() -> None:
    encoder, plain = vit(), vit()
    memory = Memory(encoder)
    first, other = images(seed=1), images(seed=2)
    assert torch.equal(encoder(first).tokens, plain(first).tokens)  # writing changes nothing
    kept = {name: [t.clone() for t in pair] for name, pair in memory.cache.items()}
    assert sorted(kept) == ["blocks.0", "blocks.1", "blocks.2"]
    memory.reading = True
    torch.testing.assert_close(encoder(first).tokens, plain(first).tokens, rtol=0, atol=1e-12)
    read = encoder(other).tokens
    assert (read - plain(other).tokens).abs().max() > 1e-3
    h = embedded(plain, other)
    for name, block in zip(sorted(kept), plain.net.blocks, strict=True):
        q = block.attn.qkv(block.norm1(h))[..., :16].unflatten(-1, (HEADS, 8)).transpose(1, 2)
        k, v = kept[name]
        attention = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
        h = h + block.attn.proj((attention @ v).transpose(1, 2).flatten(2))
        h = h + block.mlp(block.norm2(h))
    torch.testing.assert_close(read, plain.net.norm(h)[:, 1:], rtol=0, atol=1e-12)
    for name, pair in kept.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, memory.cache[name], strict=True))  # reading writes nothing


# --- an averaged teacher with a queue ----------------------------------------------------------------------


class Momentum(Objective):
    """InfoNCE against a queue of an averaged teacher's keys (MoCo)."""

    def __init__(self, net: nn.Module, *, momentum: float = 0.9, size: int = 20) -> None:
        super().__init__()
        self.net, self.teacher = net, Teacher({"net": net}, momentum=momentum)
        self.queue = Queue(3, size, dtype=torch.float64)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": torch.tensor(float(batch.size))}

    def prepare(self, batch: Batch, progress: Progress) -> Batch:
        return batch.with_(extra={"keys": F.normalize(self.teacher["net"](batch.views["x"]), dim=1)})

    def forward(self, batch: Batch) -> StepOutput:
        query, keys = F.normalize(self.net(batch.views["x"]), dim=1), batch.extra["keys"]
        logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ self.queue.rows().T], 1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long), reduction="sum")
        return StepOutput({"loss": Term(loss, torch.tensor(float(len(query))))}, outputs={"keys": keys})

    def after_step(self, progress: Progress, outputs: Mapping[str, Any]) -> None:
        self.teacher.update(progress)
        self.queue.push(outputs["keys"])


def projector() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def moco_by_hand(steps: int, *, skipped: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of student and teacher and the queue after plain MoCo steps; a skipped step moves none of them."""
    student, queue = projector(), torch.zeros(0, 3, dtype=torch.float64)
    teacher, optimiser = copy.deepcopy(student), torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    batches = [b[0] for b in ToyFeed(rows(32)).train_loader(0, start_step=0, rank=0, world=1, accumulate=1)]
    for step in range(steps):
        if step in skipped:
            continue
        x = batches[step].views["x"]
        q, k = F.normalize(student(x), dim=1), F.normalize(teacher(x), dim=1).detach()
        positive, negative = (q * k).sum(1), q @ queue.T
        every = torch.cat([positive[:, None], negative], 1) / 0.2
        optimiser.zero_grad()
        (every.logsumexp(1) - positive / 0.2).mean().backward()
        optimiser.step()
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
                t.copy_(0.9 * t + 0.1 * s)
        queue = torch.cat([queue, k])[-20:]
    flat = [torch.cat([p.detach().reshape(-1) for p in m.parameters()]) for m in (student, teacher)]
    return flat[0], flat[1], queue


def assert_equals_by_hand(objective: Momentum, expected: tuple[Tensor, Tensor, Tensor]) -> None:
    held = [objective.net, objective.teacher["net"]]
    found = [torch.cat([p.detach().reshape(-1) for p in m.parameters()]) for m in held]
    for a, b in zip([*found, objective.queue.rows()], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_teacher_and_queue_follow_every_micro_batch_and_a_resumed_run_has_both(accumulate: int, tmp_path: Path) -> None:
    def made(*hooks: Hook) -> Loop:
        changes = {"accumulate": accumulate, "total_steps": 4, "total_epochs": 1, "folder": tmp_path}
        return make_loop(Momentum(projector()), hooks=list(hooks), **changes)

    class Stop(Hook):
        def on_step(self, loop: Loop, logs: object) -> None:
            loop.stop_signal = signal.SIGTERM if loop.position.step == 2 else None

    first, second = made(Stop()), made()
    assert {n.split(".")[0] for n, _ in first.objective.named_parameters()} == {"net"}
    fit(first)
    assert first.position.step in (2, 3)
    assert_equals_by_hand(first.objective, moco_by_hand(first.position.step))
    second.restore(tmp_path / "checkpoints" / "last.ckpt")
    fit(second)
    assert_equals_by_hand(second.objective, moco_by_hand(4))


def test_a_skipped_step_moves_neither_teacher_nor_queue() -> None:
    class Poisoned(Momentum):
        calls = -1

        def forward(self, batch: Batch) -> StepOutput:
            self.calls += 1
            output = super().forward(batch)
            output.terms["loss"].sum *= float("nan") if self.calls == 1 else 1.0
            return output

    objective = Poisoned(projector())
    fit(make_loop(objective, total_steps=4, total_epochs=1))
    assert_equals_by_hand(objective, moco_by_hand(4, skipped=(1,)))


# --- the reference policy is the policy with its adapter off -----------------------------------------------


@contextmanager
def switched_off(adapter: Adapter) -> Iterator[None]:
    scale, adapter.scale = adapter.scale, 0.0
    try:
        yield
    finally:
        adapter.scale = scale


class Preference(Objective):
    """Direct preference optimisation over classes: -log sigmoid of the log-ratio margin to the reference."""

    def __init__(self, encoder: Any, adapter: Adapter, *, classes: int = 3) -> None:
        super().__init__()
        self.encoder, self.adapter = adapter.attach(encoder), adapter
        self.head = nn.Linear(encoder.spec.pooled_dim, classes).double().requires_grad_(False)

    def log_probability(self, batch: Batch) -> Tensor:
        return self.head(self.encoder(batch.views["image"]).pooled).log_softmax(-1)

    def prepare(self, batch: Batch, progress: Progress) -> Batch:
        with switched_off(self.adapter):
            return batch.with_(extra={"reference": self.log_probability(batch)})

    def forward(self, batch: Batch) -> StepOutput:
        ratio = self.log_probability(batch) - batch.extra["reference"]
        margin = ratio.gather(1, batch.targets["chosen"]) - ratio.gather(1, batch.targets["rejected"])
        return StepOutput({"preference": Term(-F.logsigmoid(margin).sum(), torch.tensor(float(len(margin))))})


def test_the_reference_policy_is_the_adapter_switched_off() -> None:
    torch.manual_seed(4)
    base, encoder = vit(), vit()
    objective = Preference(encoder, LoRA(rank=2).double()).eval()
    objective.adapter.double()
    chosen = torch.tensor([[0], [2], [1]])
    batch = Batch({"image": images(3)}, {"chosen": chosen, "rejected": (chosen + 1) % 3})
    optimiser = torch.optim.Adam(objective.adapter.trainable(), lr=0.05)
    losses = []
    for _ in range(20):
        ready = objective.prepare(batch, Progress())
        told = objective.head(base(batch.views["image"]).pooled).log_softmax(-1)
        assert torch.equal(ready.extra["reference"], told)  # the untouched base, to the last bit, at every step
        loss = objective(ready).loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)
    assert losses[-1] < 0.5 * losses[0]
    assert state_sha256(encoder) == state_sha256(base) == objective.adapter.base_sha256


# --- per-token weights over ranks and micro-batches; ordered updates ---------------------------------------


@pytest.fixture(scope="module")
def token_gradient() -> Tensor:
    """The gradient of the exact weighted mean over the whole corpus, in one piece."""
    objective, (ids, weight) = seam_ranks.NextToken(), seam_ranks.corpus()
    p = objective.logits(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    (-(p * weight[:, 1:]).sum() / weight[:, 1:].sum()).backward()
    return torch.cat([q.grad.reshape(-1) for q in objective.parameters()])


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_fractional_token_weights_over_unequal_micro_batches(
    accumulate: int, token_gradient: Tensor, tmp_path: Path
) -> None:
    found = seam_ranks.gradient(folder=tmp_path, strategy="auto", accumulate=accumulate)
    torch.testing.assert_close(found, token_gradient, rtol=0, atol=1e-7)


@pytest.mark.integration
def test_fractional_token_weights_over_two_ranks_and_unequal_micro_batches(
    token_gradient: Tensor, tmp_path: Path
) -> None:
    found = run_on_ranks("seam_ranks:gradient", tmp_path, strategy="ddp", accumulate=2)
    assert token_gradient.abs().max() > 0.01
    torch.testing.assert_close(found, token_gradient, rtol=0, atol=1e-7)


def bilevel_by_hand(means: Tensor) -> tuple[float, float]:
    """Inner and outer value after the steps, from the derivatives on paper."""
    w, a, rate = 0.5, 0.3, seam_ranks.RATE
    for noisy, clean in means.tolist():
        s = 1 / (1 + 2.718281828459045**-a)
        ahead = w - rate * 2 * s * (w - noisy)
        a -= rate * 2 * (ahead - clean) * (-rate * 2 * (w - noisy)) * s * (1 - s)
        w -= rate * 2 * (w - noisy) / (1 + 2.718281828459045**-a)
    return w, a


def test_bilevel_updates_are_taken_in_order() -> None:
    found = seam_ranks.bilevel(folder=Path(), strategy="auto")
    w, a = bilevel_by_hand(found["means"])
    assert found["inner"].item() == pytest.approx(w, abs=1e-7)
    assert found["outer"].item() == pytest.approx(a, abs=1e-7)
    assert found["logged"] == ["train/inner", "train/outer"]


@pytest.mark.integration
def test_ordered_updates_over_two_ranks_equal_one_process(tmp_path: Path) -> None:
    alone = seam_ranks.players(folder=tmp_path, strategy="auto")
    assert (alone - torch.tensor([0.5, -0.3])).abs().min() > 0.01
    both = run_on_ranks("seam_ranks:players", tmp_path, strategy="ddp")
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-7)


# --- packed rows of different length -----------------------------------------------------------------------


class PackedTokens(Objective):
    """Self-attention inside each packed row; predicts a token's successor feature, mean over all tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.block, self.out = TransformerBlock(8, 2).double(), nn.Linear(8, 2).double()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": batch.views["tokens"].lengths.sum()}

    def encode(self, tokens: Ragged) -> Ragged:
        x = self.block(tokens.data[None], mask=block_diagonal_mask(tokens.lengths))
        return replace(tokens, data=self.out(x[0]))

    def forward(self, batch: Batch) -> StepOutput:
        tokens = batch.views["tokens"]
        error = (self.encode(tokens).data - tokens.data[:, :2].roll(1, 1)) ** 2
        return StepOutput({"loss": Term(error.mean(1).sum(), tokens.lengths.sum())})


@dataclass
class PackedFeed(ToyFeed):
    """Row r has 1 + (5 r mod 7) tokens."""

    def collate(self, rows: Tensor) -> Batch:
        made = [
            torch.randn(1 + 5 * r % 7, 8, generator=torch.Generator().manual_seed(r), dtype=torch.float64)
            for r in rows.tolist()
        ]
        return Batch({"tokens": Ragged.of(made)}, meta=[Meta(f"{r:08x}", f"group{r}") for r in rows.tolist()])


def test_a_packed_batch_equals_its_rows_one_by_one() -> None:
    objective = PackedTokens()
    batch = PackedFeed(rows(32)).collate(torch.arange(9))
    packed = objective.encode(batch.views["tokens"]).rows()
    for row, found in zip(batch.views["tokens"].rows(), packed, strict=True):
        alone = objective.out(objective.block(row[None]))[0]
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-12)
    moved = batch.to(torch.float32)
    assert moved.views["tokens"].data.dtype == torch.float32
    assert moved.views["tokens"].lengths.tolist() == [1 + 5 * r % 7 for r in range(9)]


def test_packed_micro_batches_equal_the_whole_batch() -> None:
    made = []
    for accumulate in (1, 3):
        objective = PackedTokens()
        fit(make_loop(objective, PackedFeed(rows(32)), accumulate=accumulate, total_steps=4, total_epochs=1))
        made.append(torch.cat([p.detach().reshape(-1) for p in objective.parameters()]))
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-7)
    fresh = torch.cat([p.detach().reshape(-1) for p in PackedTokens().parameters()])
    assert (made[0] - fresh).abs().max() > 1e-3


# --- what "toy" and "public" mean --------------------------------------------------------------------------

METHODS = {
    "prompts": (Prompted, BlockPrompts),
    "tap": (AttentionDistillation,),
    "exchange": (Door, Exchange),
    "cache": (Memory, Remembering),
    "teacher and queue": (Momentum,),
    "reference policy": (switched_off, Preference),
    "token weights": (seam_ranks.NextToken,),
    "bilevel": (seam_ranks.Reweighting,),
    "players": (seam_ranks.Alternating,),
    "packed": (PackedTokens,),
}


@pytest.mark.parametrize("name", METHODS)
def test_each_toy_takes_at_most_40_lines_and_public_names_only(name: str) -> None:
    sources = [inspect.getsource(part) for part in METHODS[name]]
    lines = [line for text in sources for line in text.splitlines() if line.strip()]
    assert len(lines) <= 40
    for text in sources:
        read = {n.attr for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Attribute)}
        assert not [a for a in read if a.startswith("_") and not a.startswith("__")]
