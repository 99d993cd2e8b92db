"""``hilum predict``: scores for a folder of new files, read by the same decode path as training."""

from __future__ import annotations

import csv
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hilum.core.errors import HilumError
from hilum.verbs.folder import RunFolder

OUTSIDE = "outside_selection"  # scored, but the recipe's ``where`` would not have trained on it


def predict(run: Path, root: Path, *, out: Path, checkpoint: str = "best", workers: int | None = None) -> Any:
    """Score every image below a folder; files that cannot be scored are in the table too, with the reason.

    A file that the recipe's ``where`` would not have trained on (another modality) is scored with the reason
    ``outside_selection``.

    Args:
        run: folder of a fine-tuned run
        root: folder of images (or one file)
        out: CSV to write: file, status, reason, score.FINDING...
        checkpoint: best or last
        workers: reading processes
    """
    RunFolder.open(run)  # before anything heavy is imported
    from hilum.core.checkpoint import write_atomically
    from hilum.data.index import index_archive
    from hilum.data.study import Study
    from hilum.data.where import select
    from hilum.verbs.inference import predict_batches
    from hilum.verbs.loading import inference_device, load_model
    from hilum.verbs.opening import Opened

    model = load_model(run, checkpoint=checkpoint, device=inference_device())
    root = Path(root).resolve()  # as the index names its files
    if not root.exists():
        raise HilumError(f"there is nothing at {root}", fix="give a folder of images")
    with tempfile.TemporaryDirectory(prefix="hilum-predict-") as scratch:
        folder = root
        if not root.is_dir():  # a folder of its own: not all that lies beside it
            folder = Path(scratch).resolve() / "one"
            folder.mkdir()
            shutil.copyfile(root, folder / root.name)
        key = Path(scratch) / "id.key"  # identities of new files are not kept: a throw-away key
        key.write_bytes(np.random.default_rng().bytes(32))
        key.chmod(0o600)
        result = index_archive(folder, Path(scratch) / "study", id_key=key, workers=workers)
        study = Study(Path(scratch) / "study")
        # unlike study.rows: two pictures under one UID must not train, but each has its own scores
        rows = np.flatnonzero(select(study.index, "status = 'indexed' and duplicate_of is null and role = 'image'"))
        meant = select(study.index, model.recipe["where"])
        copies = study.index.column("duplicate_of").to_pylist()
        scores: dict[str, list[float]] = {}
        failures: dict[str, str] = {}
        names: tuple[str, ...] = model.labels.names if model.labels else ()
        if len(rows):
            from hilum.verbs.assembly import open_rows

            opened = Opened(model, open_rows(model.recipe, study, {"all": rows}, labelled=False))
            for batch, prediction in predict_batches(
                model.objective, opened.loader("all"), opened.feed, device=model.device
            ):
                names = prediction.names or names
                for meta, row in zip(batch.meta, prediction.scores.float().tolist(), strict=True):
                    scores[meta.sample_id] = row
            failures = {b.sample_id: b.reason for account in opened.feed.evaluated for b in account.bad}
        lines = []
        ids = study.index.column("sample_id").to_pylist()
        for i, sample in enumerate(ids):
            path, member = study.file(i)
            status, reason = study.index.column("status")[i].as_py(), study.index.column("reason")[i].as_py()
            own = scores.get(sample) or scores.get(copies[i] or "")
            if own is None and status == "indexed":
                known = failures.get(sample) or failures.get(copies[i] or "")
                status, reason = ("failed", known) if known else ("not scored", reason or "not an image")
            elif own is not None:
                status, reason = "scored", "" if meant[i] else OUTSIDE
            told = path.relative_to(folder).as_posix() + (f"!{member}" if member else "")
            lines.append([told, status, reason or "", *(f"{s:.6f}" for s in own or [])])
        header = ["file", "status", "reason", *(f"score.{n}" for n in names)]

        def write(stream: Any) -> None:
            import io

            text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
            writer = csv.writer(text)
            writer.writerow(header)
            writer.writerows(line + [""] * (len(header) - len(line)) for line in lines)
            text.flush()
            text.detach()

        write_atomically(Path(out), write)
    scored, outside = (sum(line[at] == word for line in lines) for at, word in ((1, "scored"), (2, OUTSIDE)))
    print(
        f"{scored} of {len(lines)} files scored; {out} says why for the rest"
        if scored < len(lines)
        else f"{scored} files scored in {out}"
    )
    if outside:
        print(
            f"warning: {outside} of them are not what this model learned from ({model.recipe['where']}): "
            f"their scores mean nothing; the table says {OUTSIDE}"
        )
    result_code = 0 if scored else 1

    class Predicted:
        exit_code = result_code
        counts = result.counts

    return Predicted()
