"""The transformer block against timm's, the pixel decoder against arXiv 2210.12843's steps written out."""

from functools import partial

import pytest
import timm.models.vision_transformer as vit
import torch
import torch.nn.functional as F
from torch import nn

from hilum.core.errors import HilumError
from hilum.parts.masking import gather_tokens, random_masking
from hilum.parts.positions import sincos_2d
from hilum.parts.predictors import PixelDecoder, TransformerBlock


def test_block_equals_timm_with_the_same_weights():
    theirs = vit.Block(24, 4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    ours = TransformerBlock(24, 4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, 24)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def test_mask_hides_tokens():
    block, x = TransformerBlock(16, 2), torch.randn(1, 5, 16)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[:, 4] = False
    mask[4, 4] = True
    changed = x.clone()
    changed[:, 4] += 1.0
    assert torch.equal(block(x, mask=mask)[:, :4], block(changed, mask=mask)[:, :4])
    assert not torch.equal(block(x)[:, :4], block(changed)[:, :4])
    with pytest.raises(HilumError, match="heads"):
        TransformerBlock(10, 3)


def plain_decoder(d, tokens, cls, ids_restore):
    """arXiv 2210.12843, pretraining steps 3 and 4, image by image with lists."""
    out = []
    for b in range(len(tokens)):
        visible = iter(F.linear(tokens[b], d["decoder_embed.weight"], d["decoder_embed.bias"]))
        shuffled = list(visible)
        shuffled += [d["mask_token"][0, 0]] * (ids_restore.shape[1] - len(shuffled))
        rows = [F.linear(cls[b, 0], d["decoder_embed.weight"], d["decoder_embed.bias"])]
        rows += [shuffled[i] for i in ids_restore[b].tolist()]
        x = torch.stack(rows)[None] + sincos_2d(32, (3, 4), prefix=1)
        for k in range(2):
            block = vit.Block(32, 4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
            prefix = f"decoder_blocks.{k}."
            block.load_state_dict({n.removeprefix(prefix): v for n, v in d.items() if n.startswith(prefix)})
            x = block(x)
        x = F.layer_norm(x, (32,), d["decoder_norm.weight"], d["decoder_norm.bias"], 1e-6)
        out.append(F.linear(x, d["decoder_pred.weight"], d["decoder_pred.bias"])[0, 1:])
    return torch.stack(out)


def test_pixel_decoder_is_card_28():
    torch.manual_seed(0)
    decoder = PixelDecoder(20, (3, 4), 2, 3, depth=2, width=32, heads=4)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    masking = random_masking(torch.rand(3, 12), 4)
    tokens, cls = torch.randn(3, 4, 20), torch.randn(3, 1, 20)
    out = decoder(tokens, masking.ids_restore, prefix_BPE=cls)
    assert out.shape == (3, 12, 12)
    assert torch.allclose(out, plain_decoder(decoder.state_dict(), tokens, cls, masking.ids_restore), atol=1e-5)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_predicting_only_some_patches_equals_their_rows_of_all_and_their_gradients(depth: int):
    torch.manual_seed(4)
    decoder = PixelDecoder(20, (3, 4), 2, 3, depth=depth, width=32, heads=4)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    masking = random_masking(torch.rand(3, 12), 4)
    tokens, cls = torch.randn(3, 4, 20), torch.randn(3, 1, 20)
    rows = masking.ids_hidden[..., None].expand(-1, -1, 12)
    gradients = []
    for ids in (None, masking.ids_hidden):
        decoder.zero_grad()
        out = decoder(tokens, masking.ids_restore, prefix_BPE=cls, ids_BM=ids)
        out = out.gather(1, rows) if ids is None else out
        out.sin().sum().backward()
        gradients.append([out.detach(), *(p.grad.clone() for p in decoder.parameters())])
    assert gradients[1][0].shape == (3, 8, 12)
    for whole, some in zip(*gradients, strict=True):
        assert torch.allclose(whole, some, atol=2e-5, rtol=1e-4)


def test_decoder_does_not_depend_on_the_order_of_visible_tokens():
    """Shuffling which visible token comes first, with ids_restore to match, changes nothing."""
    decoder = PixelDecoder(8, (2, 4), 2, 1, depth=1, width=16, heads=2, num_prefix=0)
    ids = torch.tensor([[5, 1, 6, 0, 2, 3, 4, 7]])
    other = torch.tensor([[6, 5, 1, 7, 4, 0, 2, 3]])
    full = torch.randn(1, 8, 8)
    out = [decoder(gather_tokens(full, i[:, :3]), i.argsort(1)) for i in (ids, other)]
    assert torch.allclose(*out, atol=1e-6)


def test_initialisation_and_what_trains():
    torch.manual_seed(0)
    decoder = PixelDecoder(64, (4, 4), 4, 3, depth=1, width=128, heads=4)
    names = dict(decoder.named_parameters())
    assert "decoder_pos_embed" not in names
    assert "decoder_pos_embed" in decoder.state_dict()
    for name, parameter in names.items():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        elif parameter.ndim == 2:
            bound = (6 / sum(parameter.shape)) ** 0.5
            assert bound * 0.95 < parameter.abs().max() <= bound
            assert abs(parameter.std() / (bound / 3**0.5) - 1) < 0.05
    assert abs(decoder.mask_token.std() / 0.02 - 1) < 0.3


def test_volumes_and_wrong_prefix():
    decoder = PixelDecoder(8, (2, 2, 3), (1, 2, 2), 1, depth=1, width=12, heads=2)
    restore = random_masking(torch.rand(2, 12), 5).ids_restore
    assert decoder(torch.randn(2, 5, 8), restore, prefix_BPE=torch.randn(2, 1, 8)).shape == (2, 12, 4)
    with pytest.raises(HilumError, match="0 prefix"):
        decoder(torch.randn(2, 5, 8), restore)
