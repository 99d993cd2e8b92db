"""``hilum pull`` and ``hilum push``: images from and to a PACS."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hilum.core.errors import HilumError


def pull(
    source: str,
    out: Path,
    *,
    study: str | None = None,
    patient: str | None = None,
    accession: str | None = None,
    modality: str | None = None,
    date: str | None = None,
    from_: str | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    id_key: Path | None = None,
    rate: float | None = None,
    retries: int = 4,
    timeout: float = 30.0,
    max_bytes: int = 4 << 30,
    allow_http: bool = False,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> Any:
    """Copy what matches from a PACS: every instance ends as received, skipped or failed, with a reason.

    Criteria are exact and all hold. A pull that was interrupted goes on where it stopped. A DICOMweb token is read from
    HILUM_DICOMWEB_TOKEN, or user and password from ~/.netrc.

    Args:
        source: https://host/dicom-web or dimse://AET@host:port?calling=HILUM (&move=ADDRESS:PORT for C-MOVE)
        out: folder to fill; nothing in its names identifies anybody
        study: StudyInstanceUID
        patient: PatientID
        accession: AccessionNumber
        modality: only series of this modality, e.g. CT
        date: day or days of the study, YYYYMMDD or FIRST-LAST
        from_: TABLE.csv:COLUMN with one study, patient or accession a row (COLUMN=study, =patient, =accession says which)
        limit: at most so many instances
        dry_run: count what matches, fetch nothing
        id_key: file with the 32-byte key that names are hashed with (the one that hilum index is given)
        rate: requests a second, at most
        retries: times that a request is repeated, after 1, 2, 4 ... seconds
        timeout: seconds that the archive may stay silent
        max_bytes: of one instance
        allow_http: let images travel in clear over http
        tls_ca: PEM file of the authorities to trust
        tls_cert: PEM file of our certificate (with DIMSE, --tls-ca or --tls-cert turns TLS on)
        tls_key: PEM file of its key
    """
    from hilum.data.identity import IdentityKey
    from hilum.medical.pacs import pull as pulling
    from hilum.medical.pacs.query import queries_of

    if limit is not None and limit < 1:
        raise HilumError("a limit is 1 or more", where="--limit", fix="e.g. --limit 100")
    queries = list(
        queries_of(study=study, patient=patient, accession=accession, modality=modality, date=date, table=from_)
    )
    manners = _manners(rate, retries, timeout, max_bytes)
    with _connected(source, manners, Path(out), allow_http, (tls_ca, tls_cert, tls_key), dry_run=dry_run) as peer:
        result = pulling.pull(peer, queries, Path(out), IdentityKey.load(id_key), manners, limit=limit, dry_run=dry_run)
    if dry_run:
        print(
            f"found {result.found} instances in {result.series} series of {result.studies} studies; nothing was fetched"
        )
    else:
        print(f"found {result.found} = received {result.received} + skipped {result.skipped} + failed {result.failed}")
    print(*_reasons(result.reasons), sep="\n", end="\n" if result.reasons else "")
    if not result.found and not result.unasked:
        print("nothing in the archive matches: all criteria hold at once, and values are compared exactly")
    if result.unasked:
        print(f"{result.unasked} studies that the archive answered do not match and were left out")
    if result.cut:
        print("there is more: --limit was reached")
    return result


def push(
    paths: list[Path],
    dest: str,
    *,
    identified: bool = False,
    dry_run: bool = False,
    out: Path = Path("hilum-push"),
    id_key: Path | None = None,
    rate: float | None = None,
    retries: int = 4,
    timeout: float = 30.0,
    max_bytes: int = 4 << 30,
    allow_http: bool = False,
    tls_ca: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> Any:
    """Send DICOM files to a PACS and read every one back: what could not be verified is a failure.

    Nothing is deleted or overwritten: an instance that the archive holds already is skipped where it is the same.

    Args:
        paths: files or folders
        dest: https://host/dicom-web or dimse://AET@host:port?calling=HILUM
        identified: send files although PatientIdentityRemoved is not YES
        dry_run: only check the files
        out: folder for private/transfer.parquet, the list of what was sent and verified
        id_key: file with the 32-byte key of the list's digests
        rate: requests a second, at most
        retries: times that a request is repeated, after 1, 2, 4 ... seconds
        timeout: seconds that the archive may stay silent
        max_bytes: of one instance
        allow_http: let images travel in clear over http
        tls_ca: PEM file of the authorities to trust
        tls_cert: PEM file of our certificate (with DIMSE, --tls-ca or --tls-cert turns TLS on)
        tls_key: PEM file of its key
    """
    from hilum.data.identity import IdentityKey
    from hilum.medical.pacs import push as pushing

    manners = _manners(rate, retries, timeout, max_bytes)
    with _connected(dest, manners, Path(out), allow_http, (tls_ca, tls_cert, tls_key), dry_run=dry_run) as peer:
        result = pushing.push(
            peer, paths, Path(out), IdentityKey.load(id_key), manners, identified=identified, dry_run=dry_run
        )
    if dry_run:
        ready = result.found - result.skipped - result.failed
        print(
            f"found {result.found}: {ready} ready, skipped {result.skipped}, failed {result.failed}; nothing was sent"
        )
    else:
        print(f"found {result.found} = verified {result.verified} + skipped {result.skipped} + failed {result.failed}")
    print(*_reasons(result.reasons), sep="\n", end="\n" if result.reasons else "")
    if result.failed and not dry_run:
        print(f"which files failed: {out}/private/transfer.parquet")
    return result


def _reasons(reasons: Mapping[str, int]) -> list[str]:
    return [f"  {n:>6}  {reason}" for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))]


def _manners(rate: float | None, retries: int, timeout: float, max_bytes: int) -> Any:
    from hilum.core.types import Limits
    from hilum.medical.pacs.transfer import Manners

    tell = lambda line: print(line, file=sys.stderr, flush=True)
    return Manners(retries=retries, timeout=timeout, rate=rate, tell=tell, limits=Limits(max_bytes=max_bytes))


@contextlib.contextmanager
def _connected(
    address: str, manners: Any, out: Path, allow_http: bool, certificates: tuple[Path | None, ...], *, dry_run: bool
) -> Iterator[Any]:
    """The peer at an address; what its library would log or leave in other folders is kept in."""
    from hilum.medical.pacs.address import Certificates, WebAddress, parse_address
    from hilum.medical.pacs.transfer import silent

    where, chain = parse_address(address, allow_http=allow_http), Certificates(*certificates)
    with silent():
        if isinstance(where, WebAddress):
            from hilum.medical.pacs.dicomweb import DicomWeb

            peer: Any = DicomWeb(where, manners, chain)
            with contextlib.closing(peer):
                yield peer
            return
        from hilum.medical.pacs.dimse import Dimse
        from hilum.medical.pacs.guard import streaming

        with streaming(None if dry_run else out / "private" / "incoming"):
            peer = Dimse(where, manners, chain)
            with contextlib.closing(peer):
                yield peer
