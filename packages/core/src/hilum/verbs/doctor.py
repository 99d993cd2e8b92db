"""``hilum doctor``: what this machine can do, or what a study holds; ``hilum ui``: its MLflow pages."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError

SHM_FLOOR = 1 << 30  # PyTorch workers hand batches over through shared memory
FILES_FLOOR = 1024
VALUES = {1: "positive", 0: "negative", -1: "uncertain"}


def doctor(target: Path | None = None) -> Any:
    """Check this machine, or describe a study: what is usable, what is not, and why.

    Args:
        target: a study, or a folder of files to look at without keeping anything (default: this machine)
    """
    if target is None:
        return _machine()
    if (Path(target) / "index.parquet").is_file():
        return _study(Path(target))
    if not Path(target).is_dir():
        raise HilumError(f"there is no folder {target}", fix="give a study or an archive")
    return _archive(Path(target))


def _machine() -> None:
    import importlib.metadata
    import importlib.util

    import torch

    print(f"python {sys.version.split()[0]}   hilum {importlib.metadata.version('hilum')}   torch {torch.__version__}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            print(
                f"gpu {i}: {p.name}, {p.total_memory / 2**30:.0f} GiB, bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}"
            )
    else:
        built = "a CPU build of torch" if torch.version.cuda is None else "no driver or device"
        print(f"gpu: none ({built}); CPU {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    print(f"memory: {_memory_gib():.0f} GiB   cores: {os.cpu_count()}")
    warn = []
    shm = Path("/dev/shm")
    if shm.is_dir() and shutil.disk_usage(shm).total < SHM_FLOOR:
        warn.append(
            f"/dev/shm has {shutil.disk_usage(shm).total >> 20} MiB: loading workers may die; give the container --shm-size=8g"
        )
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < FILES_FLOOR:
            warn.append(f"only {soft} open files are allowed: ulimit -n 65536")
    from hilum.core.registry import registry

    for name, entry in sorted(registry.entries("intake").items()):
        missing = entry.missing()
        print(
            f"intake {name}: "
            + (f'missing {", ".join(missing)}: pip install "hilum[{entry.extra}]"' if missing else "ready")
        )
        if not missing:
            codecs = getattr(entry.load()(), "codecs", None)
            for syntax, codec in (codecs() if callable(codecs) else {}).items():
                print(f"    {syntax:<34} {codec}")
    for text in warn:
        print(f"warning: {text}")


def _memory_gib() -> float:
    import psutil

    return float(psutil.virtual_memory().total) / 2**30


def _archive(folder: Path) -> None:
    import tempfile

    from hilum.data.index import index_archive

    with tempfile.TemporaryDirectory(prefix="hilum-doctor-") as scratch:
        key = Path(scratch) / "id.key"
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
        index_archive(folder, Path(scratch) / "study", id_key=key)
        _study(Path(scratch) / "study")


def _study(folder: Path) -> None:
    from hilum.data.ledger import counts_of
    from hilum.data.study import Study
    from hilum.verbs.intake import summary

    study = Study(folder)
    index = study.index
    counts = counts_of(index)
    print(summary(counts))
    if counts["vanished"]:
        print(f"vanished         {counts['vanished']} files that were there before")
    rows = study.rows(None)
    groups = {index.column("group_id")[int(r)].as_py() for r in rows}
    print(f"usable images: {len(rows)} of {len(groups)} patients")
    for why, n in study.left_out().items():
        print(f"left out         {n} {why}")
    for name in ("modality", "view", "transfer_syntax", "photometric", "bits_stored", "source"):
        if name in study.columns:
            seen = Counter(str(v) for v in (index.column(name)[int(r)].as_py() for r in rows) if v is not None)
            if seen:
                print(f"{name.replace('_', ' '):<16} " + ", ".join(f"{k} {n}" for k, n in seen.most_common(8)))
    sizes = [(index.column("rows")[int(r)].as_py() or 0, index.column("columns")[int(r)].as_py() or 0) for r in rows]
    if sizes:
        print(f"{'pixels':<16} {min(sizes)[0]} x {min(sizes)[1]} to {max(sizes)[0]} x {max(sizes)[1]}")
    problems = Counter(p.partition(":")[0] for ps in index.column("problems").to_pylist() for p in ps or ())
    for problem, n in problems.most_common():
        print(f"problem          {problem}: {n} files")
    unknown = sum(1 for r in rows if index.column("group_known")[int(r)].as_py() is False)
    if unknown:
        print(f"warning: {unknown} images have no usable patient identifier: they can train, never validate or test")
    if study.label_names:
        matrix = study.label_matrix(None, rows)
        print("labels")
        for f, name in enumerate(study.label_names):
            column = matrix[:, f]
            print(f"  {name:<24} " + ", ".join(f"{int((column == v).sum())} {word}" for v, word in VALUES.items()))


def ui(study: Path, *, port: int = 5000) -> None:
    """Serve a study's MLflow pages on this machine only.

    Args:
        study: the study folder
        port: port on 127.0.0.1
    """
    store = Path(study) / "mlflow.db"
    if not store.is_file():
        raise HilumError("this study has no tracked run yet", where=str(store), fix="hilum pretrain or hilum finetune")
    import importlib.util
    import subprocess

    if importlib.util.find_spec("mlflow") is None:
        fix = 'pip install "mlflow>=3.10,<4"'
        raise HilumError("hilum ui needs the package 'mlflow', which is not installed", fix=fix)
    _need_port(port)

    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{store.resolve()}",
        "--default-artifact-root",
        str((Path(study) / "mlartifacts").resolve()),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    print(f"http://127.0.0.1:{port}   (Ctrl-C ends it)")
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise HilumError(
            f"the MLflow server ended with code {code}", where=str(store), fix="its own message is above this one"
        )


def _need_port(port: int) -> None:
    """Refuse a port that is taken before its address is printed as if the pages were there."""
    import socket

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            if sys.platform != "win32":  # elsewhere this lets two servers share a port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        told = getattr(error, "strerror", None) or "ports are 1 to 65535"
        raise HilumError(f"port {port} cannot be used: {told}", where="127.0.0.1", fix="--port 5001") from None
