"""Masked autoencoding: an independent reference, invariances, keyed masks, pictures, and a toy run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hilum.core.errors import HilumError, Unsupported
from hilum.core.objective import Parts, check_objective
from hilum.core.types import Batch, Meta, Progress, SampleKey
from hilum.encoders.build import timm_encoder
from hilum.objectives.masked import Masked
from hilum.parts.losses import masked_mse
from hilum.parts.masking import random_masking
from hilum.parts.patchify import patchify
from hilum.parts.rng import Stream


def tiny(seed: int = 0, size: int = 32, **options: Any) -> Any:
    torch.manual_seed(seed)
    small = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4, "positions": "sincos-fixed", **options}
    return timm_encoder("vit_tiny_patch16_224", view={"size": size, "channels": 3}, **small)


def masked(size: int = 32, encoder: Any = None, **options: Any) -> Masked:
    settings = {"ratio": 0.75, "decoder_depth": 1, "decoder_width": 32, "decoder_heads": 4, **options}
    return Masked(Parts({"image": encoder or tiny(size=size)}, views={"image": {"size": size}}), **settings)


def batch_of(samples: list[int], *, size: int = 32, epoch: int = 0, seed: int = 7, channels: int = 3) -> Batch:
    """Images and keys that depend on the sample's number alone."""
    pictures = [torch.randn(channels, size, size, generator=torch.Generator().manual_seed(s)) for s in samples]
    meta = [Meta(sample_id=f"{s:08x}", group_id=str(s), key=SampleKey(seed, epoch, s)) for s in samples]
    return Batch(views={"image": torch.stack(pictures)}, meta=meta)


def prepared(objective: Masked, batch: Batch) -> Batch:
    return objective.prepare(batch, Progress())


