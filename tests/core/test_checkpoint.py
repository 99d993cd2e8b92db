"""Checkpoints survive kills, corruption, hostile files and full disks."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import subprocess
import sys
import time
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hilum.core.checkpoint import file_sha256, load_checkpoint, save_checkpoint, write_atomically, write_json
from hilum.core.errors import HilumError

SIDE, PREVIOUS, INCOMING = "last.ckpt.sha256.json", "previous-last.ckpt", "incoming-last.ckpt"

WRITER = """
import sys
from pathlib import Path
import torch
from hilum.core.checkpoint import load_checkpoint, save_checkpoint
for line in sys.stdin:
    path = Path(line.strip())
    child = __import__("os").fork()  # torch is imported once; each child is killed alone
    if child == 0:
        step = load_checkpoint(path)["step"] if list(path.parent.glob("*last.ckpt")) else 0
        while True:
            step += 1
            save_checkpoint(path, {"step": step, "values": torch.full((20000,), float(step))})
            path.with_name("log").open("a").write(f"{step}\\n")
    print(child, flush=True)
    __import__("os").waitpid(child, 0)
    print("gone", flush=True)
"""


def payload(step: int) -> dict[str, Any]:
    return {"step": step, "values": torch.full((100,), float(step))}


def saved(path: Path, steps: int) -> Path:
    for step in range(1, steps + 1):
        save_checkpoint(path, payload(step))
    return path


def test_kills_at_random_moments_always_leave_a_whole_checkpoint(tmp_path: Path) -> None:
    path, chance = tmp_path / "last.ckpt", random.Random(0)
    writer = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WRITER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert writer.stdin and writer.stdout
    before, loaded = 0, []
    try:
        for _ in range(25):
            writer.stdin.write(f"{path}\n")
            writer.stdin.flush()
            child = int(writer.stdout.readline())
            while not path.is_file():
                time.sleep(0.001)
            time.sleep(chance.uniform(0.0, 0.06))
            os.kill(child, 9)
            assert writer.stdout.readline() == "gone\n"
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a kill is no damage: nothing to warn of
                found = load_checkpoint(path)
            assert torch.equal(found["values"], torch.full((20000,), float(found["step"])))
            log = path.with_name("log")
            finished = int(log.read_text().split()[-1]) if log.exists() else 0
            assert finished <= found["step"] <= max(finished, before) + 1
            assert found["step"] >= before  # what a resumed run started from is never lost again
            before = found["step"]
            loaded.append(before)
    finally:
        writer.kill()
        writer.wait()
    assert len(loaded) == 25
    assert loaded[-1] > 3
    save_checkpoint(path, payload(0))
    assert not list(tmp_path.glob(".*partial"))  # what killed writers left is swept up
    assert load_checkpoint(path)["step"] == 0


def stop_at(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """A kill before the nth rename of a save."""
    real, count = Path.replace, iter(range(99))

    def replace(self: Path, target: Path) -> Path:
        if next(count) == nth:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("second", range(5))
@pytest.mark.parametrize("first", range(5))
def test_every_pair_of_interrupted_renames_recovers(
    first: int, second: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "last.ckpt", 2)
    reached = 2
    for step, nth in ((3, first), (4, second)):
        stop_at(monkeypatch, nth)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, payload(step))
        monkeypatch.undo()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            now = load_checkpoint(path)["step"]
        assert reached <= now <= step
        reached = now
    save_checkpoint(path, payload(5))
    assert load_checkpoint(path)["step"] == 5
    path.write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(path)["step"] == reached  # the one before is still on record


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt", 3)
    assert load_checkpoint(path)["step"] == 3
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["last.ckpt", SIDE, PREVIOUS])


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "absent"])
def test_a_damaged_file_falls_back_with_a_warning(damage: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt", 2)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1  # one bit, which torch itself would load as a wrong number
    path.write_bytes({"flip": bytes(data), "truncate": bytes(data[:-100])}.get(damage, b""))
    if damage == "absent":
        path.unlink()
        assert load_checkpoint(path)["step"] == 1
        return
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged"):
        assert load_checkpoint(path)["step"] == 1


def test_nothing_whole_left_is_one_message(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt", 2)
    for name in ("last.ckpt", PREVIOUS):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning), pytest.raises(HilumError, match="no intact checkpoint") as caught:
        load_checkpoint(path)
    assert caught.value.fix
    with pytest.raises(HilumError, match="no intact checkpoint"):
        load_checkpoint(tmp_path / "never.ckpt")


@pytest.mark.parametrize("side", [b"", b"[1, 2]", b'{"current": 3}', b"\xff", b"null"])
def test_a_ruined_side_file_costs_the_check_not_the_checkpoint(side: bytes, tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt", 2)
    (tmp_path / SIDE).write_bytes(side)
    assert load_checkpoint(path)["step"] == 2
    save_checkpoint(path, payload(3))
    path.write_bytes(b"x")
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(path)["step"] == 2


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_hostile_file_is_refused_and_runs_nothing(form: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "last.ckpt", tmp_path / "owned"
    stream = io.BytesIO()
    (torch.save if form == "torch" else pickle.dump)({"step": Hostile(mark)}, stream)
    path.write_bytes(stream.getvalue())
    with pytest.warns(UserWarning, match="damaged .UnpicklingError."), pytest.raises(HilumError):
        load_checkpoint(path)
    assert not mark.exists()


def test_what_could_never_be_read_again_is_refused_when_written(tmp_path: Path) -> None:
    path = saved(tmp_path / "last.ckpt", 1)
    for bad in (Path("x"), Hostile(path), np.zeros(2), {1, 2}, lambda: 0):
        with pytest.raises(HilumError, match="tensors and plain values") as caught:
            save_checkpoint(path, {"a": [{"b": bad}]})
        assert caught.value.where == "last.ckpt.a[0].b"
    assert load_checkpoint(path)["step"] == 1


def test_numbers_of_numpy_and_state_dicts_come_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9))
    model(torch.ones(4, 2)).sum().backward()
    optimiser.step()
    content = {
        "best": np.float64(0.5), "count": np.int64(3), "flag": np.bool_(True), "shape": torch.Size([2, 3]),
        "model": model.state_dict(), "optimiser": optimiser.state_dict(), "none": None, "pair": (1, "x"),
    }  # fmt: skip
    save_checkpoint(tmp_path / "last.ckpt", content)
    found = load_checkpoint(tmp_path / "last.ckpt")
    assert [type(found[k]) for k in ("best", "count", "flag")] == [float, int, bool]
    assert (found["best"], found["count"], found["shape"], found["pair"]) == (0.5, 3, (2, 3), (1, "x"))
    assert isinstance(found["model"], OrderedDict)
    assert found["model"]._metadata[""]["version"] == 1
    again = torch.optim.AdamW(model.parameters())
    again.load_state_dict(found["optimiser"])
    assert again.param_groups[0]["betas"] == (0.8, 0.9)
    assert torch.equal(found["model"]["0.weight"], model[0].weight)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_full_disk_at_any_write_keeps_the_last_good(
    nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, count = saved(tmp_path / "last.ckpt", 2), os.fsync, iter(range(99))
    monkeypatch.setattr(os, "fsync", lambda fd: full_disk() if next(count) == nth else real(fd))
    with pytest.raises(HilumError, match="disk is full") as caught:
        save_checkpoint(path, payload(3))
    monkeypatch.undo()
    assert "hilum resume" in caught.value.fix
    assert load_checkpoint(path)["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["last.ckpt", SIDE, PREVIOUS])
    save_checkpoint(path, payload(4))
    assert load_checkpoint(path)["step"] == 4
    path.write_bytes(b"x")
    with pytest.warns(UserWarning, match="damaged"):
        assert load_checkpoint(path)["step"] == 2


def test_a_file_larger_than_the_system_allows_is_one_message(tmp_path: Path) -> None:
    code = f"""
