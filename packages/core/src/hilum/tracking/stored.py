"""What an earlier run handed on, brought back from its tracking store: ``runs:/RUN_ID[/exported/NAME]``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError
from hilum.tracking.outbox import UPLOAD_WAIT_S, brief, calm, public
from hilum.tracking.tracker import load_mlflow, store_uri

SCHEME = "runs:/"
_ADDRESS = re.compile(r"runs:/(?P<run>\w[\w-]*)(?:/(?P<path>[\w./ -]+?))?(?:#(?P<part>[\w.-]+))?")
_FORM = "runs:/RUN_ID, runs:/RUN_ID#NAME or runs:/RUN_ID/exported/NAME.safetensors"


def fetch_exported(address: str, into: Path, *, study: Path) -> str:
    """Copy the safetensors and card that ``address`` names to ``into/RUN_ID``; returns ``FOLDER#NAME``.

    The store is the tracker's (``$MLFLOW_TRACKING_URI``, else that of ``study``). Only exported weights are taken: a
    checkpoint, a pickle or a folder is refused.
    """
    run_id, name = _parse(address)
    uri = store_uri(study)
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise HilumError(
            f"{address} cannot be looked up: there is no tracking store", where=public(uri),
            fix="set MLFLOW_TRACKING_URI to the store that the run was logged to",
        )  # fmt: skip
    client, folder = _client(uri), into / run_id
    folder.mkdir(parents=True, exist_ok=True)
    known = _exported(client, run_id, address, uri)
    for file in (f"exported/{name}.safetensors", f"exported/{name}.json"):
        if file not in known:
            names = sorted(k[len("exported/") :].removesuffix(".safetensors") for k in known if k.endswith("tensors"))
            raise HilumError(
                f"that run has no artifact {file}", where=address,
                fix=f"it holds {', '.join(names)}" if names else "runs hand on their weights when they finish",
            )  # fmt: skip
        try:
            with calm(UPLOAD_WAIT_S):
                got = Path(client.download_artifacts(run_id, file, str(folder)))
        except Exception as error:  # each kind of artifact store raises its own
            raise HilumError(f"{file} could not be fetched: {brief(error)}", where=address) from None
        got.replace(folder / Path(file).name)
    return f"{folder}#{name}"


def _parse(address: str) -> tuple[str, str]:
    """Run id and name of the export."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise HilumError(f"{address!r} is no address of a run's weights", where="init", fix=_FORM)
    folder, _, file = (match["path"] or "exported").rpartition("/")
    name = match["part"] or file.removesuffix(".safetensors")
    if (folder, file) == ("", "exported"):
        return match["run"], match["part"] or "encoder"
    if folder != "exported" or (match["part"] and match["part"] != name) or "." in name:
        what = "only exported weights (safetensors) are loaded from a tracking store"
        raise HilumError(what, where=address, fix=_FORM)
    return match["run"], name


def _client(uri: str) -> Any:
    try:
        mlflow = load_mlflow()
    except ImportError as error:
        raise HilumError("mlflow is not installed", where="init", fix="pip install mlflow") from error
    return mlflow.MlflowClient(tracking_uri=uri)


def _exported(client: Any, run_id: str, address: str, uri: str) -> set[str]:
    """Paths of the run's artifacts below ``exported/``."""
    try:
        with calm():
            return {item.path for item in client.list_artifacts(run_id, "exported") if not item.is_dir}
    except Exception as error:
        fix = "copy the run's id from its page or run.json, and check MLFLOW_TRACKING_URI"
        raise HilumError(f"{address} was not found: {brief(error)}", where=public(uri), fix=fix) from None
