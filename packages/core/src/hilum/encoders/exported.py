"""What a run hands on: ``NAME.safetensors`` beside ``NAME.json`` (FORMATS 11)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hilum.core.checkpoint import file_sha256, write_atomically, write_json
from hilum.core.errors import HilumError
from hilum.core.types import EncoderSpec


@dataclass(frozen=True, slots=True)
class Exported:
    """Tensors under original keys, their card, and the hash of the file they were read from."""

    tensors: dict[str, Tensor]
    card: Mapping[str, Any]
    sha256: str


def save_exported(folder: Path | str, name: str, module: nn.Module, *, card: Mapping[str, Any]) -> Path:
    """Write ``module``'s state and its card; returns the path of the tensors.

    ``card`` adds to what an encoder tells of itself (registry id, kwargs, input, mean, std, value range, licence):
    data and split digests, licence of the data, the recipe.
    """
    return save_tensors(folder, name, module.state_dict(), card={**describe(module), **card})


def save_tensors(folder: Path | str, name: str, tensors: Mapping[str, Tensor], *, card: Mapping[str, Any]) -> Path:
    """Write ``tensors`` and their card; returns the path of the tensors.

    Both files are replaced atomically; the card is written first and names the old hash too, so that a kill between
    the two leaves a pair that still loads.
    """
    from safetensors.torch import save

    path = Path(folder) / f"{name}.safetensors"
    data = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, {"format": "pt"})
    entry = {**card, "name": name, "format": 1, "sha256": hashlib.sha256(data).hexdigest()}
    if path.is_file():
        entry["previous_sha256"] = file_sha256(path)
    write_json(path.with_suffix(".json"), entry)
    write_atomically(path, lambda stream: _write(stream, data))
    return path


def describe(module: nn.Module) -> dict[str, Any]:
    """An encoder's part of its card; what other modules tell through ``made_with``."""
    made_with = dict(getattr(module, "made_with", None) or {})
    entry: dict[str, Any] = {"registry_id": made_with.pop("name", None), "kwargs": made_with}
    spec = getattr(module, "spec", None)
    if isinstance(spec, EncoderSpec):
        entry |= {
            "input": {"kind": spec.kind, "channels": spec.in_channels, "patch": spec.patch,
                      "grid": getattr(module, "grid", None)},
            "embed_dim": spec.embed_dim, "mean": spec.mean, "std": spec.std, "value_range": spec.value_range,
            "licence": spec.licence, "source": spec.source,
        }  # fmt: skip
    return entry


def load_exported(folder: Path | str, name: str = "encoder") -> Exported:
    """Read what :func:`save_exported` wrote; a hash that is not the card's is an error."""
    path = Path(folder) / f"{name}.safetensors"
    if not path.is_file():
        known = sorted(p.stem for p in Path(folder).glob("*.safetensors"))
        raise HilumError(
            f"there is no exported {name!r}",
            where=Path(folder).name,
            fix=f"it holds {', '.join(known)}" if known else "",
        )
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HilumError(f"{name}.json cannot be read", where=Path(folder).name, fix="export the run again") from error
    digest = file_sha256(path)
    if digest not in (card.get("sha256"), card.get("previous_sha256")):
        raise HilumError(
            f"{path.name} is not the file its card describes (its hash differs)", where=Path(folder).name,
            fix="copy both files again, or export the run again",
        )  # fmt: skip
    return Exported(read_safetensors(path), card, digest)


def has_card(path: Path) -> bool:
    """Whether a file of tensors has a card of ours beside it (and not some other program's JSON)."""
    try:
        card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(card, dict) and {"sha256", "registry_id", "format"} <= card.keys()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name; a damaged file is a :class:`HilumError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise HilumError(
            f"{path.name} cannot be read as safetensors: {error}", fix="download or export it again"
        ) from error
    return tensors


def _write(stream: Any, data: bytes) -> None:
    stream.write(data)
