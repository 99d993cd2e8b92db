"""The pieces of a transfer: multipart messages, comparison of what came back, criteria, certificates."""

from __future__ import annotations

import datetime
import io
import ipaddress
import ssl
from pathlib import Path

import pytest
from fake.dicom import dataset, phantom, uid, write
from fake.pacs import node
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from hilum.core.errors import HilumError
from hilum.core.types import Limits
from hilum.medical.pacs.compare import differences
from hilum.medical.pacs.multipart import FileBody, boundary_of, copy_part
from hilum.medical.pacs.query import queries_of
from hilum.medical.pacs.transfer import Manners, Trouble
from hilum.medical.pacs.verbs import pull

LIMITS = Limits()


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


@given(
    content=st.binary(max_size=300),
    size=st.integers(1, 40),
    preamble=st.sampled_from([b"", b"\r\n", b"ignore this\r\n"]),
)
def test_a_part_is_the_same_however_the_network_cuts_it(content: bytes, size: int, preamble: bytes) -> None:
    if b"\r\n--xx" in content:
        return
    message = preamble + b"--xx\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--xx--"
    out = io.BytesIO()
    assert copy_part(cut(message, size), b"xx", out, 300) == len(content)
    assert out.getvalue() == content


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"--b\r\n\r\nabc\r\n--b\r\n\r\ndef\r\n--b--", "unexpected_answer"),
        (b"--b\r\n\r\nabc\r\n--", "truncated_answer"),
        (b"--b\r\n\r\nabc", "truncated_answer"),
        (b"", "truncated_answer"),
        (b"--b\r\n\r\n" + b"x" * 99 + b"\r\n--b--", "too_large"),
        (b"h" * 200_000, "unexpected_answer"),
    ],
)
def test_a_damaged_message_is_no_instance(message: bytes, reason: str) -> None:
    with pytest.raises(Trouble) as trouble:
        copy_part(cut(message, 1 << 16), b"b", io.BytesIO(), 50)
    assert trouble.value.reason == reason


def test_boundaries_are_read_as_the_standard_writes_them() -> None:
    assert boundary_of('multipart/related; type="application/dicom"; boundary="a b=c"') == b"a b=c"
    assert boundary_of("Multipart/Related; boundary=x; type=application/dicom") == b"x"
    assert boundary_of("application/dicom") is None
    with pytest.raises(Trouble):
        boundary_of("multipart/related")


def test_a_body_is_as_long_as_it_says(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(bytes(range(256)) * 1000)
    body = FileBody(file)
    message = b"".join(body)
    assert len(message) == len(body)
    out = io.BytesIO()
    copy_part([message], boundary_of(body.content_type), out, 1 << 20)
    assert out.getvalue() == file.read_bytes()


def sample(path: Path, **change: object) -> Path:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "1", "Thorax"
    return write(
        path, phantom(1, (64, 80)), bits=12, AnatomicRegionSequence=[item], SpecificCharacterSet="ISO_IR 100", **change
    )


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_another_encoding_is_no_difference(tmp_path: Path, syntax: str) -> None:
    sent = sample(tmp_path / "sent", SeriesDescription="Schädel")
    data = dcmread(sent)
    if syntax == ExplicitVRBigEndian:
        data = dataset(phantom(1, (64, 80)), bits=12, syntax=syntax)
        data.AnatomicRegionSequence = dcmread(sent).AnatomicRegionSequence
        data.SpecificCharacterSet, data.SeriesDescription = "ISO_IR 100", "Schädel"
    elif syntax == ImplicitVRLittleEndian:
        data.file_meta.TransferSyntaxUID = syntax
    else:
        data.compress(syntax, generate_instance_uid=False)
    data.AnatomicRegionSequence.is_undefined_length = True
    dcmwrite(tmp_path / "returned", data)
    assert differences(sent, tmp_path / "returned", LIMITS) == []


def test_what_differs_is_named(tmp_path: Path) -> None:
    sent = sample(tmp_path / "sent", BodyPartExamined="CHEST")
    data = dcmread(sent)
    data.PatientID, data.StudyDescription = "other", "added"
    del data.BodyPartExamined
    data.AnatomicRegionSequence[0].CodeMeaning = "Hand"
    data.save_as(tmp_path / "returned")
    told = ["BodyPartExamined", "StudyDescription", "AnatomicRegionSequence", "PatientID"]
    assert sorted(differences(sent, tmp_path / "returned", LIMITS)) == sorted(told)
    data = dcmread(sent)
    pixels = bytearray(data.PixelData)
    pixels[7] ^= 1
    data.PixelData = bytes(pixels)
    data.save_as(tmp_path / "returned")
    assert differences(sent, tmp_path / "returned", LIMITS) == ["PixelData"]
    (tmp_path / "returned").write_bytes(sent.read_bytes()[:700])
    assert differences(sent, tmp_path / "returned", LIMITS) != []


def test_dates_are_compared_with_the_answer() -> None:
    (query,) = queries_of(date="20200110-20200120", modality="ct")
    assert query.filters() == {"StudyDate": "20200110-20200120", "ModalitiesInStudy": "CT"}
    days = ["20200109", "20200110", "2020.01.20", "20200121", "", "garbage"]
    assert [query.answered_by({"StudyDate": d}) for d in days] == [False, True, True, False, False, False]
    (open_end,) = queries_of(date="20200110-")
    assert [open_end.answered_by({"StudyDate": d}) for d in ("20200109", "20991231")] == [False, True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"study": "1.2.*"},
        {"patient": "?"},
        {"patient": ""},
        {"patient": "a\\b"},
        {"date": "2020"},
        {"date": "20210101-20200101"},
        {},
    ],
)
def test_questions_that_would_match_anything_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(HilumError):
        list(queries_of(**wrong))


def test_waiting_doubles_up_to_a_minute_and_heeds_the_archive() -> None:
    waited: list[float] = []
    manners = Manners(retries=8, sleep=waited.append)

    def call() -> None:
        raise Trouble("http_503", again=True, after=5.0 if len(waited) == 1 else 0.0)

    with pytest.raises(Trouble):
        manners.persist(call)
    assert waited == [1.0, 5.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(key.private_bytes(*plain))
    return folder / f"{name}.pem", folder / f"{name}.key"


def test_dimse_over_tls_trusts_only_the_authority_that_is_named(tmp_path: Path) -> None:
    own, key = certificate(tmp_path, "archive")
    other, _ = certificate(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, key)
    content = io.BytesIO()
    dataset(phantom(1), StudyDate="20200115").save_as(content, enforce_file_format=True)
    with node(tls=context) as held:
        held.store.add(content.getvalue())
        result = pull(held.url, tmp_path / "in", study=uid(1), tls_ca=own, retries=0, timeout=5.0)
        assert (result.received, result.failed) == (1, 0)
        for options in ({"tls_ca": other}, {}):
            with pytest.raises(HilumError, match="no answer"):
                pull(held.url, tmp_path / "in", study=uid(1), retries=0, timeout=2.0, **options)
    with pytest.raises(HilumError, match="cannot be read"):
        pull(held.url, tmp_path / "in", study=uid(1), tls_ca=key)
