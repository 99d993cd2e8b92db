"""``hilum export``: a model that leaves, with its preprocessing, checked against the one that was trained."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hilum.core.errors import HilumError, Unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from hilum.core.types import Pixels
    from hilum.verbs.deployed import Deployed
    from hilum.verbs.loading import LoadedModel

TOLERANCE = {"onnx": 1e-4, "safetensors": 1e-6}  # largest difference of a score
GRAPH = "model.onnx"


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how far its scores are from the trained model's on how many images."""

    folder: Path
    to: str
    files: tuple[str, ...]
    max_abs_difference: float
    real: int
    random: int
    exit_code: int = 0


def export(
    run: Path,
    *,
    to: Literal["onnx", "safetensors"] = "safetensors",
    out: Path,
    checkpoint: str = "best",
    data: Path | None = None,
    without_real_samples: bool = False,
) -> ExportResult:
    """Write a run's model with its preprocessing and a model card into a new folder, and check it there.

    The export is read back and compared with the trained model on 8 validation images of the run's study (compared in
    memory, never shipped) and 8 random ones (shipped with their expected outputs). What disagrees is not written, and
    neither is a graph that could not be compared on 8 real images.

    Args:
        run: folder of a run
        to: safetensors (for hilum) or onnx (one graph from modality values to scores)
        out: folder to write; it must not hold anything yet
        checkpoint: best or last
        data: the run's study, where it is no longer at the place the run remembers
        without_real_samples: write the graph although fewer than 8 real images could be compared; its card says so
    """
    import torch

    from hilum.core.checkpoint import write_json
    from hilum.core.objective import Objective
    from hilum.verbs import deployed, model_card
    from hilum.verbs.export_samples import EACH, compare, random_examples, real_examples, write_samples
    from hilum.verbs.loading import load_model

    if to not in TOLERANCE:
        raise HilumError(f"cannot export to {to!r}", fix="--to onnx or --to safetensors")
    out = _free(Path(out).absolute())
    model = load_model(run, checkpoint=checkpoint)
    if to == "onnx" and type(model.objective).predict is Objective.predict:
        raise Unsupported(
            f"an ONNX graph ends in scores and {type(model.objective).__name__} makes none", where=str(run),
            fix="fine-tune it first, or hilum export RUN --to safetensors",
        )  # fmt: skip
    whole = deployed.Deployed.of(model)
    real, notes = real_examples(model, whole, data=data, graph=to == "onnx")
    if len(real) < EACH and to == "onnx":
        if not without_real_samples:
            raise HilumError(
                f"a graph is checked on {EACH} real images and {len(real)} could be compared: {' '.join(notes)}",
                where=str(data if data is not None else model.study_path),
                fix="--data STUDY names the run's study; --without-real-samples writes the graph all the same",
            )
        notes.append(
            f"Written with --without-real-samples: agreement was shown on {len(real)} real images, not {EACH}."
        )
    examples = [*real, *random_examples(whole)]
    with _staged(out) as folder, torch.no_grad():
        score = _write_onnx(model, whole, folder) if to == "onnx" else _write_safetensors(model, folder)
        parity = {
            "to": to,
            "without_real_samples": to == "onnx" and len(real) < EACH,
            **compare(examples, score, tolerance=TOLERANCE[to], notes=notes, where=str(out)),
        }
        write_json(folder / "parity.json", parity)
        write_samples(folder / "samples.safetensors", [e for e in examples if e.kind == "random"])
        card = model_card.model_card(model, whole.preprocessing, to=to, parity=parity)
        (folder / "README.md").write_text(card, encoding="utf-8")
    files = tuple(sorted(p.name for p in out.iterdir()))
    worst, counts = parity["max_abs_difference"], parity["counts"]
    print(f"{to}: {out} holds {', '.join(files)}")
    print(
        f"differs from the trained model by {worst:.2g} at most, on {counts['real']} real and {counts['random']} random images"
    )
    for line in (*parity["notes"], *_notice(model)):
        print(f"note: {line}")
    return ExportResult(out, to, files, worst, counts["real"], counts["random"])


def _write_safetensors(model: LoadedModel, folder: Path) -> Callable[[Pixels], Tensor]:
    """Writes the folder, reads it back and returns what scores an image with it."""
    import torch

    from hilum.verbs.deployed import load_deployed, save_deployed
    from hilum.verbs.export_samples import outputs

    save_deployed(model, folder)
    back = load_deployed(folder)
    ours, theirs = model.objective.state_dict(), back.objective.state_dict()
    if changed := [name for name in ours if not torch.equal(ours[name].cpu(), theirs[name])]:
        raise HilumError(
            f"{len(changed)} tensors came back changed, e.g. {changed[0]}", fix="nothing was written; report this"
        )
    return lambda pixels: outputs(back, pixels)


def _write_onnx(model: LoadedModel, whole: Deployed, folder: Path) -> Callable[[Pixels], Tensor]:
    import torch

    from hilum.core.checkpoint import write_json
    from hilum.verbs import onnx_graph
    from hilum.verbs.deployed import PREPROCESSING
    from hilum.verbs.export_samples import graph_inputs
    from hilum.verbs.model_card import metadata

    onnx_graph.write_graph(model.objective, whole.preprocessing, folder / GRAPH, about=metadata(model))
    write_json(folder / PREPROCESSING, whole.preprocessing.to_json())
    session = onnx_graph.open_graph(folder / GRAPH)

    def score(pixels: Pixels) -> Tensor:
        values, lo, hi = graph_inputs(pixels)
        return onnx_graph.run_graph(session, values, torch.tensor([(lo + hi) / 2]), torch.tensor([hi - lo]))[0]

    return score


def _notice(model: LoadedModel) -> Iterator[str]:
    """Each non-commercial licence, once."""
    from hilum.verbs.model_card import licences, non_commercial

    for licence, source in dict.fromkeys((licence, source) for _, licence, source in non_commercial(licences(model))):
        yield f"these weights started from {source}, licensed {licence}: not for commercial use"


def _free(out: Path) -> Path:
    """``out`` where nothing would be overwritten."""
    if out.is_dir() and not any(out.iterdir()):
        return out
    if out.exists() or out.is_symlink():
        raise HilumError(
            "there is something at --out already", where=str(out), fix="name a folder that does not exist yet"
        )
    return out


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name when everything in it is on disk, and is gone otherwise."""
    folder = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        folder.mkdir(parents=True)
        yield folder
        for path in (*folder.iterdir(), folder):
            _sync(path)
        folder.replace(out)
        _sync(out.parent)
    except HilumError:
        raise
    except Exception as error:  # safetensors and onnx wrap the system's errors in their own
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            raise HilumError(
                "the disk is full", where=str(out.parent), fix="free space; nothing was written"
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise HilumError(
                f"{out.name} cannot be written: {os.strerror(number)}", where=str(out.parent), fix="name another --out"
            ) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
