"""SimMIM against its formula."""

from __future__ import annotations

import torch

from hilum.core.objective import Parts, check_objective
from hilum.core.types import Batch, Meta, Progress, SampleKey
from hilum.encoders.build import timm_encoder
from hilum.objectives.simmim import SimMIM

VIEW = {"image": {"size": 32, "channels": 1}}


def build(**options: object) -> SimMIM:
    torch.manual_seed(0)
    tiny = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mask_token": True}
    encoder = timm_encoder("vit_tiny_patch16_224", view=VIEW["image"], **tiny)
    return SimMIM(Parts({"image": encoder}, views=VIEW), **options)  # type: ignore[arg-type]


def batch(n: int = 6, seed: int = 0) -> Batch:
    images = torch.randn(n, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch({"image": images}, meta=[Meta(f"{i:08x}", "g", key=SampleKey(0, 0, i)) for i in range(n)])


def test_loss_is_the_mean_absolute_error_of_hidden_pixels() -> None:
    objective = build(ratio=0.6, unit=2)
    check_objective(objective)
    ready = objective.prepare(batch(), Progress())
    output = objective(ready)
    mask = objective.mask(ready.extra["noise"])
    assert mask.sum(1).tolist() == [round(0.6 * 16) * 4] * 6
    # unit structure: every 2 x 2 block of the 8 x 8 grid is hidden or shown as one
    blocks = mask.view(6, 4, 2, 4, 2).float().mean((2, 4))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}
    predicted = objective.predictor(objective.encoder(ready.views["image"], fill=mask).tokens)
    total, count = 0.0, 0
    for b in range(6):
        for n in range(64):
            if mask[b, n]:
                y, x = divmod(n, 8)
                patch = ready.views["image"][b, 0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].reshape(-1)
                total += float((predicted[b, n] - patch).abs().mean())
                count += 1
    term = output.terms["reconstruction"]
    torch.testing.assert_close(float(term.mean), total / count, rtol=1e-5, atol=0)
    assert int(term.count) == int(objective.counts(ready)["reconstruction"]) == count


def test_visible_predictions_do_not_matter_and_masks_follow_the_sample() -> None:
    objective = build()
    whole = objective.prepare(batch(), Progress())
    part = batch()
    alone = objective.prepare(Batch({"image": part.views["image"][2:3]}, meta=part.meta[2:3]), Progress())
    assert torch.equal(alone.extra["noise"], whole.extra["noise"][2:3])
    hidden = objective.mask(whole.extra["noise"])
    before = objective(whole).terms["reconstruction"].sum
    objective.encoder.register_forward_hook(_shift_visible(hidden))
    assert torch.equal(objective(whole).terms["reconstruction"].sum, before)


def _shift_visible(hidden: torch.Tensor):  # type: ignore[no-untyped-def]
    def hook(module: object, args: object, output):  # type: ignore[no-untyped-def]
        output.tokens = output.tokens + (~hidden)[..., None] * 7.0
        return output

    return hook


def test_it_learns_one_batch() -> None:
    objective = build()
    ready = objective.prepare(batch(8), Progress())
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = objective(ready).terms["reconstruction"].mean
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
