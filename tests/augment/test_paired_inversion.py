"""Predictions come back onto the source's grid: exactly where no pixel was resampled, else within a stated error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from augment.planes import SOURCE, draws

from hilum.augment.draw import Draw
from hilum.augment.inversion import average, onto_source
from hilum.augment.sampling import sample
from hilum.core.errors import HilumError
from hilum.core.types import SampleKey, ViewGeometry
from hilum.parts import geometry as geo


def view(
    matrix: np.ndarray, size: tuple[int, int], source: tuple[int, int] = SOURCE, flips: tuple[int, ...] = ()
) -> Draw:
    return Draw(matrix=matrix, size=size, source_size=source, flips=flips, key=SampleKey(0, 0, 0xABC))


H, W = SOURCE
EXACT = {
    "identity": view(geo.identity(2), SOURCE),
    "mirrored": view(geo.flip(SOURCE, 1), SOURCE, flips=(1,)),
    "upside down": view(geo.flip(SOURCE, 0), SOURCE, flips=(0,)),
    "half turn": view(geo.compose(geo.flip(SOURCE, 0), geo.flip(SOURCE, 1)), SOURCE, flips=(0, 1)),
    "quarter turn": view(geo.about_centre(geo.rotation(np.pi / 2), (W, H), SOURCE), (W, H)),
    "three quarters": view(geo.about_centre(geo.rotation(-np.pi / 2), (W, H), SOURCE), (W, H)),
    "transposed": view(
        geo.compose(geo.flip(SOURCE, 1), geo.about_centre(geo.rotation(np.pi / 2), (W, H), SOURCE)), (W, H)
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_flips_and_quarter_turns_come_back_bit_for_bit(name: str) -> None:
    x = torch.randn(3, *SOURCE)
    seen_by_net = sample(x, EXACT[name].matrix, EXACT[name].size)
    back, seen = onto_source(seen_by_net, EXACT[name])
    assert torch.equal(back, x) and (seen == 1).all()
    labels = (x * 5).to(torch.int64)
    back, seen = onto_source(
        sample(labels, EXACT[name].matrix, EXACT[name].size, nearest=True), EXACT[name], how="nearest"
    )
    assert torch.equal(back, labels) and back.dtype == torch.int64 and (seen == 1).all()


def test_all_eight_orientations_average_to_what_each_of_them_saw() -> None:
    x = torch.randn(2, *SOURCE)
    drawn = list(EXACT.values())
    mean, weight = average([sample(x, d.matrix, d.size) for d in drawn], drawn)
    assert torch.equal(mean, x) and (weight == len(drawn)).all()


def test_a_whole_pixel_crop_comes_back_where_it_was_taken() -> None:
    x = torch.randn(1, *SOURCE)
    drawn = view(geo.translation([-30, -50]), (40, 60))
    back, seen = onto_source(sample(x, drawn.matrix, drawn.size), drawn)
    inside = torch.zeros(1, *SOURCE, dtype=torch.bool)
    inside[:, 30:70, 50:110] = True
    assert torch.equal(back[inside], x[inside]) and (back[~inside] == 0).all() and torch.equal(seen, inside.float())


def smooth(period: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(120.0), torch.arange(160.0), indexing="ij")
    w = 2 * np.pi / period
    return torch.stack((torch.sin(w * y + 0.4) * torch.cos(w * x), torch.cos(w * (0.6 * x + 0.8 * y))))


def test_a_smooth_field_survives_rotation_zoom_and_crop() -> None:
    """Sines of period 40 px and amplitude 1, views of at most 1.5 source pixels a step: two filtered linear reads."""
    x, worst, covered = smooth(40.0), 0.0, 0.0
    for drawn in draws(
        20,
        config={"resized_crop": [0.4, 1.0], "hflip": 0.5, "vflip": 0.5, "affine": {"rotate": 45, "scale": [0.8, 1.4]}},
    ):
        back, seen = onto_source(sample(x, drawn.matrix, drawn.size, border="border"), drawn)
        # what lies outside the source entered pixels beside its edge
        use = seen[0] > 0.999
        use[:4], use[-4:], use[:, :4], use[:, -4:] = False, False, False, False
        worst = max(worst, float((back - x).abs()[:, use].max()))
        covered += float(use.float().mean())
    assert worst < 0.03 and covered > 20 * 0.2


def test_several_views_are_nearer_than_the_worst_of_them_and_cover_more() -> None:
    x = smooth(60.0)
    drawn = draws(12, config={"resized_crop": [0.4, 1.0], "hflip": 0.5, "rotate": 30})
    views = [sample(x, d.matrix, d.size, border="border") for d in drawn]
    mean, weight = average(views, drawn)
    single = [onto_source(v, d) for v, d in zip(views, drawn, strict=True)]
    assert (weight[0] > 0).float().mean() > max((s > 0).float().mean() for _, s in single)
    torch.testing.assert_close(weight, torch.stack([s for _, s in single]).sum(0), rtol=1e-6, atol=1e-6)
    firm = weight[0] > 3
    errors = [float((b - x).abs()[:, firm & (s[0] > 0.999)].max()) for b, s in single if (firm & (s[0] > 0.999)).any()]
    assert float((mean - x).abs()[:, firm].max()) < max(errors)
    noisy = [v + 0.5 * torch.randn(v.shape, generator=torch.Generator().manual_seed(i)) for i, v in enumerate(views)]
    one, _ = onto_source(noisy[0], drawn[0])
    many, _ = average(noisy, drawn)
    use = firm & (single[0][1][0] > 0.999)
    assert (many - x)[:, use].std() < 0.6 * (one - x)[:, use].std()


def test_unseen_pixels_are_zero_and_do_not_weigh() -> None:
    left = view(geo.translation([0, 0]), (H, W // 2))
    right = view(geo.translation([0, -W // 2]), (H, W // 2))
    mean, weight = average([torch.full((1, H, 80), 2.0), torch.full((1, H, 80), 6.0)], [left, right])
    assert (mean[..., :80] == 2).all() and (mean[..., 80:] == 6).all() and (weight == 1).all()
    mean, weight = average([torch.full((1, H, 80), 2.0)], [left])
    assert (mean[..., 80:] == 0).all() and (weight[..., 80:] == 0).all()


def test_a_prediction_with_a_stride_covers_the_same_extent() -> None:
    drawn = view(geo.flip(SOURCE, 1), SOURCE, flips=(1,))
    coarse = torch.nn.functional.avg_pool2d(smooth(80.0).flip(-1), 4)
    back, seen = onto_source(coarse, drawn)
    assert back.shape == (2, *SOURCE) and (seen[:, 2:-2, 2:-2] > 0.999).all()
    assert (back - smooth(80.0)).abs()[:, 2:-2, 2:-2].max() < 0.05


def test_mirrored_views_give_sided_channels_back_to_their_side() -> None:
    lungs = torch.zeros(3, *SOURCE)
    lungs[0, 20:80, 10:60], lungs[1, 20:80, 100:150], lungs[2, 50:90, 70:90] = 1.0, 1.0, 1.0  # right, left, heart
    plain, mirrored = EXACT["identity"], EXACT["mirrored"]
    told_by_net = sample(lungs, mirrored.matrix, SOURCE)[[1, 0, 2]]  # what lies on the left of the picture is "right"
    mean, _ = average([lungs, told_by_net], [plain, mirrored], swaps=[(1, 0)])
    assert torch.equal(mean, lungs)


def test_volumes_come_back_as_well() -> None:
    size = (6, 8, 10)
    x = torch.randn(1, *size)
    drawn = ViewGeometry(
        size=size, source_size=size, matrix=geo.compose(geo.flip(size, 0), geo.flip(size, 2)), flips=(0, 2)
    )
    back, seen = onto_source(sample(x, drawn.matrix, size), drawn)
    assert torch.equal(back, x) and (seen == 1).all()


def test_what_cannot_be_averaged_is_refused() -> None:
    plain, other = EXACT["identity"], view(geo.identity(2), (5, 5), source=(5, 5))
    x = torch.zeros(1, *SOURCE)
    for bad, message in (
        (lambda: average([x], [plain, plain]), "1 predictions and 2 draws"),
        (lambda: average([], []), "0 predictions"),
        (lambda: average([x, x], [plain, other]), "views of sources"),
        (lambda: average([x, x.expand(2, -1, -1)], [plain, plain]), "views of sources"),
        (lambda: average([x.long()], [plain]), "labels"),
        (lambda: onto_source(x[0], plain), "for a view of"),
        (lambda: onto_source(x, plain, how="cubic"), "unknown interpolation"),
    ):
        with pytest.raises(HilumError, match=message):
            bad()
    with pytest.raises(HilumError, match="sample 00000abc"):
        onto_source(x[0], plain)
    flat = view(np.diag([1.0, 0.0, 1.0]), SOURCE)
    with pytest.raises(HilumError, match="no inverse"):
        onto_source(x, flat)
