"""One MAE step (forward, backward, optimiser) against a plain MAE of timm blocks, at the same everything.

The peer, `PlainMAE` below, embeds all patches and then keeps the visible ones, as the published reference does. Same
weights, images, noise, batch, precision and threads; both optimisers are fused AdamW. Both losses must agree to 1e-5
(relative) before anything is timed. On a GPU the peer is run as published (bf16 autocast, eager, AdamW not fused) and ours
compiled and fused; MFU is stated.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from claims import arguments, claim, claim_ratio, interleaved, ratios, tell, threads, versions
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from hilum.core.objective import Parts
from hilum.core.types import Batch, Meta, Progress, SampleKey
from hilum.encoders.build import build
from hilum.objectives.masked import Masked
from hilum.parts.optimiser import build_optimizer, param_groups

SIZE, PATCH, LR, DECAY, BETAS = 224, 16, 1.5e-4, 0.05, (0.9, 0.95)
MODELS = {"ti": ("timm/vit_tiny_patch16_224", 192, 12, 3), "s": ("timm/vit_small_patch16_224", 384, 12, 6)}
MODELS["b"] = ("timm/vit_base_patch16_224", 768, 12, 12)
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16 FLOP/s


class PlainMAE(nn.Module):
    """He et al. 2021, written with timm's blocks: embed everything, shuffle, keep, encode, restore, decode."""

    def __init__(self, dim: int, depth: int, heads: int, *, width: int, decoder_depth: int, decoder_heads: int) -> None:
        super().__init__()
        block = partial(Block, mlp_ratio=4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        self.patch_embed = PatchEmbed(SIZE, PATCH, 3, dim)
        n = self.patch_embed.num_patches
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, n + 1, dim), requires_grad=False)
        self.blocks = nn.ModuleList(block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, n + 1, width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(block(width, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_pred = nn.Linear(width, PATCH * PATCH * 3)

    def forward(self, images: Tensor, noise: Tensor, keep: int) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        b, n, d = x.shape
        shuffle = torch.argsort(noise, dim=1)
        restore = torch.argsort(shuffle, dim=1)
        x = torch.gather(x, 1, shuffle[:, :keep, None].expand(-1, -1, d))
        mask = torch.ones(b, n, device=x.device)
        mask[:, :keep] = 0
        mask = torch.gather(mask, 1, restore)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        y = torch.cat([x[:, 1:], self.mask_token.repeat(b, n - keep, 1)], 1)
        y = torch.gather(y, 1, restore[..., None].expand(-1, -1, y.shape[-1]))
        x = torch.cat([x[:, :1], y], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        predicted = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        grid = SIZE // PATCH
        target = images.reshape(b, 3, grid, PATCH, grid, PATCH).permute(0, 2, 4, 3, 5, 1).reshape(b, n, -1)
        loss = (predicted.float() - target).square().mean(-1)
        return (loss * mask).sum() / mask.sum()


def build_ours(name: str, ratio: float, decoder: dict[str, int]) -> Masked:
    """The objective of the recipes medical/mae-cxr-*."""
    view = {"image": {"size": SIZE, "channels": 3}}
    torch.manual_seed(0)
    encoder = build(name, view=view["image"], positions="sincos-fixed")
    return Masked(Parts({"image": encoder}, views=view), ratio=ratio, **decoder)


def same_weights(ours: Masked, plain: PlainMAE) -> None:
    """Copy ours into the peer, every tensor by name."""
    state = ours.state_dict()
    plain.load_state_dict({k.removeprefix("encoder.net.").removeprefix("decoder."): v for k, v in state.items()})


def steps(options: Any, batch: int, masked: float, decoder: dict[str, int]) -> dict[str, Callable[[], Tensor]]:
    """A training step of either side, ours and the peer's, which returns its loss; "eager" is ours, never compiled."""
    name, dim, depth, heads = MODELS[options.model]
    device = torch.device(options.device)
    ours = build_ours(name, masked, decoder)
    sizes = {"width": decoder["decoder_width"], "decoder_depth": decoder["decoder_depth"]}
    plain = PlainMAE(dim, depth, heads, decoder_heads=decoder["decoder_heads"], **sizes)
    same_weights(ours, plain)
    ours, plain = ours.to(device).train(), plain.to(device).train()
    images = torch.randn(batch, 3, SIZE, SIZE, device=device)
    meta = [Meta(str(i), str(i), key=SampleKey.of(0, 0, str(i))) for i in range(batch)]
    given = ours.prepare(Batch({"image": images}, meta=meta), Progress())
    noise = given.extra["noise"]

    def cast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")

    groups = param_groups(ours, lr=LR, weight_decay=DECAY)
    own = build_optimizer(groups, "adamw", betas=BETAS)
    decays = param_groups_weight_decay(plain, weight_decay=DECAY)
    theirs = torch.optim.AdamW(decays, lr=LR, betas=BETAS, fused=device.type == "cpu")
    forward = torch.compile(ours) if options.compile else ours

    def own_step(run: nn.Module = forward) -> Tensor:
        with cast():
            loss: Tensor = run(given).terms["reconstruction"].mean
        loss.backward()
        own.step()
        own.zero_grad(set_to_none=True)
        return loss.detach()

    def plain_step() -> Tensor:
        with cast():
            loss: Tensor = plain(images, noise, ours.kept)
        loss.backward()
        theirs.step()
        theirs.zero_grad(set_to_none=True)
        return loss.detach()

    return {"ours": own_step, "plain": plain_step, "eager": lambda: own_step(ours)}


def timed(step: Callable[[], Tensor], count: int) -> Callable[[], float]:
    """``count`` steps and one wait for the device; the result is the last loss."""

    def run() -> float:
        for _ in range(count):
            loss = step()
        return float(loss)

    return run


def products(step: Callable[[], Tensor]) -> float:
    """FLOPs of a step's matrix products, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def utilisation(flops: float, seconds: float) -> str:
    """Model FLOP utilisation: a step's matrix products over the device's dense bf16 peak."""
    device = torch.cuda.get_device_name()
    peak = next((most for name, most in PEAK.items() if name in device), None)
    rate = flops / seconds
    told = f"{rate / 1e12:.1f} TFLOP/s on {device}"
    return f"{told}, MFU {rate / peak:.1%}" if peak else f"{told}, whose peak is not listed here: no MFU"


def main() -> None:
    options = arguments(
        __doc__,
        ("--device", {"default": "cpu", "choices": ["cpu", "cuda"]}),
        ("--precision", {"choices": ["fp32", "bf16"], "help": "default: fp32 on a CPU, bf16 on a GPU"}),
        ("--compile", {"action": "store_true", "help": "compile ours (always on a GPU)"}),
        ("--model", {"default": "s", "choices": sorted(MODELS)}),
        ("--batch", {"type": int}),
        ("--count", {"type": int, "help": "steps a measurement"}),
    )
    gpu = options.device == "cuda"
    if gpu and not torch.cuda.is_available():
        claim("mae_step_gpu", None, "x the published reference", 1.5)
        return
    options.precision = options.precision or ("bf16" if gpu else "fp32")
    options.compile = options.compile or gpu
    torch.set_num_threads(threads())
    batch = options.batch or (256 if gpu else 4 if options.quick else 32)
    count = options.count or (20 if gpu else 1)
    decoder = {"decoder_depth": 2, "decoder_width": 512, "decoder_heads": 16}
    goal, unit = (1.5, "x the published reference") if gpu else (1.05, "x a plain timm-block MAE")
    tell(
        f"{MODELS[options.model][0]} at {SIZE}, decoder 2 x 512, batch {batch}, {options.precision}, "
        f"{torch.get_num_threads()} threads, {options.device}; ours "
        + ("compiled" if options.compile else "not compiled"),
        f"peer: PlainMAE in benchmarks/mae_step.py, AdamW {'as published' if gpu else 'fused'}; "
        + versions("torch", "timm"),
    )
    for masked in (0.75, 0.9):
        sides = steps(options, batch, masked, decoder)
        eager = sides.pop("eager")
        first = {name: float(step()) for name, step in sides.items()}  # the same weights: before either has moved
        apart = abs(first["ours"] / first["plain"] - 1)
        limit = 1e-5 if options.precision == "fp32" else 1e-2
        assert apart <= limit, f"the losses {first} differ by {apart:.2e}, more than {limit:g}"
        flops = {"ours": products(eager), "plain": products(sides["plain"])}  # this is the warm-up of a CPU as well
        if gpu:
            for step in sides.values():
                timed(step, 5)()
        taken = interleaved(
            {name: timed(step, count) for name, step in sides.items()}, repeats=5 if options.quick else 9
        )
        seconds = {name: statistics.median(t) / count for name, t in taken.items()}
        tell(
            f"{masked:.0%} hidden: ours {batch / seconds['ours']:.3g} images/s, plain {batch / seconds['plain']:.3g}; "
            f"losses agree to {apart:.1e}; matrix products a step: ours "
            f"{flops['ours'] / 1e9:.1f} GFLOP, plain {flops['plain'] / 1e9:.1f} ({flops['plain'] / flops['ours']:.3f}x)"
        )
        if gpu:
            tell(f"{masked:.0%} hidden: ours {utilisation(flops['ours'], seconds['ours'])}")
        name = f"mae_step{'_gpu' if gpu else ''}_{masked:.2f}"
        claim_ratio(name, ratios(taken["plain"], taken["ours"]), unit, goal)


if __name__ == "__main__":
    main()
