"""Ends, kills, outages and refusals: a tracker never stops a run; and (slow) a real server."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import types
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from mlflow_store import artifact, closed_port, fetch, flaky, history, lines

from hilum.core.errors import HilumError
from hilum.tracking.remote_run import RemoteRun
from hilum.tracking.tracker import Tracker

# --- status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"), (SystemExit(0), "FINISHED"), (SystemExit(), "FINISHED"),
        (ValueError("x"), "FAILED"), (HilumError("x"), "FAILED"),
        (SystemExit(4), "FAILED"), (SystemExit("x"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED"), (SystemExit(130), "KILLED"),
    ],
)  # fmt: skip
def test_a_run_always_ends_with_the_right_status(begin: Any, error: BaseException | None, status: str) -> None:
    with contextlib.suppress(BaseException):  # noqa: SIM117
        with begin() as tracker:
            tracker.log_metrics({"loss": 1.0}, 1)
            if error is not None:
                raise error
    run = fetch(tracker)
    assert run.info.status == status and run.info.end_time and run.data.metrics == {"loss": 1.0}
    tracker.close("FAILED")
    tracker.set_tags({"late": 1})
    assert fetch(tracker).info.status == status and "hilum.late" not in fetch(tracker).data.tags


def test_a_signal_handler_that_closes_in_the_midst_of_sending_breaks_nothing(begin: Any) -> None:
    tracker = begin()
    calls: list[str] = []

    def interrupted(client: Any, run_id: str) -> None:
        calls.append(run_id)
        if len(calls) == 1:
            tracker.set_tags({"signal": 15})
            tracker.close("KILLED")

    tracker._post("signal", interrupted)
    assert len(calls) == 1 and fetch(tracker).data.tags["hilum.signal"] == "15"
    assert not tracker.closed and fetch(tracker).info.status == "RUNNING"
    tracker.close("KILLED")
    assert fetch(tracker).info.status == "KILLED"


def test_a_forked_worker_does_not_end_the_run(begin: Any) -> None:
    tracker = begin()
    child = os.fork()
    if child == 0:
        try:
            tracker.close("KILLED")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert fetch(tracker).info.status == "RUNNING"


def test_a_killed_process_leaves_a_run_that_the_next_one_ends(
    killed_run: tuple[Path, str, str], tracked_study: Path
) -> None:
    options: dict[str, Any] = {"study": tracked_study, "experiment": "killed", "run_name": "k"}
    stale = json.loads((tracked_study / "runs" / "killed" / "run.json").read_text())["run_id"]
    with Tracker.open(run_dir=tracked_study / "runs" / "next", **options) as tracker:
        client = tracker.outbox.link[0]  # type: ignore[index]
        swept = client.get_run(stale)
        assert swept.info.status == "KILLED" and swept.data.tags["hilum.swept"] == tracker.run_id
        with Tracker.open(run_dir=tracked_study / "runs" / "third", **options):
            assert fetch(tracker).info.status == "RUNNING"  # its process lives
    with Tracker.open(run_dir=tracked_study / "runs" / "killed", **options) as resumed:
        assert resumed.run_id == stale and fetch(resumed).info.status == "RUNNING"
    assert lines(resumed)[0]["metrics"] == {"loss": 1.0}


def test_a_new_store_is_quiet_safe_and_leaves_nothing_in_the_working_folder(killed_run: tuple[Path, str, str]) -> None:
    folder, out, err = killed_run
    assert out.split() == ["pickles", "false", "telemetry", "off", "true"] and err == ""
    assert {path.name for path in folder.iterdir()} >= {"mlflow.db", "mlartifacts", "runs"}
    assert not (folder / "mlruns").exists()


# --- a failing store


def test_a_server_that_is_down_stops_nothing(
    begin: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://eva:pass@127.0.0.1:{closed_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with begin(flush_s=1000.0) as tracker:
        for step in range(5):
            tracker.log_metrics({"loss": float(step)}, step)
        tracker.log_params({"a": 1})
        assert tracker.run_id is None
    assert [line["metrics"]["loss"] for line in lines(tracker)] == [0.0, 1.0, 2.0, 3.0, 4.0]
    messages = [record.getMessage() for record in caplog.records if record.name == "hilum.track"]
    assert len(messages) == 2 and "the run goes on" in messages[0]
    assert all(word in messages[1] for word in ("did not get", "metrics", "parameters", "status"))
    assert "pass" not in caplog.text and "eva" not in caplog.text


def test_an_outage_delays_and_loses_nothing(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    tracker = begin(flush_s=10.0)
    client = flaky(tracker, "log_batch", "get_run", "log_artifact")
    client.error = ConnectionError("no route")
    for step in range(200):
        now[0] += 10.0
        tracker.log_metrics({"loss": float(step)}, step)
    tracker.log_params({"a": 1})
    tracker.log_text("words", "note.txt")
    assert client.calls < 40  # waits grow: 2000 s of outage are not 200 attempts
    client.error = None
    now[0] += 700.0
    assert tracker.flush()
    assert history(tracker, "loss") == [(step, float(step)) for step in range(200)]
    assert fetch(tracker).data.params == {"a": "1"} and artifact(tracker, "note.txt") == b"words"


def test_a_request_the_server_refuses_holds_up_no_other(begin: Any, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

    with begin(flush_s=0.0) as tracker:
        client = flaky(tracker, "log_artifact")
        client.error = MlflowException("too large", error_code=INVALID_PARAMETER_VALUE)
        tracker.log_text("a", "refused.txt")
        assert client.calls == 1 and not tracker.outbox.letters
        client.error = MlflowException("disk of the artifact store is full")  # 500: may pass, but the server answers
        tracker.log_text("b", "stuck.txt")
        tracker.log_metrics({"loss": 1.0}, 1)
    run = fetch(tracker)
    assert run.info.status == "FINISHED" and run.data.metrics == {"loss": 1.0}
    assert "refused.txt" in caplog.text and "stuck.txt" in caplog.text


def test_a_full_disk_is_one_warning(begin: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Full(io.RawIOBase):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    with begin() as tracker:
        for step in range(3):
            tracker._lines = Full()
            tracker.log_metrics({"loss": 1.0 + step}, step)
    assert caplog.text.count("No space left on device") == 1 and len(history(tracker, "loss")) == 3


@pytest.mark.parametrize(
    "uri", ["file:./mlruns", "./mlruns", "sqlite:////proc/none/mlflow.db", "no-such://eva:pw@host/x"]
)
def test_a_wrong_address_is_one_clear_message(begin: Any, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(HilumError, match="tracking store cannot be used") as caught:
        begin()
    assert "MLFLOW_TRACKING_URI" in caught.value.fix and "pw" not in str(caught.value)


@pytest.mark.parametrize(("code", "stops"), [(401, True), (404, True), (500, False), (503, False), (429, False)])
def test_what_a_server_answers_decides(begin: Any, monkeypatch: pytest.MonkeyPatch, code: int, stops: bool) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        if stops:
            with pytest.raises(HilumError, match=str(code)):
                begin()
        else:
            with begin() as tracker:
                tracker.log_metrics({"loss": 1.0}, 1)
            assert lines(tracker)[0]["step"] == 1 and tracker.run_id is None
        server.shutdown()


def test_two_processes_that_make_one_experiment_at_once(begin: Any) -> None:
    tracker = begin()
    assert tracker.outbox.link is not None
    client, asked = tracker.outbox.link[0], list[str]()

    class Late:
        def __getattr__(self, name: str) -> Any:
            if name == "get_experiment_by_name" and not asked:
                return lambda *_: asked.append(name)  # None, as before the other process had made it
            return getattr(client, name)

    load = lambda: types.SimpleNamespace(MlflowClient=lambda **_: Late())
    second = RemoteRun(load, uri=tracker.run.uri, experiment=tracker.run.experiment, name="second")
    _, run_id = second.connect()
    assert asked and second.experiment_id == tracker.run.experiment_id and run_id != tracker.run_id
    client.set_terminated(run_id)
    client.delete_experiment(second.experiment_id)
    with pytest.raises(HilumError, match="deleted"):
        begin("another")


# --- a real server


@pytest.mark.slow
@pytest.mark.integration
def test_a_real_server(tracked_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    port, store = closed_port(), tmp_path / "server"
    store.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{store / 'm.db'}", "--serve-artifacts"]
    command += ["--artifacts-destination", str(store / "artifacts")]
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (store / "log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True, cwd=store)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            time.sleep(0.5)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        options: dict[str, Any] = {
            "study": tracked_study,
            "run_dir": tmp_path / "run",
            "experiment": "remote",
            "run_name": "r",
        }
        first = Tracker.open(**options)
        first.log_params({"long": "é" * 6000, "empty": "", **{f"k{i}": "ü" * 5000 for i in range(120)}})
        for step in range(1500):
            first.log_metrics({"loss": 1 / (step + 1), "AUROC (val)@0.5": math.nan if step == 7 else math.inf}, step)
        first.log_text("words", "notes/a.txt")
        first.log_dataset("nih", "ab" * 32, "train", {"rows": 10})
        first.close("FAILED")
        with Tracker.open(**options, resumed_from=1400) as second:
            for step in range(1401, 1510):
                second.log_metrics({"loss": 1 / (step + 1)}, step)
        assert second.run_id == first.run_id
        run = fetch(second)
        client = second.outbox.link[0]  # type: ignore[index]
        assert run.info.status == "FINISHED" and run.data.params["long"] == "é" * 6000
        assert {run.data.params[f"k{i}"] for i in range(120)} == {"ü" * 5000} and run.data.params["empty"] == ""
        pages = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss"))
        assert pages == [(step, 1 / (step + 1)) for step in range(1510)]
        assert math.isnan(run.data.metrics["AUROC _val_ at 0.5"])
        assert run.data.tags["hilum.nonfinite.AUROC _val_ at 0.5"] == "inf from step 0, nan from step 7"
        assert (run.data.tags["hilum.resumed_from"], run.data.tags["hilum.repeated"]) == ("1400", "99")
        names = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert names == {"notes", "environment"} and (store / "artifacts").exists()
        assert [item.dataset.digest for item in run.inputs.dataset_inputs] == ["ab" * 18]
        assert capfd.readouterr().out == ""

        third = Tracker.open(**{**options, "run_dir": tmp_path / "other"}, flush_s=0.5)
        os.killpg(server.pid, signal.SIGKILL)  # the server dies, the run does not
        server.wait()
        for step in range(20):
            third.log_metrics({"loss": float(step)}, step)
        third.close()
        assert len(lines(third)) == 20
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
