"""``hilum doctor``: what this machine can do, or what an archive holds; ``hilum ui``: its MLflow pages."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError

SHM_FLOOR = 1 << 30  # PyTorch workers hand batches over through shared memory
FILES_FLOOR = 1024
_LISTED = ("modality", "view", "vendor", "transfer_syntax", "photometric", "bits_stored", "spacing_mm", "source")
PAGE = "doctor.html"


def doctor(
    target: Path | None = None,
    *,
    why: str | None = None,
    out: Path | None = None,
    pictures: bool = True,
    headers_only: bool = False,
    workers: int | None = None,
) -> Any:
    """Check this machine, or describe an archive: what is usable, what is not, why, and what to do.

    Args:
        target: a study, or a folder of files to look at without keeping anything (default: this machine)
        why: explain one file of the study: its path below the root or in full, archive.zip!member, or its sample_id
        out: HTML page to write (default: doctor.html in the study, hilum-doctor.html here for a folder)
        pictures: draw example images on the page
        headers_only: of a folder, do not decode pixels (a fast first look)
        workers: reading processes, for a folder (default: one a core)
    """
    if target is None:
        if why is not None:
            raise HilumError("--why explains a file of a study", fix="hilum doctor STUDY --why PATH")
        return _machine()
    target = Path(target)
    if target.is_dir() and not os.access(target, os.R_OK | os.X_OK):
        raise HilumError("the folder may not be read", where=str(target), fix="ask its owner for the rights")
    if (target / "index.parquet").is_file():
        if why is not None:
            return _why(target, why)
        return _study(target, _page(target / PAGE if out is None else out), pictures=pictures)
    if target.is_file():
        raise HilumError("this is a file, not a folder", where=str(target), fix="hilum doctor FOLDER --why FILE")
    if not target.is_dir():
        raise HilumError(f"there is no folder {target}", fix="give a study or an archive")
    if workers is not None and workers < 0:
        raise HilumError("the number of processes is 0 (this one) or more", where="--workers", fix="--workers 2")
    page = Path(f"hilum-{PAGE}") if out is None else out
    if why is None:
        _page(page, archive=target)
    with _looked_at(target, headers_only=headers_only, workers=workers) as study:
        return _study(study, page, pictures=pictures) if why is None else _why(study, why)


def _page(page: Path, archive: Path | None = None) -> Path:
    """The page's place, refused before anything is read: it replaces what stands there, which is never an image, and
    leaves no file in an archive that is only looked at."""
    if page.suffix.lower() not in (".html", ".htm") or page.is_dir():
        raise HilumError("the page is one HTML file", where=str(page), fix="--out FILE.html")
    if archive is not None and page.resolve().is_relative_to(archive.resolve()):
        raise HilumError(
            "the page would lie in the archive, which is only read", where=str(page), fix="--out elsewhere"
        )
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(page.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise HilumError("the page's folder cannot be written", where=str(page.parent), fix="--out FILE.html elsewhere")
    return page


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


@contextlib.contextmanager
def _looked_at(folder: Path, *, headers_only: bool, workers: int | None) -> Iterator[Path]:
    """A study of a folder, made under a throw-away key and removed."""
    import tempfile

    from hilum.data.index import index_archive

    with tempfile.TemporaryDirectory(prefix="hilum-doctor-") as scratch:
        key = Path(scratch) / "id.key"
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
        index_archive(folder, Path(scratch) / "study", id_key=key, headers_only=headers_only, workers=workers)
        yield Path(scratch) / "study"


def _why(folder: Path, path: str) -> None:
    from hilum.data.study import Study
    from hilum.verbs.why import explain

    for topic, words in explain(Study(folder), path):
        print(f"{topic:<9} {words}")


def _study(folder: Path, page: Path, *, pictures: bool) -> None:
    from hilum.data.study import Study
    from hilum.verbs.archive_page import write_page
    from hilum.verbs.holdings import Archive
    from hilum.verbs.intake import summary

    archive = Archive.of(Study(folder))
    counts, numbers = archive.counts, archive.numbers
    print(summary(counts))
    if counts["vanished"]:
        print(f"vanished         {counts['vanished']} files that were there before")
    print(f"usable images: {archive.usable} of {archive.patients} patients")
    for reason, n in archive.left.items():
        print(f"left out         {n} {reason}")
    for name in _LISTED:
        seen = {v: n for v, n in numbers.get(name, {}).items() if v != "-"}
        if name == "transfer_syntax":
            seen = {s.name: s.files for s in archive.syntaxes()}
        if seen:
            print(f"{name.replace('_', ' '):<16} " + ", ".join(f"{v} {n}" for v, n in list(seen.items())[:8]))
    if numbers["sizes"]:
        sizes = sorted((tuple(map(int, s.split(" x "))) for s in numbers["sizes"]), key=lambda s: s[0] * s[1])
        print(f"{'pixels':<16} {sizes[0][0]} x {sizes[0][1]} to {sizes[-1][0]} x {sizes[-1][1]}")
    for message, n in archive.waiting().items():
        print(f"missing codec    {n} files: {message}")
    for problem, n in numbers["problems"].items():
        print(f"problem          {problem}: {n} files")
    deep = archive.volumes["deep"]
    if deep:
        print(f"volumes          {archive.volumes['deep_usable']} of {deep} of several frames are usable")
        for problem, (n, _) in archive.volumes["problems"].items():
            print(f"  {n:>6}  {problem}")
    if numbers["copies"]:
        print(f"exact copies     {numbers['copies']}")
    if numbers["unknown_images"]:
        print(
            f"warning: {numbers['unknown_images']} images have no usable patient identifier: they can train, never "
            "validate or test"
        )
    if archive.labels:
        print("labels")
        for name, (positive, negative, uncertain) in archive.labels.items():
            print(f"  {name:<24} {positive} positive, {negative} negative, {uncertain} uncertain")
    print(f"page: {write_page(archive, page, pictures=pictures)}")


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