def reference(objective: Masked, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, removed-mask and latent after arXiv 2210.12843's steps 1 to 5, one image at a time, with loops for shuffling."""
    net, dec, p = objective.encoder.net, objective.decoder, 8
    total, masks, latents = 0.0, [], []
    for image, row in zip(images, noise, strict=True):
        order = sorted(range(len(row)), key=lambda i: row[i].item())
        keep = order[: int(len(row) * 0.25)]
        patches = [image[:, 8 * (i // 4) : 8 * (i // 4) + p, 8 * (i % 4) : 8 * (i % 4) + p] for i in range(16)]
        weight = net.patch_embed.proj.weight.flatten(1)
        tokens = [weight @ patches[i].flatten() + net.patch_embed.proj.bias + net.pos_embed[0, 1 + i] for i in keep]
        visible = torch.cat([net.cls_token[0] + net.pos_embed[0, :1], torch.stack(tokens)])
        latent = net.norm(net.blocks(visible[None]))[0]
        rows = dec.decoder_embed(latent)
        full = [dec.mask_token[0, 0]] * 16
        for place, i in enumerate(keep):
            full[i] = rows[1 + place]
        h = (torch.stack([rows[0], *full]) + dec.decoder_pos_embed[0])[None]
        for block in dec.decoder_blocks:
            h = block(h)
        pred = dec.decoder_pred(dec.decoder_norm(h))[0, 1:]
        hidden = [i for i in range(16) if i not in keep]
        for i in hidden:
            total = total + (pred[i] - patches[i].permute(1, 2, 0).flatten()).square().mean()
        masks.append(torch.tensor([float(i in hidden) for i in range(16)]))
        latents.append(latent)
    return total / sum(m.sum() for m in masks), torch.stack(masks), torch.stack(latents)


def test_equals_a_reference_on_the_same_noise() -> None:
    """arXiv 2210.12843."""
    objective, noise = masked().eval(), torch.rand(3, 16, generator=torch.Generator().manual_seed(2))
    batch = batch_of([1, 2, 3]).with_(extra={"noise": noise})
    loss, mask, latent = reference(objective, batch.views["image"], noise)
    found = random_masking(noise, objective.kept)
    assert torch.equal(found.mask, mask)
    features = objective.encoder(batch.views["image"], keep=found.ids_keep)
    assert torch.allclose(torch.cat([features.prefix, features.tokens], 1), latent, atol=1e-5)
    out = objective(objective.prepare(batch, Progress()))
    assert torch.allclose(out.loss(), loss, rtol=1e-5)
    assert out.terms["reconstruction"].count == 36 == objective.counts(batch)["reconstruction"]


def test_ninety_percent_of_196_keeps_19() -> None:
    objective = masked(encoder=tiny(size=224, patch_size=16, depth=1), size=224, ratio=0.9)
    batch = prepared(objective, batch_of([1, 2], size=224))
    ids_keep, ids_restore, mask = random_masking(batch.extra["noise"], objective.kept)
    assert ids_keep.shape == (2, 19) and mask.sum(1).tolist() == [177, 177]
    shuffle = batch.extra["noise"].argsort(dim=1, stable=True)
    assert torch.equal(shuffle.gather(1, ids_restore), torch.arange(196).expand(2, -1))


def test_visible_patches_do_not_count() -> None:
    """arXiv 2210.12843: with every patch predicted and scored by the masked error, whatever stands in visible patches
    leaves the loss bit-identical; and it is the loss of the objective, which does not predict them."""
    objective = masked().eval()
    batch = prepared(objective, batch_of([1, 2]))
    images, masking = batch.views["image"], random_masking(batch.extra["noise"], objective.kept)
    predicted, target = objective.predict_patches(images, masking), patchify(images, 8)
    visible = ~masking.mask.bool()
    losses = [masked_mse(predicted + shift * visible[..., None], target, masking.mask).mean for shift in (0.0, 100.0)]
    assert torch.equal(*losses)
    assert torch.allclose(objective(batch).loss(), losses[0], rtol=1e-6)
    assert not torch.allclose(objective(batch).loss(), masked_mse(predicted, target, visible).mean, rtol=1e-3)


def test_normalised_targets_ignore_a_constant_in_hidden_patches() -> None:
    """arXiv 2210.12843: with normalised targets a constant added to a hidden patch changes nothing."""
    for norm_target in (True, False):
        objective = masked(norm_target=norm_target).eval().double()
        batch = prepared(objective, batch_of([1, 2]).to("cpu", dtype=torch.float64))
        hidden = random_masking(batch.extra["noise"], objective.kept).mask.reshape(2, 1, 4, 4)
        constants = torch.rand(2, 1, 4, 4, dtype=torch.float64) * hidden
        shifted = batch.views["image"] + constants.repeat_interleave(8, 2).repeat_interleave(8, 3)
        other = objective(batch.with_(views={"image": shifted})).loss()
        assert torch.allclose(other, objective(batch).loss(), rtol=1e-6) is norm_target


def test_a_samples_loss_does_not_depend_on_its_batch() -> None:
    objective = masked().eval()
    whole = objective(prepared(objective, batch_of([1, 2, 3, 4]))).terms["reconstruction"]
    parts = [objective(prepared(objective, batch_of(s))).terms["reconstruction"] for s in ([4, 2], [1], [3])]
    assert torch.allclose(whole.sum, sum(t.sum for t in parts), rtol=1e-6)
    assert whole.count == sum(t.count for t in parts)


def test_masks_are_keyed_by_sample_epoch_and_seed() -> None:
    objective = masked()
    noise = prepared(objective, batch_of([5, 9])).extra["noise"]
    assert torch.equal(noise[1], Stream(SampleKey(7, 0, 9)).pixels("mask", (16,)))
    assert torch.equal(prepared(objective, batch_of([9, 1, 5])).extra["noise"][[2, 0]], noise)
    assert not torch.equal(prepared(objective, batch_of([5, 9], epoch=1)).extra["noise"], noise)
    assert not torch.equal(prepared(objective, batch_of([5, 9], seed=8)).extra["noise"], noise)
    own = torch.rand(2, 16)
    assert objective.prepare(batch_of([5, 9]).with_(extra={"noise": own}), Progress()).extra["noise"] is own
    keyless = batch_of([5])
    keyless.meta[0].key = None
    with pytest.raises(HilumError, match="without a key"):
        prepared(objective, keyless)
    with pytest.raises(HilumError, match="not prepared"):
        objective(batch_of([5]))


def test_block_masks_hide_the_same_number_in_rectangles() -> None:
    objective = masked(mask="block", encoder=tiny(size=64), size=64)
    batch = prepared(objective, batch_of([1, 2, 3], size=64))
    masks = random_masking(batch.extra["noise"], objective.kept).mask
    assert masks.sum(1).tolist() == [48, 48, 48] and torch.equal(masks, batch.extra["noise"])
    alone = prepared(objective, batch_of([2], size=64)).extra["noise"]
    assert torch.equal(alone[0], masks[1]) and not torch.equal(masks[0], masks[1])
    grid = masks.reshape(3, 8, 8)
    neighbours = (grid[:, 1:] == grid[:, :-1]).float().mean()
    scattered = random_masking(torch.rand(200, 64), 16).mask.reshape(200, 8, 8)
    assert neighbours > (scattered[:, 1:] == scattered[:, :-1]).float().mean() + 0.05
    assert objective(batch).loss().isfinite()


def test_gradients_reach_everything_but_the_position_tables() -> None:
    objective = masked()
    objective(prepared(objective, batch_of([1, 2]))).loss().backward()
    without = {n for n, p in objective.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without == {"encoder.net.pos_embed"} and not objective.encoder.net.pos_embed.requires_grad


def test_overfits_eight_samples() -> None:
    torch.manual_seed(0)
    objective = masked(ratio=0.5)
    pictures = ribs_and_blob(8, seed=0)[0].expand(-1, 3, -1, -1)
    batch = prepared(objective, batch_of(list(range(8))).with_(views={"image": pictures}))
    optimiser, losses = torch.optim.AdamW(objective.parameters(), lr=3e-3), []
    for _ in range(80):
        loss = objective(batch).loss()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]


def test_contract_export_and_seeded_decoder() -> None:
    encoder = tiny()
    objective = masked(encoder=encoder)
    check_objective(objective)
    assert objective.exported() == {"encoder": encoder} and list(objective.views) == ["image"]
    with pytest.raises(Unsupported, match="makes no predictions"):
        objective.predict(batch_of([1]))
    state = torch.random.get_rng_state()
    twin = masked(encoder=encoder)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in objective.state_dict().items())


def test_unexplained_variance_is_one_for_the_mean() -> None:
    objective = masked().eval()
    batch = prepared(objective, batch_of([1, 2]))
    hidden = random_masking(batch.extra["noise"], objective.kept).mask.bool()
    patches = F.unfold(batch.views["image"], 8, stride=8).transpose(1, 2)
    mean = patches[hidden].mean()
    nn.init.zeros_(objective.decoder.decoder_pred.weight)
    nn.init.constant_(objective.decoder.decoder_pred.bias, mean.item())
    assert torch.allclose(objective(batch).logs["unexplained_variance"], torch.ones(()), atol=1e-4)


@pytest.mark.parametrize("norm_target", [False, True])
def test_pictures(norm_target: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that returns the target itself must give the image back; visible patches are never touched."""
    objective = masked(norm_target=norm_target).eval()
    raw = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = batch_of([1, 2]).with_(views={"image": (raw - 0.4) / 0.2}, norm={"image": ((0.4,), (0.2,))})
    pictures = objective.reconstruct(batch)
    assert torch.allclose(pictures["image"], raw, atol=1e-6)
    mask = random_masking(prepared(objective, batch).extra["noise"], objective.kept).mask
    pixels = mask.reshape(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).bool().expand_as(raw)
    assert torch.allclose(pictures["reconstruction"][~pixels], raw[~pixels], atol=1e-6)
    assert torch.allclose(pictures["visible"][pixels], torch.tensor(0.4)) and pixels.float().mean() == 0.75
    target = F.unfold(batch.views["image"], 8, stride=8).reshape(2, 3, 64, 16).permute(0, 3, 2, 1).flatten(2)
    if norm_target:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    monkeypatch.setattr(objective.decoder, "forward", lambda *args, **kwargs: target)
    assert torch.allclose(objective.reconstruct(batch)["reconstruction"], raw, atol=1e-5)


def test_refusals() -> None:
    cnn = timm_encoder("resnet18", view={"size": 32})
    with pytest.raises(Unsupported, match="visible patches only"):
        masked(encoder=cnn)
    wrong = ({"mask": "blocks"}, "did you mean 'block'"), ({"ratio": 1.0}, "ratio"), ({"target": "hog"}, "hog")
    for options, said in wrong:
        with pytest.raises(HilumError, match=said):
            masked(**options)


def ribs_and_blob(n: int, *, seed: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Stripes and shading that carry no label, and a blob that does: (n, 1, size, size), and (n,) 1 for the right."""
    g = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, generator=g)

    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    curve = draw(-0.25, 0.25) * x * x + draw(-0.15, 0.15) * x
    ribs = draw(0.6, 1.2) * torch.sin(draw(9, 13) * (y + curve) + draw(0, 6.28))
    shading = draw(-1.5, 1.5) * x + draw(-0.5, 0.5) * y + draw(-0.5, 0.5)  # hides the side from the mean brightness
    right = (torch.rand(n, 1, 1, generator=g) < 0.5).float()
    centre_x, centre_y, radius = (2 * right - 1) * draw(0.3, 0.7), draw(-0.6, 0.6), draw(0.14, 0.2)
    blob = torch.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * radius**2))
    picture = ribs + shading + blob + 0.1 * torch.randn(n, size, size, generator=g)
    return picture[:, None], right.flatten()


def auc(label: Tensor, score: Tensor) -> float:
    rank = score.argsort().argsort().double() + 1
    positive = label.bool()
    p, n = positive.sum(), (~positive).sum()
    return float((rank[positive].sum() - p * (p + 1) / 2) / (p * n))


def linear_probe(encoder: Any) -> float:
    """Ridge regression on CLS, fitted on 400 pictures, AUC on 400 others."""
    columns, labels = [], []
    for seed in (1, 2):
        x, y = ribs_and_blob(400, seed=seed)
        with torch.no_grad():
            columns.append(encoder.eval()(x).prefix[:, 0].double())
        labels.append(y.double())
    mean, std = columns[0].mean(0), columns[0].std(0)
    fit, test = (torch.cat([(c - mean) / std, torch.ones(400, 1, dtype=torch.float64)], 1) for c in columns)
    ridge = fit.T @ fit + 0.4 * torch.eye(fit.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(ridge, fit.T @ (2 * labels[0] - 1))
    return auc(labels[1], test @ weights)


def test_toy_run_learns_what_random_weights_do_not_know() -> None:
    """arXiv 2210.12843: below the score of each image's visible-patch mean; probe AUC up by 0.1 or more."""
    torch.manual_seed(0)
    view, small = {"size": 32, "channels": 1}, {"patch_size": 8, "depth": 3, "embed_dim": 64, "num_heads": 4}
    encoder = timm_encoder("vit_tiny_patch16_224", view=view, positions="sincos-fixed", **small)
    at_random = linear_probe(encoder)
    settings = {"ratio": 0.5, "decoder_depth": 1, "decoder_width": 64, "decoder_heads": 4}
    objective = Masked(Parts({"image": encoder}, views={"image": view}), **settings).train()
    images, g, steps = ribs_and_blob(2048, seed=3)[0], torch.Generator().manual_seed(4), 250
    optimiser = torch.optim.AdamW(objective.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * min((step + 1) / 40, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        rows = torch.randint(0, len(images), (64,), generator=g)
        noise = torch.rand(64, 16, generator=g)
        loss = objective(Batch(views={"image": images[rows]}, extra={"noise": noise})).loss()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    unseen, noise = ribs_and_blob(256, seed=5)[0], torch.rand(256, 16, generator=g)
    with torch.no_grad():
        error = objective.eval()(Batch(views={"image": unseen}, extra={"noise": noise})).loss().item()
    hidden = random_masking(noise, 8).mask
    patches = F.unfold(unseen, 8, stride=8).transpose(1, 2)
    guess = (patches.mean(-1) * (1 - hidden)).sum(1) / (1 - hidden).sum(1)
    baseline = ((patches - guess[:, None, None]).square().mean(-1) * hidden).sum() / hidden.sum()
    assert error < 0.5 * baseline.item()
    assert linear_probe(encoder) >= at_random + 0.1