import resource, sys
from pathlib import Path
import torch
from hilum.core.checkpoint import load_checkpoint, save_checkpoint
from hilum.core.errors import HilumError
path = Path({str(tmp_path / "last.ckpt")!r})
save_checkpoint(path, {{"step": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(path, {{"step": 2, "values": torch.zeros(1_000_000)}})
except HilumError as error:
    print(error.fix)
    print(load_checkpoint(path)["step"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "free space there and run `hilum resume`; the last good checkpoint was kept",
        "1",
    ]
    assert not [p.name for p in tmp_path.iterdir() if "partial" in p.name or "incoming" in p.name]


def test_other_faults_of_the_system_are_one_message_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(HilumError, match=r"x\.json could not be written: File exists"):
        write_json(tmp_path / "file" / "x.json", {})


def test_an_atomic_write_that_fails_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": 1, "a": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    digest = file_sha256(path)

    def broken(stream: Any) -> None:
        stream.write(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(path, broken)
    assert file_sha256(path) == digest
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_called_that_and_nothing_is_promised_that_is_not_there(tmp_path: Path) -> None:
    """torch's writer reports a file that cannot grow as a fault of its own."""
    code = (
        "import resource, signal, torch\n"
        "from pathlib import Path\n"
        "from hilum.core.checkpoint import save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        f"path = Path({str(tmp_path / 'run' / 'last.ckpt')!r})\n"
        "for size in (1 << 20, 1 << 10, 1 << 20):\n"
        "    try:\n"
        "        save_checkpoint(path, {'values': torch.ones(size)})\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, str(error).replace(chr(10), ' '))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    first, second = done.stdout.strip().splitlines()
    for told in (first, second):
        assert told.startswith("HilumError") and "last.ckpt could not be written: the disk is full" in told, told
    assert "was kept" not in first and "the last good checkpoint was kept" in second
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["values"].numel() == 1 << 10
