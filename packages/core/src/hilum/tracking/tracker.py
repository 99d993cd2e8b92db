"""Tracking on the MLflow client, without its fluent state.

The store is ``$MLFLOW_TRACKING_URI``, else ``STUDY/mlflow.db`` with artifacts beside it. Every number also goes to
``RUN/logs/metrics.jsonl``. What cannot be sent waits in an outbox: a failing server never stops a run.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from hilum.core.errors import HilumError
from hilum.tracking.outbox import UPLOAD_WAIT_S, WAIT_S, Action, Outbox, brief, public, refused
from hilum.tracking.plots import read_series, training_svg
from hilum.tracking.provenance import environment, flatten, legal_name, plain, redact, refuse_private, sha, surroundings
from hilum.tracking.remote_run import Point, RemoteRun

PARAM_CHARS, TAG_CHARS = 6000, 8000  # MLflow cuts longer ones


def _rank() -> int:
    from hilum.parts.gather import rank

    launched = next((os.environ[key] for key in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if key in os.environ), "0")
    return rank() or (int(launched) if launched.isdigit() else 0)


def load_mlflow() -> Any:
    """The one import of mlflow; telemetry and unpickling are off unless the environment says otherwise."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow.entities

    return mlflow


def store_uri(study: Path) -> str:
    """``$MLFLOW_TRACKING_URI``, else the study's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(study / 'mlflow.db').resolve().as_posix()}"


class Tracker:
    """One MLflow run, made by ``open``; as a context manager it is always closed, and with the right status.

    No call raises because of the store. Files from a ``private/`` folder are refused (HilumError). Parameters, tags,
    names and texts lose absolute paths (``provenance.redact``; ``RUN/...`` and ``STUDY/...`` where they lie inside),
    then pass ``hook``. Files are uploaded as they stand, under a hash for a name if from outside RUN and STUDY.
    """

    def __init__(
        self, *, study: Path, run_dir: Path, experiment: str, run_name: str, hook: Callable[[str], str], flush_s: float
    ) -> None:
        self.study, self.run_dir, self.hook, self.flush_s = study, run_dir, hook, flush_s
        names = {"experiment": self.redact(experiment), "name": self.redact(run_name)}
        self.run = RemoteRun(load_mlflow, uri=store_uri(study), **names)
        self.outbox = Outbox(self._connect, retry_s=flush_s)
        self.closed = False
        self._pid = os.getpid()
        self._points: list[Point] = []
        self._flush_at = 0.0
        self._lines: Any = None

    @classmethod
    def open(
        cls,
        *,
        study: Path,
        run_dir: Path,
        experiment: str,
        run_name: str,
        run_id: str | None = None,
        tags: Mapping[str, object] | None = None,
        enabled: bool = True,
        resumed_from: int | None = None,
        hook: Callable[[str], str] = str,
        flush_s: float = 10.0,
    ) -> Tracker:
        """The run ``run_id``, else the one named in ``run_dir/run.json``, else a new one; on rank 0 and if ``enabled``.

        ``resumed_from`` is the step a resumed run goes on from (default: the last one the store has seen). Runs of
        this experiment whose process on this host is gone are set to KILLED. Raises HilumError where the store
        refuses (address, rights, schema); a server that cannot be reached is tried again while the run goes on.
        """
        if not enabled or _rank() != 0:
            return NullTracker(study=study, run_dir=run_dir, keep=_rank() == 0)
        self = cls(study=study, run_dir=run_dir, experiment=experiment, run_name=run_name, hook=hook, flush_s=flush_s)
        self.run.run_id, self.run.resumed_from = run_id or self._run_json().get("run_id"), resumed_from
        try:
            self.outbox.link = self._connect()
        except ImportError:
            self.outbox.warn("mlflow", "mlflow is not installed: numbers go to logs/metrics.jsonl alone")
            return NullTracker(study=study, run_dir=run_dir)
        except Exception as error:
            if refused(error) or self.run.is_local:
                fix = "set MLFLOW_TRACKING_URI to http://HOST:PORT or sqlite:///FILE, or unset it for STUDY/mlflow.db"
                what = f"the tracking store cannot be used: {brief(error)}"
                raise HilumError(what, where=public(self.run.uri), fix=fix) from None
            self.outbox.fail(error)
        atexit.register(self.close, "KILLED")
        packages = environment()
        self.log_text(packages, f"environment/packages-{sha(packages, 8)}.txt")
        self.set_tags({**surroundings(), "packages": sha(packages, 8), **(tags or {})})
        self._post("stale runs", self.run.sweep)
        return self

    @property
    def run_id(self) -> str | None:
        """The run's id in the store; None before the server first answered, and without a store."""
        return self.run.run_id

    def _connect(self) -> tuple[Any, str]:
        link = self.run.connect()
        known = {"run_id": link[1], "experiment_id": self.run.experiment_id, "tracking_uri": public(self.run.uri)}
        partial = self.run_dir / ".run.json.partial"
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self._run_json() | known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            partial.replace(self.run_dir / "run.json")
        except OSError as error:
            self.outbox.warn("run.json", f"run.json was not written ({error.strerror}): a resume would be a new run")
        return link

    def _run_json(self) -> dict[str, Any]:
        try:
            known = json.loads((self.run_dir / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _post(self, what: str, action: Action, *, wait_s: int = WAIT_S) -> None:
        if self.closed:
            self.outbox.warn("closed", f"the tracker is closed: {what} is not sent")
        else:
            self.outbox.put(what, action, wait_s=wait_s)
            self.flush()

    def _pack(self) -> None:
        for start in range(0, len(self._points), 1000):
            self.outbox.put("metrics", self.run.measuring(self._points[start : start + 1000]))
        self._points = []

    def flush(self, *, last: bool = False) -> bool:
        """Sends what waits; False where something is left, or a failure was too recent to try (``last``: try)."""
        if last or self.outbox.ready or len(self._points) >= 1000:  # else they wait here, to go in fewer requests
            self._pack()
        self._flush_at = time.monotonic() + self.flush_s
        return self.outbox.send(last=last)

    def redact(self, text: str) -> str:
        """What of a text may leave the machine."""
        return self.hook(redact(text, {"RUN": self.run_dir, "STUDY": self.study}))

    def _fit(self, value: object, limit: int, folder: str) -> str:
        text = plain(value, self.redact)
        if len(text) <= limit:
            return text
        file = f"{folder}/{sha(text, 16)}.txt"
        self.log_figure_bytes(text.encode("utf-8", "backslashreplace"), file)
        return f"sha256:{sha(text, 16)} ({len(text)} characters in {file})"

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Tags of the run; a name without a dot gets the prefix ``hilum.``, None is left out, long ones as params."""
        named = {legal_name(k if "." in k else f"hilum.{k}"): v for k, v in tags.items() if v is not None}
        self._post("tags", self.run.tagging({key: self._fit(value, TAG_CHARS, "tags") for key, value in named.items()}))

    def log_params(self, config: Mapping[str, Any]) -> None:
        """A nested configuration as dotted parameters. A value that differs from the run's first becomes the tag
        ``hilum.changed.NAME``; one longer than 6000 characters an artifact, with its hash as the parameter."""
        items = {self.redact(name): self._fit(leaf, PARAM_CHARS, "params") for name, leaf in flatten(config)}
        self._post("parameters", self.run.setting(items))

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Numbers of one step; sent every ``flush_s`` seconds.

        A name's steps only rise: what a resumed run repeats stays in metrics.jsonl and is counted in the tag
        ``hilum.repeated``. nan is kept, inf is sent as nan; both leave a tag ``hilum.nonfinite.NAME``.
        """
        stamp = time.time_ns() // 1_000_000
        try:
            numbers = {self.redact(name): float(value) for name, value in metrics.items()}
        except (TypeError, ValueError, RuntimeError) as error:
            raise HilumError(f"a metric is not a number: {error}", where=f"step {step}: {sorted(metrics)}") from None
        written = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
        self._append(json.dumps({"time": stamp, "step": int(step), "metrics": written}) + "\n")
        self._points += [(name, value, int(step), stamp) for name, value in numbers.items()]
        if time.monotonic() >= self._flush_at or len(self._points) >= 1000:
            self.flush()

    def _append(self, line: str) -> None:
        try:
            if self._lines is None:
                path = self.run_dir / "logs" / "metrics.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                self._lines = path.open("ab+", buffering=0)
                if self._lines.tell():  # a killed run may have left half a line
                    self._lines.seek(-1, os.SEEK_END)
                    line = line if self._lines.read(1) == b"\n" else "\n" + line
            if self._lines.write(line.encode()) != len(line.encode()):
                self._lines = None
        except OSError as error:
            self._lines = None
            self.outbox.warn("lines", f"logs/metrics.jsonl could not be written: {error.strerror}")

    def log_text(self, text: str, file: str) -> None:
        """A text, redacted, as the artifact ``file`` (``folder/name``)."""
        self.log_figure_bytes(self.redact(text).encode("utf-8", "backslashreplace"), file)

    def log_figure_bytes(self, data: bytes, file: str) -> None:
        """An encoded figure (PNG, SVG) or other bytes, as they stand, as the artifact ``file``."""
        folder, _, name = legal_name(self.redact(file)).rpartition("/")

        def action(client: Any, run_id: str) -> None:
            with tempfile.TemporaryDirectory() as spot:
                (Path(spot) / name).write_bytes(data)
                client.log_artifact(run_id, str(Path(spot) / name), folder or None)

        self._post(file, action, wait_s=UPLOAD_WAIT_S)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file or folder as it stands, below ``folder``; of what lies outside RUN and STUDY only single files."""
        refuse_private(path, (self.study, self.run_dir))
        place = legal_name(self.redact(folder)) if folder else None
        inside = any(path.resolve().is_relative_to(root.resolve()) for root in (self.run_dir, self.study))
        if not inside and path.is_dir():
            raise HilumError("a folder outside the run cannot be logged", where=str(path), fix="copy it into the run")

        def action(client: Any, run_id: str) -> None:
            with tempfile.TemporaryDirectory() as spot:
                hashed = Path(spot) / f"{sha(path.name, 8)}{path.suffix[:6]}"
                client.log_artifact(run_id, str(path if inside else shutil.copyfile(path, hashed)), place)

        self._post(f"artifact {path.name}" if inside else "artifact", action, wait_s=UPLOAD_WAIT_S)

    def log_model(self, folder: Path) -> None:
        """What the run's ``exported/`` holds (safetensors and their JSON) as the artifacts ``exported/``."""
        refuse_private(folder, (self.study, self.run_dir))
        send: Action = lambda client, run_id: client.log_artifacts(run_id, str(folder), "exported")
        self._post("model", send, wait_s=UPLOAD_WAIT_S)

    def log_curves(self) -> None:
        """Losses and validation numbers over the whole run, from ``logs/metrics.jsonl``, as ``plots/training.svg``."""
        path = self.run_dir / "logs" / "metrics.jsonl"
        if path.is_file():
            with path.open(encoding="utf-8", errors="replace") as lines:
                picture = training_svg(read_series(lines))
            if picture:
                self.log_figure_bytes(picture.encode(), "plots/training.svg")

    def log_dataset(self, name: str, digest: str, context: str, counts: Mapping[str, int]) -> None:
        """A dataset by name and digest (36 characters; all of it in the source), ``context`` train, val or test."""
        action = self.run.using(self.redact(name), digest=digest, context=context, profile=json.dumps(dict(counts)))
        self._post(f"dataset {context}", action)

    def close(self, status: str = "FINISHED") -> None:
        """Sends what waits and ends the run as FINISHED, FAILED or KILLED; once.

        Called by a signal's handler in the midst of sending it does nothing: the context manager, or the end of the
        process, closes the run then.
        """
        if self.closed or self.outbox.busy or os.getpid() != self._pid:  # a forked worker owns no run
            return
        self._pack()
        self.outbox.put("status", lambda client, run_id: client.set_terminated(run_id, status))
        if not self.flush(last=True):
            waiting = ", ".join(sorted({what for what, *_ in self.outbox.letters}))
            self.outbox.warn("close", f"the tracking store did not get: {waiting}; numbers are in the run's logs/")
        self._end()

    def _end(self) -> None:
        self.closed = True
        atexit.unregister(self.close)
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        code = error.code if isinstance(error, SystemExit) else None if error is None else 1
        killed = isinstance(error, KeyboardInterrupt) or code in (130, 143)
        status = "KILLED" if killed else "FAILED" if code else "FINISHED"
        if status == "FAILED":
            self.set_tags({"error": type(error).__name__})  # its message may hold a name
        self.close(status)


class NullTracker(Tracker):
    """The same calls without a store: other ranks, or tracking switched off; ``keep`` still writes metrics.jsonl."""

    def __init__(self, *, study: Path, run_dir: Path, keep: bool = True) -> None:
        super().__init__(study=study, run_dir=run_dir, experiment="", run_name="", hook=str, flush_s=math.inf)
        self.keep = keep

    def _post(self, what: str, action: Action, *, wait_s: int = WAIT_S) -> None:
        return None

    def flush(self, *, last: bool = False) -> bool:
        self._points = []
        return True

    def _append(self, line: str) -> None:
        if self.keep:
            super()._append(line)

    def close(self, status: str = "FINISHED") -> None:
        self._end()
