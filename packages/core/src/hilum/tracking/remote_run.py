"""One run in an MLflow store: found or made, taken up again, and what it already holds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hilum.tracking.outbox import LOG, Action, calm
from hilum.tracking.provenance import Names, is_dead, process_tags

REQUEST_CHARS = 150_000  # MLflow takes 1 MB a request; a character may need six bytes there

Point = tuple[str, float, int, int]  # name, value, step, time in ms


def _portions(items: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """At most 100 entries and ``REQUEST_CHARS`` a request."""
    portion: dict[str, str] = {}
    for key, value in items.items():
        if portion and (len(portion) == 100 or sum(map(len, portion.values())) + len(value) > REQUEST_CHARS):
            yield portion
            portion = {}
        portion[key] = value
    if portion:
        yield portion


class RemoteRun:
    """``load`` imports and returns mlflow; ``run_id`` None makes a new run. The actions are for an ``Outbox``."""

    def __init__(self, load: Callable[[], Any], *, uri: str, experiment: str, name: str) -> None:
        self.load, self.uri, self.experiment, self.name = load, uri, experiment, name
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self.resumed_from: int | None = None
        self.metric_names, self.param_names = Names(), Names()
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.last: dict[str, tuple[int, str]] = {}

    @property
    def is_local(self) -> bool:
        """A file, not a server."""
        return self.uri.startswith(("sqlite:", "file:")) or "://" not in self.uri

    def connect(self) -> tuple[Any, str]:
        """Finds or makes the experiment and the run: (client, run id)."""
        mlflow, location = self.load(), None  # outside calm: the import sets the levels of its loggers
        if self.uri.startswith("sqlite:"):
            folder = Path(self.uri.partition("?")[0].removeprefix("sqlite:///")).resolve().parent
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):  # the client would try for minutes
                raise PermissionError("its folder is not writable")
            location = (folder / "mlartifacts").as_uri()
        with calm():
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                try:
                    client.create_experiment(self.experiment, artifact_location=location)
                except Exception as error:  # two processes may have asked at once
                    if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                        raise
                found = client.get_experiment_by_name(self.experiment)
            if found.lifecycle_stage != "active":
                raise ValueError(f"experiment {self.experiment!r} was deleted there; restore it or use another name")
            run = self._find(client)
            if run is None:
                tags = process_tags() | ({"hilum.previous_run": self.run_id} if self.run_id else {})
                run = client.create_run(found.experiment_id, tags=tags, run_name=self.name)
                self.tags = dict(run.data.tags)
            else:
                self._resume(client, run)
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
        return client, run.info.run_id

    def _find(self, client: Any) -> Any:
        try:
            run = client.get_run(self.run_id) if self.run_id else None
        except Exception as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if self.run_id and (run is None or run.info.lifecycle_stage != "active"):
            LOG.warning("run %s is not in the tracking store: a new one is begun", self.run_id)
            return None
        return run

    def _resume(self, client: Any, run: Any) -> None:
        """Takes up what the store knows of the run: steps, parameters, names."""
        self.tags, self.params = dict(run.data.tags), dict(run.data.params)
        latest = {metric.key: metric for metric in run.data._metric_objs}  # the only form that has the steps
        self.last = {key: (metric.step, repr(metric.value)) for key, metric in latest.items()}
        for names, kind, used in ((self.metric_names, "metric", latest), (self.param_names, "param", self.params)):
            names.update({self.tags.get(f"hilum.{kind}.{key}", key): key for key in used})
        step = self.resumed_from
        if step is None and run.info.status != "FINISHED":
            step = max((step for step, _ in self.last.values()), default=None)
        tags = process_tags() | ({} if step is None else {"hilum.resumed_from": str(step)})
        self.tagging(tags)(client, run.info.run_id)  # first: no sweeper may see it running under the dead process
        client.update_run(run.info.run_id, status="RUNNING")

    def sweep(self, client: Any, run_id: str) -> None:
        """Runs of this experiment whose process on this host is gone are ended as KILLED, with a tag."""
        for run in client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'"):
            if run.info.run_id != run_id and is_dead(run.data.tags):
                client.set_tag(run.info.run_id, "hilum.swept", run_id)
                client.set_terminated(run.info.run_id, "KILLED")

    def tagging(self, tags: Mapping[str, str]) -> Action:
        """Tags, those that are new or differ."""

        def action(client: Any, run_id: str) -> None:
            entities = self.load().entities
            for portion in _portions({key: text for key, text in tags.items() if self.tags.get(key) != text}):
                client.log_batch(run_id, tags=[entities.RunTag(*pair) for pair in portion.items()])
                self.tags |= portion

        return action

    def measuring(self, points: list[Point]) -> Action:
        """Metrics; a name's steps only rise, inf becomes nan, and tags say what was left out or changed."""

        def action(client: Any, run_id: str) -> None:
            metric, sent, last, tags, repeated = self.load().entities.Metric, [], dict(self.last), dict[str, str](), 0
            for name, value, step, stamp in points:
                key = self.metric_names[name]
                if key != name:
                    tags[f"hilum.metric.{key}"] = name
                seen, shown = last.get(key), value if math.isfinite(value) else math.nan
                if seen and (step < seen[0] or seen == (step, repr(shown))):
                    repeated += 1
                    continue
                last[key] = (step, repr(shown))
                if not math.isfinite(value):
                    tag = f"hilum.nonfinite.{key}"
                    known = [part for part in tags.get(tag, self.tags.get(tag, "")).split(", ") if part]
                    if not any(part.startswith(f"{value} ") for part in known):
                        tags[tag] = ", ".join([*known, f"{value} from step {step}"])
                sent.append(metric(key, shown, stamp, step))
            client.log_batch(run_id, metrics=sent)
            self.last = last
            if repeated:
                tags["hilum.repeated"] = str(int(self.tags.get("hilum.repeated", "0")) + repeated)
            self.tagging(tags)(client, run_id)

        return action

    def setting(self, items: Mapping[str, str]) -> Action:
        """Parameters; MLflow refuses another value for a known one, so that becomes the tag ``hilum.changed.NAME``."""

        def action(client: Any, run_id: str) -> None:
            param, named = self.load().entities.Param, {self.param_names[name]: text for name, text in items.items()}
            for portion in _portions({key: text for key, text in named.items() if key not in self.params}):
                client.log_batch(run_id, params=[param(*pair) for pair in portion.items()])
                self.params |= portion
            tags = {f"hilum.changed.{key}": text for key, text in named.items() if self.params[key] != text}
            tags |= {f"hilum.param.{key}": name for name in items if (key := self.param_names[name]) != name}
            self.tagging(tags)(client, run_id)

        return action

    def using(self, name: str, *, digest: str, context: str, profile: str) -> Action:
        """A dataset: the store shows 36 characters of its digest, the source holds all of them and nothing else."""

        def action(client: Any, run_id: str) -> None:
            entities, source = self.load().entities, json.dumps({"digest": digest})
            dataset = entities.Dataset(name[:500], digest[:36], source_type="hilum", source=source, profile=profile)
            tags = [entities.InputTag("mlflow.data.context", context)]
            client.log_inputs(run_id, datasets=[entities.DatasetInput(dataset, tags)])

        return action
