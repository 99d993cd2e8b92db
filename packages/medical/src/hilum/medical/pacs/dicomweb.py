"""An archive that speaks DICOMweb: QIDO-RS, WADO-RS and STOW-RS (PS3.18 10)."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import requests
import urllib3
from dicomweb_client.web import DICOMwebClient

from hilum.core.errors import HilumError
from hilum.medical.pacs.address import TOKEN, Certificates, WebAddress
from hilum.medical.pacs.multipart import CHUNK, FileBody, boundary_of, copy_part
from hilum.medical.pacs.query import ANSWERS, ASKED, Answer
from hilum.medical.pacs.transfer import Arrival, Manners, Pace, Ref, Trouble

_ADDRESS = "the archive's address"
_PAGE = 500  # answers a query asks for at a time
_JSON = 1 << 26  # bytes of one page
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_PART = 'multipart/related; type="application/dicom"'
_ACCEPT = (f"{_PART}; transfer-syntax=*", _PART, "application/dicom")  # as stored, then what older archives understand


class _Token(requests.auth.AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _no_credentials(request: Any) -> Any:
    return request


class _Bounded:
    """The raw body of an answer, refused beyond ``most`` bytes or ``seconds``; what a library reads whole too."""

    def __init__(self, raw: Any, most: int, seconds: float) -> None:
        self._raw, self._left, self._until = raw, most, time.monotonic() + seconds

    def read(self, amount: int = CHUNK, **options: Any) -> bytes:
        if time.monotonic() > self._until:
            raise Trouble("timeout", again=True)
        data: bytes = self._raw.read1(min(amount or CHUNK, CHUNK))  # what is there: a drip fills no chunk for days
        self._left -= len(data)
        if self._left < 0:
            raise Trouble("too_large")
        return data

    def close(self) -> None:
        self._raw.close()

    def release_conn(self) -> None:
        self._raw.release_conn()


class _Session(requests.Session):
    """Every request has a time limit, its answer a size limit; nothing is unpacked, redirected or retried."""

    def __init__(self, address: WebAddress, certificates: Certificates, manners: Manners) -> None:
        super().__init__()
        self._local, self._secure, self._manners = address.loopback, address.secure, manners
        self.max_redirects = 0
        self.headers["Accept-Encoding"] = "identity"
        if certificates.authorities is not None:
            self.verify = str(certificates.authorities)
        if certificates.own is not None:
            own, key = str(certificates.own), certificates.key
            self.cert = (own, str(key)) if key else own
        if token := os.environ.get(TOKEN, "").strip():
            self.auth = _Token(token)

    def request(self, method: str, url: str, **options: Any) -> requests.Response:  # type: ignore[override]
        most = self._manners.limits.max_bytes + (1 << 16) if options.get("stream") else _JSON
        seconds = max(600.0, 20 * self._manners.timeout)

        def bounded(response: requests.Response, **_: Any) -> None:
            response.raw = _Bounded(response.raw, most, seconds)

        options["hooks"] = {"response": bounded}
        options["timeout"] = self._manners.timeout
        if not self._secure and not self._local and self.auth is None:
            options["auth"] = _no_credentials  # else those of ~/.netrc would travel in clear
        if self._local:
            options["proxies"] = {"no_proxy": "localhost,127.0.0.0/8,::1"}
        return super().request(method, url, **options)


class DicomWeb:
    """:class:`~hilum.medical.pacs.transfer.Peer` over HTTP. Instances go to disk as they come, one at a time."""

    batch = 1

    def __init__(self, address: WebAddress, manners: Manners, certificates: Certificates | None = None) -> None:
        self._base, self._manners, self._pace = address.url, manners, Pace(manners)
        self._session = _Session(address, certificates or Certificates(), manners)
        self._client = DICOMwebClient(address.url, session=self._session)
        self._client.set_http_retry_params(retry=False)
        self._accept = 0

    def studies(self, filters: Mapping[str, str]) -> Iterator[Answer]:
        search = self._client.search_for_studies
        fields = list(ASKED)
        yield from self._pages(
            "StudyInstanceUID", lambda n, at: search(search_filters=dict(filters), fields=fields, limit=n, offset=at)
        )

    def series(self, study: str) -> Iterator[Answer]:
        search = self._client.search_for_series
        yield from self._pages("SeriesInstanceUID", lambda n, at: search(study, limit=n, offset=at))

    def instances(self, study: str, series: str, instance: str = "") -> Iterator[Answer]:
        search, filters = self._client.search_for_instances, {"SOPInstanceUID": instance} if instance else {}
        yield from self._pages(
            "SOPInstanceUID", lambda n, at: search(study, series, search_filters=filters, limit=n, offset=at)
        )

    def _pages(self, key: str, search: Callable[[int, int], list[Any]]) -> Iterator[Answer]:
        """All answers, page by page; an archive that ignores the offset sends the same again, which ends it too."""
        seen: set[str] = set()
        while True:
            at = len(seen)
            answers = self._manners.persist(lambda at=at: self._search(search, at))  # type: ignore[misc]
            if answers and not any(a.get(key) for a in answers):
                raise Trouble("unexpected_answer", detail=key)
            fresh = {a[key] for a in answers if a.get(key)} - seen
            if not fresh:  # an archive may give fewer than it is asked for and still have more
                return
            yield from (a for a in answers if not a.get(key) or a[key] in fresh)  # one without a UID is counted as such
            seen |= fresh
            if len(seen) > ANSWERS:
                raise Trouble("too_many_answers")

    def _search(self, search: Callable[[int, int], list[Any]], at: int) -> list[Answer]:
        self._pace.wait()
        with _told():
            try:
                return [_flat(answer) for answer in search(_PAGE, at)]
            except requests.RequestException:
                raise
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise Trouble("unexpected_answer", detail="JSON") from None

    def fetch(self, refs: Sequence[Ref], folder: Path) -> Iterator[Arrival]:
        for ref in refs:
            try:
                yield Arrival(ref, self._retrieve(ref, folder))
            except Trouble as trouble:
                if trouble.again:
                    raise
                yield Arrival(ref, reason=trouble.reason)

    def _retrieve(self, ref: Ref, folder: Path) -> Path:
        url = f"{self._base}/studies/{ref.study}/series/{ref.series}/instances/{ref.instance}"
        handle, name = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as out, _told(), self._get(url) as response:
                response.raise_for_status()
                boundary = boundary_of(response.headers.get("Content-Type", ""))
                copy_part(response.iter_content(CHUNK), boundary, out, self._manners.limits.max_bytes)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return Path(name)

    def _get(self, url: str) -> requests.Response:
        """As it is stored; an archive that does not understand that is asked more simply, from then on."""
        while True:
            self._pace.wait()
            response = self._session.get(url, headers={"Accept": _ACCEPT[self._accept]}, stream=True)
            if response.status_code not in (400, 406, 415) or self._accept + 1 == len(_ACCEPT):
                return response
            response.close()
            self._accept += 1

    def store(self, file: Path, ref: Ref, syntax: str) -> None:
        body = FileBody(file)
        headers = {
            "Content-Type": body.content_type,
            "Accept": "application/dicom+json",
            "Content-Length": str(len(body)),
        }
        self._pace.wait()
        with _told(), self._session.post(f"{self._base}/studies", data=body, headers=headers) as response:
            if response.status_code == 409:
                raise Trouble("refused")
            if response.status_code in (404, 405):  # no other file would be taken either
                told = f"nothing takes images at this address (HTTP {response.status_code})"
                raise HilumError(
                    told, where="DEST", fix="the base of a service with STOW, as in https://host/dicom-web"
                )
            response.raise_for_status()

    def close(self) -> None:
        self._session.close()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Faults of HTTP as :class:`Trouble`; what no retry mends as :class:`HilumError`. URLs stay untold."""
    try:
        yield
    except requests.TooManyRedirects:
        raise HilumError("the archive redirects", where=_ADDRESS, fix="give the address that it redirects to") from None
    except requests.HTTPError as error:
        raise _status(error.response) from None
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise HilumError("the archive does not speak TLS as we do", where=_ADDRESS, fix="check its port") from None
        told = "the archive's certificate is not trusted"
        raise HilumError(told, where=_ADDRESS, fix="--tls-ca with its authority, and the name it is made for") from None
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise Trouble("timeout", again=True) from None
    except requests.exceptions.JSONDecodeError:
        raise Trouble("unexpected_answer", detail="JSON") from None
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError):
        raise Trouble("unreachable", again=True) from None
    except requests.RequestException:
        raise Trouble("unexpected_answer") from None


def _status(response: requests.Response | None) -> Exception:
    code = 0 if response is None else response.status_code
    if code in (401, 403, 407):
        told = f"the archive does not let us in (HTTP {code})"
        return HilumError(told, where=_ADDRESS, fix=f"set {TOKEN}, or use ~/.netrc")
    if code in _PASSING:
        after = "" if response is None else response.headers.get("Retry-After", "")
        return Trouble(f"http_{code}", again=True, after=float(after) if after.isdecimal() else 0.0)
    return Trouble("not_found" if code in (404, 410) else f"http_{code}")


def _flat(answer: Any) -> Answer:
    """Keyword -> text of the attributes that are asked for; PS3.18 F.2."""
    from pydicom.datadict import keyword_for_tag

    flat = {}
    for tag, element in answer.items():
        values = element.get("Value") if isinstance(element, dict) else None
        if isinstance(values, list) and values and all(isinstance(v, str | int | float) for v in values):
            flat[keyword_for_tag(int(tag, 16))] = "\\".join(str(v) for v in values)
    return flat
